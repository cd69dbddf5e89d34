"""Run the plans of many cells: in order in this process, in several processes of this machine, or on a Ray cluster.

The artifacts are the only state. A command that was killed continues from them when it is started again.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, Protocol, TypeVar

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.artifacts.locks import at_work
from xtrrep.console import DataError, UsageError, XtrrepError, explained, say, suggest
from xtrrep.experiments.tasks import SHARE, Task, attempt, missing_tasks, one_line, wait_until_complete
from xtrrep.pipeline import Plan
from xtrrep.plan import preflight

HEARTBEAT = 60.0  # seconds between two messages while no task ends

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Outcome(Generic[K]):
    """What became of plans: the folders of each stage, or the error as one line with its hint."""

    folders: dict[K, Mapping[str, Path]] = field(default_factory=dict)
    failures: dict[K, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Where:
    """jobs: so many tasks at a time on this machine, through Ray. on: "ray" for the cluster at $RAY_ADDRESS, or the one
    this machine belongs to. memory_gb: what the jobs may take together (80 % of the free memory)."""

    jobs: int | None = None
    on: str | None = None
    memory_gb: float | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether tasks run in other processes than this one."""
        return self.on is not None or (self.jobs or 1) > 1


HERE = Where()


def run_plans(plans: Mapping[K, Plan], where: Where = HERE) -> Outcome[K]:
    """Make what the plans lack. A plan that fails does not stop the others.

    Without `jobs` and `on`, or with one job, everything runs in order in this process. Raises UsageError for options
    that do not fit together and DataError where Ray or the cluster is missing.
    """
    _check_options(where)
    if not where.elsewhere:
        return _run_here(plans)
    from xtrrep.experiments.cluster import cluster_workers, local_workers

    tasks = missing_tasks(plans.values())
    failures: dict[str, str] = {}
    with at_work(configs.artifacts_root()), at_work(configs.results_root()):
        if tasks:
            context: AbstractContextManager[Workers] = (
                local_workers(where.jobs, where.memory_gb) if where.jobs else cluster_workers()
            )
            with context as workers:
                failures = Scheduler(tasks, workers, Progress(tasks, list(plans.values()))).run()
        return _outcome(plans, failures)


def _run_here(plans: Mapping[K, Plan]) -> Outcome[K]:
    """All plans together in this process, so that they share searches; if that fails, task by task."""
    try:
        return Outcome(dict(zip(plans, pipeline.run(list(plans.values())).folders, strict=True)))
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        say(f"note: {known}; task by task from here")
    failures: dict[str, str] = {}
    for task in missing_tasks(plans.values()):
        failures |= _inherited(task, failures) or attempt(task.targets)
    return _outcome(plans, failures)


def _inherited(task: Task, failures: Mapping[str, str]) -> dict[str, str]:
    """The errors of a task that needs a failed one: those of that one. Empty where all that it needs was made."""
    errors = [failures[need] for need in sorted(task.needs) if need in failures]
    return dict.fromkeys(task.fingerprints, errors[0]) if errors else {}


def _check_options(where: Where) -> None:
    jobs, on, memory_gb = where.jobs, where.on, where.memory_gb
    if jobs is not None and on is not None:
        raise UsageError("--jobs is for this machine and --on for a cluster", hint="leave one of them out")
    if on not in (None, "ray"):
        raise UsageError(f"nothing to run on is named {on!r}", hint=suggest(str(on), ["ray"]))
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs} runs nothing", hint="--jobs 2")
    if memory_gb is not None and (jobs or 1) == 1:
        raise UsageError("--memory bounds what several jobs take together", hint="--jobs 2")
    if memory_gb is not None and memory_gb <= 0:
        raise UsageError(f"--memory {memory_gb:g} leaves no memory", hint="--memory 8")


def _outcome(plans: Mapping[K, Plan], failures: Mapping[str, str]) -> Outcome[K]:
    """The folders of each plan, their files checked as `pipeline.run` checks what it uses again."""
    outcome: Outcome[K] = Outcome()
    faults = dict(failures)
    checked: dict[str, Path] = {}
    for key, plan in plans.items():
        for step in plan.steps:
            fingerprint = step.spec.fingerprint
            if fingerprint in checked or fingerprint in faults:
                continue
            checked[fingerprint] = folder = artifacts.folder_of(step.spec, step.stage.root())
            try:
                artifacts.check(folder, fingerprint)
            except XtrrepError as error:
                faults[fingerprint] = one_line(error)
        why = [faults[step.spec.fingerprint] for step in plan.steps if step.spec.fingerprint in faults]
        if why:
            outcome.failures[key] = why[0]
        else:
            outcome.folders[key] = {step.stage.name: checked[step.spec.fingerprint] for step in plan.steps}
    return outcome


