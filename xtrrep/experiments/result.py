"""What came out of an experiment: the only source of its tables, its figures, the report and results/recorded/.

result.json   values by cell and training seed, comparisons with verdicts, provenance (SCHEMA says which form)
units.csv     the values of every query (or document) behind them: row, column, value, seed, unit, number
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import json
import os
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.console import DataError, machine_error, typed
from xtrrep.experiments.numbers import is_measure
from xtrrep.retrieval.latency import hardware

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
FILE, UNITS = "result.json", "units.csv"
COMMIT_VARIABLE = "XTRREP_COMMIT"  # for a copy of the sources without their history
LIBRARIES = ("torch", "sentence-transformers", "transformers", "numpy", "scann", "fast-plaid", "xtr-warp-rs")
AGREES, HIGHER, LOWER = "agrees", "higher", "lower"
NO_RECORD, NOT_COMPARED, NOT_RUN, QUOTED = "no record", "not compared", "not run", "quoted"
SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
UNTRAINED = "baseline not trained"
DIFFERS, NO_DIFFERENCE = "differs", "no clear difference"

Key = tuple[str, str, str]  # row, column, and what is read: a measure, qps, seconds, candidates, an analysis' column


@dataclass(frozen=True)
class PerUnit:
    """ids: (U,) queries or documents. values: (S, U), a row a training seed."""

    ids: tuple[str, ...]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Value:
    """What one cell gives: in points, in queries a second, or as an analysis' table says.

    mean, sd: over training seeds, sd of a sample and None for one seed; by_seed: each seed's own. runs: fingerprints
    of the stages it was read from. weights: a digest of the trained weights behind it, None where no model was trained
    for it. reason: why there is no value. by_process: of times, what each process took, a tuple a seed.
    """

    row: str
    column: str
    reads: str
    mean: float | None = None
    sd: float | None = None
    by_seed: tuple[float, ...] = ()
    runs: tuple[str, ...] = ()
    weights: str | None = None
    reason: str = ""
    by_process: tuple[tuple[float, ...], ...] = ()

    @property
    def key(self) -> Key:
        return self.row, self.column, self.reads

    def over(self, by_seed: Sequence[float], runs: Iterable[str], weights: str | None) -> Value:
        """The same cell with a value for each training seed."""
        mean, sd = statistics.fmean(by_seed), statistics.stdev(by_seed) if len(by_seed) > 1 else None
        return dataclasses.replace(
            self, mean=mean, sd=sd, by_seed=tuple(by_seed), runs=tuple(runs), weights=weights, reason=""
        )


@dataclass(frozen=True)
class Expected:
    """A value beside the paper's and the one accepted last; `against` is the one that the verdict compares it with."""

    row: str
    column: str
    paper: float | None
    recorded: float | None
    now: float | None
    verdict: str
    against: float | None = None
    sd: float | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Effect:
    """A comparison and what came out. p is corrected by Holm's method within the family, None where no test was made.
    power: the chance that the test finds a true effect of `detect`, at the first step of that correction.

    For a difference from a baseline, `row` and `column` name the cell, and effect and interval are in its units.
    """

    id: str
    says: str
    where: str
    of: str  # what the effect is of, such as "nDCG@10, difference"
    expected: str
    verdict: str
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    units: int = 0
    note: str = ""
    runs: tuple[str, ...] = ()
    family: str = ""
    row: str = ""
    column: str = ""
    baseline: str = ""
    detect: float | None = None
    power: float | None = None


@dataclass(frozen=True)
class ShownColumn:
    """A column as tables and figures need it."""

    name: str
    data: str | None
    measure: str
    k_prime: int | None = None

    @property
    def is_measure(self) -> bool:
        """Whether its values are in points."""
        return is_measure(self.measure)


