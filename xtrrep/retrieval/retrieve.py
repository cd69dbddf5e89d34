"""Queries against an index: hits to ranked documents, under any number of settings from one token search.

XTR (docs/protocol.md 3): a document with any of the k' hits is a candidate, scored by its hits alone, the rest
imputed. ColBERT over a token index: the same candidates, all their embeddings gathered, exact MaxSim. Hits descend, so
the k' best are the first k' of a deeper search: a sweep over k' and scorings searches once. Engines that rank documents
themselves, and runs made elsewhere, come in as rankings; the best of any ranking can be re-ranked by exact MaxSim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, progress
from xtrrep.measure.run_file import Run, separate
from xtrrep.retrieval.engines import (
    DocumentSearcher,
    ExhaustiveSearcher,
    Hits,
    Maxima,
    TokenSearcher,
    exact_device,
)
from xtrrep.retrieval.evidence import TIE, Evidence, Ranking, from_hits, from_maxima, top
from xtrrep.retrieval.maxsim import maxsim_of, rerank
from xtrrep.retrieval.rank import Counts as Counts
from xtrrep.retrieval.rank import Setting as Setting
from xtrrep.retrieval.rank import rank
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    from torch import Tensor

    from xtrrep.retrieval.device import DeviceEvidence

# Up to so many documents a (query tokens x documents) array is cheap, and an exhaustive engine need not sort.
EXHAUSTIVE_DOCUMENTS = 50_000

NO_HITS = Hits(np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))

Step = Callable[[str], AbstractContextManager[None]]


def unmeasured(name: str) -> AbstractContextManager[None]:
    """Default step when no timer is given."""
    return nullcontext()


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
            found = token_search(searcher, documents, tokens, settings)
            for i, number in enumerate(numbers):
                name = queries.ids[number]
                for setting, outcome in outcomes.items():
                    ranking, outcome.counts[name] = rank(found.evidence(i, setting), setting, partial(found.maxsim, i))
                    outcome.slots += len(tokens[i]) * (setting.k_prime or 0)
                    outcome.run[name] = finish(ranking, documents, tokens[i], own.get(name), setting)
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

    `step` is entered with the name of each part of the work, to time it.
    """
    if setting.k_prime is None:
        with step("search"):
            (ranking,) = rank_documents(cast(DocumentSearcher, searcher), [vectors], min(setting.depth, len(documents)))
    else:
        found = token_search(cast(TokenSearcher, searcher), documents, [vectors], [setting], step)
        with step("score"):
            ranking, _ = rank(found.evidence(0, setting), setting, partial(found.maxsim, 0))
    with step("score" if setting.rerank is None else "re-rank"):
        return finish(ranking, documents, vectors, None, setting)


def _outcome(documents: Store) -> Outcome:
    return Outcome(tokens=documents.tokens, documents=len(documents))


class Search(Protocol):
    """What one token search found for the queries of a batch, by their place in it."""

    def evidence(self, i: int, setting: Setting) -> Evidence:
        """What it knows of query `i` at the k' of a setting, which is one of those it was made for."""

    def maxsim(self, i: int, evidence: Evidence) -> Any:
        """Exact MaxSim of the candidates of query `i`, as `Evidence.top` takes it."""


def token_search(
    searcher: TokenSearcher,
    documents: Store,
    tokens: Sequence[NDArray[np.float32]],
    settings: Sequence[Setting],
    step: Step = unmeasured,
) -> Search:
    """Search a batch of (T, H) queries once, for all settings."""
    if isinstance(searcher, exact_device.Searcher):
        with step("token search"):
            return _DeviceSearch.of(searcher, documents, tokens, settings)
    return host_search(searcher, documents, tokens, settings, step)


def host_search(
    searcher: TokenSearcher,
    documents: Store,
    tokens: Sequence[NDArray[np.float32]],
    settings: Sequence[Setting],
    step: Step = unmeasured,
) -> HitSearch | MaximaSearch:
    """As `token_search`, with all that was found in this machine's memory."""
    rows = np.cumsum([0, *(len(t) for t in tokens)])
    queries = np.concatenate(tokens)
    depths = [setting.k_prime or 0 for setting in settings]
    if sees_everything(searcher, documents, depths) and len(queries):
        with step("token search"):
            seen = searcher.maxima(queries, max((k for k in depths if k < documents.tokens), default=1))
        return MaximaSearch(documents, [Maxima(seen.documents[a:b], seen.best[a:b]) for a, b in pairwise(rows)])
    with step("token search"):
        hits = searcher.search(queries, max(depths)) if len(queries) else NO_HITS
    exact: list[Ranking] = []
    found = HitSearch(documents, [Hits(hits.tokens[a:b], hits.scores[a:b]) for a, b in pairwise(rows)], exact)
    if gathered := [setting for setting in settings if setting.scoring == "colbert"]:
        deepest = max(gathered, key=lambda setting: setting.k_prime or 0)
        first = [0] if any(setting.zero_missing for setting in gathered) else []  # an empty slot may name it
        with step("gather and MaxSim"):
            wanted = [np.union1d(found.evidence(i, deepest).candidates, first) for i in range(len(tokens))]
            exact += maxsim_of(documents, tokens, [numbers.astype(np.int64) for numbers in wanted])
    return found


