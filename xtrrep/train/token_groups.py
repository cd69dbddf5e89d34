"""The document tokens of a batch in groups of one size, for the maxima that streaming_scores.py takes.

Legend: C documents of S slots, M document tokens laid out in G groups, H dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 8  # tokens of one document under one maximum, where that is free to choose
GROUPS = (8, 10, 9, 6, 12, 7, 5)  # sizes tried where documents without padding can stay where they are
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
    size: int  # tokens of a group
    place: Tensor  # (M,) int32 index into the flat (C x S) input, NOWHERE at those zeros
    empty: Tensor  # (E,) the rows of `tokens` that are such zeros, ascending
    order: Tensor  # (D,) numbers of the documents that have a token, as laid out here
    document_of_group: Tensor  # (G,) index into `order`
    runs: tuple[Run, ...]
    pool: int  # real tokens


def lay_out(tokens: Tensor, mask: Tensor) -> Layout:
    """Lay out (C, S, H) tokens under a boolean (C, S) mask."""
    count, slots = mask.shape
    device = tokens.device
    flat = tokens.reshape(-1, tokens.shape[-1])
    whole = bool(mask.all()) and slots > 0
    size = next((size for size in GROUPS if whole and slots % size == 0), GROUP)
    groups = (mask.sum(1) + size - 1) // size
    order = torch.argsort(groups, stable=True)
    order = order[groups[order] > 0]
    sizes = groups[order]
    document_of_group = torch.repeat_interleave(torch.arange(len(order), device=device), sizes)
    if whole and slots % size == 0:  # as they lie: nothing to copy
        place = torch.arange(len(flat), dtype=torch.int32, device=device)
        empty = place.new_empty(0, dtype=torch.int64)
        return Layout(flat, size, place, empty, order, document_of_group, _runs(sizes), len(flat))
    start = torch.zeros(count, dtype=torch.int64, device=device)
    start[order] = (torch.cumsum(sizes, 0) - sizes) * size
    real = mask.reshape(-1).nonzero()[:, 0]
    slot = (mask.cumsum(1) - 1).reshape(-1)[real]
    place = torch.full((len(document_of_group) * size,), NOWHERE, dtype=torch.int32, device=device)
    place[start[real // max(slots, 1)] + slot] = real.to(torch.int32)
    empty = (place == NOWHERE).nonzero()[:, 0]
    packed = flat.index_select(0, place.clamp(max=max(len(flat) - 1, 0)))
    packed.index_fill_(0, empty, 0.0)
    return Layout(packed, size, place, empty, order, document_of_group, _runs(sizes), len(real))


def _runs(sizes: Tensor) -> tuple[Run, ...]:
    """Runs of equal numbers of groups, from those of the documents as laid out."""
    runs = []
    document = group = 0
    values, counts = torch.unique_consecutive(sizes, return_counts=True)
    for each, count in zip(values.tolist(), counts.tolist(), strict=True):
        runs.append(Run(document, count, group, each))
        document, group = document + count, group + count * each
    return tuple(runs)
