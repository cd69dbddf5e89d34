"""The study's tables, figures and stated results as data: what to run, what the paper printed, and what agrees with it.

`configs/reproductions/NAME.yaml` is of one of two kinds. A table of runs, each cell a row's model on a column's
collection:

    title, tolerance        words; points within which two values agree, null where they are not compared
    overrides               of every cell
    columns                 NAME: {data, measure, overrides?}; measure is an ir-measures name or `qps`
    means                   NAME: [columns], over values that are all there
    rows                    a list of {name, overrides?, paper: {column: value}, paper_only?, baseline?}; without
                            overrides a row is only quoted; `baseline` names the row it is tested against
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
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xtrrep import config as configs
from xtrrep.analyze import analyses
from xtrrep.console import DataError, UsageError, XtrrepError, say, suggest
from xtrrep.evaluate import parse
from xtrrep.yamlfile import check_keys, need_different, need_list, need_mapping, need_number, read_yaml, words_in

ALL = "all"
QPS = "qps"
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

    @property
    def k_prime(self) -> int | None:
        """The k' it names, if any."""
        found = [word.partition("=")[2] for word in self.overrides if word.startswith("retrieve.k_prime=")]
        return int(found[-1]) if found else None


@dataclass(frozen=True)
class Row:
    """One line: what chooses its model and engine (None: only quoted), and the paper's values by column."""

    name: str
    overrides: tuple[str, ...] | None
    paper: Mapping[str, float]
    baseline: str | None = None  # the row that it is tested against


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
    only: tuple[str, ...] = ()  # what `select` was told to keep of it
    seeds: tuple[int, ...] = ()  # of training; each cell is then the mean over them

    @property
    def keys(self) -> list[Key]:
        """Every cell that can be run, by row and column, means aside."""
        return [(row.name, column.name) for row in self.rows if row.overrides is not None for column in self.columns]


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
            raise DataError(
                f"{len(found) or 'no'} rows of its table match {said}, and one should",
                hint="`where` names as many columns as single out one row",
            )
        try:
            return float(found[0][self.column]) * self.scale_by
        except ValueError:
            raise DataError(
                f"{self.column} of {said} is no number: {found[0][self.column]!r}", hint="another `column`"
            ) from None


@dataclass(frozen=True)
class AnalysisReproduction:
    """Numbers of one analysis at one scale."""

    name: str
    title: str
    scale: str
    overrides: tuple[str, ...]
    analysis: str
    cells: tuple[Reading, ...]
    only: tuple[str, ...] = ()  # as above
    seeds: tuple[int, ...] = ()  # as above

    @property
    def keys(self) -> list[Key]:
        """Every cell, by name and column."""
        return [cell.key for cell in self.cells]

    @property
    def data(self) -> str:
        """The collection it is made on."""
        named = [word.removeprefix("data=") for word in self.overrides if word.startswith("data=")]
        return named[-1] if named else configs.compose().data.id


Known = Reproduction | AnalysisReproduction


def names() -> list[str]:
    """Every reproduction there is."""
    return sorted(path.stem for path in (configs.config_dir() / "reproductions").glob("*.yaml"))


def load(name: str, scale: str) -> Known:
    """Read and check a reproduction. Raises UsageError for an unknown name, or naming file and fault."""
    if name not in names():
        raise UsageError(f"no reproduction named {name!r}", hint=suggest(name, names()))
    path = configs.config_dir() / "reproductions" / f"{name}.yaml"
    return parse_reproduction(path, scale)


def seed_words(seed: int) -> list[str]:
    """The overrides that train every model anew under another seed."""
    return [f"{section}.seed={seed}" for section in ("train", "model", "distill")]


