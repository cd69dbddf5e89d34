"""What a kill, a full or read-only disk, a lack of memory or open files, and Ctrl-C leave behind: nothing half-done.

Here a run of all stages without a model is stopped; `make test-faults` stops every stage on every engine.
"""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import unit_vectors, write_collection, write_store
from faults import broken, stages, syscalls
from faults.matrix import FULL, INTERRUPT, Bench, Plan, contents, differences, matrix, misrecorded, record, table
from faults.stages import Case
from faults.syscalls import Event, Outcome, Verdict

from xtrrep import artifacts
from xtrrep.config import compose
from xtrrep.console import DataError, machine_error
from xtrrep.retrieval.engines import Place, engine_of
from xtrrep.retrieval.engines.files import check_written
from xtrrep.retrieval.engines.native import panics

REASON = syscalls.why_not()
supervised = pytest.mark.skipif(REASON is not None, reason=str(REASON))
WORDS = ("evaluate", "data=beir/mini/test", "index=bm25")
CASE = Case("evaluate", "bm25", WORDS)  # from an empty home: data, index, retrieve, evaluate


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    stages.warm(stages.WORDS)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    write_collection(tmp_path / "data" / "mini")
    return Bench(tmp_path)


@supervised
def test_killed_anywhere_the_same_command_ends_in_the_same_bytes(bench: Bench) -> None:
    trials = list(matrix(bench, {CASE: Plan(injected=12, by_time=1, full=4, interrupted=3)}))
    assert not [fault for trial in trials for fault in trial.faults], table(trials)
    kinds = [trial.point.kind for trial in trials]
    assert len(trials) == 20
    assert {"write", "rename", "fsync", "manifest", "create", "time", FULL, INTERRUPT} <= set(kinds)
    assert "20        20" in table(trials).splitlines()[-1]


@supervised
@pytest.mark.parametrize("spoil", [broken.write_in_place, broken.write_manifest_first])
def test_a_broken_writer_is_seen(tmp_path: Path, spoil: Callable[[], None]) -> None:
    write_collection(tmp_path / "data" / "mini")
    trials = list(matrix(Bench(tmp_path, spoil), {CASE: Plan(injected=6)}))
    failed = sum(bool(trial.faults) for trial in trials)
    assert failed
    assert f"6 {6 - failed:>9}" in table(trials).splitlines()[-1]


@supervised
def test_a_supervised_write_is_cut_in_half_and_a_refused_one_raises(tmp_path: Path) -> None:
    def write() -> int:
        with (tmp_path / "file").open("wb", buffering=0) as file:
            file.write(b"0123")
            file.write(b"456789")
        os.rename(tmp_path / "file", tmp_path / "done")
        return 0

    def at(wanted: int, verdict: Verdict | int) -> Outcome:
        (tmp_path / "done").unlink(missing_ok=True)
        return syscalls.run(
            write, tmp_path, decide=lambda number, event: verdict if number == wanted else Verdict.go_on
        )

    whole = at(-1, Verdict.go_on)
    assert whole.code == 0
    assert whole.events[1:] == [Event("write", "write", "file")] * 2 + [Event("rename", "rename", "file", "done")]
    assert (tmp_path / "done").read_bytes() == b"0123456789"
    assert at(2, Verdict.torn).code == -9
    assert (tmp_path / "file").read_bytes() == b"0123456"
    assert at(3, Verdict.kill).code == -9
    assert not (tmp_path / "done").exists()
    assert "Read-only file system" in at(1, errno.EROFS).output
    assert "KeyboardInterrupt" in at(1, Verdict.interrupt).output


@supervised
def test_a_small_array_that_does_not_fit_is_no_file(tmp_path: Path) -> None:
    """numpy by itself says nothing when the last of an array finds a full disk."""
    path = tmp_path / "a.npy"

    def write() -> int:
        artifacts.write_atomic(path, lambda file: np.save(file, np.arange(10)))
        return 0

    events = syscalls.run(write, tmp_path, decide=lambda number, event: Verdict.go_on).events
    path.unlink()
    for refused in [number for number, event in enumerate(events) if event.kind == "write"]:
        outcome = syscalls.run(
            write, tmp_path, decide=lambda number, event, at=refused: errno.ENOSPC if number == at else Verdict.go_on
        )
        assert "No space left on device" in outcome.output
        assert not list(tmp_path.iterdir())


def test_a_failure_of_an_engine_has_a_hint_and_a_full_disk_its_own() -> None:
    for message, says in (("EOF while parsing", "xtrrep doctor"), ("No space left on device", "larger disk")):
        with pytest.raises(DataError, match=message) as caught, panics("plaid", "while building"):
            raise ValueError(message)
        assert says in str(caught.value.hint)


def test_an_array_that_was_cut_short_is_not_recorded(tmp_path: Path) -> None:
    for shape in ((0,), (3, 2)):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        check_written(tmp_path)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"a\.npy was not written whole"):
        check_written(tmp_path)


# --- what is lacking is said in one line -----------------------------------------------------------------------------


