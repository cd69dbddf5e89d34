"""The learned temperature outside the loss: read, written beside a model, put back.

sentence-transformers trains a parameter of the loss, but neither saves it nor restores it on resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xtrrep.artifacts import write_json

if TYPE_CHECKING:
    import torch

FILE = "xtrrep_temperature.json"


def is_learned(loss: torch.nn.Module) -> bool:
    """Whether a loss has a temperature that trains with the model."""
    import torch

    return isinstance(getattr(loss, "temperature", None), torch.nn.Parameter)


def value_of(loss: torch.nn.Module) -> float | None:
    """The temperature now, exactly (a float32 fits a Python float); None for a loss without one."""
    import torch

    found = getattr(loss, "temperature", None)
    return float(found.detach()) if isinstance(found, torch.Tensor) else found


def restore(loss: torch.nn.Module, value: float) -> None:
    """Set a learned temperature in place, so that optimizers keep their hold of it."""
    import torch

    with torch.no_grad():
        loss.temperature.fill_(value)  # type: ignore[operator]


def save(loss: torch.nn.Module, folder: Path) -> None:
    """Write a learned temperature into a model's folder; plain sentence-transformers passes over the file."""
    if is_learned(loss):
        write_json(folder / FILE, {"temperature": value_of(loss)})
