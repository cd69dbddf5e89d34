"""PLAID (Santhanam et al. 2022) through fast-plaid: centroids first, then MaxSim over quantised tokens.

The candidates are the documents of the `nprobe` best centroids of each query token. They are scored by their centroids
alone, and the best `n_full_scores` of them / 4 by their decompressed tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xtrrep.artifacts import need_space, write_atomic
from xtrrep.console import DataError, UsageError, typed
from xtrrep.model.encoder import torch_threads
from xtrrep.retrieval.engines import BuildCost, Place, check_queries, engines, kmeans, positive, rectangle
from xtrrep.retrieval.engines.native import log_aside, panics
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    from torch import Tensor

INSTALL = "pip install fast-plaid==1.7.0.2110 torch==2.11.0"
BITS = (1, 2, 4, 8)
DOCUMENTS = "documents.npy"


def _library() -> Any:
    try:
        with log_aside():
            from fast_plaid.search import fast_plaid
    except ImportError as error:
        raise DataError(f"engine plaid cannot be imported: {error}", hint=INSTALL) from None
    return fast_plaid


@contextmanager
def _clustering(library: Any, partitions: int, first: int | None) -> Iterator[None]:
    """`create` takes no number of partitions, the function it clusters with does; nor the documents to cluster."""
    own = library.compute_kmeans

    def compute_kmeans(documents_embeddings: list[Tensor], **given: Any) -> Tensor:
        centroids: Tensor = own(documents_embeddings[:first], num_partitions=partitions, **given)
        return centroids

    library.compute_kmeans = compute_kmeans
    try:
        yield
    finally:
        library.compute_kmeans = own


def _views(source: Store, documents: NDArray[np.int64]) -> list[Tensor]:
    """A tensor a document that lies in the memory-mapped shards: nothing is copied."""
    import torch

    shards = [torch.from_numpy(np.load(path, mmap_mode="c")) for path in source.paths]
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    views = []
    for document in documents:
        first, last = int(source.offsets[document]), int(source.offsets[document + 1])
        shard = int(np.searchsorted(starts, first, side="right")) - 1
        views.append(shards[shard][first - starts[shard] : last - starts[shard]])
    return views


@dataclass(frozen=True)
class Searcher:
    store: Store
    native: Any
    documents: NDArray[np.int64]
    settings: dict[str, Any]
    threads: int

    def search(
        self, queries: Sequence[NDArray[np.float32]], top_k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, top_k) document numbers and PLAID scores, -1 and NaN where fewer were found."""
        import torch

        for query in queries:
            check_queries(query, self.store, top_k)
        # Threads take whole queries, torch has one in each: with two of its own a query costs 20 times the CPU time.
        workers = min(self.threads, len(queries))
        with panics("plaid", "while searching"), torch_threads(1):
            tensors = [torch.from_numpy(query) for query in queries]
            depth = min(top_k, len(self.store))
            found = self.native.search(tensors, top_k=depth, show_progress=False, n_processes=workers, **self.settings)
        numbers, scores = rectangle(found, top_k)
        return np.where(numbers < 0, -1, self.documents[numbers]), scores


