"""Checkpoints: which are complete, whether they are of this config, and the last good weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.artifacts import write_json
from xtrrep.config import Loop, Precision, plain
from xtrrep.console import DataError, typed
from xtrrep.train import temperature

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder

STATE = "xtrrep_state.json"  # a checkpoint's last file: with it the checkpoint is complete

# How often something is written or looked at, and where the data lies, say nothing about the weights. Nor does a commit
# of the hub: the stage's identity holds the content there.
NOT_SEMANTIC = {"checkpoint_every", "eval_every", "eval_data", "data", "triples", "lists", "per_query"}
NOT_SEMANTIC |= {"revision", "teacher_revision", "max_bad_rows", "sparse_as"}


def identity_of(
    model: MultiVectorEncoder, loop: Loop, loss: torch.nn.Module, precision: Precision
) -> dict[str, dict[str, Any]]:
    """What a checkpoint was made with, in JSON's types."""
    settings = {key: value for key, value in plain(loop).items() if key not in NOT_SEMANTIC}
    settings["precision"] = precision.value
    if not settings["keep"]:
        del settings["keep"]
    if not loop.learn_temperature:
        settings["temperature_lr"] = None
    describe = getattr(loss, "get_config_dict", dict)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = {type(loop).__name__.lower(): settings, "loss": describe(), "model": {"parameters": parameters}}
    return dict(json.loads(json.dumps(found, default=str)))


def same_config(path: Path, identity: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of a JSON file with a `config`. Raises DataError where that is another, naming what differs."""
    hint = f"rm -r {typed(path.parent)} to start again, or go on with the config that it was begun with"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        there = {f"{part}.{key}": value for part, values in content["config"].items() for key, value in values.items()}
    except FileNotFoundError:
        raise DataError(f"{path.parent} holds checkpoints but no {path.name}", hint=hint) from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is damaged", hint=hint) from None
    here = {f"{part}.{key}": value for part, values in identity.items() for key, value in values.items()}
    differing = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    if differing:
        shown = "; ".join(f"{key}: {there.get(key)} there, {here.get(key)} now" for key in differing[:4])
        raise DataError(f"{path.parent} is of another config ({shown})", hint=hint)
    return dict(content)


def resume_from(checkpoints: Path, identity: dict[str, dict[str, Any]]) -> Path | None:
    """The newest complete checkpoint, of this config; a folder without one is begun anew."""
    found = complete(checkpoints)
    if found:
        same_config(checkpoints / "config.json", identity)
        return found[0]
    shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.mkdir(parents=True)
    write_json(checkpoints / "config.json", {"config": identity})
    return None


def complete(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / STATE).exists()]
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)


def read_state(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    from sentence_transformers import MultiVectorEncoder

    return dict(MultiVectorEncoder(str(checkpoint), device="cpu").state_dict())


def load_last_good(
    model: MultiVectorEncoder,
    loss: torch.nn.Module,
    checkpoints: Path,
    initial: dict[str, torch.Tensor],
    initial_temperature: float | None,
) -> int:
    """Load the newest checkpoint whose weights are all finite, else the initial weights. Returns its step, or 0."""
    step, weights, value = 0, initial, initial_temperature
    for checkpoint in complete(checkpoints):
        candidate = weights_of(checkpoint)
        if all(bool(tensor.isfinite().all()) for tensor in candidate.values()):
            state = read_state(checkpoint)
            step, weights, value = state["step"], candidate, state["temperature"]
            break
    model.load_state_dict(weights)
    if temperature.is_learned(loss) and value is not None:
        temperature.restore(loss, value)
    return step
