"""What XTR scores a query token that retrieved nothing of a candidate document (Lee et al. 2023, section 3.3).

An imputation takes the hits' scores, (T query tokens, k') descending and NaN-padded, and returns one value a token.
A token without any hit imputes 0. To add one, write the function here and name it in `imputations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, suggest

Imputation = Callable[[NDArray[Any]], NDArray[np.float32]]


def smallest(scores: NDArray[Any]) -> NDArray[np.float32]:
    """The token's smallest retrieved score: an upper bound on everything it did not retrieve."""
    filled = np.where(np.isnan(scores), np.inf, scores)
    lowest = filled.min(axis=1) if scores.shape[1] else np.full(len(scores), np.inf)
    return np.where(np.isinf(lowest), 0.0, lowest).astype(np.float32)


imputations: dict[str, Imputation] = {"min": smallest}


def get(name: str) -> Imputation:
    """The imputation called `name`. Raises DataError with a suggestion."""
    if name not in imputations:
        raise DataError(f"no imputation named {name!r} in this version", hint=suggest(name, imputations))
    return imputations[name]
