"""ScaNN (Guo et al. 2020): a tree of partitions and anisotropic quantisation. The engine of the study's setup (I).

Two default builds share only 80 % of their best thousand; one training thread and a fixed start make them identical.
A slot that the searched leaves cannot fill comes back as id 0 with NaN: it stays NaN here and is nobody's hit.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, UsageError, say
from xtrrep.encode import Store
from xtrrep.index import Engine, Hits, check_queries, engines

INSTALL = "pip install scann==1.4.2"
# The library raises a C++ exception below this many points.
FEWEST_POINTS = 16


@dataclass(frozen=True)
class Params:
    num_leaves: int
    num_leaves_to_search: int
    training_sample_size: int
    dimensions_per_block: int
    anisotropic_quantization_threshold: float
    spherical: bool

    def __post_init__(self) -> None:
        for name in ("num_leaves", "num_leaves_to_search", "training_sample_size", "dimensions_per_block"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"index.{name} must be at least 1, got {getattr(self, name)}", hint="see configs/index"
                )
        if self.num_leaves_to_search > self.num_leaves:
            raise UsageError(
                f"index.num_leaves_to_search={self.num_leaves_to_search} is above index.num_leaves={self.num_leaves}",
                hint=f"index.num_leaves_to_search={max(1, self.num_leaves // 10)}",
            )


def _library() -> Any:
    try:
        import scann
    except ImportError as error:
        raise DataError(f"engine scann cannot be imported: {error}", hint=INSTALL) from None
    return scann


@contextmanager
def _native_log_aside() -> Iterator[None]:
    """Keep the C++ library's log lines off stderr; they are shown if the build fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            log.seek(0)
            os.write(kept, log.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@dataclass(frozen=True)
class Searcher:
    store: Store
    native: Any
    leaves_to_search: int

    def search(self, queries: NDArray[np.float32], k_prime: int) -> Hits:
        """The `k_prime` best tokens the searched leaves hold for each of (T, H) queries.

        Scores are the quantised similarities. Empty slots have score NaN. Never more slots than tokens.
        """
        check_queries(queries, self.store)
        width = min(k_prime, self.store.tokens)
        tokens, scores = self.native.search_batched(
            np.ascontiguousarray(queries, np.float32), width, width, self.leaves_to_search
        )
        # The library returns each row descending, its empty slots last.
        return Hits(np.asarray(tokens, np.int64), np.asarray(scores, np.float32))


def build(source: Store, params: Params, out: Path) -> dict[str, Any]:
    """Build from a store (held in memory as float32 meanwhile) and serialise without absolute paths."""
    if source.tokens < max(params.num_leaves, FEWEST_POINTS):
        raise DataError(
            f"engine scann cannot make {params.num_leaves} leaves of {source.tokens} tokens",
            hint=f"--index exact, or index.num_leaves={max(1, source.tokens // 100)}",
        )
    vectors = source.rows(0, source.tokens).astype(np.float32)
    if not np.isfinite(vectors).all():
        # NaN would abort the whole process inside the library.
        raise DataError(f"the store {source.folder} holds vectors that are not finite")
    builder = (
        _library()
        .scann_ops_pybind.builder(vectors, 10, "dot_product")
        .tree(
            num_leaves=params.num_leaves,
            num_leaves_to_search=params.num_leaves_to_search,
            training_sample_size=min(params.training_sample_size, source.tokens),
            spherical=params.spherical,
            random_init=False,
        )
        .score_ah(
            params.dimensions_per_block,
            anisotropic_quantization_threshold=params.anisotropic_quantization_threshold,
        )
    )
    builder.set_n_training_threads(1)
    say(f"  {params.num_leaves:,} leaves over {source.tokens:,} tokens, one thread; ScaNN shows no progress")
    with _native_log_aside():
        builder.build().serialize(str(out), relative_path=True)
    return {"units": {"tokens": source.tokens}, "training_threads": 1}


def load(folder: Path, source: Store, params: Params) -> Searcher:
    native = _library().scann_ops_pybind.load_searcher(str(folder))
    return Searcher(source, native, params.num_leaves_to_search)


engines.register(
    "scann",
    "partition tree and anisotropic quantisation, setup (I)'s engine",
    paper="Guo et al., ICML 2020",
    requires="scann",
    install=INSTALL,
)(Engine("token", Params, build, load))
