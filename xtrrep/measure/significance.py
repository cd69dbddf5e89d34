"""Comparisons over queries, and over training seeds: how large a difference is, and how sure.

Shapes: S training seeds, Q queries (or documents, or what else a value is of), R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xtrrep.console import DataError

BATCH = 256  # resamples at a time


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over queries, its 95 % bootstrap interval, and the two-sided permutation p."""

    mean: float
    low: float
    high: float
    p: float
    queries: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired(a: ArrayLike, b: ArrayLike, *, resamples: int = 10000, seed: int = 0) -> Difference:
    """Compare two systems' per-query values, in the same query order.

    The interval is the percentile bootstrap over queries; p is the two-sided sign-flip permutation test (Smucker et al.
    2007). Raises DataError where the two do not pair up.
    """
    left, right = np.asarray(a, float), np.asarray(b, float)
    if left.shape != right.shape or left.ndim != 1 or not len(left):
        raise DataError(
            f"cannot pair {left.shape} with {right.shape} per-query values",
            hint="one value a query on both sides, in the same order",
        )
    delta = left - right
    if not np.isfinite(delta).all():
        raise DataError(
            "per-query values hold numbers that are not finite", hint="a query without results scores 0, not NaN"
        )
    if len(delta) < 2:  # one query says nothing of others
        return Difference(float(delta.mean()), -np.inf, np.inf, 1.0, len(delta))
    if not delta.any():
        return Difference(0.0, 0.0, 0.0, 1.0, len(delta))
    means = _bootstrap_means(delta, resamples, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(delta.mean()), float(low), float(high), _permutation_p(delta, resamples, seed), len(delta))


def interval(values: ArrayLike, *, resamples: int = 10000, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap of the mean of (Q,) per-query values; None of a single query."""
    of = np.asarray(values, float)
    if len(of) < 2:
        return None
    low, high = np.quantile(_bootstrap_means(of, resamples, seed), [0.025, 0.975])
    return float(low), float(high)


def paired_over_seeds(a: ArrayLike, b: ArrayLike, *, resamples: int = 10000, seed: int = 0) -> Difference:
    """Compare two trainings' (S, Q) values, every seed's over the same queries. One seed: as `paired`.

    Several: the interval speaks of retraining too. It holds the percentile bootstrap that draws seeds, then queries,
    the same ones for every seed drawn, since every seed answered the same queries (Owen 2007), and Student's interval
    of the seeds' means, because so few seeds drawn from themselves show too little spread. p is the larger of the
    sign-flip test over queries of the mean over seeds and of the t-test of the seeds' means with S - 1 degrees of
    freedom. One query says nothing, under however many seeds. Raises DataError as `paired`.
    """
    left, right = _grids(a, b)
    over_queries = paired(left.mean(axis=0), right.mean(axis=0), resamples=resamples, seed=seed)
    if 1 in left.shape:
        return over_queries
    low, high, p = _student((left - right).mean(axis=1))
    means = np.concatenate([draw[0] for draw in _draws(resamples, seed, left - right)])
    drawn = np.quantile(means, [0.025, 0.975])
    return replace(
        over_queries, low=min(low, float(drawn[0])), high=max(high, float(drawn[1])), p=max(p, over_queries.p)
    )


def ratio_over_seeds(a: ArrayLike, b: ArrayLike, *, resamples: int = 10000, seed: int = 0) -> Difference:
    """As `paired_over_seeds`, with the ratio of the two means in place of their difference; p says whether they differ.

    Student's interval is of the logarithms of the seeds' ratios. Raises DataError as `paired`, and where the mean of
    `b`, or over several seeds a mean of either, is not positive.
    """
    left, right = _grids(a, b)
    difference = paired_over_seeds(left, right, resamples=resamples, seed=seed)
    means = left.mean(axis=1), right.mean(axis=1)
    least = right.mean() if len(left) == 1 else min(means[0].min(), means[1].min())
    if least <= 0:
        raise DataError(f"a ratio needs positive means, and one is {least:g}", hint="compare by the difference")
    if left.shape[1] < 2:
        return replace(difference, mean=float(left.mean() / right.mean()))
    draws = [above / below for above, below in _draws(resamples, seed, left, right)]
    low, high = np.quantile(np.concatenate(draws), [0.025, 0.975])
    if len(left) > 1:
        least, most, _ = _student(np.log(means[0] / means[1]))
        low, high = min(low, np.exp(least)), max(high, np.exp(most))
    return replace(difference, mean=float(left.mean() / right.mean()), low=float(low), high=float(high))


def _student(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """The 95 % interval of the mean of (S,) seeds' values and the two-sided p of its being 0, by Student's t."""
    from scipy.stats import t

    mean, free = float(values.mean()), len(values) - 1
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    if not error:
        return mean, mean, float(not mean)
    reach = float(t.ppf(0.975, free)) * error
    return mean - reach, mean + reach, float(2 * t.sf(abs(mean) / error, free))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction of the p of a family of tests, in the order given."""
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[at]))
        corrected[at] = largest
    return corrected


def _grids(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = np.asarray(a, float), np.asarray(b, float)
    if left.shape != right.shape or left.ndim != 2 or not left.size:
        raise DataError(
            f"cannot pair {left.shape} with {right.shape} values of seeds and queries",
            hint="both sides are (seeds, queries), with one value at least",
        )
    return left, right


def _draws(resamples: int, seed: int, *grids: NDArray[np.float64]) -> Iterator[list[NDArray[np.float64]]]:
    """Means of (S, Q) grids over drawn seeds and queries, one draw for all grids: lists of (R,), batch by batch."""
    rng = np.random.default_rng(seed)
    seeds, queries = grids[0].shape
    for start in range(0, resamples, BATCH):
        count = min(BATCH, resamples - start)
        weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        chosen = rng.integers(queries, size=(count, queries))
        yield [np.take_along_axis(weights @ grid, chosen, axis=1).mean(axis=1) for grid in grids]


def _bootstrap_means(delta: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    from scipy.stats import bootstrap

    result = bootstrap(
        (delta,), np.mean, n_resamples=resamples, method="percentile", batch=BATCH, rng=np.random.default_rng(seed)
    )
    return np.asarray(result.bootstrap_distribution)


def _permutation_p(delta: NDArray[np.float64], resamples: int, seed: int) -> float:
    from scipy.stats import permutation_test

    result = permutation_test(
        (delta,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        batch=BATCH,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
