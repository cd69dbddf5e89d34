"""Queries against an index: hits to ranked documents, under any number of settings from one token search.

XTR (PROTOCOL.md section 3): a document with any of the k' hits is a candidate, scored by its hits alone, the rest
imputed. ColBERT over a token index: the same candidates, all their embeddings gathered, exact MaxSim. Hits descend, so
the k' best are the first k' of a deeper search: a sweep over k' and scorings searches once. Engines that rank documents
themselves, and runs made elsewhere, come in as rankings; the best of any ranking can be re-ranked by exact MaxSim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, progress
from xtrrep.encode import Store
from xtrrep.index import DocumentSearcher, ExhaustiveSearcher, Hits, Maxima, TextSearcher, TokenSearcher, exact_device
from xtrrep.runfile import Run, separate
from xtrrep.scoring.aggregate import Ranking, aggregate, top
from xtrrep.scoring.imputation import imputations
from xtrrep.scoring.maxsim import document_maxima

# Similarities held at a time while gathering embeddings, in float32 values (128 MiB).
BLOCK_VALUES = 1 << 25
# Up to so many documents a (query tokens x documents) array is cheap, and an exhaustive engine need not sort.
EXHAUSTIVE_DOCUMENTS = 50_000
# Copies of one vector differ by about 1e-7 with their place in a float32 product: this close to the k'-th is a tie.
TIE = 1e-6


Step = Callable[[str], AbstractContextManager[None]]


def unmeasured(name: str) -> AbstractContextManager[None]:
    """The step of whoever does not measure."""
    return nullcontext()


@dataclass(frozen=True)
class Setting:
    """How hits become a ranking."""

    scoring: str  # "xtr" or "colbert"; for a document engine what it approximates; "run" for scores made elsewhere
    k_prime: int | None  # None where no token search is ours
    imputation: str = "min"
    top_k: int = 100
    drop_self: bool = False  # drop the document whose id is the query's
    zero_missing: bool = False  # the study's code: an empty slot is a hit of score 0 on the first document
    rerank: int | None = None  # so many of the best are scored once more, by exact MaxSim

    @property
    def depth(self) -> int:
        """How deep a first ranking must be: one more where the query's own document may have to go."""
        return max(self.top_k, self.rerank or 0) + self.drop_self


@dataclass(frozen=True)
class Counts:
    """What stands behind one query's ranking; None where the engine does not say."""

    returned: int  # before top_k cuts
    candidates: int | None = None  # documents that were scored
    imputed_cells: int | None = None  # (query token, candidate) pairs without a hit
    missing_slots: int | None = None  # of the query tokens x k' slots, those the search could not fill


@dataclass
class Outcome:
    """A run and what the manifest says of it."""

    run: Run = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    tokens: int = 0  # in the collection
    documents: int = 0
    slots: int = 0
    search: dict[str, Any] = field(default_factory=dict)  # an engine's search parameters as resolved
    device: str | None = None  # that compared and scored, where that was ours to choose

    @property
    def missing(self) -> int:
        return sum(count.missing_slots or 0 for count in self.counts.values())

    def facts(self, setting: Setting) -> dict[str, Any]:
        queries = len(self.run)
        counts = list(self.counts.values())
        imputed = [count.imputed_cells for count in counts if count.imputed_cells is not None]
        candidates = [count.candidates for count in counts if count.candidates is not None]
        facts: dict[str, Any] = {
            "units": {"queries": queries},
            "k_prime": setting.k_prime,
            "slots": self.slots,
            "missing_slots": self.missing,
            "queries_without_results": sum(not ranking for ranking in self.run.values()),
            "mean_candidates": round(sum(candidates) / len(candidates), 2) if candidates else None,
            "mean_imputed_cells": round(sum(imputed) / len(imputed), 2) if imputed else None,
        }
        if self.search:
            facts["search"] = self.search
        if self.device is not None:
            facts["device"] = self.device
        if 0 < self.documents < setting.top_k:
            facts["top_k_clipped"] = self.documents
        return facts


