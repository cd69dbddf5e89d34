"""The study's tables and stated results run here and compared cell by cell; xtrrep/study.py says what they are.

At `scale=paper` a cell is judged against the paper's value; anywhere else, and where an analysis' cell has none,
against what was last accepted there (`--accept` writes `results/recorded/reproductions/NAME-SCALE.json`), with the
paper's value beside it and no verdict.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.artifacts import Spec
from xtrrep.console import DIFFER, MISSING, OK, DataError, UsageError, XtrrepError, explained, progress, say
from xtrrep.evaluate import canonical
from xtrrep.grid import grid
from xtrrep.latency import hardware
from xtrrep.meaning import slug
from xtrrep.report.figure import Timed, k_prime_sweep, speed_and_quality
from xtrrep.report.table import Table
from xtrrep.stages.searching import one_search
from xtrrep.study import (
    QPS,
    SPEED,
    SWEEP,
    AnalysisReproduction,
    Column,
    Key,
    Known,
    Reading,
    Reproduction,
    Row,
    check_seeds,
    load,
    names,
    seed_words,
)

K = TypeVar("K")
COMMIT_VARIABLE = "XTRREP_COMMIT"  # for a copy of the sources without their history

REPEATED = 0.1  # of the tolerance: what is made again from the same weights comes this close
RETRAINED = 4.0  # times the tolerance: what other weights from the same commands move (docs/LOG.md, 2026-11-28)
SHOWN = 50  # cells from which on planning them is shown
AGREES, HIGHER, LOWER, NO_RECORD, NOT_COMPARED = "agrees", "higher", "lower", "no record", "not compared"
NOT_RUN, QUOTED = "not run", "quoted"
OTHERWISE = "from the same weights / where training came to others"


@dataclass(frozen=True)
class Cell:
    """One value: the paper's, the one accepted last, ours, what to think of that, and against which of them."""

    row: str
    column: str
    paper: float | None
    recorded: float | None
    now: float | None
    verdict: str
    against: float | None = None
    spread: float | None = None  # the standard deviation over training seeds, where there are several
    weights: str | None = None  # a digest of those that `now` rests on, None where no model was trained for it


# --- plans ---------------------------------------------------------------------------------------------------------


def last_wins(words: Iterable[str]) -> list[str]:
    """Of overrides of one key the last, in the place of the first."""
    chosen: dict[str, str] = {}
    for word in words:
        chosen[word.partition("=")[0]] = word
    return list(chosen.values())


def words_of(what: Reproduction, row: Row, column: Column, extra: Sequence[str]) -> list[str]:
    """The overrides of one cell; what stands later wins."""
    measure = [] if column.measure == QPS else [f"data.measures=[{column.measure}]"]
    told = row.overrides or ()
    if any(word.startswith("model.source=") for word in told):  # a model of its own, wherever the others come from
        extra = [word for word in extra if not word.startswith("model.source=")]
    chosen = last_wins([*what.overrides, *told, *column.overrides, *measure, f"scale={what.scale}", *extra])
    engine = next((word.removeprefix("index=") for word in chosen if word.startswith("index=")), "")
    if engine in ("exact", "bm25"):  # what bounds k-means means nothing to them
        chosen = [word for word in chosen if not word.startswith("index.")]
    if engine == "bm25":  # nor does how token hits are scored
        chosen = [word for word in chosen if not word.startswith("retrieve.")]
    return chosen


def words_of_analysis(what: AnalysisReproduction, extra: Sequence[str]) -> list[str]:
    """The overrides of an analysis; what stands later wins."""
    return last_wins([f"analyze.name={what.analysis}", *what.overrides, f"scale={what.scale}", *extra])


def trainings(what: Known, extra: Sequence[str]) -> list[list[str]]:
    """`extra` for each training seed; once where none is asked for."""
    return [[*extra, *seed_words(seed)] for seed in what.seeds] or [list(extra)]