@dataclass(frozen=True)
class HitSearch:
    """Token hits, and the exact MaxSim of the candidates where a setting wants it."""

    documents: Store
    parts: list[Hits]
    exact: list[Ranking]

    def evidence(self, i: int, setting: Setting) -> Evidence:
        k_prime = setting.k_prime or 0
        tokens, scores = self.parts[i].tokens[:, :k_prime], self.parts[i].scores[:, :k_prime]
        return from_hits(self.documents.document_of[tokens], scores, k_prime)

    def maxsim(self, i: int, evidence: Evidence) -> NDArray[np.float32]:
        known, values = self.exact[i]
        return values[np.searchsorted(known, evidence.candidates)]

    def token_hits(
        self, i: int, setting: Setting, start: int, similarities: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(T, S) the score of each token of a document among the k' hits, NaN for the others.

        start: the document's first token; similarities: (T, S) of its tokens.
        """
        tokens, scores = self.parts[i].tokens[:, : setting.k_prime], self.parts[i].scores[:, : setting.k_prime]
        hits = np.full_like(similarities, np.nan)
        rows, columns = np.nonzero((tokens >= start) & (tokens < start + similarities.shape[1]) & ~np.isnan(scores))
        hits[rows, tokens[rows, columns] - start] = scores[rows, columns]
        return hits


@dataclass(frozen=True)
class MaximaSearch:
    """All maxima of an exhaustive search."""

    documents: Store
    parts: list[Maxima]

    def evidence(self, i: int, setting: Setting) -> Evidence:
        part = self.parts[i]
        return from_maxima(part.documents, part.best, setting.k_prime or 0, self.documents.tokens)

    def maxsim(self, i: int, evidence: Evidence) -> NDArray[np.float32]:
        maxima, wanted = self.parts[i].documents, evidence.candidates
        if len(wanted) < maxima.shape[1] // 2:
            return _summed(maxima[:, wanted])
        return _summed(maxima)[wanted]  # most documents: their sums are cheaper picked out than their columns

    def token_hits(
        self, i: int, setting: Setting, start: int, similarities: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """As `HitSearch.token_hits`."""
        k_prime = setting.k_prime or 0
        if k_prime >= self.documents.tokens:
            return similarities
        floor = self.parts[i].best[:, k_prime - 1, None] - TIE
        return np.where(similarities >= floor, similarities, np.float32(np.nan))


def _summed(maxima: NDArray[np.float32]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = maxima.sum(axis=0, dtype=np.float64).astype(np.float32)
    return scores


@dataclass(frozen=True)
class _DeviceSearch:
    """As the two above, on the searcher's device: the maxima of each query, or the keys of its hits."""

    searcher: exact_device.Searcher
    documents: Store
    places: dict[int, int]  # of the queries with tokens among those searched
    maxima: list[tuple[Tensor, Tensor]]
    keys: list[Tensor]
    sums: list[Tensor]

    @classmethod
    def of(
        cls,
        searcher: exact_device.Searcher,
        documents: Store,
        tokens: Sequence[NDArray[np.float32]],
        settings: Sequence[Setting],
    ) -> _DeviceSearch:
        import torch

        asked = [i for i, vectors in enumerate(tokens) if len(vectors)]
        vectors, places = [tokens[i] for i in asked], {i: place for place, i in enumerate(asked)}
        depths = [setting.k_prime or 0 for setting in settings]
        if sees_everything(searcher, documents, depths):
            found = searcher.all_maxima(vectors, max((k for k in depths if k < documents.tokens), default=1))
            sums = [maxima.sum(dim=0, dtype=torch.float64).to(torch.float32) for maxima, _ in found]
            return cls(searcher, documents, places, found, [], sums)
        exact = any(setting.scoring == "colbert" for setting in settings)
        keys, sums = searcher.hits(vectors, max(depths), maxsim=exact)
        return cls(searcher, documents, places, [], keys, sums)

    def evidence(self, i: int, setting: Setting) -> Evidence:
        if i not in self.places:
            return from_hits(NO_HITS.tokens, NO_HITS.scores, 0)
        return self._on_device(self.places[i], setting.k_prime or 0)

    def _on_device(self, place: int, k_prime: int) -> DeviceEvidence:
        import torch

        from xtrrep.retrieval import device

        if self.maxima:
            cells, best = self.maxima[place][0], self.maxima[place][1][:, :k_prime]
            if k_prime < self.documents.tokens:
                cells = torch.where(cells < best[:, -1:] - TIE, -torch.inf, cells)
        else:
            positions, best = device.unpack(self.keys[place][:, :k_prime])
            cells = device.hit_cells(self.searcher.documents_of(positions), best, len(self.documents))
        return device.DeviceEvidence(cells, best, np.full(len(cells), max(0, k_prime - self.documents.tokens)))

    def maxsim(self, i: int, evidence: Evidence) -> Any:
        return self.sums[self.places[i]] if i in self.places else np.empty(0, np.float32)


def sees_everything(searcher: TokenSearcher, documents: Store, depths: Sequence[int]) -> TypeGuard[ExhaustiveSearcher]:
    """Whether hits at these k' are found by `maxima`: the collection decides, never the batch, since at the k'-th score
    `maxima` keeps every tie and `search` exactly k'."""
    everything = min(depths) >= documents.tokens
    return isinstance(searcher, ExhaustiveSearcher) and (everything or len(documents) <= EXHAUSTIVE_DOCUMENTS)


def _nothing() -> Ranking:
    return np.empty(0, np.int64), np.empty(0, np.float32)


def finish(
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
                outcome.run[name] = finish(ranking, documents, vectors, own.get(name), setting)
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
            outcome.run[name] = finish((found, scores), documents, tokens, None, whole)
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