# --- token engines -------------------------------------------------------------------------------------------------


def retrieve(
    searcher: TokenSearcher, documents: Store, queries: Store, settings: Sequence[Setting], batch: int
) -> dict[Setting, Outcome]:
    """Rank `documents` for every query under each setting, with one token search at the largest `k_prime`."""
    outcomes = {setting: _outcome(documents) for setting in settings}
    own = documents.numbers(set(queries.ids))
    if isinstance(searcher, exact_device.Searcher):
        longest = int(queries.lengths.max(initial=0))
        batch = searcher.at_once(batch, longest, max(setting.k_prime or 0 for setting in settings))
        for outcome in outcomes.values():
            outcome.device = searcher.device
    with progress(len(queries), "retrieve", "query") as bar:
        for begin in range(0, len(queries), batch):
            numbers = range(begin, min(begin + batch, len(queries)))
            tokens = [queries.vectors(number).astype(np.float32) for number in numbers]
            rank = _ranker(searcher, documents, tokens, settings)
            for i, number in enumerate(numbers):
                name = queries.ids[number]
                for setting, outcome in outcomes.items():
                    ranking, outcome.counts[name] = rank(i, setting)
                    outcome.slots += len(tokens[i]) * (setting.k_prime or 0)
                    outcome.run[name] = _finish(ranking, documents, tokens[i], own.get(name), setting)
            documents.release()
            bar.update(len(tokens))
    return outcomes


def rank_query(
    searcher: TokenSearcher | DocumentSearcher,
    documents: Store,
    vectors: NDArray[np.float32],
    setting: Setting,
    step: Step = unmeasured,
) -> list[tuple[str, float]]:
    """One query's (T, H) vectors to (document id, score), best first; a `k_prime` of None means a document engine.

    `step` is entered with the name of each part of the work, for whoever measures.
    """
    if setting.k_prime is None:
        with step("search"):
            (ranking,) = rank_documents(cast(DocumentSearcher, searcher), [vectors], min(setting.depth, len(documents)))
    else:
        rank = _ranker(cast(TokenSearcher, searcher), documents, [vectors], [setting], step)
        with step("score"):
            ranking, _ = rank(0, setting)
    with step("score" if setting.rerank is None else "re-rank"):
        return _finish(ranking, documents, vectors, None, setting)


def _outcome(documents: Store) -> Outcome:
    return Outcome(tokens=documents.tokens, documents=len(documents))


def _ranker(
    searcher: TokenSearcher,
    documents: Store,
    tokens: Sequence[NDArray[np.float32]],
    settings: Sequence[Setting],
    step: Step = unmeasured,
) -> Callable[[int, Setting], tuple[Ranking, Counts]]:
    """Search a batch of queries once; returns a function from (query in the batch, setting) to its ranking."""
    rows = np.cumsum([0, *(len(t) for t in tokens)])
    queries = np.concatenate(tokens)
    if not len(queries):  # nothing to look for, in any of them
        return lambda i, setting: (_nothing(), Counts(0, 0, 0, 0))
    depths = [setting.k_prime or 0 for setting in settings]
    if isinstance(searcher, exact_device.Searcher):
        return _device_ranker(searcher, documents, tokens, settings, step)
    if sees_everything(searcher, documents, depths):
        with step("token search"):
            found = searcher.maxima(queries, max((k for k in depths if k < documents.tokens), default=1))

        def from_maxima(i: int, setting: Setting) -> tuple[Ranking, Counts]:
            part = slice(rows[i], rows[i + 1])
            return _rank_maxima(Maxima(found.documents[part], found.best[part]), setting, documents.tokens)

        return from_maxima
    with step("token search"):
        hits = searcher.search(queries, max(depths))
    parts = [Hits(hits.tokens[a:b], hits.scores[a:b]) for a, b in pairwise(rows)]
    gathered = [s for s in settings if s.scoring == "colbert"]
    zero = any(s.zero_missing for s in gathered)
    with step("gather and MaxSim"):
        exact = _maxsim(documents, tokens, parts, max((s.k_prime or 0 for s in gathered), default=0), with_first=zero)

    def from_hits(i: int, setting: Setting) -> tuple[Ranking, Counts]:
        return _rank_hits(documents, parts[i], setting, exact[i] if exact else None)

    return from_hits


