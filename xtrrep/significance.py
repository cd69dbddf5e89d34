"""Paired comparisons over queries: how large a difference is, and how sure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xtrrep.console import DataError


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
        raise DataError(f"cannot pair {left.shape} with {right.shape} per-query values")
    delta = left - right
    if not np.isfinite(delta).all():
        raise DataError("per-query values hold numbers that are not finite")
    if len(delta) < 2:  # one query says nothing of others
        return Difference(float(delta.mean()), -np.inf, np.inf, 1.0, len(delta))
    if not delta.any():
        return Difference(0.0, 0.0, 0.0, 1.0, len(delta))
    means = _bootstrap_means(delta, resamples, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(delta.mean()), float(low), float(high), _permutation_p(delta, resamples, seed), len(delta))


def _bootstrap_means(delta: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    from scipy.stats import bootstrap

    result = bootstrap(
        (delta,), np.mean, n_resamples=resamples, method="percentile", batch=256, rng=np.random.default_rng(seed)
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
        batch=256,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
