"""Queries against an index: token hits to ranked documents, under any number of settings from one token search.

XTR (PROTOCOL.md section 3): a document with any of the k' hits is a candidate, scored by its hits alone, the rest
imputed. ColBERT over a token index: the same candidates, all their embeddings gathered, exact MaxSim. Hits descend, so
the k' best are the first k' of a deeper search: a sweep over k' and scorings searches once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import progress
from xtrrep.encode import Store
from xtrrep.index import ExhaustiveSearcher, Hits, Maxima, TextSearcher, TokenSearcher
from xtrrep.runfile import Run, separate
from xtrrep.scoring import imputation
from xtrrep.scoring.aggregate import Ranking, top, xtr_rank
from xtrrep.scoring.maxsim import document_maxima

# Similarities held at a time while gathering embeddings, in float32 values (128 MiB).
BLOCK_VALUES = 1 << 25
# Up to so many documents a (query tokens x documents) array is cheap, and an exhaustive engine need not sort.
EXHAUSTIVE_DOCUMENTS = 50_000
# Copies of one vector differ by about 1e-7 with their place in a float32 product: this close to the k'-th is a tie.
TIE = 1e-6


@dataclass(frozen=True)
class Setting:
    """How token hits become a ranking."""

    scoring: str  # "xtr" or "colbert"
    k_prime: int
    imputation: str = "min"
    top_k: int = 100
    drop_self: bool = False  # drop the document whose id is the query's
    zero_missing: bool = False  # the study's code: an empty slot is a hit of score 0 on the first document


@dataclass
class Outcome:
    """A run and what the manifest says of it."""

    run: Run = field(default_factory=dict)
    tokens: int = 0  # in the collection
    slots: int = 0
    missing: int = 0
    candidates: int = 0

    def facts(self, k_prime: int) -> dict[str, Any]:
        queries = len(self.run)
        return {
            "units": {"queries": queries},
            "k_prime": k_prime,
            "slots": self.slots,
            "missing_slots": self.missing,
            "queries_without_results": sum(not ranking for ranking in self.run.values()),
            "mean_candidates": round(self.candidates / queries, 2) if queries else None,
        }


def retrieve(
    searcher: TokenSearcher, documents: Store, queries: Store, settings: Sequence[Setting], batch: int
) -> dict[Setting, Outcome]:
    """Rank `documents` for every query under each setting, with one token search at the largest `k_prime`."""
    outcomes = {setting: Outcome(tokens=documents.tokens) for setting in settings}
    own = {name: number for number, name in enumerate(documents.ids)}
    with progress(len(queries), "retrieve", "query") as bar:
        for begin in range(0, len(queries), batch):
            numbers = range(begin, min(begin + batch, len(queries)))
            tokens = [queries.vectors(number).astype(np.float32) for number in numbers]
            rank = _ranker(searcher, documents, tokens, settings)
            for i, number in enumerate(numbers):
                name = queries.ids[number]
                for setting, outcome in outcomes.items():
                    outcome.run[name] = _named(rank(i, setting, outcome), documents, own.get(name), setting)
            bar.update(len(tokens))
    return outcomes


def _ranker(
    searcher: TokenSearcher, documents: Store, tokens: Sequence[NDArray[np.float32]], settings: Sequence[Setting]
) -> Callable[[int, Setting, Outcome], Ranking]:
    """Search a batch of queries once; returns a function from (query in the batch, setting) to its ranking."""
    rows = np.cumsum([0, *(len(t) for t in tokens)])
    queries = np.concatenate(tokens)
    deepest = max(setting.k_prime for setting in settings)
    # The collection decides, never the batch: at the k'-th score `maxima` keeps every tie and `search` exactly k'.
    if len(documents) <= EXHAUSTIVE_DOCUMENTS and isinstance(searcher, ExhaustiveSearcher):
        found = searcher.maxima(queries, min(deepest, documents.tokens))

        def from_maxima(i: int, setting: Setting, outcome: Outcome) -> Ranking:
            part = slice(rows[i], rows[i + 1])
            return _rank_maxima(Maxima(found.documents[part], found.best[part]), setting, outcome)

        return from_maxima
    hits = searcher.search(queries, deepest)
    parts = [Hits(hits.tokens[a:b], hits.scores[a:b]) for a, b in pairwise(rows)]
    gathered = [s for s in settings if s.scoring == "colbert"]
    zero = any(s.zero_missing for s in gathered)
    exact = _maxsim(documents, tokens, parts, max((s.k_prime for s in gathered), default=0), with_first=zero)

    def from_hits(i: int, setting: Setting, outcome: Outcome) -> Ranking:
        return _rank_hits(documents, parts[i], setting, exact[i] if exact else None, outcome)

    return from_hits


def _rank_maxima(found: Maxima, setting: Setting, outcome: Outcome) -> Ranking:
    """One query's ranking from an exhaustive search."""
    count = len(found.best)
    best, documents = found.best[:, : setting.k_prime], found.documents
    short = setting.k_prime - best.shape[1]
    outcome.slots += count * setting.k_prime
    outcome.missing += count * short
    if setting.zero_missing and short:
        best = -np.sort(-np.pad(best, ((0, 0), (0, short))), axis=1)
        documents = documents.copy()
        documents[:, 0] = np.maximum(documents[:, 0], 0)
    retrieved = documents >= best[:, -1:] - TIE
    candidates = np.flatnonzero(retrieved.any(axis=0))
    outcome.candidates += len(candidates)
    values, kept = (documents if setting.scoring == "xtr" else found.documents)[:, candidates], retrieved[:, candidates]
    if setting.scoring == "xtr":
        values = np.where(kept, values, imputation.get(setting.imputation)(best)[:, None])
    scores = values.sum(axis=0, dtype=np.float64).astype(np.float32)
    return top(candidates, scores, setting.top_k + setting.drop_self)


