"""Run an experiment: its missing stages, then the values and comparisons. Definition to Result.

result, pictures = run(experiment, overrides)     runs or reuses every cell, reads, compares
folder = save(result, pictures)                   record.py: result.json, tables and figures in results/runs/
accept(experiment, result, pictures)              record.py: the same into results/recorded/
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from xtrrep import config as configs
from xtrrep import pipeline
from xtrrep.api import set_threads
from xtrrep.config import Analyze
from xtrrep.console import DataError, XtrrepError, explained, say
from xtrrep.experiments import compare, values
from xtrrep.experiments import result as results
from xtrrep.experiments.analysis import run_analysis
from xtrrep.experiments.cell import Overrides, as_texts
from xtrrep.experiments.definition import Experiment, Row, load
from xtrrep.experiments.effects import Finished, effects
from xtrrep.experiments.execute import HERE, Where, run_plans
from xtrrep.experiments.numbers import overlap_depth, relative, stage_of, timing_note
from xtrrep.experiments.planning import (
    AnalysisKey,
    CellKey,
    Plans,
    base_config,
    cell_of,
    columns_of,
    plan,
    reads_of,
)
from xtrrep.experiments.result import Key, PerUnit, Result, ShownColumn, Value
from xtrrep.experiments.rounds import in_rounds
from xtrrep.experiments.timings import SECONDS, Times, TimingKey
from xtrrep.pipeline.notes import notes_of


def run(experiment: Experiment, overrides: Overrides, *, where: Where = HERE) -> tuple[Result, Mapping[str, Path]]:
    """Run or reuse every cell and compare. One that fails does not stop the others.

    Returns the result, and the pictures that an analysis drew, by the name to keep them under.
    """
    plans = plan(experiment, overrides, require=True, here=where.on is None)
    for first in plans.all()[:1]:
        set_threads(first.cfg.machine.threads)
    made, times = _run_cells(experiment, plans, where)
    folders = _run_analyses(plans, where)
    read, per_unit = _read_cells(experiment, plans, made)
    read += _spread(experiment, read, made)
    read += _read_times(plans, times, per_unit)
    read += _read_readings(experiment, plans, folders)
    shown = describe(experiment, overrides)
    shown = replace(
        shown,
        values=tuple(read),
        per_unit=per_unit,
        notes=(*_counted(experiment, plans, made), *_left_out(plans), *_notes(experiment, read, overrides)),
        quality=_quality(experiment, overrides),
        provenance=results.provenance(values.seconds_of(plans.all())),
        effects=tuple(effects(experiment, plans, Finished(made, times, folders), shown.resamples)),
    )
    pictures = {
        f"{f'seed-{experiment.seeds[number]}-' if experiment.seeds else ''}{path.name}": path
        for (name, number), folder in folders.items()
        if not name
        for path in sorted(folder.iterdir())
        if path.suffix in (".svg", ".png", ".pdf")
    }
    return compared(experiment, shown), pictures


def describe(experiment: Experiment, overrides: Overrides) -> Result:
    """The result of an experiment before anything ran: what it is, and no value."""
    data, title = "", experiment.title
    if experiment.readings:
        data = experiment.data
    elif not experiment.columns or experiment.kind == "analysis":
        cfg = base_config(experiment, overrides)
        data = cfg.data.id
        if experiment.columns:
            title = f"{title} ({data}, setup {cfg.setup}, index={cfg.index['engine']})"
    return Result(
        kind=experiment.kind,
        name=experiment.name,
        title=title,
        scale=experiment.scale,
        values=(),
        data=data,
        seeds=experiment.seeds,
        overrides=tuple(as_texts(overrides)),
        only=experiment.only,
        rows=tuple(row.name for row in experiment.rows if row.overrides is not None),
        columns=tuple(ShownColumn(c.name, c.data, c.measure, c.k_prime) for c in experiment.columns),
        means=experiment.means,
        axes=experiment.axes,
        places={row.name: tuple(row.place.values()) for row in experiment.rows if row.place},
        spread=experiment.spread,
        remarks=experiment.remarks,
        rule=compare.rule_of(experiment),
        figure=experiment.figure,
        resamples=_resamples({**experiment.overrides, **overrides}),
        test=compare.CROSSED if len(experiment.seeds) > 1 else "",
    )


def compared(experiment: Experiment, result: Result) -> Result:
    """A result with its expected values judged, against the paper or what was accepted with the same overrides."""
    if result.kind != "reproduction":
        return result
    record = results.recorded(result)
    if record is not None and not results.same_settings(record.overrides, result.overrides):
        note = "what was accepted at this scale was made with other overrides: not compared"
        result, record = replace(result, notes=(*result.notes, note)), None
    return replace(result, expected=tuple(compare.judge_expected(experiment, result, record)))


def not_run(experiment: Experiment, overrides: Overrides) -> Result:
    """The cells with the paper's and the recorded values, and none of our own."""
    return replace(compared(experiment, describe(experiment, overrides)), notes=("Nothing was run.",))


