"""One YAML grammar for reproductions, claims and your own grids.

    title         what the experiment is
    tolerance     how far two values may differ and still agree; null where they are not compared
    overrides     KEY=VALUE of every cell

The cells, in one of these forms (each cell is a row's settings on a column's collection):

    rows          a list of {name, overrides, paper: {column: value}, paper_only, baseline}. A row without overrides is
                  only quoted. `baseline` names the row that it is tested against. `when` names a key of the
                  configuration without which there is no such row.
    axes          NAME: {choice: overrides}. Every choice of one axis is crossed with every choice of the others, and
                  each combination is a row; one that its engine cannot score is left out. The choice `each` stands for
                  all of `models`, `k_primes` or `engines` (of `analyze.`), or `imputations`. Beside `axes`, `rows` are
                  single rows, such as BM25, and each row may be tested against others:
    baseline        the name of one row, for all others
    baselines       a list of {at: {axis: choice}, since: {axis: choice}}: the row that differs only in these choices;
                    with `since`, what changed since the rows at those other choices. `smallest` and `largest` are the
                    ends of an axis of numbers.
    cells         NAME: overrides. Rows without columns, on the collection that the command line names.
    columns       NAME: {data, measure, overrides, tested, gain, against, without}. Without `data`, the collection that
                  the command line names. `measure` is an ir-measures name; `analyze.measure` or `data.measures`, which
                  name the column too; a number of the run (numbers.py: qps, index_bytes, documents.tokens, ...); or
                  overlap@K with the row at `against` {axis: choice}. A number with `against` is divided by that
                  row's. `gain: true`: a measure's difference from that of the row's baseline. Rows at `without` have no
                  value. `tested: false`: not tested against baselines.
    means         NAME: [columns], shown where every column has a value
    spread        an axis: a table of mean, standard deviation and range over its choices

or the numbers of one analysis:

    analysis      its name
    readings      a list of {name, where: {column: value}, column, paper, scale_by, tolerance}: the value under `column`
                  in the one row of the analysis' table that matches `where`, times scale_by

What is compared, beside the paper's values and the baselines:

    comparisons   a list of
                    id, says, where       the statement in our words, and where the study makes it
                    value                 a measure, `seconds` or `candidates`; with `analysis`, a column of its units
                    statistic             difference (of sums), ratio (of two means), or log_ratio (the geometric mean
                                          over queries of plus / minus)
                    plus, minus           cells, or names of `best`; with `analysis`, models
                    direction or within   a difference with a direction (above, below), or a margin (an interval; null
                                          is no bound)
                    family                tests of one family are corrected together by Holm's method
                    overrides             of the analysis' runs
                    needs, why            {scale or data: value} without which it does not run, and the reason
    best          NAME: {of: [cells], chosen: held_out | same}: the best of several cells by their mean

What differs by scale:

    numbers       SCALE: values for {name} in the overrides of `cells`
    here, lab     {columns, overrides}: what stands in for the study's at every scale but `paper`, and what `lab` adds

    figure        k_prime_sweep, speed_and_quality or bars
    quality       for speed_and_quality: the experiment whose measures are drawn against the speeds, where they are not
                  in columns of its own
    notes         lines under the table

A file is checked as a whole: all faults of a file are reported at once, each with its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from xtrrep.console import UsageError, XtrrepError, machine_error, suggest
from xtrrep.experiments.analyses import analyses
from xtrrep.experiments.axes import EACH, K_PRIME, LARGEST, MEASURES, SMALLEST, SOURCES, crossed
from xtrrep.experiments.cell import Overrides, parse_overrides
from xtrrep.experiments.numbers import BY_UNIT, NUMBERS, QPS, is_number, overlap_depth
from xtrrep.measure.evaluate import parse as parse_measures

MOST = 20  # faults of a file that are listed
FIGURES = ("k_prime_sweep", "speed_and_quality", "bars")


def _refused(check: Callable[[list[str]], object], text: str) -> str:
    """`text`, where `check` accepts it. Raises ValueError, which pydantic collects with the place."""
    try:
        check([text])
    except XtrrepError as error:
        raise ValueError(f"{error} ({error.hint})") from None
    return text


def _an_override(text: str) -> str:
    return _refused(parse_overrides, text)


def _a_choice(text: str) -> str:
    return text if text in SOURCES else _refused(parse_overrides, text)


def _a_measure(name: str) -> str:
    if name in MEASURES or is_number(name) or overlap_depth(name):
        return name
    try:
        return _refused(parse_measures, name)
    except ValueError as error:
        raise ValueError(f"{error}, or a number of the run: {', '.join(NUMBERS)} or STAGE.FACT") from None


def _a_value(name: str) -> str:
    if name == QPS:
        raise ValueError("qps is one number a run, and a test needs one a query: value: seconds")
    return name if name in BY_UNIT else _refused(parse_measures, name)


def _source(value: object) -> object:
    if isinstance(value, str) and "=" not in value:
        if value not in SOURCES:
            raise ValueError(f"no source of choices is called {value!r}. {suggest(value, SOURCES)}")
        return [value]
    return value


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"a number, not {str(value).lower()}")
    return value


def _bounds(value: tuple[float | None, float | None]) -> tuple[float, float]:
    low, high = -math.inf if value[0] is None else value[0], math.inf if value[1] is None else value[1]
    if low >= high or (math.isinf(low) and math.isinf(high)):
        raise ValueError(f"{list(value)} holds everything or nothing: the lower bound first, and at most one null")
    return low, high


Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_no_boolean)]
OverrideTexts = tuple[Annotated[str, AfterValidator(_an_override)], ...]
Choices = dict[str, Annotated[tuple[Annotated[str, AfterValidator(_a_choice)], ...], BeforeValidator(_source)]]
Measure = Annotated[str, AfterValidator(_a_measure)]
Margin = Annotated[tuple[Number | None, Number | None], AfterValidator(_bounds)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class _Column(_Part):
    measure: Measure
    data: str | None = None
    overrides: OverrideTexts = ()
    tested: bool = True
    gain: bool = False
    against: dict[str, str] = {}
    without: dict[str, str] = {}


class _Baseline(_Part):
    at: dict[str, str] = Field(min_length=1)
    since: dict[str, str] = {}


class _Row(_Part):
    name: str
    overrides: OverrideTexts | None = None
    paper: dict[str, Number] = {}
    paper_only: bool = False
    baseline: str | None = None
    when: str | None = None


class ReadingPart(_Part):
    name: str
    where: dict[str, str | int | float] = Field(min_length=1)
    column: str
    paper: Number | None = None
    scale_by: Number = 1.0
    tolerance: Number | None = None


class _Best(_Part):
    of: tuple[str, ...] = Field(min_length=1)
    chosen: Literal["held_out", "same"]


class _Comparison(_Part):
    id: str
    says: str
    where: str = ""
    value: str
    analysis: str | None = None
    statistic: Literal["difference", "ratio", "log_ratio"] = "difference"
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    direction: Literal["above", "below"] | None = None
    within: Margin | None = None
    family: str = ""
    overrides: OverrideTexts = ()
    needs: dict[Literal["scale", "data"], str] = {}
    why: str = ""

    @model_validator(mode="after")
    def _fits(self) -> _Comparison:
        if bool(self.needs) != bool(self.why):
            raise ValueError("`needs` and `why` go together: what it would take, and the reason")
        if not self.plus:
            if not self.needs:
                raise ValueError("it has no plus, and no `needs` that says why it cannot run")
            return self
        if not self.minus or (self.statistic == "ratio" and (len(self.plus), len(self.minus)) != (1, 1)):
            raise ValueError("a difference needs plus and minus, a ratio one cell in each")
        if (self.direction is None) == (self.within is None):
            raise ValueError("it needs either a direction or an interval: direction: above, or within: [-0.005, 0.005]")
        tested = {name for name, entry in analyses.entries().items() if entry.value.units}
        if self.analysis is None:
            _a_value(self.value)
        elif self.analysis not in tested:
            raise ValueError(f"no analysis {self.analysis!r} with values by unit. {suggest(self.analysis, tested)}")
        return self


class StandIn(_Part):
    columns: dict[str, _Column] = {}
    overrides: OverrideTexts = ()


class File(_Part):
    title: str
    tolerance: Number | None = None
    overrides: OverrideTexts = ()
    columns: dict[str, _Column] = {}
    means: dict[str, tuple[str, ...]] = {}
    rows: tuple[_Row, ...] = ()
    axes: dict[str, Choices] = {}
    baseline: str | None = None
    baselines: tuple[_Baseline, ...] = ()
    spread: str | None = None
    cells: dict[str, OverrideTexts] = {}
    best: dict[str, _Best] = {}
    numbers: dict[str, dict[str, str]] = {}
    analysis: str | None = None
    readings: tuple[ReadingPart, ...] = ()
    comparisons: tuple[_Comparison, ...] = ()
    here: StandIn = StandIn()
    lab: StandIn = StandIn()
    figure: Literal["k_prime_sweep", "speed_and_quality", "bars"] | None = None
    quality: str | None = None
    notes: tuple[str, ...] = ()


# --- reading and checking it ------------------------------------------------------------------------------------------


def read_file(path: Path, scale: str) -> File:
    """Read and check a file. Raises UsageError that names every fault with its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise machine_error(error) or UsageError(
            f"{path} cannot be read: {error}", hint="the path of a YAML file"
        ) from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        repeated = list(_repeated(node))  # before merge keys are resolved in place
        content = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date or number
        raise UsageError(
            f"{path} is not YAML: {' '.join(str(error).split())}", hint="quote texts with a colon, a brace or a `#`"
        ) from None
    faults = [f"{path}:{line}: {key!r} is there twice" for line, key in repeated]
    try:
        file = File.model_validate(content)
        faults += [_fault(path, node, where, "", message) for where, message in _cross_check(file, scale)]
    except ValidationError as error:
        faults += [_fault(path, node, fault["loc"], fault["type"], fault["msg"]) for fault in error.errors()]
    if faults:
        faults = list(dict.fromkeys(faults))
        more = [f"{len(faults) - MOST} more faults"] if len(faults) > MOST else []
        raise UsageError([*faults[:MOST], *more], hint="the grammar is in xtrrep/experiments/schema.py")
    return file


