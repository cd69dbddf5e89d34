"""Keep a result: below results/runs/, or accepted into results/recorded/."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.artifacts import Spec
from xtrrep.console import DataError
from xtrrep.experiments import compare
from xtrrep.experiments import result as results
from xtrrep.experiments.cell import Overrides, parse_overrides
from xtrrep.experiments.definition import Experiment, narrowed, parse
from xtrrep.experiments.figures import draw
from xtrrep.experiments.result import Result
from xtrrep.experiments.run import describe
from xtrrep.experiments.tables import tables
from xtrrep.pipeline.identity import slug
from xtrrep.report.table import write_text

LONGEST_LABEL = 120  # a file system allows 255 characters, and the names of temporary files are longer
SCHEMA = 1  # raised where the files beside result.json change


def save(made: Result, pictures: Mapping[str, Path]) -> Path:
    """Write a result with its tables and figures below `results/runs/experiment/`. Returns its folder."""
    upstream = {
        ", ".join(filter(None, [*value.key[:2], str(number) if len(value.runs) > 1 else ""])): run
        for value in made.values
        for number, run in enumerate(value.runs)
    }
    upstream |= {f"{effect.id}, {number}": run for effect in made.effects for number, run in enumerate(effect.runs)}
    described = made.as_json()
    described.pop("provenance")
    kept = [*made.only, *([f"seeds-{'-'.join(map(str, made.seeds))}"] if made.seeds else []), *made.overrides]
    label = slug(
        "-".join([made.name, *([made.data] if made.kind in ("claims", "analysis") else []), *kept, made.scale])
    )
    if len(label) > LONGEST_LABEL:
        label = f"{label[:LONGEST_LABEL]}-{artifacts.digest(label)[:6]}"
    spec = Spec("experiment", label, SCHEMA, described, upstream)

    def write(out: Path) -> dict[str, Any]:
        write_files(made, pictures, out)
        return {"units": {"cells": len(made.values)}, "name": made.name, "kind": made.kind, "scale": made.scale}

    return artifacts.make(spec, configs.results_root(), write)


def write_files(made: Result, pictures: Mapping[str, Path], out: Path) -> None:
    """result.json, units.csv, every table as NAME.csv, .md, .txt, .tex and .html, and its figures."""
    made.write(out)
    for name, table in tables(made).items():
        table.save(out / name, json=False)
        write_text(out / f"{name}.tex", table.latex())
        write_text(out / f"{name}.html", table.html())
    for name, path in pictures.items():
        shutil.copyfile(path, out / name)
    draw(made, out)


def check_acceptable(experiment: Experiment, overrides: Overrides) -> None:
    """Raise DataError where something else was accepted, before hours are spent on the experiment."""
    results.check_accept(describe(experiment, overrides))


def accept(experiment: Experiment, made: Result, pictures: Mapping[str, Path]) -> Path:
    """Record a result as what is expected at this scale, with its tables and figures. Cells without a value keep the
    recorded one. Returns the folder. Raises DataError where there is no value at all, or as `check_accept`."""
    results.check_accept(made)
    if not any(value.mean is not None for value in made.values) and not any(
        effect.effect is not None for effect in made.effects
    ):
        raise DataError(f"{made.name} has no value to accept", hint="the table says why each cell did not run")
    before = results.recorded(made)
    whole, kept = made, False
    if before is not None and made.kind != "claims":
        whole = merged(before, made)
        kept = any(value not in made.values for value in whole.values)
    if made.columns or made.kind == "reproduction":
        given = parse_overrides(made.overrides)
        file = parse(experiment.path, made.scale, given) if experiment.path is not None else experiment
        names = {column.name for column in whole.columns}
        shown = narrowed(file, [column for column in file.columns if column.name in names])
        described = describe(shown, given)
        whole = replace(whole, columns=described.columns, means=described.means)
        if made.kind == "reproduction":
            whole = replace(whole, expected=tuple(compare.judge_expected(shown, whole, whole_record(whole))))
    out = results.recorded_folder(whole)
    out.mkdir(parents=True, exist_ok=True)
    written = _write_recorded(whole, pictures, out)
    for path in out.iterdir():
        if path.name not in written and not (kept and path.suffix == ".svg"):
            path.unlink()
    return out


def merged(before: Result, made: Result) -> Result:
    """A result with what was accepted before for the cells that it has no value of: values, differences from the
    baselines (their p corrected among those accepted together), and qualities."""
    now = {value.key for value in made.values if value.mean is not None}
    own = [value for value in made.values if value.key in now]
    kept = [value for value in before.values if value.mean is not None and value.key not in now]
    tested = {effect.id for effect in made.effects if effect.effect is not None}
    effects = [effect for effect in made.effects if effect.id in tested]
    effects += [effect for effect in before.effects if effect.effect is not None and effect.id not in tested]
    drawn = {quality[:2] for quality in made.quality}
    columns = {column.name: column for column in (*before.columns, *made.columns)}
    return replace(
        made,
        values=(*own, *kept),
        effects=tuple(effects),
        quality=(*made.quality, *(quality for quality in before.quality if quality[:2] not in drawn)),
        columns=tuple(columns.values()),
        only=(),
    )


def whole_record(made: Result) -> Result:
    """A result as its own record: every value agrees with itself."""
    cells = [
        results.Expected(value.row, value.column, None, None, value.mean, results.AGREES, sd=value.sd,
                         weights=value.weights)
        for value in made.values
    ]  # fmt: skip
    means = [
        results.Expected(row, column, None, None, now, results.AGREES)
        for row in made.rows
        for column in made.means
        if (now := made.now(row, column)) is not None
    ]
    return replace(made, expected=(*cells, *means))


def _write_recorded(made: Result, pictures: Mapping[str, Path], out: Path) -> set[str]:
    """Write a record file by file, each in place of its predecessor, so that a kill leaves none half-written."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_files(replace(made, per_unit={}), pictures, scratch)
        kept = [path for path in scratch.iterdir() if path.suffix in (".json", ".md", ".csv", ".svg")]
        for path in sorted(kept):
            data = path.read_bytes()
            artifacts.write_atomic(out / path.name, partial(_put, data=data))
        return {path.name for path in kept}


def _put(file: Any, data: bytes) -> None:
    file.write(data)
