"""What a person sees: messages and progress on stderr, results on stdout, errors with a hint.

stdout is data and nothing else, so that `xtrrep eval --json | jq` always works.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OK, DIFFER, USAGE, MISSING = 0, 1, 2, 3  # the documented exit codes
LONGEST = 2000  # characters of a message; it may quote data, and an id may be a megabyte


class XtrrepError(Exception):
    """An error meant for the user: one line saying what and where (a line each for several faults), and a `hint:` with
    the next step."""

    exit_code = USAGE

    def __init__(self, message: str | Sequence[str], *, hint: str) -> None:
        super().__init__("\n".join(map(_one_line, [message] if isinstance(message, str) else message)))
        self.hint = _one_line(hint)


def _one_line(text: str) -> str:
    """Line breaks, escape sequences and the like written out, and the middle of a very long text left out: what is
    quoted from data cannot break the line, colour the terminal or fill it."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(XtrrepError):
    """The command or the configuration is wrong: exit code 2."""

    exit_code = USAGE


class DataError(XtrrepError):
    """Data, a model, an engine or an artifact is missing or broken: exit code 3."""

    exit_code = MISSING


# What a full disk is called by libraries that write by themselves: Rust's error, numpy's, torch's, ScaNN's.
WRITE_FAILED = re.compile(
    r"No space left on device|\d requested and \d+ written|PytorchStreamWriter failed|unexpected pos \d+ vs \d+|"
    r"[Ff]ailed to write|iostream error"
)
# What torch says where it raises a bare RuntimeError: the CPU allocator's text (as spelt there) and two of CUDA's. The
# last is an ImportError's, of a library that found no room.
NO_MEMORY = (
    "DefaultCPUAllocator", "can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "failed to map segment from shared object",
)  # fmt: skip
CONTINUES = "the same command then continues"
DISK_FULL = f"free some space, or set XTRREP_HOME to a larger disk; {CONTINUES}"
READ_ONLY = f"set XTRREP_HOME to a folder that you may write to; {CONTINUES}"
TOO_LARGE = f"a limit or file system forbids files of this size (`ulimit -f`), or set XTRREP_HOME; {CONTINUES}"
TOO_MANY = f"`ulimit -n 4096`; {CONTINUES}"
MEMORY = (
    f"smaller machine.encode_tokens or machine.query_batch, a smaller retrieve.k_prime, or more memory; {CONTINUES}"
)
MACHINE = {
    errno.ENOSPC: DISK_FULL,
    errno.EDQUOT: DISK_FULL,
    errno.EFBIG: TOO_LARGE,
    errno.EROFS: READ_ONLY,
    errno.EMFILE: TOO_MANY,
    errno.ENFILE: TOO_MANY,
    errno.ENOMEM: MEMORY,
    errno.EIO: f"the disk reports a fault: look at it, or set XTRREP_HOME to another; {CONTINUES}",
}
# What a cache that cannot be written is called: closed, read-only, a file where a folder should be.
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}

# What the standard library says of a user or folders that a container lacks, and what helps. Libraries ask while they
# are imported, so that whatever was being loaded would be blamed.
ENVIRONMENT = (
    (
        re.compile(r"getpwuid\(\): uid not found: (\d+)|No username set in the environment"),
        "the user id of this process has no name, and a library asks for one",
        "export LOGNAME=me",
    ),
    (
        re.compile(r"No usable temporary directory found"),
        "there is no folder for temporary files that can be written",
        "export TMPDIR=FOLDER, one that you may write to",
    ),
    (
        re.compile(
            r"/dev/shm|shared memory (object|segment|file|limit|\()|out of shared memory|unable to mmap \d+ bytes"
        ),
        "shared memory (/dev/shm) is missing, read-only or full",
        "mount -t tmpfs -o size=8G tmpfs /dev/shm, as root, or in Docker `docker run --shm-size=8g`",
    ),
    (
        re.compile(r"Matplotlib requires access to a writable cache directory"),
        "matplotlib has no folder for its cache that can be written",
        "export MPLCONFIGDIR=FOLDER, one that you may write to",
    ),
    (
        re.compile(r"Could not determine home directory|Can't determine home directory"),
        "there is no home folder, and a library asks for one",
        "export HOME=FOLDER, one that you may write to",
    ),
)


