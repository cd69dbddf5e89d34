"""What `xtrrep doctor` says of the user and of the folders that libraries write to by themselves."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
import tempfile
from pathlib import Path

from xtrrep.console import caches

Row = tuple[str, bool | None, str, str]  # what, fine (None: optional), finding, fix
PROBE = 100_000  # bytes that a folder must take
SHARED = Path("/dev/shm")


def why_not_writable(folder: Path) -> str | None:
    """What the system says to a file of PROBE bytes in a folder, or in the first above it that exists. None where it
    can be written."""
    try:
        near = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=near) as file:
            file.write(bytes(PROBE))
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def rows() -> list[Row]:
    """The user, the home folder, temporary files, shared memory, and each cache."""
    return [_user(), _home(), _temporary_files(), *_shared_memory(), *map(_cache, caches().items())]


def _user() -> Row:
    try:
        return "user", True, getpass.getuser(), ""
    except (KeyError, OSError):
        return "user", False, f"user id {os.getuid()} has no name", "export LOGNAME=me"


def _home() -> Row:
    finding = "there is none"
    try:
        home = Path.home()
        fault = why_not_writable(home) if home.is_dir() else "it is not there"
        if fault is None:
            return "home folder", True, str(home), ""
        finding = f"{home}: {fault}"
    except (RuntimeError, KeyError):
        pass
    return (
        "home folder",
        None,
        f"{finding}; libraries keep caches there",
        "export HOME=FOLDER, one that you may write to",
    )


def _temporary_files() -> Row:
    asked = os.environ.get("TMPDIR")
    try:
        place = Path(tempfile.gettempdir())
    except OSError as error:
        return "temporary files", False, str(error), "export TMPDIR=FOLDER, one that you may write to"
    free = shutil.disk_usage(place).free / 1e9
    finding = f"{free:.1f} GB free in {place}"
    fix = "export TMPDIR=FOLDER with 0.1 GB free"
    if fault := why_not_writable(place):
        return "temporary files", False, f"{place}: {fault}", fix
    if asked is not None and place != Path(asked):
        return "temporary files", None, f"{finding}, since TMPDIR={asked} cannot be written", fix
    return "temporary files", free > 0.1, finding, fix


def _shared_memory() -> list[Row]:
    """Where torch and NCCL share data between processes. Nothing on a system without it."""
    if sys.platform != "linux":
        return []
    fix = "mount -t tmpfs -o size=8G tmpfs /dev/shm, as root, or in Docker `docker run --shm-size=8g`"
    fault = why_not_writable(SHARED) if SHARED.is_dir() else "it is not there"
    if fault:
        return [("shared memory", None, f"{SHARED}: {fault}; several GPUs need it", fix)]
    return [("shared memory", True, f"{shutil.disk_usage(SHARED).free / 1e9:.1f} GB free", fix)]


def _cache(item: tuple[str, Path]) -> Row:
    name, folder = item
    fault = why_not_writable(folder)
    finding = f"{folder}: {fault}; nothing new is kept there" if fault else str(folder)
    return f"cache {name}", None if fault else True, finding, f"export {name}=FOLDER, one that you may write to"
