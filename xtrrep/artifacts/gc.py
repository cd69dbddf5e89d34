"""`xtrrep gc`: what no finished result and no recorded number stands on, and what interrupted runs left behind.

A finished result is an artifact of a stage in RESULTS. It keeps all it was made from, through the `upstream` of the
manifests, and the collections with its content; so does whatever a file under `results/recorded/` cites by its
fingerprint. The rest is waste, and can be made again from its config. A trained model counts as a result too, whether
or not anybody evaluated it, unless it is asked for by name: `xtrrep gc train`, or its label or fingerprint. A folder
that somebody deleted names nothing any more: what it alone stood on is waste.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.artifacts.hashes import RECORDS, record_of
from xtrrep.artifacts.locks import IN_USE, alone, is_held
from xtrrep.artifacts.verify import fingerprint_of, label_of, select
from xtrrep.console import DataError, typed

RESULTS = {
    "evaluate",
    "latency",
    "tokens",
    "analyze",
    "experiment",
    "reproduce",
    "claims",
}  # the last two: of earlier versions
MODELS = {"train", "distill"}
DAY = 86400.0  # seconds: an interrupted run younger than this may yet be continued
GONE = ".gone-"  # a folder on its way out: it is renamed before its files go, so that none ever looks complete


@dataclass(frozen=True)
class Waste:
    """One thing to remove. age: seconds since it was made or last written to."""

    path: Path
    stage: str
    label: str
    bytes: int
    age: float
    why: str

    @property
    def is_folder(self) -> bool:
        """Whether it is an artifact or part of one, and not a lock file or a record."""
        return self.path.suffix not in (".lock", ".json")


def find(what: str | None = None) -> list[Waste]:
    """All waste, or that among the artifacts which `verify.select` names. Raises as it does."""
    roots = (configs.artifacts_root(), configs.results_root())
    chosen = set(select(what))
    finished = RESULTS | MODELS if what is None else RESULTS
    found = [waste for waste in _unneeded(roots, finished) if waste.path in chosen]
    if what is None:
        for root in roots:
            found += [*_interrupted(root), *_bookkeeping(root)]
    return found


def remove(what: str | None = None) -> list[Waste]:
    """Delete what `find` finds; returns it.

    Raises DataError, before anything is deleted, where another process is at work in the same folders, or where a
    manifest cannot be read or is gone: what its artifact stands on is then unknown.
    """
    roots = [root for root in (configs.artifacts_root(), configs.results_root()) if root.is_dir()]
    with ExitStack() as held:
        ours = [held.enter_context(alone(root / IN_USE)) for root in roots]
        if not all(ours) or any(is_held(path) for root in roots for path in _locks(root)):
            raise DataError(
                f"another process is at work in {' or '.join(map(str, roots))}: nothing was removed",
                hint="run this again when that has finished",
            )
        manifests = [artifacts.read_manifest(folder) for root in roots for folder in artifacts.folders(root)]
        for folder in _without_manifest(roots, {name for made in manifests for name in made["upstream"].values()}):
            raise DataError(
                f"{folder} has no manifest, so it is not known what it was made from; nothing was removed",
                hint=f"run what made it again, or rm -r {typed(folder)} where it is not needed",
            )
        waste = find(what)
        for item in waste:
            _delete(item.path)
    return waste


def _delete(path: Path) -> None:
    if not path.is_dir():
        path.unlink()
        return
    with alone(path.with_name(f".{fingerprint_of(path)}.lock")) as ours:
        if not ours:
            return  # somebody has just begun to make it
        gone = path if path.name.startswith(GONE) else path.with_name(GONE + path.name)
        if gone != path:
            os.replace(path, gone)
        shutil.rmtree(gone)
    record_of(path).unlink(missing_ok=True)


# --- what is needed ------------------------------------------------------------------------------------------------


def _unneeded(roots: Sequence[Path], finished: set[str]) -> Iterator[Waste]:
    """Artifacts that nothing of the `finished` stages stands on."""
    every = [found for root in roots for found in artifacts.complete(root)]
    made = {manifest["fingerprint"]: (folder, manifest) for folder, manifest in every}
    kept = _kept(made, cited(), finished)
    for fingerprint, (folder, _) in made.items():
        if fingerprint not in kept:
            yield _waste(folder, "no finished result stands on it, and none that is recorded cites it")


def _kept(made: Mapping[str, tuple[Path, Mapping[str, Any]]], cited: set[str], finished: set[str]) -> set[str]:
    """Fingerprints of finished and cited artifacts, and of all they were made from."""
    kept: set[str] = set()
    todo = [name for name, (_, manifest) in made.items() if manifest["stage"] in finished or name in cited]
    while todo:
        name = todo.pop()
        if name in made and name not in kept:
            kept.add(name)
            todo += made[name][1]["upstream"].values()
    # What reads a collection says so by the content of it, not by the artifact.
    contents = {value for name in kept for value in made[name][1]["content"].values()}
    of_content = {
        name
        for name, (_, manifest) in made.items()
        if manifest["stage"] == "data" and contents & set(manifest["content"].values())
    }
    return kept | of_content


def cited() -> set[str]:
    """Everything that looks like a fingerprint in a file of `results/recorded/`, here or in the source tree."""
    found: set[str] = set()
    for root in {configs.recorded_root(), Path.cwd() / "results" / "recorded"} - {None}:
        for path in (path for path in Path(root or ".").rglob("*") if path.is_file()):
            found |= set(
                re.findall(r"(?<![0-9a-f])[0-9a-f]{12}(?![0-9a-f])", path.read_text(encoding="utf-8", errors="replace"))
            )
    return found


def _without_manifest(roots: Sequence[Path], named: set[str]) -> Iterator[Path]:
    """Folders of artifacts that others name, and whose manifest somebody deleted."""
    for folder in (folder for root in roots for folder in sorted(root.glob("[!.]*/[!.]*"))):
        if fingerprint_of(folder) in named and not (folder / artifacts.MANIFEST).exists():
            yield folder


# --- what was left behind ------------------------------------------------------------------------------------------


def _interrupted(root: Path) -> Iterator[Waste]:
    """Folders of runs that nobody continued for a day, and of removals cut short."""
    for folder in sorted(root.glob(f"[!.]*/{artifacts.PARTIAL}*")):
        waste = _waste(folder, "an interrupted run that nobody continued for a day")
        if waste.age > DAY and not is_held(folder.with_name(f".{fingerprint_of(folder)}.lock")):
            yield waste
    for folder in sorted(root.glob(f"[!.]*/{GONE}*")):
        yield _waste(folder, "a removal that was cut short")


def _bookkeeping(root: Path) -> Iterator[Waste]:
    """Lock files that nobody holds, and recorded hashes of artifacts that are gone."""
    for path in _locks(root):
        if not is_held(path):
            yield _waste(path, "a lock file that nobody holds")
    for path in sorted(root.glob(f"{RECORDS}/*/*.json")):
        if path.parent.name != "outside" and not (root / path.parent.name / path.stem).exists():
            yield _waste(path, "hashes of an artifact that is gone")


def _locks(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("[!.]*/.*.lock")) if re.fullmatch(r"\.[0-9a-f]{12}\.lock", path.name)]


def _waste(path: Path, why: str) -> Waste:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    stats = [file.stat() for file in files] or [path.stat()]
    stage = path.parent.name
    label = label_of(path).removeprefix(artifacts.PARTIAL).removeprefix(GONE) if path.is_dir() else path.name
    written = max(stat.st_mtime for stat in stats)
    return Waste(path, stage, label, sum(stat.st_size for stat in stats), max(0.0, time.time() - written), why)
