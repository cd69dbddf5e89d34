"""Tasks: the missing stages of many plans as units of work, and how one process carries them out.

A task makes one artifact, whichever plans need it. There are two exceptions. Runs that share an index and its queries
are one task, because they share the token search. A run is evaluated by the task that makes it.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.api import set_threads
from xtrrep.artifacts import Spec, digest
from xtrrep.config import Config
from xtrrep.console import DataError, XtrrepError, explained
from xtrrep.pipeline import Plan, Step
from xtrrep.pipeline.identity import device_named
from xtrrep.pipeline.stages.searching import one_search
from xtrrep.pipeline.stages.table import BY_NAME
from xtrrep.retrieval.engines import engine_of

LOGS = ".logs"
PATIENCE = 60.0  # seconds: a network file system may show another machine's new file that late
SHARE = "set XTRREP_HOME to a folder on a file system that all nodes share"

CORES = 4  # that a stage which computes with a model or an index can use; any other uses one


def one_line(error: XtrrepError) -> str:
    """An error with its hint, as failures are reported."""
    return f"{error} (hint: {error.hint})"


@dataclass(frozen=True)
class Target:
    """One artifact to make: the config, and the specs of every stage up to it, which is the last."""

    cfg: Config
    specs: Mapping[str, Spec]

    @property
    def stage(self) -> str:
        return list(self.specs)[-1]

    @property
    def spec(self) -> Spec:
        return self.specs[self.stage]

    @property
    def complete(self) -> bool:
        return _is_complete(self.stage, self.spec)

    def plan(self) -> Plan:
        """The plan on this machine. Raises DataError where this machine would make another artifact."""
        here = BY_NAME[self.stage].spec(self.cfg, self.specs)
        if here.fingerprint != self.spec.fingerprint:
            raise DataError(
                f"on {platform.node()} the stage {self.stage} is not the one planned: {_difference(here, self.spec)}",
                hint="the same command again, if data has changed; on mixed machines set machine.device, "
                "encode.precision and train.precision",
            )
        steps = [
            Step(BY_NAME[name], spec, _folder(name, spec), _is_complete(name, spec))
            for name, spec in self.specs.items()
        ]
        return Plan(self.cfg, tuple(steps))


@dataclass(frozen=True)
class Task:
    """What one process does at a time. needs: fingerprints of the artifacts that other tasks must make first."""

    key: str
    targets: tuple[Target, ...]
    needs: frozenset[str]

    @property
    def stage(self) -> str:
        return self.targets[0].stage

    @property
    def fingerprints(self) -> list[str]:
        return [target.spec.fingerprint for target in self.targets]

    @property
    def label(self) -> str:
        more = sum(target.stage == self.stage for target in self.targets) - 1
        return f"{self.stage} {self.targets[0].spec.label}" + (f" and {more} more" if more else "")

    @property
    def alone(self) -> bool:
        """Whether it must have its machine to itself."""
        return self.stage == "latency"

    @property
    def cores(self) -> int:
        return self.targets[0].cfg.machine.threads or (CORES if BY_NAME[self.stage].gpu else 1)

    @property
    def gpus(self) -> int:
        cfg, stage = self.targets[0].cfg, BY_NAME[self.stage]
        if not stage.gpu or (stage.searches and not engine_of(cfg.index).uses_gpu):
            return 0
        return int(device_named(cfg.machine.device) != "cpu")

    @property
    def memory(self) -> int:
        """Bytes, roughly. Exact about the embedding store once that has been made."""
        stage = BY_NAME[self.stage]
        base = stage.memory_gb * 1e9
        store = self.targets[0].specs.get("documents")
        if not stage.store_bytes or store is None or not _is_complete("documents", store):
            return int(base)
        facts = artifacts.read_manifest(_folder("documents", store))["facts"]
        return int(base + stage.store_bytes * facts["tokens"] * facts["dim"])

    @property
    def shards_left(self) -> int:
        """How many shards of a collection are not encoded yet. 0 for a stage that cannot be shared."""
        if BY_NAME[self.stage].share is None:
            return 0
        target = self.targets[0]
        count = int(artifacts.read_manifest(_folder("data", target.specs["data"]))["facts"]["documents"])
        partial = artifacts.partial_of(target.spec, BY_NAME[self.stage].root())
        encoded = len(list((partial / "vectors").glob("*.doclens.npy")))
        return max(0, -(-count // target.cfg.encode.shard_documents) - encoded)

    def log(self, share: int | None = None) -> Path:
        """The file that gets what it prints. It is removed when the task has succeeded."""
        part = "" if share is None else f".share-{share}"
        return configs.artifacts_root() / LOGS / f"{self.stage}-{self.key}{part}.log"


def missing_tasks(plans: Iterable[Plan]) -> list[Task]:
    """The tasks that make what the plans lack, in the order of the plans. Those that need a machine to themselves come
    last, in the order of their fingerprints, which is random over what is compared."""
    missing: dict[str, tuple[Plan, Step]] = {}
    checked: set[str] = set()
    for plan in plans:
        for step in plan.steps:
            fingerprint = step.spec.fingerprint
            if fingerprint not in checked and not _is_complete(step.stage.name, step.spec):
                missing[fingerprint] = (plan, step)
            checked.add(fingerprint)
    targets: dict[str, list[Target]] = {}
    needs: dict[str, set[str]] = {}
    for plan, step in missing.values():
        key = _key(plan, step, missing)
        target = Target(plan.cfg, _specs_up_to(plan, step))
        targets.setdefault(key, []).append(target)
        needs.setdefault(key, set()).update(spec.fingerprint for spec in target.specs.values())
    tasks = []
    for key, made in targets.items():
        own = {target.spec.fingerprint for target in made}
        tasks.append(Task(key, tuple(made), frozenset((needs[key] & missing.keys()) - own)))
    return sorted(tasks, key=lambda task: task.key if task.alone else "")


def _key(plan: Plan, step: Step, missing: Mapping[str, object]) -> str:
    """The task that a missing step belongs to."""
    if step.stage.name == "evaluate" and plan.specs["retrieve"].fingerprint in missing:
        step = next(other for other in plan.steps if other.stage.name == "retrieve")
    if step.stage.name == "retrieve":
        return digest(["retrieve", *one_search(step.spec)])
    return step.spec.fingerprint


def _specs_up_to(plan: Plan, last: Step) -> dict[str, Spec]:
    wanted = {last.stage.name}
    for step in reversed(plan.steps):
        if step.stage.name in wanted:
            wanted |= set(step.stage.needs(plan.cfg))
    return {step.stage.name: step.spec for step in plan.steps if step.stage.name in wanted}


def _folder(stage: str, spec: Spec) -> Path:
    return artifacts.folder_of(spec, BY_NAME[stage].root())


def _is_complete(stage: str, spec: Spec) -> bool:
    return artifacts.is_complete(spec, BY_NAME[stage].root())


def _difference(here: Spec, there: Spec) -> str:
    parts = ("config", "content", "upstream")
    pairs = [(part, here.identity[part], there.identity[part]) for part in parts]
    return "; ".join(
        f"{part}.{key} is {mine.get(key)!r}, not {planned.get(key)!r}"
        for part, mine, planned in pairs
        for key in sorted(mine.keys() | planned.keys())
        if mine.get(key) != planned.get(key)
    )


def attempt(targets: Sequence[Target]) -> dict[str, str]:
    """Make targets together in this process, or one by one if that fails. Returns errors by fingerprint.

    An error that a person cannot do anything about is raised.
    """
    try:
        pipeline.run([target.plan() for target in targets])
        return {}
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        if len(targets) == 1:
            return {targets[0].spec.fingerprint: one_line(known)}
    failures: dict[str, str] = {}
    for target in targets:
        why = [failures[spec.fingerprint] for spec in target.specs.values() if spec.fingerprint in failures]
        failures |= {target.spec.fingerprint: why[0]} if why else attempt([target])
    return failures


# --- in a worker process --------------------------------------------------------------------------------------------


def perform(task: Task, folder: str, share: int | None = None) -> dict[str, str]:
    """Make what a task lacks, in the working folder of the command. Returns errors by fingerprint.

    share: the number of a worker that encodes some of the shards beside others.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        lost = DataError(
            f"{platform.node()} cannot enter {folder} ({error.strerror})",
            hint="start the command in a folder that all nodes share",
        )
        return dict.fromkeys(task.fingerprints, one_line(lost))
    targets = [target for target in task.targets if not target.complete]
    if not targets:
        return {}
    log = task.log(share)
    with _output_to(log):
        failures = _make(task, targets, share, log)
    if not failures:
        log.unlink(missing_ok=True)
    return failures


