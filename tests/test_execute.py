"""Plans run in order, as tasks of this machine, and on a cluster: the order of tasks, errors, killed processes."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TINY

from xtrrep import artifacts, pipeline
from xtrrep.artifacts import Spec
from xtrrep.config import Config, compose
from xtrrep.console import DataError, UsageError
from xtrrep.experiments import tasks
from xtrrep.experiments.execute import Progress, Scheduler, Where, run_plans
from xtrrep.experiments.tasks import Target, Task, missing_tasks, perform
from xtrrep.pipeline import Plan, Step
from xtrrep.pipeline.stages.table import BY_NAME

# Two engines and two k' over one store of an untrained model: six artifacts that cells share, and eight of their own.
CHEAP = ("data=beir/mini/test", "model.source=untrained", "model.layers=1", "model.n_doc=40", "model.n_query=16")
CELLS = {
    f"{engine} {k}": (f"index={engine}", f"retrieve.k_prime={k}") for engine in ("exact", "scann") for k in (20, 90)
}
SCANN = ("index.num_leaves=20", "index.num_leaves_to_search=10")


@pytest.fixture
def home(tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    return tmp_path / "home"


def cell(*overrides: str) -> tuple[str, ...]:
    return (*CHEAP, *(SCANN if "index=scann" in overrides else ()), *overrides)


@cache
def cheap_configs(data: str) -> dict[str, Config]:
    return {name: compose(cell(*overrides)) for name, overrides in CELLS.items()}


def cheap_plans() -> dict[str, Plan]:
    configs = cheap_configs(os.environ["XTRREP_DATA"])
    return {name: pipeline.plan(cfg, "evaluate") for name, cfg in configs.items()}


def pretend(step: Step | Target) -> Path:
    """Leave a stage's artifact with nothing of use in it."""
    root = BY_NAME[step.stage if isinstance(step, Target) else step.stage.name].root()

    def run(out: Path) -> dict[str, Any]:
        (out / "made").write_text("")
        return {"documents": 40, "tokens": 10**6, "dim": 128}

    return artifacts.make(step.spec, root, run)


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 2, "on": "ray"}, "leave one"),
        ({"on": "rya"}, "did you mean ray"),
        ({"jobs": 0}, "--jobs 2"),
        ({"memory_gb": 3.0}, "--jobs 2"),
        ({"jobs": 2, "memory_gb": 0.0}, "--memory 8"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_plans({}, Where(**options))
    assert message in caught.value.hint


def test_without_ray_it_says_how_to_install_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    for options in ({"jobs": 2}, {"on": "ray"}):
        with pytest.raises(DataError, match="Ray is not installed") as caught:
            run_plans(cheap_plans(), Where(**options))  # type: ignore[arg-type]
        assert caught.value.hint == "pip install 'ray>=2.50'"


def test_without_a_cluster_it_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(DataError, match=r"no Ray cluster at 127\.0\.0\.1:9: .*refused") as caught:
        run_plans(cheap_plans(), Where(on="ray"))
    assert caught.value.hint == "ray start --head, or set RAY_ADDRESS"


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_tasks_are_what_is_missing_and_runs_of_an_index_are_one(home: Path) -> None:
    plans = cheap_plans()
    everything = missing_tasks(plans.values())
    stages = ["data", "documents", "queries", "index", "retrieve", "index", "retrieve"]
    assert [task.stage for task in everything] == stages
    by_stage = {task.stage: task for task in everything}
    assert [target.stage for target in by_stage["retrieve"].targets] == ["retrieve", "evaluate"] * 2
    made: set[str] = set()
    for task in everything:
        assert task.needs <= made
        made.update(task.fingerprints)
    for step in plans["scann 20"].steps:
        pretend(step)
    left = missing_tasks(plans.values())
    assert [task.stage for task in left] == ["index", "retrieve", "retrieve"]
    assert left[2].key == everything[-1].key  # the rest of a shared search is the same task
    assert len(left[2].targets) == 2
    for plan in plans.values():
        for step in plan.steps:
            pretend(step)
    assert missing_tasks(plans.values()) == []


def test_a_run_that_exists_is_evaluated_by_a_task_of_its_own(home: Path) -> None:
    plan = cheap_plans()["exact 20"]
    for step in plan.steps[:-1]:
        pretend(step)
    (task,) = missing_tasks([plan])
    assert (task.stage, task.needs, list(task.targets[0].specs)) == (
        "evaluate",
        frozenset(),
        [step.stage.name for step in plan.steps],
    )


def test_memory_follows_the_embedding_store(home: Path) -> None:
    by_stage = {task.stage: task for task in missing_tasks(cheap_plans().values())}
    before = by_stage["index"].memory
    pretend(by_stage["documents"].targets[0])
    assert by_stage["index"].memory == before + 8 * 128 * 10**6
    assert by_stage["retrieve"].memory == before + 4 * 128 * 10**6
    assert by_stage["queries"].gpus == by_stage["data"].gpus == 0


def test_shards_left_are_those_that_nobody_has_encoded(home: Path) -> None:
    plan = pipeline.plan(compose([*CHEAP, "encode.shard_documents=16"]), "documents")
    pretend(plan.steps[0])  # it counts 40 documents
    (task,) = missing_tasks([plan])
    assert task.shards_left == 3
    partial = artifacts.partial_of(task.targets[0].spec, home) / "vectors"
    partial.mkdir(parents=True)
    (partial / "00001.doclens.npy").write_bytes(b"")
    assert task.shards_left == 2


# --- one task -------------------------------------------------------------------------------------------------------


def test_the_log_of_a_task_says_why_it_failed_and_goes_when_it_succeeds(home: Path, tmp_path: Path) -> None:
    data, documents, _, index, *_ = missing_tasks(cheap_plans().values())
    pretend(documents.targets[0])  # a store in name only
    assert perform(data, str(tmp_path)) == {}
    assert data.targets[0].complete
    assert not data.log().exists()
    before = manifests(home)
    assert perform(data, str(tmp_path)) == {}  # complete: nothing happens
    assert manifests(home) == before
    (message,) = perform(index, str(tmp_path)).values()
    assert "ids.json" in message
    assert "(hint: " in message
    assert "run    index" in index.log().read_text()


def test_a_bug_is_reported_with_the_log_that_holds_its_traceback(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data, *_) = missing_tasks(cheap_plans().values())
    monkeypatch.setattr(pipeline, "run", lambda plans: 1 // 0)
    (message,) = perform(data, str(tmp_path)).values()
    assert message == f"ZeroDivisionError: integer division or modulo by zero (hint: less {data.log()})"
    assert "Traceback" in data.log().read_text()


def test_a_worker_makes_what_was_planned_or_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data, documents, *_) = missing_tasks(cheap_plans().values())
    target = data.targets[0]
    other = Task("0" * 12, (Target(target.cfg, {"data": Spec("data", "x", 1, {"split": "dev"})}),), frozenset())
    (message,) = perform(other, str(tmp_path)).values()
    assert "the stage data is not the one planned" in message
    assert "config.split is 'test', not 'dev'" in message
    monkeypatch.setattr(tasks, "PATIENCE", 0.1)
    (message,) = perform(documents, str(tmp_path)).values()  # whose collection another worker has made, elsewhere
    assert "does not see" in message
    assert "XTRREP_HOME" in message
    (message,) = perform(data, "/nowhere").values()
    assert "cannot enter /nowhere" in message
    assert artifacts.complete(home) == []


# --- the order of tasks ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Submitted:
    task: Task
    share: int | None


@dataclasses.dataclass
class Pretended:
    """Workers that make what they get, or do what `how` says of it by its label. log: what was submitted at once."""

    how: dict[str, Callable[[Task, int | None], dict[str, str]]] = dataclasses.field(default_factory=dict)
    slots: int = 4
    log: list[list[str]] = dataclasses.field(default_factory=list)
    batch: list[str] = dataclasses.field(default_factory=list)

    def submit(self, task: Task, share: int | None = None) -> Any:
        self.batch.append(task.targets[0].spec.label)
        return Submitted(task, share)

    def wait(self, references: Sequence[Any], seconds: float) -> list[Any]:
        if self.batch:
            self.log.append(self.batch)
            self.batch = []
        for reference in references:
            if reference.share is None and reference.task.targets[0].spec.label not in self.how:
                made(reference.task, None)
        return list(references)

    def result(self, reference: Any, task: Task) -> dict[str, str]:
        act = self.how.get(task.targets[0].spec.label)
        return act(task, reference.share) if act else {}


def made(task: Task, share: int | None) -> dict[str, str]:
    for target in task.targets:
        pretend(target)
    return {}


def refused(task: Task, share: int | None) -> dict[str, str]:
    return dict.fromkeys(task.fingerprints, f"{task.targets[0].spec.label} cannot (hint: leave it)")


@cache
def defaults() -> Config:
    return compose()


def spec(name: str, stage: str) -> Spec:
    return Spec(stage, name, 1, {"name": name})


def task(name: str, *needs: Task, stage: str = "data") -> Task:
    target = Target(defaults(), {stage: spec(name, stage)})
    return Task(name, (target,), frozenset(need.targets[0].spec.fingerprint for need in needs))


def diamond(stage: str = "triples") -> list[Task]:
    a = task("a")
    b, c = task("b", a, stage=stage), task("c", a, stage=stage)
    return [a, b, c, task("d", b, c)]


def schedule(wanted: Sequence[Task], workers: Pretended) -> dict[str, str]:
    return Scheduler(wanted, workers, Progress(wanted, [])).run()


def test_tasks_start_when_what_they_need_is_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workers = Pretended()
    assert schedule(diamond(), workers) == {}
    assert workers.log == [["a"], ["b", "c"], ["d"]]
    said = capsys.readouterr()
    assert said.out == ""
    assert "4 tasks: 2 data, 2 triples" in said.err
    assert "done   4/4  data d" in said.err
    assert "tasks/min, about" in said.err


def test_latencies_come_last_and_one_at_a_time(home: Path) -> None:
    a = task("a")
    b = task("b", a)
    workers = Pretended()
    timed = [task("m", stage="latency"), task("n", a, stage="latency")]
    assert schedule([*timed, a, b, task("c", b)], workers) == {}
    assert workers.log == [["a"], ["b"], ["c"], ["m"], ["n"]]


def test_a_failure_stops_what_needs_it_and_nothing_else(home: Path) -> None:
    workers = Pretended({"b": refused})
    wanted = diamond()
    failures = schedule([*wanted, task("e", wanted[2]), task("f", wanted[3])], workers)
    labels = {t.targets[0].spec.fingerprint: t.key for t in [*wanted, task("f", wanted[3])]}
    why = "b cannot (hint: leave it)"
    assert {labels[key]: message for key, message in failures.items()} == {"b": why, "d": why, "f": why}
    assert workers.log == [["a"], ["b", "c"], ["e"]]


def test_what_no_one_sees_has_failed_and_a_late_error_does_not_undo_what_is_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "PATIENCE", 0.1)
    (message,) = schedule([task("x")], Pretended({"x": lambda task, share: {}})).values()
    assert "this machine does not see it" in message
    workers = Pretended({"y": lambda task, share: made(task, share) | refused(task, share)})
    assert schedule([task("y")], workers) == {}  # its worker died after the artifact was complete


