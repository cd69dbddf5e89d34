"""Search that follows coverage (atheris, an extra) at every reader of a file: bytes in, the same references to compare.

`python -m fuzz.cover READER SECONDS FOLDER` is one search; `cover` starts one after another and prints a table.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LONGEST_INPUT = 512


def targets() -> dict[str, Any]:
    """(check of bytes, inputs to start from) by what the file is called."""
    from fuzz import configs, folders, imported, runs, training

    found: dict[str, Any] = {}
    for module in (folders, training, runs, imported, configs):
        found |= module.BYTE_READERS
    return found


def cover(seconds: int, only: list[str]) -> bool:
    """Search at each file reader so long; True where one failed. Without atheris it says so and is no failure."""
    if importlib.util.find_spec("atheris") is None:
        print("\nsearch that follows coverage: skipped, atheris is not installed (pip install '.[fuzz]')")
        return False
    print(f"\n{'file':20}  {'inputs tried':>12}  {'edges':>6}  outcome of {seconds} s")
    failed = False
    for name in targets():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="cover-") as folder:
            command = [sys.executable, "-m", "fuzz.cover", name, str(seconds), folder]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        tried = re.search(r"Done (\d+) runs", done.stderr)
        edges = re.findall(r"cov: (\d+)", done.stderr)
        bad = done.returncode != 0 or tried is None
        failed |= bad
        count = tried[1] if tried else (re.findall(r"#(\d+)\s", done.stderr) or ["?"])[-1]
        print(
            f"{name:20}  {count:>12}  {edges[-1] if edges else '?':>6}  {'FAILED' if bad else 'survived'}", flush=True
        )
        if bad:
            print(done.stdout[-1500:] + done.stderr[-4000:])
    return failed


def main() -> None:
    import atheris

    name, seconds, where = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with atheris.instrument_imports(
        include=[
            "xtrrep.data",
            "xtrrep.measure.run_file",
            "xtrrep.store.imported",
            "xtrrep.experiments",
            "xtrrep.config.yaml_file",
        ]
    ):
        check, seeds = targets()[name]
    from fuzz.harness import watched

    inputs, work = where / "inputs", where / "work"
    inputs.mkdir()
    for number, raw in enumerate(seeds):
        (inputs / str(number)).write_bytes(raw)

    def one(raw: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=where) as folder, watched():
            check(raw, Path(folder))

    work.mkdir()
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT}",
        "-timeout=30",
        "-seed=1",
        f"-artifact_prefix={work}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(inputs)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
