"""Exact token search on a torch device, batched over queries: the answers of `exact.py`.

A block of the store's tokens is on the device once for all queries of a call: in place where all of the store fits
there, else copied from the memory map. What stays of a block is each query token's best k' so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError
from xtrrep.retrieval.engines import Hits, Maxima, check_queries
from xtrrep.store.encode import RESIDENT_BYTES, Store

if TYPE_CHECKING:
    from torch import Tensor

# Document tokens and query rows of one product: 2^27 similarities, 0.5 GiB, and twice that as keys.
TOKENS, ROWS = 1 << 18, 1 << 9


@dataclass(frozen=True)
class Searcher:
    """Every token of `store` compared on `device`. Nothing is put there before the first search."""

    store: Store
    device: str

    def search(self, queries: NDArray[np.float32], k_prime: int) -> Hits:
        """The `k_prime` most similar tokens of (T, H) queries, ties by token position: as `exact.Searcher.search`."""
        from xtrrep.retrieval.device import unpack

        ((packed,), _) = self.hits([queries], k_prime)
        tokens, scores = unpack(packed)
        return Hits(tokens.cpu().numpy(), scores.cpu().numpy())

    def maxima(self, queries: NDArray[np.float32], k_prime: int) -> Maxima:
        """As `exact.Searcher.maxima`."""
        ((documents, best),) = self.all_maxima([queries], k_prime)
        return Maxima(documents.cpu().numpy(), best.cpu().numpy())

    def hits(
        self, queries: Sequence[NDArray[np.float32]], k_prime: int, *, maxsim: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(T, k') keys of the best tokens of each of (T, H) queries, best first, on the device: `scoring.device.unpack`
        tells positions and scores. With `maxsim` also its MaxSim (N,) with every document, else nothing. Raises
        DataError for a store of more tokens than a key holds."""
        import torch

        from xtrrep.retrieval.device import LARGEST, above, document_maxima, largest, unpack

        if self.store.tokens > LARGEST:
            raise DataError(
                f"{self.store.folder} holds {self.store.tokens:,} vectors, more than one search on a GPU can number",
                hint="machine.device=cpu, or a smaller collection",
            )
        chunks = self._chunks(queries, k_prime)
        parts = [[torch.empty((len(rows), 0), dtype=torch.int64, device=self.device)] for rows, _ in chunks]
        floors = [torch.full((len(rows), 1), -torch.inf, device=self.device) for rows, _ in chunks]
        sums = torch.full((len(queries) if maxsim else 0, len(self.store)), -torch.inf, device=self.device)
        for first, documents, offsets, vectors in self._blocks():
            if not len(vectors):
                continue
            positions = torch.arange(first, first + len(vectors), device=self.device)
            done = 0
            for i, (rows, lengths) in enumerate(chunks):
                similarities = rows @ vectors.T
                parts[i].append(above(similarities, positions, floors[i], k_prime))
                if sum(part.shape[1] for part in parts[i]) >= 2 * k_prime:
                    parts[i] = [largest(torch.cat(parts[i], dim=1), k_prime)]
                    # What ties with the last of them comes later, and so is not kept.
                    floors[i] = unpack(parts[i][0].amin(dim=1, keepdim=True))[1]
                if maxsim:
                    for own in torch.split(document_maxima(similarities, offsets), lengths):
                        sums[done, documents] = own.sum(dim=0, dtype=torch.float64).to(torch.float32)
                        done += 1
        ordered = [largest(torch.cat(own, dim=1), k_prime).sort(dim=1, descending=True).values for own in parts]
        split = [own for part, (_, lengths) in zip(ordered, chunks, strict=True) for own in torch.split(part, lengths)]
        return split, list(sums)

    def all_maxima(self, queries: Sequence[NDArray[np.float32]], k_prime: int) -> list[tuple[Tensor, Tensor]]:
        """(T, N) document maxima and (T, k') best similarities, descending, of each (T, H) query, on the device."""
        import torch

        from xtrrep.retrieval.device import document_maxima, largest

        chunks = self._chunks(queries, k_prime)
        best = [torch.empty((len(rows), 0), device=self.device) for rows, _ in chunks]
        maxima = [torch.empty((len(rows), len(self.store)), device=self.device) for rows, _ in chunks]
        for _, documents, offsets, vectors in self._blocks():
            for i, (rows, _) in enumerate(chunks):
                similarities = rows @ vectors.T
                maxima[i][:, documents] = document_maxima(similarities, offsets)
                best[i] = largest(torch.cat([best[i], largest(similarities, k_prime)], dim=1), k_prime)
        best = [part.sort(dim=1, descending=True).values for part in best]
        return [
            pair
            for whole, part, (_, lengths) in zip(maxima, best, chunks, strict=True)
            for pair in zip(torch.split(whole, lengths), torch.split(part, lengths), strict=True)
        ]

    def documents_of(self, tokens: Tensor) -> Tensor:
        """The numbers of the documents that tokens, by position, belong to."""
        import torch

        return torch.searchsorted(self._offsets, tokens, right=True) - 1

    def at_once(self, batch: int, longest: int, k_prime: int) -> int:
        """How many queries of at most `longest` tokens go into one pass: `batch`, and where every pass copies the
        store anew as many as there is room for."""
        if self._resident is not None:
            return batch
        each = longest * (24 * k_prime + 4 * len(self.store)) + 4 * len(self.store)
        return max(batch, room(self.device) // max(1, each))

    def _chunks(self, queries: Sequence[NDArray[np.float32]], k_prime: int) -> list[tuple[Tensor, list[int]]]:
        """The queries' rows on the device, whole queries and about ROWS rows together, and the queries' lengths."""
        import torch

        chunks: list[list[NDArray[np.float32]]] = []
        for query in queries:
            check_queries(query, self.store, k_prime)
            if not chunks or sum(map(len, chunks[-1])) + len(query) > ROWS:
                chunks.append([])
            chunks[-1].append(query)
        return [
            (torch.from_numpy(np.concatenate(chunk)).to(self.device), [len(query) for query in chunk])
            for chunk in chunks
        ]

    def _blocks(self) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
        """The first token, the documents, their (C + 1,) offsets from it, and their (b, H) vectors in float32."""
        from xtrrep.retrieval.device import full_precision

        with full_precision():
            for begin, stop in self.store.document_blocks(TOKENS):
                first, last = int(self.store.offsets[begin]), int(self.store.offsets[stop])
                vectors = self._copied(first, last) if self._resident is None else self._resident[first:last]
                yield first, slice(begin, stop), self._offsets[begin : stop + 1] - first, vectors.float()

    def _copied(self, first: int, last: int) -> Tensor:
        import torch

        rows = torch.from_numpy(np.array(self.store.rows(first, last)))
        self.store.release()  # or a pass would end with all of the store mapped
        return rows.to(self.device)

    @cached_property
    def _offsets(self) -> Tensor:
        import torch

        return torch.from_numpy(self.store.offsets).to(self.device)

    @cached_property
    def _resident(self) -> Tensor | None:
        """All vectors as they are stored, on the device, where they take no more than there is room for."""
        import torch

        tokens, dim = self.store.tokens, self.store.dim
        kind = torch.from_numpy(np.empty(0, self.store.shards[0].dtype)).dtype if tokens else torch.float16
        if tokens * dim * kind.itemsize > room(self.device):
            return None
        whole = torch.empty((tokens, dim), dtype=kind, device=self.device)
        for first in range(0, tokens, TOKENS):
            last = min(first + TOKENS, tokens)
            whole[first:last] = self._copied(first, last)
        return whole


def room(device: str) -> int:
    """Bytes that a search may keep on a device: half of what is free of a GPU's memory."""
    import torch

    return torch.cuda.mem_get_info(device)[0] // 2 if device.startswith("cuda") else RESIDENT_BYTES
