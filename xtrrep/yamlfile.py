"""Definitions in YAML files: read, and refused with the file and the fault named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from xtrrep.console import UsageError, suggest


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises UsageError, with the line, where it is none."""
    try:
        return yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none, a huge number
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def need_mapping(path: Path, what: str, value: Any) -> dict[Any, Any]:
    """`value`, where it is a mapping. Raises UsageError."""
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {what} is not a mapping")
    return value


def need_list(path: Path, what: str, value: Any) -> list[Any]:
    """`value`, where it is a list. Raises UsageError."""
    if not isinstance(value, list):
        raise UsageError(f"{path}: {what} is not a list")
    return value


def words_in(path: Path, what: str, value: Any) -> tuple[str, ...]:
    """The texts and numbers of a list, as texts. Raises UsageError."""
    for word in need_list(path, what, value):
        if not isinstance(word, str | int | float):
            raise UsageError(f"{path}: {what} holds {word!r}, which is no word")
    return tuple(map(str, value))


def need_number(path: Path, what: str, value: Any) -> None:
    """Raises UsageError for anything but a finite number."""
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return
    except OverflowError:  # an integer that no float holds
        pass
    raise UsageError(f"{path}: {what} is not a number: {value!r}")


def check_keys(path: Path, what: str, value: Any, known: set[str], needed: set[str]) -> None:
    """Refuse a mapping of a file with a key that is unknown or one that is lacking. Raises UsageError."""
    for key in need_mapping(path, what, value):
        if key not in known:
            raise UsageError(f"{path}: {what} has an unknown key {key!r}", hint=suggest(str(key), known))
    for key in sorted(needed - value.keys()):
        raise UsageError(f"{path}: {what} has no {key!r}")