def check_seeds(seeds: Sequence[int], extra: Sequence[str]) -> None:
    """Refuse, beside several training seeds, an override that says another seed, or a model that is not trained."""
    keys = {word.partition("=")[0] for word in seed_words(0)}
    twice = [word for word in extra if word.partition("=")[0] in keys]
    if seeds and twice:
        raise UsageError(f"{' '.join(twice)}: --seeds says under which seeds to train", hint="leave one of the two out")
    sources = [word for word in extra if word.startswith("model.source=") and word != "model.source=trained"]
    if seeds and sources:
        raise UsageError(f"{sources[-1]} is not trained here, so several seeds mean nothing", hint="leave out --seeds")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from "42,43,44". Raises UsageError where one is no whole number, or there twice."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--seeds {text} is not a list of whole numbers", hint="for example --seeds 42,43,44"
        ) from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"--seeds {text} names a seed twice, or one below 0", hint="for example --seeds 42,43,44")
    return seeds


def load_all(name: str, scale: str, only: Sequence[str] = ()) -> list[Known]:
    """One reproduction, or for `all` every one that `select` leaves something of, tables before figures.

    Raises as `load` and `select` do; for `all` only where nothing is left at all.
    """
    if name != ALL:
        return [select(load(name, scale), only)]
    found: list[Known] = []
    for known in sorted(names(), key=lambda known: (known[:3] != "tab", known[:3] != "fig", known)):
        try:
            found.append(select(load(known, scale), only))
        except XtrrepError as error:
            say(f"  note: {known} is left out: {error}")
    if not found:
        raise DataError(f"no reproduction has {' or '.join(only)} at hand", hint="xtrrep reproduce --list")
    return found


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
    rows = [
        row
        for value in need_list(path, "rows", text["rows"])
        for row in [_row(path, value, quoted | set(means))]
        if scale == "paper" or not value.get("paper_only")
    ]
    need_different(path, "row", [row.name for row in rows])
    for row in rows:
        if row.baseline is not None and row.baseline not in (named := [other.name for other in rows]):
            hint = suggest(row.baseline, named)
            raise UsageError(f"{path}: the baseline of {row.name!r}, {row.baseline!r}, is no row", hint=hint)
    for group in means.values():
        for column in group:
            if column not in quoted:
                raise UsageError(f"{path}: a mean is over {column!r}, which is no column", hint=suggest(column, quoted))
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


def _row(path: Path, value: Any, columns: set[str]) -> Row:
    check_keys(path, "a row", value, {"name", "overrides", "paper", "paper_only", "baseline"}, {"name"})
    name = str(value["name"])
    paper = need_mapping(path, f"paper of row {name!r}", value.get("paper", {}))
    for column, number in paper.items():
        if column not in columns:
            raise UsageError(
                f"{path}: row {name!r} quotes {column!r}, which is no column", hint=suggest(str(column), columns)
            )
        need_number(path, f"row {name!r}: {column}", number)
    overrides = words_in(path, f"overrides of row {name!r}", value["overrides"]) if "overrides" in value else None
    baseline = None if value.get("baseline") is None else str(value["baseline"])
    return Row(name, overrides, {column: float(number) for column, number in paper.items()}, baseline)


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
        raise UsageError(
            f"{path}: quality is not the name of a reproduction: {quality!r}", hint="for example quality: table3"
        )
    if figure is not None and figure not in FIGURES:
        raise UsageError(f"{path}: no figure {figure!r}", hint=suggest(str(figure), FIGURES))
    if (figure == SPEED) != (quality is not None):
        raise UsageError(
            f"{path}: `figure: {SPEED}` and `quality` go together",
            hint="quality: NAME of the table whose nDCG it is drawn over",
        )
    for column in columns:
        if figure == SWEEP and column.k_prime is None:
            raise UsageError(
                f"{path}: column {column.name} names no retrieve.k_prime, which figure {SWEEP} is over",
                hint="overrides: [retrieve.k_prime=1000]",
            )


