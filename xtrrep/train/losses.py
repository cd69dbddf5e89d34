"""Training losses: contrastive, cached contrastive and distillation, for MaxSim and XTR with one or several k_train.

The scores are `xtrrep.scoring`'s; here they become a loss. Each loss is a module with the calling form of
sentence-transformers' trainer, `loss(features, labels)`, column 0 the query and the others documents. It divides scores
by a temperature: a float, or a parameter where it is learned. This module imports torch and sentence-transformers at
the top, since its classes derive from theirs: import it where a model is trained and nowhere else.

Under several ranks (train/distributed.py) a batch is this rank's, and D = R * Q with the documents of all of them. With
one, D = Q.

Shapes: Q queries of a batch, T tokens of a query, N documents a query, S tokens of a document, H dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.losses.merged_forward import embed_columns_padded
from sentence_transformers.multi_vector_encoder.losses import CachedMultiVectorMultipleNegativesRankingLoss
from sentence_transformers.util import cat_padded_token_embeddings, stack_padded_token_embeddings
from torch import Tensor, nn

from xtrrep.config import (
    ContrastiveLoss,
    Distill,
    DistillLoss,
    KdMulti,
    Train,
    is_raw,
    k_trains,
    min_max_of,
    objective_of,
    temperature_of,
)
from xtrrep.console import DataError
from xtrrep.train import distributed
from xtrrep.train.maxsim import maxsim_kd_scores, maxsim_scores
from xtrrep.train.xtr import xtr_scores

# What the scorers give a document that nothing retrieved, under missing="drop".
DROPPED = torch.finfo(torch.float32).min
# Keeps min-max from dividing by zero (docs/protocol.md 2). Scores that are nearly equal get gradients near 1e8 from
# it: gradient clipping is what bounds the step then.
EPSILON = 1e-8

Features = Iterable[dict[str, Any]]
Scores = Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]
Temperature = Tensor | float


def contrastive(model: MultiVectorEncoder, train: Train) -> nn.Module:
    """The contrastive loss of `train`: Contrastive, or CachedContrastive where train.loss=cached."""
    return (CachedContrastive if train.loss is ContrastiveLoss.cached else Contrastive)(model, train)


def distill(model: MultiVectorEncoder, train: Train, cfg: Distill) -> nn.Module:
    """The distillation loss of `cfg` for the scorer and the k_train of `train`."""
    return Distillation(model, train, cfg)


def scorer(train: Train, *, own: bool = False) -> Scores:
    """Scores of a batch by `train`'s scorer, one matrix a k_train (one for ColBERT).

    Takes queries (Q, T, H), documents (Q, N, S, H) and their masks. Gives matrices (Q, D*N) over all documents of the
    batch, query i's positive in column (rank*Q + i)*N, or (Q, N) of each query's own documents where `own`; the top-k
    of the latter still competes over the whole batch.
    """
    ks = k_trains(train)
    if not ks and own:
        return lambda *batch: [maxsim_kd_scores(*batch)]
    z, missing, mask = objective_of(train) if ks else ("", "", "")

    def scores(queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> list[Tensor]:
        everyones, everyones_mask = distributed.everyones(documents, documents_mask)
        batch = (queries, everyones, queries_mask, everyones_mask)
        if not ks:
            return [maxsim_scores(*batch)]
        found = xtr_scores(*batch, k_train=ks, z=z, missing=missing, mask=mask)
        return [_own(matrix, documents.shape[1]) for matrix in found] if own else list(found)

    return scores


def _own(scores: Tensor, ways: int) -> Tensor:
    """(Q, N) of each query's own N documents, out of (Q, D*N)."""
    queries = len(scores)
    first = distributed.rank() * queries
    rows = torch.arange(queries, device=scores.device)
    return scores.reshape(queries, -1, ways)[rows, first + rows]


