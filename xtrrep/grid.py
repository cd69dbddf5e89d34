"""A table of runs in the study's own shape: a row a model, a column a collection, the best bold, differences marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xtrrep.evaluate import canonical, read_by_query
from xtrrep.report.table import Table
from xtrrep.significance import holm, paired_over_seeds
from xtrrep.study import QPS, Key, Reproduction

if TYPE_CHECKING:
    import pandas

ALPHA = 0.05
MARK = "†"
RESAMPLES = 10_000


def grid(
    what: Reproduction, means: Mapping[Key, float | None], folders: Mapping[Key, Sequence[Mapping[str, Path]]]
) -> Table:
    """What was run, a cell by (row, column), means of columns included; rows that are only quoted are left out.

    `folders` are a cell's by training seed. A mark stands on a value that differs from its row's baseline on that
    collection: paired over queries, two-sided sign flips, and over seeds where there are several
    (`significance.paired_over_seeds`), Holm over all such pairs of the table.
    """
    rows = [row for row in what.rows if row.overrides is not None]
    columns = [*(column.name for column in what.columns), *what.means]
    measures = {column.name: column.measure for column in what.columns}
    pairs = [
        (row.name, row.baseline, column.name)
        for row in rows
        for column in what.columns
        if row.baseline is not None
        and column.measure != QPS
        and {(row.name, column.name), (row.baseline, column.name)} <= folders.keys()
    ]
    ps = [_p(folders[name, column], folders[baseline, column], measures[column]) for name, baseline, column in pairs]
    differing = {pair[0::2] for pair, p in zip(pairs, holm(ps), strict=True) if p < ALPHA}
    places = {(row.name, column): (r, c) for r, row in enumerate(rows) for c, column in enumerate(columns, start=1)}
    units = "queries a second" if set(measures.values()) == {QPS} else "in points"
    notes = ["; ".join([*_measures(measures), units]) + "."]
    if what.seeds:
        notes.append(f"Means over training seeds {', '.join(map(str, what.seeds))}.")
    if pairs:
        drawn = "and Student's t over the seeds' means, the larger p; " if len(what.seeds) > 1 else ""
        notes.append(
            f"{MARK}: differs from {_baselines(what)}, p < {ALPHA} ({RESAMPLES:,} sign flips over queries, two-sided, "
            f"{drawn}Holm over {len(pairs)} pairs). {len(differing)} do."
        )
    notes.append(f"scale={what.scale}. Bold, where there is any: the best of its column.")
    return Table(
        what.title,
        ["", *columns],
        [[row.name, *(means.get((row.name, column)) for column in columns)] for row in rows],
        notes,
        digits=1,
        higher=columns,
        marks={places[key]: MARK for key in differing},
    )


def _measures(measures: Mapping[str, str]) -> list[str]:
    """Which measure is which columns', as far as neither their names nor the unit say it."""
    said: dict[str, list[str]] = {}
    for column, measure in measures.items():
        if measure not in column and measure != QPS:
            said.setdefault(measure, []).append(column)
    return [f"{measure} of {', '.join(columns)}" for measure, columns in said.items()]


def _baselines(what: Reproduction) -> str:
    """In words, what the rows are tested against."""
    found = list(dict.fromkeys(row.baseline for row in what.rows if row.baseline is not None))
    return found[0] if len(found) == 1 else "the row of its kind that is one of " + "; ".join(found)


def _p(folders: Sequence[Mapping[str, Path]], baseline: Sequence[Mapping[str, Path]], measure: str) -> float:
    ours, theirs = ([_per_query(made["evaluate"], measure) for made in side] for side in (folders, baseline))
    queries = ours[0].index
    grids = [[values.reindex(queries).to_numpy() for values in side] for side in (ours, theirs)]
    return paired_over_seeds(*grids, resamples=RESAMPLES).p


def _per_query(folder: Path, measure: str) -> pandas.Series[float]:
    frame = read_by_query(folder / "per_query.csv")
    return frame[next(name for name in frame.columns if canonical(name) == canonical(measure))].astype(float)