@engines.register(
    "plaid",
    "IVF over quantised tokens, centroids first, then MaxSim",
    paper="Santhanam et al., CIKM 2022",
    requires="fast_plaid",
    install=INSTALL,
)
@dataclass(frozen=True)
class Plaid(kmeans.IvfEngine):
    """Of the index: nbits to seed, and `centroids_from`: the first so many documents, which k-means then draws from
    alone (None: all; docs/protocol.md 6.3). Of the search: `nprobe`, `n_full_scores`, and `chunk`, the candidate
    documents scored at a time (None: the library's choice)."""

    scoring = "colbert"
    at_search = frozenset({"nprobe", "n_full_scores"})
    speed_only = frozenset({"chunk", "gpu_memory"})
    sweep: ClassVar = {
        "nprobe": (1, 2, 4, 8, 16, 32),
        "n_full_scores": (128, 512, 2048, 8192),
        "retrieve.rerank": (10, 100, 1000),
    }
    bytes_a_vector = 14  # measured on NFCorpus, 45.7 in all at 2 bits (results/recorded/engines/nfcorpus.md)

    nprobe: int  # [clusters] probed for each query token
    n_full_scores: int  # [documents] scored by their centroids; a quarter of them is decompressed
    chunk: int | None  # [documents] scored at a time; null: the library's choice
    gpu_memory: str  # how much of the index a GPU keeps: auto, low, medium or high
    centroids_from: int | None = None  # [documents] the first, which alone are clustered; null: all

    def __post_init__(self) -> None:
        if self.nbits not in BITS:
            raise UsageError(f"index.nbits={self.nbits}: PLAID packs {BITS} bits", hint="index.nbits=4")
        super().__post_init__()
        positive(self, "nprobe", "n_full_scores", "chunk", "centroids_from")
        if self.gpu_memory not in ("auto", "low", "medium", "high"):
            raise UsageError(
                f"index.gpu_memory={self.gpu_memory!r} is not a choice",
                hint="index.gpu_memory=auto, low, medium or high",
            )

    def clustering(self, lengths: NDArray[np.int64]) -> kmeans.Clustering:
        """Over the documents that have vectors, or the first `centroids_from` of them."""
        return super().clustering(lengths[lengths > 0][: self.centroids_from])

    def build_cost(self, documents: int, each: float, dim: int) -> BuildCost:
        cost = super().build_cost(documents, each, dim)
        return replace(cost, held=cost.held + cost.disk)  # written by chunk, then merged

    def build(self, store: Store, out: Path, place: Place) -> dict[str, Any]:
        """Build from views into the store's memory-mapped shards. A document without a vector is left out and keeps its
        number."""
        documents = np.flatnonzero(store.lengths > 0)
        clusters = self.clustering(store.lengths)
        if store.dim * self.nbits % 8:
            raise DataError(f"{self.nbits} bits of dimension {store.dim} do not fill bytes", hint="--index exact")
        bytes_a_token = 8 + store.dim * self.nbits // 8  # its centroid's number and its residual
        # Twice: by chunk, and merged, which is written through a memory map.
        needed = 2 * store.tokens * bytes_a_token + 4 * clusters.partitions * store.dim
        need_space(out, needed, f"a PLAID index of {store.tokens:,} tokens")
        kmeans.announce(clusters, store.dim)
        library = _library()
        with (
            log_aside(),
            panics("plaid", "while building"),
            _clustering(library, clusters.partitions, self.centroids_from),
        ):
            index = library.FastPlaid(str(out), device=place.device)
            index.create(
                _views(store, documents),
                kmeans_niters=clusters.iterations,
                max_points_per_centroid=self.max_points_per_centroid,
                nbits=self.nbits,
                n_samples_kmeans=clusters.samples,
                seed=self.seed,
                start_from_scratch=0,  # or below 1,000 documents it would pickle the raw vectors beside the index
            )
            index.close()
        write_atomic(out / DOCUMENTS, lambda file: np.save(file, documents))
        metadata = json.loads((out / "metadata.json").read_text(encoding="utf-8"))
        return {
            "units": {"tokens": store.tokens},
            **clusters.facts(),
            "num_partitions": metadata["num_partitions"],
            "built_on": place.device,
            "index_vectors": metadata["num_embeddings"],
            "documents_without_vectors": len(store) - len(documents),
        }

    def load(self, folder: Path, store: Store, place: Place) -> Searcher:
        with log_aside(), panics("plaid", f"while loading {folder}", hint=f"rm -r {typed(folder)} and run again"):
            native = _library().FastPlaid(str(folder), device=place.device, index_gpu_memory=self.gpu_memory)
        settings = {
            "n_ivf_probe": self.nprobe,
            "n_full_scores": self.n_full_scores,
            "batch_size": "auto" if self.chunk is None else self.chunk,
        }
        return Searcher(store, native, np.load(folder / DOCUMENTS), settings, place.search_threads)
