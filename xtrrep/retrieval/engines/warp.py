"""WARP (Scheerer et al. 2025) through xtr-warp-rs: an IVF engine that scores as XTR does, from the clusters it probes.

What a query token did not reach scores the centroid at which the probed clusters hold `t_prime` tokens, looked for
among `bound` centroids. The library tunes every search parameter that is not given from top_k and the query, so that
one query scores differently at another top_k: here all of them are given, always.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, UsageError, typed
from xtrrep.retrieval.engines import Place, check_queries, engines, kmeans, positive, rectangle
from xtrrep.retrieval.engines.native import log_aside, panics
from xtrrep.store.encode import Store

INSTALL = "pip install xtr-warp-rs==2.1.0.2110 torch==2.11.0"
SEARCHED_BITS = (2, 4)  # 1 and 3 build for minutes, and then cannot be searched
TUNED = ("bound", "nprobe", "centroid_score_threshold", "max_candidates", "t_prime")


def _library() -> Any:
    try:
        with log_aside():
            import xtr_warp
    except ImportError as error:
        raise DataError(f"engine warp cannot be imported: {error}", hint=INSTALL) from None
    return xtr_warp


@dataclass(frozen=True)
class Searcher:
    store: Store
    native: Any
    settings: dict[str, Any]
    threads: int

    def search(
        self, queries: Sequence[NDArray[np.float32]], top_k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, top_k) document numbers and WARP scores, -1 and NaN where fewer were found."""
        import torch

        for query in queries:
            check_queries(query, self.store, top_k)
        rankings: list[Sequence[tuple[int, float]]] = [()] * len(queries)
        # Queries of one length go together: the library pads with zero vectors, which it would look for.
        for length in sorted({len(query) for query in queries}):
            rows = [i for i, query in enumerate(queries) if len(query) == length]
            batch = torch.from_numpy(np.stack([queries[i] for i in rows]))
            with panics("warp", "while searching"):
                found = self.native.search(
                    batch,
                    top_k=min(top_k, len(self.store)),
                    num_threads=self.threads,
                    show_progress=False,
                    **self.settings,
                )
            for i, ranking in zip(rows, found, strict=True):
                rankings[i] = ranking
        return rectangle(rankings, top_k)


def _placement(memory: str, device: str) -> tuple[Any, bool]:
    """The library's `device` and `mmap` for `index.memory`."""
    if memory in ("mmap", "ram"):
        return "cpu", memory == "mmap"
    if device == "cpu":
        raise DataError(f"index.memory={memory} needs a GPU, and there is none", hint="index.memory=mmap")
    return (device, False) if memory == "vram" else ([device, "cpu"], True)


