"""Comparisons over queries, and over training seeds: how large a difference is, and how sure.

Shapes: S training seeds, Q queries (or documents, or what else a value is of), R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xtrrep.console import DataError

BATCH = 256  # resamples at a time
POINTS = 64  # of a chi-squared distribution


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
    _check_finite(delta)
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

    Several: interval and p are those of `_crossed`, and speak of other queries and of other trainings. One query says
    nothing, under however many seeds. Raises DataError as `paired`.
    """
    left, right = _grids(a, b)
    _check_finite(left - right)
    if 1 in left.shape:
        return paired(left.mean(axis=0), right.mean(axis=0), resamples=resamples, seed=seed)
    reach, p = _crossed(left - right)
    mean = float((left - right).mean())
    return Difference(mean, mean - reach, mean + reach, p, left.shape[1])


def ratio_over_seeds(a: ArrayLike, b: ArrayLike, *, resamples: int = 10000, seed: int = 0) -> Difference:
    """As `paired_over_seeds`, with the ratio of the two means in place of their difference; p says whether they differ.

    Over several seeds the interval is of the logarithm of the ratio, to first order. Raises DataError as `paired`, and
    where the mean of `b`, or over several seeds a mean of either, is not positive.
    """
    left, right = _grids(a, b)
    difference = paired_over_seeds(left, right, resamples=resamples, seed=seed)
    means = left.mean(axis=1), right.mean(axis=1)
    least = right.mean() if len(left) == 1 else min(means[0].min(), means[1].min())
    if least <= 0:
        raise DataError(f"a ratio needs positive means, and one is {least:g}", hint="compare by the difference")
    ratio = float(left.mean() / right.mean())
    if left.shape[1] < 2:
        return replace(difference, mean=ratio)
    if len(left) > 1:
        reach, _ = _crossed(left / left.mean() - right / right.mean())
        return replace(difference, mean=ratio, low=ratio * float(np.exp(-reach)), high=ratio * float(np.exp(reach)))
    draws = np.concatenate([above / below for above, below in _draws(resamples, seed, left[0], right[0])])
    low, high = np.quantile(draws, [0.025, 0.975])
    return replace(difference, mean=ratio, low=float(low), high=float(high))


def _crossed(grid: NDArray[np.float64]) -> tuple[float, float]:
    """The half-width of the 95 % interval of the mean of (S, Q) values, and the two-sided p of its being 0."""
    from scipy.optimize import brentq

    mean, (errors, weights) = float(grid.mean()), standard_errors(grid)
    largest = float(errors.max())
    if largest <= 1e-12 * abs(mean) or not largest:
        return 0.0, float(not mean)
    reach = brentq(lambda distance: two_sided(distance, errors, weights) - 0.05, 0, 40 * largest)
    return float(reach), two_sided(mean, errors, weights)


