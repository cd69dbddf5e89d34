"""A file that is not as it was written is named, and no score comes out: every stage, every file, every damage."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ENGINES, TINY

from xtrrep import artifacts, cli, config, pipeline
from xtrrep.artifacts import hashes
from xtrrep.artifacts.verify import fingerprint_of
from xtrrep.console import DataError
from xtrrep.experiments.analysis import AnalysisPlan, plan_analysis, run_analysis
from xtrrep.experiments.cell import parse_overrides
from xtrrep.pipeline import identity

SECRET = "hf_aTokenThatMustNotBeKept"
ANALYSIS = (
    *TINY,
    "analyze.name=geometry",
    "analyze.models=[xtr_k128]",
)


@dataclass(frozen=True)
class World:
    home: Path
    plans: dict[str, pipeline.Plan]
    analysis: AnalysisPlan

    @property
    def folders(self) -> dict[str, Path]:
        """Every artifact by stage and engine, those that hold no files left out."""
        found = {}
        for root in (self.home, self.home / "results" / "runs"):
            for folder in artifacts.folders(root):
                if files_of(folder):
                    found[f"{folder.parent.name}/{folder.name}"] = folder
        return found


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != artifacts.MANIFEST]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, collections: Path) -> Iterator[World]:
    """Everything run once and read twice, with records of files of every size."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTRREP_HOME", str(home))
        patch.setenv("XTRREP_DATA", str(collections))
        patch.setenv("HF_TOKEN", SECRET)
        patch.setattr(hashes, "ALWAYS", 16)
        patch.setattr(hashes, "END", 8)
        patch.setattr(hashes, "SETTLED", -1.0)
        plans = {name: words_plan(*words) for name, words in ENGINES.items()}
        pipeline.run(list(plans.values()))
        analysis = plan_analysis(parse_overrides(ANALYSIS))
        for _ in range(2):
            run_analysis(analysis)
        pipeline.run(list(plans.values()))
        yield World(home, plans, analysis)


def words_plan(*words: str) -> pipeline.Plan:
    return pipeline.plan(config.compose([*TINY, *words]), "evaluate")


def read(world: World, folder: Path) -> None:
    """What a command that stands on an artifact does: re-use it."""
    fingerprint = fingerprint_of(folder)
    for plan in world.plans.values():
        if fingerprint in {step.spec.fingerprint for step in plan.steps}:
            pipeline.run([plan])
            return
    run_analysis(world.analysis)


def flip(path: Path, other: Path) -> None:
    """One bit, size and time of the file as they were."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def truncate(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def delete(path: Path, other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


DAMAGES: dict[str, Callable[[Path, Path], None]] = {"flip": flip, "truncate": truncate, "delete": delete, "swap": swap}


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_file_of_any_artifact(world: World, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    stages, tried = set(), 0
    for folder in world.folders.values():
        files = files_of(folder)
        for path in files:
            whole = path.read_bytes()
            other = next((file for file in files if file.read_bytes() != whole), folder / artifacts.MANIFEST)
            if not whole and damage in ("flip", "truncate"):
                continue
            DAMAGES[damage](path, other)
            try:
                with pytest.raises(DataError) as caught:
                    read(world, folder)
            finally:
                path.write_bytes(whole)
            assert str(path) in str(caught.value), "the file is named"
            assert f"rm -r {folder}" in str(caught.value.hint), "and what to do"
            tried += 1
        stages.add(folder.parent.name)
        read(world, folder)  # whole again
    assert stages == {"triples", "train", "documents", "queries", "index", "retrieve", "evaluate", "analyze"}
    assert tried > 60
    capsys.readouterr()


@pytest.mark.parametrize("stage", ["train", "documents", "index", "retrieve", "evaluate"])
def test_the_command_says_which_file_and_prints_no_score(
    world: World, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = world.plans["bm25" if stage == "index" else "exact"].specs
    folder = artifacts.folder_of(specs[stage], world.plans["exact"].steps[0].stage.root())
    if not folder.exists():
        folder = artifacts.folder_of(specs[stage], config.results_root())
    words = ["eval", *TINY, "--index", "bm25" if stage == "index" else "exact"]
    path = max(files_of(folder), key=lambda file: file.stat().st_size)
    whole = path.read_bytes()
    flip(path, path)
    try:
        assert cli._run(words) == 3
        said = capsys.readouterr()
        assert said.out == ""
        assert f"error: {path} is not as it was written" in said.err
        assert f"hint: rm -r {folder} and run again" in said.err
        # `verify` reads all and says the same, of this artifact alone.
        assert cli._run(["verify", "--json"]) == 3
        broken = [entry for entry in json.loads(capsys.readouterr().out) if not entry["fine"]]
        assert [entry["folder"] for entry in broken] == [str(folder)]
        assert [str(path) in fault for fault in broken[0]["faults"]] == [True]
    finally:
        path.write_bytes(whole)
    assert cli._run(words) == 0
    assert "nDCG@10" in capsys.readouterr().out


def test_verify_reads_what_no_record_doubts(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A disk that decays changes no time: only the middle of a file, which nothing but a full reading sees."""
    folder = artifacts.folder_of(world.plans["exact"].specs["documents"], world.home)
    path = folder / "vectors" / "00000.npy"
    whole = path.read_bytes()
    flip(path, path)
    record = hashes.record_of(folder)
    entries = json.loads(record.read_text())
    entries["vectors/00000.npy"][1:3] = [path.stat().st_mtime_ns, path.stat().st_ctime_ns]
    record.write_text(json.dumps(entries))
    hashes._kept.clear()
    artifacts.check(folder)
    assert cli._run(["verify", "documents"]) == 3
    said = capsys.readouterr()
    assert "BROKEN" in said.out
    assert "00000.npy is not as it was written" in said.out
    assert "hint: rm -r" in said.out
    path.write_bytes(whole)
    assert cli._run(["verify", fingerprint_of(folder)[:8]]) == 0
    assert "1 artifacts, 0 broken" in capsys.readouterr().out
    assert cli._run(["verify", "documets"]) == 3
    assert "documents" in capsys.readouterr().err