@engines.register(
    "warp",
    "IVF over quantised tokens that scores and imputes as XTR does",
    paper="Scheerer et al., SIGIR 2025",
    requires="xtr_warp",
    install=INSTALL,
)
@dataclass(frozen=True)
class Warp(kmeans.IvfEngine):
    """Of the index: nbits to seed. Of the search: the rest, None meaning the library's own tuning for a query of
    `tuned_tokens` tokens at `tuned_top_k`, resolved once and kept."""

    scoring = "xtr"
    resumes = True
    at_search = frozenset({*TUNED, "tuned_top_k", "tuned_tokens"})
    speed_only = frozenset({"memory"})
    threads_keep_scores = False
    sweep: ClassVar = {
        "nprobe": (1, 4, 8, 16, 32, 64, 128),
        "t_prime": (1000, 10000, 100000),
        "bound": (32, 64, 128, 256),
        "max_candidates": (128, 512, 2048, 8192),
        "retrieve.rerank": (10, 100, 1000),
    }
    bytes_a_vector = 51  # measured on NFCorpus, 82.7 in all at 2 bits (results/recorded/engines/nfcorpus.md)

    nprobe: int | None  # [clusters] searched for each query token
    t_prime: int | None  # [tokens] t': where a walk over clusters has passed so many, its score is imputed
    bound: int | None  # [clusters] that the walk ranks and looks at for each query token
    max_candidates: int | None  # [documents] kept for ranking
    centroid_score_threshold: float | None  # clusters whose centroid scores less are not searched
    tuned_top_k: int  # [documents] that null values are tuned for
    tuned_tokens: int  # [tokens] of a query that null values are tuned for
    memory: str  # mmap or ram; on a GPU vram, or vram+ram to fill the GPU first

    def __post_init__(self) -> None:
        if self.nbits not in SEARCHED_BITS:
            raise UsageError(f"index.nbits={self.nbits}: WARP searches 2 or 4", hint="index.nbits=4")
        super().__post_init__()
        positive(self, "nprobe", "t_prime", "bound", "max_candidates", "tuned_top_k", "tuned_tokens")
        if self.memory not in ("mmap", "ram", "vram", "vram+ram"):
            raise UsageError(
                f"index.memory={self.memory!r} is not a choice", hint="index.memory=mmap, ram, vram or vram+ram"
            )
        threshold = self.centroid_score_threshold
        if threshold is not None and not 0 <= threshold <= 1:
            raise UsageError(
                f"index.centroid_score_threshold={threshold} must lie between 0 and 1",
                hint="index.centroid_score_threshold=0.0, as in the study",
            )

    def build(self, store: Store, out: Path, place: Place) -> dict[str, Any]:
        """Stream the store's float16 shards into an index; chunks that an interrupted build finished are kept."""
        if store.dim % 8:
            raise DataError(
                f"engine warp needs a dimension that is a multiple of 8, not {store.dim}", hint="--index exact"
            )
        clusters = self.clustering(store.lengths)
        kmeans.announce(clusters, store.dim)
        options = {
            "device": place.device,
            "nbits": self.nbits,
            "seed": self.seed,
            "num_partitions": clusters.partitions,
            "n_samples_kmeans": clusters.samples,
            "kmeans_niters": clusters.iterations,
            "max_points_per_centroid": self.max_points_per_centroid,
            "kmeans_sample_max_bytes": None,  # 2 GiB by itself, which would cut the sample without a word
            "show_progress": False,
        }
        library = _library().XTRWarp(str(out), device=place.device)
        with log_aside(), panics("warp", "while building"):
            try:
                library.create(str(store.folder / "vectors"), **options, resume=(out / "build_state.json").exists())
            except ValueError:  # a checkpoint of other settings, or of a store that moved
                library.create(str(store.folder / "vectors"), **options)
        (out / "build_state.json").unlink()  # names this machine's paths, and only an unfinished build needs it
        metadata = json.loads((out / "metadata.json").read_text(encoding="utf-8"))
        return {
            "units": {"tokens": store.tokens},
            **clusters.facts(),
            "num_partitions": metadata["num_partitions"],
            "index_vectors": metadata["num_embeddings"],
            "built_on": place.device,
        }

    def resolved(self, folder: Path) -> dict[str, Any]:
        """The search parameters as numbers: the library's own formula where one is not given."""
        from xtr_warp.hyperparams import optimize

        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        tuned = optimize(metadata=metadata, top_k=self.tuned_top_k, num_query_tokens=self.tuned_tokens)
        if tuned is None:
            raise DataError(
                f"{folder / 'metadata.json'} does not describe the index", hint=f"rm -r {typed(folder)} and run again"
            )
        given = {name: getattr(self, name) for name in TUNED}
        return {name: auto if given[name] is None else given[name] for name, auto in zip(TUNED, tuned, strict=True)}

    def load(self, folder: Path, store: Store, place: Place) -> Searcher:
        device, mmap = _placement(self.memory, place.device)
        native = _library().XTRWarp(str(folder))
        with log_aside(), panics("warp", f"while loading {folder}", hint=f"rm -r {typed(folder)} and run again"):
            native.load(device=device, mmap=mmap)
        return Searcher(store, native, self.resolved(folder), place.threads or 1)
