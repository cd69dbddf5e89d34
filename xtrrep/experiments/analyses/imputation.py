"""What a missing hit should score: every registered imputation under XTR scoring, at every k', the study's Table 2.

All of a model's rows come from one token search. The deeper it is the less is imputed, so the smallest k' says most.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep import artifacts
from xtrrep.config import Config
from xtrrep.experiments.analyses import (
    NOTHING_AFTER,
    Analysis,
    Cell,
    analyses,
    column_of,
    difference,
    difference_columns,
    difference_note,
    last_note,
    models_of,
    require_measure,
    require_token_engine,
)
from xtrrep.report.figure import bars as draw_bars
from xtrrep.report.table import Table
from xtrrep.retrieval.imputation import imputations

if TYPE_CHECKING:
    import pandas

BASE = "min"  # XTR's own


def cells(cfg: Config) -> list[Cell]:
    """Every model under XTR scoring, whatever it was trained for, at every k', with every imputation.

    Raises UsageError for an engine that scores by itself.
    """
    require_measure(cfg)
    require_token_engine(cfg)
    found = []
    for model, words in models_of(cfg).items():
        for k_prime in cfg.analyze.k_primes:
            for name in imputations.entries():
                own = ("retrieve.scoring=xtr", f"retrieve.k_prime={k_prime}", f"retrieve.imputation={name}")
                found.append(Cell(model, "xtr", k_prime, (*words, *own, *NOTHING_AFTER), setting=name))
    return found


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt; imputation.png, .svg, .pdf of its rows at the smallest k'."""
    measure = column_of(next(iter(scores.values())), cfg.analyze.measure)
    bases = {(cell.model, cell.k_prime): frame[measure] for cell, frame in scores.items() if cell.setting == BASE}
    smallest = min(cell.k_prime for cell in scores)
    rows: list[list[object]] = []
    bars: dict[str, dict[str, float]] = {}
    for cell, frame in scores.items():
        value = float(frame[measure].mean())
        imputed = artifacts.read_manifest(folders[cell]["retrieve"])["facts"]["mean_imputed_cells"]
        row: list[object] = [cell.model, cell.k_prime, cell.setting, imputed, value]
        base = bases[cell.model, cell.k_prime]
        rows.append(row + ([None] * 3 if cell.setting == BASE else difference(cfg, frame[measure], base)))
        if cell.k_prime == smallest:
            bars.setdefault(cell.model, {})[cell.setting] = value
    what, how = f"Imputations on {cfg.data.id}", f"setup {cfg.setup}, scale={cfg.scale}, index={cfg.index['engine']}"
    table = Table(
        f"{what}, {how}",
        ["model", "k'", "imputation", "imputed cells", measure, *difference_columns(measure, BASE)],
        rows,
        [
            f"{len(next(iter(scores.values())))} queries under XTR scoring, one token search a model. imputed cells: "
            "(query token, candidate) pairs without a hit, mean over queries.",
            difference_note(cfg),
            last_note(cfg, runs),
        ],
    )
    table.save(out / "table")
    draw_bars(bars, measure, f"{what}\n{how}, k'={smallest:,}", out / "imputation")  # one model's bars are narrow
    return {"cells": len(scores), "queries": len(next(iter(scores.values()))), "measure": measure}


analyses.register("imputation", "what a missing hit scores: every imputation at every k', against min (Table 2)")(
    Analysis(cells, make)
)
