"""Anisotropy against speed: how closely a model's document tokens lie together, and how fast PLAID and WARP search it.

The study explains the speed of XTR's models by their geometry, and says of one model that anisotropy alone does not
decide it. Here both stand side by side for every model: mean cosine and centred effective dimension as `geometry` has
them, and queries a second as the `latency` stage measures them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep import artifacts
from xtrrep.config import Config
from xtrrep.console import DataError, UsageError
from xtrrep.experiments.analyses import NOTHING_AFTER, PLAID, Analysis, Cell, analyses, last_note, models_of
from xtrrep.experiments.numbers import timing_note
from xtrrep.measure.geometry import DIRECTIONS, TOKENS, effective_dimension, mean_cosine, sampled
from xtrrep.report.figure import anisotropy_and_speed
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import engines
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    import pandas

ENGINES = (PLAID, "warp")
GEOMETRY = ("mean cosine", "effective dimension, centred")


def cells(cfg: Config) -> list[Cell]:
    """Every model under PLAID and WARP, each with its latency.

    The engine that `index=` names is taken as it was told, the other with the study's parameters and as many centroids.
    Raises UsageError where `index=` names a third one.
    """
    named = str(cfg.index["engine"])
    if named not in ("exact", *ENGINES):
        raise UsageError(f"this is an analysis of PLAID and WARP, and index={named} is neither", hint="--index plaid")
    partitions = cfg.index.get("num_partitions")
    bound = () if partitions is None else (f"index.num_partitions={partitions}",)
    found = []
    for model, words in models_of(cfg).items():
        for engine in ENGINES:
            chosen = () if engine == named else (f"index={engine}", *bound)
            scoring = engines.get(engine).scoring
            own = (f"retrieve.scoring={scoring}", "retrieve.k_prime=null", "retrieve.imputation=min", *NOTHING_AFTER)
            found.append(Cell(model, scoring, 0, (*words, *chosen, *own), ("latency",), engine))
    return found


def geometry_of(documents: Store) -> tuple[float, float]:
    """Mean cosine and centred effective dimension of a store's tokens. Raises DataError where it has no two."""
    _, units = sampled(documents)
    if len(units) < 2:
        raise DataError(
            f"{documents.folder} holds no two tokens to compare", hint="data=ID of a collection with words in it"
        )
    return mean_cosine(units), effective_dimension(units[:DIRECTIONS], centred=True)


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt; anisotropy_speed.png, .svg, .pdf of its rows."""
    models = dict.fromkeys(cell.model for cell in scores)
    stores = {cell.model: folders[cell]["documents"] for cell in scores}
    geometry = {model: geometry_of(Store.open(stores[model])) for model in models}
    timings = {cell: artifacts.read_manifest(folders[cell]["latency"])["facts"] for cell in scores}
    first = next(iter(models))
    base = {cell.engine: timing["qps"] for cell, timing in timings.items() if cell.model == first}
    rows: list[list[object]] = []
    panels: dict[str, dict[str, dict[str, tuple[float, float]]]] = {name: {} for name in GEOMETRY}
    for cell, timing in timings.items():
        speed = timing["qps"]
        rows.append([cell.model, cell.engine, *geometry[cell.model], speed, speed / base[cell.engine]])
        for name, value in zip(GEOMETRY, geometry[cell.model], strict=True):
            panels[name].setdefault(cell.engine, {})[cell.model] = (value, speed)
    title = f"Anisotropy and speed on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}"
    table = Table(
        title,
        ["model", "engine", *GEOMETRY, "queries/s", f"queries/s, {first} = 1"],
        rows,
        [
            f"mean cosine: of all pairs of {TOKENS:,} random document tokens. effective dimension: (sum s^2)^2 / "
            f"sum s^4 of the singular values s of {DIRECTIONS:,} of them, their mean taken off.",
            timing_note(folders[next(iter(timings))]),
            last_note(cfg, runs),
        ],
    )
    table.save(out / "table")
    anisotropy_and_speed(panels, title, out / "anisotropy_speed")
    return {"cells": len(scores), "queries": len(next(iter(scores.values())))}


analyses.register("anisotropy_speed", "mean cosine and effective dimension against queries a second (PLAID, WARP)")(
    Analysis(cells, make)
)
