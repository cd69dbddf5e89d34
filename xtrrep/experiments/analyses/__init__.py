"""Analyses that read vectors and indexes: one module each. An analysis names the runs it needs; the pipeline makes
them; the analysis reads them. What compares runs by their numbers alone is a file of `configs/analyses/`.

A file of your own in a folder that `$XTRREP_PLUGINS` names is found as well: it ends with
`analyses.register(NAME, SUMMARY)(Analysis(cells, make))`, and runs as `xtrrep analyze NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.config import Config, Source
from xtrrep.config.registry import Registry
from xtrrep.console import UsageError
from xtrrep.retrieval.token_hits import DEPTH

if TYPE_CHECKING:
    import pandas


VECTOR_K_PRIME = DEPTH
PLAID = "plaid"
UNITS = "units.csv"
NOTHING_AFTER = ("retrieve.rerank=null", "retrieve.from_run=null")  # a ranking as its engine or scoring left it


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
    facts for the manifest. units: what the rows of its UNITS are, "queries" or "documents", where it leaves that file:
    columns `model`, `engine` where cells differ in it, `unit` (an id), then values under the names that its table has.
    That is what claims are tested on. schema: raised where `make` leaves something else than before.
    """

    cells: Callable[[Config], Sequence[Cell]]
    make: Callable[
        [Config, Mapping[Cell, pandas.DataFrame], Path, Mapping[Cell, str], Mapping[Cell, Mapping[str, Path]]],
        dict[str, Any],
    ]
    units: str = ""
    schema: int = 1


def models_of(cfg: Config) -> dict[str, tuple[str, ...]]:
    """Models by name with the overrides that choose them: `analyze.models`, or the one that is not of our training.

    Raises UsageError where no model is named.
    """
    if cfg.model.source is not Source.trained:
        return {cfg.model.source.value: ()}
    if not cfg.analyze.models:
        raise UsageError("analyze.models names no model", hint="'analyze.models=[colbert,xtr_k128]'")
    found: dict[str, tuple[str, ...]] = {}
    for model in cfg.analyze.models:
        found[model] = ("model.source=untrained",) if model == "untrained" else (f"config={model}",)
    return found


def vector_cell(model: str, engine: str, words: tuple[str, ...]) -> Cell:
    """A cell of an analysis that looks at the vectors itself: XTR at VECTOR_K_PRIME with nothing after it.

    Its scores are not read. All such analyses ask for the same run, so it is made once.
    """
    rest = ("retrieve.scoring=xtr", f"retrieve.k_prime={VECTOR_K_PRIME}", "retrieve.imputation=min")
    return Cell(model, "xtr", VECTOR_K_PRIME, (*words, *rest, *NOTHING_AFTER), engine=engine)


def plaid_words(cfg: Config) -> tuple[str, ...]:
    """Overrides of an analysis of PLAID: the index that `index=` says, or the study's where that is the default exact.

    Raises UsageError where it says another engine.
    """
    name = str(cfg.index["engine"])
    if name not in ("exact", PLAID):
        raise UsageError(f"this analysis needs index=plaid, and index={name} is another engine", hint="--index plaid")
    chosen = () if name == PLAID else (f"index={PLAID}",)
    own = ("retrieve.scoring=colbert", "retrieve.k_prime=null", "retrieve.imputation=min")
    return (*chosen, *own, *NOTHING_AFTER)


def last_note(cfg: Config, runs: Mapping[Cell, str]) -> str:
    """The footer's last line: how many trainings stand behind it, and the runs."""
    return f"One training seed ({cfg.train.seed}). Runs: {', '.join(sorted(set(runs.values())))}"


analyses: Registry[Analysis] = Registry("analysis", "xtrrep.experiments.analyses")
