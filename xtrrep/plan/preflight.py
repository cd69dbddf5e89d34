"""Before anything starts: what will be re-used, run and downloaded, how long that takes, and what is missing for it."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.config import Data, Source
from xtrrep.console import DataError, XtrrepError
from xtrrep.data import LARGEST_GRADE, irds, local_home_hint, open_collection, resolve
from xtrrep.data.scored import local_files as scored_files
from xtrrep.data.triples import cached_copy, local_files
from xtrrep.model import weights
from xtrrep.model.encoder import device_of
from xtrrep.model.precision import describe, processor_name
from xtrrep.pipeline import Plan, Step
from xtrrep.pipeline.identity import ENCODED, needs_model, precision_of, runs_on_gpu, train_data_of
from xtrrep.pipeline.stages.searching import one_search
from xtrrep.pipeline.stages.table import STAGES
from xtrrep.pipeline.stages.vectors import is_changed
from xtrrep.plan import environment
from xtrrep.retrieval.engines import TokenEngine, engine_of, engines


@dataclass(frozen=True)
class Forecast:
    """One line of a plan. `seconds` is None where nothing is known, `source` says where the number comes from."""

    stage: str
    action: str  # "reuse" or "run"
    folder: Path
    units: str
    seconds: float | None
    source: str


def _planned_units(plan: Plan, step: Step) -> tuple[float | None, str]:
    cfg, name = plan.cfg, step.stage.name
    if name == "train":
        return cfg.train.steps, f"{cfg.train.steps:,} steps of {cfg.train.batch_size}"
    if name == "distill":
        size = f"{cfg.distill.batch_size}x{cfg.distill.n_ways}"
        return cfg.distill.steps, f"{cfg.distill.steps:,} steps of {size}"
    if step.spec.stage == "data":
        return 1, "1 collection"
    if name == "scored" and cfg.distill.max_queries is not None:
        return cfg.distill.max_queries, f"{cfg.distill.max_queries:,} lists of {cfg.distill.n_ways}"
    if name == "triples" and cfg.train.data is not None:
        return _counted(plan, "train_data", train_data_of(cfg.train.data), "queries")
    if name == "index" and isinstance(engine := engine_of(cfg.index), TokenEngine) and engine.exhaustive:
        return 0, "nothing to build"
    if name == "latency":
        judged, text = _counted(plan, "data", cfg.data, "queries")
        timed = None if judged is None else min(judged, cfg.latency.max_queries)
        return timed, text if timed is None else f"{timed:,} queries"
    if name in ("documents", "queries") and is_changed(name, cfg):
        return 0, f"made from the encoder's {name}"
    kind = name.removeprefix("plain_")
    if kind in ("documents", "queries", "retrieve", "evaluate", "tokens"):
        return _counted(plan, "data", cfg.data, "documents" if kind == "documents" else "queries")
    return None, ""


def _counted(plan: Plan, stage: str, data: Data, kind: str) -> tuple[float | None, str]:
    """Documents or queries of a collection: counted where it has been read, else as its config says."""
    step = next(step for step in plan.steps if step.stage.name == stage)
    if step.reuse:
        count = artifacts.read_manifest(step.folder)["facts"][kind]
    elif data.size:
        count = data.size[0 if kind == "documents" else 1]
        count = min(count, data.max_queries or count) if kind == "queries" else count
    else:
        return None, ""
    return count, f"{count:,} {kind}"


@dataclass(frozen=True)
class _Made:
    """What an artifact that is there took: how many units, and how many seconds."""

    label: str
    units: float
    seconds: float


def _made(step: Step) -> list[_Made]:
    """The complete artifacts of a step's stage."""
    found = []
    for path in step.stage.root().glob(f"{step.spec.stage}/[!.]*/{artifacts.MANIFEST}"):
        manifest = artifacts.read_manifest(path.parent)
        facts = manifest["facts"]
        seconds = manifest["seconds"] + facts.get("shared_search_seconds", 0.0)
        found.append(_Made(manifest["label"], sum(facts.get("units", {}).values()), seconds))
    return found


