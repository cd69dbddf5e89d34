"""Token hits to ranked documents.

Shapes: T query tokens, k' hits a token, N documents, C candidates. A NaN score marks a slot with no hit, whatever its
document. Equal scores (compared as float32) rank by document number, that is by position in the collection.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.scoring import imputation as imputing

Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]


def xtr_rank(documents: NDArray[Any], scores: NDArray[Any], *, imputation: str = "min", top_k: int = 100) -> Ranking:
    """XTR's ranking from token hits (Lee et al. 2023, equation 6).

    documents: (T, k') document numbers, scores: (T, k') similarities, each row descending, NaN where there is no hit.
    A document with any hit is a candidate; it scores the sum over query tokens of its best hit, or of the imputed
    value where it has none. Returns (documents, scores), best first, at most `top_k`.
    """
    imputed = imputing.get(imputation)(scores)
    valid = ~np.isnan(scores)
    size = int(documents[valid].max(initial=-1)) + 1
    gain = np.zeros(size)
    seen = np.zeros(size, dtype=bool)
    first = np.empty(size, dtype=np.int64)
    for row, row_scores, row_valid, missing in zip(documents, scores, valid, imputed, strict=True):
        hits = np.flatnonzero(row_valid)
        found = row[hits]
        # Hits descend, so a document's first hit is its best; writing back to front leaves the first one's position.
        first[found[::-1]] = hits[::-1]
        best = hits[first[found] == hits]
        gain[row[best]] += row_scores[best].astype(np.float64) - float(missing)
        seen[found] = True
    candidates = np.flatnonzero(seen)
    total = (gain[candidates] + float(imputed.astype(np.float64).sum())).astype(np.float32)
    return top(candidates, total, top_k)


def top(documents: NDArray[np.int64], scores: NDArray[np.float32], top_k: int) -> Ranking:
    """The `top_k` best of (C,) documents with (C,) scores, ties by document number."""
    if len(scores) > top_k:
        threshold = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        keep = scores >= threshold  # with every tie at the cut, so that the tie rule decides there too
        documents, scores = documents[keep], scores[keep]
    order = np.lexsort((documents, -scores))[:top_k]
    return documents[order], scores[order]
