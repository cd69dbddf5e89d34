"""Every cell of an experiment, composed and planned under every training seed; nothing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from xtrrep import config as configs
from xtrrep import pipeline
from xtrrep.config import Config
from xtrrep.console import DataError, UsageError, XtrrepError, progress
from xtrrep.experiments.analysis import AnalysisPlan, plan_analysis
from xtrrep.experiments.cell import (
    AFTER_WORDS,
    SEED_KEYS,
    Cell,
    Overrides,
    as_texts,
    check_seeds,
    compose_cell,
    searches_words,
)
from xtrrep.experiments.comparison import Comparison
from xtrrep.experiments.definition import Column, Experiment, Row
from xtrrep.experiments.numbers import stage_of
from xtrrep.experiments.timings import TimingKey, processes_of, shared
from xtrrep.measure.evaluate import canonical
from xtrrep.plan import cost, preflight
from xtrrep.retrieval.engines import TextEngine, engine_of

ENDS = ("latency", "tokens")  # stages that nothing stands on, beside `evaluate`
SHOWN = 50  # cells from which on planning them is shown

CellKey = tuple[str, str, int]  # row, column, number of the training seed
AnalysisKey = tuple[str, int]  # id of the comparison, "" for readings; number of the training seed


@dataclass
class Plans:
    """What is to run, and in words why the rest cannot. timings: by process, of the cells whose times are compared."""

    cells: dict[CellKey, pipeline.Plan] = field(default_factory=dict)
    timings: dict[TimingKey, pipeline.Plan] = field(default_factory=dict)
    processes: int = 0  # of one training, that a comparison of times reads
    analyses: dict[AnalysisKey, AnalysisPlan] = field(default_factory=dict)
    missing: dict[CellKey, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)  # comparisons (or "" for readings) that cannot run
    left_out: list[str] = field(default_factory=list)  # rows that there was no time for

    def all(self) -> list[pipeline.Plan]:
        """Every plan, those of the analyses' cells included."""
        return [
            *self.cells.values(),
            *self.timings.values(),
            *(plan for whole in self.analyses.values() for plan in whole.plans),
        ]

    def reasons(self) -> list[str]:
        """Why cells and comparisons cannot run, each reason once."""
        told = [f"{', '.join(filter(None, key[:2]))}: {reason}" for key, reason in self.missing.items()]
        told += [f"{name}: {reason}" if name else reason for name, reason in self.blocked.items()]
        return list(dict.fromkeys(told))


def columns_of(experiment: Experiment) -> tuple[Column, ...]:
    """The columns; for cells without columns one, on the collection that the overrides name."""
    return experiment.columns or (Column("", None, ""),)


def _siblings(experiment: Experiment, row: Row, column: Column) -> list[Column]:
    """The columns that a row's cell is read in: one, or all on the collection that the command line names."""
    if column.data is not None or not column.name:
        return [column]
    return [
        c for c in experiment.columns if (c.data, c.overrides) == (None, column.overrides) and experiment.runs(row, c)
    ]


def _needed(experiment: Experiment, row: Row, column: Column) -> tuple[str, ...]:
    """The stages that a cell must reach, by what is read of it; none where nothing is."""
    columns = _siblings(experiment, row, column)
    read = [c.measure for c in columns] if column.name else reads_of(experiment, row)
    return tuple(sorted({stage if (stage := stage_of(value)) in ENDS else "evaluate" for value in read}))


def reads_of(experiment: Experiment, row: Row) -> list[str]:
    """What the comparisons, and the gates that they stand behind, read of a cell without columns; times aside."""
    read = [
        comparison.value
        for comparison in experiment.comparisons
        if comparison.analysis is None and not comparison.timed and row.name in cells_of(experiment, comparison)
    ]
    gates = [gate for comparison in experiment.comparisons for gate in experiment.gates_of(comparison)]
    return list(dict.fromkeys([*read, *(gate.measure for gate in gates if row.name in (gate.cell, gate.like))]))


def cells_of(experiment: Experiment, comparison: Comparison) -> list[str]:
    names = (*comparison.plus, *comparison.minus)
    return list(dict.fromkeys(cell for name in names for cell in experiment.members(name)))


def base_config(experiment: Experiment, overrides: Overrides) -> Config:
    """What the command line says, composed: the collection and scale of cells without columns."""
    return configs.compose(as_texts({**experiment.overrides, "scale": experiment.scale, **overrides}))


def check_overrides(experiment: Experiment, overrides: Mapping[str, str]) -> None:
    """Refuse an override of what the experiment sets for each cell: its table would say one thing and hold another."""
    parts = [*(row.overrides or {} for row in experiment.rows), *(c.overrides for c in experiment.columns)]
    parts += [comparison.overrides for comparison in experiment.comparisons]
    check_seeds(experiment.seeds, overrides)
    for part in parts:
        check_seeds(experiment.seeds, {key: value for key, value in part.items() if key in SEED_KEYS})
    fixed = {"scale"}
    if experiment.analysis is not None:
        fixed |= {"analyze.name", "analyze.models", "data"}
    elif experiment.axes:  # a row that sets it keeps its own, and the others take what is given
        fixed |= set.intersection(*(set(row.overrides or {}) for row in experiment.rows if row.place))
        fixed |= {key for column in experiment.columns for key in column.overrides}
    else:
        fixed |= {key for part in parts for key in part}
        fixed -= {"model.source"}  # applies to the rows that do not set it
        if not experiment.columns:
            fixed |= {"index", "latency.recipe", "analyze.name", "analyze.models"}
    if any(column.data is not None for column in experiment.columns):
        fixed |= {"data"}
    if experiment.analysis is None:
        fixed |= {"data.measures"} if experiment.kind != "analysis" else set()
        fixed |= configs.keys_of("config") - {"model.source"} if "config" in fixed else set()
    for key, value in overrides.items():
        within = not experiment.columns and experiment.analysis is None and key.startswith("index.")
        if key in fixed or within:
            raise UsageError(
                f"'{key}={value}' cannot be given: {experiment.name} sets it for each cell",
                hint="leave it out, or write a grid of your own: examples/grid.yaml",
            )