def _repeated(node: Any) -> Iterator[tuple[int, str]]:
    """(line, key) of every key that a mapping of the file has for the second time: YAML would keep the last alone."""
    waiting, seen = [node], set()
    while waiting:
        at = waiting.pop()
        if id(at) in seen:  # an alias
            continue
        seen.add(id(at))
        if isinstance(at, yaml.SequenceNode):
            waiting += at.value
        elif isinstance(at, yaml.MappingNode):
            waiting += [part for pair in at.value for part in pair]
            keys = [(key.start_mark.line + 1, key.value) for key, _ in at.value if isinstance(key, yaml.ScalarNode)]
            names = [name for _, name in keys]
            yield from ((line, name) for place, (line, name) in enumerate(keys) if name in names[:place])


def _fault(path: Path, node: Any, where: Sequence[str | int], kind: str, message: str) -> str:
    """FILE:LINE: PLACE: what is wrong, with a suggestion for a misspelt key."""
    line, at, place = 1, node, []
    for part in where:
        if isinstance(at, yaml.MappingNode):
            entry = next((pair for pair in at.value if pair[0].value == str(part)), None)
            if entry is None:
                break
            line, at = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(at, yaml.SequenceNode) and isinstance(part, int) and part < len(at.value):
            at = at.value[part]
            line = at.start_mark.line + 1
        place.append(str(part))
    told = message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        told = f"unknown key {where[-1]!r}. {suggest(str(where[-1]), _keys_at(where[:-1]))}"
    elif kind == "missing":
        told = f"{where[-1]!r} is missing"
    return f"{path}:{line}: {'.'.join(map(str, where)) or 'the file'}: {told}"