def standard_errors(grid: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standard errors that the mean of (S, Q) values may have, both larger than 1, and how likely each one is.

    Seeds and queries are both samples: value = mean + seed's effect + query's effect + rest, all of them normal. The
    variance of the mean is (M_S + M_Q - M_R) / (S * Q), of the mean squares of an analysis of variance, and not less
    than either of the first two alone gives. A mean square of few values is uncertain, so the generalised p-value (Tsui
    and Weerahandi 1989) averages the normal p over what it may be, M * df / chi2(df). Where only seeds or only queries
    vary that is Student's t-test.
    """
    return errors_of(mean_squares(grid), *grid.shape)


def mean_squares(grid: NDArray[np.float64]) -> tuple[float, float, float]:
    """Of (S, Q) values: of seeds, of queries and of the rest, as in an analysis of variance."""
    seeds, queries = grid.shape
    by_seed, by_query = grid.mean(axis=1), grid.mean(axis=0)
    rest = grid - by_seed[:, None] - by_query + grid.mean()
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (queries - 1))
    return queries * float(by_seed.var(ddof=1)), seeds * float(by_query.var(ddof=1)), of_rest


def errors_of(squares: Sequence[float], seeds: int, queries: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As `standard_errors`, from the mean squares."""
    of_seeds, likely = _scaled(seeds - 1)
    of_queries, and_likely = _scaled(queries - 1)
    of_seeds = of_seeds[:, None] * squares[0]
    of_queries = of_queries * squares[1]
    variances = np.maximum(of_seeds + of_queries - squares[2], np.maximum(of_seeds, of_queries))
    return np.sqrt(variances / (seeds * queries)).ravel(), np.outer(likely, and_likely).ravel()


def two_sided(mean: float, errors: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The p of a mean at least so far from 0, by what `standard_errors` gives."""
    from scipy.special import ndtr

    with np.errstate(divide="ignore", invalid="ignore"):
        tails = 2 * ndtr(-abs(mean) / errors)
    return float(weights @ tails)


@cache
def _scaled(free: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """df / chi2(df) at some points, densest where it is large, and the weight of each."""
    from scipy.stats import chi2

    at = (np.arange(POINTS) + 0.5) / POINTS
    return free / chi2.ppf(at**3, free), at**2 / (at**2).sum()


def _check_finite(values: NDArray[np.float64]) -> None:
    if not np.isfinite(values).all():
        raise DataError(
            "per-query values hold numbers that are not finite", hint="a query without results scores 0, not NaN"
        )


def student(mean: float, error: float, free: float, least: float, units: int) -> Difference:
    """An estimate with its standard error, by Student's t. p asks whether it is further than `least` from 0."""
    from scipy.stats import t

    reach, beyond = error * float(t.isf(0.025, free)), abs(mean) - least
    p = 1.0 if beyond <= 0 else min(1.0, 2 * float(t.sf(beyond / error, free))) if error else 0.0
    return Difference(mean, mean - reach, mean + reach, p, units)


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


def _draws(resamples: int, seed: int, *values: NDArray[np.float64]) -> Iterator[list[NDArray[np.float64]]]:
    """Means of (Q,) values over drawn queries, one draw for all of them: lists of (R,), batch by batch."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, BATCH):
        chosen = rng.integers(len(values[0]), size=(min(BATCH, resamples - start), len(values[0])))
        yield [own[chosen].mean(axis=1) for own in values]


def _bootstrap_means(delta: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """(R,) means of (Q,) values over drawn queries: scipy's percentile bootstrap, its draws made once for all values
    of one length."""
    return _products(_drawn(len(delta), resamples, seed), delta) / len(delta)


def _permutation_p(delta: NDArray[np.float64], resamples: int, seed: int) -> float:
    """The two-sided p of flipped signs: scipy's `permutation_test`, its flips made once for all values of one length.

    Where there are no more than `resamples` ways to flip, each is counted, by scipy.
    """
    if len(delta) <= np.log2(resamples):
        from scipy.stats import permutation_test

        exact = permutation_test(
            (delta,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples", n_resamples=resamples
        )
        return float(exact.pvalue)
    flipped = _products(_flipped(len(delta), resamples, seed), delta)
    means, observed = (delta.sum() - 2 * flipped) / len(delta), delta.mean()
    near = 100 * np.finfo(np.float64).eps * abs(observed)  # equal but for rounding
    beyond = min(np.count_nonzero(means <= observed + near), np.count_nonzero(means >= observed - near))
    return min(1.0, 2 * (beyond + 1) / (resamples + 1))


def _products(counts: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([counts[i : i + BATCH].astype(np.float64) @ values for i in range(0, len(counts), BATCH)])


@lru_cache(maxsize=2)
def _drawn(queries: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """(R, Q) how often each query is drawn. More than 255 times is past all chance."""
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, BATCH):
        chosen = rng.integers(queries, size=(min(BATCH, resamples - start), queries))
        cells = chosen + queries * np.arange(len(chosen))[:, None]
        parts.append(np.bincount(cells.ravel(), minlength=cells.size).astype(np.uint8).reshape(chosen.shape))
    return np.concatenate(parts)


@lru_cache(maxsize=2)
def _flipped(queries: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """(R, Q) 1 where a difference changes its sign."""
    rng = np.random.default_rng(seed)
    both = np.tile(np.arange(2), (min(BATCH, resamples), queries, 1))
    parts = [rng.permuted(both, axis=-1)[:, :, 0].astype(np.uint8) for _ in range(0, resamples, BATCH)]
    return np.concatenate(parts)[:resamples]
