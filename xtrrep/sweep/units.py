"""What a sweep has left to do, read from the artifacts: units of work, what each needs first, and how it stands.

A unit is one stage that some cell lacks, whichever cells share it. Two exceptions: runs that share an index and its
queries are one unit, for they share the token search; and a run is evaluated by whoever made it.

A unit at work holds the lock of its log, `ROOT/.sweeps/STAGE-KEY.log`, which it removes when it has succeeded. So a log
that nobody holds is of a unit that failed, if its last line but the hint says so, or was killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xtrrep import artifacts, locks
from xtrrep import config as configs
from xtrrep.artifacts import Spec, digest
from xtrrep.config import Config
from xtrrep.pipeline import Plan, Step, plan_stages
from xtrrep.stages.searching import one_search
from xtrrep.stages.table import BY_NAME
from xtrrep.verify import fingerprint_of

LOGS = ".sweeps"

# GB of memory that one unit of a stage takes at scale=demo, roughly, without what it holds of an embedding store.
ROUGH_GB = {
    "triples": 1.5,
    "scored": 3.0,
    "train": 3.5,
    "distill": 3.5,
    "documents": 2.0,
    "queries": 1.5,
    "evaluate": 0.5,
}
OTHERWISE_GB = 1.0
# Bytes a number of the embedding store: a build holds it in float32 and what it makes of it, a search about half.
OF_STORE = {"index": 8, "retrieve": 4, "latency": 4}


@dataclass(frozen=True)
class Target:
    """One artifact to make: the config, up to which stage it is carried out, and what that must leave."""

    cfg: Config
    stage: str
    spec: Spec

    @property
    def complete(self) -> bool:
        return artifacts.is_complete(self.spec, BY_NAME[self.stage].root())

    @property
    def held(self) -> bool:
        return locks.is_held(artifacts.lock_of(self.spec, BY_NAME[self.stage].root()))


@dataclass(frozen=True)
class Unit:
    """What one process does. key: 12 hex digits, its identity among units; needs: the keys of units to come first."""

    key: str
    targets: tuple[Target, ...]
    needs: frozenset[str]
    documents: Spec | None = None  # the embedding store that its config searches

    @property
    def stage(self) -> str:
        return self.targets[0].stage

    @property
    def label(self) -> str:
        more = sum(target.stage == self.stage for target in self.targets) - 1
        return self.targets[0].spec.label + (f" and {more} more" if more else "")

    @property
    def complete(self) -> bool:
        return all(target.complete for target in self.targets)

    @property
    def log(self) -> Path:
        return logs() / f"{self.stage}-{self.key}.log"

    @property
    def held(self) -> bool:
        """Whether a process is at it, of a sweep or of any other command."""
        return locks.is_held(self.log) or any(target.held for target in self.targets)

    @property
    def error(self) -> str | None:
        """What its log says that it failed of."""
        if not self.log.exists():
            return None
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.startswith("error: ")]
        return said[-1].removeprefix("error: ") if said else None


def logs() -> Path:
    return configs.artifacts_root() / LOGS


def finished() -> set[str]:
    """Fingerprints of all complete artifacts."""
    roots = (configs.artifacts_root(), configs.results_root())
    return {fingerprint_of(folder) for root in roots for folder in artifacts.folders(root)}


def leaves(plan: Plan) -> list[Step]:
    """The steps that no other step of a plan needs: what a cell is there for."""
    needed = {name for step in plan.steps for name in step.stage.needs(plan.cfg)}
    return [step for step in plan.steps if step.stage.name not in needed]


def steps_of(plans: Iterable[Plan]) -> dict[str, Step]:
    """Every distinct step by its fingerprint, in the order of the cells."""
    return {step.spec.fingerprint: step for plan in plans for step in plan.steps}


def lacking(plans: Iterable[Plan], have: set[str]) -> list[Unit]:
    """The units that cells still need, each after what it needs; a cell whose last steps exist needs none."""
    todo: dict[str, tuple[Plan, Step]] = {}
    for plan in plans:
        if any(step.spec.fingerprint not in have for step in leaves(plan)):
            for step in plan.steps:
                if step.spec.fingerprint not in have:
                    todo.setdefault(step.spec.fingerprint, (plan, step))
    keys = {fingerprint: _key(plan, step, todo) for fingerprint, (plan, step) in todo.items()}
    targets: dict[str, list[Target]] = {}
    needs: dict[str, set[str]] = {}
    stores: dict[str, Spec | None] = {}
    for fingerprint, (plan, step) in todo.items():
        key = keys[fingerprint]
        targets.setdefault(key, []).append(Target(plan.cfg, step.stage.name, step.spec))
        stores.setdefault(key, plan.specs.get("documents"))
        before = {plan.specs[name].fingerprint for name in step.stage.needs(plan.cfg)}
        needs.setdefault(key, set()).update(keys[name] for name in before if name in keys)
    return [Unit(key, tuple(found), frozenset(needs[key] - {key}), stores[key]) for key, found in targets.items()]


def _key(plan: Plan, step: Step, todo: Mapping[str, tuple[Plan, Step]]) -> str:
    """Which unit a missing step belongs to."""
    if step.stage.name == "evaluate" and plan.specs["retrieve"].fingerprint in todo:
        step = next(other for other in plan.steps if other.stage.name == "retrieve")
    if step.stage.name == "retrieve":
        return digest(["retrieve", *one_search(step.spec)])
    return step.spec.fingerprint


def waves(units: Iterable[Unit]) -> list[list[Unit]]:
    """Units that could run at once, after those of the waves before."""
    left, found, done = list(units), [], set[str]()
    while left:
        ready = [unit for unit in left if unit.needs <= done]
        found.append(ready)
        done |= {unit.key for unit in ready}
        left = [unit for unit in left if unit.key not in done]
    return found


def waves_of(plans: Iterable[Plan]) -> list[dict[str, int]]:
    """How many units of each stage those waves hold: the arrays of jobs that a cluster would get."""
    return [dict(Counter(unit.stage for unit in wave)) for wave in waves(lacking(plans, finished()))]


def memory_gb(unit: Unit, said: Mapping[str, float]) -> float:
    """What a unit takes, by what a sweep says of its stage or else by the rough figures above."""
    if unit.stage in said:
        return said[unit.stage]
    base = ROUGH_GB.get(unit.stage, OTHERWISE_GB)
    store = None if unit.documents is None else artifacts.folder_of(unit.documents, configs.artifacts_root())
    if unit.stage not in OF_STORE or store is None or not (store / artifacts.MANIFEST).exists():
        return base
    facts = artifacts.read_manifest(store)["facts"]
    return base + OF_STORE[unit.stage] * int(facts["tokens"]) * int(facts["dim"]) / 1e9


def shards_left(unit: Unit) -> int:
    """How many shards of a collection nobody has encoded yet; 0 for any other unit."""
    if unit.stage != "documents":
        return 0
    target = unit.targets[0]
    data = plan_stages(target.cfg, ["data"]).steps[0]
    count = int(artifacts.read_manifest(data.folder)["facts"]["documents"])
    partial = artifacts.partial_of(target.spec, BY_NAME[target.stage].root())
    whole = len(list((partial / "vectors").glob("*.doclens.npy")))
    return max(0, -(-count // target.cfg.encode.shard_documents) - whole)
