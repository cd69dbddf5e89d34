"""How long a query takes, measured so that the number means something.

A fresh process, its threads fixed before anything is imported, loads index and store and does nothing else. Queries
come encoded, one at a time. A few go first, unmeasured; then all of them, `repeats` times over, each query's time the
median of its repeats, wall time and CPU time of the process side by side, the parts of the work by name. Every repeat
must return the same ranking.

`recipe="paper"` is the study's instead: one call over all queries, no warm-up, once; queries by its wall time.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xtrrep.console import DataError, XtrrepError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
PERCENTILES = (50, 90, 99)
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


@dataclass(frozen=True)
class Job:
    """What a measuring process needs to know: folders and fingerprints, the engine with its parameters, the setting.

    texts: the queries by id, where words are searched: by the engine, or beside it with an index of their own, `words`.
    collection: its documents, for an engine that needs no vectors. A folder that takes no part is "".
    """

    documents: str
    documents_fingerprint: str
    queries: str
    queries_fingerprint: str
    index: str
    index_fingerprint: str
    engine: Mapping[str, Any]
    setting: Mapping[str, Any]
    device: str
    threads: int
    warmup: int
    repeats: int
    max_queries: int
    recipe: str
    texts: Mapping[str, str] = field(default_factory=dict)
    collection: int = 0
    words: str = ""
    words_fingerprint: str = ""
    words_engine: Mapping[str, Any] = field(default_factory=dict)


def processor() -> str:
    """The processor's name and how many of it there are: part of what a time means."""
    name = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:  # not Linux
        import platform

        name = platform.processor()
    return f"{name or 'unknown processor'}, {os.cpu_count()} cores"


def hardware() -> str:
    """The processor, and the first GPU where there is one: what a recorded result was made on."""
    import torch

    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return processor() + gpu


def measure(job: Job) -> dict[str, Any]:
    """Measure in a fresh process. Returns its report; see `_report`. Raises DataError where it fails."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(job.threads))
    done = subprocess.run(
        [sys.executable, "-m", "xtrrep.retrieval.latency", str(os.getpid())],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        said = dict(line.split(": ", 1) for line in lines if line.startswith(("error: ", "hint: ")))
        error = said.get("error", lines[-1] if lines else f"it said nothing and ended with {done.returncode}")
        hint = said.get("hint", "the same command again; `xtrrep doctor` says what is missing")
        raise DataError(f"the measuring process failed: {error}", hint=hint)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


class _Steps:
    """Wall seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _work(job: Job) -> dict[str, Any]:
    import numpy as np
    import torch

    from xtrrep.retrieval.answer import opened

    torch.set_num_threads(job.threads)
    start = time.perf_counter()
    answer = opened(job)
    loaded = time.perf_counter() - start
    search, ids = answer.search, list(answer.ids)
    if job.recipe == "paper":
        start = time.perf_counter()
        answer.all()
        return _report(job, ids, loaded, search, paper=time.perf_counter() - start)
    count = min(len(ids), job.max_queries)
    vectors = [answer.vectors(i) for i in range(count)]
    for i, query in enumerate(vectors[: job.warmup]):
        answer.one(i, query)
    walls, cpus = np.empty((job.repeats, count)), np.empty((job.repeats, count))
    steps: list[list[dict[str, float]]] = []
    first: list[list[tuple[str, float]]] = []
    for repeat in range(job.repeats):
        steps.append([])
        for i, query in enumerate(vectors):
            parts = _Steps()
            wall, cpu = time.perf_counter(), time.process_time()
            ranking = answer.one(i, query, parts)
            walls[repeat, i], cpus[repeat, i] = time.perf_counter() - wall, time.process_time() - cpu
            steps[-1].append(parts.seconds)
            if not repeat:
                first.append(ranking)
            elif ranking != first[i]:
                raise DataError(
                    f"query {ids[i]!r} gets another ranking the second time, so its time cannot be compared",
                    hint="latency.threads=1; if that does not help, another index",
                )
    names = list(dict.fromkeys(name for row in steps for parts in row for name in parts))
    parts_of = {
        name: np.median([[parts.get(name, 0.0) for parts in row] for row in steps], axis=0).tolist() for name in names
    }
    per_query = {"wall": np.median(walls, axis=0).tolist(), "cpu": np.median(cpus, axis=0).tolist()}
    return _report(job, ids[:count], loaded, search, steps=parts_of, **per_query)


def _peak_mb() -> float:
    """The largest resident set of this process, MB. Linux's ru_maxrss would be its parent's, which an exec inherits."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _report(
    job: Job,
    ids: list[str],
    loaded: float,
    search: Mapping[str, Any],
    *,
    wall: Sequence[float] = (),
    cpu: Sequence[float] = (),
    steps: Mapping[str, Sequence[float]] | None = None,
    paper: float | None = None,
) -> dict[str, Any]:
    """Seconds throughout: the whole in `summary`, every query in `queries`."""
    import numpy as np
    import torch

    summary: dict[str, Any] = {
        "recipe": job.recipe,
        "queries": len(ids),
        "threads": job.threads,
        "torch_threads": torch.get_num_threads(),
        "processor": processor(),
        "load_seconds": loaded,
        "search": search,
        "peak_mb": _peak_mb(),
        "load_average": os.getloadavg()[0],
    }
    if paper is not None:
        return {"summary": {**summary, "qps": len(ids) / paper, "seconds": paper}, "queries": []}
    summary |= {"warmup": job.warmup, "repeats": job.repeats, "qps": len(ids) / sum(wall)}
    summary |= {"mean": float(np.mean(wall)), "cpu_per_wall": sum(cpu) / sum(wall)}
    summary |= {f"p{q}": float(np.percentile(wall, q)) for q in PERCENTILES}
    summary["steps"] = {name: float(np.median(values)) for name, values in (steps or {}).items()}
    rows = [
        {"query": name, "wall": wall[i], "cpu": cpu[i], **{step: values[i] for step, values in (steps or {}).items()}}
        for i, name in enumerate(ids)
    ]
    return {"summary": summary, "queries": rows}


def _end_with(parent: int) -> None:
    """Have Linux end this process with the one that waits for it: measured for nobody, it would disturb the next."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):  # not Linux: it ends by itself, later
        return
    if os.getppid() != parent:
        sys.exit("whoever asked for this measurement is gone")


def _main() -> int:
    _end_with(int(sys.argv[1]))
    kept = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is not the report
    try:
        report = _work(Job(**json.load(sys.stdin)))
    except XtrrepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    sys.stdout.flush()
    os.write(kept, json.dumps(report).encode())
    return 0


if __name__ == "__main__":
    sys.exit(_main())
