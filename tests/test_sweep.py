"""Sweeps: the cells of a file, units of work, the order of doing them, workers that fail or are killed, both hands."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TINY, Cli
from xtrrep.sweep import cells, hands, units, watch, work
from xtrrep.sweep.control import ALONE, ATTEMPTS, Control, Room
from xtrrep.sweep.units import Target, Unit
from xtrrep.sweep.work import Task

from xtrrep import artifacts, claims, pipeline
from xtrrep.artifacts import Spec, locks
from xtrrep.cli import _run
from xtrrep.config import Config, compose
from xtrrep.console import DataError, UsageError
from xtrrep.pipeline import Plan, Step
from xtrrep.pipeline.stages.table import BY_NAME

# Twelve cells of the demo's sweep that share one store: the untrained model is the same under every config.
CHEAP = ("data=beir/mini/test", "model.source=untrained", "model.layers=1", "model.n_doc=40", "model.n_query=16")


# --- the file -------------------------------------------------------------------------------------------------------


def parse(folder: Path, text: str) -> cells.Sweep:
    path = folder / "mine.yaml"
    path.write_text(text)
    return cells.parse_sweep(path)


def test_axes_are_crossed_and_cells_come_beside_them(tmp_path: Path) -> None:
    text = (
        "title: x\nuntil: index\nmemory: {index: 2}\ncells: [[index=bm25]]\naxes: [[a=1, a=2], [[b=1, c=1], b=2, b=3]]"
    )
    sweep = parse(tmp_path, f"{text}\ncluster: {{mem_gb: 3, stages: {{train: {{gpus_per_node: 1}}}}}}")
    crossed = [("a=1", "b=1", "c=1"), ("a=1", "b=2"), ("a=1", "b=3")]
    assert sweep.cells == (*crossed, *[("a=2", *cell[1:]) for cell in crossed], ("index=bm25",))
    assert (sweep.name, sweep.until, sweep.memory) == ("mine", "index", {"index": 2.0})
    assert sweep.cluster == {"": {"mem_gb": 3}, "train": {"gpus_per_node": 1}}


FAULTY = {
    "title: x": "asks for no cell",
    "title: x\nclaims: all": "claims is not a list",
    "title: x\naxis: []": "unknown key 'axis'",
    "cells: [[a=1]]": "no 'title'",
    "title: x\naxes: [[]]": "an axis has no choices",
    "title: x\naxes: [[a=1, a=1]]": "one cell twice: a=1",
    "title: x\naxes: [a=1]": "an axis is not a list",
    "title: x\naxes: [[[null]]]": "no word",
    "title: x\ncells: [[a=1]]\nuntil: evaluation": "until names no stage: 'evaluation'",
    "title: x\ncells: [[a=1]]\nencoders: 0": "no number of processes",
    "title: x\ncells: [[a=1]]\nmemory: {trian: 3}": "memory names no stage: 'trian'",
    "title: x\ncells: [[a=1]]\nmemory: {train: much}": "not a number",
    "title: x\ncells: [[a=1]]\nmemory: {train: 0}": "memory of train is not above 0",
    "title: x\ncells: [[a=1]]\ncluster: {stages: {train: 3}}": "cluster of train is not a mapping",
}


@pytest.mark.parametrize("text", FAULTY)
def test_a_faulty_file_is_refused_with_its_fault(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=FAULTY[text]) as caught:
        parse(tmp_path, text)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize("name", cells.names())
def test_every_sweep_loads_and_its_cluster_is_one_that_submitit_knows(name: str, tmp_path: Path) -> None:
    sweep = cells.load(name)
    assert sweep.title
    hands.Jobs("debug", name, tmp_path, sweep.cluster)


def test_the_demo_is_twelve_cells_of_four_trainings(home: Path) -> None:
    plans, lacking = cells.plans(cells.load("demo"), [*TINY])
    assert (len(plans), lacking) == (12, {})
    found = units.lacking(plans.values(), units.finished())
    count = {
        "data": 1,
        "train_data": 1,
        "triples": 1,
        "train": 4,
        "documents": 4,
        "queries": 4,
        "index": 4,
        "retrieve": 4,
    }
    assert {stage: sum(unit.stage == stage for unit in found) for stage in count} == count
    assert len(found) == sum(count.values())  # runs of an index share a search, and are evaluated by who made them
    assert {len(unit.targets) for unit in found if unit.stage == "retrieve"} == {6}
    waves = units.waves_of(plans.values())
    assert waves[2:] == [{"train": 4}, {"documents": 4, "queries": 4}, {"index": 4}, {"retrieve": 4}]


def test_a_reproduction_is_a_sweep_whose_units_make_its_cells(home: Path) -> None:
    plans, _ = cells.plans(cells.load("table1"), ["train.steps=2"])
    assert {name.partition(": ")[0] for name in plans} == {"table1"}
    assert "table1: xtr_k64 as XTR, pydoc" in plans
    assert plans["table1: xtr_k64 as XTR, pydoc"].cfg.train.steps == 2
    with pytest.raises(UsageError, match="sets it for each cell"):
        cells.plans(cells.load("table1"), ["config=colbert"])


def test_claims_are_a_sweep_whose_units_make_their_runs(home: Path) -> None:
    extra = ["data=beir/mini/test"]
    sweep = dataclasses.replace(cells.load("claims"), seeds=(1, 2))
    plans, lacking = cells.plans(sweep, extra)
    family = claims.load("demo")
    said = [*extra, "claims.seeds=[1,2]"]
    wanted = claims.plan(family, claims.base_config(family, said), said, require=False)
    assert [plan.specs for plan in plans.values()] == [plan.specs for plan in wanted.all()]
    assert {plan.cfg.train.seed for plan in plans.values()} == {1, 2}
    assert "needs data=beir/arguana" in lacking["claim self_match"]
    few = dataclasses.replace(sweep, claims=("warp_faster_xtr",), seeds=())
    assert {plan.steps[-1].stage.name for plan in cells.plans(few, extra)[0].values()} == {"latency"}
    with pytest.raises(UsageError, match="no claim 'wrap'"):
        cells.plans(dataclasses.replace(sweep, claims=("wrap",)), extra)


def test_each_cell_under_each_seed(home: Path) -> None:
    demo = dataclasses.replace(cells.load("demo"), seeds=(1, 2))
    plans, _ = cells.plans(demo, [*TINY])
    assert len(plans) == 24
    assert len({plan.specs["train"].fingerprint for plan in plans.values()}) == 8
    seeds = {(cfg.train.seed, cfg.model.seed, cfg.distill.seed) for cfg in (plan.cfg for plan in plans.values())}
    assert seeds == {(1, 1, 1), (2, 2, 2)}
    table1 = dataclasses.replace(cells.load("table1"), seeds=(1, 2))
    plans, _ = cells.plans(table1, [])
    assert plans["table1: xtr_k64 as XTR, pydoc, seed 2"].cfg.train.seed == 2
    with pytest.raises(UsageError, match="--seeds says under which seeds to train"):
        cells.plans(demo, ["train.seed=5"])
    with pytest.raises(UsageError, match="several seeds mean nothing"):
        cells.plans(demo, ["model.source=untrained"])


def test_what_the_axes_say_cannot_be_said_again(home: Path) -> None:
    with pytest.raises(UsageError, match="sets it for its cells"):
        cells.plans(cells.load("demo"), ["config=colbert"])
    with pytest.raises(UsageError, match="no sweep named 'dmeo'") as caught:
        cells.load("dmeo")
    assert "demo" in str(caught.value.hint)
    plans, lacking = cells.plans(cells.load("demo"), ["retrieve.imputation=nought"])
    assert plans == {}
    assert len(lacking) == 12  # each says why


# --- units ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    return tmp_path / "home"


def pretend(step: Step | Target) -> Path:
    """Leave a stage's artifact with nothing of use in it."""
    root = BY_NAME[step.stage if isinstance(step, Target) else step.stage.name].root()

    def run(out: Path) -> dict[str, Any]:
        (out / "made").write_text("")
        return {"documents": 40, "tokens": 10**6, "dim": 128}

    return artifacts.make(step.spec, root, run)


