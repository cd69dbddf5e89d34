"""Stage folders: identity by content, written atomically, complete if and only if `manifest.json` is there.

A stage's output lies in `ROOT/STAGE/LABEL-FINGERPRINT/`. The fingerprint hashes the resolved semantic config,
the fingerprints of what it was made from, hashes of its input data, and a schema number; paths, devices and
worker counts are not part of it. While a stage runs, its folder is called `.partial-LABEL-FINGERPRINT`: a
stage that can resume finds its own shards and checkpoints there. Last, the manifest is written and the
folder renamed, so a killed process leaves nothing that looks complete.

Before an artifact is read, every file is compared with the hash in the manifest, and the manifest with its own
(`check`; what that costs stands in hashes.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtrrep.artifacts.hashes import hash_file, hash_files, record_of
from xtrrep.artifacts.locks import lock
from xtrrep.console import DISK_FULL, DataError, say, typed

MANIFEST = "manifest.json"
PARTIAL = ".partial-"  # before the name of a folder that is being made
TEMPORARY = ".{}.tmp"  # what a file is called while it is written
REQUIRED_KEYS = {"fingerprint", "label", "stage", "made", "seconds", "facts", "files", "upstream"}


@dataclass(frozen=True)
class Spec:
    """What a stage is about to make; its fingerprint is its identity.

    `label` is for people and not part of the identity: two configs that mean the same share an artifact.
    """

    stage: str
    label: str
    schema: int
    config: dict[str, Any]
    upstream: dict[str, str] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "schema": self.schema,
            "config": self.config,
            "upstream": self.upstream,
            "content": self.content,
        }

    @property
    def fingerprint(self) -> str:
        return digest(self.identity)


# The stages of a plan by name: what they are, and where they lie.
Specs = Mapping[str, Spec]
Folders = Mapping[str, Path]


def digest(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class _Writer:
    """What writes to a file, and not the file: given that, numpy writes through a buffer of C's, and does not notice
    when the last of it finds a full disk."""

    write: Callable[[Any], int]
    writelines: Callable[[Any], None]


def write_atomic(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file through a temporary neighbour: readers see all of it or nothing.

    `write` receives an object with the `write` and `writelines` of a binary file.
    """
    temporary = path.with_name(TEMPORARY.format(path.name))
    try:
        with temporary.open("wb") as file:
            write(_Writer(file.write, file.writelines))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically (UTF-8, sorted keys, no NaN)."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def need_space(folder: Path, needed: int, what: str) -> None:
    """Raise DataError where the disk of `folder` has fewer than `needed` bytes free for `what`. To be asked before a
    write through a memory map, which a full disk answers by killing the process."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e6:.0f} MB free, and {what} takes {needed / 1e6:.0f} MB", hint=DISK_FULL
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete artifact. Raises DataError where there is none or it is not as it was written."""
    path, hint = folder / MANIFEST, f"rm -r {typed(folder)} and run again"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} is not a complete artifact: it has no {MANIFEST}",
            hint="run the command that makes it; `xtrrep ls` lists what is complete",
        ) from None
    except ValueError as error:  # of JSON, or of UTF-8
        raise DataError(f"{path} is not JSON ({error})", hint=hint) from None
    if not isinstance(manifest, dict) or not manifest.keys() >= REQUIRED_KEYS:
        raise DataError(f"{path} lacks keys that every manifest has", hint=hint)
    # Artifacts of the first versions have no checksum.
    if "checksum" in manifest and manifest["checksum"] != _checksum(manifest):
        raise DataError(f"{path} is not as it was written: its checksum differs", hint=hint)
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in manifest.items() if key != "checksum"})


def folder_of(spec: Spec, root: Path) -> Path:
    """Where the artifact lies, finished or not yet made.

    The label in the folder name is the one it was first made under, so look by fingerprint.
    """
    parent = root / spec.stage
    for found in sorted(parent.glob(f"*-{spec.fingerprint}")):
        if not found.name.startswith(".") and (found / MANIFEST).exists():
            return found
    return parent / f"{spec.label}-{spec.fingerprint}"


def is_complete(spec: Spec, root: Path) -> bool:
    return (folder_of(spec, root) / MANIFEST).exists()


def check(folder: Path, fingerprint: str | None = None) -> dict[str, Any]:
    """The manifest, after checking that the artifact is the one meant and every file is as it was written.

    Raises DataError naming the file at fault.
    """
    manifest = read_manifest(folder)
    hint = f"rm -r {typed(folder)} and run again to rebuild it"
    if fingerprint is not None and manifest["fingerprint"] != fingerprint:
        raise DataError(
            f"{folder} holds another artifact ({manifest['stage']} {manifest['label']}, fingerprint "
            f"{manifest['fingerprint']}) than the one asked for ({fingerprint})",
            hint=hint,
        )
    for fault in faults(folder, manifest):
        raise DataError(fault, hint=hint)
    return manifest


