"""Which engine, with which settings: those of `analyze pareto` that meet a wish, chosen on one half of the queries and
reported on the other.

A wish bounds an overlap with exact MaxSim (`overlap@10>=0.95`), a measure (`nDCG@10>=0.3`), a time (`p95<=20ms`), the
memory of the searching process (`memory<=2GB`), `bytes` a token, or `build` seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, UsageError, suggest
from xtrrep.experiments.cell import Overrides, as_texts
from xtrrep.experiments.definition import Row, load_analysis
from xtrrep.experiments.execute import HERE, Where
from xtrrep.experiments.numbers import overlap_depth, overlaps, read_number
from xtrrep.experiments.planning import columns_of, plan
from xtrrep.experiments.rounds import in_rounds
from xtrrep.experiments.values import by_unit
from xtrrep.measure import run_file
from xtrrep.report.table import Table

TIMES = {"p50": 50, "p95": 95}
WHOLE = {"memory": "latency.peak_mb", "bytes": "bytes_per_token", "build": "index.seconds"}
UNITS = {"": 1.0, "ms": 1.0, "s": 1000.0, "MB": 1.0, "GB": 1000.0}  # of times in ms, of memory in MB
FORM = re.compile(r"([\w@]+)\s*(>=|<=)\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
RESAMPLES, UNLUCKY = 400, 0.1
SHOWN = 8


@dataclass(frozen=True)
class Wish:
    """One bound. A time is in ms, memory in MB."""

    text: str
    quantity: str
    at_least: bool
    bound: float

    def short_of(self, value: float) -> float:
        """How far a value misses the bound, as a share of it; 0 or less where it is met."""
        gap = self.bound - value if self.at_least else value - self.bound
        return gap / self.bound if self.bound else gap


def parse_wish(text: str) -> Wish:
    """Raises UsageError for what is no wish, and for a quantity that nothing measures."""
    found = FORM.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no wish", hint="'overlap@10>=0.95' 'p95<=20ms' 'memory<=2GB'")
    name, sign, number, unit = found.groups()
    known = ["overlap@10", "overlap@100", "nDCG@10", "Recall@100", *TIMES, *WHOLE]
    if not overlap_depth(name) and name not in known and "@" not in name:
        raise UsageError(f"nothing measures {name!r}", hint=suggest(name, known))
    fitting = {"ms", "s", ""} if name in TIMES else {"MB", "GB"} if name == "memory" else {"", "s"}
    if unit not in fitting:
        raise UsageError(f"{text!r}: {name} has no unit {unit!r}", hint=f"one of {', '.join(sorted(fitting - {''}))}")
    scale = 1.0 if name == "build" else UNITS[unit]
    return Wish(text.strip(), name, sign == ">=", float(number) * scale)


@dataclass(frozen=True)
class Setting:
    """A row with its values: by query, or one of the whole run."""

    row: Row
    by_query: Mapping[str, Mapping[str, float]]
    whole: Mapping[str, float]

    def value(self, quantity: str, queries: Sequence[str], *, unlucky: Wish | None = None) -> float | None:
        """A quantity over some queries, None where it was not measured there. `unlucky`: as only one resample of the
        queries in ten has it or worse."""
        if quantity in self.whole:
            return self.whole[quantity]
        series = self.by_query["time" if quantity in TIMES else quantity]
        known = np.array([series[query] for query in queries if query in series])
        if not len(known):
            return None
        if unlucky is None:
            return float(_statistic(quantity, known[None])[0])
        drawn = np.random.default_rng(0).integers(0, len(known), (RESAMPLES, len(known)))
        values = _statistic(quantity, known[drawn])
        return float(np.quantile(values, UNLUCKY if unlucky.at_least else 1 - UNLUCKY))

    @property
    def words(self) -> list[str]:
        """What to type for it."""
        return as_texts(self.row.overrides or {})


def _statistic(quantity: str, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row: a percentile of times, else the mean."""
    found = np.percentile(rows, TIMES[quantity], axis=1) if quantity in TIMES else rows.mean(axis=1)
    return np.asarray(found, np.float64)


@dataclass(frozen=True)
class Advice:
    """What was chosen. met: whether it meets every wish where it was chosen; sure: even were the queries unlucky; held:
    whether it does on the other half. table: a line a wish. others: what came close."""

    chosen: Setting
    met: bool
    held: bool
    sure: bool
    table: Table
    others: Table


