"""Times as comparisons read them: several processes a cell, and the value of each.

A process is one `latency` artifact (`latency.process` numbers them). `latency.processes` of a cell are shared among its
training seeds. Latencies run in the order of their fingerprints, which are hashes: a random order over the cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from xtrrep import artifacts
from xtrrep.console import DataError
from xtrrep.experiments.comparison import Comparison
from xtrrep.experiments.definition import Experiment
from xtrrep.experiments.result import PerUnit
from xtrrep.measure.evaluate import read_by_query

SECONDS = "seconds"
HOURS_APART = 1.0  # cells measured further apart, on the mean, are not compared
OWN_TIME = 0.8  # of the time of its processors that a measuring process should have had

TimingKey = tuple[str, int, int]  # row, number of the training seed, number of the process


@dataclass
class Times:
    """Folders of the processes that were measured, and what each took: the geometric mean over its queries, seconds."""

    folders: Mapping[TimingKey, Path]
    seeds: int
    read: dict[TimingKey, float] = field(default_factory=dict)
    queries: set[str] = field(default_factory=set)

    def keys(self, row: str, first: int, count: int) -> list[list[TimingKey]]:
        """By seed, those of `count` processes."""
        return [[(row, seed, first + number) for number in range(count)] for seed in range(self.seeds)]

    def per_process(self, row: str, count: int, first: int = 0) -> PerUnit:
        """(S, P) seconds. Raises DataError where a process is lacking, or was over other queries than the others."""
        keys = self.keys(row, first, count)
        values = [[self._value(key) for key in own] for own in keys]
        return PerUnit(tuple(str(first + number) for number in range(count)), np.array(values))

    def _value(self, key: TimingKey) -> float:
        if key not in self.folders:
            raise DataError(f"{key[0]}: a process was not measured", hint="the same command again")
        if key not in self.read:
            wall = read_by_query(self.folders[key] / "latency.csv")["wall"].astype(float)
            queries = set(map(str, wall.index))
            if self.queries and self.queries != queries:
                raise DataError(
                    f"its runs are not over the same queries ({len(queries)} and {len(self.queries)})",
                    hint="one data= for all cells of a comparison",
                )
            self.queries = queries
            self.read[key] = float(np.exp(np.log(wall).mean()))
        return self.read[key]


def processes_of(experiment: Experiment, processes: int) -> dict[str, int]:
    """How many processes of one training each row needs: twice as many where a comparison sets it against itself."""
    share = shared(experiment, processes)
    needed: dict[str, int] = {}
    for comparison in experiment.comparisons:
        for cell in {*comparison.plus, *comparison.minus} if comparison.timed else ():
            twice = 2 if cell in comparison.plus and cell in comparison.minus else 1
            needed[cell] = max(needed.get(cell, 0), twice * share)
    return needed


def shared(experiment: Experiment, processes: int) -> int:
    """Processes of one training: those of a cell, shared among its training seeds."""
    return -(-processes // (len(experiment.seeds) or 1))


def sides_of(comparison: Comparison, times: Times, count: int) -> tuple[list[PerUnit], list[PerUnit], list[TimingKey]]:
    """The grids of both sides and what they are of. A cell on both sides is another group of processes on the second.

    Raises DataError as `Times.per_process`.
    """
    firsts = [count if cell in comparison.plus else 0 for cell in comparison.minus]
    plus = [times.per_process(cell, count) for cell in comparison.plus]
    minus = [times.per_process(cell, count, first) for cell, first in zip(comparison.minus, firsts, strict=True)]
    places = [*((cell, 0) for cell in comparison.plus), *zip(comparison.minus, firsts, strict=True)]
    return plus, minus, [key for cell, first in places for own in times.keys(cell, first, count) for key in own]


def doubt_of_times(groups: Sequence[Sequence[Path]]) -> str:
    """Why the times of these groups of latencies do not compare, or nothing: the test cannot see that the machine had
    changed between two groups, or was busy with other work during one."""
    manifests = [[artifacts.read_manifest(folder) for folder in group] for group in groups]
    when = [
        float(np.mean([datetime.fromisoformat(manifest["made"]).timestamp() for manifest in group]))
        for group in manifests
    ]
    hours = (max(when) - min(when)) / 3600
    if hours > HOURS_APART:
        return f"measured {hours:.1f} hours apart; to measure together remove results/runs/latency"
    shares = [
        float(
            np.mean([manifest["facts"].get("cpu_per_wall", 1.0) / manifest["facts"]["threads"] for manifest in group])
        )
        for group in manifests
    ]
    if min(shares) < OWN_TIME and max(shares) / min(shares) > 1 / OWN_TIME:
        return f"one of them had {min(shares):.2f} of a processor's time, another {max(shares):.2f}: busy with others"
    return ""
