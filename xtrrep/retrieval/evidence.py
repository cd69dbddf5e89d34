"""What a token search knows of one query: the candidates, each token's best hit in each of them, and all hits.

Four producers make it: `from_hits`, on a grid or row by row by the size of the problem; `from_maxima`, for a search
that sees every similarity; and `device.DeviceEvidence` on a GPU. One consumer ranks it: `rank.rank`.

Shapes: T query tokens, k' hits a token, N documents, C candidates. A NaN score marks a slot without a hit, whatever
document is named there. Equal scores (compared as float32) rank by document number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]

# Up to so many (token, document) cells, or a few a hit, all of a query's tokens are scattered at once.
GRID_CELLS = 1 << 18
GRID_CELLS_A_HIT = 4
# Document numbers above this are renumbered where the hits are few: memory follows the hits, not the numbers.
LARGEST_DENSE = 1 << 25
NUMBERS_A_HIT = 8
# Copies of one vector differ by about 1e-7 with their place in a float32 product: this close to the k'-th is a tie.
TIE = 1e-6


class Evidence(Protocol):
    """One query's evidence. A cell is a (query token, candidate) pair; it is filled where the token has a hit there."""

    @property
    def candidates(self) -> NDArray[np.int64]:
        """(C,) numbers of the documents with any hit, ascending."""

    @property
    def hits(self) -> NDArray[Any]:
        """(T, k') similarities of the hits, each row descending, NaN after its last."""

    @property
    def empty(self) -> NDArray[np.int64]:
        """(T,) how many of the k' slots of each query token hold no hit."""

    @property
    def shape(self) -> tuple[int, int]:
        """T and C."""

    @property
    def filled(self) -> int:
        """How many of the T x C cells are filled."""

    def best_of(self, document: int) -> NDArray[np.float64]:
        """(T,) the best hit of each query token in one document, NaN where it has none."""

    def replaced(self, document: int, best: NDArray[np.float64], hits: NDArray[Any]) -> Evidence:
        """The same with other best hits (T,) in one document, NaN for none, and with other hits."""

    def totals(self, imputed: NDArray[np.float32]) -> Any:
        """Sums over the query tokens of their best hits, or of (T,) imputed values in the cells that are not filled.
        The scores are float32, laid out as `top` takes them."""

    def top(self, scores: Any, depth: int) -> Ranking:
        """The `depth` best candidates by scores laid out as those of `totals`, ties by document number."""


@dataclass(frozen=True)
class _Columns:
    """A column for each of some documents; `names` are their numbers, None where column and number are one.
    `columns` are the candidates among them, ascending."""

    columns: NDArray[np.int64]
    names: NDArray[np.int64] | None
    hits: NDArray[Any]
    empty: NDArray[np.int64]
    filled: int

    @property
    def candidates(self) -> NDArray[np.int64]:
        return self.columns if self.names is None else self.names[self.columns]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.hits), len(self.columns)

    def _column(self, document: int) -> int | None:
        """The column of a candidate; None for any other document."""
        at = int(np.searchsorted(self.candidates, document))
        return int(self.columns[at]) if at < len(self.columns) and self.candidates[at] == document else None

    def top(self, scores: NDArray[np.float32], depth: int) -> Ranking:
        return top(self.candidates, scores, depth)


