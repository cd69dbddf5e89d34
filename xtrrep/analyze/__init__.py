"""Analyses: one module each. An analysis names the runs it needs; the pipeline makes them; the analysis reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.config import Config
from xtrrep.registry import Registry

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Cell:
    """One run an analysis needs: a model under a scoring at a k'. `overrides` compose it; k' 0 means none applies;
    `also` names stages it needs beside the evaluation, `engine` the choice of `index=` where cells differ in it."""

    model: str
    scoring: str
    k_prime: int
    overrides: tuple[str, ...]
    also: tuple[str, ...] = ()
    engine: str = ""


@dataclass(frozen=True)
class Analysis:
    """What an analysis module registers.

    cells(cfg): the runs to make. make(cfg, scores, out, runs, folders): write tables and figures into `out` from each
    cell's per-query scores, with its run fingerprint for the footers, and its stages' folders for all else; returns
    facts for the manifest.
    """

    cells: Callable[[Config], Sequence[Cell]]
    make: Callable[
        [Config, Mapping[Cell, pandas.DataFrame], Path, Mapping[Cell, str], Mapping[Cell, Mapping[str, Path]]],
        dict[str, Any],
    ]


analyses: Registry[Analysis] = Registry("analysis", "xtrrep.analyze")
