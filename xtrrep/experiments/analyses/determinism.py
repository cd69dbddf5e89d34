"""How much of a PLAID ranking is the seed of its k-means: `index.seed` 42, 42 again, 43 and 44.

42 again is the same artifact, found by its fingerprint and not built twice, so its row says that identity holds, not
that a second build would come out the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtrrep import artifacts
from xtrrep.config import Config
from xtrrep.experiments.analyses import (
    PLAID,
    Analysis,
    Cell,
    analyses,
    column_of,
    difference,
    difference_columns,
    difference_note,
    last_note,
    models_of,
    plaid_words,
    require_measure,
)
from xtrrep.experiments.analyses.engines import DEPTHS, overlap
from xtrrep.measure import run_file
from xtrrep.report.table import Table

if TYPE_CHECKING:
    import pandas

FIRST = "42"
SEEDS = {FIRST: 42, "42 again": 42, "43": 43, "44": 44}


def cells(cfg: Config) -> list[Cell]:
    """Every model's PLAID index under every seed. Raises UsageError where `index=` says another engine."""
    require_measure(cfg)
    own = plaid_words(cfg)
    return [
        Cell(model, "colbert", 0, (*words, *own, f"index.seed={seed}"), engine=PLAID, setting=name)
        for model, words in models_of(cfg).items()
        for name, seed in SEEDS.items()
    ]


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt: a row a seed; spread.csv, .md, .txt: a row a model, over the different seeds."""
    measure = column_of(next(iter(scores.values())), cfg.analyze.measure)
    rankings = {cell: run_file.read(folders[cell]["retrieve"] / "run.trec") for cell in scores}
    indexes = {cell: str(artifacts.read_manifest(folders[cell]["index"])["fingerprint"]) for cell in scores}
    rows: list[list[object]] = []
    spread: list[list[object]] = []
    for model in dict.fromkeys(cell.model for cell in scores):
        own = {cell.setting: cell for cell in scores if cell.model == model}
        first = own[FIRST]
        for setting, cell in own.items():
            row: list[object] = [model, setting, indexes[cell], float(scores[cell][measure].mean())]
            row += [None] * 3 if cell is first else difference(cfg, scores[cell][measure], scores[first][measure])
            rows.append(row + [overlap(rankings[cell], rankings[first], depth) for depth in DEPTHS])
        different = list({indexes[cell]: cell for cell in own.values()}.values())
        means = np.array([scores[cell][measure].mean() for cell in different])
        pairs = [
            float(np.mean([overlap(rankings[a], rankings[b], depth) for a, b in combinations(different, 2)]))
            for depth in DEPTHS
        ]
        spread.append([model, len(different), *map(float, (means.mean(), means.std(ddof=1), np.ptp(means))), *pairs])
    overlaps = [f"overlap@{depth}" for depth in DEPTHS]
    title = f"PLAID under several seeds on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}"
    notes = [
        f"{len(next(iter(scores.values())))} queries, index.seed={', '.join(SEEDS)}. overlap@k: share of the first k "
        "documents of one ranking among the first k of another, mean over queries.",
        "42 again has the index of 42: the same config is the same artifact, and nothing was built twice. Whether a "
        "second build gives the same files is not looked at.",
    ]
    Table(
        title,
        ["model", "seed", "index", measure, *difference_columns(measure, "seed 42")]
        + [f"{name} with seed 42" for name in overlaps],
        rows,
        [*notes, difference_note(cfg), last_note(cfg, runs)],
    ).save(out / "table")
    Table(
        f"{title}: spread",
        ["model", "indexes", f"{measure}, mean", f"{measure}, sd", f"{measure}, range", *overlaps],
        spread,
        [*notes, "Over different indexes only; overlaps are means over their pairs.", last_note(cfg, runs)],
    ).save(out / "spread")
    return {"cells": len(scores), "queries": len(next(iter(scores.values()))), "measure": measure}


analyses.register("determinism", "PLAID built with three seeds: overlap of the rankings, spread of the quality")(
    Analysis(cells, make)
)
