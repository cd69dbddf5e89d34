"""What a plan at the study's scale costs before it starts: downloads, hours, disk, and the arrays a cluster would run.

Counts come from the plans and from `configs/costs.yaml`, where every figure has its source. Hours come, in this order,
from finished artifacts of this machine, from a calibration (plan/calibrate.py), for PLAID's and WARP's searches from
the queries a second that the study printed for one H100 (configs/reproductions/figure2.yaml), or are not given at all.

Work is counted in multiplications and additions (two for each weight and token, attention included, three times that
with the backward), so that a rate measured with one encoder serves another: the plan says where it does.
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
from xtrrep.config import Config, Recipe, Source
from xtrrep.config.yaml_file import check_keys, need_list, need_mapping, need_number, read_yaml
from xtrrep.console import DataError, machine_error
from xtrrep.data import resolve
from xtrrep.pipeline import Plan, Step
from xtrrep.pipeline.identity import lengths_of
from xtrrep.pipeline.stages.table import BY_NAME, STAGES
from xtrrep.plan import preflight
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import TokenEngine, engine_of

FILE = "costs.yaml"
CALIBRATION = "calibration.json"
RATES = ("train", "encode", "product", "search")  # operations a second; the last two of float32
GPUS = (1, 8)  # at once, for the wall time of an array
MEMORY = {"gb", "document", "vector"}  # of a stage in the figures
QUERY_BYTES = 5000  # of a run file: 100 lines of about 50 bytes
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


# --- figures -------------------------------------------------------------------------------------------------------


@cache
def figures(path: Path | None = None) -> dict[str, Any]:
    """`configs/costs.yaml`. Raises UsageError naming file and fault."""
    path = path or configs.config_dir() / FILE
    found = need_mapping(path, "the file", read_yaml(path))
    parts = {"archives", "streams", "models", "words", "text", "training", "memory"}
    check_keys(path, "the file", found, parts, parts)
    for kind in ("archives", "streams"):
        for entry in need_list(path, kind, found[kind]):
            wanted = {"name", "bytes", "from"} | ({"serves"} if kind == "archives" else set())
            check_keys(path, kind, entry, wanted, wanted)
            if entry["bytes"] is not None:
                need_number(path, f"{kind}, {entry['name']}", entry["bytes"])
    for kind, numbers in (
        ("models", {"parameters", "in_layers", "layers", "width"}),
        ("words", {"words"}),
        ("memory", MEMORY),
    ):
        for name, entry in need_mapping(path, kind, found[kind]).items():
            check_keys(path, f"{kind}, {name}", entry, numbers | {"from"}, numbers | {"from"})
            for key in numbers:
                need_number(path, f"{kind}, {name}, {key}", entry[key])
    for kind in ("text", "training"):
        for key, value in need_mapping(path, kind, found[kind]).items():
            need_number(path, f"{kind}, {key}", value)
    return found


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


def _words(data_id: str) -> float | None:
    """Mean words of a collection's document, of the longest id that it begins with."""
    found = [(name, entry["words"]) for name, entry in figures()["words"].items() if data_id.startswith(name)]
    return float(max(found, key=lambda pair: len(pair[0]))[1]) if found else None


def pieces(cfg: Config) -> float | None:
    """Tokens that a document of `cfg.data` has in the encoder, cut at its length."""
    words, text = _words(cfg.data.id), figures()["text"]
    return (
        None if words is None else float(min(words * text["pieces_a_word"], text["longest_mean"] * lengths_of(cfg)[1]))
    )


def vectors(cfg: Config) -> float | None:
    """Vectors that are kept of a document."""
    tokens, share = pieces(cfg), figures()["text"]["vectors_a_piece"] if cfg.model.skip_punctuation else 1.0
    return None if tokens is None else tokens * share / cfg.encode.pool_factor


def forward_operations(backbone: str, tokens: float, length: float) -> float | None:
    """Operations of one pass over `tokens` tokens in sequences of `length`. None for a backbone without figures.

    Every layer is taken to attend to the whole sequence; most of ModernBERT's look at 128 tokens, which makes this an
    upper figure there (by 7 % at 300 tokens).
    """
    model = figures()["models"].get(backbone)
    if model is None:
        return None
    return float(tokens * (2.0 * model["in_layers"] + 4.0 * model["layers"] * model["width"] * length))


def training_operations(cfg: Config, *, distil: bool, padded: float | None = None) -> float | None:
    """Operations of one step: queries and documents forward, and twice that backward.

    `padded` is the length of the batch's documents in tokens; None takes the assumption of `configs/costs.yaml`.
    """
    loop = cfg.distill if distil else cfg.train
    ways = cfg.distill.n_ways if distil else 2
    length = min(padded or figures()["text"]["padded_in_training"], loop.n_doc)
    parts = [
        forward_operations(cfg.model.backbone, loop.batch_size * cfg.model.n_query, cfg.model.n_query),
        forward_operations(cfg.model.backbone, loop.batch_size * ways * length, length),
    ]
    known = [part for part in parts if part is not None]
    return 3.0 * sum(known) if len(known) == len(parts) else None


