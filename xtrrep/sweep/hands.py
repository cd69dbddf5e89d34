"""Who does the units of a sweep: processes of this machine, or jobs that submitit starts.

What a hand says of its work counts for nothing but that it has ended: submitit calls a killed job finished. What was
done is for the artifacts to say.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from xtrrep.console import DataError, UsageError
from xtrrep.latency import THREAD_VARIABLES
from xtrrep.sweep import work
from xtrrep.sweep.work import Task

# What a worker imports anyway, once for all of them: a fork of these costs milliseconds, the imports seconds.
PRELOADED = ["xtrrep.sweep.work", "sentence_transformers"]
A_DAY = 24 * 60  # minutes
TIMEOUTS = 20  # how often a job that ran out of its time is queued again; it goes on where it was


class Hands(Protocol):
    """What the control loop needs of whoever works. pause: seconds between looks; elsewhere: on other machines, where
    a finished artifact may show before, or after, its job ends."""

    pause: float
    elsewhere: bool

    def start(self, tasks: Sequence[Task]) -> list[Any]:
        """Begin tasks of one stage; a handle each."""

    def ended(self, handle: Any) -> bool: ...

    def stop(self, handles: Sequence[Any]) -> None:
        """End what is still at work, because whoever waits for it leaves."""


def fix_threads(count: int) -> None:
    """Threads of every process that starts from here on, unless the environment says so already."""
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, str(count))


class Processes:
    """Worker processes of this machine, one a unit, forked from a server that has imported what they need."""

    pause = 0.2
    elsewhere = False

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def start(self, tasks: Sequence[Task]) -> list[Any]:
        started = [self.context.Process(target=work.main, args=(task,)) for task in tasks]
        for process in started:
            process.start()
        return started

    def ended(self, handle: Any) -> bool:
        return not handle.is_alive()

    def stop(self, handles: Sequence[Any]) -> None:
        for process in handles:
            process.kill()
        for process in handles:
            process.join()


class Job:
    """A task as submitit runs it. A job that is pre-empted or out of time is queued again as it is: its stage goes on
    from its checkpoints and shards."""

    def __call__(self, task: Task) -> int:
        return work.carry_out(task)

    def checkpoint(self, task: Task) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


class Jobs:
    """Jobs through submitit: arrays on SLURM, or for `local` a process each on this machine.

    Raises DataError where submitit is not installed or no SLURM is at hand, and UsageError for a parameter that it does
    not know.
    """

    def __init__(self, cluster: str, name: str, folder: Path, asked: Mapping[str, Mapping[str, Any]]) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise DataError("submitit is not installed", hint="pip install '.[cluster]' in the checkout")
        self.cluster, self.name, self.folder, self.asked = cluster, name, folder, asked
        self.elsewhere = cluster != "local"
        self.pause = 10.0 if self.elsewhere else 0.5
        for stage in asked:  # refused now, and not when hours have gone into what comes before
            self.executor(stage)

    def executor(self, stage: str) -> Any:
        """What submits the jobs of a stage: a new one each time, for it would keep what the last was asked for."""
        import submitit

        wanted = {"timeout_min": A_DAY, "name": f"xtrrep-{self.name}", **self.asked[""], **self.asked.get(stage, {})}
        try:
            executor = submitit.AutoExecutor(self.folder, cluster=self.cluster, slurm_max_num_timeout=TIMEOUTS)
        except RuntimeError as error:
            hint = "xtrrep sweep --executor process"
            raise DataError(f"submitit cannot use {self.cluster}: {error}", hint=hint) from None
        try:
            executor.update_parameters(**wanted)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise UsageError(
                f"the sweep's cluster, for {stage or 'any stage'}: {error}",
                hint="docs/SWEEPS.md says what `cluster` may hold",
            ) from None
        return executor

    def start(self, tasks: Sequence[Task]) -> list[Any]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            return list(self.executor(tasks[0].unit.stage).map_array(Job(), tasks))
        except (FailedJobError, FailedSubmissionError) as error:
            hint = "the sweep's `cluster` says what is asked for"
            raise DataError(f"no job could be started: {error}", hint=hint) from None

    def ended(self, handle: Any) -> bool:
        return bool(handle.done())

    def stop(self, handles: Sequence[Any]) -> None:
        if not self.elsewhere:
            for job in handles:
                job.cancel(check=False)
