"""How token vectors lie in space: mean cosine, and three counts of the directions that they use.

With s the singular values of the vectors as rows, as they are or with their mean taken off:

    effective dimension   (sum s^2)^2 / sum s^4, the study's
    participation         the same as a share of the dimension d: (sum x)^2 / (d sum x^2) of x = s^2
    effective rank        exp of the entropy of s / sum s (Roy and Vetterli 2007)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xtrrep.store.encode import Store

TOKENS = 5000  # in the mean cosine
DIRECTIONS = 1000  # of them, in what is said of directions
SEED = 0
# A mean squared spread below this is rounding, not a direction.
NO_SPREAD = 1e-12


def sampled(
    documents: Store, count: int = TOKENS, seed: int = SEED, among: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Document numbers (count,) and unit vectors (count, H) of random tokens, of all or of those numbered `among`, none
    twice, in random order; all of them where fewer. Stores with as many tokens give the same ones."""
    rng = np.random.default_rng(seed)
    known = documents.tokens if among is None else len(among)
    tokens = rng.choice(documents.tokens if among is None else among, min(count, known), replace=False)
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


def effective_rank(rows: NDArray[np.float64], *, centred: bool) -> float:
    """exp of the entropy of s / sum s, of the singular values s of (N, H) rows: between 1 and H, or 0 for no spread."""
    if centred:
        rows = rows - rows.mean(axis=0)
    values = np.linalg.svd(rows, compute_uv=False)
    if (values * values).sum() <= NO_SPREAD * len(rows):
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def directions(units: NDArray[np.float64]) -> dict[str, float]:
    """All numbers of (N, H) unit vectors by name; the counts of directions are of the first DIRECTIONS of them."""
    few = units[:DIRECTIONS]
    found = {"mean_cosine": mean_cosine(units)} if len(units) > 1 else {}
    for name, centred in (("", False), ("_centred", True)):
        dimension = effective_dimension(few, centred=centred)
        found |= {
            f"effective_dimension{name}": dimension,
            f"participation{name}": dimension / units.shape[1],
            f"effective_rank{name}": effective_rank(few, centred=centred),
        }
    return found