def settings_of(model: str, scale: str, overrides: Overrides, wishes: Sequence[Wish], where: Where) -> list[Setting]:
    """Every setting of `analyze pareto`, run or reused. Raises DataError where none could run."""
    given = {**overrides, "analyze.models": f"[{model}]"}
    experiment = load_analysis("pareto", scale, given)
    plans = plan(experiment, given, require=True)
    first = columns_of(experiment)[0].name
    outcome = in_rounds(experiment, plans, where)
    made = {key[0]: folders for key, folders in outcome.folders.items() if key[1] == first}
    oracle = next((made[row.name] for row in experiment.rows if _is_oracle(row) and row.name in made), None)
    rows = [row for row in experiment.rows if row.name in made and "latency" in made[row.name]]
    if oracle is None or not rows:
        reasons = [*plans.reasons(), *outcome.failures.values(), "no setting could run"]
        raise DataError(reasons[0], hint="xtrrep analyze pareto says why each setting did not run")
    truth = run_file.read(oracle["retrieve"] / "run.trec")
    measures = [wish.quantity for wish in wishes if wish.quantity not in {*TIMES, *WHOLE}]
    return [_read(row, made[row.name], truth, measures) for row in rows]


def _is_oracle(row: Row) -> bool:
    return row.place.get("engine") == "oracle" and row.place.get("scoring") == "ColBERT"


def _read(row: Row, folders: Mapping[str, Path], truth: run_file.Run, measures: Sequence[str]) -> Setting:
    found = run_file.read(folders["retrieve"] / "run.trec")

    def series(reads: str, scale: float = 1.0) -> dict[str, float]:
        return {str(query): scale * float(value) for query, value in by_unit(reads, folders).items()}

    by_query = {"time": series("seconds", 1000)}
    for measure in {"overlap@10", *measures}:
        depth = overlap_depth(measure)
        by_query[measure] = overlaps(found, truth, depth) if depth else series(measure)
    numbers = {name: read_number(reads, folders) for name, reads in WHOLE.items()}
    return Setting(row, by_query, {name: number for name, number in numbers.items() if number is not None})


def choose(settings: Sequence[Setting], wishes: Sequence[Wish]) -> Advice:
    """The fastest of those that meet the wishes on every second query, or the most faithful where only speed or size is
    wished for; else the one that misses by least. Reported on the other queries."""
    queries = list(settings[0].by_query["overlap@10"])
    halves = queries[::2], queries[1::2]

    def miss(setting: Setting, half: Sequence[str], *, careful: bool) -> float:
        found = [setting.value(w.quantity, half, unlucky=w if careful else None) for w in wishes]
        return max(np.inf if v is None else w.short_of(v) for w, v in zip(wishes, found, strict=True))

    def rank(setting: Setting) -> tuple[float, float]:
        time = setting.value("p50", halves[0]) or np.inf
        faithful = -(setting.value("overlap@10", halves[0]) or 0.0)
        return (time, faithful) if any(wish.at_least for wish in wishes) else (faithful, time)

    sure = [s for s in settings if miss(s, halves[0], careful=True) <= 0]
    meets = sure or [s for s in settings if miss(s, halves[0], careful=False) <= 0]
    chosen = (
        min(meets, key=rank) if meets else min(settings, key=lambda s: (miss(s, halves[0], careful=False), rank(s)))
    )
    held = miss(chosen, halves[1], careful=False) <= 0
    rows: list[list[object]] = []
    for wish in wishes:
        value = chosen.value(wish.quantity, halves[1])
        met = "not measured" if value is None else "yes" if wish.short_of(value) <= 0 else "no"
        rows.append([wish.text, chosen.value(wish.quantity, halves[0]), value, met])
    table = Table(
        f"{chosen.row.name}" if meets else f"nothing meets it; the nearest is {chosen.row.name}",
        ["wish", "where it was chosen", "on the other half", "met there"],
        rows,
        [f"{len(halves[0])} and {len(halves[1])} queries; times of those that were timed, in ms, memory in MB."],
        digits=3,
    )
    near = sorted(settings, key=lambda s: (max(0.0, miss(s, halves[0], careful=False)), rank(s)))[:SHOWN]
    shown = list(dict.fromkeys([*(wish.quantity for wish in wishes), "overlap@10", "p50"]))
    others = Table(
        "Beside it",
        ["setting", *shown, "meets it"],
        [[s.row.name, *(s.value(name, halves[0]) for name in shown), "yes" if s in meets else "no"] for s in near],
        [f"{len(meets)} of {len(settings)} settings meet it where they were chosen from."],
        digits=3,
    )
    return Advice(chosen, bool(meets), held, bool(sure), table, others)


def advise(
    wishes: Sequence[str], model: str, scale: str, overrides: Overrides, where: Where = HERE
) -> tuple[Advice, list[Wish]]:
    """Run `analyze pareto` for one model, as far as `analyze.minutes` go, and choose."""
    parsed = [parse_wish(text) for text in wishes]
    if not parsed:
        raise UsageError("nothing is wished for", hint="xtrrep recommend 'overlap@10>=0.95' 'p95<=20ms'")
    return choose(settings_of(model, scale, overrides, parsed, where), parsed), parsed
