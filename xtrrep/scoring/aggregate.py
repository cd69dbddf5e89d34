"""Token hits to ranked documents.

Shapes: T query tokens, k' hits a token, N documents, C candidates. A NaN score marks a slot with no hit, whatever its
document. Equal scores (compared as float32) rank by document number, that is by position in the collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.scoring.imputation import imputations

Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]
Rows = NDArray[Any] | Sequence[Sequence[Any]]

# Up to so many (token, document) cells, or a few a hit, all of a query's tokens are scattered at once.
GRID_CELLS = 1 << 18
GRID_CELLS_A_HIT = 4
# Document numbers above this are renumbered where the hits are few: memory follows the hits, not the numbers.
LARGEST_DENSE = 1 << 25
NUMBERS_A_HIT = 8


@dataclass(frozen=True)
class Candidates:
    """Every candidate of a query with its score: documents (C,) ascending, scores (C,), and how many of the T x C
    (query token, candidate) cells a hit filled."""

    documents: NDArray[np.int64]
    scores: NDArray[np.float32]
    filled: int


def xtr_rank(documents: Rows, scores: Rows, *, imputation: str = "min", top_k: int = 100) -> Ranking:
    """XTR's ranking from token hits (Lee et al. 2023, equation 6).

    documents: (T, k') document numbers, scores: (T, k') similarities, each row descending, NaN where there is no hit;
    or both as ragged lists. A document with any hit is a candidate; it scores the sum over query tokens of its best
    hit, or of the imputed value where it has none. Returns (documents, scores), best first, at most `top_k`. Raises
    ValueError where the two do not fit together, where a hit's document is negative, or for a `top_k` below 1, and
    DataError for an unknown imputation.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    found, values = _rectangles(documents, scores)
    candidates = aggregate(found, values, imputation)
    return top(candidates.documents, candidates.scores, top_k)


def aggregate(documents: NDArray[Any], scores: NDArray[Any], imputation: str) -> Candidates:
    """All candidates of (T, k') hits with their XTR scores; see `xtr_rank`."""
    empty = np.isnan(scores)
    holes = bool(empty.any())
    if holes and bool((empty[:, :-1] & ~empty[:, 1:]).any()):  # a hole before a hit: to the end with it
        order = np.argsort(empty, axis=1, kind="stable")
        documents, scores = np.take_along_axis(documents, order, axis=1), np.take_along_axis(scores, order, axis=1)
        empty = np.take_along_axis(empty, order, axis=1)
    imputed = imputations.get(imputation)(scores).astype(np.float64)
    counts = scores.shape[1] - empty.sum(axis=1) if holes else np.full(len(scores), scores.shape[1])
    if not counts.any():
        return Candidates(np.empty(0, np.int64), np.empty(0, np.float32), 0)
    # Where there is no hit the document means nothing, and need not be a document at all.
    inside = np.where(empty, documents[np.argmax(counts), 0], documents) if holes else documents
    if int(inside.min()) < 0:
        raise ValueError(f"a hit names document {int(inside.min())}")
    names, size = None, int(inside.max()) + 1
    if size > max(LARGEST_DENSE, NUMBERS_A_HIT * scores.size):
        names, flat = np.unique(inside, return_inverse=True)
        inside, size = flat.reshape(inside.shape), len(names)
    if len(scores) * size <= max(GRID_CELLS, GRID_CELLS_A_HIT * scores.size):
        found = _on_a_grid(inside, scores, counts if holes else None, imputed, size)
    else:
        found = _row_by_row(inside, scores, counts, imputed, size)
    return found if names is None else Candidates(names[found.documents], found.scores, found.filled)


def _on_a_grid(
    documents: NDArray[Any],
    scores: NDArray[Any],
    counts: NDArray[np.int64] | None,
    imputed: NDArray[np.float64],
    size: int,
) -> Candidates:
    """Hits descend, so written from the last to the first, a document's best is what stays in its cell."""
    cells = documents + (np.arange(len(documents)) * size)[:, None]
    values = scores
    if counts is not None:
        kept = np.arange(scores.shape[1]) < counts[:, None]
        cells, values = cells[kept], scores[kept]
    grid = np.full(len(scores) * size, np.nan, scores.dtype)
    grid[cells.ravel()[::-1]] = values.ravel()[::-1]
    grid = grid.reshape(len(scores), size)
    missing = np.isnan(grid)
    candidates = np.flatnonzero(~missing.all(axis=0))
    if len(candidates) < size // 2:
        grid, missing = grid[:, candidates], missing[:, candidates]
    total = np.where(missing, imputed[:, None], grid).sum(axis=0, dtype=np.float64)
    if len(total) > len(candidates):
        filled, total = missing.size - int(missing.sum()), total[candidates]
    else:
        filled = missing.size - int(missing.sum())
    return Candidates(candidates, total.astype(np.float32), filled)


def _row_by_row(
    documents: NDArray[Any],
    scores: NDArray[Any],
    counts: NDArray[np.int64],
    imputed: NDArray[np.float64],
    size: int,
) -> Candidates:
    """One dense row over the documents at a time, and time that follows the hits."""
    gain = np.zeros(size)
    seen = np.zeros(size, dtype=bool)
    first = np.empty(size, dtype=np.int32)
    places = np.arange(scores.shape[1], dtype=np.int32)
    filled = 0
    for row, row_scores, count, missing in zip(documents, scores, counts, imputed, strict=True):
        found, at = row[:count].astype(np.int64), places[:count]
        first[found[::-1]] = at[::-1]  # back to front: what stays is a document's first and so best hit
        best = np.flatnonzero(first[found] == at)
        found = found[best]
        gain[found] += row_scores[best].astype(np.float64) - missing
        seen[found] = True
        filled += len(best)
    candidates = np.flatnonzero(seen)
    return Candidates(candidates, (gain[candidates] + imputed.sum()).astype(np.float32), filled)


def _rectangles(documents: Rows, scores: Rows) -> tuple[NDArray[Any], NDArray[Any]]:
    """(T, k') arrays of what may be ragged lists, NaN scores in the slots that are not there."""
    if not (isinstance(documents, np.ndarray) and isinstance(scores, np.ndarray)):
        if [len(row) for row in documents] != [len(row) for row in scores]:
            raise ValueError("documents and scores do not have the same number of hits in every row")
        width = max((len(row) for row in documents), default=0)
        found, values = np.zeros((len(documents), width), np.int64), np.full((len(scores), width), np.nan)
        for i, (row, row_scores) in enumerate(zip(documents, scores, strict=True)):
            found[i, : len(row)], values[i, : len(row)] = row, row_scores
        documents, scores = found, values
    if documents.shape != scores.shape or documents.ndim != 2:
        raise ValueError(f"documents {documents.shape} and scores {scores.shape} must both be (T, k')")
    if not np.issubdtype(documents.dtype, np.integer):
        raise ValueError(f"document numbers are integers, not {documents.dtype}")
    return documents, scores if np.issubdtype(scores.dtype, np.floating) else scores.astype(np.float64)


def top(documents: NDArray[np.int64], scores: NDArray[np.float32], top_k: int) -> Ranking:
    """The `top_k` best of (C,) documents with (C,) scores, ties by document number."""
    if len(scores) > top_k:
        threshold = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        keep = scores >= threshold  # with every tie at the cut, so that the tie rule decides there too
        documents, scores = documents[keep], scores[keep]
    order = np.lexsort((documents, -scores))[:top_k]
    return documents[order], scores[order]
