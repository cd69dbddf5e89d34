"""The study's tables and figures as data, run here and compared cell by cell.

`configs/reproductions/NAME.yaml` says which runs make up a table, what the paper printed, and what counts as agreement:

    title, tolerance        words; points within which two values agree, null where they are not compared
    overrides               of every cell
    columns                 NAME: {data, measure, overrides?}; measure is an ir-measures name or `qps`
    means                   NAME: [columns], over values that are all there
    rows                    a list of {name, overrides?, paper: {column: value}, paper_only?}; without overrides a row
                            is only quoted
    here                    {columns?, overrides?}: what stands in for them at any scale but `paper`

At `scale=paper` a cell is judged against the paper's value; anywhere else against what was last accepted there
(`--accept` writes `results/recorded/reproductions/NAME-SCALE.json`), with the paper's value beside it and no verdict.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.artifacts import Spec
from xtrrep.console import DIFFER, MISSING, OK, DataError, UsageError, XtrrepError, say, suggest
from xtrrep.evaluate import canonical, parse
from xtrrep.latency import processor
from xtrrep.report.table import Table

K = TypeVar("K")

QPS = "qps"
REPEATED = 0.05  # points: the same commands on the same kind of machine come this close
AGREES, HIGHER, LOWER, NO_RECORD, NOT_COMPARED = "agrees", "higher", "lower", "no record", "not compared"


@dataclass(frozen=True)
class Column:
    """What a column of the table measures, and on what."""

    name: str
    measure: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line: what chooses its model and engine (None: only quoted), and the paper's values by column."""

    name: str
    overrides: tuple[str, ...] | None
    paper: Mapping[str, float]


@dataclass(frozen=True)
class Reproduction:
    """A table or figure at one scale."""

    name: str
    title: str
    scale: str
    tolerance: float | None
    overrides: tuple[str, ...]
    columns: tuple[Column, ...]
    means: Mapping[str, tuple[str, ...]]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Cell:
    """One value: the paper's, the one accepted last, ours, and what to think of that."""

    row: str
    column: str
    paper: float | None
    recorded: float | None
    now: float | None
    verdict: str


def names() -> list[str]:
    """Every reproduction there is."""
    return sorted(path.stem for path in (configs.config_dir() / "reproductions").glob("*.yaml"))


def load(name: str, scale: str) -> Reproduction:
    """Read and check a reproduction. Raises DataError for an unknown name, UsageError naming file and fault."""
    if name not in names():
        raise DataError(f"no reproduction named {name!r}", hint=suggest(name, names()))
    path = configs.config_dir() / "reproductions" / f"{name}.yaml"
    return parse_reproduction(path, scale)


def parse_reproduction(path: Path, scale: str) -> Reproduction:
    """As `load`, from any file."""
    try:
        text = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    known = {"title", "tolerance", "overrides", "columns", "means", "rows", "here"}
    check_keys(path, "it", text, known, {"title", "tolerance", "columns", "rows"})
    here = {} if scale == "paper" else text.get("here", {})
    check_keys(path, "here", here, {"columns", "overrides"}, set())
    columns = tuple(_column(path, key, value) for key, value in here.get("columns", text["columns"]).items())
    quoted = {_column(path, key, value).name for key, value in text["columns"].items()}
    means = {key: tuple(map(str, value)) for key, value in text.get("means", {}).items()}
    rows = []
    for value in text["rows"]:
        check_keys(path, "a row", value, {"name", "overrides", "paper", "paper_only"}, {"name"})
        for column in value.get("paper", {}):
            if column not in quoted | set(means):
                raise UsageError(f"{path}: row {value['name']!r} quotes {column!r}, which is no column")
        if value.get("paper_only") and scale != "paper":
            continue
        overrides = None if "overrides" not in value else tuple(map(str, value["overrides"]))
        rows.append(Row(value["name"], overrides, {k: float(v) for k, v in value.get("paper", {}).items()}))
    for group in means.values():
        for column in group:
            if column not in quoted:
                raise UsageError(f"{path}: a mean is over {column!r}, which is no column")
    if len({row.name for row in rows}) < len(rows):
        raise UsageError(f"{path} names one row twice")
    overrides = (*map(str, text.get("overrides", [])), *map(str, here.get("overrides", [])))
    shown = {column.name for column in columns}
    kept = {key: group for key, group in means.items() if set(group) <= shown}
    return Reproduction(path.stem, text["title"], scale, text["tolerance"], overrides, columns, kept, tuple(rows))


