"""Where a checkout lies: a path with spaces and letters of many kinds, parts of it on another disk or not writable."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xtrrep import artifacts
from xtrrep.artifacts import Spec
from xtrrep.artifacts.gc import find, remove

ROOT = Path(__file__).parents[1]
OTHER = Path("/dev/shm")  # a file system in memory, on every Linux

# In mounts of its own, which end with the process: results/ on another file system, configs/ read-only.
MOUNTED = """
set -eu
mount -t tmpfs -o size=64m tmpfs results
mount --bind configs configs
mount -o remount,ro,bind configs
if touch configs/probe 2>/dev/null; then exit 9; fi
"$PYTHON" -m xtrrep eval data=beir/mini/test index=bm25
"$PYTHON" -m xtrrep eval data=beir/mini/test index=bm25 >&2
"$PYTHON" -m xtrrep verify >&2
stat -c %d . results results/runs/evaluate
"""


def test_a_checkout_in_an_odd_place(tmp_path: Path, collections: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs root and unshare(1) for mounts of its own")
    place = tmp_path / "un café à 東京" / "x t"
    for name in ("xtrrep", "configs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    home = tmp_path / "nobody's"
    for folder in (place / "results", home):
        folder.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XTRREP", "LC_", "LANG", "PYTHON"))}
    settings = {"HOME": str(home), "XTRREP_DATA": str(collections), "PYTHONPATH": str(place), "PYTHON": sys.executable}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", MOUNTED], cwd=place, env=kept | settings, capture_output=True, timeout=300
    )
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert b"nDCG@10" in done.stdout
    assert "0 stages run" in said
    here, results, made = done.stdout.split()[-3:]
    assert results == made != here
    assert sorted(path.name for path in (place / "artifacts").iterdir() if path.name[0] != ".") == ["data", "index"]
    assert not list((place / "results").iterdir())  # what was made there lay in the mount, and went with it
    assert not list(place.rglob(".partial-*"))


def test_no_rename_leaves_its_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are a link to another disk, where nothing can be renamed to from here."""
    if not OTHER.is_dir() or OTHER.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{OTHER} is no other file system than {tmp_path}")
    other = OTHER / f"xtrrep ü {os.getpid()}"
    (other / "runs").mkdir(parents=True)
    try:
        (tmp_path / "results").symlink_to(other)
        with pytest.raises(OSError, match="cross-device"):
            os.replace(other / "runs", tmp_path / "runs")
        monkeypatch.setenv("XTRREP_HOME", str(tmp_path))
        root = tmp_path / "results" / "runs"
        spec = Spec("retrieve", "made", 1, {"a": 1})
        folder = artifacts.make(spec, root, lambda out: artifacts.write_json(out / "x.json", [1]) or {})
        assert artifacts.check(folder, spec.fingerprint)["label"] == "made"
        assert [waste.path.name for waste in find() if waste.is_folder] == [folder.name]
        remove()
        assert not folder.exists()
    finally:
        shutil.rmtree(other)
