"""How peaked a model's token scores are: every query token's best corpus tokens, pooled, the study's Figure 3.

docs/protocol.md 5: all query tokens, the expansion's included, against all tokens of the corpus, their best 1,000
each. Searched exactly, and by the engine of `index=` beside it where that is another token engine: the difference is
what its quantisation and its unsearched parts do to the scores.

units.csv has by query the mean and the standard deviation of its own scores, and `sd`, its part in the table's sd of
all scores together: what the pooled sd would change to first order if that query weighed a little more (the
infinitesimal jackknife). Its mean over queries is the table's sd, so a claim on it is about Figure 3's own width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.config import Config
from xtrrep.console import UsageError
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
from xtrrep.model.encoder import device_of
from xtrrep.report.figure import score_density
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import Place, TokenEngine, engine_of
from xtrrep.retrieval.engines.files import open_index
from xtrrep.retrieval.token_hits import SAMPLE, SEED, Pool, pooled, searched
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    import pandas

EXACT = "exact"
PERCENTILES = (5, 50, 95)
GRID = 400  # points of a density
# No kernel is narrower than one step of a half-precision number just below 1: vectors are stored no finer.
LEAST_WIDTH = 2.0**-11


def cells(cfg: Config) -> list[Cell]:
    """Every model by exact search, and by another token engine beside it. Raises UsageError for other engines."""
    name = str(cfg.index["engine"])
    if not isinstance(engine_of(cfg.index), TokenEngine):
        raise UsageError(f"{name} gives no token scores to look at", hint="--index exact, or --index scann")
    found = []
    for model, words in models_of(cfg).items():
        found.append(vector_cell(model, EXACT, (*words, "index=exact")))
        if name != EXACT:
            found.append(vector_cell(model, name, words))
    return found


def parts(pool: Pool) -> NDArray[np.float64]:
    """(Q,) each query's part in the pooled standard deviation; their mean is that deviation. 0 / 0 counts as 0.

    With s the pooled deviation and m the pooled mean, a query with a share w of all scores (1 for an even one), mean
    m_q and deviation s_q has s + w ((s_q^2 + (m_q - m)^2) - s^2) / 2s.
    """
    count, mean, deviation = pool.by_query.T
    share = count * len(count) / pool.count
    own = np.where(count > 0, deviation**2 + (mean - pool.mean) ** 2, 0.0)
    out: NDArray[np.float64] = pool.deviation + share * (own - pool.deviation**2) / (2 * pool.deviation or 1.0)
    return out


def density(sample: NDArray[np.float32], points: int = GRID) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A Gaussian kernel density at `points` scores, three kernel widths beyond the sample on either side.

    Scott's width, n^(-1/5) standard deviations (Scott 1992; what scipy's gaussian_kde takes), at least LEAST_WIDTH.
    """
    scores = sample.astype(np.float64)
    spread = float(scores.std(ddof=1)) if len(scores) > 1 else 0.0
    width = max(spread * len(scores) ** -0.2, LEAST_WIDTH)
    grid = np.linspace(scores.min() - 3 * width, scores.max() + 3 * width, points)
    heights = np.array([np.exp(-0.5 * ((scores - at) / width) ** 2).mean() for at in grid])
    return grid, heights / (width * math.sqrt(2 * math.pi))


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt; units.csv; density.csv; figure3.png, .svg, .pdf."""
    place = Place(device_of(cfg.machine.device), cfg.machine.threads)
    rows: list[list[object]] = []
    units: list[list[object]] = []
    points: list[list[object]] = []
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for cell in scores:
        documents, queries = Store.open(folders[cell]["documents"]), Store.open(folders[cell]["queries"])
        index = {"engine": EXACT} if cell.engine == EXACT else cfg.index
        searcher = open_index(folders[cell]["index"], documents, index, place)
        batch = max(1, cfg.machine.query_batch * int(queries.lengths.max(initial=1)))
        pool = pooled(searched(searcher, queries, VECTOR_K_PRIME, batch), len(queries))
        slots = queries.tokens * min(VECTOR_K_PRIME, documents.tokens)
        row: list[object] = [cell.model, cell.engine, pool.count, 1 - pool.count / slots, pool.mean, pool.deviation]
        rows.append(row + [float(value) for value in np.percentile(pool.sample, PERCENTILES)])
        own = zip(queries.ids, pool.by_query.tolist(), parts(pool).tolist(), strict=True)
        for query, (count, *moments), part in own:
            units.append([cell.model, cell.engine, query, int(count), *(moments if count else (None, None)), part])
        curve = np.stack(density(pool.sample), axis=1).tolist()
        points += [[cell.model, cell.engine, x, y] for x, y in curve]
        panels.setdefault(cell.engine, {})[cell.model] = [(x, y) for x, y in curve]
    columns = ["model", "engine", "scores", "empty slots", "mean", "sd", *(f"p{at}" for at in PERCENTILES)]
    title = f"Token scores on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}"
    table = Table(
        title,
        columns,
        rows,
        [
            f"The {VECTOR_K_PRIME:,} best corpus tokens of every query token, expansion tokens included, pooled over "
            f"{len(next(iter(scores.values())))} queries. Scores are the engine's own (scann's are quantised).",
            f"mean and sd over all scores; percentiles and density over at most {SAMPLE:,} of them (seed {SEED}). "
            "empty slots: the share that the search could not fill; they are left out.",
            "Density: Gaussian kernel, Scott's width.",
            last_note(cfg, runs),
        ],
    )
    table.save(out / "table")
    Table("", ["model", "engine", "unit", "scores", "mean", "own sd", "sd"], units).save_csv(out / UNITS)
    Table("", ["model", "engine", "score", "density"], points).save_csv(out / "density.csv")
    score_density(panels, title, out / "figure3")
    return {"cells": len(scores), "queries": len(next(iter(scores.values()))), "k_prime": VECTOR_K_PRIME}


analyses.register("distribution", "the scores of the 1,000 best tokens of every query token (Figure 3)")(
    Analysis(cells, make, units="queries", schema=2)
)