def cell_overrides(experiment: Experiment, row: Row, column: Column | None, overrides: Mapping[str, str]) -> Overrides:
    """All overrides of one cell; what stands later wins."""
    extra = dict(overrides)
    for key in row.overrides or {}:
        if row.place or key == "model.source":  # a model of its own, wherever the others come from
            extra.pop(key, None)
    placed = {} if column is None or column.data is None else {"data": column.data}
    own = {**(row.overrides or {}), **placed, **({} if column is None else column.overrides)}
    shared = experiment.overrides
    if searches_words(own):  # a row of plain BM25 stays one
        shared, extra = ({k: v for k, v in part.items() if k not in AFTER_WORDS} for part in (shared, extra))
    return {**shared, **own, "scale": experiment.scale, **extra}


def cell_of(experiment: Experiment, row: Row, column: Column, overrides: Overrides) -> Cell:
    """The cell of a row on a column. Raises UsageError and DataError as `config.compose`."""
    own = cell_overrides(experiment, row, column, overrides)
    until = _needed(experiment, row, column)
    cell = compose_cell(", ".join(filter(None, (row.name, column.name))), own, until)
    measures = list(experiment.measures)
    if column.name:
        measures = [c.measure for c in _siblings(experiment, row, column) if c.is_measure]
    known = cell.config.data.measures
    if column.name and column.data is None:  # as every other run on this collection is evaluated
        measures = [*known, *(name for name in measures if canonical(name) not in map(canonical, known))]
    if measures:
        cell = replace(cell, config=replace(cell.config, data=replace(cell.config.data, measures=measures)))
    index, own_keys = cell.config.index, row.overrides or {}
    if row.place and "index" not in own_keys:
        if isinstance(engine_of(index), TextEngine):
            raise UsageError(f"{experiment.name} needs an engine that searches vectors", hint="--index exact")
        for key in (key for key in own_keys if key.startswith("index.") and key.partition(".")[2] not in index):
            raise UsageError(f"{experiment.name} varies {key}, and {index['engine']} has none", hint="--index plaid")
    return cell


def plan(experiment: Experiment, overrides: Overrides, *, require: bool = False, here: bool = True) -> Plans:
    """Every cell and analysis, planned under every training seed. With `require`, what this machine lacks is missing:
    where it runs `here`, memory too.

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
        for column in columns_of(running)
        if running.runs(row, column) and _needed(running, row, column)
    ]
    seeds: Sequence[int | None] = experiment.seeds or (None,)
    refused: list[XtrrepError] = []
    # Composing a config takes a tenth of a second: over a few dozen cells a person wants to see it.
    with progress(len(asked), f"plan {experiment.name}", "cell") if len(asked) >= SHOWN else nullcontext() as bar:
        for row, column in asked:
            for number, seed in enumerate(seeds):
                key = (row.name, column.name, number)
                same = (row.name, _siblings(running, row, column)[0].name, number)  # one cell is planned once
                if same in plans.missing:
                    plans.missing[key] = plans.missing[same]
                    continue
                try:
                    made = plans.cells.get(same) or cell_of(running, row, column, overrides).with_seed(seed).plan()
                    if require and same not in plans.cells:
                        preflight.require([made])
                        if here:
                            cost.require_memory([made])
                    if stage_of(column.measure) not in made.specs and column.name:
                        raise DataError(f"this run has no {stage_of(column.measure)}", hint="--index exact")
                    plans.cells[key] = made
                except XtrrepError as error:
                    plans.missing[key] = str(error)
                    refused.append(error)
            if bar is not None:
                bar.update(1)
    placed = {row.name for row in running.rows if row.place}
    if experiment.kind == "analysis" and refused and not placed & {key[0] for key in plans.cells}:
        raise refused[0]
    _plan_timings(running, overrides, plans, require=require)
    _plan_analyses(running, overrides, seeds, plans, require=require)
    return plans


def _plan_timings(experiment: Experiment, overrides: Overrides, plans: Plans, *, require: bool) -> None:
    if not any(comparison.timed for comparison in experiment.comparisons):
        return
    processes = base_config(experiment, overrides).latency.processes
    plans.processes = shared(experiment, processes)
    rows = {row.name: row for row in experiment.rows}
    for name, count in processes_of(experiment, processes).items():
        for number, seed in enumerate(experiment.seeds or (None,)):
            try:
                own = cell_overrides(experiment, rows[name], None, overrides)
                cell = compose_cell(name, own, ("latency",)).with_seed(seed)
                made = [cell.with_process(process).plan() for process in range(count)]
                if require:
                    preflight.require(made[:1])
                plans.timings |= {(name, number, process): plan for process, plan in enumerate(made)}
            except XtrrepError as error:
                plans.missing.setdefault((name, "", number), str(error))


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
            if here[key] not in value:
                return f"needs {key}={' or '.join(value)}: {comparison.why}"
    return "" if comparison.plus else comparison.why