def _rate(step: Step, scale: str, made: Sequence[_Made]) -> tuple[float | None, str]:
    """Seconds a unit in the largest artifact of this stage and scale, else the rough figure for scale=demo."""
    stage = step.spec.stage
    best = (0.0, 0.0)
    for one in made:
        # A label begins with its engine and names the scale, where these matter.
        if step.stage.searches and one.label.split("--")[0] != step.spec.label.split("--")[0]:
            continue
        # So does a model's with its setup: at scale=paper another one is another backbone.
        if stage in ("train", "distill", "documents") and one.label.split("-")[0] != step.spec.label.split("-")[0]:
            continue
        if scale in one.label or stage in ("data", "triples", "scored"):
            best = max(best, (one.units, one.seconds))
    if best[0]:
        return best[1] / best[0], "as measured here"
    return (step.stage.seconds, "rough") if scale == "demo" else (None, "")


def forecast(plans: Sequence[Plan]) -> list[Forecast]:
    """Every distinct step of the plans, in order."""
    lines: dict[str, Forecast] = {}
    searched: set[tuple[str, ...]] = set()
    made: dict[str, list[_Made]] = {}
    for plan in plans:
        for step in plan.steps:
            if step.spec.fingerprint in lines:
                continue
            if step.spec.stage not in made:
                made[step.spec.stage] = _made(step)
            units, text = _planned_units(plan, step)
            rate, source = _rate(step, plan.cfg.scale, made[step.spec.stage])
            seconds = None if units is None or (units and rate is None) else units * (rate or 0.0)
            if step.stage.name == "retrieve" and not step.reuse:
                shared = one_search(step.spec)
                seconds = 0.0 if shared in searched else seconds  # one search serves them all
                searched.add(shared)
            action = "reuse" if step.reuse else "run"
            lines[step.spec.fingerprint] = Forecast(
                step.stage.name, action, step.folder, text, 0.0 if step.reuse else seconds, "" if step.reuse else source
            )
    order = {stage.name: i for i, stage in enumerate(STAGES)}
    return sorted(lines.values(), key=lambda line: order[line.stage])


def precisions(plans: Sequence[Plan]) -> list[str]:
    """Where the stages of the plans run and in which precision, a line each; the identity of the stages holds it."""
    found: dict[str, None] = {}
    for plan in plans:
        place = "on a GPU" if runs_on_gpu(plan.cfg) else "on a processor"
        for step in plan.steps:
            loop = {"train": plan.cfg.train, "distill": plan.cfg.distill, "scored": plan.cfg.distill}.get(
                step.stage.name
            )
            given = loop.precision if loop else plan.cfg.encode.precision
            if loop or (step.stage.name == "documents" and plan.cfg.model.source is not Source.vectors):
                found[f"{step.stage.name} in {precision_of(plan.cfg, given).value} {place}"] = None
    return list(found)


def downloads(plans: Sequence[Plan]) -> dict[str, int | None]:
    """What the steps still to run would fetch: name and MB (None where the size is not known)."""
    found: dict[str, int | None] = {}
    for plan in plans:
        todo = {step.stage.name for step in plan.steps if not step.reuse}
        cfg = plan.cfg
        if "data" in todo and _is_fetched(cfg.data):
            found[cfg.data.id] = cfg.data.download_mb or irds.download_mb(cfg.data)
        for stage, name in (
            ("train_data", cfg.train.data),
            ("distill_data", cfg.distill.data),
            ("eval_data", cfg.train.eval_data or cfg.distill.eval_data),
        ):
            if stage in todo and name and _is_fetched(data := train_data_of(name)):
                found[name] = data.download_mb or irds.download_mb(data)
        models: list[tuple[str, str | None]] = []
        if "train" in todo or (cfg.model.source is Source.untrained and todo & ENCODED):
            models.append((cfg.model.backbone, cfg.model.revision))
        if cfg.model.source in (Source.checkpoint, Source.released) and todo & ENCODED:
            models.append((str(cfg.model.checkpoint), cfg.model.revision))
        if "scored" in todo and cfg.distill.teacher not in weights.ARCHIVES:
            models.append((cfg.distill.teacher, cfg.distill.teacher_revision))
        for name, revision in models:
            if weights.locate(name) is None and not weights.is_cached(name, revision):
                found[name] = weights.HUB_MB.get(name)
        if "train" in todo and (name := cfg.train.triples) and not local_files(name):
            found |= {} if cached_copy(name, cfg.train.revision) else {name: None}  # streamed
        if "distill" in todo and (name := cfg.distill.lists) and not scored_files(name):
            found |= {} if cached_copy(name, cfg.distill.revision) else {name: None}  # streamed
    return found