def check_extra(what: Known, extra: Sequence[str]) -> None:
    """Refuse an override of what a row, column or cell names: the table would say one thing and hold another."""
    check_seeds(what.seeds, extra)
    if isinstance(what, AnalysisReproduction):
        fixed = {"scale", "analyze.name", "analyze.models", "data"}
    else:
        told = [*(row.overrides or () for row in what.rows), *(column.overrides for column in what.columns)]
        fixed = {word.partition("=")[0] for words in told for word in words} | {"scale", "data.measures"}
        fixed -= {"model.source"}  # `words_of`: only for rows that name none
        fixed |= configs.keys_of("config") if "config" in fixed else set()
    for word in extra:
        if word.partition("=")[0] in fixed:
            raise UsageError(
                f"{word!r} cannot be given: configs/reproductions/{what.name}.yaml sets it for each cell",
                hint="leave it out, or write a table of your own beside that file",
            )


def plan_cell(what: Reproduction, row: Row, column: Column, extra: Sequence[str]) -> pipeline.Plan:
    """The plan of one cell. Raises UsageError and DataError as composing and planning do."""
    until = "latency" if column.measure == QPS else "evaluate"
    return pipeline.plan(configs.compose(words_of(what, row, column, extra)), until)


def plans(what: Known, extra: Sequence[str]) -> tuple[list[pipeline.Plan], list[str]]:
    """Every cell's plan, and in words what stands in the way of the others. Raises as `check_extra`."""
    found, lacking = named_plans(what, extra)
    return list(found.values()), [f"{name}: {reason}" for name, reason in lacking.items()]


def named_plans(what: Known, extra: Sequence[str]) -> tuple[dict[str, pipeline.Plan], dict[str, str]]:
    """As `plans`, both by the cell's name. Those of an analysis are its runs."""
    check_extra(what, extra)
    found: dict[str, pipeline.Plan] = {}
    lacking: dict[str, str] = {}
    seeds = [f", seed {seed}" for seed in what.seeds] or [""]
    if isinstance(what, AnalysisReproduction):
        for seed, words in zip(seeds, trainings(what, extra), strict=True):
            try:
                made = pipeline.plan_analysis(words_of_analysis(what, words))
                named = (f"{what.analysis}: {' '.join(cell.overrides)}{seed}" for cell in made.cells)
                found |= dict(zip(named, made.plans, strict=True))
            except XtrrepError as error:
                lacking[f"analysis {what.analysis}"] = str(error)
        return found, lacking
    for (row, column, number), planned in _planned(what, extra):
        if isinstance(planned, XtrrepError):
            lacking[f"{row}, {column}"] = str(planned)
        else:
            found[f"{row}, {column}{seeds[number]}"] = planned
    return found, lacking


def _planned(
    what: Reproduction, extra: Sequence[str]
) -> Iterator[tuple[tuple[str, str, int], pipeline.Plan | XtrrepError]]:
    """(row, column, number of the training seed) of every cell that runs, with its plan or what stands in the way."""
    asked = [
        (row, column, number, words)
        for number, words in enumerate(trainings(what, extra))
        for row in what.rows
        for column in (what.columns if row.overrides is not None else ())
    ]
    # Composing a config takes Hydra a tenth of a second: over a few dozen cells a person wants to see it.
    with progress(len(asked), f"plan {what.name}", "cell") if len(asked) >= SHOWN else nullcontext() as bar:
        for row, column, number, words in asked:
            try:
                made: pipeline.Plan | XtrrepError = plan_cell(what, row, column, words)
            except XtrrepError as error:
                made = error
            if bar is not None:
                bar.update(1)
            yield (row.name, column.name, number), made


# --- run, compare, show --------------------------------------------------------------------------------------------


def recorded_root() -> Path:
    """`results/recorded/` of the source tree, or below here where there is none."""
    return configs.recorded_root() or Path.cwd() / "results" / "recorded"


def recorded_path(what: Known) -> Path:
    """Where it is recorded: under several training seeds it is another result than under one."""
    seeds = f"-seeds-{'-'.join(map(str, what.seeds))}" if what.seeds else ""
    return recorded_root() / "reproductions" / f"{what.name}-{what.scale}{seeds}.json"


