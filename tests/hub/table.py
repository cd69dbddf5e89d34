"""Every fault x every kind of download: survived, or one line with the cause and a hint; never wrong data."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hub import content
from hub.server import Hub

AT_ONCE = 4
HUB_KINDS = ("model", "triples", "lists")
ARCHIVE_KINDS = ("zip", "tar")
# The requests for content of each kind; listings and settings before them are answered.
MATCH = {
    "model": r"GET /objects/.*model\.safetensors",
    "triples": r"GET /objects/.*train-",
    "lists": r"GET /objects/",
    "zip": r"GET /.*\.zip",
    "tar": r"GET /.*\.tar\.gz",
}


@dataclass(frozen=True)
class Harm:
    """A fault: how to make it, and what an error of it must say (a pattern). `hub` holds the server's settings."""

    name: str
    says: str
    hub: dict[str, Any] = field(default_factory=dict)
    everything: bool = False  # all requests, and not only those for content


LOST = (
    r"status \d+|Unable to connect|[Dd]isconnected|[Tt]imed? ?out|Timeout|Connection|reset|closed|does not answer|Errno"
)
HUB_HARMS = (
    Harm("status 500", "status 500", {"action": "status", "status": 500}),
    Harm("status 502", "status 502", {"action": "status", "status": 502}),
    Harm("status 503 once", "", {"action": "status", "status": 503, "times": 1}),
    Harm("status 503", "status 503", {"action": "status", "status": 503}),
    Harm("rate limit, then well", "", {"action": "status", "status": 429, "retry_after": 1, "times": 1}),
    Harm("rate limit", "status 429", {"action": "status", "status": 429, "retry_after": 1}),
    Harm("status 403", "status 403", {"action": "status", "status": 403}),
    Harm("status 404", "status 404|404", {"action": "status", "status": 404}),
    Harm("truncated once", LOST, {"action": "truncate", "size": 2000, "times": 1}),
    Harm("truncated", LOST + "|bytes|size|Parquet|magic|[Tt]runcat|incomplete", {"action": "truncate", "size": 2000}),
    Harm("reset once", LOST, {"action": "reset", "times": 1}),
    Harm("reset", LOST, {"action": "reset"}),
    Harm("stalled", LOST, {"action": "stall", "seconds": 8}),
    Harm("other bytes", "other bytes|Parquet|magic|thrift|[Cc]orrupt|invalid|deserialize", {"action": "garble"}),
    Harm("all refused", LOST, {"action": "status", "status": 503}, everything=True),
    Harm("gone", LOST + "|no copy|Couldn't reach", {"action": "reset"}, everything=True),
)
ARCHIVE_HARMS = {
    "truncated": "damaged or incomplete",
    "cut by one byte": "damaged or incomplete",
    "empty": "damaged or incomplete",
    "other bytes": "damaged or incomplete",
    "a web page": "damaged or incomplete",
    "a member lacking": "has no",
    "host refuses": "could not download",
    "host resets": "could not download",
    "host unreachable": "could not download",
    "killed while reading": "",
    "no room on the disk": "File too large|No space",
}


@dataclass(frozen=True)
class Outcome:
    fault: str
    kind: str
    result: str  # survived, refused, or what is wrong
    seconds: float
    line: str

    @property
    def sound(self) -> bool:
        return self.result in ("survived", "refused")


