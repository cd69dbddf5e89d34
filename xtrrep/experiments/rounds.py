"""Cells in rounds: what an engine's settings cost is known when they have run, so later ones are begun only while they
fit into `analyze.minutes`.

A round is cut into parts, one a curve: the settings of one engine, model and scoring, which share an index and, where
they can, a token search. What is there already takes no time, so the same command goes on where the last one stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from xtrrep import artifacts
from xtrrep.console import say
from xtrrep.experiments.definition import Experiment, Row
from xtrrep.experiments.execute import Outcome, Where, run_plans
from xtrrep.experiments.planning import CellKey, Plans
from xtrrep.pipeline import Plan

Curve = tuple[str, ...]  # a row's choices on all axes but that of the settings
SEARCHES = ("retrieve", "latency")  # the stages that every setting has for itself


def curve_of(row: Row) -> Curve:
    """What a row's engine, model and scoring are."""
    return tuple(row.place.values())[:-1]


def in_rounds(experiment: Experiment, plans: Plans, where: Where) -> Outcome[CellKey]:
    """Run or reuse the cells, those of round 0 whatever they take. What is left out leaves the plans."""
    rows = {row.name: row for row in experiment.rows}
    parts: dict[tuple[int, Curve], dict[CellKey, Plan]] = {}
    for key, plan in plans.cells.items():
        row = rows[key[0]]
        parts.setdefault((row.round, curve_of(row)), {})[key] = plan
    outcome: Outcome[CellKey] = Outcome()
    costs: dict[Curve, list[float]] = {}
    begun = time.monotonic()
    for (number, curve), cells in sorted(parts.items(), key=lambda part: part[0][0]):
        limit = 60 * next(iter(cells.values())).cfg.analyze.minutes
        missing = {plan.specs["retrieve"].fingerprint for plan in cells.values() if not _reused(plan)}
        needed = len(missing) * fmean(costs.get(curve) or [0.0])
        if number and missing and time.monotonic() - begun + needed > limit:
            for key in cells:
                del plans.cells[key]
            plans.left_out += dict.fromkeys(row for row, _, _ in cells)
            continue
        done = run_plans(cells, where)
        outcome.folders.update(done.folders)
        outcome.failures.update(done.failures)
        costs.setdefault(curve, []).extend(map(_seconds, done.folders.values()))
    if plans.left_out:
        say(f"note: {len(plans.left_out)} settings were left out; the same command goes on with them")
    return outcome


def _reused(plan: Plan) -> bool:
    return all(step.reuse for step in plan.steps)


def _seconds(folders: Mapping[str, Path]) -> float:
    """What a setting took to search and to be timed."""
    manifests = [artifacts.read_manifest(folders[stage]) for stage in SEARCHES if stage in folders]
    return sum(float(m["seconds"]) + float(m["facts"].get("shared_search_seconds", 0.0)) for m in manifests)