def _keys_at(where: Sequence[str | int]) -> list[str]:
    """The keys that a place of the file may have."""
    parts: dict[str, type[_Part]] = {
        "columns": _Column,
        "rows": _Row,
        "readings": ReadingPart,
        "comparisons": _Comparison,
        "best": _Best,
        "baselines": _Baseline,
    }
    parts |= {"here": StandIn, "lab": StandIn}
    named = [parts[str(part)] for part in where if str(part) in parts]
    return list((named[-1] if named else File).model_fields)


def _cross_check(file: File, scale: str) -> Iterable[tuple[tuple[str | int, ...], str]]:
    """What one part of a file says of another. Yields (place, fault)."""
    forms = [name for name in ("rows", "axes", "cells", "readings") if getattr(file, name)]
    if len(forms) != 1 and forms != ["rows", "axes"]:
        listed = " and ".join(forms) or "none"
        yield (), f"it needs one of rows, axes, cells or readings, and has {listed}"
        return
    if (file.analysis is None) != (not file.readings):
        yield ("analysis",), "`analysis` and `readings` go together"
    elif file.analysis is not None and file.analysis not in analyses.entries():
        yield ("analysis",), f"no analysis named {file.analysis!r}. {suggest(file.analysis, analyses.entries())}"
    if (file.rows or file.axes) and not file.columns:
        yield (forms[0],), "rows need columns: NAME: {data: ID, measure: nDCG@10}"
    if (file.figure == "speed_and_quality" and not file.axes) != (file.quality is not None):
        yield ("figure",), "`figure: speed_and_quality` and `quality` go together, except beside `axes`"
    yield from _cross_check_axes(file)
    placed = {key for key, column in file.columns.items() if column.data is not None}
    expected = file.tolerance is not None or any(row.paper for row in file.rows)
    for key in set(file.columns) - placed if placed or expected else ():
        yield ("columns", key), "'data' is missing"
    if file.numbers and scale not in file.numbers:
        yield ("numbers",), f"it has no numbers for scale={scale}"
    if file.cells and not file.comparisons:
        yield ("cells",), "nothing reads the cells: they need comparisons"
    parts = ((("columns",), file.columns), (("here", "columns"), file.here.columns),
             (("lab", "columns"), file.lab.columns))  # fmt: skip
    for place, columns in parts if file.figure == "k_prime_sweep" and not file.axes else ():
        for name, column in columns.items():
            if not parse_overrides(column.overrides).get("retrieve.k_prime", "").isdigit():
                yield (*place, name), "figure k_prime_sweep needs overrides: [retrieve.k_prime=N]"
    quoted = {*file.columns, *file.means}
    rows = [row.name for row in file.rows]
    for number, row in enumerate(file.rows):
        if rows.count(row.name) > 1:
            yield ("rows", number), f"row {row.name!r} is there twice"
        if row.baseline is not None and row.baseline not in rows:
            yield ("rows", number, "baseline"), f"{row.baseline!r} is no row. {suggest(row.baseline, rows)}"
        for quote in row.paper:
            if quote not in quoted:
                yield ("rows", number, "paper", quote), f"{quote!r} is no column. {suggest(quote, quoted)}"
    for name, group in file.means.items():
        for member in group:
            if member not in file.columns:
                yield ("means", name), f"{member!r} is no column. {suggest(member, file.columns)}"
    keys = [f"{reading.name}, {reading.column}" for reading in file.readings]
    for number, key in enumerate(keys):
        if keys.count(key) > 1:
            yield ("readings", number), f"{key!r} is read twice"
    ids = [comparison.id for comparison in file.comparisons]
    cells = {*file.cells, *file.best}
    for name, best in file.best.items():
        for cell in set(best.of) - set(file.cells):
            yield ("best", name), f"{cell!r} is no cell. {suggest(cell, file.cells)}"
    for number, comparison in enumerate(file.comparisons):
        if ids.count(comparison.id) > 1:
            yield ("comparisons", number), f"comparison {comparison.id!r} is there twice"
        for cell in (*comparison.plus, *comparison.minus) if comparison.analysis is None else ():
            if cell not in cells:
                yield ("comparisons", number), f"{cell!r} is no cell. {suggest(cell, cells)}"
    for name, texts in file.cells.items():
        try:
            filled(texts, file.numbers.get(scale, {}))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            known = ", ".join(file.numbers.get(scale, {})) or "none"
            yield ("cells", name), f"it uses {error}, which `numbers` does not give (it gives: {known})"


