"""MaxSim: the sum over query tokens of the best match in a document (Khattab and Zaharia 2020, equation 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def document_maxima(
    similarities: NDArray[Any], offsets: NDArray[np.int64], lengths: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Best match of each of R query tokens in each of C documents.

    similarities: (R, tokens) against the documents' tokens laid end to end; offsets: (C,) where each one starts;
    lengths: (C,), needed where a document may be empty: its maximum is -inf. Returns (R, C).
    """
    if lengths is None or lengths.all():
        maxima: NDArray[np.float32] = np.maximum.reduceat(similarities, offsets, axis=1)
        return maxima
    out = np.full((len(similarities), len(offsets)), -np.inf, np.float32)
    filled = np.flatnonzero(lengths)
    if len(filled):
        out[:, filled] = np.maximum.reduceat(similarities, offsets[filled], axis=1)
    return out


def maxsim_scores(
    queries: Tensor, documents: Tensor, queries_mask: Tensor | None = None, documents_mask: Tensor | None = None
) -> Tensor:
    """MaxSim (Q, D*N) of queries (Q, T, H) against all documents (D, N, S, H); masks without H.

    float32 (float64 for float64 inputs), differentiable, from the same walk as the XTR objective: nothing of the size
    of the similarity grid is kept. Column i * N is query i's first document. A mask that is None takes all-zero vectors
    as padding; a document without any token scores 0 (sentence-transformers 6.2: -1e9). Raises ValueError
    for shapes that do not fit.
    """
    from xtrrep.train.streaming_scores import scores as walk_scores

    mask = None if documents_mask is None else documents_mask.flatten(0, 1)
    return walk_scores(queries, documents.flatten(0, 1), queries_mask, mask, (), "one", "zero")[0]


def maxsim_kd_scores(
    queries: Tensor, documents: Tensor, queries_mask: Tensor | None = None, documents_mask: Tensor | None = None
) -> Tensor:
    """MaxSim (Q, N) of each query against its own N documents (Q, N, S, H)."""
    import torch

    from xtrrep.train.streaming_scores import scores as walk_scores

    if len(queries) != len(documents):
        raise ValueError(f"{len(queries)} queries but documents for {len(documents)}")
    rows = []
    for i in range(len(queries)):  # nothing of the other queries' documents is needed, unlike for XTR
        q_mask = None if queries_mask is None else queries_mask[i : i + 1]
        d_mask = None if documents_mask is None else documents_mask[i]
        rows.append(walk_scores(queries[i : i + 1], documents[i], q_mask, d_mask, (), "one", "zero")[0])
    return torch.cat(rows) if rows else queries.new_zeros(documents.shape[:2])


def maxsim_scores_pairwise(
    queries: Tensor, documents: Tensor, queries_mask: Tensor | None = None, documents_mask: Tensor | None = None
) -> Tensor:
    """MaxSim (Q,) of query i and document i, documents (Q, S, H)."""
    if documents.ndim == 3:
        documents = documents.unsqueeze(1)
    if documents_mask is not None and documents_mask.ndim == 2:
        documents_mask = documents_mask.unsqueeze(1)
    return maxsim_kd_scores(queries, documents, queries_mask, documents_mask)[:, 0]
