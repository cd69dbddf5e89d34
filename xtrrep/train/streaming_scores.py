"""Late-interaction scores of a batch, and their gradients, from one walk over the grid of similarities.

The grid, every query token against every document token of the batch, is never whole in memory. For a block of query
rows it is computed piece by piece into one buffer; the maxima of groups of 8 tokens are taken while a piece is still in
cache, and everything after that reads those: the maximum of each document, and the k-th largest score of a row from
the few groups that can hold it. A document token is retrieved iff its score is at least that threshold (so all ties at
the threshold are), hence a document's retrieved maximum is its plain maximum if that reaches it, and nothing otherwise.
The gradient touches one document token per (query token, document): two sparse sums instead of two dense products.
docs/OBJECTIVE.md derives the cost.

Legend: Q queries of T tokens, R query rows (unmasked query tokens), B rows of a block, C documents of S slots, M
document tokens laid out in G groups, H dimensions, K values of k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xtrrep.train.token_groups import NOWHERE, Layout, lay_out

COARSE = 8  # groups under one maximum of the next level
ROWS = 512  # of one block on a CPU at most: a piece's similarities are then 5 MB, and stay in a shared cache
PIECE = 2400  # tokens of one product
ONEDNN = 1 << 20  # similarities from which its set-up is worth it
BUFFER_BYTES = {"cpu": 128 << 20}  # of the similarities of one block of rows
BUFFER_BYTES_GPU = 2 << 30
LOOKUP = 1 << 22  # entries of one look-up into the buffer


@dataclass(frozen=True)
class Maxima:
    """What a walk keeps, for the D documents as laid out."""

    best: Tensor  # (D, R) maximum over each document's tokens
    place: Tensor  # (D, R) int32 flat index of its token, the lowest of equals; NOWHERE where no k retrieves it
    thresholds: Tensor  # (K, R) the k-th largest score of the row; -inf where k covers the pool
    lowest: Tensor | None  # (D, R) minimum over the document's tokens, where `best` is retrieved and below 0


@dataclass(frozen=True)
class Block:
    """Similarities of some rows with all tokens."""

    layout: Layout
    scores: Tensor  # (M, B)
    groups: Tensor  # (G', B) maxima of the groups, padded to a multiple of COARSE with -inf


def walk(rows: Tensor, layout: Layout, ks: Sequence[int], *, negatives: bool = False) -> Maxima:
    """Walk (R, H) rows over the documents, for each k of `ks`. `negatives` asks for `Maxima.lowest`."""
    shape = (len(layout.order), len(rows))
    best = rows.new_empty(shape)
    place = torch.empty(shape, device=rows.device, dtype=torch.int32)
    thresholds = rows.new_full((len(ks), len(rows)), -torch.inf)
    lowest = rows.new_full(shape, -torch.inf) if negatives else None
    limited = [n for n, k in enumerate(ks) if k < layout.pool]
    largest = max((ks[n] for n in limited), default=0)
    for start, block in _blocks(rows, layout):
        here = slice(start, start + block.scores.shape[1])
        found = _document_maxima(block)
        best[:, here] = found
        threshold = found.new_full((found.shape[1],), -torch.inf)
        if largest:
            values, tokens, reached = _top(block, [ks[n] for n in limited])
            thresholds[limited, here] = reached
        if len(limited) == len(ks):
            threshold = thresholds[:, here].amin(0)
            place[:, here] = _places_of_top(block, found, values, tokens, threshold)
        else:
            _places_of_all(block, place[:, here])
        if lowest is not None:
            pairs = ((found >= threshold) & (found < 0)).nonzero()
            for part, looked_up in _look_up(block, pairs, torch.inf):
                lowest[part[:, 0], start + part[:, 1]] = looked_up.amin(1)
    return Maxima(best, place, thresholds, lowest)


def _blocks(rows: Tensor, layout: Layout) -> Iterator[tuple[int, Block]]:
    """Blocks of similarities, all in the same buffer."""
    tokens, each = layout.tokens, layout.size
    size, groups = len(tokens), len(tokens) // each
    if not size or not len(rows):
        return
    padded = -(-groups // COARSE) * COARSE
    budget = BUFFER_BYTES.get(rows.device.type, BUFFER_BYTES_GPU)
    most = max(budget // (size * rows.element_size()) // 16 * 16, 16)
    if rows.device.type == "cpu":
        most = min(most, ROWS)
    count = -(-len(rows) // most)
    step = -(-len(rows) // count // 16) * 16 if count > 1 else len(rows)
    grid = rows.new_empty(size * step)
    tops = rows.new_empty(padded * step)
    pieces = [(begin, min(begin + PIECE // each * each, size)) for begin in range(0, size, PIECE // each * each)]
    ends = torch.tensor([begin for begin, _ in pieces] + [size], device=rows.device)
    padding = torch.searchsorted(layout.empty, ends).tolist()
    product = _product(tokens, pieces, len(rows))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        b = len(part)
        block = Block(layout, grid[: size * b].view(size, b), tops[: padded * b].view(padded, b))
        block.groups[groups:] = -torch.inf
        for n, (begin, end) in enumerate(pieces):
            piece = product(n, part, block.scores[begin:end])
            if padding[n + 1] > padding[n]:
                piece.index_fill_(0, layout.empty[padding[n] : padding[n + 1]] - begin, -torch.inf)
            torch.amax(piece.view(-1, each, b), 1, out=block.groups[begin // each : end // each])
            if piece.data_ptr() != block.scores[begin:end].data_ptr():
                block.scores[begin:end] = piece
        yield start, block


def _product(tokens: Tensor, pieces: Sequence[tuple[int, int]], rows: int) -> Callable[[int, Tensor, Tensor], Tensor]:
    """A function of (number of the piece, (B, H) rows, where to) that gives (tokens of the piece, B) similarities.

    Tokens by rows and not rows by tokens: the tall product writes through to memory at almost no cost.
    """
    fits = tokens.device.type == "cpu" and tokens.dtype == torch.float32 and len(tokens) * rows >= ONEDNN
    if not (fits and onednn_is_faster()):

        def by_torch(n: int, part: Tensor, out: Tensor) -> Tensor:
            begin, end = pieces[n]
            return torch.mm(tokens[begin:end], part.t(), out=out)

        return by_torch
    packed = [tokens[begin:end].to_mkldnn() for begin, end in pieces]

    def by_onednn(n: int, part: Tensor, out: Tensor) -> Tensor:
        return torch.nn.functional.linear(packed[n], part.to_mkldnn()).to_dense()

    return by_onednn


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN's product is worth two copies of its result, which torch.mm writes where it belongs.

    It is on AMD processors with AVX-512, where MKL, behind torch.mm, uses half the vector width: oneDNN takes half of
    its time. With AVX2 alone the walk takes 8 to 12 % longer by oneDNN.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False


def _document_maxima(block: Block) -> Tensor:
    """(D, B) maxima of the documents as laid out."""
    b = block.groups.shape[1]
    found = block.groups.new_empty(len(block.layout.order), b)
    for run in block.layout.runs:
        groups = block.groups[run.group : run.group + run.documents * run.groups]
        torch.amax(groups.view(run.documents, run.groups, b), 1, out=found[run.document : run.document + run.documents])
    return found


def _take(values: Tensor, items: Tensor) -> Tensor:
    """values (N, B) at items (B, n): (B, n)."""
    b = values.shape[1]
    return torch.take(values, items * b + torch.arange(b, device=items.device)[:, None])


def _take_members(values: Tensor, groups: Tensor, size: int) -> Tensor:
    """values (N, B) of all members of groups (B, n) of `size` items: (B, n * size)."""
    b = values.shape[1]
    first = groups * (size * b) + torch.arange(b, device=groups.device)[:, None]
    return torch.take(values, (first[:, :, None] + torch.arange(size, device=groups.device) * b).view(b, -1))


def _largest(values: Tensor, ranks: Sequence[int]) -> Tensor:
    """Columns (B, max(ranks)) of the largest values (B, n), the r-th largest at column -r for each r of `ranks`."""
    n, k = values.shape[1], max(ranks)
    if values.device.type != "cpu":
        return values.topk(k, 1).indices.flip(1)
    # numpy selects by vector instructions, in half of the time that topk takes with two threads.
    columns = np.argpartition(values.numpy(), sorted({n - rank for rank in ranks}), axis=1)
    return torch.from_numpy(columns[:, n - k :])


def _top(block: Block, ks: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The largest max(ks) + 1 scores (B, n) of each row, their tokens, and the k-th largest for each k: (K, B).

    The first column holds the smallest, the spare one. A group that holds one of these scores has a maximum among as
    many largest maxima, so the search goes down from groups of groups to groups to tokens, keeping as many at each
    level.
    """
    groups, size = block.groups, block.layout.size
    real = len(block.layout.document_of_group)
    k = max(ks) + 1
    if len(groups) // COARSE > k:
        coarse = groups.view(-1, COARSE, groups.shape[1]).amax(1).t().contiguous()
        chosen = _largest(coarse, [k])
        inner = _largest(_take_members(groups, chosen, COARSE), [k])
        chosen = chosen.gather(1, inner // COARSE) * COARSE + inner % COARSE
        chosen.clamp_(max=real - 1)  # only among scores of -inf can the padding's be chosen
    elif real > k:
        chosen = _largest(groups[:real].t().contiguous(), [k])
    else:
        chosen = torch.arange(real, device=groups.device).expand(groups.shape[1], -1)
    scores = _take_members(block.scores, chosen, size)
    inner = _largest(scores, [k, *ks])
    tokens = chosen.gather(1, inner // size) * size + inner % size
    values = scores.gather(1, inner)
    return values, tokens, torch.stack([values[:, k - rank] for rank in ks])


def _places_of_top(block: Block, found: Tensor, values: Tensor, tokens: Tensor, threshold: Tensor) -> Tensor:
    """(D, B) flat indices of the tokens of the retrieved maxima, from what `_top` found."""
    layout = block.layout
    document = layout.document_of_group[tokens // layout.size]
    place = torch.where(values == _take(found, document), layout.place[tokens], NOWHERE)
    places = torch.full(found.t().shape, NOWHERE, dtype=torch.int32, device=found.device)
    places.scatter_reduce_(1, document, place, "amin")
    places = places.t()
    # Where the spare score equals the threshold, there may be more of its kind outside the list: look for them.
    tied = values[:, 0] == threshold
    if bool(tied.any()):
        for part, scores in _look_up(block, (tied & (found == threshold)).nonzero(), -torch.inf):
            token = _first_token(layout)[part[:, 0]] + scores.max(1).indices
            places[part[:, 0], part[:, 1]] = layout.place[token]
    return places


def _places_of_all(block: Block, places: Tensor) -> None:
    """Fill (D, B) with the flat indices of the tokens of all maxima, the lowest of equals."""
    layout, b = block.layout, block.scores.shape[1]
    device = block.scores.device
    column = torch.arange(b, device=device)
    inside = torch.arange(layout.size, device=device)[:, None, None]
    for run in layout.runs:
        groups = block.groups[run.group : run.group + run.documents * run.groups]
        winner = groups.view(run.documents, run.groups, b).max(1).indices
        first = run.group + run.groups * torch.arange(run.documents, device=device)[:, None]
        token = (first + winner) * layout.size
        slot = torch.take(block.scores, (token + inside) * b + column).max(0).indices
        places[run.document : run.document + run.documents] = layout.place[token + slot]


def _first_token(layout: Layout) -> Tensor:
    """(D,) where each document begins."""
    parts = [run.group + run.groups * torch.arange(run.documents) for run in layout.runs]
    return torch.cat(parts).to(layout.tokens.device) * layout.size


def _look_up(block: Block, pairs: Tensor, filler: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts (n, 2) of (document, row) pairs with all their scores (n, longest document), padded with `filler`."""
    layout = block.layout
    sizes = torch.cat([torch.full((run.documents,), run.groups * layout.size) for run in layout.runs]).to(pairs.device)
    starts = _first_token(layout)
    longest = layout.runs[-1].groups * layout.size
    slots = torch.arange(longest, device=pairs.device)
    for part in torch.split(pairs, max(LOOKUP // longest, 1)):
        document = part[:, :1]
        inside = slots < sizes[document]
        token = torch.where(inside, starts[document] + slots, 0)
        values = torch.take(block.scores, token * block.scores.shape[1] + part[:, 1:])
        yield part, values.masked_fill_(~inside | (layout.place[token] == NOWHERE), filler)


class _Scores(torch.autograd.Function):
    """(K, Q, C) scores; see `scores`."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        queries_mask: Tensor,
        documents_mask: Tensor,
        ks: tuple[int, ...],
        z: str,
        missing: str,
    ) -> Tensor:
        q, c = len(queries), len(documents)
        dtype = _dtype(queries, documents)
        row_of = queries_mask.reshape(-1).nonzero()[:, 0]
        rows = _rows(queries, row_of, dtype)
        layout = lay_out(documents.to(dtype), documents_mask)
        negatives = z == "positive_clamped"
        with torch.autocast(queries.device.type, enabled=False):
            maxima = walk(rows, layout, ks or (layout.pool,), negatives=negatives)
        del rows
        best = maxima.best
        outputs = best.new_zeros(len(maxima.thresholds), q, c)
        if missing == "drop":
            outputs.fill_(torch.finfo(torch.float32).min)
        kept_of, divisors = [], []
        for output, threshold in zip(outputs, maxima.thresholds, strict=True):
            kept = ~(best < threshold)  # and not >=, so that a NaN is kept and seen in the loss
            retrieved = _by_query(kept, row_of, queries, dtype)
            if maxima.lowest is not None:
                # A token that was not retrieved stands as 0 there, so a negative maximum wins only where none does.
                kept &= ~(best < 0) | (maxima.lowest >= threshold)
            values = torch.where(kept, best, 0.0)
            if z == "retrieved":
                divisor = retrieved.clamp(min=1)
            elif z == "positive_clamped":
                divisor = _by_query(values > 0, row_of, queries, dtype).clamp(min=1e-3)
            else:
                divisor = torch.ones_like(retrieved)
            total = _by_query(values, row_of, queries, dtype) / divisor
            if missing == "drop":
                total.masked_fill_(retrieved == 0, torch.finfo(torch.float32).min)
            output[:, layout.order] = total.t()
            kept_of.append(kept)
            divisors.append(divisor)
        kept, divisor = torch.stack(kept_of), torch.stack(divisors)
        ctx.save_for_backward(queries, documents, row_of, layout.order, maxima.place, kept, divisor)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, documents, row_of, order, place, kept, divisors = ctx.saved_tensors
        h = queries.shape[-1]
        dtype = _dtype(queries, documents)
        weights = torch.zeros(place.shape, dtype=dtype, device=place.device)
        for one, divisor, part in zip(gradient.to(dtype), divisors, kept, strict=True):
            weights += torch.where(part, _to_rows(one[:, order].t() / divisor, row_of, queries), 0.0)
        row, document = weights.t().nonzero(as_tuple=True)  # in the order of the rows
        weight = weights[document, row]
        token = place[document, row].long()
        token.clamp_(max=max(documents.shape[0] * documents.shape[1] - 1, 0))  # NOWHERE is kept where scores are NaN
        del weights
        to_queries = to_documents = None
        if ctx.needs_input_grad[0]:
            sums = _weighted_sums(documents.reshape(-1, h).to(dtype), token, weight, row, len(row_of))
            to_queries = torch.zeros_like(queries).reshape(-1, h)
            to_queries = to_queries.index_copy_(0, row_of, sums.to(queries.dtype)).view_as(queries)
        if ctx.needs_input_grad[1]:
            by_token = torch.argsort(token)
            rows = _rows(queries, row_of, dtype)
            slots = documents.shape[0] * documents.shape[1]
            sums = _weighted_sums(rows, row[by_token], weight[by_token], token[by_token], slots)
            to_documents = sums.to(documents.dtype).view(documents.shape)
        return to_queries, to_documents, None, None, None, None, None


def _rows(queries: Tensor, row_of: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, H) the unmasked query tokens."""
    flat = queries.reshape(-1, queries.shape[-1]).to(dtype)
    return flat if len(row_of) == len(flat) else flat.index_select(0, row_of)


def _dtype(queries: Tensor, documents: Tensor) -> torch.dtype:
    """What is computed in: float32 at least."""
    return torch.promote_types(torch.promote_types(queries.dtype, documents.dtype), torch.float32)


def _by_query(values: Tensor, row_of: Tensor, queries: Tensor, dtype: torch.dtype) -> Tensor:
    """(D, R) summed over the rows of each query: (D, Q)."""
    q, t, _ = queries.shape
    if len(row_of) == q * t:
        return values.view(len(values), q, t).sum(-1, dtype=dtype)
    sums = torch.zeros(len(values), q, dtype=dtype, device=values.device)
    return sums.index_add_(1, row_of // t, values.to(dtype))


def _to_rows(values: Tensor, row_of: Tensor, queries: Tensor) -> Tensor:
    """(D, Q) repeated for the rows of each query: (D, R)."""
    q, t, _ = queries.shape
    if len(row_of) == q * t:
        return values[:, :, None].expand(-1, -1, t).reshape(len(values), q * t)
    return values[:, row_of // t]


def _weighted_sums(table: Tensor, index: Tensor, weight: Tensor, bag: Tensor, bags: int) -> Tensor:
    """(bags, H): for each bag the sum of weight * table[index] over its entries; `bag` ascends."""
    counts = torch.bincount(bag, minlength=bags)
    offsets = torch.cumsum(counts, 0) - counts
    sums: Tensor = torch.nn.functional.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weight)
    return sums


def scores(
    queries: Tensor,
    documents: Tensor,
    queries_mask: Tensor | None,
    documents_mask: Tensor | None,
    ks: Sequence[int],
    z: str,
    missing: str,
) -> Tensor:
    """Scores (K, Q, C) of queries (Q, T, H) against documents (C, S, H), differentiable in both, once.

    For each k of `ks` (none: everything is retrieved, K = 1) the sum over query tokens of each document's retrieved
    maximum, divided by Z: `retrieved` and `positive_clamped` as in `xtrrep.train.xtr`, any other name for a plain sum.
    Computed in float32, or in float64 for float64 inputs. Raises ValueError for shapes that do not fit.
    """
    if queries.ndim != 3 or documents.ndim != 3 or queries.shape[-1] != documents.shape[-1]:
        raise ValueError(f"queries {tuple(queries.shape)} and documents {tuple(documents.shape)} do not fit together")
    masks = []
    for name, vectors, mask in (("queries", queries, queries_mask), ("documents", documents, documents_mask)):
        if mask is None:
            mask = (vectors.detach() != 0).any(-1)
        if mask.shape != vectors.shape[:2]:
            raise ValueError(f"{name}_mask {tuple(mask.shape)} does not fit {name} {tuple(vectors.shape)}")
        masks.append(mask.to(device=vectors.device, dtype=torch.bool))
    out: Tensor = _Scores.apply(queries, documents, *masks, tuple(ks), z, missing)  # type: ignore[no-untyped-call]
    return out