def outcomes(only: str = "") -> Iterator[Outcome]:
    """All combinations, one after another; `only` is a part of `fault/kind`."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        content.build_models(root, [content.BGE])
        content.write_triples(root, content.triples(300))
        content.write_lists(root)
        right: dict[str, str] = {}
        for kind in (*HUB_KINDS, *ARCHIVE_KINDS):
            home = Path(scratch) / f"right {kind}"
            _archives(home)
            with Hub(root) as hub:
                done, _ = _read(kind, hub, home)
            if done.returncode:
                raise RuntimeError(f"{kind} cannot be read without a fault:\n{done.stderr}")
            right[kind] = done.stdout.strip()
        work: list[Callable[[], Outcome]] = []
        for harm in HUB_HARMS:
            for kind in (*HUB_KINDS, *ARCHIVE_KINDS):
                if only in f"{harm.name}/{kind}":
                    home = Path(scratch) / f"{harm.name} {kind}"
                    work.append(partial(_of_hub, harm, kind, root, home, right[kind]))
        for name, says in ARCHIVE_HARMS.items():
            for kind in ARCHIVE_KINDS:
                if only in f"{name}/{kind}":
                    home = Path(scratch) / f"{name} {kind}"
                    work.append(partial(_of_archive, name, says, kind, root, home, right[kind]))
        with ThreadPoolExecutor(AT_ONCE) as pool:  # most of the time is waiting for one timeout or another
            yield from pool.map(lambda one: one(), work)


def _archives(home: Path) -> dict[str, Path]:
    irds = home / "irds"
    return {"zip": content.beir_archive(irds, "nfcorpus", ("train", "dev", "test")), "tar": content.lotte_archive(irds)}


def _read(
    kind: str, hub: Hub, home: Path, before: str = "", **env: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    known = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "XTRREP_DATA")}
    known |= hub.environment(home) | {"XTRREP_HOME": str(home / "artifacts"), "OMP_NUM_THREADS": "1"}
    known |= {"HF_HUB_DOWNLOAD_TIMEOUT": "3", "HF_HUB_ETAG_TIMEOUT": "3", "IR_DATASETS_DL_TIMEOUT": "3"} | env
    command = [sys.executable, "-m", "hub.child", kind]
    start = time.monotonic()
    shell = f"{before}; exec {' '.join(command)}" if before else f"exec {' '.join(command)}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=known, timeout=600)
    return done, time.monotonic() - start


def _judged(
    name: str, kind: str, says: str, done: subprocess.CompletedProcess[str], seconds: float, right: str
) -> Outcome:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    hints = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    line = errors[0].removeprefix("error: ") if errors else ""
    if done.returncode == 0:
        result = "survived" if done.stdout.strip() == right else "WRONG DATA"
    elif "Traceback" in done.stderr or len(errors) != 1 or len(hints) != 1:
        result, line = "TRACEBACK", done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    else:
        result = "refused" if says and re.search(says, line) else "WRONG CAUSE"
    return Outcome(name, kind, result, seconds, line)


def _of_hub(harm: Harm, kind: str, root: Path, home: Path, right: str) -> Outcome:
    shutil.rmtree(home, ignore_errors=True)
    with Hub(root) as hub:
        trust: dict[str, str] = {}
        if kind in ARCHIVE_KINDS:
            path = _archives(home)[kind]
            trust = hub.serve(path, home) | {"STAND_IN_MD5": hashlib.md5(path.read_bytes()).hexdigest()}
            path.unlink()
        hub.fault("." if harm.everything else MATCH[kind], **harm.hub)
        done, seconds = _read(kind, hub, home, **trust)
        outcome = _judged(harm.name, kind, harm.says, done, seconds, right)
        if outcome.result != "refused":
            return outcome
        hub.faults.clear()  # what was left behind must not be taken for whole
        again, _ = _read(kind, hub, home, **trust)
    if again.returncode or again.stdout.strip() != right:
        return Outcome(harm.name, kind, "NOT RECOVERED", seconds, outcome.line)
    return outcome


def _of_archive(name: str, says: str, kind: str, root: Path, home: Path, right: str) -> Outcome:
    shutil.rmtree(home, ignore_errors=True)
    path = _archives(home)[kind]
    data = path.read_bytes()
    half = len(data) // 2
    harms: dict[str, Callable[[], object]] = {
        "truncated": lambda: path.write_bytes(data[:half]),
        "cut by one byte": lambda: path.write_bytes(data[:-1]),
        "empty": lambda: path.write_bytes(b""),
        "other bytes": lambda: path.write_bytes(data[:300] + bytes(b ^ 0x55 for b in data[300:-300]) + data[-300:]),
        "a web page": lambda: path.write_bytes(b"<html>502 Bad Gateway</html>"),
        "a member lacking": lambda: _without_member(kind, path),
    }
    if name in harms:
        harms[name]()
    elif name.startswith("host"):
        path.unlink()
    with Hub(root) as hub:
        extra = {}
        if name == "host resets":
            hub.fault("CONNECT", "reset")
        if name == "host unreachable":
            extra = {"HTTPS_PROXY": "http://127.0.0.1:9"}
        before = "trap '' XFSZ; ulimit -f 4" if name == "no room on the disk" else ""
        if name == "killed while reading":
            _read(kind, hub, home, before="(sleep 1.5; kill -9 $$) & true")
        done, seconds = _read(kind, hub, home, before=before, **extra)
    return _judged(name, kind, says, done, seconds, right)


def _without_member(kind: str, path: Path) -> None:
    path.unlink()
    if kind == "zip":
        content.beir_archive(path.parents[2], "nfcorpus", ("train",))
        return
    content.lotte_archive(path.parents[1], topics=[topic for topic in content.TOPICS if topic != "writing"])


def main(only: str) -> int:
    """Print the table; returns how many combinations are not sound."""
    print(f"{'fault':<24} {'of':<8} {'result':<14} {'s':>5}  what is said")
    found = []
    for outcome in outcomes(only):
        found.append(outcome)
        row = (
            f"{outcome.fault:<24} {outcome.kind:<8} {outcome.result:<14} {outcome.seconds:>5.0f}  {outcome.line[:150]}"
        )
        print(row, flush=True)
    bad = [outcome for outcome in found if not outcome.sound]
    survived = sum(outcome.result == "survived" for outcome in found)
    print(
        f"{len(found)} combinations: {survived} survived, {len(found) - survived - len(bad)} refused, "
        f"{len(bad)} unsound"
    )
    return len(bad)
