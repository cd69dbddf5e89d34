"""What XTR gives up by not gathering: its ranking against the same candidates re-ranked by exact MaxSim.

docs/protocol.md 7: the study finds 0.0 nDCG@10 and +0.1 Recall@100. Candidates are the same at every depth; below
the depth they keep XTR's order, so a depth of 10 cannot change Recall@100.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep import artifacts
from xtrrep.config import Config
from xtrrep.console import UsageError
from xtrrep.experiments.analyses import (
    Analysis,
    Cell,
    analyses,
    column_of,
    difference,
    difference_columns,
    difference_note,
    last_note,
    models_of,
    require_token_engine,
)
from xtrrep.measure.evaluate import canonical
from xtrrep.report.table import Table

if TYPE_CHECKING:
    import pandas

NONE = "none"
DEPTHS = {NONE: "null", "10": "10", "100": "100", "all": "1000000000"}  # the last: more than any collection holds
MEASURES = ("nDCG@10", "Recall@100")


def cells(cfg: Config) -> list[Cell]:
    """Every model's XTR ranking as it is, and re-ranked to every depth.

    Raises UsageError for an engine that scores by itself, and where the collection lacks a measure.
    """
    require_token_engine(cfg)
    measured = set(map(canonical, cfg.data.measures))
    if not measured >= set(map(canonical, MEASURES)):
        hint = f"'data.measures=[{','.join(MEASURES)}]'"
        raise UsageError(
            f"re-ranking is judged by {' and '.join(MEASURES)}, and data.measures={cfg.data.measures}", hint=hint
        )
    k_prime = cfg.retrieve.k_prime or cfg.retrieve.k_prime_xtr
    own = ("retrieve.scoring=xtr", f"retrieve.k_prime={k_prime}", "retrieve.from_run=null")
    return [
        Cell(model, "xtr", k_prime, (*words, *own, f"retrieve.rerank={depth}"), setting=name)
        for model, words in models_of(cfg).items()
        for name, depth in DEPTHS.items()
    ]


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt."""
    bases = {cell.model: frame for cell, frame in scores.items() if cell.setting == NONE}
    columns = ["model", "k'", "candidates", "re-ranked"]
    for measure in MEASURES:
        columns += [measure, *difference_columns(measure, "XTR")]
    rows: list[list[object]] = []
    for cell, frame in scores.items():
        candidates = artifacts.read_manifest(folders[cell]["retrieve"])["facts"]["mean_candidates"]
        row: list[object] = [cell.model, cell.k_prime, candidates, cell.setting]
        for measure in MEASURES:
            values = frame[column_of(frame, measure)]
            base = bases[cell.model][column_of(frame, measure)]
            row.append(float(values.mean()))
            row += [None] * 3 if cell.setting == NONE else difference(cfg, values, base)
        rows.append(row)
    table = Table(
        f"XTR re-ranked on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}, index={cfg.index['engine']}",
        columns,
        rows,
        [
            f"{len(next(iter(scores.values())))} queries, imputation={cfg.retrieve.imputation}. re-ranked: so many of "
            "XTR's best by exact MaxSim, the rest below in XTR's order. candidates: documents with a hit, mean.",
            "- XTR: against the same model's XTR ranking as it is. " + difference_note(cfg),
            last_note(cfg, runs),
        ],
    )
    table.save(out / "table")
    return {"cells": len(scores), "queries": len(next(iter(scores.values())))}


analyses.register("rerank", "XTR's ranking against its candidates re-ranked by exact MaxSim, by depth")(
    Analysis(cells, make)
)