@cache
def cheap_configs(data: str) -> list[Config]:
    """Of the twelve cells, with XTRREP_DATA as it is."""
    return [plan.cfg for plan in cells.plans(cells.load("demo"), CHEAP)[0].values()]


def cheap_plans() -> list[Plan]:
    return [pipeline.plan(cfg, "evaluate") for cfg in cheap_configs(os.environ["XTRREP_DATA"])]


def test_what_exists_is_no_unit_and_a_finished_cell_needs_nothing(home: Path) -> None:
    plans = cheap_plans()
    every = units.lacking(plans, units.finished())
    assert sorted(unit.stage for unit in every) == ["data", "documents", "index", "queries", "retrieve"]
    for step in plans[0].steps:  # of the three cells of each config, the first
        pretend(step)
    left = units.lacking(plans, units.finished())
    assert [unit.stage for unit in left] == ["retrieve"]
    assert {t.spec.fingerprint for t in left[0].targets}.isdisjoint(step.spec.fingerprint for step in plans[0].steps)
    assert left[0].key == every[-1].key  # what is left of a shared search is the same unit
    for step in plans[1].steps + plans[2].steps:
        pretend(step)
    artifacts_gone = next(step for step in plans[0].steps if step.stage.name == "documents")
    (artifacts_gone.folder / artifacts.MANIFEST).unlink()
    assert units.lacking(plans, units.finished()) == []


