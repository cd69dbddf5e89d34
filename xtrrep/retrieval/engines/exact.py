"""Exact token search: a blocked matrix product over the memory-mapped store. The oracle of every other engine.

With numpy on a processor; on a GPU `exact_device.py` gives the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.retrieval.engines import (
    BuildCost,
    ExhaustiveSearcher,
    Hits,
    Maxima,
    Place,
    TokenEngine,
    check_queries,
    engines,
    exact_device,
)
from xtrrep.store.encode import Store
from xtrrep.train.maxsim import document_maxima

# Similarities held at a time, in float32 values (128 MiB): bounds memory whatever the collection's size.
BLOCK_VALUES = 1 << 25
# One entry in so many is too many to be picked out one by one.
MANY = 8

Part = tuple[NDArray[np.int64], NDArray[np.float32]]  # (R, C) token positions and similarities


@dataclass(frozen=True)
class Searcher:
    store: Store

    def search(self, queries: NDArray[np.float32], k_prime: int) -> Hits:
        """The `k_prime` most similar tokens (dot product) for each of (T, H) queries, ties by token position.

        Where the store holds fewer than `k_prime` tokens, all of them are returned.
        """
        check_queries(queries, self.store, k_prime)
        count = len(queries)
        parts: list[Part] = [(np.empty((count, 0), np.int64), np.empty((count, 0), np.float32))]
        floor = np.full((count, 1), -np.inf, np.float32)
        for start, block in self.store.blocks(max(1, BLOCK_VALUES // max(1, count))):
            columns, values = _above(queries @ block.T, floor, k_prime)
            parts.append((columns + start, values))
            if sum(values.shape[1] for _, values in parts) >= 2 * k_prime:
                parts = [_merged(parts, k_prime)]
                floor = parts[0][1].min(axis=1, keepdims=True)  # what ties with it comes later, and so is not kept
        tokens, scores = _merged(parts, k_prime)
        # Positions ascend within every part so far, so a stable sort leaves ties in token order.
        order = np.argsort(-scores, axis=1, kind="stable")
        return Hits(np.take_along_axis(tokens, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def maxima(self, queries: NDArray[np.float32], k_prime: int) -> Maxima:
        """Document maxima and the `k_prime` best similarities of (T, H) queries: cheaper than `search`."""
        check_queries(queries, self.store, k_prime)
        count = len(queries)
        best = np.empty((count, 0), np.float32)
        maxima = np.empty((count, len(self.store)), np.float32)
        for begin, stop in self.store.document_blocks(max(1, BLOCK_VALUES // max(1, count))):
            vectors, starts = self.store.gather(np.arange(begin, stop))
            similarities = queries @ vectors.T
            maxima[:, begin:stop] = document_maxima(similarities, starts, self.store.lengths[begin:stop])
            best = np.concatenate([best, _tail(similarities, k_prime)], axis=1)
        return Maxima(maxima, np.sort(_tail(best, k_prime), axis=1)[:, ::-1])


def _tail(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The k largest of each row, in no order. Overwrites `scores`."""
    width = scores.shape[1]
    if width <= k:
        return scores
    scores.partition(width - k, axis=1)
    return scores[:, width - k :]


def _merged(parts: Sequence[Part], k: int) -> Part:
    """The k largest of each row over all parts, positions ascending."""
    tokens, scores = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    columns, scores = _largest(scores, k)
    return np.take_along_axis(tokens, columns, axis=1), scores


def _above(scores: NDArray[np.float32], floor: NDArray[np.float32], k: int) -> Part:
    """Columns (ascending) and values of each row's entries above its (R, 1) floor, or of its k largest where they are
    many. Shorter rows end in minus infinity.

    Behind the first blocks hardly any entry is above the k-th best so far, and finding those few costs a tenth of a
    partition.
    """
    higher = scores > floor
    counts = np.count_nonzero(higher, axis=1)
    widest = int(counts.max(initial=0))
    if widest > min(k, scores.shape[1] // MANY):
        return _largest(scores, k)
    places = np.flatnonzero(higher)
    rows, found = np.divmod(places, scores.shape[1])
    order = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = np.zeros((len(scores), widest), np.int64)
    values = np.full((len(scores), widest), -np.inf, np.float32)
    columns[rows, order], values[rows, order] = found, scores.ravel()[places]
    return columns, values


def _largest(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns (ascending) and values of the k largest of each row, the first of those that tie for the last place."""
    width = scores.shape[1]
    if width <= k:
        return np.broadcast_to(np.arange(width), scores.shape), scores
    columns = np.argpartition(scores, width - k, axis=1)[:, width - k :]
    least = np.take_along_axis(scores, columns[:, :1], axis=1)
    for row in np.flatnonzero((scores >= least).sum(axis=1) > k):  # a partition keeps any of them
        above, tied = np.flatnonzero(scores[row] > least[row]), np.flatnonzero(scores[row] == least[row])
        columns[row] = np.append(above, tied[: k - len(above)])
    columns = np.sort(columns, axis=1)
    return columns, np.take_along_axis(scores, columns, axis=1)


@engines.register("exact", "every token compared, in blocks: the oracle")
@dataclass(frozen=True)
class Exact(TokenEngine):
    uses_gpu = True
    exhaustive = True
    threads_keep_scores = False

    def build(self, store: Store, out: Path, place: Place) -> dict[str, Any]:
        """Nothing to build: the store is the index."""
        return {"units": {"tokens": store.tokens}}

    def load(self, folder: Path, store: Store, place: Place) -> ExhaustiveSearcher:
        return exact_device.Searcher(store, place.device) if place.device.startswith("cuda") else Searcher(store)

    def build_cost(self, documents: int, each: float, dim: int) -> BuildCost:
        return BuildCost(0.0, 0.0)
