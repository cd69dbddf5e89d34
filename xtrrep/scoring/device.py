"""What retrieval does with similarities, on a torch device: the rankings of the numpy code beside it.

`topk` leaves open which of several equal scores it keeps. So a score and its number (a token's position, a document's)
are one int64 key, and no two keys are equal: better scores first, equal ones by number, on every device and for
every way of cutting the work into blocks.

Legend: R query rows, T rows of one query, b document tokens, C documents of a block, N of the collection, k' hits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from xtrrep.scoring.aggregate import Ranking
from xtrrep.scoring.imputation import imputations

LARGEST = (1 << 32) - 1  # the largest number that a key holds
NEVER = torch.iinfo(torch.int64).min  # below the key of any score
MAGNITUDE = 0x7FFFFFFF  # all bits of a float32 but its sign


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 in float32: TF32, where something else has allowed it, keeps 10 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keys(scores: Tensor, numbers: Tensor) -> Tensor:
    """int64 keys of float32 scores, none of them NaN, and of int64 numbers from 0 to LARGEST: larger is better."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: they are equal, and now in their bits too
    # A float's bits ascend with it as an integer's do, but for negative ones, whose magnitude descends.
    ascending = bits ^ ((bits >> 31) & MAGNITUDE)
    return (ascending.to(torch.int64) << 32) | (LARGEST - numbers)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers (int64) and scores (float32) of keys."""
    ascending = (packed >> 32).to(torch.int32)
    return LARGEST - (packed & LARGEST), (ascending ^ ((ascending >> 31) & MAGNITUDE)).view(torch.float32)


def largest(values: Tensor, k: int) -> Tensor:
    """The k largest of each row, in no order; all of them where there are no more."""
    return values if values.shape[1] <= k else values.topk(k, dim=1, sorted=False).values


def document_maxima(similarities: Tensor, offsets: Tensor) -> Tensor:
    """(R, C) best match of each of R rows in each of C documents, whose tokens lie end to end in (R, b) similarities.

    offsets: (C + 1,) where each one starts, and b. A document without tokens has -inf.
    """
    if not similarities.shape[1]:
        return similarities.new_full((len(similarities), len(offsets) - 1), -torch.inf)
    # One thread a row and document, neighbours side by side in memory.
    return torch.segment_reduce(similarities.T.contiguous(), "max", offsets=offsets, axis=0).T


def hit_cells(documents: Tensor, scores: Tensor, count: int) -> Tensor:
    """(T, N) the best hit of each query token in each of `count` documents, -inf where it has none.

    documents, scores: (T, k') document numbers and similarities.
    """
    cells = scores.new_full((len(scores), count), -torch.inf)
    return cells.scatter_reduce_(1, documents, scores, "amax")


def rank(
    cells: Tensor, best: Tensor, imputation: str | None, exact: Tensor | None, depth: int
) -> tuple[Ranking, int, int]:
    """One query's ranking, how many candidates it has, and how many (token, candidate) cells a hit filled.

    cells: (T, N), -inf where a token has no hit in a document; a document with any hit is a candidate. Its score is the
    sum of its cells, the empty ones imputed from `best` (T, k'), the hits' scores descending; or that of `exact` (N,),
    where it is given. At most `depth` documents, ties by number. Raises DataError for an unknown imputation.
    """
    filled = cells != -torch.inf
    candidates = filled.any(dim=0)
    if exact is None:
        # By the one code there is for it: these are k' numbers a token, not the collection's.
        imputed = imputations.get(imputation or "min")(best.cpu().numpy())
        missing = torch.from_numpy(imputed).to(cells.device)[:, None]
        exact = torch.where(filled, cells, missing).sum(dim=0, dtype=torch.float64).to(torch.float32)
    packed = torch.where(candidates, keys(exact, torch.arange(len(exact), device=exact.device)), NEVER)
    size, cells_filled = (int(n) for n in torch.stack([candidates.sum(), filled.sum()]).tolist())
    numbers, scores = unpack(packed.topk(min(depth, size)).values)
    return (numbers.cpu().numpy(), scores.cpu().numpy()), size, cells_filled
