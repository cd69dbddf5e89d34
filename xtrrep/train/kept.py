"""Models kept as training proceeds: one folder for each step of `train.keep`, beside the last one's `model/`.

A folder gets its name when all of it is there. So after a kill every kept step that a checkpoint lies behind is whole,
and later ones are made again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from xtrrep.train import temperature

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder

KEPT = "kept"


def folder_of(out: Path, step: int | None) -> Path:
    """Where a training's folder holds the model of a kept step; None is the last one."""
    return out / "model" if step is None else out / KEPT / str(step)


def save(model: MultiVectorEncoder, loss: torch.nn.Module, folder: Path, *, card: bool = False) -> None:
    """A model and its learned temperature, as plain sentence-transformers loads it."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _settle(model)
    model.save_pretrained(str(partial), create_model_card=card)
    temperature.save(loss, partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def forget_after(out: Path, step: int | None) -> None:
    """Drop what was kept after the step that a training goes on from, or all of it where it starts."""
    for folder in (out / KEPT).glob("*"):
        if step is None or not folder.name.isdecimal() or int(folder.name) > step:
            shutil.rmtree(folder)


def _settle(model: MultiVectorEncoder) -> None:
    """The same files from a process that trained and from one that found all steps done: the tokenizer keeps padding
    and truncation of its last call, and the similarity is filled in when first asked for."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    model.similarity_fn_name = model.similarity_fn_name
