"""How likely a test is to find an effect of a stated size, by simulation, at the numbers of seeds and queries at hand.

What varies is estimated from the values that were measured, so the power is itself an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xtrrep.measure.significance import errors_of, mean_squares, two_sided

DRAWS = 1000
SEED = 0


class Power(Protocol):
    """What knows how often a true effect is found at a level of significance."""

    def of(self, effect: float, level: float) -> float:
        """The share of experiments in which p is below `level`."""


@dataclass(frozen=True)
class StudentPower:
    """Of Student's t-test of an estimate with a standard error of so many degrees of freedom. least: the test asks
    whether the effect is larger than this, on either side."""

    error: float
    free: float
    least: float = 0.0

    def of(self, effect: float, level: float) -> float:
        from scipy.stats import chi2, t

        rng = np.random.default_rng(SEED)
        means = effect + self.error * rng.normal(size=100 * DRAWS)
        errors = self.error * np.sqrt(chi2.rvs(self.free, size=100 * DRAWS, random_state=rng) / self.free)
        return float((np.abs(means) - self.least > t.isf(level / 2, self.free) * errors).mean())


@dataclass(frozen=True)
class CrossedPower:
    """Of the test over S seeds and Q queries. squares: the mean squares to expect, of seeds, queries and the rest."""

    squares: tuple[float, float, float]
    seeds: int
    queries: int

    def of(self, effect: float, level: float) -> float:
        """Mean squares are independent of the mean and of each other, and chi-squared."""
        rng = np.random.default_rng(SEED)
        free = np.array([self.seeds - 1, self.queries - 1, (self.seeds - 1) * (self.queries - 1)])
        error = (self.squares[0] + self.squares[1] - self.squares[2]) / (self.seeds * self.queries)
        means = effect + error**0.5 * rng.normal(size=DRAWS)
        drawn = np.array(self.squares) * rng.chisquare(free, size=(DRAWS, 3)) / free
        pairs = zip(means.tolist(), drawn.tolist(), strict=True)
        ps = [two_sided(mean, *errors_of(squares, self.seeds, self.queries)) for mean, squares in pairs]
        return float((np.array(ps) < level).mean())


def power_of(grid: NDArray[np.float64]) -> Power | None:
    """Of the test that `paired_over_seeds` makes of (S, U) differences. None where they say nothing of what varies."""
    seeds, units = grid.shape
    if units < 2:
        return None
    if seeds == 1:
        return StudentPower(float(grid[0].std(ddof=1)) / units**0.5, units - 1)
    of_seeds, of_units, rest = mean_squares(grid)
    return CrossedPower((max(of_seeds, rest), max(of_units, rest), rest), seeds, units)
