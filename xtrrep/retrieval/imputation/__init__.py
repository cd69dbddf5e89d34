"""What XTR scores a query token that retrieved nothing of a candidate document (Lee et al. 2023, section 3.3).

An imputation takes the hits' scores, (T query tokens, k') with each row descending and NaN-padded, and returns one
value a token, (T,) float32. A token without any hit imputes 0. To add one, drop a file beside `bounds.py` that
registers it: `@imputations.register("median", "...")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.config.registry import Registry

Imputation = Callable[[NDArray[Any]], NDArray[np.float32]]

imputations: Registry[Imputation] = Registry("imputation", "xtrrep.retrieval.imputation")


def hits(scores: NDArray[Any]) -> NDArray[np.int64]:
    """(T,) how many hits each row holds."""
    counts: NDArray[np.int64] = scores.shape[1] - np.isnan(scores).sum(axis=1)
    return counts


def nth(scores: NDArray[Any], column: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(T,) the value at a column of each row; 0 in rows without a hit."""
    if not scores.shape[1]:
        return np.zeros(len(scores))
    values = scores[np.arange(len(scores)), np.clip(column, 0, None)].astype(np.float64)
    return np.where(counts > 0, values, 0.0)