class Workers(Protocol):
    """What the scheduler needs of whoever does the work. slots: about how many tasks run at a time."""

    slots: int

    def submit(self, task: Task, share: int | None = None) -> Any:
        """Queue a task; returns a hashable reference to it."""

    def wait(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """References of what has ended, after at most so many seconds."""

    def result(self, reference: Any, task: Task) -> dict[str, str]:
        """The errors of a task that has ended, by fingerprint."""


class Progress:
    """A line for each task that ends, with the rate so far and the time left, weighted by what a dry run estimates."""

    def __init__(self, tasks: Sequence[Task], plans: Sequence[Plan]) -> None:
        seconds = {line.folder.name.rpartition("-")[2]: line.seconds for line in preflight.forecast(plans)}
        known = {task.key: [s for f in task.fingerprints if (s := seconds.get(f)) is not None] for task in tasks}
        usual = fmean([sum(values) for values in known.values() if values] or [1.0])
        # A task without an estimate takes as long as the mean of the others; a short one at least the overhead.
        self.weights = {key: max(sum(values) if values else usual, 1.0) for key, values in known.items()}
        self.total, self.ended, self.done = len(tasks), 0, 0.0
        self.begun = time.monotonic()
        say(f"{self.total} tasks: {', '.join(_counts(tasks))}")

    def end(self, task: Task, result: str) -> None:
        self.ended += 1
        self.done += self.weights[task.key]
        elapsed = max(time.monotonic() - self.begun, 1e-9)
        left = (sum(self.weights.values()) - self.done) * elapsed / self.done
        pace = f"{60 * self.ended / elapsed:.1f} tasks/min"
        eta = f", about {preflight.duration(left)} left" if self.ended < self.total else ""
        say(f"{result:<6} {self.ended}/{self.total}  {task.label}  ({pace}{eta})")

    def heartbeat(self, running: Sequence[Task]) -> None:
        labels = "; ".join(dict.fromkeys(task.label for task in running[:3]))
        more = f" and {len(running) - 3} more" if len(running) > 3 else ""
        say(f"wait   {self.ended}/{self.total}  running or queued: {labels}{more}")


def _counts(tasks: Sequence[Task]) -> list[str]:
    stages = [task.stage for task in tasks]
    return [f"{stages.count(stage)} {stage}" for stage in dict.fromkeys(stages)]


class Scheduler:
    """Hands tasks to workers as soon as the artifacts that they need are there."""

    def __init__(self, tasks: Sequence[Task], workers: Workers, progress: Progress) -> None:
        self.workers, self.progress = workers, progress
        self.waiting = {task.key: task for task in tasks}
        self.running: dict[Any, tuple[Task, int | None]] = {}
        self.unmade = {fingerprint for task in tasks for fingerprint in task.fingerprints}
        self.failures: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Until every task has ended; returns errors by the fingerprint of what could not be made."""
        while self.waiting or self.running:
            self._skip_hopeless()
            self._submit_ready()
            if self.running:
                ended = self.workers.wait(list(self.running), HEARTBEAT)
                for reference in ended:
                    self._end(reference)
                if not ended:
                    self.progress.heartbeat([task for task, _ in self.running.values()])
        return self.failures

    def _skip_hopeless(self) -> None:
        """Tasks that need a failed one fail of the same error."""
        for task in list(self.waiting.values()):
            if inherited := _inherited(task, self.failures):
                del self.waiting[task.key]
                self.failures.update(inherited)
                self.progress.end(task, "skip")

    def _submit_ready(self) -> None:
        """Latencies come last and one at a time: what is compared is measured under the same conditions."""
        ready = [task for task in self.waiting.values() if not task.needs & self.unmade]
        others = [task for task in ready if not task.alone]
        chosen = others if others or self.running else ready[:1]
        free = max(1, self.workers.slots - len(self.running))
        for task in chosen:
            del self.waiting[task.key]
            shares = min(task.shards_left, free // len(chosen))
            for share in range(shares) if shares > 1 else [None]:
                self.running[self.workers.submit(task, share)] = (task, share)

    def _end(self, reference: Any) -> None:
        task, share = self.running.pop(reference)
        if share is not None:  # the last share is followed by a task that joins them, and meets their errors again
            if not any(other is task for other, _ in self.running.values()):
                self.running[self.workers.submit(task)] = (task, None)
            return
        errors = self.workers.result(reference, task)
        for target in task.targets:
            fingerprint = target.spec.fingerprint
            if target.complete or (fingerprint not in errors and wait_until_complete(target.stage, target.spec)):
                self.unmade.discard(fingerprint)
            else:
                unseen = DataError(f"a worker made {task.label}, and this machine does not see it", hint=SHARE)
                self.failures[fingerprint] = errors.get(fingerprint, one_line(unseen))
        failed = [fingerprint for fingerprint in task.fingerprints if fingerprint in self.failures]
        self.progress.end(task, "failed" if failed else "done")
        for message in dict.fromkeys(self.failures[fingerprint] for fingerprint in failed):
            say(f"  {message}")
