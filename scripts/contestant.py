"""What the benchmarks share: contestants in processes of their own, of which one at a time is at work.

A contestant is one of a script's own names, run by some Python as `SCRIPT --worker NAME ...`. It says `tell(...)` when
it is ready, and again for every line that it reads; the script asks one after the other, so that all others sleep. A
worker may run in PyLate's environment: nothing but the standard library is imported here.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 900.0  # seconds until a contestant that does not answer is given up
BUSY = 0.7  # load average above which a table says that others were at work


def tell(answer: Any) -> None:
    """Answer, as a worker."""
    print("@" + json.dumps(answer), flush=True)  # the mark sets it apart from what libraries print


class Contestant:
    """A worker process: started, asked, ended."""

    def __init__(self, name: str, command: Sequence[str | Path], threads: int) -> None:
        self.name = name
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - and no pipe, which fills up
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,  # select() does not see a line that lies in a buffer
            env=environment(threads),
        )

    def answer(self) -> Any:
        """The next answer. Raises RuntimeError when the process ends or is silent for too long."""
        assert self.process.stdout is not None
        while True:
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            line = self.process.stdout.readline() if ready else b""
            if not line:
                self.end()
                self.errors.seek(0)
                last = (self.errors.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {last[:200]}")
            if line.startswith(b"@"):
                return json.loads(line[1:])

    def ask(self, line: str = "go") -> Any:
        """A round: send a line, wait for the answer."""
        assert self.process.stdin is not None
        time.sleep(0.05)  # the threads of the one before stop spinning
        self.process.stdin.write(line.encode() + b"\n")
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def environment(threads: int) -> dict[str, str]:
    """A process's: this checkout, so many threads, no network."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@contextmanager
def started(commands: Mapping[str, Sequence[str | Path]], threads: int) -> Iterator[dict[str, Contestant]]:
    """Contestants by name, importing at the same time; killed in the end, whatever happens."""
    found: dict[str, Contestant] = {}
    try:
        for name, command in commands.items():
            found[name] = Contestant(name, command, threads)
        yield dict(found)
    finally:
        for contestant in found.values():
            contestant.end()


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: another one begins each time."""
    at = turn % len(names)
    return [*names[at:], *names[:at]]


def load_note() -> list[str]:
    """A line for a table's footer where others are at work on this machine; none where it is quiet."""
    load = os.getloadavg()[0]
    return [f"Other processes were at work when this began: load {load:.1f}."] if load > BUSY else []
