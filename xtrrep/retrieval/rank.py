"""XTR's ranking rule (Lee et al. 2023, equation 6), and ColBERT's over the same candidates: from evidence to a ranking.

A document with any hit is a candidate. Under XTR it scores the sum over query tokens of its best hit, or of the imputed
value where it has none. Under ColBERT it scores its exact MaxSim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.retrieval.evidence import Evidence, Ranking, from_hits
from xtrrep.retrieval.imputation import imputations

Array = NDArray[Any] | Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Setting:
    """How evidence becomes a ranking."""

    scoring: str  # "xtr" or "colbert"; for a document engine what it approximates; "run" for scores made elsewhere
    k_prime: int | None  # None where no token search is ours
    imputation: str = "min"
    top_k: int = 100
    drop_self: bool = False  # drop the document whose id is the query's
    zero_missing: bool = False  # the study's code: an empty slot is a hit of score 0 on the first document
    rerank: int | None = None  # so many of the best are scored once more, by exact MaxSim
    fuse: str | None = None  # words.fused: how a ranking by words is made one with it

    @property
    def depth(self) -> int:
        """How deep a first ranking must be: one more where the query's own document may have to go."""
        return max(self.top_k, self.rerank or 0) + self.drop_self


@dataclass(frozen=True)
class Counts:
    """What stands behind one query's ranking; None where the engine does not say."""

    returned: int  # before top_k cuts
    candidates: int | None = None  # documents that were scored
    imputed_cells: int | None = None  # (query token, candidate) pairs without a hit
    missing_slots: int | None = None  # of the query tokens x k' slots, those the search could not fill


def rank(
    evidence: Evidence, setting: Setting, maxsim: Callable[[Evidence], Any] | None = None
) -> tuple[Ranking, Counts]:
    """One query's best documents, `setting.depth` of them at most.

    maxsim: the exact MaxSim of the candidates, laid out as `Evidence.totals`; needed for ColBERT scoring alone. Raises
    DataError for an unknown imputation.
    """
    evidence = with_empty_slots(evidence, setting)
    tokens, size = evidence.shape
    unfilled = tokens * size - evidence.filled
    if setting.scoring != "xtr" and maxsim is not None:
        scores = maxsim(evidence)
    else:
        imputed = imputed_values(evidence, setting) if unfilled else np.zeros(tokens, np.float32)
        scores = evidence.totals(imputed)
    counts = Counts(size, size, unfilled, int(evidence.empty.sum()))
    return evidence.top(scores, setting.depth), counts


def imputed_values(evidence: Evidence, setting: Setting) -> NDArray[np.float32]:
    """(T,) what each query token scores in a candidate where it has no hit."""
    return imputations.get(setting.imputation)(evidence.hits)


def with_empty_slots(evidence: Evidence, setting: Setting) -> Evidence:
    """The evidence as `setting.zero_missing` reads it: every empty slot is a hit of score 0 on the first document.

    Otherwise an empty slot is ignored. It does not count as a hit with score 0.
    """
    short = evidence.empty > 0
    if not (setting.zero_missing and short.any()):
        return evidence
    own, hits, k_prime = evidence.best_of(0), evidence.hits, setting.k_prime or 0
    if np.count_nonzero(~np.isnan(hits)) + evidence.empty.sum() == len(hits) * k_prime:  # or they are not all known
        hits = np.pad(hits, ((0, 0), (0, k_prime - hits.shape[1])), constant_values=np.nan)
        hits = -np.sort(-np.where(np.isnan(hits), 0, hits), axis=1)
    return evidence.replaced(0, np.where(short, np.fmax(own, 0), own), hits)


def xtr_rank(documents: Array, scores: Array, *, imputation: str = "min", top_k: int = 100) -> Ranking:
    """XTR's ranking from token hits.

    documents: (T, k') document numbers, scores: (T, k') similarities, each row descending, NaN where there is no hit;
    or both as ragged lists. Returns (documents, scores), best first, at most `top_k`. Raises ValueError where the two
    do not fit together, where a hit's document is negative, or for a `top_k` below 1, and DataError for an unknown
    imputation.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    numbers, values = _rectangles(documents, scores)
    width = values.shape[1]
    return rank(from_hits(numbers, values, width), Setting("xtr", width, imputation, top_k))[0]


def _rectangles(documents: Array, scores: Array) -> tuple[NDArray[Any], NDArray[Any]]:
    """(T, k') arrays of what may be ragged lists, NaN scores in the slots that are not there."""
    if not (isinstance(documents, np.ndarray) and isinstance(scores, np.ndarray)):
        if [len(row) for row in documents] != [len(row) for row in scores]:
            raise ValueError("documents and scores do not have the same number of hits in every row")
        width = max((len(row) for row in documents), default=0)
        numbers, values = np.zeros((len(documents), width), np.int64), np.full((len(scores), width), np.nan)
        for i, (row, row_scores) in enumerate(zip(documents, scores, strict=True)):
            numbers[i, : len(row)], values[i, : len(row)] = row, row_scores
        documents, scores = numbers, values
    if documents.shape != scores.shape or documents.ndim != 2:
        raise ValueError(f"documents {documents.shape} and scores {scores.shape} must both be (T, k')")
    if not np.issubdtype(documents.dtype, np.integer):
        raise ValueError(f"document numbers are integers, not {documents.dtype}")
    return documents, scores if np.issubdtype(scores.dtype, np.floating) else scores.astype(np.float64)
