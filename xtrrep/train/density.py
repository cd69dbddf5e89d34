"""How sparse a k_train is: the share of (query token, document) pairs of a batch that retrieve anything.

XTR's objective scores a document by the query tokens that retrieved one of its tokens. That share decides what a model
learns from, and it depends on the batch: the same k_train retrieves a far larger share of a small batch.

Shapes: Q queries of T tokens, N documents of the whole batch, P tokens in all of them (the pool), H dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xtrrep.data.triples import COLUMNS
from xtrrep.model.encoder import set_lengths

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder


@dataclass(frozen=True)
class Batch:
    """The vectors of one batch. queries: (Q, T, H), [MASK] expansion included. tokens: (P, H), document after document.
    owners: (P,), the document of each token, counted from 0."""

    queries: Tensor
    tokens: Tensor
    owners: Tensor

    @property
    def documents(self) -> int:
        return int(self.owners[-1]) + 1


def embed(model: MultiVectorEncoder, triples: Sequence[Mapping[str, str]], n_doc: int) -> Batch:
    """The vectors of a batch of triples, documents cut at `n_doc` tokens; no dropout, no gradients."""
    set_lengths(model, model[0].query_length, n_doc, model[0].query_expansion)
    query, *others = COLUMNS
    queries = model.encode_query([row[query] for row in triples], show_progress_bar=False)
    documents = model.encode_document([row[name] for row in triples for name in others], show_progress_bar=False)
    lengths = torch.tensor([len(one) for one in documents])
    return Batch(torch.stack(queries), torch.cat(documents), torch.repeat_interleave(lengths))


def shares(batch: Batch, k_trains: Sequence[int]) -> dict[int, float]:
    """By k_train, the share of (query token, document) pairs in which a token is retrieved.

    Retrieved as in the objective: what scores at least the k_train-th largest of the pool, to which k_train is clipped.
    """
    wanted = [min(k, len(batch.tokens)) for k in k_trains]
    found = torch.zeros(len(wanted), dtype=torch.long)
    for query in batch.queries:
        scores = query @ batch.tokens.T
        best = scores.new_full((len(query), batch.documents), -torch.inf)
        best.scatter_reduce_(1, batch.owners.expand(len(query), -1), scores, "amax")
        ranked = scores.topk(max(wanted), dim=1).values
        found += torch.stack([(best >= ranked[:, k - 1, None]).sum() for k in wanted])
    pairs = batch.queries.shape[0] * batch.queries.shape[1] * batch.documents
    return {k: int(count) / pairs for k, count in zip(k_trains, found, strict=True)}