def _is_fetched(data: Data) -> bool:
    """Whether a collection comes over the network: it is no local folder, and its archive is not here."""
    return resolve(data).loader == "ir_datasets" and not irds.is_present(data)


def lacks_gpu(plans: Sequence[Plan]) -> bool:
    """Whether a plan trains or encodes on a GPU that this machine does not have. machine.device=cpu asks for none."""
    wanted = any(
        runs_on_gpu(plan.cfg)
        and (plan.cfg.scale == "paper" or plan.cfg.machine.device != "auto")
        and needs_model(plan.cfg)
        for plan in plans
        for step in plan.steps
        if step.stage.name in ("train", "distill", "documents") and not step.reuse
    )
    return wanted and not _has_gpu()


def _has_gpu() -> bool:
    """Whether torch sees a GPU. Without the device files of a driver it cannot, and is not imported to say so."""
    driven = any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
    return (driven or "torch" in sys.modules) and device_of("auto") != "cpu"


def in_one_piece(plans: Sequence[Plan]) -> list[str]:
    """The engines whose index the plans still build, and whose build begins again after an interruption."""
    building = {
        str(plan.cfg.index["engine"]): engine_of(plan.cfg.index)
        for plan in plans
        for step in plan.steps
        if step.stage.name == "index" and not step.reuse
    }
    return sorted(
        name
        for name, engine in building.items()
        if not engine.resumes and not (isinstance(engine, TokenEngine) and engine.exhaustive)
    )


def missing(plans: Sequence[Plan]) -> list[str]:
    """What this machine lacks to carry the plans out, in words; empty when nothing is known to be missing."""
    problems = []
    if lacks_gpu(plans):
        problems.append("no GPU, and scale=paper is hours of training and encoding on one")
    lacking = [*_teachers_missing(plans), *_engines_missing(plans)]
    problems += [f"{error} ({error.hint})" for error in lacking]
    fetch = downloads(plans)
    if fetch and not weights.hub_reachable():
        problems.append(
            "the hub and the data sets' hosts cannot be reached, but these must be fetched: " + ", ".join(fetch)
        )
    return problems


def _teachers_missing(plans: Sequence[Plan]) -> list[DataError]:
    """Why a teacher from the package registry cannot score; empty where it can, or has."""
    names = {
        plan.cfg.distill.teacher
        for plan in plans
        for step in plan.steps
        if step.stage.name == "scored" and not step.reuse
    }
    found = []
    for name in sorted(names & weights.ARCHIVES.keys()):
        try:
            weights.archive_parts(name)
        except DataError as error:
            found.append(error)
    return found


def _engines_missing(plans: Sequence[Plan]) -> list[DataError]:
    """Engines whose library is not installed, before hours go into the vectors they would search."""
    import importlib.util

    names = {
        str(plan.cfg.index["engine"])
        for plan in plans
        if any(step.stage.searches and "index" in plan.specs and not step.reuse for step in plan.steps)
    }
    found = []
    for name in sorted(names):
        entry = engines.entries()[name]
        if entry.requires and importlib.util.find_spec(entry.requires) is None:
            found.append(DataError(f"engine {name} is not installed", hint=entry.install))
    return found


def _check_grades(plan: Plan) -> None:
    """Raise DataError where a measure cannot take a grade of the judgements, as far as these can be read already."""
    from xtrrep.measure.evaluate import check_grades, largest_grade

    steps = {step.stage.name: step for step in plan.steps}
    if "evaluate" not in steps or steps["evaluate"].reuse:
        return
    measures, data = list(plan.cfg.data.measures), plan.cfg.data
    if largest_grade(measures)[1] < LARGEST_GRADE and (steps["data"].reuse or resolve(data).loader == "folder"):
        check_grades(measures, open_collection(data, steps["data"].folder).qrels)


def require(plans: Sequence[Plan]) -> None:
    """Refuse a run that this machine cannot finish. Raises DataError with what is missing and what works instead."""
    for error in (*_teachers_missing(plans), *_engines_missing(plans)):
        raise error
    for plan in plans:
        _check_grades(plan)
    problems = missing(plans)
    if not problems:
        return
    message = "this run cannot finish here: " + "; ".join(problems)
    hints = []
    if lacks_gpu(plans):
        hints += ["machine.device=cpu runs it here all the same"]
    if not weights.hub_reachable():
        hints += _local_hints(plans)
    if any(plan.cfg.scale == "paper" for plan in plans):
        hints.append(f"the same at a size for this machine: {_demo_command(sys.argv[1:])}")
    raise DataError(message, hint="; ".join(hints))