def _resamples(overrides: Overrides) -> int:
    """Resamples of every test: `analyze.resamples` where it is given, else the schema's, whatever the scale says."""
    given = {key: value for key, value in overrides.items() if key == "analyze.resamples"}
    return configs.compose(as_texts(given)).analyze.resamples if given else Analyze().resamples


def _run_cells(experiment: Experiment, plans: Plans, where: Where) -> tuple[dict[CellKey, Mapping[str, Path]], Times]:
    """Make what cells and timings lack, together, so that times come last and in random order; in rounds where an axis
    sweeps settings, whose times are those of their cells."""
    if any(row.round for row in experiment.rows):
        swept = in_rounds(experiment, plans, where)
        plans.missing |= swept.failures
        return swept.folders, Times({}, len(experiment.seeds) or 1)
    every: dict[CellKey | TimingKey, pipeline.Plan] = dict(plans.cells.items())
    every |= plans.timings.items()
    outcome = run_plans(every, where)
    made = {key: outcome.folders[key] for key in plans.cells if key in outcome.folders}
    plans.missing |= {key: outcome.failures[key] for key in plans.cells if key in outcome.failures}
    for timing in plans.timings:
        if timing in outcome.failures:
            plans.missing.setdefault((timing[0], "", timing[1]), outcome.failures[timing])
    timed = {key: outcome.folders[key]["latency"] for key in plans.timings if key in outcome.folders}
    return made, Times(timed, len(experiment.seeds) or 1)


def _run_analyses(plans: Plans, where: Where) -> dict[AnalysisKey, Path]:
    """The analyses' folders; one that fails blocks what reads it."""
    if where.elsewhere:
        parts = {(key, i): p for key, whole in plans.analyses.items() for i, p in enumerate(whole.plans)}
        run_plans(parts, where)
    folders: dict[AnalysisKey, Path] = {}
    for key, whole in plans.analyses.items():
        if key[0] in plans.blocked:
            continue
        try:
            folders[key] = run_analysis(whole)
        except Exception as error:
            known = explained(error)
            if known is None:
                raise
            say(f"note: {key[0] or whole.cfg.analyze.name}: {known}")
            plans.blocked[key[0]] = str(known)
    return {key: folder for key, folder in folders.items() if key[0] not in plans.blocked}


def _read_cells(
    experiment: Experiment, plans: Plans, made: Mapping[CellKey, Mapping[str, Path]]
) -> tuple[list[Value], dict[Key, PerUnit]]:
    """The values of all cells, and those of each query behind them."""
    seeds = range(len(experiment.seeds) or 1)
    read: list[Value] = []
    per_unit: dict[Key, PerUnit] = {}
    for row in experiment.rows:
        for column in columns_of(experiment) if row.overrides is not None else ():
            if not row.holds(column):
                continue
            keys = [(row.name, column.name, seed) for seed in seeds]
            if not any(key in plans.cells or key in plans.missing for key in keys):
                continue
            for reads in [column.measure] if column.name else reads_of(experiment, row):
                reason = next((plans.missing[key] for key in keys if key in plans.missing), "")
                if reason or not all(key in made for key in keys):
                    read.append(Value(row.name, column.name, reads, reason=reason))
                    continue
                folders = [made[key] for key in keys]
                own = [plans.cells[key] for key in keys]
                value = Value(row.name, column.name, reads)
                made_from = [plan.specs[stage_of(reads)].fingerprint for plan in own]
                try:
                    if column.against or column.gain:
                        other = experiment.other_row(row, column)
                        others = [made.get((other, column.name, seed)) for seed in seeds]
                        pairs = zip(folders, others, strict=True)
                        difference = values.gain if column.gain else relative
                        numbers = [difference(reads, one, two) if two else None for one, two in pairs]
                    else:
                        if values.has_units(reads):
                            series = [values.by_unit(reads, folder) for folder in folders]
                            per_unit[value.key] = values.over_seeds(series, list(series[0].index))
                        numbers = [values.number(reads, folder) for folder in folders]
                except DataError as error:
                    read.append(replace(value, reason=str(error)))
                    continue
                known = [number for number in numbers if number is not None]
                if len(known) == len(numbers):
                    value = value.over(known, made_from, values.weights_of(own))
                read.append(value)
    return read, per_unit


