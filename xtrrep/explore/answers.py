"""Rankings for the page. One deep token search of a query serves every k', imputation and explanation of it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, UsageError
from xtrrep.data import open_collection
from xtrrep.explore.indexes import Indexed
from xtrrep.explore.state import K_PRIMES, Column
from xtrrep.pipeline.query import encode_typed
from xtrrep.pipeline.stages.searching import open_index, open_text_index
from xtrrep.pipeline.stages.vectors import encoder_of
from xtrrep.retrieval import explain as explaining
from xtrrep.retrieval.explain import WORD, Explanation
from xtrrep.retrieval.rank import rank
from xtrrep.retrieval.retrieve import HitSearch, MaximaSearch, Setting, host_search, rank_query
from xtrrep.retrieval.words import retrieve_text
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

SHOWN = 10  # documents a column
KEPT = 16  # searches kept, the last ones asked for

Value = TypeVar("Value")


@dataclass(frozen=True)
class Span:
    """A part of a document's text, and how similar the query token is that found it (0 to 1)."""

    start: int
    end: int
    strength: float


@dataclass(frozen=True)
class Passage:
    id: str
    score: float
    text: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A column's ranking. words: what was searched, in a sentence. seconds: of search, scoring and this list."""

    passages: tuple[Passage, ...]
    words: str
    seconds: float


