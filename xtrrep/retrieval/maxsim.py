"""Exact MaxSim of given candidates, their embeddings gathered from the store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xtrrep.retrieval.evidence import Ranking, top
from xtrrep.store.encode import Store
from xtrrep.train.maxsim import document_maxima

# Similarities held at a time while gathering embeddings, in float32 values (128 MiB).
BLOCK_VALUES = 1 << 25


def maxsim_of(
    documents: Store, tokens: Sequence[NDArray[np.float32]], wanted: Sequence[NDArray[np.int64]]
) -> list[Ranking]:
    """Each query's wanted documents (ascending) with their exact MaxSim."""
    union = np.unique(np.concatenate(wanted))
    # Queries that share most candidates share one gather and one product; those that do not are cheaper alone.
    if len(union) <= 4 * max(1, sum(map(len, wanted)) // len(wanted)):
        maxima = _summed_maxima(documents, tokens, union)
        return [(own, scores[np.searchsorted(union, own)]) for own, scores in zip(wanted, maxima, strict=True)]
    return [(own, _summed_maxima(documents, [t], own)[0]) for own, t in zip(wanted, tokens, strict=True)]


def _summed_maxima(
    documents: Store, tokens: Sequence[NDArray[np.float32]], candidates: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    """MaxSim of each query with each candidate, gathered in blocks of bounded size. A (C,) array a query."""
    out = np.zeros((len(tokens), len(candidates)), np.float32)
    asked = [i for i, t in enumerate(tokens) if len(t)]
    if not asked:
        return list(out)
    rows = np.concatenate([tokens[i] for i in asked])
    starts = np.cumsum([0, *(len(tokens[i]) for i in asked)])[:-1]
    budget = max(1, BLOCK_VALUES // len(rows))
    ends = np.cumsum(documents.lengths[candidates])
    begin = 0
    while begin < len(candidates):
        before = ends[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, before + budget, side="right")))
        vectors, offsets = documents.gather(candidates[begin:stop])
        maxima = document_maxima(rows @ vectors.T, offsets, documents.lengths[candidates[begin:stop]])
        out[asked, begin:stop] = np.add.reduceat(maxima, starts, axis=0, dtype=np.float64)
        begin = stop
    return list(out)


def rerank(documents: Store, tokens: NDArray[np.float32], ranking: Ranking, depth: int) -> Ranking:
    """The first `depth` of a ranking ordered anew by exact MaxSim; what stood below them stays below, in its order."""
    numbers, scores = ranking
    head = np.sort(numbers[:depth])
    if not len(head):
        return ranking
    best = top(head, _summed_maxima(documents, [tokens], head)[0], depth)
    tail = scores[depth:]
    if len(tail):  # another scale: shifted to end where the re-ranked ones do
        tail = tail - tail[0] + best[1][-1]
    return np.concatenate([best[0], numbers[depth:]]), np.concatenate([best[1], tail]).astype(np.float32)
