"""Numbers of a run beside its measures: speed, sizes, and what the manifests of its stages count.

A number is one of NUMBERS, or STAGE.FACT: a fact that the stage wrote into its manifest (retrieve.mean_candidates,
documents.tokens), or its `seconds`. `overlap@K` compares two rankings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep import artifacts
from xtrrep.console import DataError, suggest
from xtrrep.measure import run_file
from xtrrep.measure.evaluate import read_by_query
from xtrrep.measure.run_file import Run
from xtrrep.pipeline.stages.table import BY_NAME

if TYPE_CHECKING:
    import pandas

QPS = "qps"
BY_UNIT = {
    "seconds": "latency",
    "candidates": "retrieve",
}  # that have a value for each query, and the stage they are of

Folders = Mapping[str, Path]


@dataclass(frozen=True)
class Number:
    """stage: whose output holds it. read: from the folders of all stages; None where this run has none."""

    stage: str
    read: Callable[[Folders], float | None]


def _size(folder: Path, below: str = "") -> int:
    """Bytes of an artifact's files whose path begins with `below`."""
    files = artifacts.read_manifest(folder)["files"]
    return sum(entry["bytes"] for name, entry in files.items() if name.startswith(below))


def _times(folders: Folders, kind: str) -> pandas.Series[float]:
    """Seconds by query, of the clock or of the processor. Raises DataError where all were timed in one call."""
    frame = read_by_query(folders["latency"] / "latency.csv")
    if kind not in frame:
        raise DataError(f"{folders['latency']} has no time for each query", hint="latency.recipe=single")
    return frame[kind].astype(float)


def _bytes_per_token(folders: Folders) -> float | None:
    """Of the engine's files; the exact engine has none, and searches the vectors."""
    if "documents" not in folders:
        return None  # words alone
    held = folders["index"] if artifacts.read_manifest(folders["index"])["files"] else folders["documents"]
    return (_size(held) - _size(held, "tokens/")) / int(_facts(folders["documents"])["tokens"])


def _milliseconds(fact: str) -> Callable[[Folders], float | None]:
    def read(folders: Folders) -> float | None:
        facts = _facts(folders["latency"])
        return 1000 * facts[fact] if fact in facts else None

    return read


NUMBERS = {
    QPS: Number("latency", lambda folders: float(_facts(folders["latency"])["qps"])),
    "p50_ms": Number("latency", _milliseconds("p50")),
    "p95_ms": Number("latency", lambda folders: 1000 * float(_times(folders, "wall").quantile(0.95))),
    "p99_ms": Number("latency", _milliseconds("p99")),
    "cpu_ms": Number("latency", lambda folders: 1000 * float(_times(folders, "cpu").mean())),
    "store_bytes": Number("documents", lambda folders: _size(folders["documents"], "vectors/")),
    "index_bytes": Number("index", lambda folders: _size(folders["index"]) or None),
    "bytes_per_token": Number("index", _bytes_per_token),
}


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = artifacts.read_manifest(folder)["facts"]
    return facts


def timing_note(folders: Folders) -> str:
    """How the times of a latency were measured."""
    timed = _facts(folders["latency"])
    return (
        f"Times: recipe={timed['recipe']}, {timed['queries']} queries, {timed['threads']} threads, a process a row; "
        f"{timed['processor']}. They compare with each other only."
    )


def is_number(name: str) -> bool:
    """Whether a name is that of a number, and not of a measure."""
    return name in NUMBERS or name.partition(".")[0] in BY_NAME


def is_measure(name: str) -> bool:
    """Whether a name is that of a measure, whose values are in points."""
    return not is_number(name) and not overlap_depth(name) and name not in BY_UNIT


def stage_of(name: str) -> str:
    """The stage whose output holds a value: a measure is of `evaluate`."""
    if overlap_depth(name):
        return "retrieve"
    if name in NUMBERS:
        return NUMBERS[name].stage
    return name.partition(".")[0] if is_number(name) else BY_UNIT.get(name, "evaluate")


def read_number(name: str, folders: Folders) -> float | None:
    """A number of a run. Raises DataError where the stage has no such fact."""
    if name in NUMBERS:
        return NUMBERS[name].read(folders)
    stage, _, fact = name.partition(".")
    manifest = artifacts.read_manifest(folders[stage])
    known = {"seconds": manifest["seconds"], **manifest["facts"]}
    if not isinstance(known.get(fact), int | float):
        numbers = [key for key, value in known.items() if isinstance(value, int | float)]
        raise DataError(f"{folders[stage]} counts no {fact!r}", hint=suggest(fact, numbers))
    return float(known[fact])


def overlap_depth(name: str) -> int:
    """K of `overlap@K`; 0 for any other name."""
    found = re.fullmatch(r"overlap@([1-9]\d*)", name)
    return int(found[1]) if found else 0


def overlaps(found: Run, truth: Run, depth: int) -> dict[str, float]:
    """By query, the share of the first `depth` documents of `truth` that stand among the first `depth` of `found`."""
    shares = {}
    for query, ranking in truth.items():
        wanted = {document for document, _ in ranking[:depth]}
        if wanted:
            shares[query] = len(wanted & {document for document, _ in found.get(query, [])[:depth]}) / len(wanted)
    return shares


def overlap(found: Run, truth: Run, depth: int) -> float:
    """The mean of `overlaps`."""
    shares = overlaps(found, truth, depth).values()
    return sum(shares) / len(shares) if shares else 0.0


def relative(name: str, folders: Folders, other: Folders) -> float | None:
    """A number of a run against another run's: the overlap of their rankings, or a ratio."""
    if depth := overlap_depth(name):
        found, truth = (run_file.read(one["retrieve"] / "run.trec") for one in (folders, other))
        return overlap(found, truth, depth)
    value, base = read_number(name, folders), read_number(name, other)
    return value / base if value is not None and base else None
