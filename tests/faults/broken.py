"""Writers that break the promise, for the tests that the matrix sees it. Called in a child, they spoil it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep.artifacts import MANIFEST, Spec, hash_file


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
        manifest = {"fingerprint": spec.fingerprint, "label": spec.label, "made": "", "seconds": 0, **spec.identity}
        artifacts.write_json(folder / MANIFEST, manifest | {"files": {}, "facts": {}})
        facts = run(folder)
        made = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
        files = {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in made
        }
        artifacts.write_json(folder / MANIFEST, manifest | {"files": files, "facts": facts})
    return folder


def write_manifest_first() -> None:
    """An artifact looks complete before it is."""
    artifacts.make = manifest_first