def recorded(what: Known) -> dict[str, Any]:
    """What was last accepted: {"cells": {row: {column: value}}, "overrides": [...], ...}; no cells where nothing was.

    Raises DataError where the file is no such record.
    """
    path = recorded_path(what)
    if not path.exists():
        return {"cells": {}, "overrides": []}
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found | {"cells": dict(found["cells"]), "overrides": list(found["overrides"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no record of a reproduction ({error})", hint=f"rm {path}") from None


def accepted_with(what: Known, extra: Sequence[str]) -> dict[str, dict[str, float]]:
    """The values last accepted with the same overrides; what was made with others is no expectation of these."""
    record = recorded(what)
    cells: dict[str, dict[str, float]] = record["cells"]
    return cells if of_meaning(record["overrides"]) == of_meaning(extra) else {}


def of_meaning(words: Sequence[str]) -> set[str]:
    """Without where and how fast things run."""
    return {word for word in last_wins(words) if not word.startswith("machine.")}


@dataclass(frozen=True)
class Measured:
    """By (row, column): values in points, in queries a second, or as an analysis' cells say, means over training seeds
    where there are several; their standard deviations then; why there is no value; and by seed the folders of the
    stages that a run's value stands on. runs: fingerprints by what they are of."""

    values: dict[Key, float]
    reasons: dict[Key, str]
    folders: Mapping[Key, Sequence[Mapping[str, Path]]]
    runs: dict[str, str]
    spread: Mapping[Key, float]
    pictures: Mapping[str, Path]  # what an analysis drew, by the name to keep it under
    weights: Mapping[Key, str]  # digests of the trained weights


def measure(what: Known, extra: Sequence[str]) -> Measured:
    """Run or re-use every cell; one that fails does not stop the others."""
    from xtrrep import preflight

    if isinstance(what, AnalysisReproduction):
        return _measure_analysis(what, extra)
    ready: dict[tuple[str, str, int], pipeline.Plan] = {}
    failed: dict[tuple[str, str, int], str] = {}
    for key, planned in _planned(what, extra):
        if isinstance(planned, XtrrepError):
            failed[key] = str(planned)
            continue
        try:
            preflight.require([planned])
            ready[key] = planned
        except XtrrepError as error:
            failed[key] = str(error)
    kinds = {column.name: column for column in what.columns}
    found = carry_out(ready, failed)
    reasons = {key[:2]: reason for key, reason in failed.items()}
    folders: dict[Key, list[Mapping[str, Path]]] = {}
    for key, made in found.items():  # in the order of the seeds
        if key[:2] not in reasons:
            folders.setdefault(key[:2], []).append(made)
    values, spread = _over_seeds({key: [_value(kinds[key[1]], f) for f in made] for key, made in folders.items()})
    runs = {_run_name(what, key): ready[key].steps[-1].spec.fingerprint for key in found}
    return Measured(values, reasons, folders, runs, spread, {}, _weights({key: ready[key] for key in found}))


def _weights(made: Mapping[tuple[str, str, int], pipeline.Plan]) -> dict[Key, str]:
    """A digest by (row, column) of the weights that were trained for it, under every seed."""
    found: dict[Key, list[str]] = {}
    for key, plan in made.items():
        if hashes := weights_of([plan]):
            found.setdefault(key[:2], []).extend(hashes)
    return {key: artifacts.digest(hashes)[:12] for key, hashes in found.items()}


def weights_of(made: Iterable[pipeline.Plan]) -> list[str]:
    """The hashes of the files of weights in the trained models that these finished plans end with."""
    hashes = []
    for plan in made:
        trained = [step.folder for step in plan.steps if step.stage.name in ("train", "distill")]
        for folder in trained[-1:]:  # a distilled model holds what was trained before
            files = artifacts.read_manifest(folder)["files"]
            hashes += [files[name]["sha256"] for name in sorted(files) if name.endswith(".safetensors")]
    return hashes


def _run_name(what: Known, key: tuple[str, str, int]) -> str:
    seed = [f"seed {what.seeds[key[2]]}"] if what.seeds else []
    return ", ".join([*key[:2], *seed])


def _over_seeds(found: Mapping[Key, Sequence[float]]) -> tuple[dict[Key, float], dict[Key, float]]:
    """Means, and standard deviations (of a sample) of those that have several values."""
    means = {key: statistics.fmean(values) for key, values in found.items()}
    return means, {key: statistics.stdev(values) for key, values in found.items() if len(values) > 1}


def carry_out(ready: Mapping[K, pipeline.Plan], reasons: dict[K, str]) -> dict[K, Mapping[str, Path]]:
    """All plans together, so that cells share searches; one by one where that fails, to lose no more than must be.

    Returns the folders of what ran; what did not goes into `reasons`.
    """
    try:
        return dict(zip(ready, pipeline.run(list(ready.values())).folders, strict=True))
    except Exception as error:
        if explained(error) is None:
            raise
        say(f"note: {explained(error)}; cell by cell from here")
    found: dict[K, Mapping[str, Path]] = {}
    for key, plan in ready.items():
        try:
            again = pipeline.plan(plan.cfg, plan.steps[-1].stage.name)  # looks anew at what is there
            found[key] = pipeline.run([again]).folders[0]
        except Exception as error:
            known = explained(error)
            if known is None:
                raise
            reasons[key] = str(known)
    return found


def _value(column: Column, folders: Mapping[str, Path]) -> float:
    if column.measure == QPS:
        return float(artifacts.read_manifest(folders["latency"])["facts"]["qps"])
    return 100 * float(artifacts.read_manifest(folders["evaluate"])["facts"]["measures"][canonical(column.measure)])


def _measure_analysis(what: AnalysisReproduction, extra: Sequence[str]) -> Measured:
    """The analysis is one run a training seed: where one fails no cell has a value, and each says why."""
    from xtrrep import preflight

    values: dict[Key, list[float]] = {}
    reasons: dict[Key, str] = {}
    runs: dict[str, str] = {}
    pictures: dict[str, Path] = {}
    hashes: list[str] = []
    for number, words in enumerate(trainings(what, extra)):
        seed = f"seed-{what.seeds[number]}-" if what.seeds else ""
        try:
            plan = pipeline.plan_analysis(words_of_analysis(what, words))
            preflight.require(plan.plans)
            folder, _ = pipeline.run_analysis(plan)
        except Exception as error:
            known = explained(error)
            if known is None:
                raise
            return Measured({}, {cell.key: str(known) for cell in what.cells}, {}, {}, {}, {}, {})
        runs[f"{seed}analyze"] = plan.spec.fingerprint
        hashes += weights_of(plan.plans)
        kept = [path for path in sorted(folder.iterdir()) if path.suffix in (".svg", ".png", ".pdf")]
        pictures |= {f"{seed}{path.name}": path for path in kept}
        with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for cell in what.cells:
            try:
                values.setdefault(cell.key, []).append(cell.value(rows))
            except DataError as error:
                reasons[cell.key] = str(error)
    means, spread = _over_seeds({key: found for key, found in values.items() if key not in reasons})
    weights = dict.fromkeys(means, artifacts.digest(hashes)[:12]) if hashes else {}
    return Measured(means, reasons, {}, runs, spread, pictures, weights)


def judge(
    what: Known,
    values: Mapping[Key, float],
    accepted: Mapping[str, Mapping[str, float]],
    spread: Mapping[Key, float] | None = None,
    weights: Mapping[Key, str] | None = None,
    before: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Cell]:
    """Every cell of the table, its means included, with its verdict. weights: digests of those behind `values`, and
    `before` of those behind `accepted`: from other weights another value is to be expected."""
    spread, weights, before = spread or {}, weights or {}, before or {}

    def again(row: str, column: str) -> bool:
        return weights.get((row, column)) == before.get(row, {}).get(column)

    if isinstance(what, AnalysisReproduction):
        return [
            _judged(
                what,
                cell,
                values.get(cell.key),
                accepted,
                again(*cell.key),
                spread.get(cell.key),
                weights.get(cell.key),
            )
            for cell in what.cells
        ]
    cells = []
    at_paper = what.scale == "paper"
    for row in what.rows:
        now: dict[str, float | None] = {c.name: values.get((row.name, c.name)) for c in what.columns}
        for mean, group in what.means.items():
            members = [now[name] for name in group]
            found = [value for value in members if value is not None]
            now[mean] = sum(found) / len(found) if len(found) == len(members) else None
        for name, value in now.items():
            paper, record = row.paper.get(name), accepted.get(row.name, {}).get(name)
            against = paper if at_paper else record
            same = all(again(row.name, member) for member in what.means.get(name, [name]))
            verdict = _verdict(value, against, _within(what.tolerance, at_paper, same))
            if row.overrides is None:
                verdict = QUOTED
            elif value is not None and at_paper and paper is None:
                verdict = NOT_COMPARED
            key = row.name, name
            cells.append(Cell(*key, paper, record, value, verdict, against, spread.get(key), weights.get(key)))
    return cells


def _judged(
    what: AnalysisReproduction,
    cell: Reading,
    now: float | None,
    accepted: Mapping[str, Mapping[str, float]],
    same: bool,
    spread: float | None,
    weights: str | None,
) -> Cell:
    record = accepted.get(cell.name, {}).get(cell.column)
    at_paper = what.scale == "paper" and cell.paper is not None
    against = cell.paper if at_paper else record
    verdict = _verdict(now, against, _within(cell.tolerance, at_paper, same))
    return Cell(cell.name, cell.column, cell.paper, record, now, verdict, against, spread, weights)


def _within(tolerance: float | None, at_paper: bool, same: bool) -> float | None:
    """How far from the paper's value, or else from the recorded one, a value agrees; None where nothing is compared.
    same: whether it rests on the weights that the recorded one rested on."""
    if tolerance is None or at_paper:
        return tolerance
    return tolerance * (REPEATED if same else RETRAINED)


def _verdict(now: float | None, against: float | None, within: float | None) -> str:
    """What to think of a value beside the paper's, or else beside the one accepted last."""
    if now is None:
        return NOT_RUN
    if within is None:
        return NOT_COMPARED
    if against is None:
        return NO_RECORD
    if abs(now - against) <= within + 1e-9:
        return AGREES
    return HIGHER if now > against else LOWER


def status(cells: Sequence[Cell]) -> int:
    """The exit code: 1 where a value differs, else 3 where one is missing, else 0."""
    verdicts = {cell.verdict for cell in cells}
    return DIFFER if verdicts & {HIGHER, LOWER} else MISSING if NOT_RUN in verdicts else OK


def table(what: Known, cells: Sequence[Cell], notes: Sequence[str]) -> Table:
    """One line a cell: what the paper printed, what was accepted, what came out now."""
    at_paper = what.scale == "paper"
    heading = "paper" if at_paper else "paper (another setting)"
    sds = ["sd"] if what.seeds else []
    columns = ["row", "column", heading, "recorded", "now", *sds, "difference", "verdict"]
    rows: list[list[object]] = []
    for cell in cells:
        difference = None if cell.now is None or cell.against is None else cell.now - cell.against
        sd = [cell.spread] if what.seeds else []
        rows.append([cell.row, cell.column, cell.paper, cell.recorded, cell.now, *sd, difference, cell.verdict])
    counts = {v: sum(c.verdict == v for c in cells) for v in dict.fromkeys(c.verdict for c in cells)}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    footer = [f"scale={what.scale}; {_rule(what)}. {said}.", *seeds_in_words(what), *notes]
    digits = 3 if isinstance(what, AnalysisReproduction) else 2
    # A title names the study's collection; an analysis elsewhere is made on another.
    here = "" if at_paper or isinstance(what, Reproduction) else f", here {what.data}"
    return Table(f"{what.title}{here}, scale={what.scale}", columns, rows, footer, digits=digits)


def seeds_in_words(what: Known) -> list[str]:
    """A note on what values are means of; none for one training."""
    if not what.seeds:
        return []
    return [f"Means over training seeds {', '.join(map(str, what.seeds))}; sd is their standard deviation."]


def _rule(what: Known) -> str:
    """What verdicts rest on, in words."""
    at_paper, last = what.scale == "paper", "the value accepted last at this scale"
    judged = "judged against"
    if isinstance(what, AnalysisReproduction):
        tolerances = sorted({cell.tolerance for cell in what.cells if cell.tolerance is not None})
        if not tolerances:
            return "not compared"
        if not at_paper:
            within = " or ".join(_around(tolerance) for tolerance in tolerances)
            return f"{judged} {last}, within {within} as each cell says ({OTHERWISE})"
        within = " or ".join(f"{tolerance:g}" for tolerance in tolerances)
        rule = f"{judged} the paper's value, within {within} as each cell says"
        some = any(cell.paper is None for cell in what.cells)
        otherwise = f", within a tenth of that, or {RETRAINED:g} times it where other weights were trained"
        return rule + (f"; where it has none {last}{otherwise}" if some else "")
    if what.tolerance is None:
        return "not compared: another machine"
    return (
        f"{judged} the paper's value, within {what.tolerance} points"
        if at_paper
        else f"{judged} {last}, within {_around(what.tolerance)} points ({OTHERWISE})"
    )


def _around(tolerance: float) -> str:
    return f"{REPEATED * tolerance:g} / {RETRAINED * tolerance:g}"


def check_accept(what: Known, extra: Sequence[str]) -> None:
    """Raises DataError where something else was accepted, made with other overrides: before hours are spent on it."""
    path = recorded_path(what)
    if path.exists() and not accepted_with(what, extra):
        raise DataError(
            f"{path} was accepted with {' '.join(recorded(what)['overrides']) or 'no overrides'}, not with these",
            hint=f"the same overrides, or first rm {path}",
        )


def accept(what: Known, cells: Sequence[Cell], extra: Sequence[str]) -> Path:
    """Record what came out now as what is expected at this scale; cells without a value keep theirs.

    Beside the record goes its table, judged against it, with its figures. Returns the record. Raises DataError where
    there is no value at all.
    """
    check_accept(what, extra)
    path = recorded_path(what)
    if all(cell.now is None for cell in cells):
        raise DataError(f"{what.name} has no value to accept", hint="the table says why each cell did not run")
    kept = accepted_with(what, extra)
    for cell in cells:
        if cell.now is not None:
            kept.setdefault(cell.row, {})[cell.column] = round(cell.now, 4)
    spread: dict[str, dict[str, float]] = recorded(what).get("spread", {})
    for cell in cells:
        if cell.spread is not None:
            spread.setdefault(cell.row, {})[cell.column] = round(cell.spread, 4)
    weights: dict[str, dict[str, str]] = recorded(what).get("weights", {})
    for cell in cells:
        if cell.now is not None and cell.weights is not None:
            weights.setdefault(cell.row, {})[cell.column] = cell.weights
    earlier: dict[str, str] = recorded(what).get("runs", {})
    whole = load(what.name, what.scale) if what.name in names() else what
    record = {
        "cells": kept,
        **provenance(extra),
        "scale": what.scale,
        **({"seeds": list(what.seeds), "spread": spread} if what.seeds else {}),
        "weights": weights,
        "missing": sum(column not in kept.get(row, {}) for row, column in whole.keys),
        "of": len(whole.keys),
        "seconds": seconds_of(plans(what, extra)[0]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(path, record)
    folder, _, _ = reproduce(what, extra)  # all is there: only the verdicts are new
    artifacts.write_json(path, record | {"runs": earlier | artifacts.read_manifest(folder)["upstream"]})
    now = {(cell.row, cell.column) for cell in cells if cell.now is not None}
    whole_now = all((row, column) in now for row, columns in kept.items() for column in columns)
    record_folder(folder, path.with_suffix(""), keep=not whole_now)
    return path


def record_folder(folder: Path, out: Path, *, keep: bool = False) -> None:
    """Copy tables and pictures (Markdown, CSV, SVG) of a result to `out`, in place of what lies there; file by file, so
    that a kill leaves none half-written and none without a successor. keep: pictures of other names stay, for they are
    of collections that this run did not have."""
    out.mkdir(parents=True, exist_ok=True)
    made = {p.name: p.read_bytes().decode() for p in folder.iterdir() if p.suffix in (".md", ".csv", ".svg")}
    for name, text in sorted(made.items()):
        _write(out / name, text)
    for path in out.iterdir():
        if path.name not in made and not (keep and path.suffix == ".svg"):
            path.unlink()


def seconds_of(made: Iterable[pipeline.Plan]) -> int:
    """What all finished stages of these plans took, each once, and each search that several runs were read off."""
    found: dict[Path, float] = {}
    searches: dict[tuple[str, ...], float] = {}
    for plan in made:
        for step in plan.steps:
            if step.reuse:
                manifest = artifacts.read_manifest(step.folder)
                found[step.folder] = float(manifest["seconds"])
                shared = float(manifest["facts"].get("shared_search_seconds", 0.0))
                if shared:  # the same number stands in every run that was read off one search
                    searches[*one_search(step.spec), str(shared)] = shared
    return round(sum(found.values()) + sum(searches.values()))


def provenance(extra: Sequence[str]) -> dict[str, Any]:
    """When, from which sources and on what a result was accepted, and what was typed for it."""
    return {
        "accepted": datetime.date.today().isoformat(),
        "commit": _commit(),
        "hardware": hardware(),
        "overrides": list(extra),
    }


def _commit() -> str:
    """The commit that is checked out, `-dirty` where what makes results has changed since."""
    if COMMIT_VARIABLE in os.environ:
        return os.environ[COMMIT_VARIABLE]

    def git(*words: str) -> str:
        place = configs.checkout() or os.curdir
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=place).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "xtrrep", "configs", "constraints.txt")
    except OSError:
        return "unknown"
    return commit + ("-dirty" if changed else "") if commit else "unknown"


def write_table(shown: Table, out: Path, name: str = "table") -> None:
    """Every form of a table in the folder `out`: NAME.csv, .md, .txt, .tex and .html."""
    shown.save(out / name)
    for suffix, text in (("tex", shown.latex()), ("html", shown.html())):
        _write(out / f"{name}.{suffix}", text)


def _write(path: Path, text: str) -> None:
    artifacts.write_atomic(path, lambda file: file.write(text.encode()))


def reproduce(what: Known, extra: Sequence[str]) -> tuple[Path, list[Cell], Table]:
    """Run, compare and write the table, and the figure where there is one, below `results/runs/reproduce/`.

    Returns folder, cells and table.
    """
    check_extra(what, extra)
    measured = measure(what, extra)
    values, reasons = measured.values, measured.reasons
    accepted = accepted_with(what, extra)
    before = recorded(what).get("weights", {})
    cells = judge(what, values, accepted, measured.spread, measured.weights, before)
    notes = _not_run(reasons)
    if not accepted and recorded_path(what).exists():
        notes.append("what was accepted at this scale was made with other overrides: not compared")
    if extra:
        notes.append(f"with {' '.join(extra)}")
    shown = table(what, cells, notes)
    quality = quality_at_hand(what, extra) if isinstance(what, Reproduction) else {}
    state = {
        "values": sorted([*key, value] for key, value in values.items()),
        "spread": sorted([*key, value] for key, value in measured.spread.items()),
        "weights": sorted([*key, value] for key, value in measured.weights.items()),
        "reasons": sorted(map(list, reasons)),
        "quality": sorted([*key, *found] for key, found in quality.items()),
    }
    described = {"notes": notes, "state": state, "recorded": accepted, "before": before, "title": shown.title}
    seeds = f"seeds-{'-'.join(map(str, what.seeds))}" if what.seeds else None
    kept = [word for word in (*what.only, seeds, *extra) if word is not None]
    label = slug("-".join([what.name, *kept, what.scale]))  # part of it, or another setting, is another result
    spec = Spec("reproduce", label, 7, described, measured.runs)

    def write(out: Path) -> dict[str, Any]:
        write_table(shown, out)
        for name, path in measured.pictures.items():
            shutil.copyfile(path, out / name)
        if isinstance(what, Reproduction):
            now = {(cell.row, cell.column): cell.now for cell in cells}
            write_table(grid(what, now, measured.folders), out, "grid")
        if isinstance(what, Reproduction) and what.figure == SWEEP:
            draw_sweep(what, values, out, measured.spread)
        if isinstance(what, Reproduction) and what.figure == SPEED:
            draw_speed(what, values, quality, out, measured.spread)
        return {"units": {"cells": len(cells)}, "name": what.name, "scale": what.scale}

    return artifacts.make(spec, configs.results_root(), write), cells, shown


def _not_run(reasons: Mapping[Key, str]) -> list[str]:
    """One note a reason: the cells it stands in the way of, by name where they are few."""
    notes = []
    for reason in dict.fromkeys(reasons.values()):
        cells = [", ".join(key) for key, found in reasons.items() if found == reason]
        notes.append(f"not run: {'; '.join(cells) if len(cells) < 4 else f'{len(cells)} cells'}: {reason}")
    return notes


# --- figures -------------------------------------------------------------------------------------------------------


def _stem(what: Reproduction, data: str, out: Path) -> Path:
    return out / f"{what.name}-{data.replace('/', '-')}"


def _title(what: Reproduction, data: str) -> str:
    """Of a figure; under it what its points are means of, where they are."""
    seeds = f"\nmeans over training seeds {', '.join(map(str, what.seeds))}, with their standard deviation"
    return f"{what.title}: {data}, scale={what.scale}" + (seeds if what.seeds else "")


def draw_sweep(
    what: Reproduction, values: Mapping[Key, float], out: Path, spread: Mapping[Key, float] | None = None
) -> list[Path]:
    """Quality against k', a figure a collection, of the cells that have a value, shaded by their spread over training
    seeds. Returns the files written."""
    files = []
    for data in dict.fromkeys(column.data for column in what.columns):
        columns = [column for column in what.columns if column.data == data]
        if lines := _sweep_lines(what, columns, values):
            bands = _sweep_lines(what, columns, spread or {})
            files += k_prime_sweep(lines, {}, _title(what, data), _stem(what, data, out), bands=bands)
    return files


def _sweep_lines(
    what: Reproduction, columns: Sequence[Column], values: Mapping[Key, float]
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """(k', value) in the order of k', by measure and row."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for column in sorted(columns, key=lambda column: column.k_prime or 0):
        for row in what.rows:
            if (row.name, column.name) in values:
                points = panels.setdefault(column.measure, {}).setdefault(row.name, [])
                points.append((column.k_prime or 0, values[row.name, column.name]))
    return panels


def quality_at_hand(what: Reproduction, extra: Sequence[str]) -> dict[Key, tuple[str, float, float]]:
    """Measure, value and standard deviation over training seeds (0 for one) of the cells of the same row and column in
    the reproduction that `what.quality` names, as far as they were evaluated before: nothing is run for them."""
    if what.quality is None:
        return {}
    other = load(what.quality, what.scale)
    if not isinstance(other, Reproduction):
        raise UsageError(
            f"{what.name}: quality={what.quality} is no table of runs",
            hint="quality: NAME of one with rows and columns, such as table3",
        )
    rows, columns = {row.name: row for row in other.rows}, {column.name: column for column in other.columns}
    found = {}
    for row in what.rows:
        for column in what.columns:
            if row.overrides is None or row.name not in rows or column.name not in columns:
                continue
            same = columns[column.name]
            try:
                steps = [plan_cell(other, rows[row.name], same, words).steps[-1] for words in trainings(what, extra)]
            except XtrrepError:
                continue  # what cannot be planned is not at hand
            if all(step.reuse for step in steps):
                values = [_value(same, {"evaluate": step.folder}) for step in steps]
                sd = statistics.stdev(values) if len(values) > 1 else 0.0
                found[row.name, column.name] = same.measure, statistics.fmean(values), sd
    return found


def draw_speed(
    what: Reproduction,
    values: Mapping[Key, float],
    quality: Mapping[Key, tuple[str, float, float]],
    out: Path,
    spread: Mapping[Key, float] | None = None,
) -> list[Path]:
    """Queries a second against quality, a figure a collection, and speed_and_quality.csv, of the cells that have both.

    A row's name says "ENGINE, STAGE, MODEL". Returns the files written; none where no cell has both.
    """
    files: list[Path] = []
    rows: list[list[object]] = []
    for column in what.columns:
        points = []
        for row in what.rows:
            key = row.name, column.name
            if key in values and key in quality:
                measured, value, value_sd = quality[key]
                speed_sd = (spread or {}).get(key, 0.0)
                engine, stage, model = [*row.name.split(", ", 2), "", ""][:3]
                points.append(Timed(values[key], value, engine, stage, model, speed_sd, value_sd))
                sds = [speed_sd, value_sd] if what.seeds else []
                rows.append([row.name, column.name, values[key], measured, value, *sds])
        if points:
            title, stem = _title(what, column.data), _stem(what, column.data, out)
            files += speed_and_quality(points, measured, title, stem, base="ColBERT")
    if rows:
        columns = ["row", "column", "queries/s", "measure", "value"]
        columns += ["sd of queries/s", "sd of value"] if what.seeds else []
        Table("", columns, rows).save_csv(out / "speed_and_quality.csv")
        files.append(out / "speed_and_quality.csv")
    return files
