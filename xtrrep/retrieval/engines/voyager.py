"""HNSW (Malkov and Yashunin 2018) through voyager: PyLate's token index. An extra: `pip install xtrrep[voyager]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xtrrep.artifacts import write_atomic
from xtrrep.console import DataError, progress
from xtrrep.retrieval.engines import Hits, Place, TokenEngine, check_queries, engines, positive
from xtrrep.store.encode import Store

INSTALL = "pip install 'voyager>=2.1,<3'"
ADDED = 4096  # tokens added at a time, for the progress bar


def _library() -> Any:
    try:
        import voyager
    except ImportError as error:
        raise DataError(f"engine voyager cannot be imported: {error}", hint=INSTALL) from None
    return voyager


@dataclass(frozen=True)
class Searcher:
    store: Store
    native: Any
    ef: int
    threads: int

    def search(self, queries: NDArray[np.float32], k_prime: int) -> Hits:
        """The `k_prime` best tokens the graph leads to for each of (T, H) queries; empty slots have score NaN."""
        check_queries(queries, self.store, k_prime)
        width = min(k_prime, self.store.tokens)
        try:
            found, distances = self._query(queries, width)
        except _library().RecallError:  # the graph does not reach k' tokens from somewhere: a row at a time
            found = np.zeros((len(queries), width), np.int64)
            distances = np.full((len(queries), width), np.nan, np.float32)
            for i, query in enumerate(queries):
                row, row_distances = self._deepest(query[None], width)
                found[i, : row.shape[1]], distances[i, : row.shape[1]] = row[0], row_distances[0]
        return Hits(found.astype(np.int64), 1 - distances)

    def _query(self, queries: NDArray[np.float32], width: int) -> tuple[NDArray[Any], NDArray[Any]]:
        found, distances = self.native.query(queries, width, num_threads=self.threads, query_ef=max(self.ef, width))
        return np.asarray(found), np.asarray(distances, np.float32)

    def _deepest(self, query: NDArray[np.float32], width: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """As many of the `width` nearest as one query reaches, by bisection."""
        low, high = 0, width
        best: tuple[NDArray[Any], NDArray[Any]] = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
        while low < high:
            middle = (low + high + 1) // 2
            try:
                best, low = self._query(query, middle), middle
            except _library().RecallError:
                high = middle - 1
        return best


@engines.register(
    "voyager",
    "HNSW graph over every token, PyLate's token index",
    paper="Malkov and Yashunin, TPAMI 2018",
    requires="voyager",
    install=INSTALL,
)
@dataclass(frozen=True)
class Voyager(TokenEngine):
    """Of the index: m links a token, `ef_construction`, seed. Of the search: `ef`, raised to k' where that is more."""

    at_search = frozenset({"ef"})
    optional = True
    sweep: ClassVar = {"ef": (50, 200, 1000, 4000, 20000), "retrieve.k_prime": (20, 100, 1000, 4000)}

    m: int  # [links] of each token
    ef_construction: int  # [tokens] that a search keeps while the graph is built
    seed: int  # of the graph
    ef: int  # [tokens] that a search keeps, raised to k' where that is more

    def __post_init__(self) -> None:
        positive(self, "m", "ef_construction", "ef")

    @property
    def prefix(self) -> bool:
        return False  # ef follows k'

    def build(self, store: Store, out: Path, place: Place) -> dict[str, Any]:
        """Add the tokens in order on one thread, so that two builds are one graph."""
        library = _library()
        index = library.Index(
            library.Space.InnerProduct,
            num_dimensions=store.dim,
            M=self.m,
            ef_construction=self.ef_construction,
            random_seed=self.seed,
            max_elements=store.tokens,
        )
        with progress(store.tokens, "HNSW", "token") as bar:
            for start, rows in store.pieces(ADDED):
                index.add_items(rows.astype(np.float32), ids=list(range(start, start + len(rows))), num_threads=1)
                bar.update(len(rows))
        write_atomic(out / "index.voy", lambda file: file.write(index.as_bytes()))
        return {"units": {"tokens": store.tokens}}

    def load(self, folder: Path, store: Store, place: Place) -> Searcher:
        return Searcher(store, _library().Index.load(str(folder / "index.voy")), self.ef, place.search_threads)