def _make(task: Task, targets: Sequence[Target], share: int | None, log: Path) -> dict[str, str]:
    try:
        for target in targets:
            _await_needs(task, target)
        set_threads(targets[0].cfg.machine.threads)
        if share is None:
            return attempt(targets)
        pipeline.run_share(targets[0].plan())
        return {}
    except Exception as error:
        known = explained(error)
        if known is None:
            traceback.print_exc()
            known = DataError(f"{type(error).__name__}: {error}", hint=f"less {log}")
        return {target.spec.fingerprint: one_line(known) for target in targets}


def _await_needs(task: Task, target: Target) -> None:
    """Wait until this machine sees what others made for it: it must not make that again. Raises DataError."""
    for name, spec in target.specs.items():
        if spec.fingerprint not in task.fingerprints and not wait_until_complete(name, spec):
            raise DataError(f"{platform.node()} does not see {_folder(name, spec)}", hint=SHARE)


def wait_until_complete(stage: str, spec: Spec) -> bool:
    """Whether an artifact is complete. One that another machine has just finished may take PATIENCE to show."""
    deadline, pause = time.monotonic() + PATIENCE, 0.1
    while not _is_complete(stage, spec):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
    return True


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send all output of this process and its libraries to a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            for number, old in enumerate(saved, start=1):
                os.dup2(old, number)
                os.close(old)
