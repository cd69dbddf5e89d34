"""Stage folders: complete or not there, found by content, checked before use."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrrep import artifacts
from xtrrep.artifacts import Spec, check, complete, digest, folder_of, is_complete, make
from xtrrep.console import DataError

SPEC = Spec("stage", "label", 1, {"a": 1}, {"up": "123"}, {"file": "abc"})


def write_one(out: Path) -> dict[str, Any]:
    (out / "deep").mkdir(exist_ok=True)
    (out / "deep" / "x.txt").write_text("hello")
    return {"n": 3}


def test_make_then_reuse(tmp_path: Path) -> None:
    calls = []
    for _ in range(2):
        folder = make(SPEC, tmp_path, lambda out: calls.append(1) or write_one(out))
    assert calls == [1]
    manifest = check(folder, SPEC.fingerprint)
    assert manifest["facts"] == {"n": 3}
    assert manifest["files"]["deep/x.txt"]["bytes"] == 5
    assert manifest["config"] == {"a": 1}
    assert [path for path, _ in complete(tmp_path)] == [folder]
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".partial")]


def test_a_failed_run_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    def fail(out: Path) -> dict[str, Any]:
        write_one(out)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        make(SPEC, tmp_path, fail)
    assert not is_complete(SPEC, tmp_path)
    assert complete(tmp_path) == []
    seen: list[bool] = []
    make(SPEC, tmp_path, lambda out: seen.append((out / "deep" / "x.txt").exists()) or write_one(out))
    assert seen == [True]  # the interrupted run's files are there to resume from


def test_label_is_not_identity(tmp_path: Path) -> None:
    folder = make(SPEC, tmp_path, write_one)
    other = Spec("stage", "another", 1, {"a": 1}, {"up": "123"}, {"file": "abc"})
    assert other.fingerprint == SPEC.fingerprint
    assert folder_of(other, tmp_path) == folder


@pytest.mark.parametrize(
    "other",
    [
        Spec("stage", "label", 2, {"a": 1}, {"up": "123"}, {"file": "abc"}),
        Spec("stage", "label", 1, {"a": 2}, {"up": "123"}, {"file": "abc"}),
        Spec("stage", "label", 1, {"a": 1}, {"up": "124"}, {"file": "abc"}),
        Spec("stage", "label", 1, {"a": 1}, {"up": "123"}, {"file": "abd"}),
        Spec("other", "label", 1, {"a": 1}, {"up": "123"}, {"file": "abc"}),
    ],
)
def test_everything_else_is(other: Spec) -> None:
    assert other.fingerprint != SPEC.fingerprint


def test_check_names_the_file_at_fault(tmp_path: Path) -> None:
    folder = make(SPEC, tmp_path, write_one)
    victim = folder / "deep" / "x.txt"
    victim.write_text("hell")
    with pytest.raises(DataError, match=r"x\.txt has 4 bytes, its manifest says 5") as caught:
        check(folder)
    assert "rm -r" in str(caught.value.hint)
    victim.unlink()
    with pytest.raises(DataError, match=r"x\.txt is missing"):
        check(folder)


def test_an_artifact_under_anothers_name_is_refused(tmp_path: Path) -> None:
    folder = make(SPEC, tmp_path, write_one)
    with pytest.raises(DataError, match="holds another artifact"):
        check(folder, "0" * 12)


def test_a_folder_without_a_manifest_is_not_there(tmp_path: Path) -> None:
    folder = make(SPEC, tmp_path, write_one)
    (folder / "manifest.json").unlink()
    (folder / "stray").write_text("x")
    assert make(SPEC, tmp_path, write_one) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["deep", "manifest.json"]


def test_an_empty_manifest_is_refused_and_listing_goes_on(tmp_path: Path) -> None:
    folder = make(SPEC, tmp_path, write_one)
    other = make(Spec("stage", "other", 1, {}), tmp_path, write_one)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="lacks keys"):
        check(folder)
    assert [path for path, _ in complete(tmp_path)] == [other]


def test_a_manifest_that_is_not_json(tmp_path: Path) -> None:
    folder = make(SPEC, tmp_path, write_one)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        check(folder)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())))
def test_digest_ignores_order_only(value: dict[str, Any]) -> None:
    shuffled = dict(reversed(list(value.items())))
    assert digest(value) == digest(shuffled)
    assert digest({**value, "extra key": 1}) != digest(value)


KILLED = """
import sys, time
from pathlib import Path
from xtrrep.artifacts import Spec, make
def run(out):
    (out / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
make(Spec("stage", "label", 1, {}), Path(sys.argv[1]), run)
"""


def test_a_killed_builder_is_not_complete_and_its_lock_is_gone(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    spec = Spec("stage", "label", 1, {})
    assert not is_complete(spec, tmp_path)
    start = time.monotonic()
    folder = make(spec, tmp_path, lambda out: {"found": (out / "half").exists()})
    assert time.monotonic() - start < 10
    assert artifacts.read_manifest(folder)["facts"] == {"found": True}


def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    """A store's shards are found by their names: one more would be searched."""
    folder = make(SPEC, tmp_path, write_one)
    (folder / "deep" / ".nfs01").write_text("the file system's own")
    check(folder)
    (folder / "deep" / "y.txt").write_text("more")
    with pytest.raises(DataError, match=r"y\.txt is no file of this artifact"):
        check(folder)


def test_a_manifest_is_as_it_was_written(tmp_path: Path) -> None:
    """Every bit of it: facts are scores that tables print."""
    facts = {"measures": {"nDCG@10": 0.25}, "pair": (1, 2), "by number": {2: "b", 10: "a"}, "name": "ü"}
    folder = make(SPEC, tmp_path, lambda out: facts)
    path, found = folder / "manifest.json", artifacts.read_manifest(folder)
    assert found["facts"]["pair"] == [1, 2]
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 7]) + whole[at + 1 :])
        try:
            again = artifacts.read_manifest(folder)
        except DataError:
            refused += 1
        else:  # white space, or the name of the checksum itself
            assert {**again, "checksum": 0} == {**found, "checksum": 0} or "checksum" not in again
    assert refused > 0.7 * len(whole)
    path.write_bytes(whole.replace(b"0.25", b"0.75"))
    with pytest.raises(DataError, match="checksum") as caught:
        check(folder)
    assert "rm -r" in str(caught.value.hint)


def test_a_manifest_of_the_first_versions_has_no_checksum(tmp_path: Path) -> None:
    folder = make(SPEC, tmp_path, write_one)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert check(folder)["facts"] == {"n": 3}


def test_what_is_made_already_is_checked_before_it_is_handed_out(tmp_path: Path) -> None:
    folder = make(SPEC, tmp_path, write_one)
    (folder / "deep" / "x.txt").write_text("jello")
    with pytest.raises(DataError, match=r"x\.txt is not as it was written"):
        make(SPEC, tmp_path, write_one)