@dataclass
class Session:
    """What is open: collections, stores, models, engines and the last searches. Its methods run one at a time."""

    found: Mapping[str, Indexed]
    _open: dict[Hashable, Any] = field(default_factory=dict)
    _searches: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def answer(self, query: str, column: Column) -> Answer:
        """The best documents of one column. Raises DataError as opening an index does."""
        with self._lock:
            begin = time.perf_counter()
            index = self.found[column.index]
            if index.is_text_engine:
                passages, words = self._ranked_by_words(query, index)
            else:
                passages, words = self._ranked(query, index, column)
            return Answer(tuple(passages), words, time.perf_counter() - begin)

    def explain(self, query: str, column: Column) -> Explanation:
        """Why `column.doc` scores what it scores. Of an engine that ranks documents, as exact token search sees it.

        Raises DataError for an unknown document and UsageError for an engine that ranks words.
        """
        with self._lock:
            index = self.found[column.index]
            if index.is_text_engine:
                raise UsageError(
                    f"{column.index} ranks words, and there are no vectors to compare",
                    hint="xtrrep explore --index exact",
                )
            store, encoder = self._store(index), self._encoder(index)
            if column.doc not in store.ids:
                raise DataError(f"no document {column.doc!r}", hint="open one of the list")
            number = store.ids.index(column.doc)
            vectors, ids = self._query(query, index)
            setting = self._setting(index, column)
            shown = replace(setting, scoring="xtr", imputation=column.imputation)
            search = self._search(query, index, shown)
            positions = np.arange(store.offsets[number], store.offsets[number + 1])
            return Explanation(
                query=query,
                document=column.doc,
                text=self._texts(index)[column.doc],
                engine=column.index if index.is_token_engine else f"exact, in place of {column.index}",
                setting=replace(setting, imputation=column.imputation),
                query_tokens=explaining.tokens_of(encoder.tokenizer, ids, encoder[0].query_expansion),
                document_tokens=explaining.tokens_of(encoder.tokenizer, store.vocabulary_ids(positions)),
                similarities=vectors @ store.vectors(number).astype(np.float32).T,
                evidence=explaining.contributions_of(search, store, vectors, number, shown),
            )

    # --- ranking --------------------------------------------------------------------------------------------------

    def _ranked_by_words(self, query: str, index: Indexed) -> tuple[list[Passage], str]:
        searcher = self._once(("text", index.name), lambda: open_text_index(index.cfg, index.plan.specs, index.folders))
        texts = self._texts(index)
        found = retrieve_text(searcher, list(texts), {"typed": query}, SHOWN, drop_self=False)
        passages = [Passage(name, score, texts[name]) for name, score in found.run["typed"]]
        return passages, "Scored by the words that query and document share."

    def _ranked(self, query: str, index: Indexed, column: Column) -> tuple[list[Passage], str]:
        store, setting = self._store(index), self._setting(index, column)
        vectors, _ = self._query(query, index)
        if not index.is_token_engine:
            own = replace(setting, k_prime=None)
            ranked = [
                (store.ids.index(name), score) for name, score in rank_query(self._searcher(index), store, vectors, own)
            ]
            words = "This engine ranks documents by itself. Marked is the best token for each word of the query."
            return [self._passage(query, index, *pair, None, setting) for pair in ranked], words
        search = self._search(query, index, setting)
        evidence = search.evidence(0, setting)
        (numbers, scores), counts = rank(evidence, setting, partial(search.maxsim, 0))
        pairs = zip(numbers[:SHOWN].tolist(), scores[:SHOWN].tolist(), strict=True)
        passages = [self._passage(query, index, *pair, search, setting) for pair in pairs]
        cells = (counts.candidates or 0) * len(vectors)
        imputed = (counts.imputed_cells or 0) / cells if cells else 0.0
        how = f"{imputed:.0%} of their token scores are imputed" if setting.scoring == "xtr" else "scored by MaxSim"
        words = f"{counts.candidates or 0:,} of {len(store):,} documents are candidates; {how}."
        return passages, words

    def _setting(self, index: Indexed, column: Column) -> Setting:
        scoring = column.scoring
        k_prime = min(column.k_prime, self._store(index).tokens)
        return Setting(scoring, k_prime, column.imputation if scoring == "xtr" else "none", SHOWN)

    def _search(self, query: str, index: Indexed, setting: Setting) -> HitSearch | MaximaSearch:
        """The query's token search at the largest k' of the slider; of a document engine's store an exact one."""
        key = (index.name, query, setting.scoring)
        if key not in self._searches:
            store, (vectors, _) = self._store(index), self._query(query, index)
            deepest = min(K_PRIMES[-1], store.tokens)
            # Where all tokens are retrieved an exhaustive search keeps no scores for a smaller k' unless it is asked.
            depths = dict.fromkeys((deepest, max(1, min(deepest, store.tokens - 1))))
            searcher = self._searcher(index) if index.is_token_engine else self._exact(index)
            settings = [replace(setting, k_prime=depth) for depth in depths]
            self._searches[key] = host_search(searcher, store, [vectors], settings)
        return self._kept(key)  # type: ignore[no-any-return]

    def _kept(self, key: Hashable) -> Any:
        self._searches.move_to_end(key)
        while len(self._searches) > KEPT:
            self._searches.popitem(last=False)
        return self._searches[key]

    # --- a passage ------------------------------------------------------------------------------------------------

    def _passage(self, query: str, index: Indexed, number: int, score: float, search: Any, setting: Setting) -> Passage:
        store = self._store(index)
        name = store.ids[number]
        text = self._texts(index)[name]
        vectors, ids = self._query(query, index)
        encoder = self._encoder(index)
        similarities = vectors @ store.vectors(number).astype(np.float32).T
        if search is None:
            marked = np.full_like(similarities, np.nan)
            best = similarities.argmax(axis=1)
            marked[np.arange(len(best)), best] = similarities.max(axis=1)
        else:
            marked = search.token_hits(0, setting, int(store.offsets[number]), similarities)
        tokens = explaining.tokens_of(encoder.tokenizer, ids, encoder[0].query_expansion)
        words = [t for t, token in enumerate(tokens) if token.kind == WORD]
        strength = np.nan_to_num(marked[words], nan=0.0).max(axis=0, initial=0.0)
        positions = np.arange(store.offsets[number], store.offsets[number + 1])
        places = token_places(encoder.tokenizer, text, store.vocabulary_ids(positions))
        spans = [Span(*place, float(s)) for place, s in zip(places, strength, strict=True) if place and s > 0]
        return Passage(name, score, text, tuple(spans))

    # --- what is opened once --------------------------------------------------------------------------------------

    def _once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key not in self._open:
            self._open[key] = make()
        value: Value = self._open[key]
        return value

    def _texts(self, index: Indexed) -> dict[str, str]:
        def read() -> dict[str, str]:
            return dict(open_collection(index.cfg.data, index.folders["data"]).documents())

        return self._once("texts", read)

    def _store(self, index: Indexed) -> Store:
        spec = index.plan.specs["documents"]
        return self._once(("store", index.model), lambda: Store.open(index.folders["documents"], spec.fingerprint))

    def _encoder(self, index: Indexed) -> MultiVectorEncoder:
        return self._once(("encoder", index.model), lambda: encoder_of(index.cfg, index.folders))

    def _searcher(self, index: Indexed) -> Any:
        return self._once(("index", index.name), lambda: open_index(index.cfg, index.plan.specs, index.folders))

    def _exact(self, index: Indexed) -> Any:
        from xtrrep.retrieval.engines.exact import Searcher

        return self._once(("exact", index.model), lambda: Searcher(self._store(index)))

    def _query(self, query: str, index: Indexed) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        key = ("query", index.model, query)
        if key not in self._searches:
            self._searches[key] = encode_typed(index.cfg, index.folders, self._encoder(index), query)
        return self._kept(key)  # type: ignore[no-any-return]


def token_places(tokenizer: Any, text: str, ids: NDArray[np.int32]) -> list[tuple[int, int] | None]:
    """Where each stored token stands in the text, None for one that is not there, such as a marker.

    The store skips some tokens (punctuation, say), so each is looked for behind the one before. A tokenizer without
    offsets gives no places.
    """
    if not getattr(tokenizer, "is_fast", False):
        return [None] * len(ids)
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False)
    known, offsets = list(read["input_ids"]), read["offset_mapping"]
    places: list[tuple[int, int] | None] = []
    at = 0
    for number in ids.tolist():
        try:
            found = known.index(number, at)
        except ValueError:
            places.append(None)
            continue
        places.append((int(offsets[found][0]), int(offsets[found][1])))
        at = found + 1
    return places