def check_keys(path: Path, what: str, value: Any, known: set[str], needed: set[str]) -> None:
    """Refuse a mapping of a file with a key that is unknown or one that is lacking. Raises UsageError."""
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {what} is not a mapping")
    for key in value:
        if key not in known:
            raise UsageError(f"{path}: {what} has an unknown key {key!r}", hint=suggest(str(key), known))
    for key in sorted(needed - value.keys()):
        raise UsageError(f"{path}: {what} has no {key!r}")


def _column(path: Path, name: Any, value: Any) -> Column:
    check_keys(path, f"column {name}", value, {"data", "measure", "overrides"}, {"data", "measure"})
    if value["measure"] != QPS:
        try:
            parse([value["measure"]])
        except UsageError as error:
            raise UsageError(f"{path}: column {name}: {error}", hint=error.hint) from None
    return Column(str(name), value["measure"], (f"data={value['data']}", *map(str, value.get("overrides", []))))


# --- plans ---------------------------------------------------------------------------------------------------------


def words_of(what: Reproduction, row: Row, column: Column, extra: Sequence[str]) -> list[str]:
    """The overrides of one cell; what stands later wins."""
    measure = [] if column.measure == QPS else [f"data.measures=[{column.measure}]"]
    own = [*what.overrides, *(row.overrides or ()), *column.overrides, *measure, f"scale={what.scale}", *extra]
    chosen: dict[str, str] = {}
    for word in own:
        chosen[word.partition("=")[0]] = word
    engine = chosen.get("index", "").partition("=")[2]
    if engine in ("exact", "bm25"):  # what bounds k-means means nothing to them
        chosen = {key: word for key, word in chosen.items() if not key.startswith("index.")}
    if engine == "bm25":  # nor does how token hits are scored
        chosen = {key: word for key, word in chosen.items() if not key.startswith("retrieve.")}
    return list(chosen.values())


def check_extra(what: Reproduction, extra: Sequence[str]) -> None:
    """Refuse an override of what a row or column names: the table would say one thing and hold another."""
    told = [*(row.overrides or () for row in what.rows), *(column.overrides for column in what.columns)]
    fixed = {word.partition("=")[0] for words in told for word in words} | {"scale", "data.measures"}
    for word in extra:
        if word.partition("=")[0] in fixed:
            raise UsageError(
                f"{word!r}: the rows and columns of {what.name} say that themselves",
                hint=f"--only COLUMN, or another file beside configs/reproductions/{what.name}.yaml",
            )


def plan_cell(what: Reproduction, row: Row, column: Column, extra: Sequence[str]) -> pipeline.Plan:
    """The plan of one cell. Raises UsageError and DataError as composing and planning do."""
    until = "latency" if column.measure == QPS else "evaluate"
    return pipeline.plan(configs.compose(words_of(what, row, column, extra)), until)


def at_hand(column: Column) -> bool:
    """Whether a collection can be read here without a network: the embedded one, or a local folder."""
    from xtrrep.data import resolve

    try:
        return resolve(configs.compose([column.overrides[0]]).data).loader != "ir_datasets"
    except DataError:
        return False


def select(what: Reproduction, only: str | None) -> Reproduction:
    """Only one collection's columns, and at any scale but `paper` only collections at hand.

    Raises UsageError for a column that is not there and DataError where nothing is left.
    """
    columns = what.columns
    if only is not None:
        columns = tuple(c for c in columns if only in (c.name, c.overrides[0].removeprefix("data="), c.name.split()[0]))
        if not columns:
            raise UsageError(f"{what.name} has no column {only!r}", hint=suggest(only, [c.name for c in what.columns]))
    if what.scale != "paper":
        absent = sorted({c.overrides[0].removeprefix("data=") for c in columns if not at_hand(c)})
        columns = tuple(c for c in columns if at_hand(c))
        if absent:
            say(f"  note: not at hand, left out: {', '.join(absent)} (XTRREP_DATA=FOLDER of BEIR folders)")
        if not columns:
            raise DataError(f"{what.name}: none of its collections is at hand", hint="export XTRREP_DATA=FOLDER")
    shown = {column.name for column in columns}
    return replace(what, columns=columns, means={k: g for k, g in what.means.items() if set(g) <= shown})


