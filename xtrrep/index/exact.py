"""Exact token search: a blocked matrix product over the memory-mapped store. The oracle of every other engine.

With numpy on a processor; on a GPU `exact_device.py` gives the same answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.encode import Store
from xtrrep.index import Engine, ExhaustiveSearcher, Hits, Maxima, Place, check_queries, engines, exact_device
from xtrrep.scoring.maxsim import document_maxima

# Similarities held at a time, in float32 values (128 MiB): bounds memory whatever the collection's size.
BLOCK_VALUES = 1 << 25


@dataclass(frozen=True)
class Params:
    pass


@dataclass(frozen=True)
class Searcher:
    store: Store

    def search(self, queries: NDArray[np.float32], k_prime: int) -> Hits:
        """The `k_prime` most similar tokens (dot product) for each of (T, H) queries, ties by token position.

        Where the store holds fewer than `k_prime` tokens, all of them are returned.
        """
        check_queries(queries, self.store, k_prime)
        count = len(queries)
        best_tokens = np.empty((count, 0), np.int64)
        best_scores = np.empty((count, 0), np.float32)
        for start, block in self.store.blocks(max(1, BLOCK_VALUES // max(1, count))):
            tokens, scores = _largest(queries @ block.T, k_prime)
            best_tokens = np.concatenate([best_tokens, tokens + start], axis=1)
            best_scores = np.concatenate([best_scores, scores], axis=1)
            if best_scores.shape[1] > k_prime:
                kept, best_scores = _largest(best_scores, k_prime)
                best_tokens = np.take_along_axis(best_tokens, kept, axis=1)
        # Positions ascend within every part so far, so a stable sort leaves ties in token order.
        order = np.argsort(-best_scores, axis=1, kind="stable")
        return Hits(np.take_along_axis(best_tokens, order, axis=1), np.take_along_axis(best_scores, order, axis=1))

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


def build(source: Store, params: Params, out: Path, place: Place) -> dict[str, Any]:
    """Nothing to build: the store is the index."""
    return {"units": {"tokens": source.tokens}}


def load(folder: Path, source: Store, params: Params, place: Place) -> ExhaustiveSearcher:
    return exact_device.Searcher(source, place.device) if place.device.startswith("cuda") else Searcher(source)


engines.register("exact", "every token compared, in blocks: the oracle")(Engine("token", Params, build, load))
