"""Hand out the units of a sweep: what is ready, as far as it fits, until nothing is left that can be done."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from xtrrep import config as configs
from xtrrep.console import UsageError, say, suggest
from xtrrep.locks import at_work
from xtrrep.pipeline import Plan
from xtrrep.preflight import duration
from xtrrep.sweep.cells import Sweep
from xtrrep.sweep.hands import Hands, Jobs, Processes, fix_threads
from xtrrep.sweep.units import Unit, finished, lacking, logs, memory_gb, shards_left
from xtrrep.sweep.work import Task

EXECUTORS = ("process", "slurm", "local")
ATTEMPTS = 3  # of a unit whose process was killed
LATE = 3  # looks at a job that has ended elsewhere before its artifact counts as missing: file systems lag
ALONE = "latency"  # what is measured must have the machine to itself


@dataclass(frozen=True)
class Room:
    """What fits at a time: processes, and GB by `units.memory_gb` with what the sweep `said` of it. None: any number.

    threads: of each process, None for what its machine gives it. encoders: processes for one collection.
    """

    jobs: int | None = None
    memory: float | None = None
    threads: int | None = None
    encoders: int = 1
    said: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Running:
    """A unit at work: its tasks, a process each. Several encode shards, which one more process then joins.

    memory: GB of each process; looks: how often it was found ended and its artifact missing.
    """

    unit: Unit
    tasks: list[Task]
    memory: float
    begun: float
    handles: list[Any] = field(default_factory=list)
    looks: int = 0


class Control:
    """One run. What it has done is in the artifacts, from which the next one begins."""

    def __init__(self, units: Sequence[Unit], hands: Hands, room: Room) -> None:
        self.hands, self.room, self.total = hands, room, len(units)
        self.waiting = {unit.key: unit for unit in units}
        self.running: dict[str, Running] = {}
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        self.killed: Counter[str] = Counter()
        self.labels = {unit.key: f"{unit.stage} {unit.label}" for unit in units}

    def run(self) -> dict[str, str]:
        """Until no unit waits or runs; returns why units failed, by key. What is at work ends with an exception."""
        try:
            while True:
                for running in list(self.running.values()):
                    self._look_at(running)
                self._give_up()
                self._start()
                if not self.waiting and not self.running:
                    return self.failed
                time.sleep(self.hands.pause)
        except BaseException:
            self.hands.stop([handle for running in self.running.values() for handle in running.handles])
            raise

    def _look_at(self, running: Running) -> None:
        """Settle a unit whose processes have ended, by what they left."""
        unit, over = running.unit, all(self.hands.ended(handle) for handle in running.handles)
        complete = (over or self.hands.elsewhere) and unit.complete
        if not over and not complete:
            return
        if over and not complete and self.hands.elsewhere and running.looks < LATE:
            running.looks += 1
            return
        del self.running[unit.key]
        if complete:
            self._finish(unit, f"{duration(time.monotonic() - running.begun)}")
        elif len(running.tasks) > 1:
            self._begin([Running(unit, [Task(unit, self.room.threads)], running.memory, running.begun)])
        elif unit.held:  # another command came first
            self.waiting[unit.key] = unit
        elif (error := unit.error) is not None:
            self._fail(unit, error)
        else:
            self.killed[unit.key] += 1
            self.waiting[unit.key] = unit
            if self.killed[unit.key] == ATTEMPTS:
                self._fail(unit, f"its process was killed {ATTEMPTS} times, perhaps for want of memory")
            else:
                say(f"killed {self.labels[unit.key]}: once more, alone")

    def _finish(self, unit: Unit, how: str) -> None:
        self.waiting.pop(unit.key, None)
        self.done.add(unit.key)
        say(f"done   {len(self.done)}/{self.total}  {self.labels[unit.key]}  {how}")

    def _fail(self, unit: Unit, why: str) -> None:
        self.waiting.pop(unit.key, None)
        self.failed[unit.key] = why
        say(f"failed {self.labels[unit.key]}: {why}")

    def _give_up(self) -> None:
        """Units that need a failed one."""
        for unit in list(self.waiting.values()):
            bad = sorted(unit.needs & self.failed.keys())
            if bad:
                del self.waiting[unit.key]
                self.failed[unit.key] = f"it needs {self.labels[bad[0]]}, which failed"

    def _start(self) -> None:
        """Begin what is ready and fits, in the order of the cells; the first that does not fit holds up the rest, so
        that a large one is not put off for ever. On one machine latencies come last: each needs all of it, and what is
        compared should be measured in one go."""
        chosen: list[Running] = []
        ready = [unit for unit in self.waiting.values() if unit.needs <= self.done]
        busy = any(unit.stage != ALONE for unit in (*ready, *(running.unit for running in self.running.values())))
        if busy and self.room.jobs is not None:
            ready = [unit for unit in ready if unit.stage != ALONE]
        for unit in ready:
            if unit.complete:
                self._finish(unit, "by another command")
                continue
            if unit.held:
                continue
            memory = memory_gb(unit, self.room.said)
            fits = self._fits(unit, memory, [*self.running.values(), *chosen])
            if not fits:
                break
            shares = min(fits, shards_left(unit)) if fits > 1 else 1
            numbers: Sequence[int | None] = range(shares) if shares > 1 else [None]
            tasks = [Task(unit, self.room.threads, number) for number in numbers]
            chosen.append(Running(unit, tasks, memory, time.monotonic()))
        for _, group in groupby(sorted(chosen, key=_stage), key=_stage):
            self._begin(list(group))

    def _fits(self, unit: Unit, memory: float, busy: Sequence[Running]) -> int:
        """How many processes there is room for, no more than may encode together. Where nothing runs there is room for
        one, however large."""
        if self.room.jobs is not None and any(self._is_alone(other) for other in (unit, *(r.unit for r in busy))):
            return 0 if busy else 1
        slots = self.room.encoders
        if self.room.jobs is not None:
            slots = min(slots, self.room.jobs - sum(len(r.tasks) for r in busy))
        if self.room.memory is not None:
            slots = min(slots, int((self.room.memory - sum(len(r.tasks) * r.memory for r in busy)) / memory))
        return max(slots, 0 if busy else 1)

    def _is_alone(self, unit: Unit) -> bool:
        return unit.stage == ALONE or unit.key in self.killed

    def _begin(self, group: Sequence[Running]) -> None:
        """Units of one stage, begun together: one array of jobs."""
        handles = iter(self.hands.start([task for running in group for task in running.tasks]))
        for running in group:
            running.handles = [next(handles) for _ in running.tasks]
            self.waiting.pop(running.unit.key, None)
            self.running[running.unit.key] = running
            more = f", {len(running.tasks)} encoders" if len(running.tasks) > 1 else ""
            say(f"start  {self.labels[running.unit.key]}{more}")


def _stage(running: Running) -> str:
    return running.unit.stage


def room_here(jobs: int | None, memory: float | None, asked: Sweep) -> Room:
    """Room on this machine: unless told otherwise a process for four cores, two at least, one where they would share a
    GPU; and four fifths of the memory that is free."""
    import psutil

    from xtrrep.model.encoder import device_of

    mine = getattr(os, "sched_getaffinity", None)  # Linux alone says which cores are ours
    cores = len(mine(0)) if mine is not None else os.cpu_count() or 1
    jobs = jobs or (1 if device_of("auto") != "cpu" else min(cores, max(2, cores // 4)))
    memory = memory or 0.8 * psutil.virtual_memory().available / 1e9
    return Room(jobs, memory, max(1, cores // jobs), asked.encoders, asked.memory)


def carry_out(
    asked: Sweep, plans: Sequence[Plan], executor: str, jobs: int | None = None, memory: float | None = None
) -> dict[str, str]:
    """Make what the cells of a sweep lack; why units failed, by the fingerprint of each artifact they were to make.

    executor: "process", "slurm" or "local". Raises UsageError for another, and as `hands.Jobs`.
    """
    if executor not in EXECUTORS:
        raise UsageError(f"no executor {executor!r}", hint=suggest(executor, EXECUTORS))
    units = lacking(plans, finished())
    if not units:
        say("nothing is left to do")
        return {}
    if executor == "slurm":
        room = Room(encoders=asked.encoders, said=asked.memory)
        say(f"{len(units)} units")
    else:
        room = room_here(jobs, memory, asked)
        fix_threads(room.threads or 1)
        say(f"{len(units)} units, {room.jobs} at a time of {room.threads} threads, {room.memory:.1f} GB together")
    jobs_folder = logs() / f"jobs-{asked.name}"
    with at_work(configs.artifacts_root()), at_work(configs.results_root()):
        for unit in units:  # what an earlier attempt said of it
            if unit.log.exists() and not unit.held:
                unit.log.unlink()
        hands: Hands = Processes() if executor == "process" else Jobs(executor, asked.name, jobs_folder, asked.cluster)
        failed = Control(units, hands, room).run()
    if not failed:
        shutil.rmtree(jobs_folder, ignore_errors=True)
    return {target.spec.fingerprint: failed[u.key] for u in units if u.key in failed for target in u.targets}