def _spread(experiment: Experiment, read: Sequence[Value], made: Mapping[CellKey, Mapping[str, Path]]) -> list[Value]:
    """Over the choices of the axis `spread`, for the rows that are otherwise alike: how many differ; mean, standard
    deviation and range of measures; mean overlap of each pair of rankings. Of the first training seed."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in experiment.rows if experiment.spread else ():
        if row.place:
            others = tuple(choice for axis, choice in row.place.items() if axis != experiment.spread)
            groups.setdefault(others, []).append(row)
    found = []
    known = {(value.row, value.column): value for value in read if value.mean is not None}
    for others, rows in groups.items():
        for column in experiment.columns:
            name = ", ".join(others) or "all"
            own = [known[row.name, column.name] for row in rows if (row.name, column.name) in known]
            numbers = {value.runs: value.by_seed[0] for value in own}
            if len(numbers) > 1 and column.is_measure:
                series = np.array(list(numbers.values()))
                found += [
                    Value(name, column.name, reads).over([float(number)], (), None)
                    for reads, number in (
                        ("mean", series.mean()),
                        ("sd", series.std(ddof=1)),
                        ("range", np.ptp(series)),
                    )
                ]
            elif len(numbers) > 1 and (depth := overlap_depth(column.measure)):
                cells = list({value.runs: made[value.row, column.name, 0] for value in own}.values())
                pairs = [relative(column.measure, *pair) or 0.0 for pair in itertools.combinations(cells, 2)]
                found.append(Value(name, f"overlap@{depth}", "pairs").over([float(np.mean(pairs))], (), None))
    return found


def _read_times(plans: Plans, times: Times, per_unit: dict[Key, PerUnit]) -> list[Value]:
    """What each row's processes took, those of a second group left out: the mean, by seed and by process."""
    read = []
    for row in dict.fromkeys(name for name, *_ in plans.timings):
        value = Value(row, "", SECONDS)
        try:
            found = times.per_process(row, plans.processes)
        except DataError as error:
            reasons = [plans.missing[row, "", seed] for seed in range(times.seeds) if (row, "", seed) in plans.missing]
            read.append(replace(value, reason=next(iter(reasons), str(error))))
            continue
        per_unit[value.key] = found
        own = [key for keys in times.keys(row, 0, plans.processes) for key in keys]
        runs = [plans.timings[key].specs["latency"].fingerprint for key in own]
        weights = values.weights_of(plans.timings[key] for key in own if not key[2])
        value = value.over(found.values.mean(axis=1).tolist(), runs, weights)
        read.append(replace(value, by_process=tuple(map(tuple, found.values.tolist()))))
    return read


def _read_readings(experiment: Experiment, plans: Plans, folders: Mapping[AnalysisKey, Path]) -> list[Value]:
    """The numbers of an analysis. Where it failed under one seed no reading has a value."""
    read = []
    own = [plans.analyses[key] for key in plans.analyses if not key[0]]
    for reading in experiment.readings:
        value = Value(reading.name, reading.column, reading.column, reason=plans.blocked.get("", ""))
        if not value.reason:
            try:
                numbers = [values.read_analysis(reading, folder) for key, folder in folders.items() if not key[0]]
                weights = values.weights_of(part for whole in own for part in whole.plans)
                value = value.over(numbers, (whole.spec.fingerprint for whole in own), weights)
            except DataError as error:
                value = replace(value, reason=str(error))
        read.append(value)
    return read


def _counted(experiment: Experiment, plans: Plans, made: Mapping[CellKey, Mapping[str, Path]]) -> list[str]:
    """What was counted beside the scores, such as cut texts and judgements of absent documents, once a column."""
    speeds = [column.name for column in experiment.columns if stage_of(column.measure) == "latency"]
    timed = [made[key] for key in made if key[1] in speeds] if experiment.kind == "analysis" else []
    counted = [timing_note(folders) for folders in timed[:1]] + [
        f"{key[1]}: {text}" if key[1] and experiment.kind != "analysis" else text
        for key, folders in made.items()
        for texts in notes_of(plans.cells[key], folders).values()
        for text in texts
    ]
    return list(dict.fromkeys(counted))


def _left_out(plans: Plans) -> list[str]:
    if not plans.left_out:
        return []
    return [f"No time within analyze.minutes for {len(plans.left_out)} settings: {'; '.join(plans.left_out)}."]


def _notes(experiment: Experiment, read: Sequence[Value], overrides: Overrides) -> list[str]:
    """What was not run and why, a note a reason, and the overrides."""
    notes = []
    if not experiment.comparisons or experiment.columns:
        for reason in dict.fromkeys(value.reason for value in read if value.reason):
            cells = [f"{value.row}, {value.column}" for value in read if value.reason == reason]
            notes.append(f"not run: {'; '.join(cells) if len(cells) < 4 else f'{len(cells)} cells'}: {reason}")
    return [*notes, f"with {' '.join(as_texts(overrides))}"] if overrides else notes


def _quality(experiment: Experiment, overrides: Overrides) -> tuple[tuple[str, str, str, float, float], ...]:
    """(row, column, measure, value, standard deviation over seeds) of the experiment that `quality` names, for the
    cells that were evaluated before: nothing is run for them."""
    if experiment.quality is None:
        return ()
    other = replace(load(experiment.quality, experiment.scale), seeds=experiment.seeds)
    rows, columns = {row.name: row for row in other.rows}, {column.name: column for column in other.columns}
    found = []
    for row in experiment.rows:
        for column in experiment.columns:
            if row.overrides is None or row.name not in rows or column.name not in columns:
                continue
            same = columns[column.name]
            try:
                cell = cell_of(other, rows[row.name], same, overrides)
                steps = [cell.with_seed(seed).plan().steps[-1] for seed in other.seeds or (None,)]
            except XtrrepError:
                continue  # what cannot be planned has not been evaluated
            if all(step.reuse for step in steps):
                numbers = [values.points(same.measure, step.folder) for step in steps]
                sd = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
                found.append((row.name, column.name, same.measure, statistics.fmean(numbers), sd))
    return tuple(found)