def faults(
    folder: Path, manifest: Mapping[str, Any], *, afresh: bool = False, tick: Callable[[int], object] | None = None
) -> Iterator[str]:
    """What is wrong with an artifact's files, each with its path; those that show without reading come first.

    `afresh` and `tick` as in `hashes.hash_files`.
    """
    sound = []
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size != entry["bytes"]:
            yield f"{path} has {path.stat().st_size} bytes, its manifest says {entry['bytes']}"
        else:
            sound.append(name)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in manifest["files"] and name != MANIFEST and not path.name.startswith("."):
            yield f"{path} is no file of this artifact: its manifest does not name it"
    for name, found in hash_files(folder, sound, record_of(folder), afresh=afresh, tick=tick).items():
        if found != manifest["files"][name]["sha256"]:
            yield f"{folder / name} is not as it was written: its hash differs from its manifest's"


def lock_of(spec: Spec, root: Path) -> Path:
    """The lock file that whoever makes an artifact holds."""
    return root / spec.stage / f".{spec.fingerprint}.lock"


def partial_of(spec: Spec, root: Path) -> Path:
    """The folder in which an artifact is being made, or will be."""
    final = folder_of(spec, root)
    partial = final.with_name(PARTIAL + final.name)
    for begun in final.parent.glob(f"{PARTIAL}*-{spec.fingerprint}"):  # perhaps under another label
        partial = begun
    return partial


def share(spec: Spec, root: Path, run: Callable[[Path], object]) -> None:
    """Work at an artifact beside other processes that do the same, in the unfinished folder that `make` then finishes.

    `run` gets that folder and leaves alone what others write there. Nothing to do where the artifact is finished.
    """
    with lock(lock_of(spec, root), f"{spec.stage}/{folder_of(spec, root).name}", shared=True):
        partial = partial_of(spec, root)
        if is_complete(spec, root) or (partial / MANIFEST).exists():
            return
        partial.mkdir(parents=True, exist_ok=True)
        run(partial)


def make(spec: Spec, root: Path, run: Callable[[Path], dict[str, Any]]) -> Path:
    """Run a stage into its folder, unless a concurrent process just did. Returns the finished folder.

    `run` gets the partial folder (which may hold an interrupted run's files) and returns facts for the manifest.
    """
    final = folder_of(spec, root)
    with lock(lock_of(spec, root), f"{spec.stage}/{final.name}"):
        final = folder_of(spec, root)
        if (final / MANIFEST).exists():
            check(final, spec.fingerprint)
            return final
        partial = partial_of(spec, root)
        if (partial / MANIFEST).exists():  # killed when only its name was lacking
            return _publish(partial, final)
        partial.mkdir(parents=True, exist_ok=True)
        for stale in partial.rglob(TEMPORARY.format("*")):  # half-written by a killed process: the lock is ours
            stale.unlink()
        start = time.monotonic()
        try:
            facts = run(partial)
        except BaseException:
            _remove_if_empty(partial)
            raise
        seconds = time.monotonic() - start
        files = {
            str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": _kept_hash(path)}
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        manifest = {
            "fingerprint": spec.fingerprint,
            "label": spec.label,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 3),
            "facts": facts,
            "files": files,
            **spec.identity,
        }
        # Of the manifest as it will be read: JSON knows neither tuples nor keys that are numbers.
        manifest["checksum"] = _checksum(json.loads(json.dumps(manifest)))
        write_json(partial / MANIFEST, manifest)
        return _publish(partial, final)


def _publish(partial: Path, final: Path) -> Path:
    """Give a folder with a manifest its name."""
    if final.exists():  # without a manifest, or we would not be here: it is not there, whatever it holds
        shutil.rmtree(final)
    os.replace(partial, final)
    return final


def _kept_hash(path: Path) -> str:
    """A file's hash, once the disk has the file: no manifest may outlive what it lists."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return hash_file(path)


def _remove_if_empty(folder: Path) -> None:
    """Drop a partial folder that holds no file to resume from."""
    if not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def folders(root: Path) -> list[Path]:
    """Every complete artifact's folder below `root`, its manifest readable or not, by name."""
    return sorted(path.parent for path in root.glob(f"[!.]*/[!.]*/{MANIFEST}"))


def complete(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every complete artifact under `root`, oldest first, with its manifest; one with a broken manifest is named."""
    found = []
    for folder in folders(root):
        try:
            found.append((folder, read_manifest(folder)))
        except DataError as error:
            say(f"broken: {error}")
    return sorted(found, key=lambda item: item[1]["made"])
