"""The study's tables, figures and stated results as data, run here and compared cell by cell.

`configs/reproductions/NAME.yaml` says what to run, what the paper printed, and what counts as agreement. It is of one
of two kinds. A table of runs, each cell a row's model on a column's collection:

    title, tolerance        words; points within which two values agree, null where they are not compared
    overrides               of every cell
    columns                 NAME: {data, measure, overrides?}; measure is an ir-measures name or `qps`
    means                   NAME: [columns], over values that are all there
    rows                    a list of {name, overrides?, paper: {column: value}, paper_only?}; without overrides a row
                            is only quoted
    figure, quality         `k_prime_sweep`, drawn from the cells; or `speed_and_quality`, from these and the measures
                            of the reproduction that `quality` names, as far as they are at hand
    here                    {columns?, overrides?}: what stands in for them at any scale but `paper`
    lab                     {columns?, overrides?}: what `scale=lab` adds to that

Or numbers of one analysis' table:

    title, tolerance        as above, in the units of the cells
    analysis                its name; `overrides` compose it
    cells                   a list of {name, where: {column: value}, column, paper?, scale_by?, tolerance?}: the value
                            under `column` in the one row that matches `where`, times scale_by
    here, lab               {overrides}, as above

At `scale=paper` a cell is judged against the paper's value; anywhere else, and where an analysis' cell has none,
against what was last accepted there (`--accept` writes `results/recorded/reproductions/NAME-SCALE.json`), with the
paper's value beside it and no verdict.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.analyze import analyses
from xtrrep.artifacts import Spec
from xtrrep.console import DIFFER, MISSING, OK, DataError, UsageError, XtrrepError, say, suggest
from xtrrep.evaluate import canonical, parse
from xtrrep.latency import hardware
from xtrrep.report.figure import k_prime_sweep, speed_and_quality
from xtrrep.report.table import Table

K = TypeVar("K")
COMMIT_VARIABLE = "XTRREP_COMMIT"  # for a copy of the sources without their history

QPS = "qps"
REPEATED = 0.1  # of the tolerance: the same commands on the same kind of machine come this close
AGREES, HIGHER, LOWER, NO_RECORD, NOT_COMPARED = "agrees", "higher", "lower", "no record", "not compared"
NOT_RUN, QUOTED = "not run", "quoted"
STAND_INS = ("here", "lab")
SWEEP, SPEED = FIGURES = ("k_prime_sweep", "speed_and_quality")
Key = tuple[str, str]  # a cell's row and column


@dataclass(frozen=True)
class Column:
    """What a column of the table measures, and on what."""

    name: str
    measure: str
    overrides: tuple[str, ...]

    @property
    def data(self) -> str:
        return self.overrides[0].removeprefix("data=")


@dataclass(frozen=True)
class Row:
    """One line: what chooses its model and engine (None: only quoted), and the paper's values by column."""

    name: str
    overrides: tuple[str, ...] | None
    paper: Mapping[str, float]


