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
LONGEST = 2000  # characters of a message; it may quote data, and an id may be a megabyte


class XtrrepError(Exception):
    """An error meant for the user: one line saying what and where, and a `hint:` with the next step."""

    exit_code = USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(_one_line(message))
        self.hint = hint if hint is None else _one_line(hint)


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
        unit_scale=unit == "B",
        ascii=not terminal,
        ncols=None if terminal else 100,
        leave=True,
        disable=_hushed,
    ) as bar:
        yield bar