def _local_hints(plans: Sequence[Plan]) -> list[str]:
    """What to set for each thing that would be fetched, where it cannot be."""
    fetch = downloads(plans)
    hints: dict[str, None] = {}
    for plan in plans:
        cfg = plan.cfg
        collections = [cfg.data.id, cfg.train.data, cfg.distill.data, cfg.train.eval_data or cfg.distill.eval_data]
        for id in collections:
            if id in fetch:
                hints[local_home_hint(str(id))] = None
        for name, key in ((cfg.train.triples, "train.triples"), (cfg.distill.lists, "distill.lists")):
            if name in fetch:
                warm = f"hf download {name} --repo-type dataset"
                hints[f"`{warm}` fills the hub's cache, or {key}=FOLDER names a copy of {name}"] = None
        for name, key in (
            (cfg.model.backbone, "model.backbone=FOLDER"),
            (str(cfg.model.checkpoint), "model.source=checkpoint model.checkpoint=FOLDER"),
            (cfg.distill.teacher, "distill.teacher=FOLDER"),
        ):
            if name in fetch:
                hints[f"{key} names a copy of {name}"] = None
    return list(hints)


def _demo_command(words: Sequence[str]) -> str:
    """What was typed, at scale=demo."""
    kept = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--scale":
            words[:1] = []
        elif not word.startswith(("scale=", "--scale=")):
            kept.append(shlex.quote(word))
    return " ".join(["xtrrep", *kept, "scale=demo"])


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min`, `2.5 h`, or `?`."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def doctor() -> list[tuple[str, bool | None, str, str]]:
    """(what, fine, finding, fix) for everything a run depends on; fine is None where it is optional."""
    import importlib.util
    import os
    import platform

    rows: list[tuple[str, bool | None, str, str]] = []
    version = platform.python_version()
    rows.append(("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer"))
    try:
        import torch

        rows.append(("torch", torch.__version__.startswith("2.11.0"), torch.__version__, "make install"))
        rows.append(("processor", True, f"{processor_name()}, {os.cpu_count()} cores", ""))
        rows.append(("precision in training", True, describe("train"), ""))
        rows.append(("precision in encoding", True, describe("encode"), ""))
        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none: scale=demo only"
        rows.append(("gpu", True if torch.cuda.is_available() else None, gpu, "a CUDA GPU, for scale=paper"))
    except ImportError as error:
        rows.append(("torch", False, str(error), "make install"))
    for name, entry in engines.entries().items():
        present = not entry.requires or importlib.util.find_spec(entry.requires) is not None
        fine = present or (None if entry.value.optional else False)
        rows.append((f"engine {name}", fine, "ready" if present else "not installed", entry.install))
    for name in weights.PACKAGES:
        rows.append(_attempt(f"weights {name}", lambda name=name: str(weights.locate(name)) and "ready"))
    for name in weights.ARCHIVES:
        what, fine, finding, fix = _attempt(
            f"weights {name}", lambda name=name: weights.archive_parts(name) and "ready"
        )
        rows.append((what, fine or None, finding if fine else "not installed: no distillation at scale=demo", fix))
    home = configs.artifacts_root()
    existing = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    rows.append(("disk", free > 2, f"{free:.1f} GB free for {home}", "set XTRREP_HOME to a larger disk"))
    fault = environment.why_not_writable(existing)
    finding = f"{home}: {fault}" if fault else str(home)
    rows.append(("writable", not fault, finding, "set XTRREP_HOME to a folder you may write to"))
    rows += environment.rows()
    reach = weights.hub_reachable()
    finding = "reachable" if reach else "offline: scale=demo and local folders only"
    rows.append(("model hub", True if reach else None, finding, "a network, and HF_HUB_OFFLINE unset"))
    data = os.environ.get("XTRREP_DATA")
    fine = None if not data else Path(data).is_dir()
    rows.append(("XTRREP_DATA", fine, data or "not set", "export XTRREP_DATA=FOLDER of BEIR folders"))
    return rows


def _attempt(what: str, probe: Any) -> tuple[str, bool | None, str, str]:
    try:
        return (what, True, probe(), "")
    except XtrrepError as error:
        return (what, False, str(error), error.hint)