@dataclass(frozen=True)
class Result:
    """kind: reproduction, claims, analysis or grid. places: a row's choices on the axes, for rows that have any.
    spread: the axis over whose choices a table shows the spread. remarks: lines under the table of an analysis. rule:
    in words, what verdicts on expected values rest on. quality: by row and column (measure, value, sd) of another
    experiment, for its figure. pictures: files that an analysis drew, by name.
    test: in words, the test of several seeds; empty in records from before it was the crossed one.
    """

    kind: str
    name: str
    title: str
    scale: str
    values: tuple[Value, ...]
    data: str = ""
    seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[ShownColumn, ...] = ()
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    axes: tuple[str, ...] = ()
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spread: str | None = None
    remarks: tuple[str, ...] = ()
    expected: tuple[Expected, ...] = ()
    effects: tuple[Effect, ...] = ()
    rule: str = ""
    notes: tuple[str, ...] = ()
    figure: str | None = None
    quality: tuple[tuple[str, str, str, float, float], ...] = ()
    resamples: int = 0
    test: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    per_unit: Mapping[Key, PerUnit] = field(default_factory=dict)

    def value(self, row: str, column: str) -> Value | None:
        """The value of a cell that is read in one way."""
        return next((value for value in self.values if (value.row, value.column) == (row, column)), None)

    def now(self, row: str, column: str) -> float | None:
        """A cell's mean over seeds; of a column that is a mean of others, the mean of these where all are there."""
        if column in self.means:
            members = [self.now(row, member) for member in self.means[column]]
            known = [value for value in members if value is not None]
            return statistics.fmean(known) if len(known) == len(members) else None
        value = self.value(row, column)
        return None if value is None else value.mean

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, per-unit values left out."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "per_unit"}
        return {"schema": SCHEMA, **{key: _plain(value) for key, value in plain.items()}}

    def write(self, folder: Path) -> None:
        """Write result.json, and units.csv where there are values by unit."""
        artifacts.write_json(folder / FILE, self.as_json())
        if self.per_unit:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["row", "column", "value", "seed", "unit", "number"])
            for key, found in self.per_unit.items():
                for seed, numbers in enumerate(found.values):
                    said = self.seeds[seed] if self.seeds else ""
                    rows = zip(found.ids, numbers.tolist(), strict=True)
                    writer.writerows([*key, said, unit, number] for unit, number in rows)
            artifacts.write_atomic(folder / UNITS, lambda file: file.write(text.getvalue().encode()))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def read(folder: Path) -> Result:
    """A result from its folder, without values by unit. Raises DataError where it is none, or of another schema."""
    path = folder / FILE
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if told.pop("schema") != SCHEMA:
            raise DataError(f"{path} is of another version of xtrrep", hint=f"rm -r {typed(folder)}, and run again")
        parts = {"values": Value, "expected": Expected, "effects": Effect, "columns": ShownColumn}
        for key, kind in parts.items():
            told[key] = tuple(kind(**{k: _tuple(v) for k, v in item.items()}) for item in told[key])
        for key in ("means", "places"):
            told[key] = {name: tuple(group) for name, group in told.get(key, {}).items()}
        return Result(**{key: _tuple(value) for key, value in told.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise machine_error(error) or DataError(
            f"{path} is not the result of an experiment ({error!r})", hint=f"rm -r {typed(folder)}"
        ) from None


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


# --- what was accepted ------------------------------------------------------------------------------------------------


def label(kind: str, name: str, scale: str, data: str, seeds: Sequence[int]) -> str:
    """The name of a record: under several training seeds it is another result than under one."""
    of = {"claims": [], "analysis": [name]}.get(kind)
    parts = [name, scale] if of is None else [*of, data.replace("/", "-"), scale]
    return "-".join([*parts, *([f"seeds-{'-'.join(map(str, seeds))}"] if seeds else [])])


def recorded_folder(result: Result) -> Path:
    """Where a result is recorded: below `results/recorded/` of the source tree, or here where there is none."""
    root = configs.recorded_root() or Path.cwd() / "results" / "recorded"
    kind = {"reproduction": "reproductions", "claims": "claims", "analysis": "analyses", "grid": "grids"}[result.kind]
    return root / kind / label(result.kind, result.name, result.scale, result.data, result.seeds)


def recorded(result: Result) -> Result | None:
    """What was accepted last for the same experiment, scale and seeds. Raises DataError as `read`."""
    folder = recorded_folder(result)
    return read(folder) if folder.exists() else None


def same_settings(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists of overrides mean the same. Where and how fast things run does not count."""
    return _meaning(first) == _meaning(second)


def _meaning(overrides: Sequence[str]) -> set[str]:
    last = {text.partition("=")[0]: text for text in overrides}
    return {text for text in last.values() if not text.startswith("machine.")}


def check_accept(result: Result) -> None:
    """Raise DataError where something else was accepted, made with other overrides: before hours are spent on it."""
    before = recorded(result)
    if before is not None and not same_settings(before.overrides, result.overrides):
        raise DataError(
            f"{recorded_folder(result)} was accepted with {' '.join(before.overrides) or 'no overrides'}, "
            "not with these",
            hint=f"the same overrides, or first rm -r {typed(recorded_folder(result))}",
        )


def provenance(seconds: int) -> dict[str, Any]:
    """When, from which sources, with which libraries and on what a result was made, and what its stages took."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "hardware": hardware(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "seconds": seconds,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """The commit that is checked out, with `-dirty` where what makes results has changed since."""
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE]

    def git(*arguments: str) -> str:
        place = configs.checkout() or os.curdir
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=place).stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "xtrrep", "configs", "constraints.txt")
    except OSError:
        return "unknown"
    return head + ("-dirty" if changed else "") if head else "unknown"
