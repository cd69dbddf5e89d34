"""What retrieval does with similarities, on a torch device: the rankings of the numpy code beside it.

`topk` leaves open which of several equal scores it keeps. So a score and its number (a token's position, a document's)
are one int64 key, and no two keys are equal: better scores first, equal ones by number, on every device and for
every way of cutting the work into blocks.

Legend: R query rows, T rows of one query, b document tokens, C documents of a block, N of the collection, k' hits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtrrep.retrieval.evidence import Ranking

LARGEST = (1 << 32) - 1  # the largest number that a key holds
NEVER = torch.iinfo(torch.int64).min  # below the key of any score
MAGNITUDE = 0x7FFFFFFF  # all bits of a float32 but its sign
MANY = 8  # one entry in so many is too many to be picked out one by one


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


def above(similarities: Tensor, positions: Tensor, floor: Tensor, k: int) -> Tensor:
    """Keys of each row's entries above its (R, 1) floor, or of its k largest where they are many; NEVER fills the
    shorter rows. similarities: (R, b); positions: (b,).

    Behind the first blocks hardly any entry is above the k-th best so far: those few are found by one comparison, and
    only they become keys.
    """
    higher = similarities > floor
    counts = higher.sum(dim=1)
    widest = int(counts.max()) if len(counts) else 0
    if widest > min(k, similarities.shape[1] // MANY):
        return largest(keys(similarities, positions), k)
    rows, columns = higher.nonzero(as_tuple=True)  # row by row
    order = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    found = positions.new_full((len(similarities), widest), NEVER)
    found[rows, order] = keys(similarities[rows, columns], positions[columns])
    return found


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


@dataclass(frozen=True)
class DeviceEvidence:
    """`evidence.Evidence` on a device. cells: (T, N) the best hit of each query token in every document, -inf for none;
    best: (T, k') the hits' similarities, descending; empty: (T,) as there. Scores are laid out by document, (N,)."""

    cells: Tensor
    best: Tensor
    empty: NDArray[np.int64]

    @cached_property
    def _known(self) -> Tensor:
        return self.cells != -torch.inf

    @cached_property
    def _candidates(self) -> Tensor:
        return self._known.any(dim=0)

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """C, and how many cells are filled: one transfer for both."""
        size, filled = torch.stack([self._candidates.sum(), self._known.sum()]).tolist()
        return int(size), int(filled)

    @property
    def candidates(self) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = self._candidates.nonzero()[:, 0].cpu().numpy()
        return numbers

    @property
    def hits(self) -> NDArray[Any]:
        # Imputed by the one code there is for it: these are k' numbers a token, not the collection's.
        return self.best.cpu().numpy()

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.cells), self._sizes[0]

    @property
    def filled(self) -> int:
        return self._sizes[1]

    def best_of(self, document: int) -> NDArray[np.float64]:
        own = self.cells[:, document].cpu().numpy().astype(np.float64)
        return np.where(np.isneginf(own), np.nan, own)

    def replaced(self, document: int, best: NDArray[np.float64], hits: NDArray[Any]) -> DeviceEvidence:
        cells = self.cells.clone()
        cells[:, document] = torch.from_numpy(np.where(np.isnan(best), -np.inf, best)).to(cells)
        return DeviceEvidence(cells, torch.from_numpy(hits).to(cells), self.empty)

    def totals(self, imputed: NDArray[np.float32]) -> Tensor:
        missing = torch.from_numpy(imputed).to(self.cells.device)[:, None]
        return torch.where(self._known, self.cells, missing).sum(dim=0, dtype=torch.float64).to(torch.float32)

    def top(self, scores: Tensor, depth: int) -> Ranking:
        numbers = torch.arange(len(scores), device=scores.device)
        packed = torch.where(self._candidates, keys(scores, numbers), NEVER)
        documents, values = unpack(packed.topk(min(depth, self.shape[1])).values)
        return documents.cpu().numpy(), values.cpu().numpy()
