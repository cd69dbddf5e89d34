"""What a plan at the study's scale costs before it starts: downloads, hours, disk, and the arrays a cluster would run.

Counts come from the plans and from `configs/costs.yaml`, where every figure has its source. Hours come, in this order,
from finished artifacts of this machine, from a calibration (plan/calibrate.py), for PLAID's and WARP's searches from
the queries a second that the study printed for one H100 (configs/reproductions/figure2.yaml), or are not given at all.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from xtrrep import config as configs
from xtrrep.config import Config
from xtrrep.config.yaml_file import read_yaml
from xtrrep.console import DataError, machine_error
from xtrrep.data import resolve
from xtrrep.pipeline import Plan, Step
from xtrrep.pipeline.stages.table import BY_NAME, STAGES
from xtrrep.plan import preflight
from xtrrep.plan.operations import COUNTS, FILE, figures, nothing, vectors
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import engine_of

CALIBRATION = "calibration.json"
RATES = ("train", "encode", "product", "search")  # operations a second; the last two of float32
GPUS = (1, 8)  # at once, for the wall time of an array
NOT_CALIBRATED = "not calibrated"


@dataclass(frozen=True)
class Calibration:
    """Rates of one machine by kind of work, what they were measured with, and on what. `assumed` ones were not."""

    hardware: str
    backbone: str
    rates: Mapping[str, float]
    assumed: bool = False


@dataclass(frozen=True)
class Estimate:
    """One step of a plan. `seconds` and `disk` (bytes kept) are None where nothing is known; `held` are bytes more
    while it runs; `work` counts `unit`s; `level` is how many stages must be done before; `gpu` whether it wants one."""

    stage: str
    label: str
    level: int
    work: float | None
    unit: str
    seconds: float | None
    source: str
    disk: float | None
    held: float = 0.0
    gpu: bool = True
    memory: float | None = None  # bytes of main memory at its peak


@dataclass(frozen=True)
class Download:
    """What must be fetched; bytes None where the size is not known."""

    name: str
    bytes: float | None
    source: str


def calibration(path: Path | None = None) -> Calibration | None:
    """What `xtrrep calibrate` left on this machine, or the file named. None where this machine has none.

    Raises DataError for a file that is missing or no calibration.
    """
    given, path = path, path or configs.artifacts_root() / CALIBRATION
    if given is None and not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        rates = {name: float(found["rates"][name]) for name in RATES if found["rates"].get(name) is not None}
        if not all(math.isfinite(rate) and rate > 0 for rate in rates.values()):
            raise ValueError("a rate that is not positive")
        return Calibration(str(found["hardware"]), str(found["backbone"]), rates, bool(found.get("assumed", False)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise machine_error(error) or DataError(
            f"{path} is not a calibration ({error})", hint="xtrrep calibrate makes one"
        ) from None


# --- one step ------------------------------------------------------------------------------------------------------


def estimate(plan: Plan, step: Step, measured: preflight.Forecast, rates: Calibration | None) -> Estimate:
    """What a step still to run computes, takes and leaves. `measured` is what this machine's artifacts say of it."""
    cfg, name = plan.cfg, step.stage.name
    work, unit, kind, disk, held = COUNTS.get(name, nothing)(cfg, step)
    seconds, source = (measured.seconds, measured.source) if measured.source == "as measured here" else (None, "")
    if name == "retrieve" and measured.seconds == 0.0:
        seconds, source = 0.0, "shares another's search"
    if seconds is None:
        seconds, source = _seconds(cfg, step, work, kind, rates)
    gpu = step.stage.gpu and (not step.stage.searches or engine_of(cfg.index).uses_gpu)
    memory = None if (needed := memory_of(cfg, name)) is None else needed
    return Estimate(name, step.spec.label, _level(plan, name), work, unit, seconds, source, disk, held, gpu, memory)


