"""Imputations that bound the missing score: from above by the smallest hit, from below by nothing at all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.retrieval.imputation import hits, imputations, nth


@imputations.register("min", "the smallest retrieved score, an upper bound on what was not", paper="Lee et al. 2023")
def smallest(scores: NDArray[Any]) -> NDArray[np.float32]:
    """(T,) the token's smallest retrieved score: with an exact search nothing it did not retrieve scores higher."""
    counts = hits(scores)
    return nth(scores, counts - 1, counts).astype(np.float32)


@imputations.register("zero", "nothing: a token that was not retrieved does not match")
def zero(scores: NDArray[Any]) -> NDArray[np.float32]:
    """(T,) zeros."""
    return np.zeros(len(scores), np.float32)
