"""Every cell of an experiment, composed and planned under every training seed; nothing runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from xtrrep import config as configs
from xtrrep import pipeline
from xtrrep.config import Config
from xtrrep.console import XtrrepError, progress
from xtrrep.experiments.analysis import AnalysisPlan, plan_analysis
from xtrrep.experiments.cell import Cell, Overrides, as_texts, compose_cell
from xtrrep.experiments.definition import (
    Column,
    Comparison,
    Experiment,
    Row,
    cell_overrides,
    check_overrides,
)
from xtrrep.experiments.schema import QPS, STAGE_OF
from xtrrep.plan import preflight

SHOWN = 50  # cells from which on planning them is shown

CellKey = tuple[str, str, int]  # row, column, number of the training seed
AnalysisKey = tuple[str, int]  # id of the comparison, "" for readings; number of the training seed


@dataclass
class Plans:
    """What is to run, and in words why the rest cannot."""

    cells: dict[CellKey, pipeline.Plan] = field(default_factory=dict)
    analyses: dict[AnalysisKey, AnalysisPlan] = field(default_factory=dict)
    missing: dict[CellKey, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)  # comparisons (or "" for readings) that cannot run

    def all(self) -> list[pipeline.Plan]:
        """Every plan, those of the analyses' cells included."""
        return [*self.cells.values(), *(plan for whole in self.analyses.values() for plan in whole.plans)]

    def reasons(self) -> list[str]:
        """Why cells and comparisons cannot run, each reason once."""
        told = [f"{', '.join(filter(None, key[:2]))}: {reason}" for key, reason in self.missing.items()]
        told += [f"{name}: {reason}" if name else reason for name, reason in self.blocked.items()]
        return list(dict.fromkeys(told))


def columns_of(experiment: Experiment) -> tuple[Column, ...]:
    """The columns; for cells without columns one, on the collection that the overrides name."""
    return experiment.columns or (Column("", None, ""),)


def _needed(experiment: Experiment, row: Row, column: Column) -> tuple[str, ...]:
    """The stages that a cell must reach, by what is read of it; none where nothing is."""
    if column.name:
        return ("latency",) if column.measure == QPS else ("evaluate",)
    read = reads_of(experiment, row)
    return tuple(sorted({"latency" if STAGE_OF.get(value) == "latency" else "evaluate" for value in read}))


def reads_of(experiment: Experiment, row: Row) -> list[str]:
    """What the comparisons read of a cell without columns."""
    return list(
        dict.fromkeys(
            comparison.value
            for comparison in experiment.comparisons
            if comparison.analysis is None and row.name in cells_of(experiment, comparison)
        )
    )


def cells_of(experiment: Experiment, comparison: Comparison) -> list[str]:
    names = (*comparison.plus, *comparison.minus)
    return list(dict.fromkeys(cell for name in names for cell in experiment.members(name)))


def base_config(experiment: Experiment, overrides: Overrides) -> Config:
    """What the command line says, composed: the collection and scale of cells without columns."""
    return configs.compose(as_texts({**experiment.overrides, "scale": experiment.scale, **overrides}))


def cell_of(experiment: Experiment, row: Row, column: Column, overrides: Overrides) -> Cell:
    """The cell of a row on a column. Raises UsageError and DataError as `config.compose`."""
    own = cell_overrides(experiment, row, column, overrides)
    until = _needed(experiment, row, column)
    cell = compose_cell(", ".join(filter(None, (row.name, column.name))), own, until)
    measures = list(experiment.measures) if not column.name else [] if column.measure == QPS else [column.measure]
    if measures:
        cell = replace(cell, config=replace(cell.config, data=replace(cell.config.data, measures=measures)))
    return cell


def plan(experiment: Experiment, overrides: Overrides, *, require: bool = False) -> Plans:
    """Every cell and analysis, planned under every training seed. With `require`, what this machine lacks is missing.

    Raises UsageError for an override of what the experiment sets itself.
    """
    check_overrides(experiment, overrides)
    plans = Plans()
    blocked = {c.id: reason for c in experiment.comparisons if (reason := _blocked(experiment, c, overrides))}
    running = replace(experiment, comparisons=tuple(c for c in experiment.comparisons if c.id not in blocked))
    plans.blocked |= blocked
    asked = [
        (row, column)
        for row in running.rows
        for column in (columns_of(running) if row.overrides is not None else ())
        if _needed(running, row, column)
    ]
    seeds: Sequence[int | None] = experiment.seeds or (None,)
    # Composing a config takes a tenth of a second: over a few dozen cells a person wants to see it.
    with progress(len(asked), f"plan {experiment.name}", "cell") if len(asked) >= SHOWN else nullcontext() as bar:
        for row, column in asked:
            for number, seed in enumerate(seeds):
                key = (row.name, column.name, number)
                try:
                    made = cell_of(running, row, column, overrides).with_seed(seed).plan()
                    if require:
                        preflight.require([made])
                    plans.cells[key] = made
                except XtrrepError as error:
                    plans.missing[key] = str(error)
            if bar is not None:
                bar.update(1)
    _plan_analyses(running, overrides, seeds, plans, require=require)
    return plans


def _plan_analyses(
    experiment: Experiment, overrides: Overrides, seeds: Sequence[int | None], plans: Plans, *, require: bool
) -> None:
    wanted: dict[str, Overrides] = {}
    if experiment.analysis is not None:
        wanted[""] = {"analyze.name": experiment.analysis, **experiment.overrides}
    for comparison in experiment.comparisons:
        if comparison.analysis is not None:
            models = ",".join(sorted({*comparison.plus, *comparison.minus}))
            own = {"analyze.name": comparison.analysis, "analyze.models": f"[{models}]", "index": "exact"}
            shared = {key: value for key, value in experiment.overrides.items() if key.partition(".")[0] != "index"}
            wanted[comparison.id] = {**shared, **own, **comparison.overrides}
    for name, own in wanted.items():
        try:
            made = {
                (name, number): plan_analysis({**own, "scale": experiment.scale, **overrides}, seed)
                for number, seed in enumerate(seeds)
            }
            if require:
                preflight.require([part for whole in made.values() for part in whole.plans])
            plans.analyses |= made
        except XtrrepError as error:
            plans.blocked[name] = str(error)


def _blocked(experiment: Experiment, comparison: Comparison, overrides: Overrides) -> str:
    """Why a comparison does not run, before anything is planned; nothing where nothing is known to stand in its way."""
    if comparison.needs:
        here = {"scale": experiment.scale, "data": base_config(experiment, overrides).data.id}
        for key, value in comparison.needs.items():
            if here[key] != value:
                return f"needs {key}={value}: {comparison.why}"
    return "" if comparison.plus else comparison.why