def caches() -> dict[str, Path]:
    """The folders that libraries write to by themselves, by the variable that moves each, the innermost first."""
    home = Path(os.environ.get("HOME") or "/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    usual = {"HF_HOME": cache / "huggingface", "IR_DATASETS_HOME": home / ".ir_datasets", "XDG_CACHE_HOME": cache}
    moved = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    named = {name: Path(os.environ[name]) for name in moved if os.environ.get(name)}
    named |= {name: Path(os.environ.get(name) or folder) for name, folder in usual.items()}
    return {name: folder.expanduser().absolute() for name, folder in named.items()}


def _moved_by(filename: object) -> str | None:
    """The variable that moves the folder in which a file is, XTRREP_HOME or a cache's; None where it is in none."""
    if not isinstance(filename, str | Path):
        return None
    path, home = Path(filename).absolute(), os.environ.get("XTRREP_HOME")
    if home and path.is_relative_to(Path(home).expanduser().absolute()):
        return "XTRREP_HOME"
    return next((name for name, folder in caches().items() if path.is_relative_to(folder)), None)


def environment_error(error: BaseException) -> DataError | None:
    """What an exception says of the environment that this process runs in: a user without a name, no home folder, no
    temporary folder, no shared memory, a file or cache that may not be read or written. None for any other."""
    for sign, message, hint in ENVIRONMENT:
        if sign.search(str(error)):
            return DataError(f"{message} ({_first_line(error)})", hint=f"{hint}; `xtrrep doctor` checks it")
    variable = _moved_by(error.filename) if isinstance(error, OSError) and error.errno in NOT_WRITABLE else None
    if isinstance(error, OSError) and error.errno is not None and variable not in (None, "XTRREP_HOME"):
        return DataError(
            f"{os.strerror(error.errno)}: {error.filename}",
            hint=f"export {variable}=FOLDER, one that you may write to; `xtrrep doctor` checks it",
        )
    if isinstance(error, PermissionError):
        where = f" ({error.filename})" if error.filename else ""
        return DataError(f"{error.strerror or error}{where}", hint="`xtrrep doctor` checks disk and permissions")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory could not be allocated, on a GPU or a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    return isinstance(error, RuntimeError | ImportError) and any(sign in str(error) for sign in NO_MEMORY)


def machine_error(error: BaseException, variable: str | None = None) -> DataError | None:
    """What a failure of the machine and not of the program means, with what helps: memory, a full or read-only disk,
    open files, the environment. It may be what the exception was raised from. None for any other.

    variable: the one that moves the folder which was being written, where the exception names no file.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, XtrrepError):
        if found := _machine_error(seen, variable):
            return found
        seen = seen.__cause__
    return None


def _machine_error(error: BaseException, variable: str | None) -> DataError | None:
    if is_out_of_memory(error):
        return DataError(f"out of memory: {_first_line(error)}", hint=MEMORY)
    if found := environment_error(error):
        return found
    filename = error.filename if isinstance(error, OSError) else None
    moved = _moved_by(filename) or variable or "XTRREP_HOME"
    if isinstance(error, OSError) and error.errno in MACHINE:
        place = filename or caches().get(moved)
        where = f": {place}" if place else ""
        return DataError(f"{os.strerror(error.errno)}{where}", hint=MACHINE[error.errno].replace("XTRREP_HOME", moved))
    if WRITE_FAILED.search(str(error)):
        hint = DISK_FULL.replace("XTRREP_HOME", moved)
        return DataError(f"a file could not be written: {_first_line(error)}", hint=hint)
    return None


def explained(error: Exception) -> XtrrepError | None:
    """An error that a person can do something about, as such: one of ours, or of the machine. None for any other."""
    return error if isinstance(error, XtrrepError) else machine_error(error)


def request_reason(error: BaseException) -> str:
    """Why a request to a server failed, in one line: its status, or the innermost error that says something."""
    said = ""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if status is not None:
            return f"it answered with status {status}"
        text = str(seen).strip().partition("\n")[0].strip()
        said = f"{type(seen).__name__}: {text}" if text else said or type(seen).__name__
        # `from None` says that the error before it is not the reason.
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return said[:300]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def typed(path: object) -> str:
    """A path as one word of a shell, so that a command in a hint can be typed as it is printed."""
    return shlex.quote(str(path))


def suggest(word: str, known: Iterable[str], *, listing: str = "") -> str:
    """A hint naming the closest known names; where none is close `listing`, which says how to see them, or all."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return listing or ("one of: " + ", ".join(names) if names else "there is none yet")


_hushed = False


def hush() -> None:
    """Say nothing but errors from here on: another process of the same work speaks for this one."""
    global _hushed
    _hushed = True


def say(text: str = "") -> None:
    """One line for the person watching (stderr)."""
    if not _hushed:
        print(text, file=sys.stderr, flush=True)


def fail(error: XtrrepError) -> int:
    """Print an error the way every command does; returns its exit code."""
    mark = "error:"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        mark = "\033[31merror:\033[0m"
    print(f"{mark} {error}", file=sys.stderr, flush=True)
    print(f"hint: {error.hint}", file=sys.stderr, flush=True)
    return error.exit_code


@contextmanager
def progress(total: int, label: str, unit: str) -> Iterator[Any]:
    """A bar with rate and ETA on stderr; a line every ten seconds where stderr is no terminal.

    Yields an object with `update(n)` and `set_postfix_str(text)`.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=f"  {label}",
        unit=f" {unit}",
        file=sys.stderr,
        mininterval=0.5 if terminal else 10.0,
        miniters=1,
        unit_scale=unit == "B",
        ascii=not terminal,
        ncols=None if terminal else 100,
        leave=True,
        disable=_hushed,
    ) as bar:
        yield bar