def test_memory_follows_the_store(home: Path) -> None:
    plans = cheap_plans()
    by_stage = {unit.stage: unit for unit in units.lacking(plans, units.finished())}
    before = units.memory_gb(by_stage["index"], {})
    pretend(by_stage["documents"].targets[0])
    assert units.memory_gb(by_stage["index"], {}) == pytest.approx(before + 8 * 128 * 10**6 / 1e9)
    assert units.memory_gb(by_stage["index"], {"index": 0.25}) == 0.25


def test_shards_left_are_those_nobody_has_encoded(home: Path) -> None:
    plan = pipeline.plan(compose([*CHEAP, "encode.shard_documents=16"]), "documents")
    pretend(plan.steps[0])  # says that there are 40 documents
    (unit,) = units.lacking([plan], units.finished())
    assert units.shards_left(unit) == 3
    partial = artifacts.partial_of(unit.targets[0].spec, home) / "vectors"
    partial.mkdir(parents=True)
    (partial / "00001.doclens.npy").write_bytes(b"")
    assert units.shards_left(unit) == 2


# --- the order of work ----------------------------------------------------------------------------------------------


@dataclass
class Pretended:
    """Hands that make at the next look what they were given, or what `how` says of it by its label."""

    how: dict[str, Callable[[Task], None]] = field(default_factory=dict)
    pause: float = 0.0
    elsewhere: bool = False
    log: list[list[str]] = field(default_factory=list)
    stopped: list[Task] = field(default_factory=list)

    def start(self, tasks: Sequence[Task]) -> list[Any]:
        self.log.append([task.unit.targets[0].spec.label for task in tasks])
        return list(tasks)

    def ended(self, handle: Any) -> bool:
        task: Task = handle
        act = self.how.get(task.unit.targets[0].spec.label, lambda task: None if task.share is not None else done(task))
        act(task)
        return True

    def stop(self, handles: Sequence[Any]) -> None:
        self.stopped = list(handles)


def done(task: Task) -> None:
    for target in task.unit.targets:
        pretend(target)


def refused(task: Task) -> None:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    task.log.write_text("run ...\nerror: it cannot\nhint: leave it\n")


def killed(task: Task) -> None:
    """It leaves nothing."""


@cache
def defaults() -> Config:
    return compose()


def unit(name: str, *needs: str, stage: str = "data") -> Unit:
    return Unit(name, (Target(defaults(), stage, Spec(stage, name, 1, {"name": name})),), frozenset(needs))


def diamond(stage: str = "data") -> list[Unit]:
    return [unit("a"), unit("b", "a", stage=stage), unit("c", "a", stage=stage), unit("d", "b", "c")]


def test_units_come_after_what_they_need_and_together_where_they_can(home: Path) -> None:
    work = Pretended()
    assert Control(diamond(), work, Room()).run() == {}
    assert work.log == [["a"], ["b", "c"], ["d"]]


