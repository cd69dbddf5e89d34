"""A store made from another one: its vectors moved in space, or queries without their expansion.

    transform.npy    (1 + H, H), a mean and a matrix: a vector v became (v - mean) @ matrix, brought to unit length

All of a transform's statistics are of document tokens, and queries are moved by the same. A vector that a transform
leaves nothing of stays what it was.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep import artifacts
from xtrrep.artifacts import write_atomic
from xtrrep.config import Transform
from xtrrep.store.encode import PIECE, Store

FILE = "transform.npy"
SAMPLE = 100_000  # document tokens behind a transform's statistics
SEED = 0
NOTHING = 1e-6  # a vector that is shorter after a transform has no direction left
RIDGE = 1e-6  # added to each variance before it is divided by


@dataclass(frozen=True)
class Affine:
    """A vector v becomes (v - mean) @ matrix, of unit length."""

    mean: NDArray[np.float64]
    matrix: NDArray[np.float64]

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        moved = (rows.astype(np.float64) - self.mean) @ self.matrix
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        kept = np.where(lengths > NOTHING, moved / np.maximum(lengths, NOTHING), rows)
        return kept.astype(np.float32)


def fitted(documents: Store, transform: Transform) -> Affine:
    """The transform whose statistics are of a store's tokens: at most SAMPLE of them, drawn at random."""
    tokens = np.random.default_rng(SEED).choice(documents.tokens, min(SAMPLE, documents.tokens), replace=False)
    rows = documents.take(np.sort(tokens)).astype(np.float64)
    dim = rows.shape[1]
    if transform is Transform.no_top_direction:
        top = np.linalg.eigh(rows.T @ rows)[1][:, -1]
        return Affine(np.zeros(dim), np.eye(dim) - np.outer(top, top))
    mean = rows.mean(axis=0)
    if transform is Transform.centre:
        return Affine(mean, np.eye(dim))
    # Half of whitening: a direction's deviation becomes its root, and not 1, which would raise noise to a signal.
    values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return Affine(mean, (vectors * (np.maximum(values, 0) + RIDGE) ** -0.25) @ vectors.T)


def saved(folder: Path) -> Affine:
    """The transform that a store was made with."""
    rows = np.load(folder / FILE)
    return Affine(rows[0], rows[1:])


def _save(path: Path, array: NDArray[Any]) -> None:
    write_atomic(path, lambda file: np.save(file, array))


def write(out: Path, plain: Store, move: Affine | None, kept: NDArray[np.bool_] | None) -> dict[str, Any]:
    """A store again at `out`, with moved vectors and only the tokens that are `kept`; facts for the manifest."""
    for name in ("vectors", "tokens"):
        (out / name).mkdir(exist_ok=True)
    for path in plain.folder.glob("*.json"):
        if path.name != artifacts.MANIFEST:
            shutil.copyfile(path, out / path.name)
    for path in (plain.folder / "tokens").glob("*.json"):
        shutil.copyfile(path, out / "tokens" / path.name)
    first = tokens = 0
    for path, rows in zip(plain.paths, plain.shards, strict=True):
        lengths = np.load(path.with_suffix(".doclens.npy"))
        ids = np.load(plain.folder / "tokens" / path.name)
        chosen = np.ones(len(rows), bool) if kept is None else kept[first : first + len(rows)]
        pieces = [rows[at : at + PIECE][chosen[at : at + PIECE]] for at in range(0, len(rows), PIECE)]
        vectors = np.concatenate([piece if move is None else move(piece) for piece in pieces]) if pieces else rows
        counts, ends = np.concatenate([[0], np.cumsum(chosen)]), np.cumsum(lengths)
        files = {
            out / "vectors" / path.name: vectors.astype(np.float16),
            out / "tokens" / path.name: ids[chosen],
            out / "vectors" / path.with_suffix(".doclens.npy").name: (counts[ends] - counts[ends - lengths]).astype(
                np.int32
            ),
        }
        for target, array in files.items():
            _save(target, array)
        first, tokens = first + len(rows), tokens + int(chosen.sum())
    if move is not None:
        _save(out / FILE, np.vstack([move.mean, move.matrix]))
    return {**artifacts.read_manifest(plain.folder)["facts"], "tokens": tokens}


def expansion_tokens(queries: Store) -> NDArray[np.bool_]:
    """(tokens,) which vectors of a query store stand for expansion, not for text.

    The stored ids alone say it, whatever model they came from. Expansion fills every query up to one length with one id
    ([MASK], or what the model's settings name), so queries of the store's least length are filled ones wherever there
    is expansion, and end in that id two or more times over. Text does not: it ends in [SEP] or </s>, once. In queries
    of that length the unbroken run of that id at the end is expansion. So a query cut to its length keeps all its
    tokens, and a [MASK] that somebody typed stands before [SEP] and is text. Two limits: where no query of a collection
    has more than one place to fill, that place counts as text; and a tokenizer that ends texts in the very id that
    fills them loses that one token.
    """
    expansion = np.zeros(queries.tokens, bool)
    least = int(queries.lengths.min()) if len(queries) else 0
    ids = queries.vocabulary_ids(np.arange(queries.tokens))
    ends = queries.offsets[1:][queries.lengths == least]
    runs = [_run_at_end(ids[end - least : end]) for end in ends]
    repeated = Counter(int(ids[end - 1]) for end, run in zip(ends, runs, strict=True) if run > 1)
    if repeated:
        ((filler, _),) = repeated.most_common(1)
        for end, run in zip(ends, runs, strict=True):
            if ids[end - 1] == filler:
                expansion[end - run : end] = True
    return expansion


def _run_at_end(ids: NDArray[np.int32]) -> int:
    """How many ids at the end are one and the same."""
    others = np.flatnonzero(ids != ids[-1:])
    return len(ids) - (int(others[-1]) + 1 if len(others) else 0)
