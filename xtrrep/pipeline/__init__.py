"""The stages, in order, and one function that runs a config up to a stage. Read this file first; `stages/table.py` says
what each stage needs and leaves, the modules beside it what each is and does.

    data         the collection, checked; built where it is not a local folder
    train_data   the same for the collection we train on
    distill_data the collection whose candidates a teacher scores
    eval_data    a small collection to look at during training
    triples      (query, positive, hard negative), mined with BM25
    scored       (query, candidates, the teacher's scores)
    train        the encoder, from the backbone, contrastive
    distill      then from a teacher's scores (stage=kd)
    documents    token embeddings of the documents
    queries      token embeddings of the judged queries; plain_documents and plain_queries, what these two are made from
                 where encode.transform or retrieve.expansion changes the encoder's vectors
    index        an engine's files over the documents
    words        BM25's files, where its ranking is made one with an engine's
    retrieve     ranked documents a query: a TREC run file
    evaluate     measures, per query first
    tokens       numbers of the vectors, and of what query tokens find by exact search
    latency      how long a query takes, in a process of its own
    analyze      tables and figures over many runs

Each stage leaves `ROOT/STAGE/LABEL-FINGERPRINT/` with a `manifest.json` (artifacts.py), where ROOT is `artifacts/` for
what is costly and `results/runs/` for what people read: `STAGES` says which (the collections share the folder of
`data`; `analyze`, which stands over many plans, goes to the results). `$XTRREP_HOME` replaces `artifacts/` and then
holds `results/runs/` too. The fingerprint covers the part of the config that the stage reads, the fingerprints of the
stages it needs, and the content of data and weights (of what lies on a hub: what it lists at a commit). So a whole
plan is known before anything runs, and a stage is re-used exactly when a folder with its fingerprint has a manifest,
whatever LABEL that folder was first made under. Of the machine only what changes numbers counts: the precision where
the stage runs (`identity.precision_of`), and `machine.compile` in training.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.artifacts import Folders, Spec
from xtrrep.artifacts.locks import at_work
from xtrrep.config import Config, Loop, Source
from xtrrep.console import DataError, UsageError, say
from xtrrep.model import hub
from xtrrep.pipeline.identity import device_named, engine_label, hub_revisions, look_again, loop_of, model_needs, pinned
from xtrrep.pipeline.stages.searching import one_search, retrieve_many, write_run
from xtrrep.pipeline.stages.table import BY_NAME, STAGES, Stage
from xtrrep.train import distributed


@dataclass(frozen=True)
class Step:
    """A stage of a plan: what it will leave, where, and whether that is there already."""

    stage: Stage
    spec: Spec
    folder: Path
    reuse: bool


@dataclass(frozen=True)
class Plan:
    """One config's steps in order; every step's needs stand before it."""

    cfg: Config
    steps: tuple[Step, ...]

    @property
    def specs(self) -> dict[str, Spec]:
        return {step.stage.name: step.spec for step in self.steps}


@dataclass
class Done:
    """What a run did: folders by stage for each config, and which fingerprints were run or re-used."""

    folders: list[dict[str, Path]] = field(default_factory=list)
    ran: list[Path] = field(default_factory=list)
    reused: list[Path] = field(default_factory=list)


def plan(cfg: Config, until: str, *also: str) -> Plan:
    """The steps that lead to stage `until` (and others), without running anything."""
    if cfg.model.source is Source.released:
        from xtrrep.model.released import released_ids

        name = hub.first_of(released_ids(cfg.setup, cfg.config, cfg.stage.value), cfg.model.revision)
        _say_once(f"  model.source=released is {name}")
        cfg = replace(cfg, model=replace(cfg.model, checkpoint=name))
    if until == "train" and cfg.model.source is not Source.trained:
        raise UsageError(
            f"model.source={cfg.model.source.value} has nothing to train", hint="xtrrep eval uses it as it is"
        )
    if until == "train":
        until = model_needs(cfg)[0] if model_needs(cfg) else "train"
    return plan_stages(cfg, (until, *also))


def plan_stages(cfg: Config, names: Sequence[str]) -> Plan:
    """As `plan`, to stages of the table by their own names: `train` is the contrastive one."""
    wanted: set[str] = set()

    def visit(name: str) -> None:
        if name not in wanted:
            for need in BY_NAME[name].needs(cfg):
                visit(need)
            wanted.add(name)

    for name in names:
        visit(name)
    plan = _plan_of(pinned(cfg, wanted), wanted)
    begun = _begun(cfg, wanted, plan)
    return plan if begun is None else begun


def _plan_of(cfg: Config, wanted: set[str]) -> Plan:
    specs: dict[str, Spec] = {}
    steps = []
    for stage in STAGES:
        if stage.name in wanted:
            specs[stage.name] = spec = stage.spec(cfg, specs)
            folder = artifacts.folder_of(spec, stage.root())
            steps.append(Step(stage, spec, folder, (folder / artifacts.MANIFEST).exists()))
    return Plan(cfg, tuple(steps))


def _begun(cfg: Config, wanted: set[str], newest: Plan) -> Plan | None:
    """The plan with the hub's commits of the last run, where that run was interrupted and the hub has changed since: it
    goes on with what it began with. None where there is no such run."""
    used = pinned(cfg, wanted, hub.last_used)
    moved = [r for r in hub_revisions(cfg, wanted) if r.asked(used) not in (r.asked(cfg), r.asked(newest.cfg))]
    if not moved:
        return None
    for revision in moved:
        commit = hub.last_used(revision.kind, revision.name, revision.asked(cfg))
        if commit is not None:
            hub.adopt(revision.kind, revision.name, revision.asked(used), commit)
    older = _plan_of(used, wanted)
    known = {step.spec.fingerprint for step in newest.steps}
    for step in older.steps:
        partial = artifacts.partial_of(step.spec, step.stage.root())
        if not step.reuse and step.spec.fingerprint not in known and partial.exists():
            names = ", ".join(revision.name for revision in moved)
            _say_once(f"  note: {names} has changed on the hub; {short(partial)} goes on with the commit it began with")
            return older
    return None


@cache
def _say_once(text: str) -> None:
    say(text)


def run(plans: Sequence[Plan]) -> Done:
    """Carry out plans together: what they share runs once, and runs that share an index share its token search."""
    if plans and distributed.asked() > 1:
        distributed.begin(device_named(plans[0].cfg.machine.device))
    for p in plans:
        for revision in hub_revisions(p.cfg, {step.stage.name for step in p.steps if not step.reuse}):
            hub.remember(revision.kind, revision.name, revision.asked(p.cfg))
    done = Done([{} for _ in plans])
    with at_work(configs.artifacts_root()), at_work(configs.results_root()):
        _run_stages(plans, done)
    return done


def run_share(p: Plan) -> None:
    """Do part of a plan's last stage, beside other processes that do the same; `run` then finishes it.

    Raises DataError where what the stage needs has not been made.
    """
    *before, last = p.steps
    if last.stage.share is None:
        raise ValueError(f"the stage {last.stage.name} cannot be shared")
    share = last.stage.share
    with at_work(configs.artifacts_root()), at_work(configs.results_root()):
        for step in before:
            artifacts.check(step.folder, step.spec.fingerprint)
        folders = {step.stage.name: step.folder for step in before}

        def work(out: Path) -> dict[str, Any]:
            share(p.cfg, folders, out)
            return {}

        say(f"share  {last.stage.name:<10} {short(last.folder)}")
        artifacts.share(last.spec, last.stage.root(), _watched(p, last, work))


def _run_stages(plans: Sequence[Plan], done: Done) -> None:
    seen: dict[str, Path] = {}
    for stage in STAGES:
        todo = [(i, p, step) for i, p in enumerate(plans) for step in p.steps if step.stage is stage]
        if stage.name == "latency":  # fingerprints are hashes: a random order over what is compared
            todo.sort(key=lambda item: item[2].spec.fingerprint)
        if stage.name == "retrieve":
            _run_retrievals([(p, step) for _, p, step in todo], seen, done)
        for i, p, step in todo:
            if step.spec.fingerprint not in seen:
                _carry_out(p, step, done.folders[i], seen, done)
            done.folders[i][stage.name] = seen[step.spec.fingerprint]


def _carry_out(p: Plan, step: Step, folders: Folders, seen: dict[str, Path], done: Done) -> None:
    """One stage, by the first rank. The others (train/distributed.py) wait, and join it where a model is trained.

    With one process that is `_make` and no more.
    """
    joined = step.stage.ranks

    def work(begin: Callable[[Path], None]) -> Path:
        return _make(p, step, folders, done, begin if joined else None)

    if distributed.rank() == 0:
        seen[step.spec.fingerprint] = distributed.lead(work)
    else:
        seen[step.spec.fingerprint] = distributed.follow(lambda out: step.stage.run(p.cfg, p.specs, folders, out))
    if joined:
        trained = loop_of(p.cfg) if step.stage.name == "distill" else p.cfg.train
        _say_verdict(trained, seen[step.spec.fingerprint])


def _make(p: Plan, step: Step, folders: Folders, done: Done, begin: Callable[[Path], None] | None) -> Path:
    """Re-use a stage's folder or make it; `begin` is called with the unfinished one before work starts."""
    root = step.stage.root()
    if artifacts.is_complete(step.spec, root):
        folder = artifacts.folder_of(step.spec, root)
        artifacts.check(folder, step.spec.fingerprint)
        say(f"reuse  {step.stage.name:<10} {short(folder)}")
        done.reused.append(folder)
        return folder

    def run(out: Path) -> dict[str, Any]:
        if begin is not None:
            begin(out)
        return step.stage.run(p.cfg, p.specs, folders, out)

    say(f"run    {step.stage.name:<10} {short(step.folder)}")
    for precision in _other_precisions(step):
        say(f"  note: {precision} was used for the same before, and this run uses {step.spec.config['precision']}")
    folder = artifacts.make(step.spec, root, _watched(p, step, run))
    done.ran.append(folder)
    return folder