def test_a_score_in_a_manifest_cannot_be_edited(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = artifacts.folder_of(world.plans["exact"].specs["evaluate"], config.results_root())
    path = folder / artifacts.MANIFEST
    whole = path.read_text()
    manifest = json.loads(whole)
    manifest["facts"]["measures"]["nDCG@10"] = 0.999
    path.write_text(json.dumps(manifest))
    assert cli._run(["eval", *TINY]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "manifest.json is not as it was written" in said.err
    path.write_text(whole)


def test_a_collection_that_changed_is_another_one(
    world: World, collections: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time set back: the hash of a local corpus is not taken from its record either."""
    shutil.copytree(collections / "mini", tmp_path / "mini")
    monkeypatch.setenv("XTRREP_DATA", str(tmp_path))
    path = tmp_path / "mini" / "corpus.jsonl"
    before = config.compose(["data=beir/mini/test", "index=bm25"])
    first = fresh_plan(before)
    assert fresh_plan(before) == first
    data = path.read_bytes()
    at = data.index(b"edge")
    stat = path.stat()
    path.write_bytes(data[:at] + b"node" + data[at + 4 :])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = fresh_plan(before)
    assert {stage for stage in first if first[stage] != second[stage]} == {"data", "index", "retrieve", "evaluate"}


@pytest.mark.parametrize(("stage", "file"), [("data", "corpus.jsonl"), ("evaluate", "qrels/test.tsv")])
def test_a_collection_that_changes_under_a_run_leaves_nothing(
    stage: str, file: str, world: World, collections: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content was hashed when the plan was made, and hours may lie between that and the reading."""
    shutil.copytree(collections / "mini", tmp_path / "data" / "mini")
    monkeypatch.setenv("XTRREP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    identity.look_again()
    cfg = config.compose(["data=beir/mini/test", "index=bm25"])
    if stage == "evaluate":
        pipeline.run([pipeline.plan(cfg, "retrieve")])
    plan = pipeline.plan(cfg, "evaluate")
    path = tmp_path / "data" / "mini" / file
    path.write_text(path.read_text().replace("node", "edge").replace("q3\td3", "q3\td4"))
    with pytest.raises(DataError, match=f"the stage {stage} reads was changed") as caught:
        pipeline.run([plan])
    assert "the same command" in str(caught.value.hint)
    assert not list((tmp_path / "home").glob(f"**/{stage}/*/manifest.json"))
    assert not list((tmp_path / "home").glob(f"**/{stage}/.partial-*"))
    again = pipeline.plan(cfg, "evaluate")
    assert again.specs[stage].fingerprint != plan.specs[stage].fingerprint
    pipeline.run([again])


def fresh_plan(cfg: config.Config) -> dict[str, str]:
    """Fingerprints by stage as another process would find them."""
    identity.look_again()
    return {name: spec.fingerprint for name, spec in pipeline.plan(cfg, "evaluate").specs.items()}


def test_no_secret_of_the_environment_is_in_any_file(world: World) -> None:
    files = [path for path in world.home.rglob("*") if path.is_file()]
    assert len(files) > 60
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
