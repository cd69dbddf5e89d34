"""What the k-means of an IVF engine costs, worked out before it starts. PLAID and WARP size theirs by one formula."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, say
from xtrrep.retrieval.engines import BuildCost, DocumentEngine, positive


@dataclass(frozen=True)
class Clustering:
    """`samples` documents (about `points` token vectors) clustered into `partitions`, `iterations` times."""

    samples: int
    points: int
    partitions: int
    iterations: int

    def facts(self) -> dict[str, int]:
        return {"kmeans_samples": self.samples, "num_partitions": self.partitions, "kmeans_niters": self.iterations}


def plan(
    lengths: NDArray[np.int64],
    *,
    num_partitions: int | None,
    samples: int | None,
    iterations: int,
    max_points: int,
    engine: str,
) -> Clustering:
    """The clustering of documents of these lengths, by both libraries' own formulas where a number is not given.

    2^floor(log2(16 sqrt(tokens))) partitions from 1 + 16 sqrt(120 documents) sampled documents; where all tokens are
    fewer than that, the largest power of two they fill. Raises DataError where the sample cannot fill the partitions.
    """
    filled, tokens = len(lengths), int(lengths.sum())
    wanted = min(samples or 1 + int(16 * math.sqrt(120 * filled)), filled)
    partitions = num_partitions or int(2 ** math.floor(math.log2(16 * math.sqrt(tokens))))
    points = round(tokens * wanted / filled)
    if num_partitions is None and points < partitions:
        if wanted < filled:
            raise DataError(
                f"{wanted} sampled documents hold about {points:,} vectors, too few for {partitions:,} partitions",
                hint=f"index.n_samples_kmeans={filled}",
            )
        partitions = int(2 ** math.floor(math.log2(points)))
    if points < partitions or partitions < 2:
        raise DataError(
            f"engine {engine} cannot make {partitions:,} partitions of about {points:,} vectors",
            hint="--index exact, or a smaller index.num_partitions",
        )
    return Clustering(wanted, min(points, partitions * max_points), partitions, iterations)


@dataclass(frozen=True)
class IvfEngine(DocumentEngine):
    """An inverted file over clusters of tokens, with a residual of `nbits` bits a dimension for each token."""

    uses_gpu = True
    bytes_a_vector: ClassVar[int]
    """What an index keeps of a vector beside its residual."""

    nbits: int  # [bits] of a dimension of a residual
    num_partitions: int | None  # [clusters] null: 2^floor(log2(16 sqrt(tokens)))
    n_samples_kmeans: int | None  # [documents] that are clustered; null: 1 + 16 sqrt(120 documents)
    kmeans_niters: int  # [iterations] of k-means
    max_points_per_centroid: int  # [vectors] that k-means reads at most for each cluster
    seed: int  # of k-means

    def __post_init__(self) -> None:
        positive(self, "num_partitions", "n_samples_kmeans", "kmeans_niters", "max_points_per_centroid")

    def clustering(self, lengths: NDArray[np.int64]) -> Clustering:
        return plan(
            lengths,
            num_partitions=self.num_partitions,
            samples=self.n_samples_kmeans,
            iterations=self.kmeans_niters,
            max_points=self.max_points_per_centroid,
            engine=type(self).__name__.lower(),
        )

    def build_cost(self, documents: int, each: float, dim: int) -> BuildCost:
        """k-means, and every vector compared with every centroid."""
        clusters, tokens = self.clustering(np.full(documents, round(each), np.int64)), documents * each
        centroids = 4.0 * dim * clusters.partitions
        return BuildCost(
            2.0 * dim * clusters.partitions * (clusters.points * clusters.iterations + tokens),
            tokens * (dim * self.nbits / 8 + self.bytes_a_vector) + centroids,
            4.0 * dim * clusters.points,
        )


def announce(plan: Clustering, dim: int) -> None:
    """Say what is about to be computed and about how long that takes here, from one small product just timed."""
    operations = 2.0 * plan.points * plan.partitions * dim * plan.iterations
    seconds = operations / _rate(dim)
    say(
        f"  k-means: {plan.points:,} vectors of {plan.samples:,} documents, {plan.partitions:,} partitions, "
        f"{plan.iterations} iterations: about {seconds:,.0f} s were this processor to do it"
    )


def _rate(dim: int) -> float:
    """Multiplications and additions a second of a block as k-means computes it, with its search for the nearest."""
    import torch

    rows, columns = torch.ones(4096, dim), torch.ones(dim, 2048)
    best = 0.0
    for _ in range(2):
        start = time.perf_counter()
        (rows @ columns).min(dim=1)
        best = max(best, 2.0 * np.prod([4096, dim, 2048]) / (time.perf_counter() - start))
    return best
