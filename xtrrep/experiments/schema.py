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
                  all of `models`, `k_primes`, `engines` or `steps` (of `analyze.`), `imputations`, `installed` engines,
                  or of `sweep`: the settings that the engine of the axes before names itself, which are run in rounds,
                  coarse to fine, until `analyze.minutes` are over. Beside `axes`, `rows` are single rows, such as BM25,
                  and each row may be tested against others:
    baseline        the name of one row, for all others
    baselines       a list of {at: {axis: choice}, since: {axis: choice}}: the row that differs only in these choices;
                    with `since`, what changed since the rows at those other choices. `smallest` and `largest` are the
                    ends of an axis of numbers.
    cells         NAME: overrides. Rows without columns, on the collection that the command line names.
    columns       NAME: {data, measure, overrides, tested, gain, against, without, when}. Without `data`, the collection
                  that the command line names. `measure` is an ir-measures name; `analyze.measure` or `data.measures`,
                  which name the column too; a number of the run (numbers.py: qps, index_bytes, documents.tokens, ...);
                  or overlap@K with the row at `against` {axis: choice}. A number with `against` is divided by that
                  row's. `gain: true`: a measure's difference from that of the row's baseline. Rows at `without` have no
                  value. `tested: false`: not tested against baselines. `when`: as in rows. In overrides `{smallest}`
                  and `{largest}` stand for the ends of analyze.k_primes.
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
                    family                such as primary. Tests of one family are corrected together by Holm's method.
                                          Where a file names one, comparisons without one are `exploratory`
                    detect                an effect for which the table gives the power of the test
                    overrides             of the analysis' runs
                    needs, why            {scale or data: value, or several} without which it does not run, and the
                                          reason
                  `seconds` are tested over processes: `latency.processes` a cell, in random order. A cell on both sides
                  is measured as two groups, and one such pair is added where there is none.
    best          NAME: {of: [cells], chosen: held_out | same}: the best of several cells by their mean
    gates         a list of {cell, like, of: overrides, measure, margin}: comparisons with a cell whose overrides
                  include `of` get no verdict where `measure` of `cell` is more than `margin` below that of `like`

What differs by scale:

    numbers       SCALE: values for {name} in the overrides of `cells` and of comparisons
    here, lab     {columns, overrides}: what stands in for the study's at every scale but `paper`, and what `lab` adds

    figure        k_prime_sweep, speed_and_quality, pareto (an overlap and a measure against p50_ms), bars, or steps:
                  every column against the axis `step`
    quality       for speed_and_quality: the experiment whose measures are drawn against the speeds, where they are not
                  in columns of its own
    notes         lines under the table

A file is checked as a whole: all faults of a file are reported at once, each with its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from xtrrep.console import XtrrepError, suggest
from xtrrep.experiments.analyses import analyses
from xtrrep.experiments.axes import MEASURES, SOURCES
from xtrrep.experiments.cell import parse_overrides
from xtrrep.experiments.numbers import BY_UNIT, NUMBERS, QPS, is_number, overlap_depth
from xtrrep.measure.evaluate import parse as parse_measures

FIGURES = ("k_prime_sweep", "speed_and_quality", "pareto", "bars", "steps")


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
Several = Annotated[tuple[str, ...], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]
Margin = Annotated[tuple[Number | None, Number | None], AfterValidator(_bounds)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class ColumnPart(Part):
    measure: Measure
    data: str | None = None
    overrides: OverrideTexts = ()
    tested: bool = True
    gain: bool = False
    against: dict[str, str] = {}
    without: dict[str, str] = {}
    when: str | None = None


class BaselinePart(Part):
    at: dict[str, str] = Field(min_length=1)
    since: dict[str, str] = {}


class RowPart(Part):
    name: str
    overrides: OverrideTexts | None = None
    paper: dict[str, Number] = {}
    paper_only: bool = False
    baseline: str | None = None
    when: str | None = None


class ReadingPart(Part):
    name: str
    where: dict[str, str | int | float] = Field(min_length=1)
    column: str
    paper: Number | None = None
    scale_by: Number = 1.0
    tolerance: Number | None = None


class BestPart(Part):
    of: tuple[str, ...] = Field(min_length=1)
    chosen: Literal["held_out", "same"]


class GatePart(Part):
    cell: str
    like: str
    of: OverrideTexts = Field(min_length=1)
    measure: Measure
    margin: Number


class ComparisonPart(Part):
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
    detect: Number | None = None
    overrides: OverrideTexts = ()
    needs: dict[Literal["scale", "data"], Several] = {}
    why: str = ""

    @model_validator(mode="after")
    def _fits(self) -> ComparisonPart:
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
        ratio = self.statistic != "difference"
        if self.detect is not None and (self.within is not None or (ratio and self.detect <= 0)):
            raise ValueError("`detect` is of a direction: a difference, or a positive ratio")
        tested = {name for name, entry in analyses.entries().items() if entry.value.units}
        if self.analysis is None:
            _a_value(self.value)
        elif self.analysis not in tested:
            raise ValueError(f"no analysis {self.analysis!r} with values by unit. {suggest(self.analysis, tested)}")
        return self


class StandIn(Part):
    columns: dict[str, ColumnPart] = {}
    overrides: OverrideTexts = ()


class File(Part):
    title: str
    tolerance: Number | None = None
    overrides: OverrideTexts = ()
    columns: dict[str, ColumnPart] = {}
    means: dict[str, tuple[str, ...]] = {}
    rows: tuple[RowPart, ...] = ()
    axes: dict[str, Choices] = {}
    baseline: str | None = None
    baselines: tuple[BaselinePart, ...] = ()
    spread: str | None = None
    cells: dict[str, OverrideTexts] = {}
    best: dict[str, BestPart] = {}
    numbers: dict[str, dict[str, str]] = {}
    analysis: str | None = None
    readings: tuple[ReadingPart, ...] = ()
    comparisons: tuple[ComparisonPart, ...] = ()
    gates: tuple[GatePart, ...] = ()
    here: StandIn = StandIn()
    lab: StandIn = StandIn()
    figure: Literal["k_prime_sweep", "speed_and_quality", "pareto", "bars", "steps"] | None = None
    quality: str | None = None
    notes: tuple[str, ...] = ()
