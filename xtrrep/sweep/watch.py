"""How a sweep stands, from the artifacts alone: on this machine, or any other that sees the same folder."""

from __future__ import annotations

import calendar
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from xtrrep import artifacts
from xtrrep.console import MISSING, OK
from xtrrep.evaluate import canonical
from xtrrep.pipeline import Plan, Step
from xtrrep.preflight import duration, forecast
from xtrrep.report.table import Table
from xtrrep.stages.table import STAGES
from xtrrep.sweep.units import Unit, finished, lacking, leaves, steps_of

SEARCHING = ("index", "retrieve", "evaluate", "latency")
WINDOW = 3600.0  # seconds over which the pace is taken
DONE, RUNNING, FAILED, WAITING = STATES = ("done", "running", "failed", "waiting")


@dataclass(frozen=True)
class Standing:
    """A sweep at one moment.

    stages: how many of each stage's artifacts are in which of STATES; cells: complete, and all; failed: why, by unit;
    pace: seconds of work a second, over the last hour; left: seconds of work still to do, as far as known; unknown:
    artifacts of which it is not.
    """

    stages: Mapping[str, Mapping[str, int]]
    cells: tuple[int, int]
    failed: Mapping[str, str]
    pace: float | None
    left: float
    unknown: int

    @property
    def complete(self) -> bool:
        return self.cells[0] == self.cells[1]

    @property
    def eta(self) -> float | None:
        """Seconds until all is done at this pace; None where that cannot be said."""
        return None if self.pace is None or self.unknown else self.left / self.pace

    def as_json(self) -> dict[str, Any]:
        return {
            "stages": self.stages,
            "cells": {"complete": self.cells[0], "of": self.cells[1]},
            "failed": self.failed,
            "pace": self.pace,
            "seconds_of_work_left": self.left,
            "steps_of_unknown_time": self.unknown,
            "eta_seconds": self.eta,
            "complete": self.complete,
        }


@dataclass(frozen=True)
class Times:
    """Of a finished artifact, in seconds: since the epoch, when it was made, and how long that took."""

    made: float
    took: float


@cache
def _times(folder: Path) -> Times:
    manifest = artifacts.read_manifest(folder)
    made = calendar.timegm(time.strptime(manifest["made"], "%Y-%m-%dT%H:%M:%SZ"))
    return Times(made, manifest["seconds"] + manifest["facts"].get("shared_search_seconds", 0.0))


def foreseen(plans: Sequence[Plan]) -> dict[Path, float | None]:
    """What `preflight.forecast` says of each step that was missing, by its folder: seconds, None where nothing is
    known."""
    return {line.folder: line.seconds for line in forecast(plans) if line.action == "run"}


def standing(plans: Sequence[Plan], seconds: Mapping[Path, float | None]) -> Standing:
    """Look at the artifacts, the locks and the logs. seconds: as `foreseen`, for stages of which the sweep has finished
    none yet; of the others it is the mean of what they took."""
    have = finished()
    units = {target.spec.fingerprint: unit for unit in lacking(plans, have) for target in unit.targets}
    states = {unit.key: _state(unit) for unit in units.values()}
    steps = steps_of(plans)
    took = {
        fingerprint: _times(artifacts.folder_of(step.spec, step.stage.root()))
        for fingerprint, step in steps.items()
        if fingerprint in have
    }
    alike: dict[tuple[str, str], list[float]] = {}
    for fingerprint, times in took.items():
        alike.setdefault(_kind(steps[fingerprint]), []).append(times.took)
    stages: dict[str, dict[str, int]] = {stage.name: dict.fromkeys(STATES, 0) for stage in STAGES}
    left, unknown = 0.0, 0
    for fingerprint, step in steps.items():
        if fingerprint in units:
            known = fmean(alike[_kind(step)]) if _kind(step) in alike else seconds.get(step.folder)
            left, unknown = left + (known or 0.0), unknown + (known is None)
            stages[step.stage.name][states[units[fingerprint].key]] += 1
        elif fingerprint in have:  # or else of a finished cell, and removed since: nobody misses it
            stages[step.stage.name][DONE] += 1
    return Standing(
        {name: counts for name, counts in stages.items() if any(counts.values())},
        (sum(all(leaf.spec.fingerprint in have for leaf in leaves(plan)) for plan in plans), len(plans)),
        {f"{u.stage} {u.label}": str(u.error) for u in units.values() if states[u.key] == FAILED},
        _pace(list(took.values()), time.time()),
        left,
        unknown,
    )


