"""Kill a command, run it again, and compare what it left with what an unbroken run leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import syscalls
from faults.stages import Case, command
from faults.syscalls import Event, Outcome, Verdict
from xtrrep.artifacts.hashes import RECORDS

TIME, FULL, INTERRUPT = "time", "disk full", "Ctrl-C"
CALLS = ("write", "rename", "fsync", "manifest", "create", "remove")
KINDS = (*CALLS, TIME, FULL, INTERRUPT)
MANIFEST = "manifest.json"
# What differs between two unbroken runs, or says only that a run was interrupted.
VOLATILE_KEYS = {"made", "seconds", "checksum"}  # the last is of the others too; reading checks it
VOLATILE_FACTS = {"shards_kept", "shared_search_seconds", "rate"}
TIMES = {
    "log.jsonl": rb'"time": [0-9.]+',
    "metadata.json": rb'"created_at": "[^"]*"',  # WARP's
    "result.json": rb'"(seconds": [0-9]+|date": "[0-9-]+")',  # of its provenance
}


@dataclass(frozen=True)
class Point:
    """Where to stop: at a call of the unbroken run, or after some seconds.

    Of CALLS the kind is the call's, and SIGKILL comes before it or half-way through a write; TIME is SIGKILL too. A
    call of kind FULL is refused for want of space, and unless it is `once` all that write after it; at one of kind
    INTERRUPT comes SIGINT.
    """

    kind: str
    number: int | None = None
    seconds: float | None = None
    once: bool = False

    def __str__(self) -> str:
        return f"{self.kind} at call {self.number}" if self.seconds is None else f"after {self.seconds:.2f} s"


@dataclass(frozen=True)
class Trial:
    """A point tried, and what was wrong afterwards (empty: survived)."""

    case: Case
    point: Point
    at: Event | None
    faults: tuple[str, ...]


# --- choosing --------------------------------------------------------------------------------------------------------


def kind_of(event: Event) -> str:
    """The event's kind in the table: what concerns a manifest, or gives a folder its final name, is of its own kind."""
    publishes = event.kind == "rename" and Path(event.path).name.startswith(".partial-")
    return "manifest" if publishes or MANIFEST in Path(event.path).name else event.kind


