"""Definitions in YAML files: read, and refused with the file and the fault named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from xtrrep.console import UsageError, suggest


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises UsageError, with the line, where it is none."""
    try:
        return yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none, a huge number
        raise UsageError(
            f"{path} is not YAML: {' '.join(str(error).split())}", hint="quote texts with a colon, a brace or a `#`"
        ) from None


def need_mapping(path: Path, what: str, value: Any) -> dict[Any, Any]:
    """`value`, where it is a mapping. Raises UsageError."""
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {what} is not a mapping", hint="lines of `key: value`, or {key: value}")
    return value


def need_list(path: Path, what: str, value: Any) -> list[Any]:
    """`value`, where it is a list. Raises UsageError."""
    if not isinstance(value, list):
        raise UsageError(f"{path}: {what} is not a list", hint="[one, two], or lines that begin with `-`")
    return value


def words_in(path: Path, what: str, value: Any) -> tuple[str, ...]:
    """The texts and numbers of a list, as texts. Raises UsageError."""
    for word in need_list(path, what, value):
        if not isinstance(word, str | int | float):
            raise UsageError(
                f"{path}: {what} holds {word!r}, which is neither a text nor a number",
                hint="texts and numbers; quote a text that YAML reads otherwise",
            )
    return tuple(map(str, value))


def need_different(path: Path, what: str, names: Sequence[str]) -> None:
    """Raises UsageError where one of the names stands twice."""
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{path}: {what} {name!r} occurs twice", hint="give one of them another name")


def need_number(path: Path, what: str, value: Any) -> None:
    """Raises UsageError for anything but a finite number."""
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return
    except OverflowError:  # an integer that no float holds
        pass
    raise UsageError(f"{path}: {what} is not a number: {value!r}", hint="a finite number, without quotes")


def check_keys(path: Path, what: str, value: Any, known: set[str], needed: set[str]) -> None:
    """Refuse a mapping of a file with a key that is unknown or one that is lacking. Raises UsageError."""
    for key in need_mapping(path, what, value):
        if key not in known:
            raise UsageError(f"{path}: {what} has an unknown key {key!r}", hint=suggest(str(key), known))
    for key in sorted(needed - value.keys()):
        raise UsageError(
            f"{path}: {what} has no {key!r}", hint=f"{key}: its value; needed: {', '.join(sorted(needed))}"
        )