def plans(what: Reproduction, extra: Sequence[str]) -> tuple[list[pipeline.Plan], list[str]]:
    """Every cell's plan, and in words what stands in the way of the others. Raises as `check_extra`."""
    check_extra(what, extra)
    found, lacking = [], []
    for row in what.rows:
        for column in what.columns if row.overrides is not None else ():
            try:
                found.append(plan_cell(what, row, column, extra))
            except XtrrepError as error:
                lacking.append(f"{row.name}, {column.name}: {error}")
    return found, lacking


# --- run, compare, show --------------------------------------------------------------------------------------------


def recorded_path(name: str, scale: str) -> Path:
    root = configs.checkout() or Path.cwd()
    return root / "results" / "recorded" / "reproductions" / f"{name}-{scale}.json"


def recorded(name: str, scale: str) -> dict[str, Any]:
    """What was last accepted: {"cells": {row: {column: value}}, ...}; no cells where nothing was."""
    path = recorded_path(name, scale)
    if not path.exists():
        return {"cells": {}}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found | {"cells": dict(found["cells"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no record of a reproduction ({error})", hint=f"rm {path}") from None


def measure(
    what: Reproduction, extra: Sequence[str]
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], str]]:
    """Run or re-use every cell. Returns values (in points, or queries a second) by (row, column) and, for cells without
    one, why; a cell that fails does not stop the others."""
    from xtrrep import preflight

    ready: dict[tuple[str, str], pipeline.Plan] = {}
    reasons: dict[tuple[str, str], str] = {}
    for row in what.rows:
        for column in what.columns if row.overrides is not None else ():
            try:
                plan = plan_cell(what, row, column, extra)
                preflight.require([plan])
                ready[row.name, column.name] = plan
            except XtrrepError as error:
                reasons[row.name, column.name] = str(error)
    kinds = {column.name: column for column in what.columns}
    found = carry_out(ready, reasons)
    return {key: _value(kinds[key[1]], folders) for key, folders in found.items()}, reasons


def carry_out(ready: Mapping[K, pipeline.Plan], reasons: dict[K, str]) -> dict[K, Mapping[str, Path]]:
    """All plans together, so that cells share searches; one by one where that fails, to lose no more than must be.

    Returns the folders of what ran; what did not goes into `reasons`.
    """
    try:
        return dict(zip(ready, pipeline.run(list(ready.values())).folders, strict=True))
    except XtrrepError as error:
        say(f"note: {error}; cell by cell from here")
    found: dict[K, Mapping[str, Path]] = {}
    for key, plan in ready.items():
        try:
            again = pipeline.plan(plan.cfg, plan.steps[-1].stage.name)  # looks anew at what is there
            found[key] = pipeline.run([again]).folders[0]
        except XtrrepError as error:
            reasons[key] = str(error)
    return found


def _value(column: Column, folders: Mapping[str, Path]) -> float:
    if column.measure == QPS:
        return float(artifacts.read_manifest(folders["latency"])["facts"]["qps"])
    return 100 * float(artifacts.read_manifest(folders["evaluate"])["facts"]["measures"][canonical(column.measure)])


def judge(
    what: Reproduction, values: Mapping[tuple[str, str], float], accepted: Mapping[str, Mapping[str, float]]
) -> list[Cell]:
    """Every cell of the table, its means included, with its verdict."""
    cells = []
    for row in what.rows:
        now: dict[str, float | None] = {c.name: values.get((row.name, c.name)) for c in what.columns}
        for mean, group in what.means.items():
            members = [now[name] for name in group]
            found = [value for value in members if value is not None]
            now[mean] = sum(found) / len(found) if len(found) == len(members) else None
        for name, value in now.items():
            paper, record = row.paper.get(name), accepted.get(row.name, {}).get(name)
            cells.append(Cell(row.name, name, paper, record, value, _verdict(what, paper, record, value, row)))
    return cells


def _verdict(what: Reproduction, paper: float | None, record: float | None, now: float | None, row: Row) -> str:
    if row.overrides is None:
        return "quoted"
    if now is None:
        return "not run"
    at_paper = what.scale == "paper"
    tolerance, against = (what.tolerance, paper) if at_paper else (REPEATED, record)
    if what.tolerance is None or (at_paper and paper is None):
        return NOT_COMPARED
    if against is None:
        return NO_RECORD
    assert tolerance is not None
    if abs(now - against) <= tolerance + 1e-9:
        return AGREES
    return HIGHER if now > against else LOWER


def status(cells: Sequence[Cell]) -> int:
    """The exit code: 1 where a value differs, else 3 where one is missing, else 0."""
    verdicts = {cell.verdict for cell in cells}
    return DIFFER if verdicts & {HIGHER, LOWER} else MISSING if "not run" in verdicts else OK


def table(what: Reproduction, cells: Sequence[Cell], notes: Sequence[str]) -> Table:
    """One line a cell: what the paper printed, what was accepted, what came out now."""
    at_paper = what.scale == "paper"
    heading = "paper" if at_paper else "paper (another setting)"
    columns = ["row", "column", heading, "recorded", "now", "difference", "verdict"]
    rows: list[list[object]] = []
    for cell in cells:
        against = cell.paper if at_paper else cell.recorded
        difference = None if cell.now is None or against is None else cell.now - against
        rows.append([cell.row, cell.column, cell.paper, cell.recorded, cell.now, difference, cell.verdict])
    counts = {v: sum(c.verdict == v for c in cells) for v in dict.fromkeys(c.verdict for c in cells)}
    judged = "the paper's value" if at_paper else "the value accepted last at this scale"
    within = what.tolerance if at_paper else REPEATED
    rule = "not compared: another machine" if what.tolerance is None else f"{judged}, within {within} points"
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    footer = [f"scale={what.scale}; judged against {rule}. {said}.", *notes]
    return Table(f"{what.title}, scale={what.scale}", columns, rows, footer, digits=2)


def accept(what: Reproduction, cells: Sequence[Cell]) -> Path:
    """Record what came out now as what is expected at this scale; cells without a value keep theirs."""
    path = recorded_path(what.name, what.scale)
    kept = recorded(what.name, what.scale)["cells"]
    for cell in cells:
        if cell.now is not None:
            kept.setdefault(cell.row, {})[cell.column] = round(cell.now, 4)
    record = {
        "cells": kept,
        "accepted": datetime.date.today().isoformat(),
        "commit": _commit(),
        "hardware": processor(),
        "scale": what.scale,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(path, record)
    return path


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=configs.checkout() or os.curdir
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def write_table(shown: Table, out: Path) -> None:
    """Every form of a table in the folder `out`: `table.csv`, .md, .txt, .tex and .html."""
    shown.save(out / "table")
    for suffix, text in (("tex", shown.latex()), ("html", shown.html())):
        _write(out / f"table.{suffix}", text)


def _write(path: Path, text: str) -> None:
    artifacts.write_atomic(path, lambda file: file.write(text.encode()))


def reproduce(what: Reproduction, extra: Sequence[str]) -> tuple[Path, list[Cell], Table]:
    """Run, compare and write the table below `results/runs/reproduce/`. Returns folder, cells and table."""
    check_extra(what, extra)
    values, reasons = measure(what, extra)
    cells = judge(what, values, recorded(what.name, what.scale)["cells"])
    notes = [f"not run: {row}, {column}: {reason}" for (row, column), reason in reasons.items()]
    if extra:
        notes.append(f"with {' '.join(extra)}")
    shown = table(what, cells, notes)
    state = {"values": sorted([*key, value] for key, value in values.items()), "reasons": sorted(map(list, reasons))}
    accepted = recorded(what.name, what.scale)["cells"]
    spec = Spec(
        "reproduce",
        f"{what.name}-{what.scale}",
        1,
        {"notes": notes, "state": state, "recorded": accepted, "title": what.title},
    )

    def write(out: Path) -> dict[str, Any]:
        write_table(shown, out)
        return {"units": {"cells": len(cells)}, "name": what.name, "scale": what.scale}

    return artifacts.make(spec, configs.results_root(), write), cells, shown