def _device_ranker(
    searcher: exact_device.Searcher,
    documents: Store,
    tokens: Sequence[NDArray[np.float32]],
    settings: Sequence[Setting],
    step: Step,
) -> Callable[[int, Setting], tuple[Ranking, Counts]]:
    """As `_ranker`, all of it on the searcher's device."""
    import torch

    from xtrrep.scoring import device

    asked = {i: place for place, i in enumerate(i for i, vectors in enumerate(tokens) if len(vectors))}
    vectors = [tokens[i] for i in asked]
    depths = [setting.k_prime or 0 for setting in settings]
    with step("token search"):
        packed: list[torch.Tensor] = []
        if sees_everything(searcher, documents, depths):
            found = searcher.all_maxima(vectors, max((k for k in depths if k < documents.tokens), default=1))
            sums = [maxima.sum(dim=0, dtype=torch.float64).to(torch.float32) for maxima, _ in found]
        else:
            found = []
            exact = any(setting.scoring == "colbert" for setting in settings)
            packed, sums = searcher.hits(vectors, max(depths), maxsim=exact)

    def rank(i: int, setting: Setting) -> tuple[Ranking, Counts]:
        if i not in asked:
            return _nothing(), Counts(0, 0, 0, 0)
        place, k_prime, xtr = asked[i], setting.k_prime or 0, setting.scoring == "xtr"
        short = max(0, k_prime - documents.tokens)
        if found:
            cells, best = found[place][0].clone(), found[place][1][:, :k_prime]
            if k_prime < documents.tokens:
                cells[cells < best[:, -1:] - TIE] = -torch.inf
        else:
            positions, best = device.unpack(packed[place][:, :k_prime])
            cells = device.hit_cells(searcher.documents_of(positions), best, len(documents))
        if setting.zero_missing and short:
            cells[:, 0].clamp_(min=0)
        imputation, scores = (setting.imputation, None) if xtr else (None, sums[place])
        ranking, size, filled = device.rank(cells, best, imputation, scores, setting.depth)
        imputed = len(cells) * size - filled if xtr or found else None
        return ranking, Counts(size, size, imputed, len(cells) * short)

    return rank


def sees_everything(searcher: TokenSearcher, documents: Store, depths: Sequence[int]) -> TypeGuard[ExhaustiveSearcher]:
    """Whether hits at these k' are found by `maxima`: the collection decides, never the batch, since at the k'-th score
    `maxima` keeps every tie and `search` exactly k'."""
    everything = min(depths) >= documents.tokens
    return isinstance(searcher, ExhaustiveSearcher) and (everything or len(documents) <= EXHAUSTIVE_DOCUMENTS)


def _nothing() -> Ranking:
    return np.empty(0, np.int64), np.empty(0, np.float32)


def _rank_maxima(found: Maxima, setting: Setting, tokens: int) -> tuple[Ranking, Counts]:
    """One query's ranking from an exhaustive search of a collection of so many tokens."""
    count, k_prime = len(found.documents), setting.k_prime or 0
    if not count:
        return _nothing(), Counts(0, 0, 0, 0)
    short = max(0, k_prime - tokens)
    documents = found.documents
    if k_prime >= tokens:  # every token is a hit
        retrieved = np.isfinite(documents)
        if setting.zero_missing and short:
            documents, retrieved = documents.copy(), retrieved.copy()
            documents[:, 0], retrieved[:, 0] = np.maximum(documents[:, 0], 0), True
    else:
        retrieved = documents >= found.best[:, k_prime - 1 : k_prime] - TIE
    candidates = np.flatnonzero(retrieved.any(axis=0))
    values, kept = (documents if setting.scoring == "xtr" else found.documents)[:, candidates], retrieved[:, candidates]
    if setting.scoring == "xtr" and not kept.all():
        values = np.where(kept, values, imputations.get(setting.imputation)(found.best[:, :k_prime])[:, None])
    scores = values.sum(axis=0, dtype=np.float64).astype(np.float32)
    size = len(candidates)
    counts = Counts(size, size, kept.size - int(kept.sum()), count * short)
    return top(candidates, scores, setting.depth), counts


