"""How a model's document tokens lie in space: mean cosine and effective dimension (PROTOCOL.md section 5, anisotropy).

Where all vectors share a direction, the uncentred effective dimension is nearly 1 / (mean cosine)^2 and says nothing
new; the centred one says how many directions the rest has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.analyze import Analysis, Cell, analyses, models_of, vector_cell
from xtrrep.config import Config
from xtrrep.encode import Store
from xtrrep.report.table import Table

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


def sampled(documents: Store, count: int = TOKENS, seed: int = SEED) -> NDArray[np.float64]:
    """(count, H) unit vectors of random document tokens, none twice, in random order; all of them where fewer."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice(documents.tokens, min(count, documents.tokens), replace=False)
    vectors = documents.take(tokens).astype(np.float64)
    # Half precision leaves a stored vector up to 1e-3 off unit length.
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def mean_cosine(units: NDArray[np.float64]) -> float:
    """Mean cosine of all pairs of different rows of (N, H) unit vectors: N (N - 1) of them, without their matrix.

    Raises ValueError for fewer than two rows.
    """
    count = len(units)
    if count < 2:
        raise ValueError(f"{count} vectors have no pairs")
    total = units.sum(axis=0)
    return float((total @ total - (units * units).sum()) / (count * (count - 1)))


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
    """table.csv, .md, .txt: four numbers a model, which no figure would say better."""
    rows: list[list[object]] = []
    for cell in scores:
        documents = Store.open(folders[cell]["documents"])
        units = sampled(documents)
        few = units[:DIRECTIONS]
        dimensions = [effective_dimension(few, centred=centred) for centred in (False, True)]
        cosine = mean_cosine(units) if len(units) > 1 else None
        rows.append([cell.model, len(units), documents.dim, cosine, *dimensions])
    table = Table(
        f"Geometry of document tokens on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}",
        ["model", "tokens", "dimension", "mean cosine", "effective dimension", "effective dimension, centred"],
        rows,
        [
            f"mean cosine: of all pairs of {TOKENS:,} random document tokens (seed {SEED}; all where there are fewer).",
            f"effective dimension: (sum s^2)^2 / sum s^4 of the singular values s of {DIRECTIONS:,} of them, as they "
            "are and with their mean taken off.",
            f"One training seed ({cfg.train.seed}). Runs: {', '.join(sorted(set(runs.values())))}",
        ],
    )
    table.save(out / "table")
    return {"cells": len(scores), "sampled": TOKENS, "seed": SEED}


analyses.register("geometry", "mean cosine and effective dimension of document tokens (anisotropy)")(
    Analysis(cells, make)
)