def rank_query(
    searcher: TokenSearcher, documents: Store, vectors: NDArray[np.float32], setting: Setting
) -> list[tuple[str, float]]:
    """One query's (T, H) vectors to (document id, score), best first."""
    rank = _ranker(searcher, documents, [vectors], [setting])
    return _named(rank(0, setting, Outcome()), documents, None, setting)


def _documents_of(documents: Store, part: Hits, k_prime: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    return documents.document_of[part.tokens[:, :k_prime]], part.scores[:, :k_prime]


def _rank_hits(documents: Store, part: Hits, setting: Setting, exact: Ranking | None, outcome: Outcome) -> Ranking:
    """One query's ranking, one deeper than top_k where its own document may have to go."""
    found, scores = _documents_of(documents, part, setting.k_prime)
    valid = ~np.isnan(scores)
    outcome.slots += len(scores) * setting.k_prime
    outcome.missing += len(scores) * setting.k_prime - int(valid.sum())
    if setting.zero_missing:
        found, scores = _zero_filled(found, scores, setting.k_prime)
        valid = np.ones_like(scores, dtype=bool)
    depth = setting.top_k + setting.drop_self
    candidates = np.unique(found[valid])
    outcome.candidates += len(candidates)
    if setting.scoring == "xtr":
        return xtr_rank(found, scores, imputation=setting.imputation, top_k=depth)
    if exact is None:
        raise ValueError("ColBERT scoring needs the gathered MaxSim scores")
    known, values = exact
    return top(candidates.astype(np.int64), values[np.searchsorted(known, candidates)], depth)


def _zero_filled(
    found: NDArray[np.int32], scores: NDArray[np.float32], k_prime: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Every empty slot, up to k_prime, a hit of score 0 on document 0, rows descending again."""
    empty = np.isnan(scores)
    short = k_prime - scores.shape[1]
    found = np.pad(np.where(empty, 0, found), ((0, 0), (0, short)))
    scores = np.pad(np.where(empty, np.float32(0), scores), ((0, 0), (0, short)))
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _maxsim(
    documents: Store, tokens: Sequence[NDArray[np.float32]], parts: Sequence[Hits], k_prime: int, *, with_first: bool
) -> list[Ranking]:
    """Each query's candidates at `k_prime` (ascending) with their exact MaxSim; empty when k_prime is 0.

    `with_first` adds document 0, which zero-filled slots make a candidate.
    """
    if not k_prime:
        return []
    wanted = []
    for part in parts:
        found, scores = _documents_of(documents, part, k_prime)
        wanted.append(np.unique(np.append(found[~np.isnan(scores)], [0] if with_first else [])).astype(np.int64))
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
    rows = np.concatenate(tokens)
    starts = np.cumsum([0, *(len(t) for t in tokens)])[:-1]
    budget = max(1, BLOCK_VALUES // len(rows))
    ends = np.cumsum(documents.lengths[candidates])
    out = np.empty((len(tokens), len(candidates)), np.float32)
    begin = 0
    while begin < len(candidates):
        before = ends[begin - 1] if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, before + budget, side="right")))
        vectors, offsets = documents.gather(candidates[begin:stop])
        maxima = document_maxima(rows @ vectors.T, offsets)
        out[:, begin:stop] = np.add.reduceat(maxima, starts, axis=0, dtype=np.float64)
        begin = stop
    return list(out)


def _named(ranking: Ranking, documents: Store, own: int | None, setting: Setting) -> list[tuple[str, float]]:
    numbers, scores = ranking
    if setting.drop_self and own is not None:
        keep = numbers != own
        numbers, scores = numbers[keep], scores[keep]
    numbers, scores = numbers[: setting.top_k], separate(scores[: setting.top_k])
    return [(documents.ids[n], float(s)) for n, s in zip(numbers, scores, strict=True)]


def retrieve_text(
    searcher: TextSearcher, ids: Sequence[str], queries: dict[str, str], top_k: int, *, drop_self: bool
) -> Outcome:
    """Rank documents with a text engine. `ids` are the collection's document ids in order."""
    outcome = Outcome()
    numbers, scores = searcher.search(list(queries.values()), top_k + drop_self)
    for name, row, row_scores in zip(queries, numbers, scores, strict=True):
        keep = ~np.isnan(row_scores)
        found = [ids[n] for n in row[keep]]
        best = separate(row_scores[keep])
        pairs = [(d, float(s)) for d, s in zip(found, best, strict=True) if not (drop_self and d == name)]
        outcome.run[name] = pairs[:top_k]
        outcome.candidates += int(keep.sum())
    return outcome