def said(outcome: Outcome) -> str:
    """The error and the hint of a run that ended with one of each, exit code 3 and no traceback."""
    lines = outcome.output.splitlines()
    assert outcome.code == 3, outcome.output
    assert "Traceback" not in outcome.output, outcome.output
    found = [line for line in lines if line.startswith(("error:", "hint:"))]
    assert [line.split(":")[0] for line in found] == ["error", "hint"], outcome.output
    return "\n".join(found)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 512 kB."""
    place = tmp_path / "small disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def test_a_full_disk(bench: Bench, disk: Path) -> None:
    """Filled to the last kilobytes, at several sizes; with room again the same command ends as if nothing had been."""
    record(bench, CASE)
    expected = contents(bench.unbroken(CASE.name))
    for free in (0, 8_000, 40_000):
        home = disk / f"home {free}"
        home.mkdir()
        filler = disk / "filler"
        room = os.statvfs(disk)
        filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free)))
        text = said(bench.run(CASE, home))
        assert "No space left on device" in text
        assert "XTRREP_HOME" in text
        assert not list(home.rglob(".*.tmp"))
        filler.unlink()
        assert bench.run(CASE, home).code == 0
        assert differences(expected, contents(home)) == []
        assert misrecorded(home) == []


def test_a_read_only_disk(bench: Bench, disk: Path) -> None:
    home = disk / "home"
    home.mkdir()
    remount(disk, "ro")
    text = said(bench.run(CASE, home))
    assert "Read-only file system" in text
    assert str(disk) in text
    remount(disk, "rw")
    assert bench.run(CASE, home).code == 0
    before = contents(home)
    remount(disk, "ro")  # what is made can be used from there
    again = bench.run(CASE, home)
    assert again.code == 0, again.output
    assert contents(home) == before


def limited(bench: Bench, home: Path, limit: int, value: int) -> Outcome:
    """The run under a resource limit."""

    def lower() -> None:
        resource.setrlimit(limit, (value, value))

    home.mkdir(exist_ok=True)
    return Bench(bench.work, lower).run(CASE, home)


def test_no_more_open_files(bench: Bench, tmp_path: Path) -> None:
    """With more allowed each time: refused in one line until there are enough."""
    texts = []
    for allowed in (3, 4, 5, 6, 8, 12, 18, 27, 40, 60):
        outcome = limited(bench, tmp_path / "home", resource.RLIMIT_NOFILE, allowed)
        if outcome.code == 0:
            break
        texts.append(said(outcome))
    assert outcome.code == 0
    assert texts
    assert all("Too many open files" in text and "ulimit -n" in text for text in texts)
    assert misrecorded(tmp_path / "home") == []


def test_files_above_the_size_allowed(bench: Bench, tmp_path: Path) -> None:
    text = said(limited(bench, tmp_path / "home", resource.RLIMIT_FSIZE, 600))
    assert "File too large" in text
    assert "ulimit -f" in text
    assert bench.run(CASE, tmp_path / "home").code == 0
    assert misrecorded(tmp_path / "home") == []


def test_out_of_memory(bench: Bench, tmp_path: Path) -> None:
    from xtrrep.data import bm25

    def starve() -> None:
        def search(*_: object) -> object:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), used + (1 << 28)))
            return np.ones(1 << 27)  # 1 GiB, and there is a quarter of it

        bm25.Bm25.search = search  # type: ignore[method-assign]

    home = tmp_path / "home"
    home.mkdir()
    text = said(Bench(bench.work, starve).run(CASE, home))
    assert "out of memory" in text
    assert "machine.query_batch" in text
    assert bench.run(CASE, home).code == 0


@pytest.mark.parametrize(
    ("error", "says", "hint"),
    [
        (OSError(errno.ENOSPC, "", "a/b"), "No space left on device: a/b", "XTRREP_HOME"),
        (OSError(errno.EDQUOT, "", "a/b"), "quota", "XTRREP_HOME"),
        (OSError("400 requested and 12 written"), "could not be written", "free some space"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 96 vs 12"), "could not", "free some"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), "could not", "free some"),
        (RuntimeError("basic_ios::clear: iostream error"), "could not be written", "free some space"),
        (ValueError("I/O error: No space left on device (os error 28)"), "could not be written", "free some space"),
        (OSError(errno.EIO, "", "x"), "error: x", "disk reports a fault"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory",
            "batch",
        ),
        (MemoryError(), "out of memory: MemoryError", "more memory"),
        (ImportError("x.so: failed to map segment from shared object"), "out of memory: x.so", "more memory"),
    ],
)
def test_what_the_machine_lacks_in_words(error: Exception, says: str, hint: str) -> None:
    found = machine_error(error)
    assert isinstance(found, DataError)
    assert says in str(found)
    assert hint in str(found.hint)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        ImportError("no module"),
        OSError(errno.ENOENT, "", "x"),
        DataError("No space left on device", hint="x"),
    ],
)
def test_other_failures_are_not_explained_away(error: Exception) -> None:
    assert machine_error(error) is None


def test_space_for_a_memory_map_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk answers such a write with a signal, not an error: PLAID's merged files are written so."""
    store = write_store(tmp_path, unit_vectors(np.random.default_rng(0), 30, 16))
    engine = engine_of(compose(["index=plaid"]).index)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="0 MB free, and a PLAID index of") as caught:
        engine.build(store, tmp_path / "out", Place())
    assert "larger disk" in str(caught.value.hint)
    assert not list((tmp_path / "out").iterdir())


def test_what_a_result_took_is_no_difference(tmp_path: Path) -> None:
    for name, seconds, value in (("a", 1, 0.5), ("b", 20, 0.5), ("c", 1, 0.6)):
        (tmp_path / name).mkdir()
        made = {"provenance": {"date": f"2026-01-0{seconds % 9}", "seconds": seconds}, "mean": value}
        artifacts.write_json(tmp_path / name / "result.json", made)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


@pytest.mark.slow
@supervised
def test_the_whole_matrix() -> None:
    done = subprocess.run([sys.executable, "-m", "faults"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
