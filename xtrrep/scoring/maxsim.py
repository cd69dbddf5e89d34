"""MaxSim: the sum over query tokens of the best match in a document (Khattab and Zaharia 2020, equation 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def document_maxima(similarities: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """Best match of each of R query tokens in each of C documents.

    similarities: (R, tokens) against the documents' tokens laid end to end; offsets: (C,) where each one starts, every
    document holding at least one token. Returns (R, C).
    """
    maxima: NDArray[np.float32] = np.maximum.reduceat(similarities, offsets, axis=1)
    return maxima
