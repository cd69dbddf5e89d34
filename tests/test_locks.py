"""Several processes on one folder of results. They import `xtrrep.artifacts` alone, and so take milliseconds."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from xtrrep import artifacts
from xtrrep.artifacts import Spec, locks

MAKER = """
import sys, time
from pathlib import Path
from xtrrep.artifacts import Spec, make
root, name, wait = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def run(out):
    (out / "by").write_text(name)
    print("making", flush=True)
    if wait:
        sys.stdin.readline()
    return {"by": name}

print(make(Spec("stage", "label", 1, {"name": name}), root, run), flush=True)
"""


def start(root: Path, name: str, wait: str = "") -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", MAKER, str(root), name, wait], text=True, **pipes)  # type: ignore[call-overload]


def line_of(child: subprocess.Popen[str], stream: str = "stdout") -> str:
    return str(getattr(child, stream).readline()).strip()


def test_one_builds_and_the_other_waits_and_says_so(tmp_path: Path) -> None:
    first = start(tmp_path, "same", "wait")
    assert line_of(first) == "making"
    second = start(tmp_path, "same")
    assert line_of(second, "stderr").startswith("waiting: another process is making stage/label-")
    made, _ = first.communicate("go on\n", timeout=60)
    found, _ = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert found == made  # and "making" was printed once
    assert [path.name for path in (tmp_path / "stage").glob("[!.]*")] == [Path(made.strip()).name]


def test_a_dead_builders_lock_is_taken_over_by_who_waits(tmp_path: Path) -> None:
    first = start(tmp_path, "same", "wait")
    assert line_of(first) == "making"
    second = start(tmp_path, "same")
    assert line_of(second, "stderr").startswith("waiting:")
    os.kill(first.pid, signal.SIGKILL)
    found, _ = second.communicate(timeout=60)
    first.communicate()
    assert second.returncode == 0
    assert found.startswith("making\n")
    assert artifacts.check(Path(found.splitlines()[1]))["facts"] == {"by": "same"}


def test_different_artifacts_are_made_side_by_side(tmp_path: Path) -> None:
    children = [start(tmp_path, name, "wait") for name in ("one", "two")]
    assert [line_of(child) for child in children] == ["making"] * 2  # both at once: neither was told to go on
    for child in reversed(children):
        child.communicate("go on\n", timeout=60)
        assert child.returncode == 0
    assert len(artifacts.complete(tmp_path)) == 2


MANY = """
import random, sys
from pathlib import Path
from xtrrep import artifacts
from xtrrep.artifacts import hashes
from xtrrep.artifacts import Spec, check, make
hashes.ALWAYS, hashes.END, hashes.SETTLED = 1000, 100, -1.0
root, me = Path(sys.argv[1]), sys.argv[2]
numbers = list(range(12))
random.Random(me).shuffle(numbers)
made = 0

def run(out, number):
    global made
    made += 1
    (out / "data").write_bytes(random.Random(number).randbytes(4000))
    (out / "by").write_text(me)
    return {"number": number}

for number in numbers:
    spec = Spec("stage", f"n{number}", 1, {"number": number})
    check(make(spec, root, lambda out: run(out, number)), spec.fingerprint)
    assert len(artifacts.complete(root)) >= 1
print(made)
"""


def test_sixteen_processes_on_one_folder_lose_nothing(tmp_path: Path) -> None:
    """Each makes or finds the same twelve artifacts in its own order and checks every one, records included."""
    children = [
        subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path), str(me)], stdout=subprocess.PIPE, text=True)
        for me in range(16)
    ]
    printed = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0] * 16
    assert sum(map(int, printed)) == 12  # every artifact once
    found = artifacts.complete(tmp_path)
    assert sorted(manifest["facts"]["number"] for _, manifest in found) == list(range(12))
    for folder, _ in found:
        artifacts.check(folder)
    assert not list((tmp_path / "stage").glob(".partial-*"))
    records = list((tmp_path / ".verified" / "stage").iterdir())
    assert len(records) == 12
    for record in records:
        assert set(json.loads(record.read_text())) == {"data"}


def test_a_lock_file_deleted_while_someone_waits_locks_nobody_out(tmp_path: Path) -> None:
    """`xtrrep gc` deletes lock files: who waited for the old one must not hold it beside the next one's holder."""
    path = tmp_path / "stage" / f".{Spec('stage', 'label', 1, {'name': 'same'}).fingerprint}.lock"
    with locks.lock(path, "the test"):
        waiter = start(tmp_path, "same", "wait")
        assert line_of(waiter, "stderr").startswith("waiting:")
        path.unlink()
    assert line_of(waiter) == "making"
    assert locks.is_held(path)  # the file that lies there now, not the deleted one
    waiter.communicate("go on\n", timeout=60)
    assert not locks.is_held(path)


def test_work_is_shared_and_deleting_is_alone(tmp_path: Path) -> None:
    with locks.at_work(tmp_path), locks.at_work(tmp_path), locks.alone(tmp_path / locks.IN_USE) as ours:
        assert not ours
    with locks.alone(tmp_path / locks.IN_USE) as ours:
        assert ours
    (tmp_path / "file").write_text("")
    with locks.at_work(tmp_path / "file"):  # no folder to be had there: what fails says so better
        pass


def test_a_share_and_another_are_at_work_together_and_who_finishes_waits_for_both(tmp_path: Path) -> None:
    spec, said = Spec("stage", "label", 1, {"name": "same"}), []

    def finish() -> None:
        artifacts.make(spec, tmp_path, lambda out: {"found": sorted(path.name for path in out.iterdir())})
        said.append("finished")

    finisher = threading.Thread(target=finish)

    def outer(out: Path) -> None:
        artifacts.share(spec, tmp_path, lambda same: (same / "inner").write_text(str(same == out)))
        finisher.start()
        while "finished" not in said and not waits(artifacts.lock_of(spec, tmp_path)):
            time.sleep(0.01)
        (out / "outer").write_text("")
        said.append("shared")

    artifacts.share(spec, tmp_path, outer)
    finisher.join(timeout=60)
    assert said == ["shared", "finished"]
    assert artifacts.check(artifacts.folder_of(spec, tmp_path))["facts"] == {"found": ["inner", "outer"]}
    assert (artifacts.folder_of(spec, tmp_path) / "inner").read_text() == "True"


def waits(path: Path) -> bool:
    """Whether somebody waits for a lock file, as the kernel lists it."""
    inode = f":{path.stat().st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())
