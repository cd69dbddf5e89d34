"""Read what finished runs hold: one number a cell, and the numbers of each query behind it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtrrep import artifacts, pipeline
from xtrrep.console import DataError, suggest, typed
from xtrrep.experiments.analyses import UNITS
from xtrrep.experiments.definition import Reading
from xtrrep.experiments.numbers import BY_UNIT, is_number, read_number, stage_of
from xtrrep.experiments.result import PerUnit
from xtrrep.measure.evaluate import canonical, read_by_query
from xtrrep.pipeline.identity import lengths_of, setting_of
from xtrrep.pipeline.stages.searching import one_search

if TYPE_CHECKING:
    import pandas

SATURATED = 0.9  # of the documents as candidates, or of their scores filled by hits: no longer a choice


def number(reads: str, folders: Mapping[str, Path]) -> float | None:
    """A cell's number: a measure in points, a mean over queries, or a number of the run, which some runs lack."""
    if is_number(reads):
        return read_number(reads, folders)
    if reads in BY_UNIT:
        return float(by_unit(reads, folders).mean())
    return points(reads, folders["evaluate"])


def points(measure: str, folder: Path) -> float:
    """A measure of an evaluation in points: 100 x its mean."""
    return 100 * float(artifacts.read_manifest(folder)["facts"]["measures"][canonical(measure)])


def has_units(reads: str) -> bool:
    """Whether a value is a mean over queries."""
    return not is_number(reads)


def by_unit(reads: str, folders: Mapping[str, Path]) -> pandas.Series[float]:
    """A run's value by query. Raises DataError where the run does not hold it for every query."""
    stage = stage_of(reads)
    name = "candidates.csv" if stage == "retrieve" else "per_query.csv"
    frame = read_by_query(folders[stage] / name)
    wanted = canonical(reads) if stage == "evaluate" else reads
    spelt = {canonical(str(c)) if stage == "evaluate" else str(c): c for c in frame.columns}
    column = spelt.get(wanted)
    if column is None or frame[column].isna().any():
        raise DataError(
            f"{folders[stage] / name} does not give {reads} for every query",
            hint=f"is {reads} among data.measures? If so, rm -r {typed(folders[stage])} and run again",
        )
    return frame[column].astype(float)


def gain(reads: str, folders: Mapping[str, Path], other: Mapping[str, Path]) -> float:
    """A measure's mean difference over queries from another run's, in points."""
    one, two = by_unit(reads, folders), by_unit(reads, other)
    over_seeds([two], list(one.index))
    return float(100 * (one.to_numpy() - two.reindex(one.index).to_numpy()).mean())


def over_seeds(series: Sequence[pandas.Series[float]], ids: Sequence[str]) -> PerUnit:
    """The values of one cell's seeds in the order of `ids`. Raises DataError where they are of other units."""
    for one in series:
        if set(one.index) != set(ids):
            raise DataError(
                f"its runs are not over the same queries or documents ({len(one)} and {len(ids)})",
                hint="one data= for all cells of a comparison",
            )
    return PerUnit(tuple(ids), np.stack([one.reindex(list(ids)).to_numpy() for one in series]))


def analysis_units(column: str, models: Iterable[str], folders: Sequence[Path]) -> dict[str, PerUnit]:
    """By model, an analysis' values by unit, its folders being one a training seed.

    Raises DataError where the analysis does not hold the value once for every unit.
    """
    import pandas

    series: dict[str, list[pandas.Series[float]]] = {name: [] for name in models}
    for path in (folder / UNITS for folder in folders):
        # A unit may be called "NA".
        frame = pandas.read_csv(path, dtype={"unit": str}, keep_default_na=False, na_values={column: [""]})
        if column not in frame:
            raise DataError(f"{path} has no column {column!r}", hint=suggest(column, map(str, frame.columns)))
        if frame.duplicated(["model", "unit"]).any() or frame[column].isna().any():
            raise DataError(
                f"{path} does not give {column} once for every unit", hint=f"rm -r {typed(path.parent)} and run again"
            )
        for name, own in series.items():
            own.append(frame[frame["model"] == name].set_index("unit")[column])
    ids = list(next(iter(series.values()))[0].index)
    return {name: over_seeds(own, ids) for name, own in series.items()}


