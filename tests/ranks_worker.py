"""One rank of tests/test_ranks.py: losses of its share of a batch, and the gradients that reach its embeddings."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from xtrrep.config import Train, compose
from xtrrep.train import distributed, losses

# name -> (what is trained, how its loss is made)
CASES: dict[str, tuple[str, ...]] = {
    "colbert": ("config=colbert",),
    "xtr": ("config=xtr_k128", "train.k_train=7"),
    "several k": ("setup=II", "config=xtr_multi", "train.k_train=[3,11]"),
    "dropped": ("config=xtr_k128", "train.k_train=3", "train.missing=drop"),
    "clamped": ("config=xtr_k128", "train.k_train=5", "train.z=positive_clamped"),
    "own kl": ("config=xtr_k128", "train.k_train=7"),
    "own margin": ("config=xtr_k128", "train.k_train=2", "train.missing=drop"),
    "own colbert": ("config=colbert",),
}
QUERIES, WAYS, DIM = 6, 2, 8


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, documents, their masks and a teacher's scores of the whole batch; documents differ in length."""
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    queries, documents = unit(torch.randn(QUERIES, 4, DIM), dim=-1), unit(torch.randn(QUERIES, WAYS, 9, DIM), dim=-1)
    lengths = torch.randint(2, 10, (QUERIES, WAYS))
    lengths[: QUERIES // 2] = lengths[: QUERIES // 2].clamp(max=5)  # the first rank's longest is another
    mask = torch.arange(9) < lengths[..., None]
    return (
        queries,
        documents * mask[..., None],
        torch.ones(QUERIES, 4, dtype=torch.bool),
        mask,
        torch.rand(QUERIES, WAYS),
    )


def loss_of(name: str, train: Train, temperature: Tensor, share: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of some rows of the batch, and the leaves its gradients reach."""
    queries, documents, queries_mask, mask, teacher = batch()
    longest = int(mask[share].sum(-1).max())
    leaves = queries[share].clone().requires_grad_(), documents[share, :, :longest].clone().requires_grad_()
    scores = losses.scorer(train, own=name.startswith("own"))(*leaves, queries_mask[share], mask[share, :, :longest])
    if name.startswith("own"):
        compare = losses.margin_mse if "margin" in name else losses.kl_divergence
        loss = torch.stack([compare(s, teacher[share], temperature, losses.min_max) for s in scores]).mean()
    else:
        loss = losses.cross_entropy(scores, temperature)
    return loss, *leaves


def results(share: slice) -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, words in CASES.items():
        temperature = losses._temperature(0.3, True)
        assert isinstance(temperature, Tensor)
        loss, queries, documents = loss_of(name, compose(words).train, temperature, share)
        loss.backward()
        padded = torch.zeros(*documents.shape[:2], 9, DIM)
        assert documents.grad is not None
        padded[:, :, : documents.shape[2]] = documents.grad
        gradients = {"queries": queries.grad, "documents": padded, "temperature": temperature.grad}
        found[name] = {"loss": loss.detach(), **gradients}
    return found


if __name__ == "__main__":
    distributed.begin("cpu")
    size = QUERIES // distributed.size()
    torch.save(
        results(slice(distributed.rank() * size, (distributed.rank() + 1) * size)),
        Path(sys.argv[1]) / f"{distributed.rank()}.pt",
    )
