"""Which precision is faster on this processor: measured once, cached, and the same for every run after that.

A processor that has bfloat16 instructions isn't always faster with them: some run them at half the rate of float32.
`precision: auto` on a CPU therefore means a short timing of the products that a small encoder is made of, on one
thread, forward and backward for training and forward alone for encoding. The timing is kept in
`$XDG_CACHE_HOME/xtrrep/precision.json` (`~/.cache` by default), under a key that names the processor, its
instructions, the version of torch and the settings that limit its instructions. Another key is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from xtrrep.artifacts import write_json
from xtrrep.artifacts.locks import lock
from xtrrep.config import Precision

Work = Literal["train", "encode"]
WORKS: tuple[Work, ...] = ("train", "encode")
SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")

WIDTH, INNER = 384, 1536  # of MiniLM's feed-forward layers, where most of its time goes
FIRST_TOKENS, TOKENS = 64, 512  # of a product
HOPELESS = 4.0  # times float32's time at FIRST_TOKENS: emulated bfloat16 takes 20 times, so there is nothing to refine
ROUNDS = 5  # at most
SECONDS = 0.4  # for one kind of work


@dataclass(frozen=True)
class Timing:
    """Milliseconds of processor time for the same products in both precisions."""

    fp32: float
    bf16: float

    @property
    def faster(self) -> Precision:
        return Precision.bf16 if self.bf16 < self.fp32 else Precision.fp32


def resolve_precision(precision: Precision, device: str, work: Work = "encode") -> Precision:
    """`auto` becomes what is faster for this work: timed on a CPU, bf16 on a GPU that has it. fp16 needs a GPU and is
    fp32 on a CPU."""
    if precision is Precision.fp16 and device == "cpu":
        return Precision.fp32
    if precision is not Precision.auto:
        return precision
    if device == "cpu":
        return timings()[work].faster
    import torch

    return Precision.bf16 if torch.cuda.is_bf16_supported() else Precision.fp16


def timing_facts(precision: Precision, device: str, work: Work) -> dict[str, Any]:
    """For a manifest: the two times behind `auto` on a CPU, nothing otherwise."""
    if precision is not Precision.auto or device != "cpu":
        return {}
    return {"precision_timing": {"milliseconds": asdict(timings()[work]), "processor": processor_name()}}


def describe(work: Work) -> str:
    """The choice of `auto` on this processor and the times behind it."""
    timing = timings()[work]
    return f"{timing.faster.value} (fp32 {timing.fp32:.1f} ms, bf16 {timing.bf16:.1f} ms for the same products)"


@cache
def timings() -> dict[Work, Timing]:
    """The timing of each kind of work on this processor, from the cache or measured now.

    A cache that cannot be read or written is no error: the timing is then measured once a process.
    """
    path, key = cache_file(), machine_key()
    try:
        # One process measures at a time. The others wait and read, so several ranks agree.
        with lock(path.with_suffix(".lock"), "the timing of both precisions on this processor"):
            known = _read(path)
            if key not in known:
                known[key] = {"processor": processor_name(), **{work: asdict(t) for work, t in measure().items()}}
                write_json(path, known)
            return {work: Timing(**known[key][work]) for work in WORKS}
    except OSError:
        return measure()


def cache_file() -> Path:
    """Where the timings of this user's machines are kept."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "xtrrep" / "precision.json"


def machine_key() -> str:
    """What a timing holds for: the processor and its instructions, torch's version, settings that limit them."""
    lines = _cpuinfo()
    names = ("vendor_id", "cpu family", "model", "model name", "stepping")
    parts = [f"{name}={lines.get(name, '')}" for name in names] or [platform.processor()]
    parts += [" ".join(sorted(lines.get("flags", "").split())), platform.machine(), version("torch")]
    parts += [f"{name}={os.environ.get(name, '')}" for name in SETTINGS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def processor_name() -> str:
    """The processor as its maker calls it."""
    return _cpuinfo().get("model name") or platform.processor() or "unknown processor"


@cache
def _cpuinfo() -> dict[str, str]:
    """The lines of /proc/cpuinfo for the first processor; empty where there is none (not Linux)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _read(path: Path) -> dict[str, Any]:
    """The cache's entries that are sound."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {key: entry for key, entry in known.items() if _is_sound(entry)} if isinstance(known, dict) else {}


def _is_sound(entry: Any) -> bool:
    times = [entry.get(work) for work in WORKS] if isinstance(entry, dict) else [None]
    return all(
        isinstance(timing, dict)
        and timing.keys() == {"fp32", "bf16"}
        and all(isinstance(value, float) and value > 0 for value in timing.values())
        for timing in times
    )


def measure() -> dict[Work, Timing]:
    """Time both kinds of work in both precisions, on one thread, in about a second. Leaves torch as it was."""
    from xtrrep.model.encoder import torch_threads

    with torch_threads(1):
        return {work: _measure(work) for work in WORKS}


def _measure(work: Work) -> Timing:
    """The best of a few rounds that take turns, in processor time, so that other processes hardly matter."""
    found = Timing(0.0, 0.0)
    for tokens in (FIRST_TOKENS, TOKENS):
        runs = {precision: _work(work, precision, tokens) for precision in (Precision.fp32, Precision.bf16)}
        for run in runs.values():
            run()  # the first run prepares kernels
        best = dict.fromkeys(runs, float("inf"))
        end = time.perf_counter() + SECONDS
        for _ in range(ROUNDS):
            for precision, run in runs.items():
                start = time.process_time()
                run()
                best[precision] = min(best[precision], time.process_time() - start)
            if time.perf_counter() > end:
                break
        found = Timing(*(round(1000 * best[precision], 3) for precision in (Precision.fp32, Precision.bf16)))
        if found.bf16 > HOPELESS * found.fp32:
            break
    return found


def _work(work: Work, precision: Precision, tokens: int) -> Callable[[], None]:
    """A function that does one round: two linear layers under the context in which this work is done."""
    import torch

    from xtrrep.model.forward import arithmetic

    generator = torch.Generator().manual_seed(0)  # the global one must not move
    training = work == "train"
    shapes = ((tokens, WIDTH), (INNER, WIDTH), (WIDTH, INNER))
    values, up, down = (torch.randn(shape, generator=generator).requires_grad_(training) for shape in shapes)

    def once() -> None:
        outside = torch.autocast("cpu", torch.bfloat16, enabled=precision is Precision.bf16)
        with (
            outside if training else arithmetic(precision, "cpu"),
            nullcontext() if training else torch.inference_mode(),
        ):
            out = torch.nn.functional.linear(torch.nn.functional.linear(values, up), down)
        if training:
            out.float().mean().backward()  # type: ignore[no-untyped-call]

    return once