# --- one step ------------------------------------------------------------------------------------------------------


def estimate(plan: Plan, step: Step, measured: preflight.Forecast, rates: Calibration | None) -> Estimate:
    """What a step still to run computes, takes and leaves. `measured` is what this machine's artifacts say of it."""
    cfg, name = plan.cfg, step.stage.name
    work, unit, kind, disk, held = _COUNTS.get(name, _nothing)(cfg, step)
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
    """Refuse plans with a stage that this machine's memory cannot hold. Raises DataError with what would fit."""
    lines = too_large(plans, machine_memory())
    if lines:
        what, _, fits = lines[0].rpartition(": ")
        more = f", and {len(lines) - 1} more such stages" if len(lines) > 1 else ""
        raise DataError(f"{what}{more}", hint=fits)


Counted = tuple[float | None, str, str | None, float | None, float]  # work, its unit, its rate, disk, held


def _nothing(cfg: Config, step: Step) -> Counted:
    return None, "", None, None, 0.0


def _count_data(cfg: Config, step: Step) -> Counted:
    data = resolve(cfg.data)
    if step.stage.name != "data" or not data.size:
        return None, "", None, None, 0.0
    words = _words(data.id)
    disk = None if words is None else data.size[0] * words * figures()["text"]["bytes_a_word"]
    return float(data.size[0]), "documents", None, disk, 0.0


def _count_training(cfg: Config, step: Step) -> Counted:
    distil = step.stage.name == "distill"
    one = training_operations(cfg, distil=distil)
    model, each = figures()["models"].get(cfg.model.backbone), figures()["training"]
    disk, held = (
        (None, 0.0) if model is None else (each["kept"] * model["parameters"], each["held"] * model["parameters"])
    )
    steps = (cfg.distill if distil else cfg.train).steps
    return (None if one is None else one * steps), "operations", "train", disk, held


def _count_documents(cfg: Config, step: Step) -> Counted:
    tokens, kept, size = pieces(cfg), vectors(cfg), cfg.data.size
    if tokens is None or kept is None or not size or cfg.model.source is Source.vectors:
        return None, "operations", "encode", None, 0.0
    work = forward_operations(cfg.model.backbone, size[0] * tokens, tokens)
    return work, "operations", "encode", size[0] * kept * (2 * cfg.model.dim + 4), 0.0


def _count_queries(cfg: Config, step: Step) -> Counted:
    if not cfg.data.size:
        return None, "operations", "encode", None, 0.0
    tokens = lengths_of(cfg)[0]
    work = forward_operations(cfg.model.backbone, _queries(cfg) * tokens, tokens)
    return work, "operations", "encode", _queries(cfg) * tokens * (2 * cfg.model.dim + 4), 0.0


def _queries(cfg: Config) -> int:
    count = cfg.data.size[1] if cfg.data.size else 0
    return min(count, cfg.data.max_queries or count)


def _count_index(cfg: Config, step: Step) -> Counted:
    kept, size = vectors(cfg), cfg.data.size
    if _compares_everything(cfg):
        return 0.0, "operations", "product", 0.0, 0.0
    built = engine_of(cfg.index).build_cost(size[0], kept, cfg.model.dim) if kept is not None and size else None
    if built is None:
        return None, "operations", None, None, 0.0
    return built.operations, "operations", "product", built.disk, built.held


def _compares_everything(cfg: Config) -> bool:
    engine = engine_of(cfg.index)
    return isinstance(engine, TokenEngine) and engine.exhaustive


def _count_retrieve(cfg: Config, step: Step) -> Counted:
    kept, size = vectors(cfg), cfg.data.size
    if not size:
        return None, "queries", None, None, 0.0
    disk = float(_queries(cfg) * QUERY_BYTES)
    if cfg.retrieve.from_run is None and _compares_everything(cfg) and kept is not None:
        pairs = _queries(cfg) * lengths_of(cfg)[0] * size[0] * kept
        return 2.0 * cfg.model.dim * pairs, "operations", "search", disk, 0.0
    return float(_queries(cfg)), "queries", None, disk, 0.0


def _count_latency(cfg: Config, step: Step) -> Counted:
    asked = cfg.latency
    count = _queries(cfg) if asked.recipe is Recipe.paper else min(_queries(cfg), asked.max_queries) * asked.repeats
    return float(count) or None, "queries", None, 0.0, 0.0


def _count_evaluate(cfg: Config, step: Step) -> Counted:
    return float(_queries(cfg)) or None, "queries", None, 0.0, 0.0


_COUNTS = {
    "data": _count_data,
    "train": _count_training,
    "distill": _count_training,
    "documents": _count_documents,
    "queries": _count_queries,
    "index": _count_index,
    "retrieve": _count_retrieve,
    "evaluate": _count_evaluate,
    "latency": _count_latency,
}


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
            said += "are counts, and hours only where they do not depend on it"
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
