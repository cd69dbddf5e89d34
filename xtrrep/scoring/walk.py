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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GROUP = 8  # tokens of one document under one maximum, and groups under one maximum of the next level
PIECE = 4096  # tokens of one product: times 256 rows 4 MB, which stays in a shared cache
BUFFER_BYTES = {"cpu": 144 << 20}  # of the similarities of one block of rows
BUFFER_BYTES_GPU = 2 << 30
LOOKUP = 1 << 22  # entries of one look-up into the buffer
NOWHERE = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class Run:
    """Neighbouring documents with the same number of groups: their maxima are one reduction."""

    document: int  # the first, as laid out
    documents: int
    group: int  # its first group
    groups: int  # of each document


@dataclass(frozen=True)
class Layout:
    """The batch's document tokens without padding; every document starts a group of its own, small documents first."""

    tokens: Tensor  # (M, H), zeros where a document's last group has no token left
    place: Tensor  # (M,) int32 index into the flat (C x S) input, NOWHERE at those zeros
    empty: Tensor  # (E,) the rows of `tokens` that are such zeros, ascending
    order: Tensor  # (D,) numbers of the documents that have a token, as laid out here
    document_of_group: Tensor  # (G,) index into `order`
    runs: tuple[Run, ...]
    pool: int  # real tokens
    documents: int  # C


