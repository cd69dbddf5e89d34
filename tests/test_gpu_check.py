"""scripts/gpu_check.sh: what it runs, that a failing piece stops nothing, and what it leaves. No GPU, no torch."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.sh"
# In place of Python: says how many GPUs there are, notes what it was asked for, fails where it was told to.
STUB = """#!/bin/sh
if [ "$1" = -c ]; then echo "$GPUS"; exit; fi
echo "$*" >>"$CALLS"
case "$*" in *"$FAILS"*) echo "this went wrong"; exit 3 ;; esac
"""


def check(folder: Path, **env: str) -> tuple[int, str, list[str]]:
    """The exit status, the record (or what was said in its place) and what was run."""
    stub, calls = folder / "python", folder / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)
    calls.touch()
    settings = {"PYTHON": str(stub), "CALLS": str(calls), "OUT": str(folder / "out"), "FAILS": "nothing", "TINY": ""}
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True, env=os.environ | settings | env, timeout=60)
    record = folder / "out" / "gpu_check.md"
    return done.returncode, record.read_text() if record.exists() else done.stderr, calls.read_text().splitlines()


def test_every_piece_runs_and_is_recorded(tmp_path: Path) -> None:
    code, record, calls = check(tmp_path, GPUS="2")
    assert code == 0
    for name in ("doctor", "tests", "objective", "encode", "search", "calibrate", "pipeline", "two-gpus"):
        assert f"| {name} | fine |" in record
    assert len(calls) == 8
    assert sum("--device cuda" in call for call in calls) == 3
    assert "--nproc-per-node=2" in calls[-1]


def test_a_piece_that_fails_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.md").write_text("mine")
    code, record, calls = check(tmp_path, GPUS="1", FAILS="bench_gpu.py objective")
    assert code == 1
    assert "| objective | FAILED, exit 3 |" in record
    assert "| pipeline | fine |" in record
    assert "| two-gpus | not run: it needs two GPUs, here are 1 | 0 |" in record
    assert len(calls) == 7
    assert "this went wrong" in (tmp_path / "out" / "pieces" / "objective.log").read_text()
    assert (tmp_path / "out" / "notes.md").read_text() == "mine"


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    code, said, calls = check(tmp_path, GPUS="0")
    assert code == 1
    assert "torch sees no CUDA GPU" in said
    assert not calls
    code, record, calls = check(tmp_path, GPUS="0", TINY="1")
    assert code == 0
    assert "device cpu" in record
    assert "| calibrate | not run: minutes on a processor | 0 |" in record
