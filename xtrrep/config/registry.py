"""Named tables of interchangeable parts: engines, imputations, analyses, collection sources.

A part is one small file with a `@engines.register(...)` in it, or that of another registry. It is found in either of
two places: the registry's own package (`xtrrep/retrieval/engines/mine.py`), or any folder that `$XTRREP_PLUGINS` names.
Several folders are separated as in `$PATH`. The files must be cheap to import (heavy libraries inside functions),
because `xtrrep ls` imports them all.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from xtrrep.console import DataError, XtrrepError, machine_error, suggest

T = TypeVar("T")

PLUGINS = "XTRREP_PLUGINS"


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One part: its name, the object itself, a one-line summary, its paper.

    `requires` is the module it needs at run time and `install` how to get that.
    """

    name: str
    value: T
    summary: str
    paper: str = ""
    requires: str = ""
    install: str = ""


class Registry(Generic[T]):
    """Parts of one kind by name; `get` refuses an unknown name with a suggestion (exit code 3).

    `check(name, part)` refuses a faulty part when it is registered.
    """

    def __init__(self, kind: str, package: str, check: Callable[[str, T], None] | None = None) -> None:
        self.kind = kind
        self.package = package
        self.check = check
        self._entries: dict[str, Entry[T]] = {}
        self._loaded = False

    def register(
        self, name: str, summary: str, *, paper: str = "", requires: str = "", install: str = ""
    ) -> Callable[[T], T]:
        """Decorator that files a class or function under `name`."""

        def file(value: T) -> T:
            if name in self._entries:
                raise ValueError(f"two parts claim the {self.kind} name {name!r}")
            if self.check is not None:
                self.check(name, value)
            self._entries[name] = Entry(name, value, summary, paper, requires, install)
            return value

        return file

    def entries(self) -> dict[str, Entry[T]]:
        """All parts by name, sorted."""
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._loaded = True
        load_plugins()
        return dict(sorted(self._entries.items()))

    def get(self, name: str) -> T:
        """The part called `name`. Raises DataError with a suggestion where there is none."""
        entries = self.entries()
        if name not in entries:
            raise DataError(f"no {self.kind} named {name!r} in this version", hint=suggest(name, entries))
        return entries[name].value

    def __getitem__(self, name: str) -> T:
        return self.get(name)


_plugins: set[Path] = set()  # files imported, or being imported


def load_plugins() -> None:
    """Import every `*.py` of the folders in `$XTRREP_PLUGINS`, each once a process.

    Raises DataError for a folder that is not there, and for a file that cannot be imported.
    """
    for name in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"${PLUGINS} names {name}, which is not a folder", hint=f"unset {PLUGINS}, or make the folder"
            )
        for path in sorted(folder.resolve().glob("*.py")):
            if path not in _plugins:
                _plugins.add(path)
                _import_file(path)


def _import_file(path: Path) -> None:
    name = f"xtrrep_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path} cannot be imported", hint="a plugin is a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except XtrrepError as error:
        raise type(error)(f"{path}: {error}", hint=error.hint) from None
    except Exception as error:
        if known := machine_error(error):
            raise known from None
        wanted = re.search(r"cannot import name '(\w+)'", str(error))
        source = sys.modules.get(getattr(error, "name", None) or "")
        hint = suggest(wanted[1], dir(source)) if wanted and source else f"correct {path.name}, or unset {PLUGINS}"
        raise DataError(f"{path} cannot be imported: {error}", hint=hint) from None
