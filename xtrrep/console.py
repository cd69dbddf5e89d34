"""What a person sees: messages and progress on stderr, results on stdout, errors with a hint.

stdout is data and nothing else, so that `xtrrep eval --json | jq` always works.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

OK, DIFFER, USAGE, MISSING = 0, 1, 2, 3  # the documented exit codes


class XtrrepError(Exception):
    """An error meant for the user: one line saying what and where, and a `hint:` with the next step."""

    exit_code = USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(XtrrepError):
    """The command or the configuration is wrong: exit code 2."""

    exit_code = USAGE


class DataError(XtrrepError):
    """Data, a model, an engine or an artifact is missing or broken: exit code 3."""

    exit_code = MISSING


def suggest(word: str, known: Iterable[str]) -> str | None:
    """A hint naming the closest known names, or listing them when none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return ("one of: " + ", ".join(names)) if names else None


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
    if error.hint:
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
        ascii=not terminal,
        ncols=None if terminal else 100,
        leave=True,
        disable=_hushed,
    ) as bar:
        yield bar
