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
from xtrrep.experiments.planning import CellKey, Plans
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
    ) -> Result:
        """The result of (row, column, number of the seed): numbers. weights: of the models, "" for none."""
        plans, outcome = Plans(), Outcome[CellKey]()
        for key, numbers in cells.items():
            if isinstance(numbers, str):
                plans.missing[key] = numbers
                continue
            name = "-".join(map(str, key)).replace(" ", "")
            specs = {stage: finished(self.root, stage, name, numbers) for stage in FILES}
            outcome.folders[key] = {stage: artifacts.folder_of(spec, self.root) for stage, spec in specs.items()}
            plans.cells[key] = SimpleNamespace(specs=specs, cfg=self.cfg, steps=self._steps(weights))  # type: ignore[assignment]
        self.patch.setattr(running, "plan", lambda *args, **options: plans)
        self.patch.setattr(running, "run_plans", lambda *args, **options: outcome)
        made, _ = running.run(experiment, dict(overrides or {}))
        return made

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
