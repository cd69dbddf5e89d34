"""One unit of a sweep, in a process of its own: what it says goes to its log, what it makes is an artifact."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from pathlib import Path

from xtrrep import pipeline, preflight
from xtrrep.api import set_threads
from xtrrep.config import Config
from xtrrep.console import OK, DataError, XtrrepError, fail, machine_error
from xtrrep.locks import alone
from xtrrep.pipeline import Plan
from xtrrep.sweep.units import Target, Unit


@dataclass(frozen=True)
class Task:
    """What a process is told. threads: of torch and of an engine's search, where the config does not say.

    share: the number of a process that encodes some of a collection's shards beside others, None for the whole unit.
    """

    unit: Unit
    threads: int | None = None
    share: int | None = None

    @property
    def log(self) -> Path:
        return self.unit.log if self.share is None else self.unit.log.with_suffix(f".share-{self.share}.log")


def carry_out(task: Task) -> int:
    """Do a task; its exit code. Nothing is done where another process is at it, or where it is done."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with alone(task.log) as ours:
        if not ours:
            return OK
        with _said_to(task.log):
            code = _explained(task)
        if code == OK:  # nor are the logs of others who had a share in it of use any more
            shares = task.log.parent.glob(f"{task.log.stem}.share-*.log") if task.share is None else ()
            for log in (task.log, *shares):
                log.unlink(missing_ok=True)
        return code


def _explained(task: Task) -> int:
    try:
        _do(task)
    except XtrrepError as error:
        return fail(error)
    except Exception as error:
        explained = machine_error(error)
        if explained is None:
            traceback.print_exc()
            explained = DataError(f"{type(error).__name__}: {error}", hint=f"its traceback stands in {task.log}")
        return fail(explained)
    return OK


def _do(task: Task) -> None:
    plans = [_plan(target, task.threads) for target in task.unit.targets if not target.complete]
    if not plans:
        return
    preflight.require(plans)
    set_threads(plans[0].cfg.machine.threads)
    if task.share is None:
        pipeline.run(plans)
    else:
        pipeline.run_share(plans[0])


def _plan(target: Target, threads: int | None) -> Plan:
    """The plan of a target here. Raises DataError where it would make another artifact than the one asked for."""
    plan = pipeline.plan_stages(_with_threads(target.cfg, threads), [target.stage])
    if plan.specs[target.stage].fingerprint != target.spec.fingerprint:
        raise DataError(
            f"the stage {target.stage} is another one here than where the sweep was planned: {_apart(plan, target)}",
            hint="plan where you compute, or name machine.device, encode.precision and train.precision",
        )
    return plan


def _apart(plan: Plan, target: Target) -> str:
    """In words, in what an artifact differs."""
    here, there = plan.specs[target.stage].identity, target.spec.identity
    parts = [
        f"{part}.{key} is {here[part].get(key)!r}, not {there[part].get(key)!r}"
        for part in ("config", "content", "upstream")
        for key in sorted(here[part].keys() | there[part].keys())
        if here[part].get(key) != there[part].get(key)
    ]
    return "; ".join(parts)


def _with_threads(cfg: Config, threads: int | None) -> Config:
    return cfg if cfg.machine.threads else replace(cfg, machine=replace(cfg.machine, threads=threads))


@contextmanager
def _said_to(path: Path) -> Iterator[None]:
    """Everything this process and its libraries print goes to a file, in place of what that held."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            for number, old in enumerate(kept, start=1):
                os.dup2(old, number)
                os.close(old)


def main(task: Task) -> None:
    """A worker process of this machine. It ends when whoever started it does, so that a killed sweep leaves nothing
    behind; the artifacts keep what it has done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.join,), daemon=True).start()
    sys.exit(carry_out(task))


def _end_with(wait: Callable[[], None]) -> None:
    wait()
    os._exit(1)
