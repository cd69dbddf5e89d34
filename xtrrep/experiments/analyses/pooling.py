"""What pooling document tokens saves and costs: `encode.pool_factor` 1 to 4 (Clavié et al. 2024).

Every model under its own scoring on the engine of `index=`. k' is one for all factors, so under a token engine a
pooled collection is searched to a larger share of its vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep import artifacts
from xtrrep.config import Config, Source
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
    require_measure,
)
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import TextEngine, engine_of

if TYPE_CHECKING:
    import pandas

FACTORS = (1, 2, 3, 4)
COLUMNS = ("model", "pool factor", "tokens", "kept", "store, bytes", "index, bytes")


def cells(cfg: Config) -> list[Cell]:
    """Every model at every factor. Raises UsageError where nothing is encoded, and so nothing pooled."""
    require_measure(cfg)
    if cfg.model.source is Source.vectors:
        raise UsageError("imported vectors are not encoded, and so not pooled", hint="model.source=trained")
    if isinstance(engine_of(cfg.index), TextEngine) or cfg.retrieve.from_run is not None:
        raise UsageError("pooling needs an engine that searches vectors", hint="--index exact")
    return [
        Cell(model, cfg.retrieve.scoring.value, 0, (*words, f"encode.pool_factor={factor}"), setting=str(factor))
        for model, words in models_of(cfg).items()
        for factor in FACTORS
    ]


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt."""
    measure = column_of(next(iter(scores.values())), cfg.analyze.measure)
    unpooled = {cell.model: cell for cell in scores if cell.setting == "1"}
    rows: list[list[object]] = []
    for cell, frame in scores.items():
        base = unpooled[cell.model]
        tokens, all_tokens = _tokens(folders[cell]), _tokens(folders[base])
        row: list[object] = [cell.model, int(cell.setting), tokens, tokens / all_tokens]
        row += [_bytes(folders[cell]["documents"], "vectors/"), _bytes(folders[cell]["index"], "") or None]
        row.append(float(frame[measure].mean()))
        row += [None] * 3 if cell is base else difference(cfg, frame[measure], scores[base][measure])
        rows.append(row)
    table = Table(
        f"Pooling on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}, index={cfg.index['engine']}",
        [*COLUMNS, measure, *difference_columns(measure, "unpooled")],
        rows,
        [
            f"{len(next(iter(scores.values())))} queries. Document tokens are pooled, a document's first one kept; "
            "queries are not.",
            "store: the vectors as encoded, in half precision; index: the engine's own files (exact has none and "
            "searches the store).",
            difference_note(cfg),
            last_note(cfg, runs),
        ],
    )
    table.save(out / "table")
    return {"cells": len(scores), "queries": len(next(iter(scores.values()))), "measure": measure}


def _tokens(folders: Mapping[str, Path]) -> int:
    return int(artifacts.read_manifest(folders["documents"])["facts"]["tokens"])


def _bytes(folder: Path, below: str) -> int:
    """Size of an artifact's files whose path begins with `below`."""
    files = artifacts.read_manifest(folder)["files"]
    return sum(entry["bytes"] for name, entry in files.items() if name.startswith(below))


analyses.register("pooling", "tokens, bytes and quality at encode.pool_factor 1 to 4")(Analysis(cells, make))