@dataclass(frozen=True)
class Reproduction:
    """A table or figure of runs at one scale."""

    name: str
    title: str
    scale: str
    tolerance: float | None
    overrides: tuple[str, ...]
    columns: tuple[Column, ...]
    means: Mapping[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    figure: str | None = None
    quality: str | None = None


@dataclass(frozen=True)
class Reading:
    """One number of an analysis' table: under `column`, in the one row that matches `where`, times `scale_by`."""

    name: str
    where: Mapping[str, str | int | float]
    column: str
    paper: float | None
    scale_by: float
    tolerance: float | None

    @property
    def key(self) -> Key:
        return self.name, self.column

    def value(self, rows: Sequence[Mapping[str, str]]) -> float:
        """From the rows of a CSV. Raises DataError where no row matches, or several do, or no number stands there."""
        said = ", ".join(f"{column}={wanted}" for column, wanted in self.where.items())
        for column in (*self.where, self.column):
            if rows and column not in rows[0]:
                raise DataError(f"its table has no column {column!r}", hint=suggest(column, rows[0]))
        found = [row for row in rows if all(_same(row[column], wanted) for column, wanted in self.where.items())]
        if len(found) != 1:
            raise DataError(f"{len(found) or 'no'} rows of its table match {said}")
        try:
            return float(found[0][self.column]) * self.scale_by
        except ValueError:
            raise DataError(f"{self.column} of {said} is no number: {found[0][self.column]!r}") from None


@dataclass(frozen=True)
class AnalysisReproduction:
    """Numbers of one analysis at one scale."""

    name: str
    title: str
    scale: str
    overrides: tuple[str, ...]
    analysis: str
    cells: tuple[Reading, ...]

    @property
    def data(self) -> str:
        """The collection it is made on."""
        named = [word.removeprefix("data=") for word in self.overrides if word.startswith("data=")]
        return named[-1] if named else configs.compose().data.id


Known = Reproduction | AnalysisReproduction


@dataclass(frozen=True)
class Cell:
    """One value: the paper's, the one accepted last, ours, what to think of that, and against which of them."""

    row: str
    column: str
    paper: float | None
    recorded: float | None
    now: float | None
    verdict: str
    against: float | None = None


def names() -> list[str]:
    """Every reproduction there is."""
    return sorted(path.stem for path in (configs.config_dir() / "reproductions").glob("*.yaml"))


def load(name: str, scale: str) -> Known:
    """Read and check a reproduction. Raises DataError for an unknown name, UsageError naming file and fault."""
    if name not in names():
        raise DataError(f"no reproduction named {name!r}", hint=suggest(name, names()))
    path = configs.config_dir() / "reproductions" / f"{name}.yaml"
    return parse_reproduction(path, scale)


def parse_reproduction(path: Path, scale: str) -> Known:
    """As `load`, from any file."""
    text = read_yaml(path)
    if isinstance(text, dict) and "analysis" in text:
        return _parse_analysis(path, text, scale)
    known = {"title", "tolerance", "overrides", "columns", "means", "rows", "figure", "quality", *STAND_INS}
    check_keys(path, "it", text, known, {"title", "tolerance", "columns", "rows"})
    here, added = _stand_ins(path, text, scale, {"columns", "overrides"})
    for what, part in (("columns", text["columns"]), ("columns of here", here.get("columns", {}))):
        need_mapping(path, what, part)
    need_mapping(path, "columns of a stand-in", added.get("columns", {}))
    shown_here = here.get("columns", text["columns"]) | added.get("columns", {})
    columns = tuple(_column(path, key, value) for key, value in shown_here.items())
    quoted = {_column(path, key, value).name for key, value in text["columns"].items()}
    averaged = need_mapping(path, "means", text.get("means", {}))
    means = {str(key): words_in(path, f"mean {key}", value) for key, value in averaged.items()}
    rows = []
    for value in need_list(path, "rows", text["rows"]):
        check_keys(path, "a row", value, {"name", "overrides", "paper", "paper_only"}, {"name"})
        name = str(value["name"])
        paper = need_mapping(path, f"paper of row {name!r}", value.get("paper", {}))
        for column, number in paper.items():
            if column not in quoted | set(means):
                raise UsageError(f"{path}: row {name!r} quotes {column!r}, which is no column")
            need_number(path, f"row {name!r}: {column}", number)
        if value.get("paper_only") and scale != "paper":
            continue
        overrides = words_in(path, f"overrides of row {name!r}", value["overrides"]) if "overrides" in value else None
        rows.append(Row(name, overrides, {column: float(number) for column, number in paper.items()}))
    for group in means.values():
        for column in group:
            if column not in quoted:
                raise UsageError(f"{path}: a mean is over {column!r}, which is no column")
    if len({row.name for row in rows}) < len(rows):
        raise UsageError(f"{path} names one row twice")
    figure, quality = text.get("figure"), text.get("quality")
    _check_figure(path, figure, quality, columns)
    if text["tolerance"] is not None:
        need_number(path, "tolerance", text["tolerance"])
    overrides = _overrides(path, text, here, added)
    shown = {column.name for column in columns}
    kept = {key: group for key, group in means.items() if set(group) <= shown}
    return Reproduction(
        path.stem, str(text["title"]), scale, text["tolerance"], overrides, columns, kept, tuple(rows), figure, quality
    )


def _stand_ins(path: Path, text: dict[str, Any], scale: str, known: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in for the study's collections at this scale: at all but `paper`, and at this one besides."""
    for key in STAND_INS:
        check_keys(path, key, text.get(key, {}), known, set())
    return ({} if scale == "paper" else text.get("here", {})), text.get(scale, {}) if scale in STAND_INS else {}


def _overrides(path: Path, *parts: dict[str, Any]) -> tuple[str, ...]:
    """The overrides of a file and of its stand-ins, in that order."""
    return tuple(word for part in parts for word in words_in(path, "overrides", part.get("overrides", [])))


def _check_figure(path: Path, figure: Any, quality: Any, columns: Iterable[Column]) -> None:
    if quality is not None and not isinstance(quality, str):
        raise UsageError(f"{path}: quality is not the name of a reproduction: {quality!r}")
    if figure is not None and figure not in FIGURES:
        raise UsageError(f"{path}: no figure {figure!r}", hint=suggest(str(figure), FIGURES))
    if (figure == SPEED) != (quality is not None):
        raise UsageError(f"{path}: figure {SPEED} and 'quality' go together")
    for column in columns:
        if figure == SWEEP and _k_prime(column) is None:
            raise UsageError(f"{path}: column {column.name} names no retrieve.k_prime, which {SWEEP} is over")


def _parse_analysis(path: Path, text: dict[str, Any], scale: str) -> AnalysisReproduction:
    known = {"title", "tolerance", "overrides", "analysis", "cells", *STAND_INS}
    check_keys(path, "it", text, known, {"title", "tolerance", "analysis", "cells"})
    here, added = _stand_ins(path, text, scale, {"overrides"})
    if not isinstance(text["analysis"], str) or text["analysis"] not in analyses.entries():
        hint = suggest(str(text["analysis"]), analyses.entries())
        raise UsageError(f"{path}: no analysis named {text['analysis']!r}", hint=hint)
    if not need_list(path, "cells", text["cells"]):
        raise UsageError(f"{path} has no cells")
    cells = tuple(_reading(path, value, text["tolerance"]) for value in text["cells"])
    if len({cell.key for cell in cells}) < len(cells):
        raise UsageError(f"{path} names one cell twice")
    overrides = _overrides(path, text, here, added)
    return AnalysisReproduction(path.stem, str(text["title"]), scale, overrides, text["analysis"], cells)


def _reading(path: Path, value: Any, tolerance: Any) -> Reading:
    known = {"name", "where", "column", "paper", "scale_by", "tolerance"}
    check_keys(path, "a cell", value, known, {"name", "where", "column"})
    what = f"cell {value['name']}"
    if not isinstance(value["where"], dict) or not value["where"]:
        raise UsageError(f"{path}: {what}: where is not a mapping of columns to values")
    numbers = {"paper": None, "scale_by": 1.0, "tolerance": tolerance} | value
    for key in ("paper", "scale_by", "tolerance"):
        number = numbers[key]
        if number is not None or key == "scale_by":
            need_number(path, f"{what}: {key}", number)
    return Reading(
        str(value["name"]),
        value["where"],
        str(value["column"]),
        None if numbers["paper"] is None else float(numbers["paper"]),
        float(numbers["scale_by"]),
        numbers["tolerance"],
    )


def _same(text: str, wanted: str | int | float) -> bool:
    """Whether a CSV's text is a value of a YAML file."""
    if isinstance(wanted, str):
        return text == wanted
    try:
        return float(text) == wanted
    except ValueError:
        return False


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises UsageError, with the line, where it is none."""
    try:
        return yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none, a huge number
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def need_mapping(path: Path, what: str, value: Any) -> dict[Any, Any]:
    """`value`, where it is a mapping. Raises UsageError."""
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {what} is not a mapping")
    return value


def need_list(path: Path, what: str, value: Any) -> list[Any]:
    """`value`, where it is a list. Raises UsageError."""
    if not isinstance(value, list):
        raise UsageError(f"{path}: {what} is not a list")
    return value


def words_in(path: Path, what: str, value: Any) -> tuple[str, ...]:
    """The texts and numbers of a list, as texts. Raises UsageError."""
    for word in need_list(path, what, value):
        if not isinstance(word, str | int | float):
            raise UsageError(f"{path}: {what} holds {word!r}, which is no word")
    return tuple(map(str, value))


def need_number(path: Path, what: str, value: Any) -> None:
    """Raises UsageError for anything but a finite number."""
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return
    except OverflowError:  # an integer that no float holds
        pass
    raise UsageError(f"{path}: {what} is not a number: {value!r}")


def check_keys(path: Path, what: str, value: Any, known: set[str], needed: set[str]) -> None:
    """Refuse a mapping of a file with a key that is unknown or one that is lacking. Raises UsageError."""
    for key in need_mapping(path, what, value):
        if key not in known:
            raise UsageError(f"{path}: {what} has an unknown key {key!r}", hint=suggest(str(key), known))
    for key in sorted(needed - value.keys()):
        raise UsageError(f"{path}: {what} has no {key!r}")


def _column(path: Path, name: Any, value: Any) -> Column:
    check_keys(path, f"column {name}", value, {"data", "measure", "overrides"}, {"data", "measure"})
    measure, overrides = str(value["measure"]), words_in(path, f"column {name}", value.get("overrides", []))
    if measure != QPS:
        try:
            parse([measure])
        except UsageError as error:
            raise UsageError(f"{path}: column {name}: {error}", hint=error.hint) from None
    return Column(str(name), measure, (f"data={value['data']}", *overrides))


# --- plans ---------------------------------------------------------------------------------------------------------


def _last_wins(words: Iterable[str]) -> list[str]:
    chosen: dict[str, str] = {}
    for word in words:
        chosen[word.partition("=")[0]] = word
    return list(chosen.values())


def words_of(what: Reproduction, row: Row, column: Column, extra: Sequence[str]) -> list[str]:
    """The overrides of one cell; what stands later wins."""
    measure = [] if column.measure == QPS else [f"data.measures=[{column.measure}]"]
    own = [*what.overrides, *(row.overrides or ()), *column.overrides, *measure, f"scale={what.scale}", *extra]
    chosen = _last_wins(own)
    engine = next((word.removeprefix("index=") for word in chosen if word.startswith("index=")), "")
    if engine in ("exact", "bm25"):  # what bounds k-means means nothing to them
        chosen = [word for word in chosen if not word.startswith("index.")]
    if engine == "bm25":  # nor does how token hits are scored
        chosen = [word for word in chosen if not word.startswith("retrieve.")]
    return chosen


def words_of_analysis(what: AnalysisReproduction, extra: Sequence[str]) -> list[str]:
    """The overrides of an analysis; what stands later wins."""
    return _last_wins([f"analyze.name={what.analysis}", *what.overrides, f"scale={what.scale}", *extra])


def check_extra(what: Known, extra: Sequence[str]) -> None:
    """Refuse an override of what a row, column or cell names: the table would say one thing and hold another."""
    if isinstance(what, AnalysisReproduction):
        fixed = {"scale", "analyze.name", "analyze.models", "data"}
    else:
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


def at_hand(data: str) -> bool:
    """Whether a collection can be read here without a network: the embedded one, or a local folder."""
    from xtrrep.data import resolve

    try:
        return resolve(configs.compose([f"data={data}"]).data).loader != "ir_datasets"
    except DataError:
        return False


def select(what: Known, only: str | None) -> Known:
    """Only one collection's columns, or an analysis' cells of one name or value of `where`; and at any scale but
    `paper` only collections at hand.

    Raises UsageError for a column or cell that is not there and DataError where nothing is left.
    """
    if isinstance(what, AnalysisReproduction):
        return _select_cells(what, only)
    columns = what.columns
    if only is not None:
        columns = tuple(c for c in columns if only in (c.name, c.data, c.name.split()[0]))
        if not columns:
            raise UsageError(f"{what.name} has no column {only!r}", hint=suggest(only, [c.name for c in what.columns]))
    if what.scale != "paper":
        absent = sorted({c.data for c in columns if not at_hand(c.data)})
        columns = tuple(c for c in columns if at_hand(c.data))
        if absent:
            say(f"  note: not at hand, left out: {', '.join(absent)} (XTRREP_DATA=FOLDER of BEIR folders)")
        if not columns:
            raise DataError(f"{what.name}: none of its collections is at hand", hint="export XTRREP_DATA=FOLDER")
    shown = {column.name for column in columns}
    return replace(what, columns=columns, means={k: g for k, g in what.means.items() if set(g) <= shown})


def _select_cells(what: AnalysisReproduction, only: str | None) -> AnalysisReproduction:
    cells = what.cells
    if only is not None:
        cells = tuple(c for c in cells if only in (c.name, c.column, what.data, *map(str, c.where.values())))
        if not cells:
            raise UsageError(f"{what.name} has no cell {only!r}", hint=suggest(only, {c.name for c in what.cells}))
    if what.scale != "paper" and not at_hand(what.data):
        raise DataError(f"{what.name}: {what.data} is not at hand", hint="export XTRREP_DATA=FOLDER of BEIR folders")
    return replace(what, cells=cells)


def plans(what: Known, extra: Sequence[str]) -> tuple[list[pipeline.Plan], list[str]]:
    """Every cell's plan, and in words what stands in the way of the others. Raises as `check_extra`."""
    check_extra(what, extra)
    if isinstance(what, AnalysisReproduction):
        try:
            return list(pipeline.plan_analysis(words_of_analysis(what, extra)).plans), []
        except XtrrepError as error:
            return [], [f"analysis {what.analysis}: {error}"]
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
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found | {"cells": dict(found["cells"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no record of a reproduction ({error})", hint=f"rm {path}") from None


def measure(what: Known, extra: Sequence[str]) -> tuple[dict[Key, float], dict[Key, str]]:
    """Run or re-use every cell. Returns values (in points, or queries a second, or as an analysis' cells say) by (row,
    column) and, for cells without one, why; a cell that fails does not stop the others."""
    from xtrrep import preflight

    if isinstance(what, AnalysisReproduction):
        return _measure_analysis(what, extra)
    ready: dict[Key, pipeline.Plan] = {}
    reasons: dict[Key, str] = {}
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


def _measure_analysis(what: AnalysisReproduction, extra: Sequence[str]) -> tuple[dict[Key, float], dict[Key, str]]:
    """The analysis is one run: where it fails no cell has a value, and each says why."""
    from xtrrep import preflight

    try:
        plan = pipeline.plan_analysis(words_of_analysis(what, extra))
        preflight.require(plan.plans)
        folder, _ = pipeline.run_analysis(plan)
    except XtrrepError as error:
        return {}, {cell.key: str(error) for cell in what.cells}
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    values: dict[Key, float] = {}
    reasons: dict[Key, str] = {}
    for cell in what.cells:
        try:
            values[cell.key] = cell.value(rows)
        except DataError as error:
            reasons[cell.key] = str(error)
    return values, reasons


def judge(what: Known, values: Mapping[Key, float], accepted: Mapping[str, Mapping[str, float]]) -> list[Cell]:
    """Every cell of the table, its means included, with its verdict."""
    if isinstance(what, AnalysisReproduction):
        return [_judged(what, cell, values.get(cell.key), accepted) for cell in what.cells]
    cells = []
    at_paper = what.scale == "paper"
    for row in what.rows:
        now: dict[str, float | None] = {c.name: values.get((row.name, c.name)) for c in what.columns}
        for mean, group in what.means.items():
            members = [now[name] for name in group]
            found = [value for value in members if value is not None]
            now[mean] = sum(found) / len(found) if len(found) == len(members) else None
        for name, value in now.items():
            paper, record = row.paper.get(name), accepted.get(row.name, {}).get(name)
            against = paper if at_paper else record
            verdict = _verdict(value, against, what.tolerance, at_paper=at_paper)
            if row.overrides is None:
                verdict = QUOTED
            elif value is not None and at_paper and paper is None:
                verdict = NOT_COMPARED
            cells.append(Cell(row.name, name, paper, record, value, verdict, against))
    return cells


def _judged(
    what: AnalysisReproduction, cell: Reading, now: float | None, accepted: Mapping[str, Mapping[str, float]]
) -> Cell:
    record = accepted.get(cell.name, {}).get(cell.column)
    at_paper = what.scale == "paper" and cell.paper is not None
    against = cell.paper if at_paper else record
    verdict = _verdict(now, against, cell.tolerance, at_paper=at_paper)
    return Cell(cell.name, cell.column, cell.paper, record, now, verdict, against)


def _verdict(now: float | None, against: float | None, tolerance: float | None, *, at_paper: bool) -> str:
    """What to think of a value beside the paper's, or else beside the one accepted last."""
    if now is None:
        return NOT_RUN
    if tolerance is None:
        return NOT_COMPARED
    if against is None:
        return NO_RECORD
    within = tolerance if at_paper else REPEATED * tolerance
    if abs(now - against) <= within + 1e-9:
        return AGREES
    return HIGHER if now > against else LOWER


def status(cells: Sequence[Cell]) -> int:
    """The exit code: 1 where a value differs, else 3 where one is missing, else 0."""
    verdicts = {cell.verdict for cell in cells}
    return DIFFER if verdicts & {HIGHER, LOWER} else MISSING if NOT_RUN in verdicts else OK


def table(what: Known, cells: Sequence[Cell], notes: Sequence[str]) -> Table:
    """One line a cell: what the paper printed, what was accepted, what came out now."""
    at_paper = what.scale == "paper"
    heading = "paper" if at_paper else "paper (another setting)"
    columns = ["row", "column", heading, "recorded", "now", "difference", "verdict"]
    rows: list[list[object]] = []
    for cell in cells:
        difference = None if cell.now is None or cell.against is None else cell.now - cell.against
        rows.append([cell.row, cell.column, cell.paper, cell.recorded, cell.now, difference, cell.verdict])
    counts = {v: sum(c.verdict == v for c in cells) for v in dict.fromkeys(c.verdict for c in cells)}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    footer = [f"scale={what.scale}; judged against {_rule(what)}. {said}.", *notes]
    digits = 3 if isinstance(what, AnalysisReproduction) else 2
    return Table(f"{what.title}, scale={what.scale}", columns, rows, footer, digits=digits)


def _rule(what: Known) -> str:
    """What verdicts rest on, in words."""
    at_paper, last = what.scale == "paper", "the value accepted last at this scale"
    if isinstance(what, AnalysisReproduction):
        tolerances = sorted({cell.tolerance for cell in what.cells if cell.tolerance is not None})
        if not tolerances:
            return "nothing: not compared"
        within = " or ".join(f"{tolerance if at_paper else REPEATED * tolerance:g}" for tolerance in tolerances)
        if not at_paper:
            return f"{last}, within {within} as each cell says"
        rule = f"the paper's value, within {within} as each cell says"
        some = any(cell.paper is None for cell in what.cells)
        return rule + (f"; where it has none {last}, within a tenth of that" if some else "")
    if what.tolerance is None:
        return "not compared: another machine"
    return (
        f"the paper's value, within {what.tolerance} points"
        if at_paper
        else (f"{last}, within {REPEATED * what.tolerance:g} points")
    )


def accept(what: Known, cells: Sequence[Cell], extra: Sequence[str], folder: Path) -> Path:
    """Record what came out now as what is expected at this scale; cells without a value keep theirs.

    Beside the record lie the table and the figures of `folder`, which `reproduce` wrote. Returns the record.
    """
    path = recorded_path(what.name, what.scale)
    kept = recorded(what.name, what.scale)["cells"]
    for cell in cells:
        if cell.now is not None:
            kept.setdefault(cell.row, {})[cell.column] = round(cell.now, 4)
    expected = [cell for cell in cells if cell.verdict != QUOTED]
    record = {
        "cells": kept,
        "accepted": datetime.date.today().isoformat(),
        "commit": _commit(),
        "hardware": hardware(),
        "scale": what.scale,
        "overrides": list(extra),
        "missing": sum(cell.now is None for cell in expected),
        "of": len(expected),
        "seconds": round(_seconds(what, extra)),
    }
    record_folder(folder, path.with_suffix(""))
    artifacts.write_json(path, record)
    return path


def record_folder(folder: Path, out: Path) -> None:
    """Copy tables and pictures (Markdown, CSV, SVG) of a result to `out`, in place of what lies there."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".md", ".csv", ".svg"):
            shutil.copyfile(path, out / path.name)


def _seconds(what: Known, extra: Sequence[str]) -> float:
    """What all stages took that a reproduction stands on, each once, wherever they were made."""
    found: dict[Path, float] = {}
    for plan in plans(what, extra)[0]:
        for step in plan.steps:
            if step.reuse:
                found[step.folder] = float(artifacts.read_manifest(step.folder)["seconds"])
    return sum(found.values())


def _commit() -> str:
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE]
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


def reproduce(what: Known, extra: Sequence[str]) -> tuple[Path, list[Cell], Table]:
    """Run, compare and write the table, and the figure where there is one, below `results/runs/reproduce/`.

    Returns folder, cells and table.
    """
    check_extra(what, extra)
    values, reasons = measure(what, extra)
    accepted = recorded(what.name, what.scale)["cells"]
    cells = judge(what, values, accepted)
    notes = _not_run(reasons)
    if extra:
        notes.append(f"with {' '.join(extra)}")
    shown = table(what, cells, notes)
    quality = quality_at_hand(what, extra) if isinstance(what, Reproduction) else {}
    state = {
        "values": sorted([*key, value] for key, value in values.items()),
        "reasons": sorted(map(list, reasons)),
        "quality": sorted([*key, *found] for key, found in quality.items()),
    }
    described = {"notes": notes, "state": state, "recorded": accepted, "title": what.title}
    spec = Spec("reproduce", f"{what.name}-{what.scale}", 2, described)

    def write(out: Path) -> dict[str, Any]:
        write_table(shown, out)
        if isinstance(what, Reproduction) and what.figure == SWEEP:
            draw_sweep(what, values, out)
        if isinstance(what, Reproduction) and what.figure == SPEED:
            draw_speed(what, values, quality, out)
        return {"units": {"cells": len(cells)}, "name": what.name, "scale": what.scale}

    return artifacts.make(spec, configs.results_root(), write), cells, shown


def _not_run(reasons: Mapping[Key, str]) -> list[str]:
    """One note a reason: the cells it stands in the way of, by name where they are few."""
    notes = []
    for reason in dict.fromkeys(reasons.values()):
        cells = [", ".join(key) for key, found in reasons.items() if found == reason]
        notes.append(f"not run: {'; '.join(cells) if len(cells) < 4 else f'{len(cells)} cells'}: {reason}")
    return notes


# --- figures -------------------------------------------------------------------------------------------------------


def _k_prime(column: Column) -> int | None:
    found = [word.partition("=")[2] for word in column.overrides if word.startswith("retrieve.k_prime=")]
    return int(found[-1]) if found else None


def _stem(what: Reproduction, data: str, out: Path) -> Path:
    return out / f"{what.name}-{data.replace('/', '-')}"


def draw_sweep(what: Reproduction, values: Mapping[Key, float], out: Path) -> list[Path]:
    """Quality against k', a figure a collection, of the cells that have a value. Returns the files written."""
    files = []
    for data in dict.fromkeys(column.data for column in what.columns):
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for column in what.columns:
            for row in what.rows:
                value = values.get((row.name, column.name))
                if column.data == data and value is not None:
                    points = panels.setdefault(column.measure, {}).setdefault(row.name, [])
                    points.append((_k_prime(column) or 0, value))
        if panels:
            lines = {m: {name: sorted(points) for name, points in rows.items()} for m, rows in panels.items()}
            title = f"{what.title}: {data}, scale={what.scale}"
            files += k_prime_sweep(lines, {}, title, _stem(what, data, out))
    return files


def quality_at_hand(what: Reproduction, extra: Sequence[str]) -> dict[Key, tuple[str, float]]:
    """Measure and value of the cells of the same row and column in the reproduction that `what.quality` names, as far
    as they were evaluated before: nothing is run for them."""
    if what.quality is None:
        return {}
    other = load(what.quality, what.scale)
    if not isinstance(other, Reproduction):
        raise UsageError(f"{what.name}: quality={what.quality} is no table of runs")
    rows, columns = {row.name: row for row in other.rows}, {column.name: column for column in other.columns}
    found = {}
    for row in what.rows:
        for column in what.columns:
            if row.overrides is None or row.name not in rows or column.name not in columns:
                continue
            try:
                step = plan_cell(other, rows[row.name], columns[column.name], extra).steps[-1]
            except XtrrepError:
                continue  # what cannot be planned is not at hand
            if step.reuse:
                same = columns[column.name]
                found[row.name, column.name] = same.measure, _value(same, {"evaluate": step.folder})
    return found


def draw_speed(
    what: Reproduction, values: Mapping[Key, float], quality: Mapping[Key, tuple[str, float]], out: Path
) -> list[Path]:
    """Queries a second against quality, a figure a collection, and speed_and_quality.csv, of the cells that have both.

    Returns the files written; none where no cell does.
    """
    files: list[Path] = []
    rows: list[list[object]] = []
    for column in what.columns:
        points = []
        for row in what.rows:
            key = row.name, column.name
            if key in values and key in quality:
                measured, value = quality[key]
                points.append((row.name, values[key], value))
                rows.append([row.name, column.name, values[key], measured, value])
        if points:
            title = f"{what.title}: {column.data}, scale={what.scale}"
            files += speed_and_quality(points, measured, title, _stem(what, column.data, out))
    if rows:
        Table("", ["row", "column", "queries/s", "measure", "value"], rows).save_csv(out / "speed_and_quality.csv")
        files.append(out / "speed_and_quality.csv")
    return files
