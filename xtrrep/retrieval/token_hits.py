"""What the best corpus tokens of query tokens are: their scores, pooled, and whose they are, rank by rank.

Both are of an exact search at DEPTH (docs/protocol.md 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, progress
from xtrrep.retrieval.engines import TokenSearcher
from xtrrep.store.changed import expansion_tokens
from xtrrep.store.encode import Store

DEPTH = 1000  # k' of the study's Figures 3 and 4
SAMPLE = 100_000  # scores behind percentiles and density, as in the study
SEED = 0
RANKS = 300  # how deep the rates go
DOCUMENTS = 256  # random ones that the share of expansion is taken over

# (T,) query numbers and (T, k') scores of T query tokens, NaN in empty slots
Batch = tuple[NDArray[np.int32], NDArray[np.float32]]


@dataclass(frozen=True)
class Pool:
    """Scores of many searches: how many, their mean and standard deviation, and at most SAMPLE of them, ascending.

    by_query: (Q, 3) the same three of each query's own scores; the last two are NaN for a query without any.
    """

    count: int
    mean: float
    deviation: float
    sample: NDArray[np.float32]
    by_query: NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """Shares by rank, (R,) each, over so many query tokens, of which `removed` expansion tokens are none.

    by_query: (Q, 2) gold and lexical share of each query's tokens over all ranks, NaN for a query without a token.
    """

    gold: NDArray[np.float64]
    lexical: NDArray[np.float64]
    tokens: int
    removed: int
    by_query: NDArray[np.float64]


def searched(searcher: TokenSearcher, queries: Store, k_prime: int, rows: int) -> Iterator[Batch]:
    """Scores of every query token's `k_prime` best tokens with NaN in empty slots, `rows` tokens at a time."""
    with progress(queries.tokens, "search", "token") as bar:
        for start, vectors in queries.blocks(rows):
            yield queries.document_of[start : start + len(vectors)], searcher.search(vectors, k_prime).scores
            bar.update(len(vectors))


def pooled(batches: Iterator[Batch], queries: int, size: int = SAMPLE, seed: int = SEED) -> Pool:
    """Moments of all scores and of each of `queries` queries' own, and a uniform sample of `size` of them, NaN left
    out; memory does not grow with the number of scores.

    Every score draws a random key and those of the smallest keys are kept, so the sample does not depend on how the
    scores were batched. Raises DataError where there is no score at all.
    """
    rng = np.random.default_rng(seed)
    sums = np.zeros((3, queries))  # how many scores, their sum, the sum of their squares
    keys, kept = np.empty(0), np.empty(0, np.float32)
    for owners, batch in batches:
        there = ~np.isnan(batch)
        scores, wide = batch[there], np.where(there, batch, 0).astype(np.float64)
        for sum_of, values in zip(sums, (there, wide, wide * wide), strict=True):
            np.add.at(sum_of, owners, values.sum(axis=1))
        keys, kept = np.concatenate([keys, rng.random(len(scores))]), np.concatenate([kept, scores])
        if len(keys) > size:
            smallest = np.argpartition(keys, size)[:size]
            keys, kept = keys[smallest], kept[smallest]
    if not sums[0].any():
        raise DataError("the search found no token at all", hint="--index exact")
    count, mean, deviation = _moments(sums.sum(axis=1, keepdims=True))[0]
    return Pool(int(count), float(mean), float(deviation), np.sort(kept), _moments(sums))


