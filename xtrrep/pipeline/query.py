"""One typed query against a built index: the best documents, or why one of them scores what it does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from xtrrep.artifacts import Folders
from xtrrep.config import Config, Source, Transform
from xtrrep.console import DataError, UsageError, say
from xtrrep.data import open_collection
from xtrrep.pipeline import Plan
from xtrrep.pipeline.identity import (
    GivenRun,
    answerer,
    device_named,
    engine_label,
    needs_model,
    precision_of,
    setting_of,
)
from xtrrep.pipeline.stages.searching import open_index, open_text_index, retrieve_needs, words_beside
from xtrrep.pipeline.stages.vectors import encoder_of
from xtrrep.retrieval.engines import TextEngine, TokenEngine
from xtrrep.retrieval.imputation import imputations
from xtrrep.retrieval.retrieve import rank_query
from xtrrep.retrieval.words import Words, check_order, fused, rank_words

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import MultiVectorEncoder

    from xtrrep.retrieval.explain import Explanation


def check_query(query: str) -> None:
    """Raise UsageError for a typed query that is blank or holds bytes that are no text."""
    if not query.strip():
        raise UsageError("the query has no words to search for", hint='xtrrep search "shortest path between two nodes"')
    try:
        query.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the query {query!r} holds bytes that are no text", hint="type it as UTF-8") from None


def searched(cfg: Config) -> list[str]:
    """The stages beside `index` that a typed query is answered from."""
    return [name for name in retrieve_needs(cfg) if name in ("documents", "words")]


def _check_searchable(cfg: Config) -> None:
    """Raise UsageError where a typed query cannot be answered: no encoder for it, or a run instead of an engine."""
    if isinstance(answerer(cfg), GivenRun):
        raise UsageError("retrieve.from_run holds its own queries: there is nothing to search", hint="xtrrep eval")
    if needs_model(cfg) and cfg.model.source is Source.vectors:
        raise UsageError(
            "imported vectors have no model to encode a typed query",
            hint="xtrrep.search of the Python API takes vectors",
        )


def encode_typed(
    cfg: Config, folders: Folders, encoder: MultiVectorEncoder, query: str
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A typed query's (T, H) vectors and (T,) vocabulary ids, rounded as a store's are."""
    from xtrrep.model.forward import tokenise
    from xtrrep.retrieval.explain import tokens_of
    from xtrrep.store.changed import saved
    from xtrrep.store.encode import encode_batch

    device = device_named(cfg.machine.device)
    precision = precision_of(cfg, cfg.encode.precision)
    cut = tokenise(encoder, [query], "query").cut
    if cut.texts:
        key = "data.n_query" if cfg.data.n_query else "model.n_query"
        say(
            f"  note: the query is longer than {key}={cut.limit} and was cut: "
            f"{cut.lost} of its {cut.tokens} tokens are not read"
        )
    ((vectors, ids),) = encode_batch(encoder, [("typed", query)], task="query", precision=precision, device=device)
    wide = vectors.astype("float32")
    if cfg.encode.transform is not Transform.none:
        wide = saved(folders["documents"])(vectors).astype("float16").astype("float32")
    if not cfg.retrieve.expansion:
        tokens = tokens_of(encoder.tokenizer, ids, encoder[0].query_expansion)
        kept = np.array([token.kind != "expansion" for token in tokens])
        wide, ids = wide[kept], ids[kept]
    return wide, ids


def search(p: Plan, folders: Folders, query: str) -> list[tuple[str, float, str]]:
    """The `retrieve.top_k` best documents for a typed query on a built index: (id, score, text), best first."""
    cfg, specs = p.cfg, p.specs
    _check_searchable(cfg)
    collection = open_collection(cfg.data, folders["data"])
    setting = replace(setting_of(cfg), drop_self=False)
    ids = [name for name, _ in collection.documents()]
    documents, vectors = None, None
    if needs_model(cfg):
        from xtrrep.store.encode import Store

        documents = Store.open(folders["documents"], specs["documents"].fingerprint)
        vectors, _ = encode_typed(cfg, folders, encoder_of(cfg, folders), query)
    if isinstance(answerer(cfg), TextEngine):
        if documents is not None:
            check_order(ids, documents)
        ranking = rank_words(Words(open_text_index(cfg, specs, folders), ids), query, setting, documents, vectors)
    else:
        ranking = rank_query(
            open_index(cfg, specs, folders), cast("Store", documents), cast("NDArray[np.float32]", vectors), setting
        )
    if setting.fuse is not None:
        ranking = fused(ranking, Words(words_beside(cfg, specs, folders), ids).rank(query, setting.top_k), setting)
    wanted = {name for name, _ in ranking}
    texts = {name: text for name, text in collection.documents() if name in wanted}
    return [(name, score, texts[name]) for name, score in ranking]


def check_explainable(cfg: Config) -> None:
    """Raise UsageError for an engine that retrieves no tokens, and where a typed query cannot be answered."""
    _check_searchable(cfg)
    if not isinstance(answerer(cfg), TokenEngine):
        raise UsageError(
            f"{engine_label(cfg)} ranks documents by itself and names no tokens: there is nothing to explain",
            hint="--index exact, or --index scann",
        )


def document_text(cfg: Config, folders: Folders, document: str) -> str:
    """A document's text, with the collection's `data` stage alone. Raises DataError where there is no such document."""
    first = None
    for name, text in open_collection(cfg.data, folders["data"]).documents():
        if name == document:
            return text
        first = first or name
    raise DataError(
        f"{cfg.data.id} has no document {document!r}; its ids look like {first!r}",
        hint="`xtrrep search` prints the ids of the best documents",
    )


def explain(p: Plan, folders: Folders, query: str, document: str) -> Explanation:
    """What each token of a typed query finds in one document of a built index, under XTR and under MaxSim.

    Raises UsageError as `check_explainable` and DataError as `document_text`.
    """
    from xtrrep.retrieval.explain import Explanation, at_smaller, contributions, next_document, tokens_of
    from xtrrep.store.encode import Store

    cfg, specs = p.cfg, p.specs
    check_explainable(cfg)
    text = document_text(cfg, folders, document)
    documents = Store.open(folders["documents"], specs["documents"].fingerprint)
    number = documents.ids.index(document)
    encoder = encoder_of(cfg, folders)
    vectors, ids = encode_typed(cfg, folders, encoder, query)
    # ColBERT imputes nothing: beside it stands what XTR would make of the same k' hits.
    setting = replace(setting_of(cfg), drop_self=False, imputation=cfg.retrieve.imputation)
    imputations.get(setting.imputation)
    searcher = open_index(cfg, specs, folders)
    return Explanation(
        query=query,
        document=document,
        text=text,
        engine=engine_label(cfg),
        setting=setting,
        query_tokens=tokens_of(encoder.tokenizer, ids, encoder[0].query_expansion),
        document_tokens=tokens_of(
            encoder.tokenizer,
            documents.vocabulary_ids(np.arange(documents.offsets[number], documents.offsets[number + 1])),
        ),
        similarities=vectors @ documents.vectors(number).astype("float32").T,
        evidence=contributions(searcher, documents, vectors, number, setting),
        smaller=at_smaller(searcher, documents, vectors, number, setting),
        rival=next_document(searcher, documents, vectors, number, setting),
    )
