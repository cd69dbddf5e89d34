"""Settings of engines as points of time and value: which of them others make pointless, as a table and as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xtrrep.experiments.axes import PRESET
from xtrrep.experiments.numbers import overlap_depth
from xtrrep.experiments.result import Result
from xtrrep.report.table import Table
from xtrrep.report.tradeoff import Curve, Traded, tradeoff

TIME = "p50_ms"


@dataclass(frozen=True)
class Point:
    """One row of a sweep: its model, its choices after that, its time, and its values by column."""

    model: str
    choices: tuple[str, ...]  # engine, scoring, setting
    time: float
    values: Mapping[str, float]

    @property
    def name(self) -> str:
        return " ".join(self.choices)

    @property
    def engine(self) -> str:
        return self.choices[0].partition("/")[0]

    def beats(self, other: Point, column: str) -> bool:
        """Whether it takes no longer than another of its model and gives as much, and one of the two is better."""
        one, two = (self.time, -self.values[column]), (other.time, -other.values[column])
        return self.model == other.model and one != two and one[0] <= two[0] and one[1] <= two[1]


def worth_of(result: Result) -> list[str]:
    """The columns that time is spent for: the first overlap and the first measure."""
    overlap = [column.name for column in result.columns if overlap_depth(column.measure)][:1]
    return [*overlap, *[column.name for column in result.columns if column.is_measure][:1]]


def points_of(result: Result) -> list[Point]:
    """Every row that was timed and has a value in each column of `worth_of`."""
    time = next((column.name for column in result.columns if column.measure == TIME), None)
    wanted = worth_of(result)
    found = []
    for row, (model, *choices) in result.places.items() if time is not None else ():
        numbers = {column: result.now(row, column) for column in (str(time), *wanted)}
        known = {column: number for column, number in numbers.items() if number is not None}
        if len(known) == len(numbers):
            found.append(Point(model, tuple(choices), known.pop(str(time)), known))
    return found


def best_of(points: Sequence[Point], point: Point, column: str) -> Point | None:
    """The best of the points that make another pointless, the fastest of equals; None where none does."""
    better = [other for other in points if other.beats(point, column)]
    return max(better, key=lambda other: (other.values[column], -other.time), default=None)


def table(result: Result) -> Table:
    """Every timed row, best first, with what makes it pointless for each value; empty where nothing does."""
    points, wanted = points_of(result), worth_of(result)
    shown = [column.name for column in result.columns]
    rows: list[list[object]] = []
    for point in sorted(points, key=lambda point: (point.model, -point.values[wanted[0]], point.time)):
        beaten = [best_of(points, point, column) for column in wanted]
        row = ", ".join((point.model, *point.choices))
        numbers = [result.now(row, column) for column in shown]
        rows.append([point.model, *point.choices, *numbers, *(other.name if other else "" for other in beaten)])
    head = [*result.axes, *shown, *(f"faster and no worse: {column}" for column in wanted)]
    counts = [sum(not row[at - len(wanted)] for row in rows) for at in range(len(wanted))]
    note = "; ".join(
        f"{count} of {len(rows)} settings have none for {column}" for count, column in zip(counts, wanted, strict=True)
    )
    return Table(f"{result.title}: every setting", head, rows, [f"{note}.", *result.remarks, *result.notes], digits=3)


def draw(result: Result, title: str, stem: Path) -> None:
    """A figure a model: each of `worth_of` against time, a curve for each engine and scoring."""
    points = points_of(result)
    for model in dict.fromkeys(point.model for point in points):
        own = [point for point in points if point.model == model]
        panels = {column: _curves(own, column) for column in worth_of(result)}
        tradeoff(panels, f"{title}\n{model}", stem.with_name(f"{stem.name}-{model}"))


def _curves(points: Sequence[Point], column: str) -> list[Curve]:
    scorings = {(point.engine, point.choices[1]) for point in points}
    found = []
    for engine, scoring in dict.fromkeys((point.engine, point.choices[1]) for point in points):
        own = [point for point in points if (point.engine, point.choices[1]) == (engine, scoring)]
        swept = [point for point in own if "/" not in point.choices[0]]
        traded = []
        for point in own:
            preset = "" if point.choices[-1] != PRESET else "study" if point in swept else "library"
            dominated = any(other.beats(point, column) for other in swept)
            traded.append(Traded(point.time, point.values[column], preset, dominated))
        several = sum(name == engine for name, _ in scorings) > 1
        name = f"{engine} as {scoring}" if several else engine
        found.append(Curve(engine, name, traded, dashed=scoring == "XTR"))
    return found
