"""Results of made-up scores: what `run` reads and compares, without a model, an index or a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xtrrep import artifacts
from xtrrep.artifacts import Spec
from xtrrep.config import compose
from xtrrep.experiments import run as running
from xtrrep.experiments.definition import Experiment
from xtrrep.experiments.execute import Outcome
from xtrrep.experiments.planning import AnalysisKey, CellKey, Plans
from xtrrep.experiments.result import Result

FILES = {"evaluate": ("per_query.csv", "nDCG@10"), "latency": ("latency.csv", "wall")}


def finished(root: Path, stage: str, name: str, numbers: Sequence[float]) -> Spec:
    """A finished evaluation (measure nDCG@10) or latency of queries 00, 01, ... below `root`."""
    file, column = FILES[stage]

    def fill(out: Path) -> dict[str, Any]:
        lines = [f"query,{column}", *(f"{query:02},{number}" for query, number in enumerate(numbers))]
        (out / file).write_text("\n".join(lines) + "\n")
        return {"measures": {"nDCG@10": float(np.mean(numbers))}, "qps": 1 / float(np.mean(numbers)), "threads": 1}

    spec = Spec(stage, name, 1, {"name": name, "numbers": list(map(float, numbers))})
    artifacts.make(spec, root, fill)
    return spec


class Bench:
    """Runs experiments whose cells are made up: numbers by query, or the reason why there are none."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.patch = monkeypatch
        self.cfg = compose()

    def result(
        self,
        experiment: Experiment,
        cells: Mapping[CellKey, Sequence[float] | str],
        overrides: Mapping[str, str] | None = None,
        weights: str = "",
        processes: int = 1,
        analyses: Mapping[AnalysisKey, Path] | None = None,
    ) -> Result:
        """The result of (row, column, number of the seed): numbers. weights: of the models, "" for none. processes: of
        each training, whose times are what `time` makes of a cell's numbers. analyses: folders with a units.csv."""
        plans, outcome = Plans(), Outcome[CellKey]()
        folders: dict[Any, Mapping[str, Path]] = outcome.folders
        timed = {cell for c in experiment.comparisons if c.timed for cell in (*c.plus, *c.minus)}
        plans.processes = processes
        for key, numbers in cells.items():
            if isinstance(numbers, str):
                plans.missing[key] = numbers
                continue
            name = "-".join(map(str, key)).replace(" ", "")
            row, _, seed = key
            for process in range(2 * processes if row in timed else 0):
                spec = finished(self.root, "latency", f"{name}-{process}", self.time(row, seed, process, numbers))
                folders[row, seed, process] = {"latency": artifacts.folder_of(spec, self.root)}
                plans.timings[row, seed, process] = self._plan({"latency": spec}, weights)
            specs = {stage: finished(self.root, stage, name, numbers) for stage in FILES}
            folders[key] = {stage: artifacts.folder_of(spec, self.root) for stage, spec in specs.items()}
            plans.cells[key] = self._plan(specs, weights)
        for key, folder in (analyses or {}).items():
            whole = SimpleNamespace(
                folder=folder, plans=(), units="queries", spec=SimpleNamespace(fingerprint=folder.name)
            )
            plans.analyses[key] = whole  # type: ignore[assignment]
        self.patch.setattr(running, "run_analysis", lambda whole: whole.folder)
        self.patch.setattr(running, "plan", lambda *args, **options: plans)
        self.patch.setattr(running, "run_plans", lambda *args, **options: outcome)
        made, _ = running.run(experiment, dict(overrides or {}))
        return made

    def time(self, row: str, seed: int, process: int, numbers: Sequence[float]) -> Sequence[float]:
        """Seconds by query of one process."""
        return numbers

    def _plan(self, specs: Mapping[str, Spec], weights: str) -> Any:
        return SimpleNamespace(specs=specs, cfg=self.cfg, steps=self._steps(weights))

    def _steps(self, weights: str) -> list[SimpleNamespace]:
        if not weights:
            return []

        def fill(out: Path) -> dict[str, Any]:
            (out / "model.safetensors").write_text(weights)
            (out / "loss.csv").write_text(f"a time of {weights}")
            return {}

        spec = Spec("train", weights, 1, {"weights": weights})
        folder = artifacts.make(spec, self.root, fill)
        stage = SimpleNamespace(name="train", root=lambda: self.root)
        return [SimpleNamespace(folder=folder, spec=spec, stage=stage)]