def cross_entropy(scores: list[Tensor], temperature: Temperature) -> Tensor:
    """Mean over queries, and over the matrices (Q, D*N), of the positive's cross-entropy at scores / temperature.

    A dropped document leaves the softmax; a query whose positive is dropped leaves the mean, since no gradient could
    reach that positive.
    """
    return torch.stack([_cross_entropy(matrix, temperature) for matrix in scores]).mean()


def _cross_entropy(scores: Tensor, temperature: Temperature) -> Tensor:
    queries, documents = scores.shape
    numbers = distributed.rank() * queries + torch.arange(queries, device=scores.device)
    positive = numbers * (documents // (distributed.size() * queries))
    dropped = scores <= DROPPED
    counted = ~dropped.gather(1, positive[:, None])
    # Filled before the division and again after it: the smallest float over a temperature below 1 is infinite, and
    # infinity times the softmax's zero would make the temperature's gradient NaN.
    logits = (scores.masked_fill(dropped, 0.0) / temperature).masked_fill(dropped & counted, -torch.inf)
    losses = nn.functional.cross_entropy(logits, positive, reduction="none")
    weights = counted[:, 0].to(losses.dtype)
    return (losses * weights).sum() / _count(weights)


def _count(weights: Tensor) -> Tensor:
    """What a sum over this rank is divided by, so that the mean over ranks is the mean over all: at least 1 in all."""
    return distributed.mean(weights.sum()).clamp(min=1.0 / distributed.size())


def kl_divergence(
    student: Tensor, teacher: Tensor, temperature: Temperature, normalise: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """KL(teacher || student) of (Q, N) scores over the N candidates, mean over queries, without a T^2 factor.

    Only the student's scores are divided by the temperature. A dropped candidate leaves both distributions; a query
    with fewer than two candidates left adds nothing.
    """
    valid = student > DROPPED
    # A query with no candidate left is computed as if it had all, and then masked: no NaN in its gradient.
    kept = valid | ~valid.any(dim=1, keepdim=True)
    student = normalise(student.masked_fill(~valid, 0.0), kept) / temperature
    student = student.masked_fill(~kept, -torch.inf).log_softmax(dim=1)
    teacher = normalise(teacher, kept).masked_fill(~kept, -torch.inf).log_softmax(dim=1)
    return (teacher.exp() * (teacher - student).masked_fill(~valid, 0.0)).sum(dim=1).mean()


def margin_mse(
    student: Tensor, teacher: Tensor, temperature: Temperature, normalise: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Mean over the negatives of ((s_0 - s_j) - (t_0 - t_j))^2, of (Q, N) scores with the positive in column 0.

    Hofstaetter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation". The student's scores are divided by the temperature before the margins are taken, so here it is a
    change of scale between student and teacher, and no sharpness. Pairs with a dropped document are left out.
    """
    valid = student > DROPPED
    kept = valid | ~valid.any(dim=1, keepdim=True)
    student = normalise(student.masked_fill(~valid, 0.0), kept) / temperature
    teacher = normalise(teacher, kept)
    pairs = (valid[:, :1] & valid[:, 1:]).to(student.dtype)
    errors = (student[:, :1] - student[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    return (errors.square() * pairs).sum() / _count(pairs)


def min_max(scores: Tensor, kept: Tensor) -> Tensor:
    """(Q, N) scores to [0, 1] over each query's kept candidates; what is not kept comes back meaningless."""
    low = scores.masked_fill(~kept, torch.inf).amin(dim=1, keepdim=True)
    high = scores.masked_fill(~kept, -torch.inf).amax(dim=1, keepdim=True)
    return (scores - low) / (high - low + EPSILON)


def mean_scores(scores: list[Tensor]) -> Tensor:
    """The mean of several (Q, N) scores; a candidate's mean is over those that did not drop it."""
    stacked = torch.stack(scores)
    valid = stacked > DROPPED
    count = valid.sum(dim=0)
    mean = stacked.masked_fill(~valid, 0.0).sum(dim=0) / count.clamp(min=1)
    return mean.masked_fill(count == 0, DROPPED)


def _temperature(initial: float, learned: bool) -> Temperature:
    if not learned:
        return initial
    parameter = nn.Parameter(torch.tensor(initial, dtype=torch.float32))
    # DDP averages the model's gradients only.
    parameter.register_hook(distributed.mean)  # type: ignore[no-untyped-call]
    return parameter


def _embed(model: nn.Module, features: Features) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries (Q, T, H), documents (Q, N, S, H) and their masks (Q, T) and (Q, N, S); one forward pass each."""
    # Copies: the model writes its outputs into the dicts it is given.
    query, *documents = [dict(column) for column in features]
    output = model(query, task=query.get("task", "query"))
    stacked, mask = stack_padded_token_embeddings(*embed_columns_padded(model, documents, task_default="document"))
    return output["token_embeddings"], stacked, output["attention_mask"].bool(), mask


def _settings(train: Train) -> dict[str, Any]:
    ks = k_trains(train)
    if not ks:
        return {"scorer": train.scorer.value}
    z, missing, mask = objective_of(train)
    return {"scorer": train.scorer.value, "k_train": list(ks), "z": z, "missing": missing, "mask": mask}


class Contrastive(nn.Module):
    """Cross-entropy of each query's positive over all documents of the batch, at scores / temperature.

    Positives and hard negatives alike compete, in-batch. With several k_train the cross-entropies are averaged, at one
    temperature. `temperature` is a parameter where train.learn_temperature, and trains with the model.
    """

    def __init__(self, model: MultiVectorEncoder, train: Train) -> None:
        super().__init__()
        self.model = model
        self.scores = scorer(train)
        self.temperature = _temperature(temperature_of(train), train.learn_temperature)
        self.settings = _settings(train) | {
            "temperature": temperature_of(train),
            "learn_temperature": train.learn_temperature,
        }
        if is_raw(train):
            self.settings["vectors"] = "raw"  # the trainer then leaves the model's last step out

    def forward(self, sentence_features: Features, labels: Tensor | None = None) -> Tensor:
        """The loss of a batch: one dict of tokenised texts a column. `labels` are not read."""
        return cross_entropy(self.scores(*_embed(self.model, sentence_features)), self.temperature)

    def get_config_dict(self) -> dict[str, Any]:
        """What the loss is, for model cards and checkpoints."""
        return self.settings


class CachedContrastive(CachedMultiVectorMultipleNegativesRankingLoss):  # type: ignore[misc]  # the library is not followed
    """Contrastive with a gradient cache (Gao et al. 2021): the same loss, one mini-batch of activations at a time.

    All texts are embedded twice, `train.mini_batch` at a time: first without a graph, for the loss and its gradient
    with respect to the embeddings, then with one. Embedding, replayed dropout and the second pass are
    sentence-transformers'; its own loss has one fixed scale and one score matrix, so that part is ours.
    """

    def __init__(self, model: MultiVectorEncoder, train: Train) -> None:
        super().__init__(model, mini_batch_size=train.mini_batch)
        self.scores = scorer(train)
        self.temperature = _temperature(temperature_of(train), train.learn_temperature)
        self.settings = _settings(train) | {
            "temperature": temperature_of(train),
            "learn_temperature": train.learn_temperature,
            "mini_batch": train.mini_batch,
        }

    def calculate_loss(
        self, reps: list[list[Tensor]], masks_chunks: list[list[Tensor]], *, with_backward: bool = False
    ) -> Tensor:
        """The loss from embeddings in mini-batches, a list a column. Called by the base where no gradient is wanted."""
        if with_backward:
            raise NotImplementedError("calculate_loss_and_cache_gradients goes back by itself")
        return self._loss(reps, masks_chunks, self.temperature)

    def calculate_loss_and_cache_gradients(
        self, reps: list[list[Tensor]], masks_chunks: list[list[Tensor]]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """The loss, and its gradients with respect to the embeddings. The base hooks its second pass onto the loss."""
        leaves = [self.temperature.detach().requires_grad_()] if isinstance(self.temperature, nn.Parameter) else []
        value = self._loss(reps, masks_chunks, leaves[0] if leaves else self.temperature)
        inputs = leaves + [rep for column in reps for rep in column]
        gradients = iter(torch.autograd.grad(value, inputs, materialize_grads=True))
        loss = value.detach().requires_grad_()
        for leaf in leaves:
            # A term of value 0 that hands the temperature its gradient when the trainer goes back. Written into .grad
            # here, it would miss the loss scale of fp16, which the optimizer divides by.
            loss = loss + next(gradients) * (self.temperature - leaf.detach())
        return loss, [[next(gradients) for _ in column] for column in reps]

    def get_config_dict(self) -> dict[str, Any]:
        """What the loss is, for model cards and checkpoints."""
        return self.settings

    def _loss(self, reps: list[list[Tensor]], masks: list[list[Tensor]], temperature: Temperature) -> Tensor:
        # The scores are computed at once: they hold no grid, so there is nothing to save by chunks.
        (queries, queries_mask), *columns = [
            cat_padded_token_embeddings(*chunks) for chunks in zip(reps, masks, strict=True)
        ]
        documents, documents_mask = stack_padded_token_embeddings(*map(list, zip(*columns, strict=True)))
        return cross_entropy(self.scores(queries, documents, queries_mask, documents_mask), temperature)


class Distillation(nn.Module):
    """The student's scores of each query's own N candidates against a teacher's (docs/protocol.md 2).

    distill.loss=kl is `kl_divergence`, margin_mse is `margin_mse`. distill.min_max normalises the scores of student and
    teacher over the candidates first, in either loss (without it margin_mse is the field's own). Several k_train:
    kd_multi=losses averages one loss each, kd_multi=scores averages the scores before min-max and has one loss.
    """

    def __init__(self, model: MultiVectorEncoder, train: Train, cfg: Distill) -> None:
        super().__init__()
        self.model = model
        self.scores = scorer(train, own=True)
        self.compare = margin_mse if cfg.loss is DistillLoss.margin_mse else kl_divergence
        self.normalise = min_max if min_max_of(cfg) else _raw
        self.multi = cfg.kd_multi
        self.temperature = _temperature(cfg.temperature, cfg.learn_temperature)
        self.settings = _settings(train) | {
            "loss": cfg.loss.value,
            "kd_multi": cfg.kd_multi.value,
            "min_max": min_max_of(cfg),
            "temperature": cfg.temperature,
            "learn_temperature": cfg.learn_temperature,
        }

    def forward(self, sentence_features: Features, labels: Tensor | None = None) -> Tensor:
        """The loss of a batch: one dict of tokenised texts a column, and the teacher's scores (Q, N).

        Raises DataError where the teacher's scores are missing, of another shape, or not finite.
        """
        features = list(sentence_features)
        teacher = _teacher(labels, len(features) - 1)
        scores = self.scores(*_embed(self.model, features))
        if self.multi is KdMulti.scores:
            scores = [mean_scores(scores)]
        return torch.stack([self.compare(s, teacher, self.temperature, self.normalise) for s in scores]).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """What the loss is, for model cards and checkpoints."""
        return self.settings


def _raw(scores: Tensor, kept: Tensor) -> Tensor:
    return scores


def _teacher(labels: Tensor | None, documents: int) -> Tensor:
    if labels is None or labels.ndim != 2 or labels.shape[1] != documents or documents < 2:
        found = "none" if labels is None else f"scores of shape {tuple(labels.shape)}"
        raise DataError(
            f"distillation needs a teacher's score for each of {max(documents, 2)} candidates, found {found}",
            hint="columns query, document_1 to document_N, and label: N scores",
        )
    if not labels.isfinite().all():
        raise DataError("a teacher's score is not finite", hint="score the candidates again, or drop that query")
    return labels.detach().float()
