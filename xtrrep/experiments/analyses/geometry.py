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

from xtrrep.config import Config
from xtrrep.experiments.analyses import UNITS, Analysis, Cell, analyses, last_note, models_of, vector_cell
from xtrrep.measure.geometry import (
    DIRECTIONS,
    SEED,
    TOKENS,
    by_document,
    directions,
    sampled,
)
from xtrrep.report.table import Table
from xtrrep.store.changed import expansion_tokens
from xtrrep.store.encode import Store

if TYPE_CHECKING:
    import pandas

NAMES = {
    "mean_cosine": "mean cosine",
    "effective_dimension": "effective dimension",
    "effective_dimension_centred": "effective dimension, centred",
    "effective_rank": "effective rank",
    "effective_rank_centred": "effective rank, centred",
}
OF_KINDS = ("mean_cosine", "participation", "participation_centred", "effective_rank", "effective_rank_centred")


def cells(cfg: Config) -> list[Cell]:
    """Every model's document vectors."""
    return [vector_cell(model, "exact", (*words, "index=exact")) for model, words in models_of(cfg).items()]


def _by_kind(documents: Store, queries: Store) -> list[tuple[str, list[object]]]:
    """The numbers of document tokens without each document's first, and of query tokens with and without [MASK]."""
    first = np.zeros(documents.tokens, bool)
    first[documents.offsets[:-1][documents.lengths > 0]] = True
    expansion = expansion_tokens(queries)
    kinds = {
        "documents": (documents, np.ones(documents.tokens, bool)),
        "documents without the first token": (documents, ~first),
        "queries": (queries, np.ones(queries.tokens, bool)),
        "queries without [MASK]": (queries, ~expansion),
        "[MASK] of queries": (queries, expansion),
    }
    rows: list[tuple[str, list[object]]] = []
    for name, (store, among) in kinds.items():
        if among.any():
            units = sampled(store, among=np.flatnonzero(among))[1]
            found = directions(units)
            rows.append((name, [len(units), *(found.get(key) for key in OF_KINDS)]))
    return rows


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, .md, .txt: a row a model, which no figure would say better; kinds, by kind of token; units.csv."""
    notes = [
        f"mean cosine: of all pairs of {TOKENS:,} random tokens (seed {SEED}; all where there are fewer).",
        f"Of the singular values s of {DIRECTIONS:,} of them, as they are and with their mean taken off: effective "
        "dimension is (sum s^2)^2 / sum s^4, participation the same as a share of the dimension, and effective rank "
        "the exponential of the entropy of s / sum s.",
    ]
    rows: list[list[object]] = []
    shares: list[list[object]] = []
    kinds: list[list[object]] = []
    for cell in scores:
        documents = Store.open(folders[cell]["documents"])
        owners, units = sampled(documents)
        found = directions(units)
        rows.append([cell.model, len(units), documents.dim, *(found.get(name) for name in NAMES)])
        kinds += [[cell.model, kind, *own] for kind, own in _by_kind(documents, Store.open(folders[cell]["queries"]))]
        if len(units) > 1:
            parts = (part.tolist() for part in by_document(owners, units))
            shares += [[cell.model, documents.ids[at], *own] for at, *own in zip(*parts, strict=True)]
    table = Table(
        f"Geometry of document tokens on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}",
        ["model", "tokens", "dimension", *NAMES.values()],
        rows,
        [*notes, last_note(cfg, runs)],
    )
    table.save(out / "table")
    title = f"Geometry by kind of token on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}"
    named = ["model", "vectors", "tokens", "mean cosine", "participation", "participation, centred", "effective rank"]
    Table(title, [*named, "effective rank, centred"], kinds, [*notes, last_note(cfg, runs)]).save(out / "kinds")
    Table("", ["model", "unit", "tokens", "cosine with the others", "mean cosine"], shares).save_csv(out / UNITS)
    return {"cells": len(scores), "sampled": TOKENS, "seed": SEED}


analyses.register("geometry", "mean cosine and effective dimension of document tokens (anisotropy)")(
    Analysis(cells, make, units="documents", schema=3)
)