def _parse_analysis(path: Path, text: dict[str, Any], scale: str) -> AnalysisReproduction:
    known = {"title", "tolerance", "overrides", "analysis", "cells", *STAND_INS}
    check_keys(path, "it", text, known, {"title", "tolerance", "analysis", "cells"})
    here, added = _stand_ins(path, text, scale, {"overrides"})
    if not isinstance(text["analysis"], str) or text["analysis"] not in analyses.entries():
        hint = suggest(str(text["analysis"]), analyses.entries())
        raise UsageError(f"{path}: no analysis named {text['analysis']!r}", hint=hint)
    if not need_list(path, "cells", text["cells"]):
        raise UsageError(f"{path} has no cells", hint="cells: a list, each with name, where and column")
    cells = tuple(_reading(path, value, text["tolerance"]) for value in text["cells"])
    need_different(path, "cell", [f"{cell.name}, {cell.column}" for cell in cells])
    overrides = _overrides(path, text, here, added)
    return AnalysisReproduction(path.stem, str(text["title"]), scale, overrides, text["analysis"], cells)


def _reading(path: Path, value: Any, tolerance: Any) -> Reading:
    known = {"name", "where", "column", "paper", "scale_by", "tolerance"}
    check_keys(path, "a cell", value, known, {"name", "where", "column"})
    what = f"cell {value['name']}"
    if not isinstance(value["where"], dict) or not value["where"]:
        raise UsageError(
            f"{path}: {what}: where is not a mapping of columns to values", hint="where: {model: xtr_k128}"
        )
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


def _column(path: Path, name: Any, value: Any) -> Column:
    check_keys(path, f"column {name}", value, {"data", "measure", "overrides"}, {"data", "measure"})
    measure, overrides = str(value["measure"]), words_in(path, f"column {name}", value.get("overrides", []))
    if measure != QPS:
        try:
            parse([measure])
        except UsageError as error:
            raise UsageError(f"{path}: column {name}: {error}", hint=error.hint) from None
    return Column(str(name), measure, (f"data={value['data']}", *overrides))


def at_hand(data: str) -> bool:
    """Whether a collection can be read here without a network: the embedded one, or a local folder."""
    from xtrrep.data import resolve

    try:
        return resolve(configs.compose([f"data={data}"]).data).loader != "ir_datasets"
    except DataError:
        return False


def select(what: Known, only: Sequence[str] = ()) -> Known:
    """Only some collections' columns, or an analysis' cells of some names or values of `where` (all where none is
    named); and at any scale but `paper` only collections at hand.

    Raises UsageError for a column or cell that is not there and DataError where nothing is left.
    """
    if isinstance(what, AnalysisReproduction):
        return _select_cells(what, only)
    columns = what.columns
    if only:
        known = {c: {c.name, c.data, c.name.split()[0]} for c in columns}
        for name in only:
            if not any(name in names for names in known.values()):
                raise UsageError(f"{what.name} has no column {name!r}", hint=suggest(name, [c.name for c in columns]))
        columns = tuple(c for c in columns if known[c] & set(only))
    if what.scale != "paper":
        absent = sorted({c.data for c in columns if not at_hand(c.data)})
        columns = tuple(c for c in columns if at_hand(c.data))
        if absent:
            say(f"  note: not at hand, left out: {', '.join(absent)} (XTRREP_DATA=FOLDER of BEIR folders)")
        if not columns:
            raise DataError(
                f"{what.name}: none of its collections is at hand", hint="export XTRREP_DATA=FOLDER of BEIR folders"
            )
    shown = {column.name for column in columns}
    means = {k: g for k, g in what.means.items() if set(g) <= shown}
    return replace(what, columns=columns, means=means, only=tuple(only))


def _select_cells(what: AnalysisReproduction, only: Sequence[str]) -> AnalysisReproduction:
    cells = what.cells
    if only:
        known = {c.key: {c.name, c.column, what.data, *map(str, c.where.values())} for c in cells}
        for name in only:
            if not any(name in names for names in known.values()):
                raise UsageError(f"{what.name} has no cell {name!r}", hint=suggest(name, {c.name for c in cells}))
        cells = tuple(c for c in cells if known[c.key] & set(only))
    if what.scale != "paper" and not at_hand(what.data):
        raise DataError(f"{what.name}: {what.data} is not at hand", hint="export XTRREP_DATA=FOLDER of BEIR folders")
    return replace(what, cells=cells, only=tuple(only))