def _moments(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) counts, means and standard deviations from (3, N) counts, sums and sums of squares."""
    count, total, squares = sums
    with np.errstate(invalid="ignore"):  # 0 / 0 where there is none
        mean, square = total / count, squares / count
    return np.stack([count, mean, np.sqrt(np.maximum(0, square - mean * mean))], axis=1)


def rates(
    searcher: TokenSearcher,
    documents: Store,
    queries: Store,
    qrels: Mapping[str, Mapping[str, int]],
    *,
    k_prime: int = DEPTH,
    ranks: int = RANKS,
    rows: int = 512,
) -> Rates:
    """Gold and lexical rates of the first `ranks` of the `k_prime` best tokens, `rows` query tokens a search.

    R is `ranks`, or what there is where that is less. Raises DataError where nothing but expansion
    is left of the queries.
    """
    text = ~expansion_tokens(queries)
    if not text.any():
        raise DataError(
            f"{queries.folder} holds expansion tokens alone: no query has a word",
            hint="data=ID of a collection whose queries have words",
        )
    numbers = documents.numbers({name for grades in qrels.values() for name in grades})
    relevant = [
        [numbers[name] for name, grade in qrels.get(query, {}).items() if grade > 0 and name in numbers]
        for query in queries.ids
    ]
    depth = min(ranks, k_prime, documents.tokens)
    by_rank, by_query = np.zeros((2, depth), np.int64), np.zeros((2, len(queries)), np.int64)
    with progress(int(text.sum()), "search", "token") as bar:
        for start, vectors in queries.blocks(rows):
            kept = np.flatnonzero(text[start : start + len(vectors)])
            if not len(kept):
                continue
            hits = searcher.search(vectors[kept], k_prime).tokens[:, :depth]
            own, words = _texts_of(queries, start + kept), queries.vocabulary_ids(start + kept)
            pairs = zip(own, _texts_of(documents, hits), strict=True)
            golden = np.stack([np.isin(found, relevant[query]) for query, found in pairs])
            for kind, there in enumerate((golden, documents.vocabulary_ids(hits) == words[:, None])):
                by_rank[kind] += there.sum(axis=0)
                np.add.at(by_query[kind], own, there.sum(axis=1))
            bar.update(len(kept))
    count = int(text.sum())
    tokens_of = np.bincount(_texts_of(queries, np.flatnonzero(text)), minlength=len(queries))
    with np.errstate(invalid="ignore"):  # 0 / 0 where a query has no token of text
        shares = by_query / (depth * tokens_of)
    gold, lexical = by_rank / count
    return Rates(gold, lexical, count, len(text) - count, shares.T)


def _texts_of(store: Store, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The document (or query) number of each token, without the (tokens,) table that `document_of` would make."""
    return np.searchsorted(store.offsets, tokens, side="right") - 1


@dataclass(frozen=True)
class Share:
    """Of MaxSim scores of all pairs of a query and one of some documents, what the expansion tokens give. score: their
    part of the scores' sum. variance: their part of the scores' variance between documents, a query at a time, summed:
    the covariance of their sum with the whole, over its variance. Both parts of a score add up to 1 in both."""

    score: float
    variance: float


def expansion_share(documents: Store, queries: Store, count: int = DOCUMENTS, seed: int = SEED) -> Share:
    """The share of expansion over `count` random documents with a vector, or all of them. Raises DataError where scores
    do not differ at all."""
    known = np.flatnonzero(documents.lengths)
    chosen = np.random.default_rng(seed).choice(known, min(count, len(known)), replace=False)
    vectors, starts = documents.gather(np.sort(chosen))
    expansion = expansion_tokens(queries)
    part = whole = covariance = variance = 0.0
    for query in range(len(queries)):
        scores = queries.vectors(query).astype(np.float32) @ vectors.T
        best = np.maximum.reduceat(scores, starts, axis=1).astype(np.float64)
        sums = best.sum(axis=0)
        own = best[expansion[queries.offsets[query] : queries.offsets[query + 1]]].sum(axis=0)
        part, whole = part + float(own.sum()), whole + float(sums.sum())
        off = sums - sums.mean()
        covariance, variance = covariance + float(own @ off), variance + float(off @ off)
    if not variance or not whole:
        raise DataError(f"all scores of {queries.folder} over {documents.folder} are equal", hint="another data=ID")
    return Share(part / whole, covariance / variance)