@pytest.mark.parametrize(
    ("room", "log"),
    [
        (Room(jobs=1), [["a"], ["b"], ["c"], ["d"]]),
        (Room(jobs=2), [["a"], ["b", "c"], ["d"]]),
        (Room(jobs=2, memory=7.5, said={"triples": 4.0}), [["a"], ["b"], ["c"], ["d"]]),
        (Room(jobs=2, memory=8.0, said={"triples": 4.0}), [["a"], ["b", "c"], ["d"]]),
        (Room(jobs=2, memory=0.1), [["a"], ["b"], ["c"], ["d"]]),  # larger than all there is: alone
    ],
)
def test_no_more_runs_than_there_is_room_for(room: Room, log: list[list[str]], home: Path) -> None:
    work = Pretended()
    assert Control(diamond("triples"), work, room).run() == {}
    assert work.log == log


def test_a_latency_has_the_machine_to_itself(home: Path) -> None:
    work = Pretended()
    Control(diamond(ALONE), work, Room(jobs=4, memory=100.0)).run()
    assert work.log == [["a"], ["b"], ["c"], ["d"]]


def test_latencies_come_last_and_one_after_another(home: Path) -> None:
    units = [unit("m", stage=ALONE), unit("a"), unit("n", "a", stage=ALONE), unit("b", "a"), unit("c", "b")]
    work = Pretended()
    assert Control(units, work, Room(jobs=2, memory=100.0)).run() == {}
    assert work.log == [["a"], ["b"], ["c"], ["m"], ["n"]]
    work = Pretended()
    Control([unit("o", stage=ALONE), unit("x"), unit("y", "x")], work, Room()).run()  # each job has a machine there
    assert work.log == [["x"], ["o"], ["y"]]


def test_a_failure_stops_what_needs_it_and_nothing_else(home: Path) -> None:
    work = Pretended({"b": refused})
    failed = Control([*diamond(), unit("e", "c")], work, Room()).run()
    assert failed == {"b": "it cannot", "d": "it needs data b, which failed"}
    assert work.log == [["a"], ["b", "c"], ["e"]]


def test_a_killed_worker_is_tried_again_alone_but_not_for_ever(home: Path) -> None:
    lives = iter([killed, done])
    work = Pretended({"b": lambda task: next(lives)(task)})
    assert Control(diamond(), work, Room(jobs=4)).run() == {}
    assert work.log == [["a"], ["b", "c"], ["b"], ["d"]]
    work = Pretended({"x": killed})
    failed = Control([unit("x")], work, Room(jobs=4)).run()
    assert work.log == [["x"]] * ATTEMPTS
    assert "killed 3 times" in failed["x"]


def test_late_artifacts_of_another_machine_are_waited_for(home: Path) -> None:
    looks = iter([killed, killed, done])
    work = Pretended({"a": lambda task: next(looks)(task)}, elsewhere=True)
    assert Control([unit("a")], work, Room()).run() == {}
    assert work.log == [["a"]]


def test_what_another_command_is_at_is_left_to_it(home: Path) -> None:
    a, b = unit("a"), unit("b")
    lock = locks.lock(artifacts.lock_of(a.targets[0].spec, home), "a")
    lock.__enter__()

    def release(task: Task) -> None:
        pretend_unlocked(a)
        lock.__exit__(None, None, None)
        done(task)

    work = Pretended({"b": release})
    assert Control([a, b], work, Room(jobs=1)).run() == {}
    assert work.log == [["b"]]


def pretend_unlocked(unit: Unit) -> None:
    """An artifact finished by whoever holds its lock: this process, so `make` would wait for ever."""
    target = unit.targets[0]
    other = Spec(target.stage, "elsewhere", 1, {"name": "elsewhere"})
    made = artifacts.make(other, BY_NAME[target.stage].root(), lambda out: {})
    made.rename(artifacts.folder_of(target.spec, BY_NAME[target.stage].root()))


def test_several_encode_one_collection_and_one_joins(home: Path) -> None:
    plan = pipeline.plan(compose([*CHEAP, "encode.shard_documents=10"]), "documents")
    pretend(plan.steps[0])
    (encoding,) = units.lacking([plan], units.finished())
    label = encoding.targets[0].spec.label
    for room, log in (
        (Room(encoders=3), [[label] * 3, [label]]),
        (Room(encoders=9), [[label] * 4, [label]]),  # no more than there are shards
        (Room(encoders=9, jobs=2, memory=100.0), [[label] * 2, [label]]),
        (Room(encoders=9, jobs=4, memory=5.0), [[label] * 2, [label]]),
        (Room(encoders=1), [[label]]),
    ):
        work = Pretended()
        assert Control([encoding], work, room).run() == {}
        assert work.log == log
        (artifacts.folder_of(encoding.targets[0].spec, home) / artifacts.MANIFEST).unlink()


