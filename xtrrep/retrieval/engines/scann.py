"""ScaNN (Guo et al. 2020): a tree of partitions and anisotropic quantisation. The engine of the study's setup (I).

Two default builds share only 80 % of their best thousand; one training thread and a fixed start make them identical.
A slot that the searched leaves cannot fill comes back as id 0 with NaN: it stays NaN here and is nobody's hit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xtrrep.artifacts import write_atomic
from xtrrep.console import DataError, UsageError, say, typed
from xtrrep.retrieval.engines import Hits, Place, TokenEngine, check_queries, engines, positive
from xtrrep.retrieval.engines.native import log_aside, panics
from xtrrep.store.encode import Store

INSTALL = "pip install scann==1.4.2"
# The library raises a C++ exception below this many points.
FEWEST_POINTS = 16
# One call of so many query tokens is cheaper on the library's threads than on one.
PARALLEL = 256


def _library() -> Any:
    try:
        import scann
    except ImportError as error:
        raise DataError(f"engine scann cannot be imported: {error}", hint=INSTALL) from None
    return scann


PICKLED = "scann_docids.pkl"  # no index of ours has one


@dataclass(frozen=True)
class Searcher:
    store: Store
    native: Any
    leaves_to_search: int
    reorder: int | None
    threads: int

    def search(self, queries: NDArray[np.float32], k_prime: int) -> Hits:
        """The `k_prime` best tokens the searched leaves hold for each of (T, H) queries.

        Scores are the quantised similarities (exact ones where reordered). Empty slots have score NaN. Never more slots
        than tokens.
        """
        check_queries(queries, self.store, k_prime)
        width = min(k_prime, self.store.tokens)
        parallel = self.threads > 1 and len(queries) >= PARALLEL
        call = self.native.search_batched_parallel if parallel else self.native.search_batched
        tokens, scores = call(
            np.ascontiguousarray(queries, np.float32), width, max(width, self.reorder or 0), self.leaves_to_search
        )
        # The library returns each row descending, its empty slots last.
        return Hits(np.asarray(tokens), np.asarray(scores, np.float32))


def _add_bfloat16(vectors: NDArray[np.float32], out: Path) -> None:
    """The library saves a brute force in bfloat16 without its vectors, and cannot load that: add them, as it writes
    them for reordering, to the files and to their list."""
    halves = ((vectors.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16).view(np.int16)
    write_atomic(out / "bfloat16_dataset.npy", lambda file: np.save(file, halves))
    listed = (out / "scann_assets.pbtxt").read_bytes()
    listed += b'assets {\n  asset_type: BF16_DATASET_NPY\n  asset_path: "bfloat16_dataset.npy"\n}\n'
    write_atomic(out / "scann_assets.pbtxt", lambda file: file.write(listed))


@engines.register(
    "scann",
    "partition tree and anisotropic quantisation, setup (I)'s engine",
    paper="Guo et al., ICML 2020",
    requires="scann",
    install=INSTALL,
)
@dataclass(frozen=True)
class Scann(TokenEngine):
    """score: "ah" (anisotropic quantisation), or "bf16" or "fp32", every vector of the searched leaves compared.
    reorder: at least so many of the best quantised hits (all k', where that is more) are compared once more in full,
    which keeps the vectors in the index; None: none are. repeatable: built by one thread from k-means++, so that two
    builds are the same to the byte; otherwise as the library builds by itself, from random centres on all threads, in a
    third of the time. Of the search alone: `num_leaves_to_search`."""

    at_search = frozenset({"num_leaves_to_search"})
    sweep: ClassVar = {
        "num_leaves_to_search": (5, 20, 50, 100, 200, 500),
        "retrieve.k_prime": (100, 1000, 4000, 20000, 40000),
        "retrieve.rerank": (10, 100, 1000),
    }
    tiny: ClassVar = {
        "": {"num_leaves": 20, "num_leaves_to_search": 10},
        "bf16": {"num_leaves": 20, "num_leaves_to_search": 10, "score": "bf16"},
    }

    num_leaves: int  # [leaves] partitions of the tree
    num_leaves_to_search: int  # [leaves] searched for each query token
    training_sample_size: int  # [vectors] from which the tree and its codes are learned
    score: str  # ah (quantised), or bf16 or fp32: every vector of the searched leaves
    dimensions_per_block: int  # [dimensions] that share one code
    anisotropic_quantization_threshold: float  # how much errors along a vector count
    reorder: int | None  # [hits] at least so many compared once more in full; null: none
    spherical: bool  # partitions of unit vectors
    repeatable: bool  # two builds are the same to the byte, in three times the time

    def __post_init__(self) -> None:
        positive(self, "num_leaves", "num_leaves_to_search", "training_sample_size", "dimensions_per_block", "reorder")
        if self.score not in ("ah", "bf16", "fp32"):
            raise UsageError(f"index.score={self.score!r} is not a choice", hint="index.score=ah, bf16 or fp32")
        if self.reorder is not None and self.score != "ah":
            raise UsageError(
                f"index.reorder={self.reorder} refines the scores of index.score=ah, and index.score={self.score}",
                hint="index.reorder=null",
            )
        if self.num_leaves_to_search > self.num_leaves:
            raise UsageError(
                f"index.num_leaves_to_search={self.num_leaves_to_search} is above index.num_leaves={self.num_leaves}",
                hint=f"index.num_leaves_to_search={max(1, self.num_leaves // 10)}",
            )

    @property
    def prefix(self) -> bool:
        return self.reorder is None

    def build(self, store: Store, out: Path, place: Place) -> dict[str, Any]:
        """Build from a store (held in memory as float32 meanwhile) and serialise without absolute paths."""
        if store.tokens < max(self.num_leaves, FEWEST_POINTS):
            raise DataError(
                f"engine scann cannot make {self.num_leaves} leaves of {store.tokens} tokens",
                hint=f"--index exact, or index.num_leaves={max(1, store.tokens // 100)}",
            )
        vectors = store.widened()
        scann = _library()
        builder = scann.scann_ops_pybind.builder(vectors, 10, "dot_product").tree(
            num_leaves=self.num_leaves,
            num_leaves_to_search=self.num_leaves,  # every search says how many
            training_sample_size=min(self.training_sample_size, store.tokens),
            spherical=self.spherical,
            random_init=not self.repeatable,
        )
        if self.score == "ah":
            builder = builder.score_ah(
                self.dimensions_per_block,
                anisotropic_quantization_threshold=self.anisotropic_quantization_threshold,
            )
        elif self.score == "bf16":
            builder = builder.score_brute_force(scann.ReorderType.BFLOAT16)
        else:
            builder = builder.score_brute_force()
        if self.reorder is not None:
            builder = builder.reorder(self.reorder)
        # 0: as many as there are. Which of them is first to finish decides sums in the last bit, and so leaves.
        builder.set_n_training_threads(1 if self.repeatable else place.threads or 0)
        how = "one thread" if self.repeatable else "from random centres"
        say(f"  {self.num_leaves:,} leaves over {store.tokens:,} tokens, {how}; ScaNN shows no progress")
        with log_aside(), panics("scann", "while building"):
            builder.build().serialize(str(out), relative_path=True)
        if self.score == "bf16":
            _add_bfloat16(vectors, out)
        threads = 1 if self.repeatable else place.threads
        return {"units": {"tokens": store.tokens}, "training_threads": threads, "repeatable": self.repeatable}

    def load(self, folder: Path, store: Store, place: Place) -> Searcher:
        threads = place.search_threads
        if (folder / PICKLED).exists():
            raise DataError(
                f"{folder / PICKLED} is a pickle, which the library would run",
                hint=f"rm -r {typed(folder)} and run again",
            )
        with log_aside(), panics("scann", f"while loading {folder}", hint=f"rm -r {typed(folder)} and run again"):
            native = _library().scann_ops_pybind.load_searcher(str(folder))
            native.set_num_threads(threads)
        return Searcher(store, native, self.num_leaves_to_search, self.reorder, threads)
