"""Writers that break the promise, for the tests that the matrix sees it. Called in a child, they spoil it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep.artifacts import MANIFEST, Spec


def in_place(path: Path, write: Callable[[Any], None]) -> None:
    with path.open("wb") as file:
        write(file)


def write_in_place() -> None:
    """Files are written under their own name."""
    artifacts.write_atomic.__code__ = in_place.__code__


def manifest_first(spec: Spec, root: Path, run: Callable[[Path], dict[str, Any]]) -> Path:
    folder = artifacts.folder_of(spec, root)
    if not artifacts.is_complete(spec, root):
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {"fingerprint": spec.fingerprint, "label": spec.label, "made": "", "seconds": 0, "files": {}}
        artifacts.write_json(folder / MANIFEST, manifest | {"facts": {}, **spec.identity})
        artifacts.write_json(folder / MANIFEST, manifest | {"facts": run(folder), **spec.identity})
    return folder


def write_manifest_first() -> None:
    """An artifact looks complete before it is."""
    artifacts.make = manifest_first