@dataclass(frozen=True)
class Grid(_Columns):
    """All cells at once. best: (T, D), and known: (T, D) where it holds a hit, for the D columns."""

    best: NDArray[Any]
    known: NDArray[np.bool_]

    def best_of(self, document: int) -> NDArray[np.float64]:
        column = self._column(document)
        if column is None:
            return np.full(len(self.hits), np.nan)
        return np.where(self.known[:, column], self.best[:, column], np.nan).astype(np.float64)

    def replaced(self, document: int, best: NDArray[np.float64], hits: NDArray[Any]) -> Grid:
        numbers, column = self.candidates, self._column(document)
        cells, known = self.best[:, self.columns], self.known[:, self.columns]
        at = int(np.searchsorted(numbers, document))
        if column is None:
            numbers = np.insert(numbers, at, document)
            cells, known = np.insert(cells, at, 0, axis=1), np.insert(known, at, False, axis=1)
        cells[:, at], known[:, at] = best, ~np.isnan(best)
        return grid(cells, known, numbers, hits, self.empty)

    def totals(self, imputed: NDArray[np.float32]) -> NDArray[np.float32]:
        (tokens, size), best, known = self.shape, self.best, self.known
        few = size < best.shape[1] // 2  # or the sums are cheaper picked out than the columns
        if few:
            best, known = best[:, self.columns], known[:, self.columns]
        values = best if self.filled == tokens * size else np.where(known, best, imputed[:, None])
        total = values.sum(axis=0, dtype=np.float64)
        scores: NDArray[np.float32] = (total if few else total[self.columns]).astype(np.float32)
        return scores


@dataclass(frozen=True)
class Rows(_Columns):
    """A list of filled cells for each query token, so that memory and time follow the hits. documents: the columns,
    each once; best: the hits there; size: D."""

    documents: tuple[NDArray[np.int64], ...]
    best: tuple[NDArray[Any], ...]
    size: int

    def best_of(self, document: int) -> NDArray[np.float64]:
        found, column = np.full(len(self.hits), np.nan), self._column(document)
        for token, (columns, best) in enumerate(zip(self.documents, self.best, strict=True)):
            found[token] = next(iter(best[columns == column]), np.nan)
        return found

    def replaced(self, document: int, best: NDArray[np.float64], hits: NDArray[Any]) -> Rows:
        names = np.arange(self.size) if self.names is None else self.names
        column = int(np.searchsorted(names, document))
        new = column == len(names) or bool(names[column] != document)
        names = np.insert(names, column, document) if new else names
        documents, cells = [], []
        for columns, values, value in zip(self.documents, self.best, best, strict=True):
            kept, count = new | (columns != column), int(not np.isnan(value))
            documents.append(np.append(columns[kept] + (new & (columns[kept] >= column)), [column] * count))
            cells.append(np.append(values[kept], np.full(count, value, values.dtype)))
        return rows([np.asarray(d, np.int64) for d in documents], cells, len(names), names, hits, self.empty)

    def totals(self, imputed: NDArray[np.float32]) -> NDArray[np.float32]:
        gain, missing = np.zeros(self.size), imputed.astype(np.float64)
        for columns, best, none in zip(self.documents, self.best, missing, strict=True):
            gain[columns] += best.astype(np.float64) - none
        scores: NDArray[np.float32] = (gain[self.columns] + missing.sum()).astype(np.float32)
        return scores


def grid(
    best: NDArray[Any],
    known: NDArray[np.bool_],
    names: NDArray[np.int64] | None,
    hits: NDArray[Any],
    empty: NDArray[np.int64],
) -> Grid:
    """Evidence from all cells of some documents: (T, D) best hits, and where they are known."""
    columns, filled = np.flatnonzero(known.any(axis=0)), int(np.count_nonzero(known))
    return Grid(columns, names, hits, empty, filled, best, known)


def rows(
    documents: list[NDArray[np.int64]],
    best: list[NDArray[Any]],
    size: int,
    names: NDArray[np.int64] | None,
    hits: NDArray[Any],
    empty: NDArray[np.int64],
) -> Rows:
    """Evidence from the filled cells of each query token, for `size` documents."""
    seen = np.zeros(size, dtype=bool)
    for columns in documents:
        seen[columns] = True
    filled = sum(map(len, documents))
    return Rows(np.flatnonzero(seen), names, hits, empty, filled, tuple(documents), tuple(best), size)