@pytest.mark.parametrize(("slots", "log"), [(9, [["x"] * 4, ["x"]]), (3, [["x"] * 3, ["x"]]), (1, [["x"]])])
def test_several_workers_encode_one_collection_and_one_joins_them(slots: int, log: list[list[str]], home: Path) -> None:
    plan = pipeline.plan(compose([*CHEAP, "encode.shard_documents=10"]), "documents")
    pretend(plan.steps[0])
    (encoding,) = missing_tasks([plan])
    workers = Pretended(slots=slots)
    assert schedule([encoding], workers) == {}
    label = encoding.targets[0].spec.label
    assert workers.log == [[label] * len(batch) for batch in log]


# --- in this process ------------------------------------------------------------------------------------------------


def test_in_order_a_failing_cell_does_not_stop_the_others(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = cheap_plans()
    good = plans["exact 20"]
    bad = dataclasses.replace(plans["scann 20"].cfg, index={**plans["scann 20"].cfg.index, "num_leaves": 10**6})
    outcome = run_plans({"good": good, "bad": pipeline.plan(bad, "evaluate")}, Where(jobs=1))
    assert list(outcome.folders) == ["good"]
    assert set(outcome.folders["good"]) == {step.stage.name for step in good.steps}
    assert "(hint: " in outcome.failures["bad"]
    assert "task by task from here" in capsys.readouterr().err


# --- as a user would ------------------------------------------------------------------------------------------------

DRIVER = """
import json, sys
from xtrrep import config, pipeline
from xtrrep.experiments.execute import Where, run_plans
options, cells = json.loads(sys.argv[1]), json.loads(sys.argv[2])
plans = {name: pipeline.plan(config.compose(overrides), until) for name, (until, *overrides) in cells.items()}
outcome = run_plans(plans, Where(**options))
print(json.dumps([{k: {s: str(f) for s, f in v.items()} for k, v in outcome.folders.items()}, outcome.failures]))
"""


@dataclasses.dataclass
class Driver:
    """A command that runs cells, in a process of its own, and its outcome."""

    process: subprocess.Popen[str]

    def outcome(self, seconds: float = 300) -> tuple[dict[str, dict[str, str]], dict[str, str], str]:
        """(folders, failures, stderr)"""
        out, said = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, said
        folders, failures = json.loads(out)  # nothing but our own line is on stdout
        return folders, failures, said


Start = Callable[..., Driver]


@pytest.fixture
def start(collections: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[Driver] = []

    def begin(home: Path, cells: dict[str, Sequence[str]], address: str = "", **options: Any) -> Driver:
        settings = os.environ | {"XTRREP_HOME": str(home), "XTRREP_DATA": str(collections)}
        settings |= {"RAY_ADDRESS": address} if address else {}
        command = [sys.executable, "-c", DRIVER, json.dumps(options), json.dumps(cells)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(Driver(subprocess.Popen(command, env=settings, text=True, cwd=tmp_path, **pipes)))
        return started[-1]

    yield begin
    for driver in started:
        driver.process.kill()
        driver.process.communicate()


def manifests(home: Path) -> dict[Path, tuple[int, bytes]]:
    """Every manifest there is: when its file was written, and what it says."""
    paths = [path for root in (home, home / "results" / "runs") for path in root.glob("[!.]*/[!.]*/manifest.json")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def contents(home: Path) -> dict[str, dict[str, str]]:
    """Hashes of the files of every artifact, but of those that hold times."""
    timed = ("log.jsonl", "latency.json", "latency.csv", "tensorboard/")
    return {
        str(path.parent.relative_to(home)): {
            name: entry["sha256"]
            for name, entry in artifacts.read_manifest(path.parent)["files"].items()
            if not name.startswith(timed)
        }
        for path in manifests(home)
    }


def wait_until(there: Callable[[], Any], driver: Driver, seconds: float = 300) -> Any:
    """What `there` finds; it must come in time, and before the command ends."""
    deadline = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < deadline
        assert driver.process.poll() is None, driver.process.communicate()
        time.sleep(0.05)
    return found


def workers_at(stage: str, driver: Driver) -> list[psutil.Process]:
    """Ray calls a worker after its task."""
    found = []
    for process in psutil.Process(driver.process.pid).children(recursive=True):
        try:
            found += [process] if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{stage}") else []
        except psutil.NoSuchProcess:
            continue
    return found


def test_two_jobs_killed_half_way_leave_the_bytes_of_one_process_and_a_failing_cell_stops_nobody(
    start: Start, home: Path, tmp_path: Path
) -> None:
    two = tmp_path / "two"
    cells = {name: ("evaluate", *cell(*CELLS[name])) for name in ("exact 20", "exact 90")}
    cells["failing"] = ("evaluate", *cell("index=scann", "index.num_leaves=1000000"))
    cells["timed"] = ("latency", *cell("index=exact", "latency.max_queries=2"))
    driver = start(two, cells, jobs=2, memory_gb=3.0)
    wait_until(lambda: complete(two, "documents"), driver)
    workers = kill(driver)
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    before = manifests(two)
    driver = start(two, cells, jobs=2, memory_gb=3.0)
    folders, failures, said = driver.outcome()
    # In a process of its own: other tests may have changed the number of threads of this one.
    expected, expected_failures, _ = start(home, cells, jobs=1).outcome()
    assert contents(two) == contents(home)
    assert {path: manifests(two)[path] for path in before} == before  # nothing that was complete was made again
    assert list(folders) == list(expected) == ["exact 20", "exact 90", "timed"]
    for name, found in expected.items():
        assert folders[name] == {stage: str(two / Path(path).relative_to(home)) for stage, path in found.items()}
    assert failures == {"failing": expected_failures["failing"].replace(str(home), str(two))}
    lines = said.splitlines()
    assert f"  {failures['failing']}" in lines
    assert lines[0].endswith("2 index, 2 retrieve, 1 latency")
    assert "latency exact" in lines[-1]  # after all else
    words = {"done", "failed", "skip", "wait", failures["failing"].split()[0]}
    assert {line.split()[0] for line in lines[1:]} <= words  # Ray says nothing


def test_ray_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xtrrep.experiments import cluster

    for error, says, hint in (
        (OSError(30, "Read-only file system", str(tmp_path / "ray")), "Read-only file system", "set RAY_TMPDIR to"),
        (RuntimeError("Timed out waiting for file x"), "Ray could not start on this machine: Timed out", "RAY_TMPDIR="),
        (OSError("AF_UNIX path length cannot exceed 107 bytes"), "AF_UNIX path length", "RAY_TMPDIR=/tmp"),
    ):
        found = cluster._cannot_start(error, tmp_path)
        assert says in str(found)
        assert hint in found.hint
    monkeypatch.setattr(cluster, "ROOM", 1 << 60)
    assert "Ray has no room for its files" in str(cluster._cannot_start(RuntimeError("Timed out"), tmp_path))
    monkeypatch.setattr(cluster, "SHARED", tmp_path)
    assert cluster._has_shared_memory()
    monkeypatch.setattr(cluster, "SHARED", tmp_path / "gone")
    assert not cluster._has_shared_memory()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
@pytest.mark.parametrize("shared", ["mount -t tmpfs -o ro none /dev/shm", "rmdir /dev/shm"])
def test_ray_works_without_shared_memory(shared: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    script = (
        "from xtrrep.experiments.cluster import local_workers\n"
        "with local_workers(2, 2.0) as workers:\n"
        "    print(workers.ray.get(workers.ray.remote(lambda: 'made').remote()))"
    )
    # A /dev of its own, so that /dev/shm can go.
    own = f"mount --rbind /dev {tmp_path} && mount -t tmpfs none /dev && mkdir /dev/shm && "
    own += f"for n in null zero urandom tty; do touch /dev/$n; mount --bind {tmp_path}/$n /dev/$n; done && {shared} && "
    command = ["unshare", "-m", "bash", "-c", f'{own} exec {sys.executable} -c "$1"', "-", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.stdout.strip() == "made", done.stderr


@pytest.mark.slow
def test_trainings_of_two_jobs_are_those_of_one_process(start: Start, tmp_path: Path) -> None:
    """Two models, two k', two collections; the documents of each in four shards."""
    one, two = tmp_path / "one", tmp_path / "two"
    cells = {
        f"{model} {k} {split}": ("evaluate", *TINY[1:], f"config={model}", f"retrieve.k_prime={k}",
                                 f"data=beir/mini/{split}", "encode.shard_documents=10")
        for model in ("colbert", "xtr_k64") for k in (20, 90) for split in ("test", "train")
    }  # fmt: skip
    start(one, cells, jobs=1).outcome()
    folders, failures, said = start(two, cells, jobs=2).outcome(900)
    assert (len(folders), failures) == (8, {})
    assert contents(two) == contents(one)
    assert "2 train," in said
    assert start(two, cells, jobs=2).outcome() == (folders, {}, "")  # nothing is left to do


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_a_killed_command_continues(start: Start, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cells = {"trained": ("train", *LONG)}
    driver = start(home, cells, jobs=2)
    wait_until(lambda: checkpoints(home), driver)
    (worker,) = workers_at("train ", driver)
    worker.kill()
    wait_until(lambda: [w for w in workers_at("train ", driver) if w.pid != worker.pid], driver)
    family = psutil.Process(driver.process.pid).children(recursive=True)
    before = manifests(home)
    assert not complete(home, "train")
    kill(driver)
    assert psutil.wait_procs(family, timeout=120)[1] == []  # Ray's own processes need a minute
    folders, failures, said = start(home, cells, jobs=2).outcome()
    assert (list(folders), failures) == (["trained"], {})
    assert {path: manifests(home)[path] for path in before} == before
    assert "1 tasks: 1 train" in said
    assert not list(home.glob("*/.partial-*"))
    assert not list((home / ".logs").iterdir())


LONG = (*TINY, "train.steps=40", "train.checkpoint_every=2")


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_ends_complete_and_does_nothing_twice(start: Start, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    home = tmp_path / "home"
    cells = {
        f"{model} {k}": ("evaluate", *LONG, f"config={model}", f"retrieve.k_prime={k}")
        for model in ("colbert", "xtr_k64")
        for k in (20, 90)
    }
    cells["timed"] = ("latency", *cell("index=exact", "latency.max_queries=2"))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        second = nodes.add_node(num_cpus=2)
        driver = start(home, cells, address=nodes.address, on="ray")
        wait_until(lambda: len({path.parts[-4] for path in checkpoints(home)}) == 2, driver)  # one on each node
        nodes.remove_node(second, allow_graceful=False)
        wait_until(lambda: complete(home, "train"), driver)
        kill(driver)
        before = manifests(home)
        folders, failures, said = start(home, cells, address=nodes.address, on="ray").outcome(900)
    finally:
        nodes.shutdown()
    assert (len(folders), failures) == (5, {})
    after = manifests(home)
    assert {path: after[path] for path in before} == before
    assert len({artifacts.read_manifest(path.parent)["fingerprint"] for path in after}) == len(after)
    assert "latency exact" in said.splitlines()[-1]


def complete(home: Path, stage: str) -> list[Path]:
    root = home / "results" / "runs" if stage in ("retrieve", "evaluate", "latency") else home
    return list(root.glob(f"{stage}/[!.]*/manifest.json"))


def checkpoints(home: Path) -> list[Path]:
    return list(home.glob("train/.partial-*/checkpoints/checkpoint-*/xtrrep_state.json"))


def kill(driver: Driver) -> list[psutil.Process]:
    """End a command with SIGKILL; returns the workers that it had here."""
    workers = workers_at("", driver)
    driver.process.kill()
    driver.process.wait()
    return [worker for worker in workers if "Agent" not in worker.name()]