def memory_of(cfg: Config, stage: str) -> float | None:
    """Bytes of main memory that a stage takes at its peak, by `configs/costs.yaml`. None where nothing is known."""
    engine = "exact" if cfg.retrieve.from_run is not None else str(cfg.index["engine"])
    known = figures()["memory"]
    entry = known.get(stage) or known.get(f"{stage} {engine}")
    if entry is None:
        return None
    data = resolve(cfg.data)
    if not data.size and (entry["document"] or entry["vector"]):
        return None
    documents, each = (data.size[0] if data.size else 0), vectors(cfg)
    if entry["vector"] and each is None:
        return None
    tokens = documents * (each or 0.0)
    return float(1e9 * entry["gb"] + documents * entry["document"] + tokens * entry["vector"] * cfg.model.dim / 128)


def machine_memory() -> float:
    """Bytes of main memory that this process may use: the machine's, or its control group's limit."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, float(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return total


def too_large(plans: Sequence[Plan], memory: float) -> list[str]:
    """What does not fit into `memory` bytes, a line each, with the engines that would."""
    found: dict[str, None] = {}
    for plan in plans:
        for step in plan.steps:
            needed = None if step.reuse else memory_of(plan.cfg, step.stage.name)
            if needed is not None and needed > memory:
                line = f"{step.stage.name} of {step.spec.label} takes about {needed / 1e9:,.0f} GB of memory"
                found[
                    f"{line}, and there are {memory / 1e9:,.0f} GB: {_smaller(plan.cfg, step.stage.name, memory)}"
                ] = None
    return list(found)


def _smaller(cfg: Config, stage: str, memory: float) -> str:
    """What would fit in place of a stage that does not."""
    if stage not in ("index", "retrieve"):
        return "a machine with more"
    fits = []
    for engine in ("warp", "plaid", "exact"):
        other = replace(cfg, index={**cfg.index, "engine": engine})
        needed = [memory_of(other, name) for name in ("index", "retrieve")]
        if engine != cfg.index["engine"] and max(n or 0.0 for n in needed) <= memory:
            fits.append(f"--index {engine} takes {max(n or 0.0 for n in needed) / 1e9:,.0f} GB")
    return "; ".join(fits) or "a machine with more, or a smaller collection"


def require_memory(plans: Sequence[Plan]) -> None:
    """Refuse plans at scale=paper with a stage that this machine's memory cannot hold. Raises DataError with what would
    fit."""
    lines = too_large([plan for plan in plans if plan.cfg.scale == "paper"], machine_memory())
    if lines:
        what, _, fits = lines[0].rpartition(": ")
        more = f", and {len(lines) - 1} more such stages" if len(lines) > 1 else ""
        raise DataError(f"{what}{more}", hint=fits)


def _seconds(
    cfg: Config, step: Step, work: float | None, kind: str | None, rates: Calibration | None
) -> tuple[float | None, str]:
    if work == 0:
        return 0.0, "nothing to do"
    if step.stage.name == "evaluate" and work is not None:
        return work * (step.stage.seconds or 0.0), "a processor's, at scale=demo"
    if step.stage.name in ("retrieve", "latency") and kind is None:
        engine = None if cfg.retrieve.from_run is not None else str(cfg.index["engine"])
        qps = printed_qps().get((engine, cfg.data.id))
        return (None, "") if work is None or qps is None else (work / qps, "the study's queries a second")
    if kind is None or work is None:
        return None, ""
    if rates is None:
        return None, NOT_CALIBRATED
    if kind not in rates.rates:
        return None, f"the calibration has no rate of {kind}"
    source = "assumed" if rates.assumed else "calibrated"
    if kind in ("train", "encode") and rates.backbone != cfg.model.backbone:
        source += f" with {rates.backbone}, by operations"
    return work / rates.rates[kind], source


@cache
def printed_qps() -> dict[tuple[str | None, str], float]:
    """The study's queries a second by (engine, collection): the harmonic mean over its models."""
    figure = read_yaml(configs.config_dir() / "reproductions" / "figure2.yaml")
    slowness: dict[tuple[str | None, str], list[float]] = {}
    for row in figure["rows"]:
        engine = next((o.removeprefix("index=") for o in row.get("overrides", []) if o.startswith("index=")), "")
        for column, qps in row.get("paper", {}).items():
            slowness.setdefault((engine, figure["columns"][column]["data"]), []).append(1 / qps)
    return {key: 1 / fmean(times) for key, times in slowness.items()}