def from_hits(documents: NDArray[Any], scores: NDArray[Any], k_prime: int) -> Evidence:
    """Evidence from (T, up to k') document numbers and similarities, each row descending but for NaN.

    Raises ValueError where a hit names a negative document.
    """
    nothing = np.isnan(scores)
    holes = bool(nothing.any())
    if holes and bool((nothing[:, :-1] & ~nothing[:, 1:]).any()):  # a hole before a hit: to the end with it
        order = np.argsort(nothing, axis=1, kind="stable")
        documents, scores, nothing = (np.take_along_axis(part, order, axis=1) for part in (documents, scores, nothing))
    counts = scores.shape[1] - nothing.sum(axis=1) if holes else np.full(len(scores), scores.shape[1])
    empty = k_prime - counts
    if not counts.any():
        none = np.empty((len(scores), 0))
        return Grid(np.empty(0, np.int64), None, scores, empty, 0, none, none.astype(bool))
    # Where there is no hit the document means nothing, and need not be a document at all.
    inside = np.where(nothing, documents[np.argmax(counts), 0], documents) if holes else documents
    if int(inside.min()) < 0:
        raise ValueError(f"a hit names document {int(inside.min())}")
    names, size = None, int(inside.max()) + 1
    if size > max(LARGEST_DENSE, NUMBERS_A_HIT * scores.size):
        names, flat = np.unique(inside, return_inverse=True)
        inside, size = flat.reshape(inside.shape), len(names)
    if len(scores) * size <= max(GRID_CELLS, GRID_CELLS_A_HIT * scores.size):
        cells = _on_a_grid(inside, scores, counts if holes else None, size)
        return grid(cells, ~np.isnan(cells), names, scores, empty)
    return rows(*_row_by_row(inside, scores, counts, size), size, names, scores, empty)


def _on_a_grid(
    documents: NDArray[Any], scores: NDArray[Any], counts: NDArray[np.int64] | None, size: int
) -> NDArray[Any]:
    """(T, size) best hits, NaN for none. Hits descend: written from the last to the first, the best is what stays."""
    cells, values = documents + (np.arange(len(documents)) * size)[:, None], scores
    if counts is not None:
        kept = np.arange(scores.shape[1]) < counts[:, None]
        cells, values = cells[kept], scores[kept]
    best = np.full(len(scores) * size, np.nan, scores.dtype)
    best[cells.ravel()[::-1]] = values.ravel()[::-1]
    return best.reshape(len(scores), size)


def _row_by_row(
    documents: NDArray[Any], scores: NDArray[Any], counts: NDArray[np.int64], size: int
) -> tuple[list[NDArray[np.int64]], list[NDArray[Any]]]:
    """The documents of each row, each once, and their best hits. Only one dense row is held over the documents."""
    first = np.empty(size, dtype=np.int32)
    places = np.arange(scores.shape[1], dtype=np.int32)
    columns, values = [], []
    for row, row_scores, count in zip(documents, scores, counts, strict=True):
        numbers, at = row[:count].astype(np.int64), places[:count]
        first[numbers[::-1]] = at[::-1]  # back to front: what stays is a document's first and so best hit
        best = np.flatnonzero(first[numbers] == at)
        columns.append(numbers[best])
        values.append(row_scores[best])
    return columns, values


def from_maxima(maxima: NDArray[np.float32], best: NDArray[np.float32], k_prime: int, tokens: int) -> Evidence:
    """Evidence from (T, N) best similarities in every document, -inf in one without tokens, and the best similarities
    of each query token (T, at least k' where the collection has more than k' `tokens`), descending.

    A document token is retrieved where it reaches the k'-th best. All ties count, where `from_hits` has exactly k'.
    """
    known = np.isfinite(maxima) if k_prime >= tokens else maxima >= best[:, k_prime - 1 : k_prime] - TIE
    empty = np.full(len(maxima), max(0, k_prime - tokens))
    return grid(maxima, known, None, best[:, :k_prime], empty)


def top(documents: NDArray[np.int64], scores: NDArray[np.float32], depth: int) -> Ranking:
    """The `depth` best of (C,) documents with (C,) scores, ties by document number."""
    if len(scores) > depth:
        threshold = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        keep = scores >= threshold  # with every tie at the cut, so that the tie rule decides there too
        documents, scores = documents[keep], scores[keep]
    order = np.lexsort((documents, -scores))[:depth]
    return documents[order], scores[order]
