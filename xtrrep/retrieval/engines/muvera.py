"""MUVERA (Jayaram et al. 2024): a document as one vector, so that MaxSim becomes a search for inner products.

A query's or document's fixed-dimensional encoding has a block for each repetition and each of the 2^bits cells that
random hyperplanes (SimHash) cut the space into. A query's block is the sum of its tokens in that cell. A document's is
their mean; a cell without one takes the token whose hash differs from the cell's in the fewest bits, the first of
equals. Each token is projected to `inner_dim` numbers by random signs first. The product of two encodings, divided by
the number of repetitions, estimates MaxSim, and without the projection never exceeds it. The `candidates` best by that
product, compared with every document, are ranked by MaxSim.

Legend: R repetitions, C cells, d inner dimensions, T tokens, H their dimension, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xtrrep.artifacts import need_space, write_atomic
from xtrrep.console import UsageError, progress
from xtrrep.retrieval.engines import BuildCost, DocumentEngine, Place, check_queries, engines, positive
from xtrrep.retrieval.evidence import top
from xtrrep.retrieval.maxsim import rerank
from xtrrep.store.encode import Store

ENCODINGS, DOCUMENTS, HYPERPLANES, SIGNS = "encodings.npy", "documents.npy", "hyperplanes.npy", "signs.npy"
BLOCK = 256  # documents encoded at a time
MOST_BITS = 12  # hyperplanes of a repetition: 4,096 cells


@dataclass(frozen=True)
class Encoder:
    """hyperplanes: (R, H, bits). signs: (R, H, d), scaled so that products keep their expectation; None: no projection
    and d = H. fill: whether a document's empty cells are filled."""

    hyperplanes: NDArray[np.float32]
    signs: NDArray[np.float32] | None
    fill: bool

    @property
    def cells(self) -> int:
        return 1 << int(self.hyperplanes.shape[2])

    def width(self) -> int:
        """Numbers of an encoding."""
        repetitions, dim, _ = self.hyperplanes.shape
        return int(repetitions * self.cells * (dim if self.signs is None else self.signs.shape[2]))

    def _parts(self, vectors: NDArray[np.float32], repetition: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The cell of each of (T, H) tokens, and their (T, d) projections."""
        above = vectors @ self.hyperplanes[repetition] > 0
        cells = above @ (1 << np.arange(above.shape[1]))
        return cells.astype(np.int64), vectors if self.signs is None else vectors @ self.signs[repetition]

    def query(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(R x C x d,) of (T, H) tokens: sums, divided by R."""
        blocks = []
        for repetition in range(len(self.hyperplanes)):
            cells, projected = self._parts(vectors, repetition)
            block = np.zeros((self.cells, projected.shape[1]), np.float32)
            np.add.at(block, cells, projected)
            blocks.append(block)
        encoding: NDArray[np.float32] = np.stack(blocks).ravel() / np.float32(len(blocks))
        return encoding

    def documents(self, vectors: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, R x C x d) of the tokens of N documents, one after another: means, and empty cells filled."""
        owners = np.repeat(np.arange(len(lengths)), lengths)
        starts = np.cumsum(lengths) - lengths
        blocks = []
        for repetition in range(len(self.hyperplanes)):
            cells, projected = self._parts(vectors, repetition)
            places = owners * self.cells + cells
            block = np.zeros((len(lengths) * self.cells, projected.shape[1]), np.float32)
            np.add.at(block, places, projected)
            counts = np.bincount(places, minlength=len(block))
            block /= np.maximum(counts, 1)[:, None].astype(np.float32)
            if self.fill:
                empty = (counts == 0).reshape(len(lengths), self.cells)
                for document in np.flatnonzero(lengths):
                    first = int(starts[document])
                    own, wanted = cells[first : first + int(lengths[document])], np.flatnonzero(empty[document])
                    nearest = np.bitwise_count(own[None] ^ wanted[:, None]).argmin(axis=1)
                    block[document * self.cells + wanted] = projected[first + nearest]
            blocks.append(block.reshape(len(lengths), -1))
        return np.concatenate(blocks, axis=1)


def encoder(dim: int, repetitions: int, bits: int, inner_dim: int | None, fill: bool, seed: int) -> Encoder:
    """Random hyperplanes, and random signs where `inner_dim` is below `dim`."""
    rng = np.random.default_rng(seed)
    hyperplanes = rng.standard_normal((repetitions, dim, bits), np.float32)
    if inner_dim is None or inner_dim >= dim:
        return Encoder(hyperplanes, None, fill)
    signs = rng.integers(0, 2, (repetitions, dim, inner_dim)).astype(np.float32) * 2 - 1
    return Encoder(hyperplanes, signs / np.float32(np.sqrt(inner_dim)), fill)


@dataclass(frozen=True)
class Searcher:
    store: Store
    encoder: Encoder
    encodings: NDArray[np.float32]
    numbers: NDArray[np.int64]
    candidates: int

    def search(
        self, queries: Sequence[NDArray[np.float32]], top_k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, top_k) document numbers and scores, -1 and NaN where there are no more: the `candidates` best by MaxSim,
        then the others by their encodings."""
        for query in queries:
            check_queries(query, self.store, top_k)
        numbers = np.full((len(queries), top_k), -1, np.int64)
        scores = np.full((len(queries), top_k), np.nan, np.float32)
        asked = np.stack([self.encoder.query(query) for query in queries])
        products = asked @ self.encodings.T
        for i, (query, own) in enumerate(zip(queries, products, strict=True)):
            found = top(self.numbers, own, max(top_k, self.candidates))
            ranked, values = rerank(self.store, query, found, self.candidates)
            count = min(top_k, len(ranked))
            numbers[i, :count], scores[i, :count] = ranked[:count], values[:count]
        return numbers, scores


@engines.register(
    "muvera",
    "a document as one vector, then MaxSim over the nearest",
    paper="Jayaram et al., NeurIPS 2024",
)
@dataclass(frozen=True)
class Muvera(DocumentEngine):
    """Of the index: all but `candidates`, which is of the search."""

    scoring = "colbert"
    at_search = frozenset({"candidates"})
    threads_keep_scores = False
    sweep: ClassVar = {"candidates": (10, 30, 100, 256, 1000, 4000)}
    tiny: ClassVar = {
        "": {"repetitions": 8, "bits": 3, "inner_dim": 8},
        "plain": {"repetitions": 2, "bits": 2, "inner_dim": 512, "fill": False},
    }

    repetitions: int  # of the whole, each with hyperplanes of its own
    bits: int  # [hyperplanes] that cut the space into 2^bits cells; 0: one cell
    inner_dim: int | None  # [dimensions] to which a token is projected; null: it is not
    fill: bool  # a document's empty cells take its nearest token
    seed: int  # of hyperplanes and projections
    candidates: int  # [documents] the best by their encodings, which are ranked by MaxSim

    def __post_init__(self) -> None:
        positive(self, "repetitions", "inner_dim", "candidates")
        if not 0 <= self.bits <= MOST_BITS:
            raise UsageError(f"index.bits={self.bits} must lie between 0 and {MOST_BITS}", hint="index.bits=5")

    def build(self, store: Store, out: Path, place: Place) -> dict[str, Any]:
        """Encode a block of documents at a time into one file."""
        made = encoder(store.dim, self.repetitions, self.bits, self.inner_dim, self.fill, self.seed)
        numbers = np.flatnonzero(store.lengths).astype(np.int64)  # a document without a token is nobody's
        need_space(out, 4 * made.width() * len(numbers), f"encodings of {len(numbers):,} documents")
        write_atomic(out / HYPERPLANES, lambda file: np.save(file, made.hyperplanes))
        if (signs := made.signs) is not None:
            write_atomic(out / SIGNS, lambda file: np.save(file, signs))
        write_atomic(out / DOCUMENTS, lambda file: np.save(file, numbers))
        held = np.lib.format.open_memmap(out / ENCODINGS, "w+", np.float32, (len(numbers), made.width()))
        with progress(len(numbers), "MUVERA", "document") as bar:
            for begin in range(0, len(numbers), BLOCK):
                block = numbers[begin : begin + BLOCK]
                vectors, _ = store.gather(block)
                held[begin : begin + BLOCK] = made.documents(vectors.astype(np.float32), store.lengths[block])
                store.release()
                bar.update(len(block))
        held.flush()
        return {"units": {"tokens": store.tokens}, "numbers_a_document": made.width()}

    def load(self, folder: Path, store: Store, place: Place) -> Searcher:
        signs = np.load(folder / SIGNS) if (folder / SIGNS).exists() else None
        made = Encoder(np.load(folder / HYPERPLANES), signs, self.fill)
        encodings = np.load(folder / ENCODINGS, mmap_mode="r")
        return Searcher(store, made, encodings, np.load(folder / DOCUMENTS), self.candidates)

    def build_cost(self, documents: int, each: float, dim: int) -> BuildCost:
        """Hyperplanes and projections of every token; the encodings are all that is kept."""
        inner = min(self.inner_dim or dim, dim)
        return BuildCost(
            2.0 * dim * documents * each * self.repetitions * (self.bits + inner),
            4.0 * documents * self.repetitions * 2**self.bits * inner,
        )
