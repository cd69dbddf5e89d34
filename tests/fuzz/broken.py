"""Readers broken on purpose, one fault each, to see that the harness sees it. Nothing outside tests/ knows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from xtrrep.data import folder
from xtrrep.measure import run_file

_read_lines, _read_json_lines = folder.read_lines, folder.read_json_lines


def _last_line_lost(path: Path) -> Iterator[tuple[int, str]]:
    held = None
    for pair in _read_lines(path):
        if held is not None:
            yield held
        held = pair


def _line_numbers_from_zero(path: Path) -> Iterator[tuple[int, str]]:
    return ((number - 1, line) for number, line in _read_lines(path))


def _bad_bytes_replaced(path: Path) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        if raw.strip():
            yield number, raw.decode("utf-8", "replace").rstrip("\r\n")


@contextmanager
def _patched(target: Any, name: str, stand_in: Any) -> Iterator[None]:
    with mock.patch.object(target, name, stand_in):
        yield


BROKEN: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "nothing": nullcontext,
    "last line lost": lambda: _patched(folder, "read_lines", _last_line_lost),
    "line numbers from zero": lambda: _patched(folder, "read_lines", _line_numbers_from_zero),
    "bad bytes replaced": lambda: _patched(folder, "read_lines", _bad_bytes_replaced),
    "NUL in ids let through": lambda: _patched(folder, "id_fault", lambda name: None),
    "run ids unchecked": lambda: _patched(run_file, "id_fault", lambda name: None),
    "texts stripped": lambda: _patched(folder, "document_text", lambda title, body: f"{title or ''} {body}".strip()),
}
