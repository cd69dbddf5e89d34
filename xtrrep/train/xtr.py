"""The training objective of XTR (Lee et al. 2023, section 3.1, equations 4 and 5), exact and lean.

For query token i the pool is every token of every document of the batch. R_i are the tokens whose score is at least the
k_train-th largest of the pool: all ties at that threshold are retrieved, padding never is, and a k_train above the pool
is clipped to it. With m[i, d] the best retrieved score of document d, 0 where there is none,

    f(q, d) = sum_i m[i, d] / Z[d]        Z[d] = the number of query tokens that retrieved a token of d

Variants, by name:

- `z="retrieved"` (the paper's text): Z as above, 1 where it would be 0. Retrieved negatives count as they are.
- `z="positive_clamped"` (the study's code, PyLate 1.6): a token that was not retrieved stands as a 0, to which a
  retrieved negative loses; Z is the number of positive m, at least 1e-3. Where all tokens of a document were retrieved
  no 0 stands against a negative: an all-negative document is then multiplied by 1,000.
- `z="none"`: no division, a sum.
- `missing="zero"`: a document that no query token retrieved scores 0; `"drop"`: the lowest float32, so that it leaves a
  softmax.
- `mask="topk"`; `"none"`: every token counts as retrieved (PrimeQA never applied its mask: a mean of plain maxima).

Elsewhere: sentence-transformers 6.2 keeps exactly k_train entries of a tie, and gives a document without any token -1e9
instead of 0. Gradients flow to the token of each maximum, the lowest index among equals, and not through
Z. Half-precision inputs are computed in float32.

Shapes: queries (Q, T, H), documents (D, N, S, H): N documents for each of D queries, masks without H. Column i * N of a
score matrix is query i's first document, its positive. A mask that is None takes all-zero vectors as padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xtrrep.train.streaming_scores import scores as walk_scores

Scores = Tensor | list[Tensor]


def xtr_scores(
    queries: Tensor,
    documents: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    *,
    k_train: int | Sequence[int] = 128,
    z: str = "retrieved",
    missing: str = "zero",
    mask: str = "topk",
) -> Scores:
    """XTR scores (Q, D*N) of every query against every document; a list of them, one each, for several `k_train`.

    float32 (float64 for float64 inputs). Raises ValueError for shapes that do not fit, a k_train below 1 or an unknown
    variant.
    """
    ks = _check(k_train, z=z, missing=missing, mask=mask)
    flat_mask = None if documents_mask is None else documents_mask.flatten(0, 1)
    wanted = ks if mask == "topk" else ()
    out = walk_scores(queries, documents.flatten(0, 1), queries_mask, flat_mask, wanted, z, missing)
    parts = list(out) if mask == "topk" else list(out) * len(ks)
    return parts[0] if isinstance(k_train, int) else parts


def xtr_kd_scores(
    queries: Tensor,
    documents: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    **variant: Any,
) -> Scores:
    """XTR scores (Q, N) of each query's own N documents; the pool is the whole batch. Options as for xtr_scores."""
    out = xtr_scores(queries, documents, queries_mask, documents_mask, **variant)
    return [_own(part, documents) for part in out] if isinstance(out, list) else _own(out, documents)


def xtr_scores_pairwise(
    queries: Tensor,
    documents: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    **variant: Any,
) -> Scores:
    """XTR scores (Q,) of query i and document i, documents (Q, S, H); the pool is the whole batch."""
    documents, documents_mask = _one_each(documents, documents_mask)
    out = xtr_kd_scores(queries, documents, queries_mask, documents_mask, **variant)
    return [part[:, 0] for part in out] if isinstance(out, list) else out[:, 0]


class XTRScores:
    """`xtr_scores` with its options, as the `similarity_fct` of a loss of sentence-transformers."""

    def __init__(
        self, k_train: int | Sequence[int] = 128, *, z: str = "retrieved", missing: str = "zero", mask: str = "topk"
    ) -> None:
        _check(k_train, z=z, missing=missing, mask=mask)
        self.variant: dict[str, Any] = {"k_train": k_train, "z": z, "missing": missing, "mask": mask}

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for a model card."""
        return dict(self.variant)

    def __call__(
        self,
        queries: Tensor,
        documents: Tensor,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Scores:
        return xtr_scores(queries, documents, queries_mask, documents_mask, **self.variant)


class XTRKDScores(XTRScores):
    """`xtr_kd_scores` with its options."""

    def __call__(
        self,
        queries: Tensor,
        documents: Tensor,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Scores:
        return xtr_kd_scores(queries, documents, queries_mask, documents_mask, **self.variant)


def _check(k_train: int | Sequence[int], **variant: str) -> tuple[int, ...]:
    ks = tuple(k_train) if isinstance(k_train, Sequence) else (k_train,)
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"k_train must be a positive integer or several, got {k_train!r}")
    for name, known in (
        ("z", ("retrieved", "positive_clamped", "none")),
        ("missing", ("zero", "drop")),
        ("mask", ("topk", "none")),
    ):
        if variant[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {variant[name]!r}")
    return ks


def _own(scores: Tensor, documents: Tensor) -> Tensor:
    """Each query's own columns of (Q, Q*N): (Q, N)."""
    q, n = documents.shape[:2]
    if len(scores) != q:
        raise ValueError(f"{len(scores)} queries but documents for {q}")
    return scores.view(q, q, n)[torch.arange(q), torch.arange(q)]


def _one_each(documents: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(Q, S, H) documents and their mask as groups of one."""
    if documents.ndim == 3:
        documents = documents.unsqueeze(1)
    if mask is not None and mask.ndim == 2:
        mask = mask.unsqueeze(1)
    return documents, mask