def read_analysis(reading: Reading, folder: Path) -> float:
    """One number of an analysis' table. Raises DataError where no row matches, or several, or it is no number."""
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    said = ", ".join(f"{column}={wanted}" for column, wanted in reading.where.items())
    for column in (*reading.where, reading.column):
        if rows and column not in rows[0]:
            raise DataError(f"its table has no column {column!r}", hint=suggest(column, rows[0]))
    matching = [row for row in rows if all(_same(row[column], value) for column, value in reading.where.items())]
    if len(matching) != 1:
        raise DataError(
            f"{len(matching) or 'no'} rows of its table match {said}, and one should",
            hint="`where` names as many columns as single out one row",
        )
    text = matching[0][reading.column]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{reading.column} of {said} is not a number: {text!r}", hint="another `column`")
    return number * reading.scale_by


def _same(text: str, wanted: str | int | float) -> bool:
    """Whether a CSV's text is a value of a YAML file."""
    if isinstance(wanted, str):
        return text == wanted
    try:
        return float(text) == wanted
    except ValueError:
        return False


def doubt_of_candidates(name: str, plan: pipeline.Plan, folders: Mapping[str, Path]) -> str:
    """Why a run's ranking says nothing of a search that prunes, or nothing: XTR scores where hits leave little out, and
    engines that rank documents where nearly all of them are candidates."""
    if "retrieve" not in folders or (setting_of(plan.cfg).scoring == "colbert" and setting_of(plan.cfg).k_prime):
        return ""
    facts = artifacts.read_manifest(folders["retrieve"])["facts"]
    candidates, imputed = facts.get("mean_candidates"), facts.get("mean_imputed_cells")
    if not candidates:
        return ""
    share = candidates / artifacts.read_manifest(folders["data"])["facts"]["documents"]
    if share >= SATURATED:
        return f"saturated: {share:.0%} of the documents are candidates of {name}"
    if imputed is not None:
        filled = 1 - imputed / (candidates * lengths_of(plan.cfg)[0])
        if filled >= SATURATED:
            return f"saturated: hits fill {filled:.0%} of the scores of {name}, and {1 - filled:.0%} are imputed"
    return ""


def weights_of(plans: Iterable[pipeline.Plan]) -> str | None:
    """A digest of the trained weights that these finished plans end with; None where no model was trained."""
    hashes = []
    for plan in plans:
        trained = [step for step in plan.steps if step.stage.name in ("train", "distill")]
        for step in trained[-1:]:  # a distilled model holds what was trained before
            files = artifacts.read_manifest(_folder(step))["files"]
            hashes += [files[name]["sha256"] for name in sorted(files) if name.endswith(".safetensors")]
    return artifacts.digest(hashes)[:12] if hashes else None


def _folder(step: pipeline.Step) -> Path:
    """Where a finished step is: another plan with the same fingerprint may have made it under its own label."""
    return artifacts.folder_of(step.spec, step.stage.root())


def seconds_of(plans: Iterable[pipeline.Plan]) -> int:
    """What all finished stages of these plans took, each once, and each search that several runs were read from."""
    taken: dict[str, float] = {}
    searches: dict[tuple[str, ...], float] = {}
    for plan in plans:
        for step in plan.steps:
            if artifacts.is_complete(step.spec, step.stage.root()):
                manifest: dict[str, Any] = artifacts.read_manifest(_folder(step))
                taken[step.spec.fingerprint] = float(manifest["seconds"])
                shared = float(manifest["facts"].get("shared_search_seconds", 0.0))
                if shared:  # the same number stands in every run that was read from one search
                    searches[*one_search(step.spec), str(shared)] = shared
    return round(sum(taken.values()) + sum(searches.values()))
