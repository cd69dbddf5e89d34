"""SHA-256 of files, and a record of them, so that a large file is read in full once and not at every command.

A record is a JSON file, {name: [size, mtime, ctime, inode, hash of both ends, SHA-256]}. A file is read in full again
when anything before the last entry is not as recorded; writing to a file changes its ctime, which no program can set
back. The record identifies nothing and nobody relies on it: without one, everything is read.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from xtrrep.console import progress

ALWAYS = 1 << 20  # bytes: a file no larger than this is read in full every time
END = 1 << 16  # bytes at each end of a larger one that are read every time
SETTLED = 2.0  # seconds since a file's last change, below which a second one might not show in its times
LONG = 1 << 28  # bytes to read that deserve a progress bar

Record = dict[str, list[Any]]

# Records by path, as read or as last known: a folder that cannot be written is read in full once a process.
_kept: dict[Path, Record] = {}


def hash_file(path: Path, tick: Callable[[int], object] | None = None, algorithm: str = "sha256") -> str:
    """Hash of a file's bytes, hex; `tick` hears of the bytes as they are read."""
    sha = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
            if tick:
                tick(len(block))
    return sha.hexdigest()


def hash_files(
    folder: Path,
    names: Sequence[str],
    record: Path,
    *,
    afresh: bool = False,
    tick: Callable[[int], object] | None = None,
    algorithm: str = "sha256",
) -> dict[str, str]:
    """SHA-256 of a folder's files by name, from `record` where it knows them; what had to be read is recorded there.

    afresh: read everything, whatever the record says. `tick` hears of bytes as they are read; without it a bar is
    shown where there are many. Raises OSError for a file that cannot be read.
    """
    known = {} if afresh else _read(record)
    marks = {name: _mark(folder / name) for name in names}
    found = {name: known[name][-1] for name in names if marks[name] and known.get(name, [])[:-1] == marks[name]}
    todo = [name for name in names if name not in found]
    total = sum((folder / name).stat().st_size for name in todo)
    fresh: Record = {}
    shown = progress(total, "verify", "B") if tick is None and total > LONG else nullcontext()
    with shown as bar:
        for name in todo:
            begun = time.time()
            found[name] = hash_file(folder / name, bar.update if bar else tick, algorithm)
            mark = marks[name]
            # Neither a file that is still being written, nor one so new that another write would leave its times alone.
            if mark and mark == _mark(folder / name) and begun - mark[2] / 1e9 > SETTLED:
                fresh[name] = [*mark, found[name]]
    if fresh:
        _write(record, _read(record) | fresh)
    return found


def hash_outside(path: Path, root: Path, algorithm: str = "sha256") -> str:
    """Hash of a file that lies outside the artifacts, recorded below their `root` where that exists."""
    path = path.resolve()
    name = hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:12] + (
        "" if algorithm == "sha256" else f".{algorithm}"
    )
    record = root / RECORDS / "outside" / f"{name}.json"
    return hash_files(path.parent, [path.name], record, algorithm=algorithm)[path.name]


RECORDS = ".verified"


def record_of(folder: Path) -> Path:
    """Where the hashes of the artifact ROOT/STAGE/NAME are recorded."""
    return folder.parent.parent / RECORDS / folder.parent.name / f"{folder.name}.json"


def _mark(path: Path) -> list[Any] | None:
    """What tells that a file is as it was without reading all of it; None for one that is read in full anyway."""
    stat = path.stat()
    if stat.st_size <= ALWAYS:
        return None
    with path.open("rb") as file:
        ends = hashlib.sha256(file.read(END))
        file.seek(-END, os.SEEK_END)
        ends.update(file.read(END))
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, ends.hexdigest()]


def _read(record: Path) -> Record:
    if record not in _kept:
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or one that a power cut left half-written
            found = {}
        sound = isinstance(found, dict) and all(isinstance(entry, list) and entry for entry in found.values())
        _kept[record] = found if sound else {}
    return _kept[record]


def _write(record: Path, entries: Record) -> None:
    _kept[record] = entries
    if not record.parents[2].is_dir():  # a command that is refused leaves nothing behind, not even its root
        return
    temporary = record.with_name(f".{record.name}.{os.getpid()}")  # processes may write one record at a time
    with suppress(OSError):  # a folder that cannot be written costs reading its files again, and nothing else
        record.parent.mkdir(parents=True, exist_ok=True)
        # Of a process that was killed; one at work loses its own and reads its files again.
        for stale in record.parent.glob(f".{glob.escape(record.name)}.*"):
            stale.unlink(missing_ok=True)
        temporary.write_text(json.dumps(entries, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(temporary, record)
