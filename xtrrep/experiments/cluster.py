"""Workers on Ray: a Ray of our own on this machine, or a cluster that is already running."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xtrrep.console import DISK_FULL, MEMORY, DataError, machine_error
from xtrrep.experiments.tasks import Task, one_line, perform
from xtrrep.pipeline import threads
from xtrrep.retrieval.latency import THREAD_VARIABLES

RETRIES = 5  # of a task whose worker process or node has died
OBJECT_STORE = 80_000_000  # bytes; only errors travel through it
SHARED = Path("/dev/shm")
ROOM = 1_000_000  # bytes that Ray needs for its log and socket files
# Threads that wait must not spin: other tasks need the cores. Read when torch is loaded.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
# A Ray of our own sends no usage report, takes work from nobody else, and gives up a task that runs out of memory again
# and again.
OWN_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_task_oom_retries": "2",
}
CARRIED = ("XTRREP_", "HF_", "PYTHONPATH", *WAITING)  # variables of the command that workers get too


class RayWorkers:
    """Workers of the Ray that this process is connected to.

    jobs: how many tasks run at a time on this machine, each with as many threads as one process alone would have, so
    that its results are the same to the byte. None for a cluster: there a task has as many threads as cores.
    """

    def __init__(self, jobs: int | None = None) -> None:
        import ray

        self.ray, self.jobs = ray, jobs
        self.submit_to_ray = ray.remote(perform)
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        self.largest = {name: max(node.get(name, 0) for node in nodes.values()) for name in ("CPU", "memory")}
        self.here = ray.get_runtime_context().get_node_id()
        self.resources_here: Mapping[str, float] = nodes[self.here]
        self.slots = jobs or int(sum(node.get("CPU", 0) for node in nodes.values())) // 4 or 1
        self.threads = _threads_alone() if jobs else {}

    def submit(self, task: Task, share: int | None = None) -> Any:
        """Queue a task; Ray starts it where its needs fit, and again where its worker dies. Returns a reference."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # A task larger than every node gets a whole one.
        cores = 1 if self.jobs else int(min(task.cores, self.largest["CPU"] or task.cores))
        memory = int(min(task.memory, self.largest["memory"] or task.memory))
        options: dict[str, Any] = {"num_cpus": cores, "num_gpus": task.gpus, "memory": memory}
        if task.alone:  # all of the node that planned it: a time belongs to the processor it was planned for
            options["num_cpus"] = self.resources_here.get("CPU", 0)
            options["num_gpus"] = self.resources_here.get("GPU", 0)
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self.here, soft=False)
        fixed = self.threads or dict.fromkeys(THREAD_VARIABLES, str(cores))
        carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        options["runtime_env"] = {"env_vars": {**WAITING, **fixed, **carried}}
        remote = self.submit_to_ray.options(name=task.label, max_retries=RETRIES, **options)
        return remote.remote(task, str(Path.cwd()), share)

    def wait(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """Those of the references that have ended, after at most so many seconds."""
        ended, _ = self.ray.wait(list(references), num_returns=1, timeout=seconds)
        return list(ended)

    def result(self, reference: Any, task: Task) -> dict[str, str]:
        """The errors of a task that has ended, by fingerprint."""
        from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

        try:
            failures: dict[str, str] = self.ray.get(reference)
            return failures
        except RayTaskError as error:
            reason = str(error.cause).strip().partition("\n")[0]
            known = DataError(
                f"a worker could not run {task.label}: {reason}", hint="install one version of the package on all nodes"
            )
        except OutOfMemoryError:
            known = DataError(f"the machine ran out of memory during {task.label}", hint=MEMORY)
        except RayError as error:
            reason = f"{type(error).__name__}, after {RETRIES} retries"
            known = DataError(f"the worker of {task.label} died ({reason})", hint=f"less {task.log()}")
        return dict.fromkeys(task.fingerprints, one_line(known))


def _threads_alone() -> dict[str, str]:
    """The threads that one process has here: of torch, and of numpy's products."""
    import numpy  # noqa: F401  # both are loaded before they are counted
    import torch  # noqa: F401

    counts = threads()
    fixed = {"OMP_NUM_THREADS": counts["threads"], "MKL_NUM_THREADS": counts["threads"]}
    if "blas_threads" in counts:
        fixed["OPENBLAS_NUM_THREADS"] = counts["blas_threads"]
    return {name: str(count) for name, count in fixed.items()}


@contextmanager
def local_workers(jobs: int, memory_gb: float | None) -> Iterator[RayWorkers]:
    """A Ray on this machine that ends with the block, or with this process. Raises DataError without Ray.

    memory_gb: what the tasks may take together; 80 % of what is free if None.
    """
    import psutil

    _need_ray()
    os.environ.update(OWN_RAY, RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray
    from ray._common.utils import get_default_system_temp_dir

    folder = Path(get_default_system_temp_dir())
    memory = 1e9 * memory_gb if memory_gb is not None else 0.8 * psutil.virtual_memory().available
    try:
        ray.init(
            address="local",
            num_cpus=jobs,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE,
            _memory=int(memory),
            _plasma_directory=None if _has_shared_memory() else str(folder),
        )
    except Exception as error:  # each of its processes fails in its own way, many of them by not answering
        ray.shutdown()
        raise _cannot_start(error, folder) from error
    try:
        yield RayWorkers(jobs)
    finally:
        ray.shutdown()


@contextmanager
def cluster_workers() -> Iterator[RayWorkers]:
    """The cluster at $RAY_ADDRESS, or the one that this machine is part of. Raises DataError where there is none."""
    _need_ray()
    import ray

    address = os.environ.get("RAY_ADDRESS", "auto")
    host, _, port = address.partition(":")
    try:
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=20).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"no Ray cluster at {address}: {reason}", hint="ray start --head, or set RAY_ADDRESS") from None
    try:
        yield RayWorkers()
    finally:
        ray.shutdown()


def _has_shared_memory() -> bool:
    """Whether Ray can keep its objects in shared memory. Without it Ray would not start, or warn of slow objects."""
    return os.access(SHARED, os.W_OK) and shutil.disk_usage(SHARED).free > OBJECT_STORE


def _cannot_start(error: Exception, folder: Path) -> DataError:
    """Why Ray did not start: a folder for its files that is full or closed, or what it says itself."""
    if known := machine_error(error, "RAY_TMPDIR"):
        return known
    if "AF_UNIX" not in str(error) and shutil.disk_usage(folder if folder.exists() else folder.parent).free < ROOM:
        return DataError(
            f"Ray has no room for its files in {folder}", hint=DISK_FULL.replace("XTRREP_HOME", "RAY_TMPDIR")
        )
    reason = str(error).strip().partition("\n")[0]
    return DataError(
        f"Ray could not start on this machine: {reason}",
        hint="export RAY_TMPDIR=/tmp, or another short path with room; `xtrrep doctor` checks temporary files",
    )


def _need_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise DataError("Ray is not installed", hint="pip install 'ray>=2.50'")
