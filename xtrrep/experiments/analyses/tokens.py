"""What the retrieved tokens are: of a relevant document, or the query's own word, rank by rank: the study's Figure 4.

docs/protocol.md 5: k' = 1,000 by exact search, expansion tokens removed from the queries. *Gold* at rank r: the
token's document is relevant (grade above 0). *Lexical* at rank r: it has the query token's vocabulary id. Both are
means over all (query, token) pairs, [CLS] and [SEP] among them.

units.csv has both by query, over its own tokens and all ranks. A claim's effect is the mean of these over queries; the
table's value is the mean over tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.config import Config
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
from xtrrep.pipeline.stages.tokens import check_words
from xtrrep.report.figure import token_rates
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import Place
from xtrrep.retrieval.engines.files import open_index
from xtrrep.retrieval.token_hits import RANKS, rates
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    import pandas

SHOWN = (1, 10, 100, 300)
PAST = 0.75  # weight of what came before in the moving average


def cells(cfg: Config) -> list[Cell]:
    """Every model by exact search. Raises UsageError where documents have no vocabulary ids to compare."""
    check_words(cfg)
    return [vector_cell(model, "exact", (*words, "index=exact")) for model, words in models_of(cfg).items()]


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