def _level(plan: Plan, name: str) -> int:
    """The longest chain of stages of `plan` that must be done before `name`."""
    there = {step.stage.name for step in plan.steps if not step.reuse}
    needs = [need for need in BY_NAME[name].needs(plan.cfg) if need in there]
    return 1 + max((_level(plan, need) for need in needs), default=-1)


# --- all of them ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What plans cost together: every step once, and every download once."""

    steps: tuple[Estimate, ...]
    downloads: tuple[Download, ...]
    calibration: Calibration | None

    def tables(self) -> list[Table]:
        return [self.stages(), self.fetched(), self.arrays()]

    def stages(self) -> Table:
        """Steps, work, hours and disk by stage."""
        rows: list[list[object]] = []
        for stage in STAGES:
            mine = [step for step in self.steps if step.stage == stage.name]
            if mine:
                work = [step.work for step in mine]
                unit = next((step.unit for step in mine if step.unit), "")
                held = max(step.held for step in mine) / 1e9
                peaks = [step.memory for step in mine if step.memory is not None]
                rows.append([stage.name, len(mine), _said(sum(w for w in work if w), unit), _lacking(work)])
                rows[-1] += [_hours(mine), _lacking([s.seconds for s in mine]), _gigabytes(mine), held]
                rows[-1].append(max(peaks) / 1e9 if peaks else None)
                rows[-1].append("; ".join(dict.fromkeys(step.source for step in mine if step.source)) or None)
        rows.append(["all", len(self.steps), "", "", _hours(self.steps), "", _gigabytes(self.steps), None, None, None])
        columns = [
            "stage",
            "steps",
            "work",
            "not counted",
            "hours",
            "without hours",
            "disk, GB",
            "GB more while one runs",
            "GB of memory",
        ]
        return Table("By stage", [*columns, "hours are"], rows, self.notes(), digits=1)

    def fetched(self) -> Table:
        """Downloads in bytes."""
        rows: list[list[object]] = [
            [d.name, None if d.bytes is None else round(d.bytes), "not known" if d.bytes is None else d.source]
            for d in self.downloads
        ]
        rows.append(["all of known size", round(sum(d.bytes or 0 for d in self.downloads)), None])
        return Table("Downloads", ["what", "bytes", "from"], rows)

    def arrays(self) -> Table:
        """What a cluster would start: one array a level and stage, each when the levels before are done."""
        rows: list[list[object]] = []
        walls = dict.fromkeys(GPUS, 0.0)
        for level, stage, gpu in sorted({_array(s) for s in self.steps}, key=lambda a: (a[0], _ORDER[a[1]], a[2])):
            mine = [s for s in self.steps if _array(s) == (level, stage, gpu)]
            seconds = [s.seconds for s in mine if s.seconds is not None]
            row: list[object] = [f"{level}-{stage}", len(mine), int(gpu)]
            if len(seconds) < len(mine):
                rows.append([*row, None, None, None, *(None for _ in GPUS)])
                continue
            longest, total = max(seconds) / 3600, sum(seconds) / 3600
            ends = {gpus: max(longest, total / gpus) for gpus in GPUS}
            for gpus in GPUS:
                walls[gpus] += ends[gpus]
            rows.append([*row, total / len(mine), longest, total, *ends.values()])
        rows.append(["all", len(self.steps), "", "", "", "", *walls.values()])
        columns = ["array", "jobs", "GPUs each", "mean hours", "longest", "hours"]
        columns += [f"with {gpus} at once" for gpus in GPUS]
        notes = ["An array starts when those of the levels before it are done. Its time with several GPUs is the larger"
                 " of its longest job and its hours shared evenly: no job is split."]  # fmt: skip
        if any(step.seconds is None for step in self.steps):
            notes.append("Arrays without hours are not in the last line.")
        return Table("Arrays", columns, rows, notes, digits=2)

    def notes(self) -> list[str]:
        if self.calibration is None:
            said = f"{NOT_CALIBRATED}: `xtrrep calibrate` measures this machine in a minute or two; until then there "
            said += "are counts, and hours only where they do not depend on it; `--calibration docs/h100_assumed.json` "
            said += "plans a table for an H100, by assumed rates"
        else:
            how = "assumed for" if self.calibration.assumed else "calibrated on"
            said = f"{how} {self.calibration.hardware}, with {self.calibration.backbone}"
        return [said, f"lengths of texts and sizes: configs/{FILE}, each with its source"]

    def as_json(self) -> dict[str, Any]:
        """Everything the tables say, in seconds and bytes."""
        return {
            "steps": [vars(step) for step in self.steps],
            "downloads": [vars(download) for download in self.downloads],
            "arrays": [dict(zip(self.arrays().columns, row, strict=True)) for row in self.arrays().rows],
            "calibration": None if self.calibration is None else vars(self.calibration),
        }


