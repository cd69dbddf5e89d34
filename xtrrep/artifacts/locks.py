"""Lock files. The kernel lets go of a lock when its holder dies, however it dies.

They are `flock`s: on a network file system they hold between machines only where it carries them over to its server
(NFS of Linux since 2.6.12, Lustre mounted with -o flock); elsewhere only processes of one machine see each other.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from xtrrep.console import say

IN_USE = ".in-use"  # of a root: shared by whoever works below it, taken alone by whoever deletes there


@contextmanager
def lock(path: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock file, alone or `shared` with others that share it; while another process has it, say so and wait."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting: another process is making {what}")
                fcntl.flock(file, kind)
            if _is_at(file, path):
                yield
                return
        # Deleted while we waited for it: whoever comes next makes another one, and so must we.


@contextmanager
def at_work(root: Path) -> Iterator[None]:
    """Keep what lies below `root` from being deleted by `xtrrep gc` meanwhile."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / IN_USE).open("ab")
    except OSError:  # a folder that cannot be written: nothing in it can be deleted either
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Hold a lock file alone, if nobody holds it now: whether it is ours. Its folder must exist."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield _is_at(file, path)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file, this one too."""
    if not path.exists():
        return False
    with alone(path) as free:
        return not free


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one that lies at `path` now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
