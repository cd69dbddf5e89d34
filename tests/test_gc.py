"""What nothing needs is shown, and removed when asked; what a result stands on, or a record cites, never is."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xtrrep import artifacts, cli, config
from xtrrep.artifacts import Spec, gc, hashes, locks
from xtrrep.artifacts.verify import fingerprint_of
from xtrrep.console import DataError

Made = dict[str, Path]


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(config, "recorded_root", lambda: tmp_path / "recorded")
    return tmp_path / "home", tmp_path / "home" / "results" / "runs"


def fill(out: Path) -> dict[str, Any]:
    (out / "file").write_bytes(b"x" * 1000)
    return {}


def make(root: Path, stage: str, name: str, up: dict[str, str] | None = None, **content: str) -> str:
    """A small artifact; its fingerprint."""
    spec = Spec(stage, name, 1, {"name": name}, up or {}, content)
    artifacts.make(spec, root, fill)
    return spec.fingerprint


@pytest.fixture
def world(roots: tuple[Path, Path]) -> dict[str, str]:
    """Two chains from collection to run, of which the first was evaluated; a model that only one of them has."""
    home, runs = roots
    found = {"data": make(home, "data", "data", corpus="c1", qrels="q1")}
    found["other data"] = make(home, "data", "other", corpus="c2", qrels="q2")
    found["triples"] = make(home, "triples", "triples", {"data": make(home, "data", "train", corpus="c3")})
    for n in ("a", "b"):
        found[f"model {n}"] = make(home, "train", n, {"triples": found["triples"]} if n == "a" else {})
        found[f"documents {n}"] = make(home, "documents", n, {"model": found[f"model {n}"]}, corpus="c1")
        found[f"index {n}"] = make(home, "index", n, {"documents": found[f"documents {n}"]})
        found[f"run {n}"] = make(runs, "retrieve", n, {"index": found[f"index {n}"]})
    found["evaluation"] = make(runs, "evaluate", "a", {"run": found["run a"]}, qrels="q1")
    for root in roots:
        for path in root.glob("*/.*.lock"):
            path.unlink()
    return found


UNNEEDED = {"other data", "documents b", "index b", "run b"}  # model b stays: it was trained


def there(roots: tuple[Path, Path]) -> set[str]:
    return {fingerprint_of(folder) for root in roots for folder in artifacts.folders(root)}


def test_what_no_result_stands_on(world: dict[str, str], roots: tuple[Path, Path]) -> None:
    waste = gc.find()
    assert {fingerprint_of(item.path) for item in waste} == {world[name] for name in UNNEEDED}
    assert all("no finished result" in item.why and item.bytes > 1000 for item in waste)
    assert {(item.stage, item.label) for item in waste} == {
        ("data", "other"), ("documents", "b"), ("index", "b"), ("retrieve", "b")
    }  # fmt: skip


def test_nothing_goes_without_yes(
    world: dict[str, str], roots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = there(roots)
    assert cli._run(["gc"]) == 0
    shown = capsys.readouterr().out
    assert "xtrrep gc --yes removes it" in shown
    assert "0 lock files" in shown
    assert shown.count("no finished result stands on it") == 4
    assert cli._run(["gc", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (len(found["waste"]), found["removed"]) == (4, False)
    assert found["bytes"] == sum(item["bytes"] for item in found["waste"]) > 4000
    assert there(roots) == before


def test_yes_removes_it_and_only_it(
    world: dict[str, str], roots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = there(roots)
    assert cli._run(["gc", "--yes"]) == 0
    assert "removed" in capsys.readouterr().out
    assert before - there(roots) == {world[name] for name in UNNEEDED}
    gc.remove()  # the lock files of the first
    assert gc.find() == []
    assert not [path for root in roots for path in root.glob(f"*/{gc.GONE}*")]
    assert not [path for root in roots for path in root.glob("*/.*.lock")]


def test_what_is_cited_stays_with_all_it_stands_on(
    world: dict[str, str], roots: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "recorded" / "deep").mkdir(parents=True)
    (tmp_path / "recorded" / "deep" / "table.csv").write_text(f"0.306,{world['run b']}\n")
    gc.remove()
    assert {world[f"{name} b"] for name in ("model", "documents", "index", "run")} <= there(roots)
    assert world["other data"] not in there(roots)


@pytest.mark.parametrize("stage", sorted(gc.RESULTS))
def test_every_kind_of_result_keeps_what_it_names(stage: str, world: dict[str, str], roots: tuple[Path, Path]) -> None:
    make(roots[1], stage, "result", {"I/xtr/run": world["run b"], "": "0123456789ab"})
    gc.remove()
    assert {world[f"{name} b"] for name in ("model", "documents", "index", "run")} <= there(roots)


def test_one_stage_or_one_artifact(world: dict[str, str], roots: tuple[Path, Path]) -> None:
    assert [item.stage for item in gc.find("index")] == ["index"]
    assert gc.find(world["index a"]) == []  # named, and needed all the same
    assert [item.stage for item in gc.remove(world["model b"][:6])] == ["train"]
    assert world["model b"] not in there(roots)
    with pytest.raises(DataError, match="no artifact here is 'indx'") as caught:
        gc.find("indx")
    assert "index" in str(caught.value.hint)


def interrupted(root: Path, name: str, age: float) -> Path:
    spec = Spec("index", name, 1, {"name": name})
    partial = root / "index" / f".partial-{name}-{spec.fingerprint}"
    partial.mkdir(parents=True)
    (partial / "half").write_bytes(b"y" * 500)
    then = time.time() - age
    os.utime(partial / "half", (then, then))
    return partial


def test_an_interrupted_run_goes_after_a_day(roots: tuple[Path, Path]) -> None:
    old, young = interrupted(roots[0], "old", 2 * gc.DAY), interrupted(roots[0], "young", gc.DAY / 2)
    (item,) = gc.remove()
    assert (item.path, item.label, item.bytes) == (old, "old", 500)
    assert 1.9 * gc.DAY < item.age < 2.1 * gc.DAY
    assert not old.exists()
    assert young.exists()


def test_one_that_is_still_running_stays_however_old(roots: tuple[Path, Path]) -> None:
    old = interrupted(roots[0], "old", 30 * gc.DAY)
    with locks.lock(old.with_name(f".{fingerprint_of(old)}.lock"), "it"):
        assert gc.find() == []
        with pytest.raises(DataError, match="at work"):
            gc.remove()
    assert old.exists()
    assert {item.path for item in gc.remove()} == {old, old.with_name(f".{fingerprint_of(old)}.lock")}


def test_nothing_is_removed_under_a_running_command(world: dict[str, str], roots: tuple[Path, Path]) -> None:
    before = there(roots)
    for root in roots:
        with locks.at_work(root), pytest.raises(DataError, match="nothing was removed"):
            gc.remove()
    assert there(roots) == before
    assert len(gc.find()) == 4


def test_an_unreadable_manifest_stops_all_removing(world: dict[str, str], roots: tuple[Path, Path]) -> None:
    """What its artifact stands on is not known: here the index of a finished evaluation."""
    (folder,) = (roots[1] / "retrieve").glob(f"*-{world['run a']}")
    (folder / "manifest.json").write_text("{")
    before = there(roots)
    with pytest.raises(DataError, match="not JSON"):
        gc.remove()
    assert there(roots) == before


def test_a_manifest_deleted_from_the_middle_of_a_chain_stops_it_too(
    world: dict[str, str], roots: tuple[Path, Path]
) -> None:
    (folder,) = (roots[0] / "index").glob(f"*-{world['index a']}")
    (folder / "manifest.json").unlink()
    before = there(roots)
    with pytest.raises(DataError, match="has no manifest, so it is not known"):
        gc.remove()
    assert there(roots) == before
    make(roots[0], "index", "a", {"documents": world["documents a"]})  # as the hint says
    gc.remove()
    assert before - there(roots) == {world[name] for name in UNNEEDED} - {world["index a"]}


def test_a_removal_cut_short_is_finished(
    world: dict[str, str], roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        (path / "file").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gc.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            gc.remove("index")
    assert world["index b"] not in there(roots)  # nothing that looks complete
    (left,) = (roots[0] / "index").glob(f"{gc.GONE}*")
    assert left in {item.path for item in gc.find()}
    gc.remove()
    assert not left.exists()


def test_records_of_what_is_gone_go_too(roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "ALWAYS", 0)
    monkeypatch.setattr(hashes, "END", 10)
    monkeypatch.setattr(hashes, "SETTLED", -1.0)
    fingerprints = [make(roots[0], "index", name) for name in ("a", "b")]
    folders = [next((roots[0] / "index").glob(f"*-{fingerprint}")) for fingerprint in fingerprints]
    for folder in folders:
        artifacts.check(folder)
    records = [hashes.record_of(folder) for folder in folders]
    assert all(record.exists() for record in records)
    (folders[0] / "manifest.json").unlink()
    (folders[0] / "file").unlink()
    folders[0].rmdir()  # by hand
    gc.remove()
    assert not any(record.exists() for record in records)


def test_other_peoples_files_stay(roots: tuple[Path, Path]) -> None:
    mine: list[Callable[[Path], Path]] = [
        lambda root: root / "notes.txt",
        lambda root: root / "weights" / "teacher-eb8d12eec2a0" / "model.safetensors",
        lambda root: root / "weights" / ".teacher.lock",
        lambda root: root / "index" / ".hidden",
    ]
    for place in mine:
        place(roots[0]).parent.mkdir(parents=True, exist_ok=True)
        place(roots[0]).write_text("mine")
    gc.remove()
    assert all(place(roots[0]).exists() for place in mine)


def test_empty_folders_have_no_waste(roots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["gc"]) == 0
    assert cli._run(["gc", "--yes"]) == 0
    assert cli._run(["verify"]) == 0
    capsys.readouterr()
