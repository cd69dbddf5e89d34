"""What a measuring process opens to answer queries: an engine, and the words that a fusion searches beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xtrrep import artifacts
from xtrrep.console import UsageError
from xtrrep.retrieval.engines import Place, TextEngine, engine_of, split_params
from xtrrep.retrieval.engines.files import open_index
from xtrrep.retrieval.retrieve import Setting, Step, rank_query, retrieve, retrieve_documents, unmeasured
from xtrrep.retrieval.words import Words, fuse, fused, rank_words, retrieve_reranked, retrieve_text
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    from xtrrep.retrieval.latency import Job

BATCH = 16  # queries a token search in a call over all of them


@dataclass(frozen=True)
class Answer:
    """searcher: of vectors, or of words. words: beside it, where the setting makes two rankings one. texts: of the
    queries, where words are searched. documents, queries: None where no model takes part."""

    ids: Sequence[str]
    searcher: Any
    setting: Setting
    search: Mapping[str, Any]
    documents: Store | None = None
    queries: Store | None = None
    words: Words | None = None
    texts: Sequence[str] = ()

    def vectors(self, i: int) -> NDArray[np.float32] | None:
        return None if self.queries is None else self.queries.vectors(i).astype(np.float32)

    def one(self, i: int, vectors: NDArray[np.float32] | None, step: Step = unmeasured) -> list[tuple[str, float]]:
        """The ranking of query `i`, whose vectors have been read."""
        if isinstance(self.searcher, Words):
            ranking = rank_words(self.searcher, self.texts[i], self.setting, self.documents, vectors, step)
        elif self.documents is None or vectors is None:
            raise ValueError("an engine over vectors needs vectors")
        else:
            ranking = rank_query(self.searcher, self.documents, vectors, self.setting, step)
        if self.words is None:
            return ranking
        with step("words"):
            other = self.words.rank(self.texts[i], self.setting.top_k)
        with step("fusion"):
            return fused(ranking, other, self.setting)

    def all(self) -> None:
        """One call over all queries; within it a token engine gets BATCH at a time, for memory's sake."""
        texts = dict(zip(self.ids, self.texts, strict=True)) if self.texts else {}
        if self.documents is None or self.queries is None:
            words = self.searcher
            retrieve_text(words.searcher, words.ids, texts, self.setting.top_k, drop_self=self.setting.drop_self)
            return
        if isinstance(self.searcher, Words):
            outcome = retrieve_reranked(self.searcher, texts, self.documents, self.queries, self.setting)
        elif self.setting.k_prime is None:
            count = len(self.queries)
            outcome = retrieve_documents(self.searcher, self.documents, self.queries, self.setting, count)
        else:
            outcome = retrieve(self.searcher, self.documents, self.queries, [self.setting], BATCH)[self.setting]
        if self.words is not None:
            fuse(outcome, self.words, texts, self.setting)


def opened(job: Job) -> Answer:
    """Every file's hash compared first. Raises DataError where one is damaged or built otherwise."""
    place, setting = Place(job.device, job.threads), Setting(**job.setting)
    documents = Store.open(Path(job.documents), job.documents_fingerprint) if job.documents else None
    queries = Store.open(Path(job.queries), job.queries_fingerprint) if job.queries else None
    ids = list(job.texts) if queries is None else queries.ids
    texts = list(job.texts.values())
    names = [str(number) for number in range(job.collection)] if documents is None else documents.ids
    if isinstance(engine_of(job.engine), TextEngine):
        searcher: Any = _words(Path(job.index), job.index_fingerprint, job.engine, names, place)
        search: Mapping[str, Any] = {}
    elif documents is None:
        raise ValueError("an engine over vectors needs documents")
    else:
        searcher = open_index(Path(job.index), documents, job.engine, place, job.index_fingerprint)
        search = getattr(searcher, "settings", split_params(job.engine)[1])
    words = None
    if job.words:
        words = _words(Path(job.words), job.words_fingerprint, job.words_engine, names, place)
    return Answer(ids, searcher, setting, search, documents, queries, words, texts)


def _words(folder: Path, fingerprint: str, index: Mapping[str, Any], names: Sequence[str], place: Place) -> Words:
    engine = engine_of(index)
    if not isinstance(engine, TextEngine):
        raise UsageError(f"{index['engine']} searches no words", hint="index=bm25")
    artifacts.check(folder, fingerprint)
    return Words(engine.load(folder, place), names)