def test_an_exception_ends_what_is_at_work(home: Path) -> None:
    def interrupt(task: Task) -> None:
        raise KeyboardInterrupt

    work = Pretended({"a": interrupt})
    with pytest.raises(KeyboardInterrupt):
        Control([unit("a")], work, Room()).run()
    assert [task.unit.key for task in work.stopped] == ["a"]


# --- one unit -------------------------------------------------------------------------------------------------------


def test_a_unit_says_why_it_failed_in_its_log_and_removes_it_when_it_succeeds(home: Path) -> None:
    found = {unit.stage: unit for unit in units.lacking(cheap_plans(), units.finished())}
    data, index = found["data"], found["index"]
    pretend(found["documents"].targets[0])  # a store in name only
    assert work.carry_out(Task(index)) == 3
    assert "vectors" in (index.error or "") or "ids.json" in (index.error or "")
    assert work.carry_out(Task(data)) == 0
    assert data.complete
    assert (data.log.exists(), data.error) == (False, None)
    assert work.carry_out(Task(data)) == 0  # there already
    other = Unit("0" * 12, (Target(data.targets[0].cfg, "data", Spec("data", "x", 1, {"split": "dev"})),), frozenset())
    assert work.carry_out(Task(other)) == 3
    assert "another one here than where the sweep was planned" in (other.error or "")
    assert "config.split is 'test', not 'dev'" in (other.error or "")


def test_a_unit_that_another_process_is_at_is_left_alone(home: Path) -> None:
    (data, *_) = units.lacking(cheap_plans(), units.finished())
    data.log.parent.mkdir(parents=True)
    with locks.alone(data.log) as ours:
        assert ours
        assert data.held
        assert work.carry_out(Task(data)) == 0
    assert not data.complete
    assert not data.held


def test_without_submitit_it_says_how_to_install_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "submitit" else found(name))
    with pytest.raises(DataError, match="submitit is not installed") as caught:
        hands.Jobs("local", "x", home, {"": {}})
    assert ".[cluster]" in str(caught.value.hint)


def test_a_parameter_that_submitit_does_not_know_is_refused_before_anything_runs(home: Path) -> None:
    with pytest.raises(UsageError, match="cluster, for train: Unknown argument 'partitoin'"):
        hands.Jobs("local", "x", home, {"": {}, "train": {"slurm_partitoin": "gpu"}})


def test_a_stage_asks_for_what_it_needs_and_not_for_what_the_last_one_did(home: Path) -> None:
    jobs = hands.Jobs("local", "x", home, {"": {"timeout_min": 9}, "train": {"gpus_per_node": 2}})
    assert jobs.executor("train").parameters["gpus_per_node"] == 2
    after = jobs.executor("queries").parameters
    assert "gpus_per_node" not in after
    assert after["timeout_min"] == 9


def test_a_job_is_queued_again_as_it_was(home: Path) -> None:
    task = Task(unit("a"))
    again = hands.Job().checkpoint(task)
    assert (type(again.function), again.args) == (hands.Job, (task,))


# --- progress -------------------------------------------------------------------------------------------------------


def test_how_a_sweep_stands_is_read_from_the_artifacts(home: Path) -> None:
    plans = cheap_plans()
    expected = watch.foreseen(plans)
    now = watch.standing(plans, expected)
    assert now.cells == (0, 12)
    assert now.stages["evaluate"] == {"done": 0, "running": 0, "failed": 0, "waiting": 3}
    assert (now.pace, now.eta) == (None, None)
    data, documents, queries, *_ = units.lacking(plans, units.finished())
    pretend(data.targets[0])
    refused(Task(queries))
    with locks.lock(artifacts.lock_of(documents.targets[0].spec, home), "documents"):
        now = watch.standing(plans, expected)
    assert [now.stages[name] for name in ("data", "documents", "queries", "index")] == [
        {state: int(state == own) for state in watch.STATES} for own in ("done", "running", "failed", "waiting")
    ]
    assert now.failed == {f"queries {queries.label}": "it cannot"}
    assert now.unknown == 6  # encoding, one search and three evaluations: nothing was ever measured here
    text = watch.table("demo", now).terminal()
    assert "0 of 12 cells complete" in text
    assert "failed: queries" in text
    for plan in plans:
        for step in plan.steps:
            pretend(step)
    assert watch.standing(plans, expected).complete
    assert watch.follow("demo", plans, 0.01) == 0