def _cross_check_axes(file: File) -> Iterable[tuple[tuple[str | int, ...], str]]:
    """Axes, and what names them."""
    drawn = False
    for number, row in enumerate(file.rows if file.axes else ()):
        if row.overrides is None:
            yield ("rows", number), "a row beside `axes` needs overrides"
    for name, choices in file.axes.items():
        for choice, texts in choices.items():
            drawn |= choice == EACH
            if (choice == EACH) != any(text in SOURCES for text in texts) or (choice == EACH and len(texts) > 1):
                yield ("axes", name, choice), f"`each` and a source go together: each: {' or '.join(SOURCES)}"
                return
    if file.baseline is not None and not drawn and file.baseline not in (names := list(crossed(file.axes))):
        yield ("baseline",), f"{file.baseline!r} is no row. {suggest(file.baseline, names)}"
    named: list[tuple[tuple[str | int, ...], str, str]] = []
    for number, baseline in enumerate(file.baselines):
        named += [(("baselines", number), *pair) for pair in (*baseline.at.items(), *baseline.since.items())]
    for key, column in file.columns.items():
        named += [(("columns", key), *pair) for pair in (*column.against.items(), *column.without.items())]
        if overlap_depth(column.measure) and not column.against:
            yield ("columns", key), "an overlap is with another row: against: {axis: choice}"
    named += [(("spread",), file.spread, LARGEST)] if file.spread is not None else []
    named += [(("figure",), K_PRIME, LARGEST)] if file.figure == "k_prime_sweep" and file.axes else []
    for place, axis, choice in named:
        known = [*file.axes.get(axis, ()), SMALLEST, LARGEST]
        if axis not in file.axes:
            yield place, f"{axis!r} is no axis. {suggest(axis, file.axes)}"
        elif choice not in known and EACH not in known:
            yield place, f"{axis} has no choice {choice!r}. {suggest(choice, known)}"


def filled(texts: Iterable[str], numbers: Mapping[str, str]) -> Overrides:
    return parse_overrides(text.format(**numbers) if "{" in text else text for text in texts)
