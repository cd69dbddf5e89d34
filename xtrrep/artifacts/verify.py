"""`xtrrep verify`: every artifact read in full and compared with its manifest, whatever was recorded of it before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.console import MISSING, OK, DataError, progress, suggest


@dataclass(frozen=True)
class Verdict:
    """What verifying an artifact found; nothing wrong where `faults` is empty."""

    folder: Path
    files: int
    bytes: int
    faults: tuple[str, ...]


def select(what: str | None) -> list[Path]:
    """Artifact folders by stage, label, folder name, or a fingerprint's beginning; all of them for None.

    Raises DataError, naming close ones, where none fits.
    """
    every = [
        folder for root in (configs.artifacts_root(), configs.results_root()) for folder in artifacts.folders(root)
    ]
    if what is None:
        return every
    found = [folder for folder in every if what in _names(folder) or fingerprint_of(folder).startswith(what)]
    if not found:
        known = {name for folder in every for name in _names(folder)}
        raise DataError(f"no artifact here is {what!r}", hint=suggest(what, known, listing="`xtrrep ls` lists them"))
    return found


def fingerprint_of(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def label_of(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def _names(folder: Path) -> tuple[str, str, str]:
    return folder.parent.name, label_of(folder), folder.name


def verify(what: str | None = None) -> list[Verdict]:
    """Read every file of the artifacts that `select` names. Raises as it does."""
    folders = select(what)
    total = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    found = []
    with progress(total, "verify", "B") as bar:
        for folder in folders:
            files = [path for path in folder.rglob("*") if path.is_file()]
            sizes = sum(path.stat().st_size for path in files)
            try:
                manifest = artifacts.read_manifest(folder)
                wrong = list(artifacts.faults(folder, manifest, afresh=True, tick=bar.update))
                if manifest["fingerprint"] != fingerprint_of(folder):
                    wrong.append(f"{folder} is another artifact, {manifest['fingerprint']}")
            except DataError as error:
                wrong = [str(error)]
            found.append(Verdict(folder, len(files), sizes, tuple(wrong)))
        bar.update(total - bar.n)  # manifests, and what is broken beyond reading
    return found


def status(verdicts: Sequence[Verdict]) -> int:
    """The exit code: 3 where anything is wrong."""
    return MISSING if any(verdict.faults for verdict in verdicts) else OK
