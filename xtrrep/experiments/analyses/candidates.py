"""How many documents PLAID looks at: those in the inverted lists of each query token's best centroids, by `nprobe`.

docs/protocol.md 1 and 5: the union over a query's tokens, expansion tokens included, mean over queries; the study's
explanation of why XTR's models are faster under PLAID. Centroids and inverted lists are read from the index as it lies
on disk, so every `nprobe` is counted on one index and nothing is searched again. units.csv has them by query.

Centroids are compared as fast-plaid compares them, in half precision and by the same calls. Single precision probes
other ones: copies of a [CLS] vector make centroids that are equal near 1, and some of those have empty lists. On 40
short documents at nprobe 1 that gave 20.6 candidates, where fast-plaid returned 37.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xtrrep import artifacts
from xtrrep.config import Config
from xtrrep.console import DataError, progress, typed
from xtrrep.experiments.analyses import PLAID, UNITS, Analysis, Cell, analyses, last_note, models_of, plaid_words
from xtrrep.report.figure import candidate_shares
from xtrrep.report.table import Table
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    import pandas
    from torch import Tensor


@dataclass(frozen=True)
class InvertedLists:
    """centroids: (C, H) in half precision. documents: every centroid's documents end to end, none twice in a list;
    starts: (C + 1,) where each list begins. Documents are numbered as in the index, which leaves out those without a
    vector."""

    centroids: NDArray[np.float16]
    documents: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """Means over queries: documents in the union, and distinct centroids behind it."""

    documents: float
    centroids: float


def cells(cfg: Config) -> list[Cell]:
    """Every model's PLAID index. Raises UsageError where `index=` says another engine than PLAID."""
    own = plaid_words(cfg)
    return [Cell(model, "colbert", 0, (*words, *own), engine=PLAID) for model, words in models_of(cfg).items()]


def read_lists(folder: Path) -> InvertedLists:
    """Centroids and inverted lists of a PLAID index, its files' hashes compared first. Raises DataError where they do
    not fit together."""
    artifacts.check(folder)
    lengths = np.load(folder / "ivf_lengths.npy").astype(np.int64)
    centroids, documents = np.load(folder / "centroids.npy"), np.load(folder / "ivf.npy")
    # fast-plaid writes as many lengths as it would have made centroids by itself: with fewer asked for, the last are 0.
    lengths, beyond = lengths[: len(centroids)], lengths[len(centroids) :]
    if len(lengths) < len(centroids) or beyond.any() or lengths.sum() != len(documents):
        raise DataError(
            f"{folder}: its inverted lists do not fit its centroids", hint=f"rm -r {typed(folder)} and run again"
        )
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return InvertedLists(centroids.astype(np.float16), documents, starts)


def probed(similarities: Tensor, nprobe: int) -> NDArray[np.int64]:
    """The distinct centroids that fast-plaid probes, from its (C, T) similarities: all where `nprobe` is above C."""
    best = similarities.argmax(0) if nprobe == 1 else similarities.topk(min(nprobe, len(similarities)), 0).indices
    return np.unique(best.numpy())


def count(lists: InvertedLists, queries: Store, nprobes: Sequence[int]) -> dict[int, Candidates]:
    """Candidates by `nprobe`. Raises DataError where there is no query."""
    return {nprobe: mean(counted) for nprobe, counted in by_query(lists, queries, nprobes).items()}


def mean(counted: Sequence[tuple[int, int]]) -> Candidates:
    """Over queries."""
    return Candidates(*map(float, np.mean(counted, axis=0)))


def by_query(lists: InvertedLists, queries: Store, nprobes: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
    """By `nprobe`, each query's candidates and the distinct centroids behind them. Raises DataError as `count`."""
    import torch

    if not len(queries):
        raise DataError(f"{queries.folder} holds no query", hint="data=ID of a collection with judged queries")
    centroids = torch.from_numpy(lists.centroids)
    size = int(lists.documents.max(initial=-1)) + 1
    found: dict[int, list[tuple[int, int]]] = {nprobe: [] for nprobe in sorted(set(nprobes))}
    with progress(len(queries), "count", "query") as bar:
        for query in range(len(queries)):
            similarities = centroids @ torch.from_numpy(np.array(queries.vectors(query))).T
            for nprobe, counted in found.items():
                best, seen = probed(similarities, nprobe), np.zeros(size, bool)
                for centroid in best:
                    seen[lists.documents[lists.starts[centroid] : lists.starts[centroid + 1]]] = True
                counted.append((int(seen.sum()), len(best)))
            bar.update(1)
    return found


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt; units.csv; candidates.png, .svg, .pdf of its shares."""
    rows: list[list[object]] = []
    units: list[list[object]] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in scores:
        documents, queries = Store.open(folders[cell]["documents"]), Store.open(folders[cell]["queries"])
        lists = read_lists(folders[cell]["index"])
        counted = by_query(lists, queries, cfg.analyze.nprobes)
        own = zip(queries.ids, *counted.values(), strict=True)
        units += [[cell.model, query, *(documents for documents, _ in each)] for query, *each in own]
        for nprobe, found in ((nprobe, mean(each)) for nprobe, each in counted.items()):
            share = found.documents / len(documents)
            rows.append([cell.model, nprobe, found.documents, share, found.centroids, len(lists.centroids)])
            lines.setdefault(cell.model, []).append((nprobe, share))
    title = f"PLAID's candidates on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}"
    table = Table(
        title,
        ["model", "nprobe", "documents", "share", "centroids", "of centroids"],
        rows,
        [
            f"documents: in the union of the nprobe best centroids of each query token, mean over "
            f"{len(next(iter(scores.values())))} queries; share: of the corpus.",
            "centroids: distinct ones behind it, mean over queries. They and the inverted lists are the index's own.",
            last_note(cfg, runs),
        ],
    )
    table.save(out / "table")
    named = (f"documents@{nprobe}" for nprobe in sorted(set(cfg.analyze.nprobes)))
    Table("", ["model", "unit", *named], units).save_csv(out / UNITS)
    candidate_shares(lines, title, out / "candidates")
    return {"cells": len(scores), "queries": len(next(iter(scores.values()))), "nprobes": cfg.analyze.nprobes}


analyses.register("candidates", "documents in the union of each query token's best centroids, by nprobe (PLAID)")(
    Analysis(cells, make, units="queries", schema=2)
)