def _kind(step: Step) -> tuple[str, str]:
    """Steps that take about as long: of a stage, and where a label begins with its engine, of that."""
    return step.stage.name, step.spec.label.partition("--")[0] if step.stage.name in SEARCHING else ""


def _pace(finished: Sequence[Times], now: float) -> float | None:
    """Seconds of work in each second, since the first of what was finished in the last hour began."""
    recent = [times for times in finished if now - times.made < WINDOW]
    begun = min((times.made - min(times.took, WINDOW) for times in recent), default=now)
    total = sum(min(times.took, WINDOW) for times in recent)
    return total / (now - begun) if total and now > begun else None


def _state(unit: Unit) -> str:
    if unit.held:
        return RUNNING
    return FAILED if unit.error is not None else WAITING


def table(name: str, now: Standing) -> Table:
    """A row a stage."""
    rows: list[list[object]] = [[stage, *(counts[s] for s in STATES)] for stage, counts in now.stages.items()]
    footer = [f"{now.cells[0]} of {now.cells[1]} cells complete"]
    if not now.complete:
        work = f"about {duration(now.left)} of work left" + (
            f", and {now.unknown} of unknown time" if now.unknown else ""
        )
        pace = "" if now.pace is None else f", at {now.pace:.1f} times real time over the last hour"
        footer.append(work + pace + ("" if now.eta is None else f": about {duration(now.eta)} to go"))
    footer += [f"failed: {unit}: {why}" for unit, why in now.failed.items()]
    return Table(f"Sweep {name}, {time.strftime('%H:%M:%S')}", ["stage", *STATES], rows, footer)


def follow(name: str, plans: Sequence[Plan], every: float) -> int:
    """Show how a sweep stands, again and again until it is complete; the exit code then."""
    seconds = foreseen(plans)
    terminal = sys.stdout.isatty()
    last = ""
    while True:
        now = standing(plans, seconds)
        text = table(name, now).terminal()
        if terminal:
            print(f"\x1b[H\x1b[2J{text}", flush=True)
        elif text.partition("\n")[2] != last.partition("\n")[2]:
            print(text, flush=True)
        last = text
        if now.complete:
            return OK
        time.sleep(every)


# --- the end --------------------------------------------------------------------------------------------------------


def cells(plans: Mapping[str, Plan], lacking: Mapping[str, str], failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """What became of every cell: {cell, state, why, value, measure, folder}. lacking: why cells have no plan, by name;
    failed: why units failed, by fingerprint of what they were to make."""
    have = finished()
    found: list[dict[str, Any]] = []
    for name, plan in plans.items():
        missing = [leaf for leaf in leaves(plan) if leaf.spec.fingerprint not in have]
        why = (
            next((failed[s.spec.fingerprint] for s in plan.steps if s.spec.fingerprint in failed), "")
            if missing
            else ""
        )
        last = plan.steps[-1]
        folder = artifacts.folder_of(last.spec, last.stage.root())
        measure, value = (None, None) if missing else _value(plan, folder)
        state = "complete" if not missing else "failed" if why else "not run"
        found.append({"cell": name, "state": state, "why": why, "measure": measure, "value": value, "folder": folder})
    for name, reason in lacking.items():
        row = {"cell": name, "state": "not run", "why": reason, "measure": None, "value": None, "folder": None}
        found.append(row)
    return found


def _value(plan: Plan, folder: Path) -> tuple[str | None, float | None]:
    """The first measure of an evaluation, or the queries a second of a latency."""
    facts, stage = artifacts.read_manifest(folder)["facts"], plan.steps[-1].stage.name
    if stage == "evaluate":
        name = canonical(plan.cfg.data.measures[0])
        return name, float(facts["measures"][name])
    return ("queries/s", float(facts["qps"])) if stage == "latency" else (None, None)


def cells_table(title: str, found: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[object]] = [[row["cell"], row["state"], row["measure"], row["value"]] for row in found]
    counts = {state: sum(row["state"] == state for row in found) for state in ("complete", "failed", "not run")}
    footer = [", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "complete")]
    footer += list(dict.fromkeys(f"{row['state']}: {row['why']}" for row in found if row["why"]))
    return Table(title, ["cell", "state", "measure", "value"], rows, footer)


def status(found: Sequence[Mapping[str, Any]]) -> int:
    """The exit code: 3 where a cell is not complete."""
    return OK if all(row["state"] == "complete" for row in found) else MISSING