def test_what_is_left_is_what_its_like_took(home: Path) -> None:
    plans = cheap_plans()
    expected = watch.foreseen(plans)
    assert set(expected.values()) == {None, 2.0, 0.0}  # as `preflight` would say of a collection it has not read
    for step in plans[0].steps:
        pretend(step)
    now = watch.standing(plans, expected)
    assert (now.unknown, now.cells) == (0, (4, 12))
    taken = [artifacts.read_manifest(step.folder)["seconds"] for step in plans[0].steps[-2:]]
    assert now.left == pytest.approx(2 * sum(taken))
    times = [watch.Times(1000.0, 200.0), watch.Times(900.0, 300.0), watch.Times(-5000.0, 9.0)]
    assert watch._pace(times, 1100.0) == pytest.approx(500 / 500)  # since 600; what is older does not count
    assert watch._pace(times[2:], 1100.0) is None


def test_time_to_go_is_the_work_left_at_the_pace_so_far() -> None:
    now = watch.Standing({}, (1, 2), {}, 2.0, 3600.0, 0)
    assert now.eta == 1800.0
    assert "about 60 min of work left, at 2.0 times real time over the last hour: about 30 min to go" in str(
        watch.table("x", now).footer
    )
    assert watch.Standing({}, (1, 2), {}, 2.0, 3600.0, 3).eta is None  # of three steps nothing is known


def test_the_table_says_of_every_cell_what_became_of_it(home: Path) -> None:
    plans, _ = cells.plans(cells.load("demo"), CHEAP)
    bad = next(step for step in plans["config=colbert retrieve.k_prime=100"].steps if step.stage.name == "retrieve")
    found = watch.cells(plans, {"other": "no such engine"}, {bad.spec.fingerprint: "it cannot"})
    states = {row["cell"]: (row["state"], row["why"]) for row in found}
    assert states["config=xtr_k64 retrieve.k_prime=100"] == ("failed", "it cannot")
    assert states["config=xtr_k64 retrieve.k_prime=1000"] == ("not run", "")
    assert states["other"] == ("not run", "no such engine")
    assert watch.status(found) == 3
    assert "0 complete, 4 failed, 9 not run" in watch.cells_table("x", found).terminal()


# --- as a user would ------------------------------------------------------------------------------------------------

# What differs between two runs that made the same, in a manifest and in its facts.
TIMES = {"made", "seconds", "checksum", "files"}


def made(home: Path) -> dict[str, Any]:
    """Every artifact of a home: its manifest without times, and the hashes of its files but those that hold times."""
    found = {}
    for root in (home, home / "results" / "runs"):
        for folder, manifest in artifacts.complete(root):
            timed = {"log.jsonl", "latency.json", "latency.csv"}
            files = {
                name: entry["sha256"]
                for name, entry in manifest["files"].items()
                if name not in timed and not name.startswith("tensorboard/")
            }
            kept = {key: value for key, value in manifest.items() if key not in TIMES | {"facts"}}
            found[f"{folder.parent.name}/{folder.name}"] = kept | {"files": files}
    return found


