"""What a training leaves to read: log.jsonl, loss.csv, eval.csv, tensorboard and W&B; and when it has diverged."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.artifacts import digest, write_atomic
from xtrrep.config import Loop, Machine, Precision, plain
from xtrrep.console import DataError, say
from xtrrep.train import temperature

if TYPE_CHECKING:
    import torch

Record = Callable[[int, dict[str, float]], None]

COLUMNS = ["step", "loss", "learning_rate", "grad_norm", "temperature"]
# fp16's loss scale is found by overflowing: it begins at 2^16, and a step whose gradient is infinite is left out and
# halves it. So many in a row, and what still overflows at 2^-8 is no gradient.
LEFT_OUT = 24


class Diverged(Exception):
    """The loss, its gradient or the temperature stopped being usable at a step (counted from 1)."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"{reason} at step {step}")
        self.step = step
        self.reason = reason


class Log:
    """log.jsonl and what listens beside it; a resumed run drops the rows after its checkpoint.

    Without a path nothing is written, and a divergence is seen all the same: so for all ranks but the first.
    """

    def __init__(
        self,
        path: Path | None,
        loss: torch.nn.Module,
        precision: Precision,
        start: int,
        steps: int,
        records: list[Record],
    ) -> None:
        self.path = path
        self.loss = loss
        self.patience = min(LEFT_OUT, steps) if precision is Precision.fp16 else 1
        self.records = records
        self.left_out = 0  # steps in a row, since this process began, without a finite gradient: the same on all ranks
        if path is not None:
            kept = [row for row in read_log(path) if row["step"] <= start]
            write_atomic(path, lambda file: file.write("".join(json.dumps(row) + "\n" for row in kept).encode()))

    def step(self, step: int, logs: dict[str, float]) -> None:
        """Write a step's row. Raises Diverged."""
        values = {key: float(logs[key]) for key in COLUMNS[1:4]} | {"temperature": temperature.value_of(self.loss)}
        self.left_out = 0 if math.isfinite(float(logs["grad_norm"])) else self.left_out + 1
        reason = self._why(values)
        self._write(step, _finite(values) | ({"diverged": reason} if reason else {}))
        if reason:
            raise Diverged(step, reason)
        for record in self.records:
            record(step, {f"train/{key}": value for key, value in values.items() if value is not None})

    def evaluation(self, step: int, measures: dict[str, float]) -> None:
        self._write(step, {"eval": _finite(measures)})
        for record in self.records:
            record(step, {f"eval/{key}": value for key, value in measures.items()})

    def _why(self, values: dict[str, Any]) -> str | None:
        if not math.isfinite(values["loss"]):
            return f"the loss is {values['loss']}"
        if self.left_out >= self.patience:
            often = f", in {self.left_out} steps in a row: bf16 or fp32 may hold it," if self.patience > 1 else ""
            return f"the gradient's norm is {values['grad_norm']}{often}"
        if values["temperature"] is not None and not 0 < values["temperature"] < math.inf:
            return f"the temperature is {values['temperature']:.4g}"
        return None

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | values) + "\n")


def recorders(machine: Machine, out: Path, loop: Loop, start: int, stack: ExitStack) -> list[Record]:
    """What else receives each row. Raises DataError for wandb that is not installed; tensorboard is then left out."""
    records: list[Record] = []
    if machine.tensorboard and importlib.util.find_spec("tensorboard") is None:
        say("  no event files: tensorboard is not installed (pip install tensorboard, or machine.tensorboard=false)")
    elif machine.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: what a killed run wrote after its checkpoint disappears from the curves.
        writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)
        stack.callback(writer.close)

        def to_tensorboard(step: int, values: dict[str, float]) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)

        records.append(to_tensorboard)
    if machine.wandb:
        if importlib.util.find_spec("wandb") is None:
            raise DataError(
                "machine.wandb=true, but wandb is not installed", hint="pip install wandb, or machine.wandb=false"
            )
        wandb = importlib.import_module("wandb")
        # The same id for the same folder: a resumed run goes on in its own curve.
        run = wandb.init(project="xtrrep", dir=str(out), id=digest(str(out)), resume="allow", config=plain(loop))
        stack.callback(run.finish)
        records.append(lambda step, values: run.log(values, step=step))
    return records


def read_log(path: Path, key: str | None = None) -> list[dict[str, Any]]:
    """The rows of a training log, those that have `key` (`loss` or `eval`); a line cut short by a kill ends it."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [row for row in rows if key is None or key in row]


def write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Empty where a row has no number."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(column) for column in columns] for row in rows)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
