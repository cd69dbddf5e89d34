"""What the retrieved tokens are: of a relevant document, or the query's own word, rank by rank: the study's Figure 4.

docs/protocol.md 5: k' = 1,000 by exact search, expansion tokens removed from the queries. *Gold* at rank r: the
token's document is relevant (grade above 0). *Lexical* at rank r: it has the query token's vocabulary id. Both are
means over all (query, token) pairs, [CLS] and [SEP] among them.

units.csv has both by query, over its own tokens and all ranks. A claim's effect is the mean of these over queries; the
table's value is the mean over tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.config import Config, Source
from xtrrep.console import DataError, UsageError, progress
from xtrrep.data import open_collection
from xtrrep.experiments.analyses import (
    UNITS,
    VECTOR_K_PRIME,
    Analysis,
    Cell,
    analyses,
    last_note,
    models_of,
    vector_cell,
)
from xtrrep.report.figure import token_rates
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import Place, TokenSearcher
from xtrrep.retrieval.engines.files import open_index
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    import pandas

RANKS = 300  # how deep the curves go
SHOWN = (1, 10, 100, 300)
PAST = 0.75  # weight of what came before in the moving average


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


def cells(cfg: Config) -> list[Cell]:
    """Every model by exact search. Raises UsageError where documents have no vocabulary ids to compare."""
    if cfg.model.source is Source.vectors:
        raise UsageError(
            "this analysis compares vocabulary ids, and imported vectors (model.source=vectors) have none",
            hint="model.source=trained",
        )
    if cfg.encode.pool_factor > 1:
        raise UsageError(
            f"this analysis is of single tokens: with encode.pool_factor={cfg.encode.pool_factor} a vector is several",
            hint="encode.pool_factor=1",
        )
    return [vector_cell(model, "exact", (*words, "index=exact")) for model, words in models_of(cfg).items()]


def expansion_tokens(queries: Store) -> NDArray[np.bool_]:
    """(tokens,) which vectors of a query store stand for expansion, not for text.

    The stored ids alone say it, whatever model they came from. Expansion fills every query up to one length with one id
    ([MASK], or what the model's settings name), so queries of the store's least length are filled ones wherever there
    is expansion, and end in that id two or more times over. Text does not: it ends in [SEP] or </s>, once. In queries
    of that length the unbroken run of that id at the end is expansion. So a query cut to its length keeps all its
    tokens, and a [MASK] that somebody typed stands before [SEP] and is text. Two limits: where no query of a collection
    has more than one place to fill, that place counts as text; and a tokenizer that ends texts in the very id that
    fills them loses that one token.
    """
    expansion = np.zeros(queries.tokens, bool)
    least = int(queries.lengths.min()) if len(queries) else 0
    ids = queries.vocabulary_ids(np.arange(queries.tokens))
    ends = queries.offsets[1:][queries.lengths == least]
    runs = [_run_at_end(ids[end - least : end]) for end in ends]
    repeated = Counter(int(ids[end - 1]) for end, run in zip(ends, runs, strict=True) if run > 1)
    if repeated:
        ((filler, _),) = repeated.most_common(1)
        for end, run in zip(ends, runs, strict=True):
            if ids[end - 1] == filler:
                expansion[end - run : end] = True
    return expansion


def _run_at_end(ids: NDArray[np.int32]) -> int:
    """How many ids at the end are one and the same."""
    others = np.flatnonzero(ids != ids[-1:])
    return len(ids) - (int(others[-1]) + 1 if len(others) else 0)


def rates(
    searcher: TokenSearcher,
    documents: Store,
    queries: Store,
    qrels: Mapping[str, Mapping[str, int]],
    *,
    k_prime: int = VECTOR_K_PRIME,
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


def smoothed(raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exponential moving average of (R,) rates, which begins with the first one."""
    out = raw.copy()
    for rank in range(1, len(out)):
        out[rank] = PAST * out[rank - 1] + (1 - PAST) * raw[rank]
    return out


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt; units.csv; rates.csv, raw and smoothed; figure4.png, .svg, .pdf of the smoothed rates."""
    rows: list[list[object]] = []
    units: list[list[object]] = []
    points: list[list[object]] = []
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {"gold": {}, "lexical": {}}
    for cell in scores:
        documents, queries = Store.open(folders[cell]["documents"]), Store.open(folders[cell]["queries"])
        searcher = open_index(folders[cell]["index"], documents, {"engine": cell.engine}, Place())
        qrels = open_collection(cfg.data, folders[cell]["data"]).qrels
        batch = max(1, cfg.machine.query_batch * int(queries.lengths.max(initial=1)))
        found = rates(searcher, documents, queries, qrels, rows=batch)
        row: list[object] = [cell.model, found.tokens, found.removed]
        for name, raw in (("gold", found.gold), ("lexical", found.lexical)):
            row += [float(raw[rank - 1]) if rank <= len(raw) else None for rank in SHOWN]
            row.append(float(raw.mean()))
            panels[name][cell.model] = list(enumerate(smoothed(raw).tolist(), start=1))
        rows.append(row)
        shares = zip(queries.ids, found.by_query.tolist(), strict=True)
        units += [[cell.model, query, *own] for query, own in shares if not np.isnan(own).any()]
        curves = (found.gold, smoothed(found.gold), found.lexical, smoothed(found.lexical))
        points += [[cell.model, rank, *map(float, at)] for rank, at in enumerate(zip(*curves, strict=True), start=1)]
    columns = ["model", "query tokens", "removed"]
    columns += [f"{name}@{at}" for name in panels for at in (*SHOWN, "mean")]
    title = f"Retrieved tokens on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}"
    table = Table(
        title,
        columns,
        rows,
        [
            f"Exact search at k'={VECTOR_K_PRIME:,}, {len(next(iter(scores.values())))} queries. removed: expansion "
            "tokens, told by their stored ids; [CLS] and [SEP] count.",
            "gold: the token's document is relevant. lexical: the token has the query token's vocabulary id. Means "
            f"over (query, token), not smoothed; mean: over ranks 1 to {RANKS}.",
            f"The figure's curves are exponential moving averages, {PAST} on the past.",
            last_note(cfg, runs),
        ],
    )
    table.save(out / "table")
    Table("", ["model", "unit", *(f"{name}@mean" for name in panels)], units).save_csv(out / UNITS)
    named = ["model", "rank", "gold", "gold smoothed", "lexical", "lexical smoothed"]
    Table("", named, points).save_csv(out / "rates.csv")
    token_rates(panels, title, out / "figure4")
    return {"cells": len(scores), "queries": len(next(iter(scores.values()))), "k_prime": VECTOR_K_PRIME}


analyses.register("tokens", "whether retrieved tokens are of relevant documents, or the query's own words (Figure 4)")(
    Analysis(cells, make, units="queries", schema=2)
)