_ORDER = {stage.name: number for number, stage in enumerate(STAGES)}


def _array(step: Estimate) -> tuple[int, str, bool]:
    """Steps with one answer here are one array."""
    return step.level, step.stage, step.gpu


def _said(value: float, unit: str) -> str:
    """`3.2e+18 operations`, `8,841,823 documents`; empty for nothing."""
    if not value:
        return ""
    return f"{value:.1e} {unit}" if value >= 1e9 else f"{value:,.0f} {unit}"


def _lacking(values: Sequence[float | None]) -> str:
    """How many are not known; empty for none."""
    count = sum(value is None for value in values)
    return str(count) if count else ""


def _hours(steps: Sequence[Estimate]) -> float | None:
    known = [step.seconds for step in steps if step.seconds is not None]
    return sum(known) / 3600 if known else None


def _gigabytes(steps: Sequence[Estimate]) -> float | None:
    known = [step.disk for step in steps if step.disk is not None]
    return sum(known) / 1e9 if known else None


def cost(plans: Sequence[Plan], rates: Calibration | None) -> Cost:
    """Every distinct step of the plans that is still to run, and what they fetch."""
    measured = {line.folder: line for line in preflight.forecast(plans)}
    steps: dict[str, Estimate] = {}
    for plan in plans:
        for step in plan.steps:
            if not step.reuse and step.spec.fingerprint not in steps:
                steps[step.spec.fingerprint] = estimate(plan, step, measured[step.folder], rates)
    return Cost(tuple(steps.values()), tuple(downloads(plans)), rates)


def downloads(plans: Sequence[Plan]) -> list[Download]:
    """What the plans fetch, each archive once however many collections lie in it."""
    known = figures()
    found: dict[str, Download] = {}
    for name, size in preflight.downloads(plans).items():
        archive = next((a for a in known["archives"] if name.startswith(a["serves"])), None)
        stream = next((s for s in known["streams"] if s["name"] == name), None)
        model = known["models"].get(name)
        if archive is not None:
            found[archive["name"]] = Download(archive["name"], archive["bytes"], archive["from"])
        elif stream is not None:
            found[name] = Download(name, stream["bytes"], stream["from"])
        elif model is not None:
            said = f"4 bytes for each of {model['parameters']:,} parameters"
            found[name] = Download(name, 4.0 * model["parameters"], said)
        else:
            found[name] = Download(name, None if size is None else size * 1e6, "to a MB, by its own list")
    return list(found.values())