def manifests(home: Path) -> dict[Path, tuple[int, bytes]]:
    """Every manifest there is: when its file was written, and what it says."""
    paths = [path for root in (home, home / "results" / "runs") for path in root.glob("[!.]*/[!.]*/manifest.json")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_a_sweep_does_what_is_lacking_and_then_nothing(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "home"
    rows = json.loads(cli("sweep", "demo", *CHEAP, "--jobs", "2", "--json", home=home).stdout)
    assert [row["state"] for row in rows] == ["complete"] * 12
    assert {row["measure"] for row in rows} == {"nDCG@10"}
    before = manifests(home)
    assert len(before) == 1 + 3 + 3 + 3  # data; documents, queries, index; runs; evaluations
    assert list((home / ".sweeps").iterdir()) == []
    again = cli("sweep", "demo", *CHEAP, home=home)
    assert "nothing is left to do" in again.stderr
    assert "12 complete" in again.stdout
    assert manifests(home) == before


def test_words_that_make_no_sense_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["sweep"]) == 2
    assert "hint: one of: claims, demo" in capsys.readouterr().err
    assert _run(["sweep", "--list"]) == 0
    assert "demo         Four models" in capsys.readouterr().out
    assert _run(["sweep", "demo", *CHEAP, "--executor", "proces"]) == 2
    assert "did you mean process?" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert _run(["sweep", "demo", *CHEAP, "--executor", "slurm"]) == 3
    assert "submitit cannot use slurm" in capsys.readouterr().err
    assert not home.joinpath("data").exists()


def start(home: Path, collections: Path, *words: str) -> subprocess.Popen[str]:
    settings = os.environ | {"XTRREP_HOME": str(home), "XTRREP_DATA": str(collections)}
    command = [sys.executable, "-m", "xtrrep", "sweep", "demo", *words]
    return subprocess.Popen(command, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def wait_for(there: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 300) -> Any:
    """What `there` finds; it must come in time, and before `process` ends."""
    deadline = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    return found


def complete(home: Path, stage: str) -> int:
    root = home / "results" / "runs" if stage in ("retrieve", "evaluate") else home
    return len(list(root.glob(f"{stage}/[!.]*/manifest.json")))


@pytest.mark.slow
def test_a_sweep_stopped_half_way_does_nothing_twice(collections: Path, cli: Cli, tmp_path: Path) -> None:
    """The judged one: twelve cells of four trainings, one worker killed, then the controller, with SIGKILL."""
    home, jobs = tmp_path / "home", tmp_path / "jobs"
    process = start(home, collections, *TINY, "--jobs", "2")
    controller = psutil.Process(process.pid)
    wait_for(lambda: list(home.glob("train/.partial-*")), process)
    (worker, *_) = wait_for(lambda: [p for child in controller.children() for p in child.children()], process)
    worker.kill()  # a training, which begins again
    wait_for(lambda: complete(home, "evaluate") >= 6, process)
    family = controller.children(recursive=True)
    process.kill()
    process.wait()
    assert psutil.wait_procs(family, timeout=60)[1] == []  # a killed sweep leaves no process behind
    before = manifests(home)
    assert 6 <= complete(home, "evaluate") < 12
    again = cli("sweep", "demo", *TINY, "--jobs", "2", "--json", home=home)
    assert [row["state"] for row in json.loads(again.stdout)] == ["complete"] * 12
    after = manifests(home)
    assert {path: after[path] for path in before} == before  # what was complete was neither made nor touched again
    begun = [line for line in again.stderr.splitlines() if line.startswith("start ")]
    assert len(begun) == len(set(begun)) < 23
    assert {path.parent.name for path in home.rglob("manifest.json")} == {path.parent.name for path in after}
    out, _ = start(jobs, collections, *TINY, "--executor", "local", "--jobs", "2").communicate(timeout=1800)
    assert "12 complete" in out
    assert made(jobs) == made(home)


OWN = """
import sys
from pathlib import Path
from xtrrep.sweep import cells, control
sweep = cells.parse_sweep(Path(sys.argv[1]))
plans, _ = cells.plans(sweep, sys.argv[3:])
print(control.carry_out(sweep, list(plans.values()), sys.argv[2], jobs=3))
"""


def start_own(
    home: Path, collections: Path, text: str, *words: str, executor: str = "local", **env: str
) -> subprocess.Popen[str]:
    """A sweep of a file of its own, through submitit."""
    home.mkdir(exist_ok=True)
    (home / "mine.yaml").write_text(text)
    settings = os.environ | {"XTRREP_HOME": str(home), "XTRREP_DATA": str(collections)} | env
    command = [sys.executable, "-c", OWN, str(home / "mine.yaml"), executor, *words]
    return subprocess.Popen(command, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# As much of SLURM as submitit talks to: every job of an array begins at once, and nothing is known of it afterwards.
SLURM = {
    "sbatch": f"""#!{sys.executable}
import os, re, subprocess, sys
script = open(sys.argv[1]).read()
array, job = re.search(r"--array=0-(\\d+)", script), str(os.getpid())
with open(os.environ["SBATCH_SEEN"], "a") as seen:
    print(*sorted(re.findall(r"--(?:array|gpus-per-node|job-name|partition)=(\\S+)", script)), file=seen)
for task in range(int(array[1]) + 1 if array else 1):
    here = {{"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)}} if array else {{}}
    environment = os.environ | {{"SLURM_JOB_ID": job}} | here
    quiet = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
    subprocess.Popen(["bash", sys.argv[1]], env=environment, start_new_session=True, **quiet)
print("Submitted batch job", job)
""",
    "srun": """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == --output || $1 == --error ]] && shift; shift; done
exec "$@"
""",
    "sacct": "#!/bin/bash\necho 'JobID|State|NodeList'\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_an_array_of_encoders_leaves_the_store_that_one_leaves(
    executor: str, collections: Path, cli: Cli, tmp_path: Path
) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    for name, text in SLURM.items():
        tmp_path.joinpath(name).write_text(text)
        tmp_path.joinpath(name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SBATCH_SEEN": str(tmp_path / "seen")}
    cli("encode", *CHEAP, "encode.shard_documents=10", home=one)
    text = "title: x\nuntil: documents\nencoders: 3\ncells: [[encode.shard_documents=10]]\n"
    text += "cluster: {slurm_partition: cpu, stages: {documents: {gpus_per_node: 1, slurm_partition: gpu}}}"
    out, said = start_own(several, collections, text, *CHEAP, executor=executor, **env).communicate(timeout=900)
    assert out == "{}\n", said
    assert ", 3 encoders" in said
    if executor == "slurm":
        seen = (tmp_path / "seen").read_text().splitlines()
        assert seen == ["cpu xtrrep-mine", "0-2%3 1 gpu xtrrep-mine", "1 gpu xtrrep-mine"]  # an array, and the join
    assert made(several) == made(one)
    (store,) = several.glob("documents/[!.]*")
    assert artifacts.read_manifest(store)["facts"]["shards_kept"] == 4
    assert not [path for path in several.rglob("*") if path.name.endswith((".tmp", ".log", ".pkl"))]


@pytest.mark.slow
def test_jobs_outlive_a_killed_controller_and_the_next_one_leaves_them_to_it(collections: Path, tmp_path: Path) -> None:
    """Through submitit, whose word counts for nothing: the controller killed while a job trains, that job pre-empted,
    and another killed, of which submitit says that it finished."""
    home = tmp_path / "home"
    sweep = (
        home,
        collections,
        "title: x\nuntil: documents\ncells: [[train.checkpoint_every=1]]",
        *TINY,
        "train.steps=30",
    )
    first = start_own(*sweep)
    wait_for(lambda: list(home.glob("train/.partial-*/checkpoints/checkpoint-*/xtrrep_state.json")), first)
    (task,) = tasks_of(first)
    first.kill()
    first.wait()
    assert task.is_running()
    (log,) = home.glob(".sweeps/train-*.log")
    task.send_signal(signal.SIGUSR2)  # as SLURM does before it takes a machine away: the job is queued again
    psutil.wait_procs([task], timeout=60)
    wait_for(lambda: locks.is_held(log) or complete(home, "train"))
    second = start_own(*sweep)
    wait_for(lambda: complete(home, "train"), second)
    trained = manifests(home)
    (task,) = wait_for(lambda: tasks_of(second), second)
    task.kill()
    out, said = second.communicate(timeout=600)
    assert out == "{}\n", said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("start ")] == ["documents"] * 2
    assert "killed documents I-xtr_k128-demo--beir-mini-test: once more, alone" in said
    assert {path: manifests(home)[path] for path in trained} == trained
    assert complete(home, "documents") == 1
    assert list(home.glob("*/.partial-*")) == []


def tasks_of(controller: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that do the work of its jobs."""
    found = psutil.Process(controller.pid).children(recursive=True)
    return [process for process in found if "submitit.core._submit" in process.cmdline()]
