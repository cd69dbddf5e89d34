"""What a machine is set to changes no byte of a result, and its threads no measure."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ENGINES, TINY

from xtrrep import artifacts
from xtrrep.measure import run_file

ROOT = Path(__file__).parents[1]

CHEAP = ("bm25", "exact")

# On every core, wherever the tests run: on one a library has one thread, whether it was told so or not.
WORK = """
import json, os, sys
os.sched_setaffinity(0, range(os.cpu_count()))
import xtrrep
for home, threads in json.loads(sys.argv[1]):
    os.environ["XTRREP_HOME"] = home
    for words in json.loads(sys.argv[2]):
        xtrrep.run_config(*json.loads(sys.argv[3]), *words, f"machine.threads={threads}")
"""


def work(folder: Path, homes: dict[str, int], data: Path, engines: Sequence[str], **settings: str) -> None:
    """Evaluate the untrained model on engines in a fresh process in `folder`, once a home and thread count."""
    folder.mkdir()
    words = [*TINY, "model.source=untrained", "model.seed=3"]
    listed = [[str(folder / name), count] for name, count in homes.items()]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    done = subprocess.run(
        [sys.executable, "-c", WORK, *map(json.dumps, (listed, [ENGINES[name] for name in engines], words))],
        cwd=folder,
        env=kept | {"XTRREP_DATA": str(data), "PYTHONPATH": str(ROOT)} | settings,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def made(home: Path) -> dict[str, Any]:
    """Every file of every artifact by its path, without what says when and how long."""
    found: dict[str, Any] = {}
    for root in (home, home / "results" / "runs"):
        for folder, manifest in artifacts.complete(root):
            for name in manifest["files"]:
                found[f"{folder.relative_to(home)}/{name}"] = (folder / name).read_bytes()
            kept = {key: value for key, value in manifest.items() if key not in ("made", "seconds", "checksum")}
            found[str(folder.relative_to(home))] = kept
    return found


@pytest.fixture(scope="module")
def locale(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Turkish, with a comma for a point, another upper case of i, and no UTF-8; C where it cannot be compiled here."""
    folder = tmp_path_factory.mktemp("locale")
    if shutil.which("localedef"):
        words = ["localedef", "-i", "tr_TR", "-f", "ISO-8859-9", str(folder / "tr_TR.ISO-8859-9")]
        if not subprocess.run(words, capture_output=True).returncode:
            return {"LOCPATH": str(folder), "LC_ALL": "tr_TR.ISO-8859-9"}
    return {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory, collections: Path, locale: dict[str, str]) -> dict[str, Path]:
    """The same work in two processes that differ in everything a machine can be set to; in one also on two threads."""
    base = tmp_path_factory.mktemp("work")
    data = base / "data"
    shutil.copytree(collections, data)
    # An id that is no ASCII, and a text whose lower case depends on where one is.
    corpus = data / "mini" / "corpus.jsonl"
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    rows.append({"_id": "dü–İ", "title": "I", "text": "TITLE of a café, NODE I İ ı edge path w1a"})
    corpus.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    work(base / "one", {"home": 1}, data, CHEAP, PYTHONHASHSEED="0", TZ="UTC", LC_ALL="C.UTF-8")
    work(
        base / "another place", {"home": 1, "two": 2}, data, CHEAP, PYTHONHASHSEED="4242", TZ="Asia/Kathmandu", **locale
    )
    return {
        "one": base / "one" / "home",
        "other": base / "another place" / "home",
        "threads": base / "another place" / "two",
    }


def test_nothing_of_the_machine_changes_a_byte(homes: dict[str, Path]) -> None:
    """Hash seed, locale, time zone, working directory and home."""
    one, other = made(homes["one"]), made(homes["other"])
    assert len([name for name in one if name.endswith("run.trec")]) == 2
    assert any("dü–İ".encode() in data for name, data in one.items() if name.endswith("run.trec"))
    assert one.keys() == other.keys()
    for name in one:
        if isinstance(one[name], dict):  # a rate or a time of search is a measurement
            assert one[name]["files"] == other[name]["files"]
            assert one[name]["config"] == other[name]["config"]
        else:
            assert one[name] == other[name], name


def test_threads_are_recorded_and_change_no_score(homes: dict[str, Path]) -> None:
    one, two = made(homes["one"]), made(homes["threads"])
    assert one.keys() == two.keys()  # threads are no part of an identity
    counts = {
        folder: [world[folder]["facts"].get(key) for world in (one, two) for key in ("threads", "blas_threads")]
        for folder in one
        if isinstance(one[folder], dict) and folder.startswith(("documents", "queries", "results/runs/retrieve/exact"))
    }
    assert len(counts) == 3
    assert all(found == [1, 1, 2, 2] for found in counts.values()), counts
    vectors = [name for name in one if name.startswith(("documents", "queries")) and name.endswith(".npy")]
    assert len(vectors) == 6
    for name in vectors:
        assert one[name] == two[name], name
    runs = [
        [run_file.read(path) for path in sorted(home.rglob("run.trec"))] for home in (homes["one"], homes["threads"])
    ]
    for first, second in zip(*runs, strict=True):
        assert first.keys() == second.keys()
        for query in first:
            assert dict(second[query]) == pytest.approx(dict(first[query]), abs=1e-5)
    for folder in one:
        if folder.startswith("results/runs/evaluate") and isinstance(one[folder], dict):
            measures = [world[folder]["facts"]["measures"] for world in (one, two)]
            assert measures[0] == pytest.approx(measures[1], abs=1e-5)


@pytest.mark.slow
def test_every_engine_twice_in_fresh_processes(tmp_path: Path, collections: Path) -> None:
    for number in ("1", "2"):
        work(tmp_path / number, {"home": 1}, collections, list(ENGINES), PYTHONHASHSEED=number)
    first, second = (made(tmp_path / number / "home") for number in ("1", "2"))
    runs = {name: data for name, data in first.items() if name.endswith("run.trec")}
    assert len(runs) == len(ENGINES)
    assert first.keys() == second.keys()
    assert {name: second[name] for name in runs} == runs


def unnamed_encodings(source: str) -> list[str]:
    """Places where a text file is read or written in whatever encoding the locale says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        of_tar = ast.unparse(node.func) == "tarfile.open"
        texts = name == "open" and not of_tar and (not node.args or (modes and "b" not in modes[-1]))
        named = len(node.args) > {"read_text": 0, "write_text": 1}.get(name, 99)  # the encoding, by its place
        if (name in ("read_text", "write_text") and not named) or texts:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_every_text_file_is_utf_8() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "xtrrep").rglob("*.py"))
        for line in unnamed_encodings(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source", ["path.read_text()", "path.open()", "path.open('w')", "open(path, 'r')", "p.write_text(x)"]
)
def test_the_check_of_encodings_sees(source: str) -> None:
    assert unnamed_encodings(source)
    assert not unnamed_encodings("path.open('rb')\npath.read_text(encoding='utf-8')\nStore.open(folder)\nos.open(p, 0)")