def _documents_of(documents: Store, part: Hits, k_prime: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    return documents.document_of[part.tokens[:, :k_prime]], part.scores[:, :k_prime]


def _rank_hits(documents: Store, part: Hits, setting: Setting, exact: Ranking | None) -> tuple[Ranking, Counts]:
    """One query's ranking from its token hits."""
    k_prime = setting.k_prime or 0
    found, scores = _documents_of(documents, part, k_prime)
    if not len(scores):
        return _nothing(), Counts(0, 0, 0, 0)
    missing = len(scores) * k_prime - scores.size + int(np.isnan(scores[:, -1:]).any() and np.isnan(scores).sum())
    if setting.zero_missing:
        found, scores = zero_filled(found, scores, k_prime)
    if setting.scoring == "xtr":
        candidates = aggregate(found, scores, setting.imputation)
        cells = len(scores) * len(candidates.documents)
        size = len(candidates.documents)
        counts = Counts(size, size, cells - candidates.filled, missing)
        return top(candidates.documents, candidates.scores, setting.depth), counts
    if exact is None:
        raise ValueError("ColBERT scoring needs the gathered MaxSim scores")
    numbers = np.unique(found[~np.isnan(scores)]).astype(np.int64)
    known, values = exact
    return top(numbers, values[np.searchsorted(known, numbers)], setting.depth), Counts(
        len(numbers), len(numbers), None, missing
    )


def zero_filled(
    found: NDArray[np.int32], scores: NDArray[np.float32], k_prime: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Every empty slot, up to k_prime, a hit of score 0 on document 0, rows descending again."""
    empty = np.isnan(scores)
    short = k_prime - scores.shape[1]
    found = np.pad(np.where(empty, 0, found), ((0, 0), (0, short)))
    scores = np.pad(np.where(empty, np.float32(0), scores), ((0, 0), (0, short)))
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(scores, order, axis=1)


# --- exact MaxSim of given candidates ------------------------------------------------------------------------------


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


def _finish(
    ranking: Ranking, documents: Store, tokens: NDArray[np.float32], own: int | None, setting: Setting
) -> list[tuple[str, float]]:
    """Without the query's own document where it may not count, re-ranked where that is asked, named, without ties."""
    numbers, scores = ranking
    if setting.drop_self and own is not None:
        keep = numbers != own
        numbers, scores = numbers[keep], scores[keep]
    if setting.rerank is not None:
        numbers, scores = rerank(documents, tokens, (numbers, scores), setting.rerank)
    numbers, scores = numbers[: setting.top_k], separate(scores[: setting.top_k])
    return [(documents.ids[n], float(s)) for n, s in zip(numbers, scores, strict=True)]


# --- rankings made by an engine, or elsewhere ----------------------------------------------------------------------


def retrieve_documents(
    searcher: DocumentSearcher, documents: Store, queries: Store, setting: Setting, batch: int
) -> Outcome:
    """Rank with an engine that scores documents itself."""
    outcome = _outcome(documents)
    outcome.search = dict(getattr(searcher, "settings", {}))
    own = documents.numbers(set(queries.ids))
    depth = min(setting.depth, len(documents))
    with progress(len(queries), "retrieve", "query") as bar:
        for begin in range(0, len(queries), batch):
            numbers = range(begin, min(begin + batch, len(queries)))
            tokens = [queries.vectors(number).astype(np.float32) for number in numbers]
            rankings = rank_documents(searcher, tokens, depth)
            for number, vectors, ranking in zip(numbers, tokens, rankings, strict=True):
                name = queries.ids[number]
                outcome.counts[name] = Counts(len(ranking[0]))
                outcome.run[name] = _finish(ranking, documents, vectors, own.get(name), setting)
            documents.release()
            bar.update(len(tokens))
    return outcome


def rank_documents(searcher: DocumentSearcher, tokens: Sequence[NDArray[np.float32]], top_k: int) -> list[Ranking]:
    """Rankings of (T, H) queries, ties by document number; a query without a token finds nothing."""
    asked = [i for i, vectors in enumerate(tokens) if len(vectors)]
    rankings = [_nothing() for _ in tokens]
    if asked:
        numbers, scores = searcher.search([tokens[i] for i in asked], top_k)
        for i, row, row_scores in zip(asked, numbers, scores, strict=True):
            kept = ~np.isnan(row_scores)
            rankings[i] = top(row[kept], row_scores[kept], top_k)
    return rankings


def retrieve_run(run: Run, documents: Store, queries: Store, setting: Setting, where: str) -> Outcome:
    """The documents of a run made elsewhere, ordered by exact MaxSim: all of them, or the first `setting.rerank`.

    Raises DataError where the run names a document that the collection does not hold.
    """
    outcome = _outcome(documents)
    numbers = documents.numbers({name for ranking in run.values() for name, _ in ranking})
    with progress(len(queries), "re-rank", "query") as bar:
        for number, name in enumerate(queries.ids):
            ranking = _own_dropped(run.get(name, []), name, setting)
            for document, _ in ranking:
                if document not in numbers:
                    raise DataError(
                        f"{where} names document {document!r}, which the collection does not hold",
                        hint="data=ID of the collection that the run is of",
                    )
            found = np.array([numbers[document] for document, _ in ranking], np.int64)
            scores = np.array([score for _, score in ranking], np.float32)
            tokens = queries.vectors(number).astype(np.float32)
            whole = replace(setting, rerank=(setting.rerank or len(found)) if len(tokens) else None)
            outcome.counts[name] = Counts(len(found), len(found))
            outcome.run[name] = _finish((found, scores), documents, tokens, None, whole)
            documents.release()
            bar.update(1)
    return outcome


def _own_dropped(ranking: Sequence[tuple[str, float]], query: str, setting: Setting) -> list[tuple[str, float]]:
    """A ranking from outside by its scores, ties as they stand, without the query's own document where it may not
    count."""
    ordered = sorted(ranking, key=lambda pair: -pair[1])
    return [pair for pair in ordered if not (setting.drop_self and pair[0] == query)]


def keep_run(run: Run, queries: Mapping[str, str], setting: Setting) -> Outcome:
    """A run made elsewhere as it is: judged queries only, cut, without self matches and ties."""
    outcome = Outcome()
    for name in queries:
        ranking = _own_dropped(run.get(name, []), name, setting)[: setting.top_k]
        scores = separate(np.array([score for _, score in ranking], np.float32))
        outcome.run[name] = [(document, float(s)) for (document, _), s in zip(ranking, scores, strict=True)]
        outcome.counts[name] = Counts(len(ranking))
    return outcome


def retrieve_text(
    searcher: TextSearcher, ids: Sequence[str], queries: Mapping[str, str], top_k: int, *, drop_self: bool
) -> Outcome:
    """Rank documents with a text engine. `ids` are the collection's document ids in order."""
    outcome = Outcome(documents=len(ids))
    numbers, scores = searcher.search(list(queries.values()), top_k + drop_self)
    for name, row, row_scores in zip(queries, numbers, scores, strict=True):
        keep = ~np.isnan(row_scores)
        found = [ids[n] for n in row[keep]]
        best = separate(row_scores[keep])
        pairs = [(d, float(s)) for d, s in zip(found, best, strict=True) if not (drop_self and d == name)]
        outcome.run[name] = pairs[:top_k]
        outcome.counts[name] = Counts(int(keep.sum()))
    return outcome