# In which order calls are chosen, as (kind, kind of the call): a manifest is created, written, synced and named.
TURNS = (
    ("manifest", "write"), ("write", "write"), ("manifest", "rename"), ("rename", "rename"), ("manifest", "fsync"),
    ("write", "write"), ("fsync", "fsync"), ("manifest", "create"), ("create", "create"), ("remove", "remove"),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How many points of a case to try: SIGKILL at calls and at moments, a full disk, Ctrl-C."""

    injected: int = 0
    by_time: int = 0
    full: int = 0
    interrupted: int = 0


def choose(events: Sequence[Event], seconds: float, plan: Plan, rng: random.Random) -> list[Point]:
    """Calls of every kind and from everywhere in the run, and moments; more moments where the run makes fewer calls."""
    injected = plan.injected
    groups: dict[tuple[str, str], list[int]] = {}
    for number, event in enumerate(events):
        groups.setdefault((kind_of(event), event.kind), []).append(number)
    left = {group: _spread(numbers) for group, numbers in groups.items()}
    chosen: set[int] = set()
    while len(chosen) < min(injected, len(events)):
        for group in TURNS:
            if left.get(group) and len(chosen) < injected:
                chosen.add(left[group].pop(0))
    points = [Point(kind_of(events[number]), number=number) for number in sorted(chosen)]
    moments = plan.by_time + injected - len(points)
    points += [Point(TIME, seconds=seconds * (i + rng.random()) / moments * 0.9) for i in range(moments)]
    grows = [number for number, event in enumerate(events) if event.kind in ("write", "create")]
    refused = sorted(rng.sample(grows, min(plan.full, len(grows))))
    points += [Point(FULL, number=number, once=i % 2 == 0) for i, number in enumerate(refused)]
    every = range(len(events))
    return points + [Point(INTERRUPT, number=n) for n in sorted(rng.sample(every, min(plan.interrupted, len(events))))]


def _spread(numbers: Sequence[int]) -> list[int]:
    """All of them, last and first before the middle, then the middles of what lies between: any prefix is spread."""
    order, spans = [numbers[-1], numbers[0]], [(0, len(numbers) - 1)]
    while spans:
        low, high = spans.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            order.append(numbers[middle])
            spans += [(low, middle), (middle, high)]
    return list(dict.fromkeys(order))


# --- looking ---------------------------------------------------------------------------------------------------------


def contents(home: Path) -> dict[str, str]:
    """Every file and folder below a home, with a hash of what it holds apart from times."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if RECORDS in path.parts and (path.is_dir() or re.fullmatch(r"(.*-)?[0-9a-f]{12}\.json", path.name)):
            continue  # inodes and times of large files, once they are some seconds old: what has been read before
        if path.is_dir():
            found[name] = "folder"
        elif path.name == MANIFEST:
            found[name] = _hash(json.dumps(_without_times(json.loads(path.read_text())), sort_keys=True).encode())
        else:
            data = path.read_bytes()
            found[name] = _hash(re.sub(TIMES[path.name], b"", data) if path.name in TIMES else data)
    return found


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _without_times(manifest: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in manifest.items() if key not in VOLATILE_KEYS}
    kept["facts"] = {key: value for key, value in manifest["facts"].items() if key not in VOLATILE_FACTS}
    kept["files"] = {name: entry for name, entry in manifest["files"].items() if Path(name).name not in TIMES}
    return kept


def misrecorded(home: Path) -> list[str]:
    """Files that are not as their manifest says, and files that no manifest says anything of."""
    wrong = []
    for path in home.rglob(MANIFEST):
        recorded = json.loads(path.read_text())["files"]
        there = {str(p.relative_to(path.parent)): p for p in path.parent.rglob("*") if p.is_file() and p != path}
        wrong += [
            f"{path.parent.name}/{name} is not what its manifest lists" for name in recorded.keys() ^ there.keys()
        ]
        for name in recorded.keys() & there.keys():
            if _hash(there[name].read_bytes()) != recorded[name]["sha256"]:
                wrong.append(f"{path.parent.name}/{name} has another hash than its manifest says")
    return wrong


def finished(home: Path) -> dict[str, tuple[int, int]]:
    """What a killed run had completed: the files of complete artifacts, complete shards of stores, and a model that
    training had finished, by final name, as (inode, time of last change)."""
    files: set[Path] = set()
    for path in home.rglob(MANIFEST):
        files |= {p for p in path.parent.rglob("*") if p.is_file()}
    for path in home.rglob("*.doclens.npy"):
        name = path.name.replace(".doclens", "")
        files |= {path, path.with_name(name), path.parent.with_name("tokens") / name}
    for path in home.rglob("finished.json"):
        files |= set(path.parent.glob("model/**/*.safetensors")) | {path}
    found = {}
    for path in files:
        status = path.stat()
        found[str(path.relative_to(home)).replace(".partial-", "")] = status.st_ino, status.st_mtime_ns
    return found


def trained(home: Path) -> dict[str, list[str]]:
    """The log's lines of the steps that a complete checkpoint holds, by the log's final name."""
    found = {}
    for log in home.rglob("log.jsonl"):
        states = log.parent.glob("checkpoints/checkpoint-*/xtrrep_state.json")
        last = max((int(path.parent.name.rpartition("-")[2]) for path in states), default=0)
        name = str(log.relative_to(home)).replace(".partial-", "")
        found[name] = list(log.read_text().splitlines()[:last])
    return found


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """In words, what the second tree has more, less or otherwise than the first."""
    found = [f"{name} is left over" for name in sorted(other.keys() - one.keys())]
    found += [f"{name} is missing" for name in sorted(one.keys() - other.keys())]
    return found + [f"{name} differs" for name in sorted(one.keys() & other.keys()) if one[name] != other[name]]


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Where cases are run. `spoil` is called in each child first: a test may break the code under test there."""

    work: Path
    spoil: Callable[[], None] | None = None

    def run(self, case: Case, home: Path, **how: Any) -> Outcome:
        main = command(case.words, home, self.work / "data")

        def spoilt() -> int:
            if self.spoil is not None:
                self.spoil()
            return main()

        return syscalls.run(spoilt, home, **how)

    def home(self, name: str, after: str | None) -> Path:
        """A fresh home with what the unbroken run of `after` left, by hard links: what is complete is never changed."""
        home = self.work / name.replace("/", "-")
        if after is None:
            home.mkdir()
        else:
            shutil.copytree(self.unbroken(after), home, copy_function=os.link)
        return home

    def unbroken(self, case: str) -> Path:
        return self.work / f"unbroken {case}".replace("/", "-")


def record(bench: Bench, case: Case) -> Outcome:
    """The unbroken run, with its calls."""
    home = bench.home(f"unbroken {case.name}", case.after)
    outcome = bench.run(case, home, decide=lambda number, event: Verdict.go_on)
    wrong = misrecorded(home)
    if outcome.code not in (0, 1, 3) or wrong:  # a table: 1 beside other values accepted, 3 without every collection
        raise RuntimeError(f"{case.name} does not run unbroken: exit {outcome.code} {wrong}\n{outcome.output}")
    return outcome


def try_point(bench: Bench, case: Case, point: Point, expected: Mapping[str, str], code: int) -> Trial | None:
    """Stop at the point, run again, compare. None where the run ended before it could be stopped."""
    home = bench.home("broken", case.after)
    try:
        stopped = _stop_at(bench, case, home, point)
        if point.kind not in (FULL, INTERRUPT) and stopped.code != -9:
            return None
        faults = _said(point, stopped, code)
        done, log = finished(home), trained(home)
        again = stopped if case.once and stopped.code == code else bench.run(case, home)
        if again.code != code:
            faults.append(f"exit {again.code}, unbroken {code}: {_end(again)}")
        else:
            faults += differences(expected, contents(home)) + misrecorded(home)
            now = finished(home)
            faults += [f"{name} was made again" for name in sorted(done) if name in now and now[name] != done[name]]
            for name, lines in log.items():
                if (home / name).read_text().splitlines()[: len(lines)] != lines:
                    faults.append(f"{name}: steps that a checkpoint held were trained again")
        return Trial(case, point, stopped.stopped_at, tuple(faults))
    finally:
        shutil.rmtree(home)


def _stop_at(bench: Bench, case: Case, home: Path, point: Point) -> Outcome:
    if point.seconds is not None:
        return bench.run(case, home, kill_after=point.seconds)
    first = point.number
    assert first is not None

    def decide(number: int, event: Event) -> Verdict | int:
        if point.kind == FULL:
            refused = number == first or (number > first and event.kind in ("write", "create") and not point.once)
            return errno.ENOSPC if refused else Verdict.go_on
        if number != first:
            return Verdict.go_on
        if point.kind == INTERRUPT:
            return Verdict.interrupt
        return Verdict.torn if event.kind == "write" else Verdict.kill

    return bench.run(case, home, decide=decide)


def _said(point: Point, stopped: Outcome, code: int) -> list[str]:
    """What is wrong with how a run ended whose disk was full or that was interrupted."""
    lines = stopped.output.splitlines()
    if "Traceback (most recent call last)" in stopped.output:
        return [f"a traceback: {_end(stopped)}"]
    if point.kind == FULL:
        errors, hints = (sum(line.startswith(word) for line in lines) for word in ("error:", "hint:"))
        fine = stopped.code == 3 and errors == 1 and hints == 1
        fine = fine or (point.once and stopped.code == code)  # made up for; what it left is compared
    else:
        fine = point.kind != INTERRUPT or (
            stopped.code == 130 and any(line.startswith("interrupted") for line in lines)
        )
    return [] if fine else [f"exit {stopped.code}: {_end(stopped)}"]


def _end(outcome: Outcome) -> str:
    return " / ".join([line for line in outcome.output.splitlines() if line.strip()][-3:])


def matrix(bench: Bench, cases: Mapping[Case, Plan], seed: int = 0) -> Iterator[Trial]:
    """Try every case at the points of its plan; without any it is only run, for those after it."""
    rng = random.Random(seed)
    for case, plan in cases.items():
        unbroken = record(bench, case)
        expected = contents(bench.unbroken(case.name))
        found = []
        for point in choose(unbroken.events, unbroken.seconds, plan, rng):
            trial = try_point(bench, case, point, expected, unbroken.code)
            while trial is None and point.seconds is not None:  # this machine was faster than a moment ago
                point = Point(TIME, seconds=0.7 * point.seconds)
                trial = try_point(bench, case, point, expected, unbroken.code)
            if trial is not None:
                found.append(trial)
        for trial in found:
            for fault in trial.faults[:4]:
                print(f"  {case.name}, {trial.point} ({_at(trial.at)}): {fault}", file=sys.stderr)
        survived = sum(not trial.faults for trial in found)
        counted = f"{len(unbroken.events)} calls, {unbroken.seconds:.1f} s; {survived} of {len(found)} survived"
        print(f"{case.name}: {counted}", file=sys.stderr, flush=True)
        yield from found


def _at(event: Event | None) -> str:
    return "" if event is None else f"{event.call} {event.path}"


# --- showing ---------------------------------------------------------------------------------------------------------


def table(trials: Sequence[Trial]) -> str:
    """Points tried and survived, a line for each stage, engine and kind, and the sums."""
    lines = [f"{'stage':<10} {'engine':<11} {'stopped by':<10} {'points':>7} {'survived':>9}"]

    def line(stage: str, engine: str, kind: str, chosen: Sequence[Trial]) -> str:
        survived = sum(not trial.faults for trial in chosen)
        return f"{stage:<10} {engine:<11} {kind:<10} {len(chosen):>7} {survived:>9}"

    for case in dict.fromkeys(trial.case for trial in trials):
        own = [trial for trial in trials if trial.case == case]
        for kind in KINDS:
            if chosen := [trial for trial in own if trial.point.kind == kind]:
                lines.append(line(case.stage, case.engine, kind, chosen))
    lines += [
        line("all", "", kind, chosen) for kind in KINDS if (chosen := [t for t in trials if t.point.kind == kind])
    ]
    return "\n".join([*lines, line("all", "", "", trials)])
