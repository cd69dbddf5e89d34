"""Named tables of interchangeable parts: engines, analyses, collection sources.

A part is one small file. Dropping `xtrrep/index/mine.py` with a `@engines.register(...)` in it is all it
takes: a registry imports the modules of its package the first time it is asked for a name. Those modules
must be cheap to import (heavy libraries inside functions), because `xtrrep ls` walks them all.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from xtrrep.console import DataError, suggest

T = TypeVar("T")


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
    """Parts of one kind by name; `get` refuses an unknown name with a suggestion (exit code 3)."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry[T]] = {}
        self._loaded = False

    def register(
        self, name: str, summary: str, *, paper: str = "", requires: str = "", install: str = ""
    ) -> Callable[[T], T]:
        """Decorator that files a class or function under `name`."""

        def file(value: T) -> T:
            if name in self._entries:
                raise ValueError(f"two parts claim the {self.kind} name {name!r}")
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
        return dict(sorted(self._entries.items()))

    def get(self, name: str) -> T:
        """The part called `name`. Raises DataError with a suggestion where there is none."""
        entries = self.entries()
        if name not in entries:
            raise DataError(f"no {self.kind} named {name!r} in this version", hint=suggest(name, entries))
        return entries[name].value

    def __getitem__(self, name: str) -> T:
        return self.get(name)
