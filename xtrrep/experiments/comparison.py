"""What is compared: one statement about cells or an analysis' values, and what it must have to be judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xtrrep.experiments.cell import Overrides

ALPHA = 0.05  # of every test, after correction
MATERIAL = 1.05  # ratio of times below which two processes of one index may differ (docs/LOG.md)
EXPLORATORY, SAME_PROCESSES = "exploratory", "same_processes"


@dataclass(frozen=True)
class Best:
    """The best of several cells, chosen on the other half of the queries, or on the same ones."""

    of: tuple[str, ...]
    chosen: str


@dataclass(frozen=True)
class Comparison:
    """One statement: a difference with a direction, a margin, or (neither) a two-sided difference from a baseline.

    column: of the table's columns, "" where cells have none. against: the baseline as tables name it. Other fields as
    in the file.
    """

    id: str
    says: str
    value: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]
    column: str = ""
    against: str = ""
    where: str = ""
    analysis: str | None = None
    statistic: str = "difference"
    direction: str | None = None
    within: tuple[float, float] | None = None
    family: str = ""
    detect: float | None = None
    overrides: Overrides = field(default_factory=dict)
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    why: str = ""

    @property
    def neutral(self) -> float:
        """The effect of no difference."""
        return 0.0 if self.statistic == "difference" else 1.0

    @property
    def timed(self) -> bool:
        """Whether it is of times, which processes are the units of."""
        return self.analysis is None and self.value == "seconds"

    @property
    def expected(self) -> str:
        """The effect that the statement leads one to expect, in signs."""
        if self.within is None:
            return {"above": f"> {self.neutral:g}", "below": f"< {self.neutral:g}"}.get(str(self.direction), "")
        low, high = self.within
        if math.isinf(low) or math.isinf(high):
            return f"≥ {low:g}" if math.isinf(high) else f"≤ {high:g}"
        return f"{low:.3g} to {high:.3g}"


@dataclass(frozen=True)
class Gate:
    """A baseline that must have been trained. A comparison with a cell whose overrides include `of` gets no verdict
    where the measure of `cell` is more than `margin` below that of `like`, the same model in the other setup."""

    cell: str
    like: str
    of: Overrides
    measure: str
    margin: float


def with_identical(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Comparisons, and where one is of times an A/A pair: one cell, measured as two groups of processes."""
    timed = next((comparison for comparison in comparisons if comparison.timed and comparison.plus), None)
    if timed is None or any(comparison.id == SAME_PROCESSES for comparison in comparisons):
        return tuple(comparisons)
    pair = Comparison(
        SAME_PROCESSES,
        f"Measured again by as many processes, {timed.plus[0]} takes the same time within {MATERIAL - 1:.0%}",
        "seconds",
        timed.plus[:1],
        timed.plus[:1],
        where="no statement of the study: an A/A pair",
        statistic="log_ratio",
        within=(1 / MATERIAL, MATERIAL),
        family="A/A",
    )
    return (*comparisons, pair)