def _other_precisions(step: Step) -> list[str]:
    """The precisions of complete artifacts that differ from the one to be made in nothing else."""
    if "precision" not in step.spec.config:
        return []
    found = set()
    for path in step.folder.parent.glob(f"[!.]*/{artifacts.MANIFEST}"):
        try:
            manifest = artifacts.read_manifest(path.parent)
        except DataError:  # `xtrrep verify` names broken ones
            continue
        precision = manifest.get("config", {}).get("precision")
        config = step.spec.config | {"precision": precision}
        if artifacts.digest(step.spec.identity | {"config": config}) == manifest["fingerprint"]:
            found.add(str(precision))
    return sorted(found)


def _watched(p: Plan, step: Step, run: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    """A stage's work, refused where its inputs changed meanwhile; its facts then say how many threads there were."""

    def work(out: Path) -> dict[str, Any]:
        facts = run(out)
        if step.spec.content:
            look_again()
            if step.stage.spec(p.cfg, p.specs).fingerprint != step.spec.fingerprint:
                shutil.rmtree(out)  # half of it may be of the one input and half of the other
                raise DataError(
                    f"what the stage {step.stage.name} reads was changed during this run",
                    hint="the same command starts again from what is there now",
                )
        commits = {r.name: r.asked(p.cfg) for r in hub_revisions(p.cfg, {step.stage.name}) if r.asked(p.cfg)}
        facts = facts | ({"commits": commits} if commits else {})
        return facts if "threads" in facts else {**threads(), **facts}  # a latency has its own

    return work


def threads() -> dict[str, int]:
    """How many threads torch has, where it was imported, and numpy's products, which exact search is made of."""
    from threadpoolctl import threadpool_info

    torch = sys.modules.get("torch")
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ({"threads": torch.get_num_threads()} if torch else {}) | ({"blas_threads": max(pools)} if pools else {})


def _say_verdict(loop: Loop, folder: Path) -> None:
    """What a person should know of a trained model before reading its scores."""
    facts = artifacts.read_manifest(folder)["facts"]
    if facts["diverged_at"] is not None:
        say(f"  note: this training diverged at step {facts['diverged_at']}; its weights are those of step "
            f"{facts['model_step']}")  # fmt: skip
    if loop.eval_data and not (folder / "eval.csv").exists():
        say("  note: it was trained before without an evaluation on the way; another seed would have one")


def _run_retrievals(todo: Sequence[tuple[Plan, Step]], seen: dict[str, Path], done: Done) -> None:
    """The missing runs, grouped by index and queries, each group from one token search."""
    groups: dict[tuple[str, ...], dict[str, tuple[Plan, Step]]] = {}
    for p, step in todo:
        if not artifacts.is_complete(step.spec, step.stage.root()):
            groups.setdefault(one_search(step.spec), {})[step.spec.fingerprint] = (p, step)
    for group in groups.values():
        if len(group) < 2:
            continue  # alone, it runs like any other stage
        members = list(group.values())
        first = members[0][0]
        folders = {s.stage.name: seen[s.spec.fingerprint] for s in first.steps if s.spec.fingerprint in seen}
        what = short(folders["index"]) if "index" in folders else engine_label(first.cfg)
        say(f"run    retrieve   {len(members)} settings, one search of {what}")
        start = time.monotonic()
        outcomes = retrieve_many([p.cfg for p, _ in members], first.specs, folders)
        seconds = round(time.monotonic() - start, 3)
        for (p, step), outcome in zip(members, outcomes, strict=True):
            write = partial(write_run, p.cfg, outcome, shared_search_seconds=seconds)
            seen[step.spec.fingerprint] = artifacts.make(step.spec, step.stage.root(), _watched(p, step, write))
            done.ran.append(seen[step.spec.fingerprint])


def short(folder: Path) -> str:
    """A path as people type it: relative to the current folder where it lies below it."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)
