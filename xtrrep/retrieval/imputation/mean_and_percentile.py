"""Imputations by a statistic of the retrieved scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.retrieval.imputation import hits, imputations, nth

PERCENTILE = 10.0  # the study's


@imputations.register("mean", "the mean retrieved score")
def mean(scores: NDArray[Any]) -> NDArray[np.float32]:
    """(T,) the mean of each token's retrieved scores."""
    counts = hits(scores)
    total = np.nansum(scores, axis=1, dtype=np.float64)
    return (total / np.maximum(counts, 1)).astype(np.float32)


@imputations.register("percentile", "the 10th percentile of the retrieved scores")
def percentile(scores: NDArray[Any], q: float = PERCENTILE) -> NDArray[np.float32]:
    """(T,) the q-th percentile (0 to 100) of each token's retrieved scores, linear between two; q = 0 is `min`.

    Raises ValueError for a q outside 0 to 100.
    """
    if not 0 <= q <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, not at {q}")
    counts = hits(scores)
    place = np.maximum(counts - 1, 0) * (1 - q / 100)  # rows descend, so the smallest stands last
    above = np.floor(place).astype(np.int64)
    below = np.minimum(above + 1, np.maximum(counts - 1, 0))
    high, low = nth(scores, above, counts), nth(scores, below, counts)
    # From the lower value up: at a whole place the value itself comes out, to the last bit.
    return (high + (low - high) * (place - above)).astype(np.float32)
