"""The study's power law: how scores fall with rank, carried on far below the last hit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.retrieval.imputation import hits, imputations, nth

FURTHER = 100  # extrapolated to this many times k'


@imputations.register("power_law", "log score on log rank, fitted a token and carried on to rank 100 k'")
def power_law(scores: NDArray[Any]) -> NDArray[np.float32]:
    """(T,) least squares of log score on log rank over the positive scores, at rank 100 k' (docs/protocol.md 1).

    k' is the width of `scores`. The value is kept within [min(0, smallest), smallest]; with fewer than two positive
    scores it is the smallest.
    """
    counts, width = hits(scores), scores.shape[1]
    lowest = nth(scores, counts - 1, counts)
    if width < 2:
        return lowest.astype(np.float32)
    x = np.log(np.arange(1, width + 1))
    positive = scores > 0  # a NaN is not
    y = np.zeros(scores.shape)
    np.log(scores, out=y, where=positive, dtype=np.float64)
    n = positive.sum(axis=1)
    sum_x, sum_xx, sum_y, sum_xy = positive @ x, positive @ (x * x), y.sum(axis=1), y @ x
    spread = np.where(n > 1, n * sum_xx - sum_x**2, 1.0)
    slope = (n * sum_xy - sum_x * sum_y) / spread
    level = (sum_y - slope * sum_x) / np.maximum(n, 1)
    value = np.exp(np.minimum(level + slope * np.log(FURTHER * width), 700.0))
    value = np.where(n > 1, np.clip(value, np.minimum(lowest, 0.0), lowest), lowest)
    return value.astype(np.float32)
