"""Rankings by words: as they are, re-ranked by a model's MaxSim, or made one with a model's own ranking.

BM25 followed by MaxSim over its best hundred or thousand is the baseline that engines over vectors are measured by. The
fusion of two rankings is by reciprocal ranks (Cormack et al. 2009), or by scores scaled to between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError
from xtrrep.measure.run_file import separate
from xtrrep.retrieval.engines import TextSearcher
from xtrrep.retrieval.retrieve import Counts, Outcome, Setting, Step, finish, retrieve_run, unmeasured
from xtrrep.store.encode import Store

FIRST = 60  # a reciprocal rank is 1 / (60 + rank), as Cormack et al. have it

Ranked = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Words:
    """A text engine, and the ids of the documents that it numbers."""

    searcher: TextSearcher
    ids: Sequence[str]

    def numbers(self, text: str, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The numbers and scores of one text's documents, best first."""
        ((numbers,), (scores,)) = self.searcher.search([text], top_k)
        kept = ~np.isnan(scores)
        return numbers[kept], scores[kept]

    def rank(self, text: str, top_k: int) -> list[tuple[str, float]]:
        """(document id, score) of one text, best first, without ties."""
        numbers, scores = self.numbers(text, top_k)
        return [(self.ids[n], float(s)) for n, s in zip(numbers, separate(scores), strict=True)]


def check_order(ids: Sequence[str], documents: Store) -> None:
    """Raise DataError where a store does not number its documents as the collection does: vectors made elsewhere may
    not, and one query at a time is answered by numbers."""
    if list(ids) != list(documents.ids):
        raise DataError(
            f"{documents.folder} holds its documents in another order than the collection",
            hint="xtrrep eval matches them by their ids",
        )


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


def retrieve_reranked(
    words: Words, texts: Mapping[str, str], documents: Store, queries: Store, setting: Setting
) -> Outcome:
    """The ranking of a text engine, the first `setting.rerank` documents of it ordered anew by exact MaxSim."""
    first = retrieve_text(words.searcher, words.ids, texts, setting.depth, drop_self=False)
    return retrieve_run(first.run, documents, queries, setting, "the ranking by words")


def fuse(outcome: Outcome, words: Words, texts: Mapping[str, str], setting: Setting) -> Outcome:
    """An outcome whose rankings are made one with those of a text engine, each cut at `setting.top_k` before."""
    other = retrieve_text(words.searcher, words.ids, texts, setting.top_k, drop_self=setting.drop_self).run
    run = {name: fused(ranking, other.get(name, []), setting) for name, ranking in outcome.run.items()}
    return replace(outcome, run=run)


def fused(one: Ranked, two: Ranked, setting: Setting) -> list[tuple[str, float]]:
    """Two rankings (document id, score) as one, as `setting.fuse` says. Equal sums stand as in the first ranking.

    A document that only one of them holds gets nothing from the other.
    """
    total: dict[str, float] = {}
    for ranking in (one, two):
        worst, best = (ranking[-1][1], ranking[0][1]) if ranking else (0.0, 0.0)
        for rank, (document, score) in enumerate(ranking, start=1):
            share = (score - worst) / (best - worst) if best > worst else 1.0
            total[document] = total.get(document, 0.0) + (1 / (FIRST + rank) if setting.fuse == "rank" else share)
    order = sorted(total, key=lambda document: -total[document])[: setting.top_k]
    scores = separate(np.array([total[document] for document in order], np.float32))
    return [(document, float(score)) for document, score in zip(order, scores, strict=True)]


def rank_words(
    words: Words,
    text: str,
    setting: Setting,
    documents: Store | None = None,
    vectors: NDArray[np.float32] | None = None,
    step: Step = unmeasured,
) -> list[tuple[str, float]]:
    """One text to (document id, score), re-ranked by MaxSim where `setting` says so; `check_order` must hold then."""
    with step("search"):
        numbers, scores = words.numbers(text, setting.depth)
    if setting.rerank is None or documents is None or vectors is None:
        found = zip(numbers[: setting.top_k], separate(scores[: setting.top_k]), strict=True)
        return [(words.ids[n], float(s)) for n, s in found]
    with step("re-rank"):
        depth = setting if len(vectors) else replace(setting, rerank=None)
        return finish((numbers, scores), documents, vectors, None, depth)
