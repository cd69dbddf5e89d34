"""In-batch contrastive training with MaxSim or the XTR objective, as sentence-transformers 6.2 scores them.

XTR (Lee et al. 2023, equations 4 and 5): each query token keeps its `k_train` best token scores of the whole batch;
f(q, d) is the mean, over the query tokens that kept a token of d, of their best kept score. Cross-entropy over all
documents of the batch, positives and hard negatives alike, at a fixed temperature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xtrrep.config import Scorer, Train

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder


def contrastive(model: MultiVectorEncoder, cfg: Train) -> torch.nn.Module:
    """Cross-entropy of the positive against every document of the batch, scores divided by the temperature."""
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
    from sentence_transformers.multi_vector_encoder.scoring import XTRScores, colbert_scores

    # A k_train above the pool is clipped to it by XTRScores, which makes the objective a mean of plain maxima.
    similarity = XTRScores(cfg.k_train) if cfg.scorer is Scorer.xtr and cfg.k_train else colbert_scores
    loss: torch.nn.Module = MultiVectorMultipleNegativesRankingLoss(
        model, scale=1.0 / cfg.temperature, similarity_fct=similarity
    )
    return loss
