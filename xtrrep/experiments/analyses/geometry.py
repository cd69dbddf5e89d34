"""How a model's document tokens lie in space: mean cosine and effective dimension (docs/protocol.md 5, anisotropy).

Where all vectors share a direction, the uncentred effective dimension is nearly 1 / (mean cosine)^2 and says nothing
new; the centred one says how many directions the rest has.

units.csv has what each document gives to the mean cosine (`by_document`). The mean of that is the table's number, and
so a claim's effect is the difference of two numbers of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.config import Config
from xtrrep.experiments.analyses import UNITS, Analysis, Cell, analyses, last_note, models_of, vector_cell
from xtrrep.report.table import Table
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    import pandas

TOKENS = 5000  # in the mean cosine
DIRECTIONS = 1000  # of them, in the effective dimensions
SEED = 0
# A mean squared spread below this is rounding, not a direction.
NO_SPREAD = 1e-12


def cells(cfg: Config) -> list[Cell]:
    """Every model's document vectors."""
    return [vector_cell(model, "exact", (*words, "index=exact")) for model, words in models_of(cfg).items()]


def sampled(documents: Store, count: int = TOKENS, seed: int = SEED) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Document numbers (count,) and unit vectors (count, H) of random document tokens, none twice, in random order; all
    of them where fewer. Stores with as many tokens give the same ones."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice(documents.tokens, min(count, documents.tokens), replace=False)
    vectors = documents.take(tokens).astype(np.float64)
    # Half precision leaves a stored vector up to 1e-3 off unit length.
    units = np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return np.searchsorted(documents.offsets, tokens, side="right") - 1, units


def mean_cosine(units: NDArray[np.float64]) -> float:
    """Mean cosine of all pairs of different rows of (N, H) unit vectors: N (N - 1) of them, without their matrix.

    Raises ValueError for fewer than two rows.
    """
    count = len(units)
    if count < 2:
        raise ValueError(f"{count} vectors have no pairs")
    total = units.sum(axis=0)
    return float((total @ total - (units * units).sum()) / (count * (count - 1)))


def by_document(
    owners: NDArray[np.int64], units: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """What each document gives to the mean cosine c of (N, H) unit vectors of at least two, (N,) `owners` theirs.

    Returns (D,) each: documents; their tokens here; the mean cosine of these with all other vectors; and the document's
    value. The mean cosine by document, weighted by tokens, is c. But its spread is not that of c under another draw of
    documents: c is a mean over pairs, and a document stands on both sides of them. The value is c plus the document's
    influence on it, 2 w (its mean cosine - c), where w is its tokens over the mean number of tokens (the infinitesimal
    jackknife, Jaeckel 1972). The plain mean of the values is c, and their spread that of c; without the 2 an interval
    would be half as wide as it should be.
    """
    cosines = (units @ units.sum(axis=0) - (units * units).sum(axis=1)) / (len(units) - 1)
    documents, place, tokens = np.unique(owners, return_inverse=True, return_counts=True)
    means, whole = np.bincount(place, cosines) / tokens, cosines.mean()
    return documents, tokens, means, whole + 2 * tokens / tokens.mean() * (means - whole)


def effective_dimension(rows: NDArray[np.float64], *, centred: bool) -> float:
    """The participation ratio (sum s^2)^2 / sum s^4 of the singular values s of (N, H) rows, between 1 and H.

    The study's "effective dimensionality"; `centred` takes the rows' mean off first. Rows that are all the same have,
    centred, no direction left: 0. The values of s^2 are the eigenvalues of X'X, so the sums are its trace and its
    squared entries, and nothing is decomposed.
    """
    if centred:
        rows = rows - rows.mean(axis=0)
    gram = rows.T @ rows
    trace = float(np.trace(gram))
    return trace * trace / float((gram * gram).sum()) if trace > NO_SPREAD * len(rows) else 0.0


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt: four numbers a model, which no figure would say better; units.csv."""
    rows: list[list[object]] = []
    shares: list[list[object]] = []
    for cell in scores:
        documents = Store.open(folders[cell]["documents"])
        owners, units = sampled(documents)
        few = units[:DIRECTIONS]
        dimensions = [effective_dimension(few, centred=centred) for centred in (False, True)]
        cosine = mean_cosine(units) if len(units) > 1 else None
        rows.append([cell.model, len(units), documents.dim, cosine, *dimensions])
        if len(units) > 1:
            parts = (part.tolist() for part in by_document(owners, units))
            shares += [[cell.model, documents.ids[at], *own] for at, *own in zip(*parts, strict=True)]
    table = Table(
        f"Geometry of document tokens on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}",
        ["model", "tokens", "dimension", "mean cosine", "effective dimension", "effective dimension, centred"],
        rows,
        [
            f"mean cosine: of all pairs of {TOKENS:,} random document tokens (seed {SEED}; all where there are fewer).",
            f"effective dimension: (sum s^2)^2 / sum s^4 of the singular values s of {DIRECTIONS:,} of them, as they "
            "are and with their mean taken off.",
            last_note(cfg, runs),
        ],
    )
    table.save(out / "table")
    Table("", ["model", "unit", "tokens", "cosine with the others", "mean cosine"], shares).save_csv(out / UNITS)
    return {"cells": len(scores), "sampled": TOKENS, "seed": SEED}


analyses.register("geometry", "mean cosine and effective dimension of document tokens (anisotropy)")(
    Analysis(cells, make, units="documents", schema=2)
)
