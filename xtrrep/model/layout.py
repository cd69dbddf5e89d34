"""What a model folder is, told from its files alone; nothing is imported, nothing is loaded."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

from xtrrep.console import DataError


class Layout(Enum):
    saved = "saved"  # a MultiVectorEncoder of sentence-transformers, or a PyLate save, which that library reads
    stanford = "stanford"  # ColBERT of Stanford: one weights file with `bert.*` and `linear.weight`, artifact.metadata
    xtr_t5 = "xtr_t5"  # google/xtr-base-en: a T5 encoder and a Dense folder beside it
    backbone = "backbone"  # anything else: no multi-vector head


def layout_of(folder: Path) -> Layout:
    """Raises DataError where a settings file is not JSON."""
    settings = read_json(folder / "config_sentence_transformers.json")
    if settings.get("model_type") in ("MultiVectorEncoder", "ColBERT") or "query_prefix" in settings:
        return Layout.saved
    config = read_json(folder / "config.json")
    if (folder / "artifact.metadata").exists() or "HF_ColBERT" in (config.get("architectures") or []):
        return Layout.stanford
    if str(config.get("model_type")) in ("t5", "mt5", "umt5") and any(_narrows(dense) for dense in dense_of(folder)):
        return Layout.xtr_t5
    return Layout.backbone


def is_multi_vector(folder: Path) -> bool:
    """Whether a folder is already a multi-vector model, with a head of its own."""
    return layout_of(folder) is not Layout.backbone


def dense_of(folder: Path) -> list[Path]:
    """Folders of linear layers beside a transformer, as sentence-transformers numbers them: 1_Dense, 2_Dense, ..."""
    return sorted(path for path in folder.glob("[0-9]*_Dense") if path.is_dir())


def _narrows(dense: Path) -> bool:
    """Whether a Dense folder maps to fewer dimensions.

    Single-vector T5 models (gtr, sentence-t5) have the same files, but their Dense keeps the width.
    """
    config = read_json(dense / "config.json")
    return int(config.get("out_features", 0)) < int(config.get("in_features", 1))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file. Raises DataError where it is something else."""
    content = _read(path, {})
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not an object", hint="is the folder complete?")
    return content


def read_json_list(path: Path) -> list[Any]:
    """A JSON list, or an empty one where there is no such file. Raises DataError where it is something else."""
    content = _read(path, [])
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}, not a list", hint="is the folder complete?")
    return content


def _read(path: Path, absent: Any) -> Any:
    if not path.exists():
        return absent
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error})", hint="is the folder complete?") from None
