"""The one rule of significance, and the verdicts: on expected values, on differences, on margins.

A difference is paired over units (queries, or what an analysis' values are of). Several training seeds are crossed with
them: both are samples (`significance.paired_over_seeds`, docs/crossed_test.md). Times are compared over processes.
Two-sided p-values are corrected by Holm's method over the family that the definition names. A margin is judged by its
95 % interval and is not corrected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xtrrep.console import DataError
from xtrrep.experiments.comparison import ALPHA, MATERIAL, Comparison
from xtrrep.experiments.definition import Experiment
from xtrrep.experiments.result import (
    AGREES,
    CONTRADICTED,
    DIFFERS,
    HIGHER,
    INCONCLUSIVE,
    LOWER,
    NO_DIFFERENCE,
    NO_RECORD,
    NOT_COMPARED,
    NOT_RUN,
    QUOTED,
    SUPPORTED,
    UNTRAINED,
    Effect,
    Expected,
    Result,
    Value,
)
from xtrrep.measure.power import Power, StudentPower
from xtrrep.measure.significance import Difference, holm, paired_over_seeds, ratio_over_seeds, student

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Grid = NDArray[np.float64]  # (S, U): one cell's value by training seed and unit


CROSSED = "over queries and training seeds, both samples (docs/crossed_test.md)"
SAME_WEIGHTS = 0.1  # of the tolerance: how close a value made again from the same weights comes
RETRAINED = 4.0  # times the tolerance: how far weights trained anew by the same commands move it (docs/LOG.md)


# --- differences and margins ------------------------------------------------------------------------------------------


def best_of(grids: Sequence[Grid], chosen: str) -> Grid:
    """The (S, U) values of the grid with the best mean, chosen anew for each seed.

    held_out: every second unit is answered by what is best on the others, so choosing gains nothing from it. Raises
    DataError where there are no two units to part.
    """
    stack = np.stack(grids)
    seeds, units = np.arange(stack.shape[1]), np.arange(stack.shape[2])
    if chosen == "same":
        return np.asarray(stack[stack.mean(axis=2).argmax(axis=0), seeds])
    if len(units) < 2:
        raise DataError(
            "the best is chosen on other queries than it is judged on, and there is only one query",
            hint="a collection with two judged queries or more",
        )
    out = np.empty(stack.shape[1:])
    for half in (units % 2 == 0, units % 2 == 1):
        pick = stack[:, :, ~half].mean(axis=2).argmax(axis=0)
        out[:, half] = stack[pick, seeds][:, half]
    return out


def contrast(statistic: str, plus: Sequence[Grid], minus: Sequence[Grid]) -> Grid:
    """(S, U) values whose mean is the effect that is tested: of ratios a logarithm, of a ratio of means to first order.

    Raises DataError for a logarithm of a value that is not positive.
    """
    if statistic == "ratio":
        return np.asarray(plus[0] / plus[0].mean() - minus[0] / minus[0].mean())
    if statistic == "difference":
        return np.asarray(np.sum(plus, axis=0) - np.sum(minus, axis=0))
    if min(float(grid.min()) for grid in (*plus, *minus)) <= 0:
        raise DataError("a ratio needs positive values, and one here is 0 or less", hint="statistic: difference")
    return np.asarray(np.log(plus).sum(axis=0) - np.log(minus).sum(axis=0))


def effect_of(statistic: str, plus: Sequence[Grid], minus: Sequence[Grid], resamples: int) -> Difference:
    """The effect of a comparison over (S, U) grids: of a log_ratio the ratio itself.

    Raises DataError as the tests and `contrast` do.
    """
    if statistic == "ratio":
        return ratio_over_seeds(plus[0], minus[0], resamples=resamples)
    if statistic == "difference":
        return paired_over_seeds(np.sum(plus, axis=0), np.sum(minus, axis=0), resamples=resamples)
    delta = contrast(statistic, plus, minus)
    return _as_ratio(paired_over_seeds(delta, np.zeros_like(delta), resamples=resamples))


def effect_of_times(statistic: str, plus: Sequence[Grid], minus: Sequence[Grid]) -> tuple[Difference, Power]:
    """The effect of a comparison of times, each cell an (S, P) grid of what its P processes under S seeds took, and the
    power of its test.

    The process is the unit. Under one seed the test is Welch's (1947), over processes; under several it is Student's,
    over trainings, each the mean of its processes. p asks whether times differ by more than MATERIAL: processes over
    one index differ by less. One process of a cell says nothing. Raises DataError as `contrast`.
    """
    logged = statistic != "difference"
    if logged and min(float(grid.min()) for grid in (*plus, *minus)) <= 0:
        raise DataError("a ratio needs positive times", hint="measure again: rm -r results/runs/latency")
    sides = [np.log(grid) if logged else grid for grid in (*plus, *minus)]
    signs = [1.0] * len(plus) + [-1.0] * len(minus)
    by_seed = np.sum([sign * grid.mean(axis=1) for sign, grid in zip(signs, sides, strict=True)], axis=0)
    mean, seeds, least = float(by_seed.mean()), len(by_seed), math.log(MATERIAL) if logged else 0.0
    units = min(grid.shape[1] for grid in sides)
    if seeds * units < 2:
        found = Difference(mean, -np.inf, np.inf, 1.0, 1)
        return _as_ratio(found) if logged else found, StudentPower(math.inf, 1, least)
    if seeds > 1:
        error, free = float(by_seed.std(ddof=1)) / seeds**0.5, float(seeds - 1)
    else:
        parts = np.array([grid.var(ddof=1) / grid.size for grid in sides])
        freedoms = np.array([grid.size - 1 for grid in sides])
        error = float(parts.sum()) ** 0.5
        free = float(parts.sum() ** 2 / (parts**2 / freedoms).sum()) if error else float(freedoms.sum())
    found = student(mean, error, free, least, seeds * units)
    return _as_ratio(found) if logged else found, StudentPower(error, free, least)


def _as_ratio(found: Difference) -> Difference:
    """The logarithm of a ratio as the ratio."""
    with np.errstate(over="ignore"):
        mean, low, high = map(float, np.exp([found.mean, found.low, found.high]))
    return replace(found, mean=mean, low=low, high=high)


def verdict_of(comparison: Comparison, effect: Difference, p: float | None) -> str:
    """The verdict on an effect; `p` is the corrected one, None where no test was made."""
    if comparison.within is not None:
        low, high = comparison.within
        if low <= effect.low and effect.high <= high:
            return SUPPORTED
        return CONTRADICTED if effect.high < low or effect.low > high else INCONCLUSIVE
    clear = p is not None and p < ALPHA and effect.mean != comparison.neutral
    if comparison.direction is None:
        return DIFFERS if clear else NO_DIFFERENCE
    if not clear:
        return INCONCLUSIVE
    return SUPPORTED if (effect.mean > comparison.neutral) == (comparison.direction == "above") else CONTRADICTED


def judge_effects(
    comparisons: Sequence[Comparison],
    effects: Mapping[str, Difference],
    reasons: Mapping[str, str],
    runs: Mapping[str, tuple[str, ...]],
    notes: Mapping[str, str],
    doubts: Mapping[str, str],
    untrained: Mapping[str, str] | None = None,
    powers: Mapping[str, Power] | None = None,
) -> list[Effect]:
    """Every comparison with its verdict, tests corrected within their families.

    reasons: why a comparison has no effect. doubts: why an effect cannot be trusted, which makes it inconclusive.
    untrained: why its baseline is none, which leaves it without a verdict. powers: of the tests.
    """
    corrected: dict[str, float] = {}
    levels: dict[str, float] = {}
    for family in dict.fromkeys(comparison.family for comparison in comparisons):
        tested = [c.id for c in comparisons if c.family == family and c.within is None and c.id in effects]
        corrected |= dict(zip(tested, holm([effects[name].p for name in tested]), strict=True))
        levels |= dict.fromkeys(tested, ALPHA / max(1, len(tested)))
    judged = []
    for comparison in comparisons:
        ratio = "difference" if comparison.statistic == "difference" else "ratio"
        made = Effect(
            comparison.id,
            comparison.says,
            comparison.where,
            f"{comparison.value}, {ratio}",
            comparison.expected,
            NOT_RUN,
            family=comparison.family,
            row=comparison.plus[0] if comparison.column else "",
            column=comparison.column,
            baseline=comparison.against,
        )
        effect = effects.get(comparison.id)
        if effect is None:
            judged.append(replace(made, note=reasons.get(comparison.id, "")))
            continue
        p, doubt = corrected.get(comparison.id), doubts.get(comparison.id, "") or _small(comparison, effect)
        gated = (untrained or {}).get(comparison.id, "")
        verdict = INCONCLUSIVE if doubt else verdict_of(comparison, effect, p)
        power = (powers or {}).get(comparison.id)
        if comparison.detect is not None and power is not None and p is not None:
            target = comparison.detect if comparison.statistic == "difference" else math.log(comparison.detect)
            made = replace(made, detect=comparison.detect, power=power.of(target, levels[comparison.id]))
        finite = [value if math.isfinite(value) else None for value in (effect.mean, effect.low, effect.high)]
        judged.append(
            replace(
                made,
                verdict=UNTRAINED if gated else verdict,
                effect=finite[0],
                low=finite[1],
                high=finite[2],
                p=p,
                units=effect.queries,
                note=gated or doubt or notes.get(comparison.id, ""),
                runs=runs.get(comparison.id, ()),
            )
        )
    return judged


def _small(comparison: Comparison, effect: Difference) -> str:
    """Why a difference in time means nothing, or nothing."""
    if not comparison.timed or comparison.statistic == "difference" or comparison.within is not None:
        return ""
    if effect.mean > MATERIAL or 0 < effect.mean < 1 / MATERIAL:
        return ""
    return f"times that differ by less than {MATERIAL - 1:.0%} decide nothing"


# --- expected values --------------------------------------------------------------------------------------------------


def judge_expected(experiment: Experiment, result: Result, record: Result | None) -> list[Expected]:
    """Every cell beside the paper's value and the one accepted last, means of columns included.

    From other trained weights than those of the record another value is to be expected, so the tolerance is wider.
    """
    before = {(e.row, e.column): e for e in record.expected} if record else {}
    at_paper = experiment.scale == "paper"

    def judged(
        row: str, column: str, value: Value | None, now: float | None, paper: float | None, tolerance: float | None,
        members: Sequence[str],
    ) -> Expected:  # fmt: skip
        last = before.get((row, column))
        accepted = last.now if last else None
        same = all(_weights(result, row, member) == _recorded_weights(before, row, member) for member in members)
        from_paper = at_paper and (paper is not None or experiment.analysis is None)
        against = paper if from_paper else accepted
        verdict = _verdict(now, against, _within(tolerance, from_paper, same))
        weights = value.weights if value else None
        return Expected(row, column, paper, accepted, now, verdict, against, value.sd if value else None, weights)

    if experiment.readings:
        return [
            judged(r.name, r.column, (value := result.value(r.name, r.column)), value.mean if value else None, r.paper,
                   r.tolerance, [r.column])
            for r in experiment.readings
        ]  # fmt: skip
    cells = []
    for row in experiment.rows:
        for column in (
            *(c.name for c in experiment.columns if row.overrides is None or row.holds(c)),
            *experiment.means,
        ):
            value, paper = result.value(row.name, column), row.paper.get(column)
            members = experiment.means.get(column, (column,))
            cell = judged(row.name, column, value, result.now(row.name, column), paper, experiment.tolerance, members)
            if row.overrides is None:
                cell = replace(cell, verdict=QUOTED)
            elif cell.now is not None and at_paper and paper is None:
                cell = replace(cell, verdict=NOT_COMPARED)
            cells.append(cell)
    return cells


def _weights(result: Result, row: str, column: str) -> str | None:
    value = result.value(row, column)
    return value.weights if value else None


def _recorded_weights(before: Mapping[tuple[str, str], Expected], row: str, column: str) -> str | None:
    last = before.get((row, column))
    return last.weights if last else None


def _within(tolerance: float | None, from_paper: bool, same: bool) -> float | None:
    """How far from the expected value a value agrees; None where nothing is compared."""
    if tolerance is None or from_paper:
        return tolerance
    return tolerance * (SAME_WEIGHTS if same else RETRAINED)


def _verdict(now: float | None, against: float | None, within: float | None) -> str:
    if now is None:
        return NOT_RUN
    if within is None:
        return NOT_COMPARED
    if against is None:
        return NO_RECORD
    if abs(now - against) <= within + 1e-9:
        return AGREES
    return HIGHER if now > against else LOWER


def rule_of(experiment: Experiment) -> str:
    """In words, what the verdicts on expected values rest on."""
    paper = experiment.scale == "paper"
    if experiment.readings:
        tolerances = sorted({r.tolerance for r in experiment.readings if r.tolerance is not None})
    else:
        tolerances = [] if experiment.tolerance is None else [experiment.tolerance]
    if not tolerances:
        return "not compared" if experiment.readings else "not compared: another machine"
    unit = "" if experiment.readings else " points"
    wide = " or ".join(f"{tolerance:g}" for tolerance in tolerances)
    near = " or ".join(f"{SAME_WEIGHTS * t:g} (same weights) / {RETRAINED * t:g} (trained anew)" for t in tolerances)
    recorded = f"the value accepted last at this scale, within {near}{unit}"
    if not paper:
        return f"judged against {recorded}"
    rest = f"; where it has none against {recorded}" if any(r.paper is None for r in experiment.readings) else ""
    return f"judged against the paper's value, within {wide}{unit}{rest}"
