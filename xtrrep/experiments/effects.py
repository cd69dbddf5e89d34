"""Every comparison's effect, from what finished runs hold, and its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from xtrrep.console import DataError, explained, say
from xtrrep.experiments import compare, values
from xtrrep.experiments.comparison import Comparison, Gate
from xtrrep.experiments.definition import CLAIMS, Experiment
from xtrrep.experiments.numbers import stage_of
from xtrrep.experiments.planning import AnalysisKey, CellKey, Plans, cells_of
from xtrrep.experiments.result import Effect, PerUnit
from xtrrep.experiments.timings import Times, doubt_of_times, sides_of
from xtrrep.measure.power import Power, power_of
from xtrrep.measure.significance import Difference


@dataclass(frozen=True)
class Finished:
    """What comparisons read: the folders of cells, times by process, and the folders of analyses."""

    made: Mapping[CellKey, Mapping[str, Path]]
    times: Times
    analyses: Mapping[AnalysisKey, Path]


def effects(experiment: Experiment, plans: Plans, found: Finished, resamples: int) -> list[Effect]:
    """Every comparison's effect, judged."""
    judged = _Judged(dict(plans.blocked))
    for comparison in experiment.comparisons:
        if comparison.id in judged.reasons:
            continue
        try:
            if comparison.timed:
                _compare_times(comparison, plans, found.times, judged)
            else:
                _compare_units(experiment, comparison, plans, found, resamples, judged)
            for gate in experiment.gates_of(comparison):
                judged.untrained |= _untrained(comparison, gate, experiment, found.made)
        except Exception as error:
            known = explained(error)
            if known is None:
                raise
            say(f"note: {comparison.id}: {known}")
            judged.reasons[comparison.id] = str(known)
            judged.effects.pop(comparison.id, None)
    return compare.judge_effects(experiment.comparisons, **vars(judged))


@dataclass
class _Judged:
    """What `judge_effects` takes, by comparison."""

    reasons: dict[str, str]
    effects: dict[str, Difference] = field(default_factory=dict)
    runs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)
    untrained: dict[str, str] = field(default_factory=dict)
    powers: dict[str, Power] = field(default_factory=dict)


def _compare_times(comparison: Comparison, plans: Plans, times: Times, judged: _Judged) -> None:
    """The effect of a comparison of times, over processes."""
    for cell, seed in product((*comparison.plus, *comparison.minus), range(times.seeds)):
        if (cell, "", seed) in plans.missing:
            judged.reasons[comparison.id] = f"{cell}: {plans.missing[cell, '', seed]}"
            return
    plus, minus, keys = sides_of(comparison, times, plans.processes)
    sides = [[grid.values for grid in side] for side in (plus, minus)]
    made, power = compare.effect_of_times(comparison.statistic, *sides)
    judged.effects[comparison.id], judged.powers[comparison.id] = made, power
    judged.runs[comparison.id] = tuple(plans.timings[key].specs["latency"].fingerprint for key in keys)
    judged.notes[comparison.id] = f"{plans.processes * times.seeds} processes a cell"
    groups = [
        keys[at : at + plans.processes * times.seeds] for at in range(0, len(keys), plans.processes * times.seeds)
    ]
    judged.doubts[comparison.id] = doubt_of_times([[times.folders[key] for key in group] for group in groups])


def _compare_units(
    experiment: Experiment, comparison: Comparison, plans: Plans, found: Finished, resamples: int, judged: _Judged
) -> None:
    """The effect of a comparison over queries, or over an analysis' units."""
    seeds, name = range(len(experiment.seeds) or 1), comparison.id
    if comparison.analysis is not None:
        whole = [(name, seed) for seed in seeds]
        models = dict.fromkeys((*comparison.plus, *comparison.minus))
        grids = values.analysis_units(comparison.value, models, [found.analyses[key] for key in whole])
        judged.runs[name] = tuple(plans.analyses[key].spec.fingerprint for key in whole)
        judged.notes[name] = f"over {plans.analyses[whole[0]].units}"
    else:
        keys = [(cell, comparison.column, s) for cell in cells_of(experiment, comparison) for s in seeds]
        lost = next((key for key in keys if key not in found.made), None)
        if lost is not None:
            judged.reasons[name] = f"{lost[0]}: {plans.missing.get(lost, 'it did not run')}"
            return
        grids = _grids(experiment, comparison, found.made)
        stage = stage_of(comparison.value)
        judged.runs[name] = tuple(plans.cells[key].specs[stage].fingerprint for key in keys)
        if experiment.name == CLAIMS:  # the study's statements are of searches that leave something out
            said = (values.doubt_of_candidates(key[0], plans.cells[key], found.made[key]) for key in keys)
            judged.doubts[name] = next(filter(None, said), "")
    sides = [[grids[cell].values for cell in names] for names in (comparison.plus, comparison.minus)]
    if comparison.column:  # a difference from a baseline is in the units of its table
        sides = [[100 * grid for grid in side] for side in sides]
    judged.effects[name] = compare.effect_of(comparison.statistic, sides[0], sides[1], resamples)
    power = power_of(compare.contrast(comparison.statistic, *sides)) if comparison.detect is not None else None
    if power is not None:
        judged.powers[name] = power


def _untrained(
    comparison: Comparison, gate: Gate, experiment: Experiment, made: Mapping[CellKey, Mapping[str, Path]]
) -> dict[str, str]:
    """That a comparison's baseline is too far below the same model in the other setup; nothing where it is not.

    Raises DataError where one of the two did not run.
    """
    means = {}
    for cell in (gate.cell, gate.like):
        keys = [(cell, "", seed) for seed in range(len(experiment.seeds) or 1)]
        if not all(key in made for key in keys):
            raise DataError(f"{cell} did not run, and says whether the baseline is trained", hint="see its reason")
        means[cell] = float(np.mean([values.by_unit(gate.measure, made[key]).mean() for key in keys]))
    below = means[gate.like] - means[gate.cell]
    if below <= gate.margin:
        return {}
    told = f"{gate.cell} has {gate.measure} {means[gate.cell]:.3f}, and {gate.like} {means[gate.like]:.3f}"
    return {comparison.id: f"{told}: {below:.3f} below, and the margin is {gate.margin:g}"}


def _grids(
    experiment: Experiment, comparison: Comparison, made: Mapping[CellKey, Mapping[str, Path]]
) -> dict[str, PerUnit]:
    """Values by unit of each name of `plus` and `minus`, all over the same queries."""
    seeds = range(len(experiment.seeds) or 1)
    cells: dict[str, PerUnit] = {}
    ids: list[str] = []
    for cell in cells_of(experiment, comparison):
        series = [values.by_unit(comparison.value, made[cell, comparison.column, seed]) for seed in seeds]
        ids = ids or list(series[0].index)
        cells[cell] = values.over_seeds(series, ids)
    grids = {}
    for name in dict.fromkeys((*comparison.plus, *comparison.minus)):
        members = [cells[cell] for cell in experiment.members(name)]
        grids[name] = members[0]
        if name in experiment.best:
            best = compare.best_of([member.values for member in members], experiment.best[name].chosen)
            grids[name] = replace(members[0], values=best)
    return grids