def lay_out(tokens: Tensor, mask: Tensor) -> Layout:
    """Lay out (C, S, H) tokens under a boolean (C, S) mask."""
    device = tokens.device
    groups = (mask.sum(1) + GROUP - 1) // GROUP
    order = torch.argsort(groups, stable=True)
    order = order[groups[order] > 0]
    sizes = groups[order]
    first = torch.cumsum(sizes, 0) - sizes
    document_of_group = torch.repeat_interleave(torch.arange(len(order), device=device), sizes)
    start = torch.zeros(len(groups), dtype=torch.int64, device=device)
    start[order] = first * GROUP
    real = mask.reshape(-1).nonzero()[:, 0]
    slot = (mask.cumsum(1) - 1).reshape(-1)[real]
    place = torch.full((len(document_of_group) * GROUP,), NOWHERE, dtype=torch.int32, device=device)
    place[start[real // max(mask.shape[1], 1)] + slot] = real.to(torch.int32)
    empty = (place == NOWHERE).nonzero()[:, 0]
    flat = tokens.reshape(-1, tokens.shape[-1])
    if len(place) != len(flat) or len(empty) or bool((place[1:] < place[:-1]).any()):
        flat = flat.index_select(0, place.clamp(max=max(len(flat) - 1, 0)))
        flat.index_fill_(0, empty, 0.0)
    runs = []
    document = group = 0
    values, counts = torch.unique_consecutive(sizes, return_counts=True)
    for each, count in zip(values.tolist(), counts.tolist(), strict=True):
        runs.append(Run(document, count, group, each))
        document, group = document + count, group + count * each
    return Layout(flat, place, empty, order, document_of_group, tuple(runs), len(real), len(mask))


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
    groups: Tensor  # (G', B) maxima of 8 tokens, padded to a multiple of 8 with -inf


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
            values, tokens = _top(block, largest + 1)
            for n in limited:
                thresholds[n, here] = values[:, ks[n] - 1]
        if len(limited) == len(ks):
            threshold = values[:, largest - 1]
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
    tokens = layout.tokens
    size, groups = len(tokens), len(tokens) // GROUP
    if not size or not len(rows):
        return
    padded = -(-groups // GROUP) * GROUP
    budget = BUFFER_BYTES.get(rows.device.type, BUFFER_BYTES_GPU)
    most = max(budget // (size * rows.element_size()) // 16 * 16, 16)
    count = -(-len(rows) // most)
    step = -(-len(rows) // count // 16) * 16 if count > 1 else len(rows)
    grid = rows.new_empty(size * step)
    tops = rows.new_empty(padded * step)
    pieces = [(begin, min(begin + PIECE, size)) for begin in range(0, size, PIECE)]
    ends = torch.tensor([begin for begin, _ in pieces] + [size], device=rows.device)
    padding = torch.searchsorted(layout.empty, ends).tolist()
    for start in range(0, len(rows), step):
        part = rows[start : start + step].t()
        b = part.shape[1]
        block = Block(layout, grid[: size * b].view(size, b), tops[: padded * b].view(padded, b))
        block.groups[groups:] = -torch.inf
        for n, (begin, end) in enumerate(pieces):
            piece = block.scores[begin:end]
            # Tokens by rows and not rows by tokens: the tall product writes through to memory at almost no cost.
            torch.mm(tokens[begin:end], part, out=piece)
            if padding[n + 1] > padding[n]:
                piece.index_fill_(0, layout.empty[padding[n] : padding[n + 1]] - begin, -torch.inf)
            torch.amax(piece.view(-1, GROUP, b), 1, out=block.groups[begin // GROUP : end // GROUP])
        yield start, block


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


def _members(items: Tensor) -> Tensor:
    """(B, n) groups to the (B, 8 n) items in them."""
    inside = torch.arange(GROUP, device=items.device)
    return (items[:, :, None] * GROUP + inside).view(len(items), -1)


def _top(block: Block, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row, descending, and their tokens: (B, k) each.

    A group that holds one of them has a maximum among the k largest maxima, so the search goes down from groups of 64
    tokens to groups of 8 to tokens, keeping k at each level.
    """
    groups = block.groups
    if len(groups) // GROUP > k:
        coarse = groups.view(-1, GROUP, groups.shape[1]).amax(1).t().contiguous()
        candidates = _members(coarse.topk(k, 1, sorted=False).indices)
        chosen = candidates.gather(1, _take(groups, candidates).topk(k, 1, sorted=False).indices)
    elif len(block.layout.document_of_group) > k:
        chosen = groups[: len(block.layout.document_of_group)].t().contiguous().topk(k, 1, sorted=False).indices
    else:
        values, tokens = block.scores.t().contiguous().topk(k, 1)
        return values, tokens
    candidates = _members(chosen)
    values, which = _take(block.scores, candidates).topk(k, 1)
    return values, candidates.gather(1, which)


def _places_of_top(block: Block, found: Tensor, values: Tensor, tokens: Tensor, threshold: Tensor) -> Tensor:
    """(D, B) flat indices of the tokens of the retrieved maxima, from the largest k + 1 scores of each row."""
    layout = block.layout
    document = layout.document_of_group[tokens // GROUP]
    place = torch.where(values == _take(found, document), layout.place[tokens], NOWHERE)
    places = torch.full(found.t().shape, NOWHERE, dtype=torch.int32, device=found.device)
    places.scatter_reduce_(1, document, place, "amin")
    places = places.t()
    # Where the spare score equals the threshold, there may be more of its kind outside the list: look for them.
    tied = values[:, -1] == threshold
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
    inside = torch.arange(GROUP, device=device)[:, None, None]
    for run in layout.runs:
        groups = block.groups[run.group : run.group + run.documents * run.groups]
        winner = groups.view(run.documents, run.groups, b).max(1).indices
        first = run.group + run.groups * torch.arange(run.documents, device=device)[:, None]
        token = (first + winner) * GROUP
        slot = torch.take(block.scores, (token + inside) * b + column).max(0).indices
        places[run.document : run.document + run.documents] = layout.place[token + slot]


def _first_token(layout: Layout) -> Tensor:
    """(D,) where each document begins."""
    parts = [run.group + run.groups * torch.arange(run.documents) for run in layout.runs]
    return torch.cat(parts).to(layout.tokens.device) * GROUP


def _look_up(block: Block, pairs: Tensor, filler: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts (n, 2) of (document, row) pairs with all their scores (n, longest document), padded with `filler`."""
    layout = block.layout
    sizes = torch.cat([torch.full((run.documents,), run.groups * GROUP) for run in layout.runs]).to(pairs.device)
    starts = _first_token(layout)
    longest = layout.runs[-1].groups * GROUP
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
        dtype = torch.promote_types(queries.dtype, torch.float32)
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
            if maxima.lowest is not None:
                # A token that was not retrieved stands as 0 there, so a negative maximum wins only where none does.
                kept &= (best >= 0) | (maxima.lowest >= threshold)
            values = torch.where(kept, best, 0.0)
            retrieved = _by_query(kept, row_of, queries)
            if z == "retrieved":
                divisor = retrieved.clamp(min=1)
            elif z == "positive_clamped":
                divisor = _by_query(values > 0, row_of, queries).clamp(min=1e-3)
            else:
                divisor = torch.ones_like(retrieved)
            total = _by_query(values, row_of, queries) / divisor
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
        dtype = torch.promote_types(queries.dtype, torch.float32)
        query_of = row_of // max(queries.shape[1], 1)
        weights = torch.zeros(place.shape, dtype=dtype, device=place.device)
        for one, divisor, part in zip(gradient.to(dtype), divisors, kept, strict=True):
            weights += torch.where(part, (one[:, order].t() / divisor)[:, query_of], 0.0)
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


def _by_query(values: Tensor, row_of: Tensor, queries: Tensor) -> Tensor:
    """(D, R) summed over the rows of each query: (D, Q)."""
    q, t, _ = queries.shape
    dtype = torch.promote_types(queries.dtype, torch.float32)
    if len(row_of) == q * t:
        return values.view(len(values), q, t).sum(-1, dtype=dtype)
    sums = torch.zeros(len(values), q, dtype=dtype, device=values.device)
    return sums.index_add_(1, row_of // t, values.to(dtype))


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
    maximum, divided by Z: `retrieved` and `positive_clamped` as in `xtrrep.scoring.xtr`, `one` for MaxSim's plain sum.
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
