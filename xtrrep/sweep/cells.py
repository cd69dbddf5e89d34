"""A sweep as data: the cells it asks for, crossed or listed, or those of reproductions and claims.

`configs/sweeps/NAME.yaml`:

    title           words
    overrides       of every cell
    axes            a list of axes, each a list of choices, each an override or a list of them: every choice of one axis
                    is crossed with every choice of the others
    cells           a list of lists of overrides: single cells beside those
    until           the stage that a cell ends with (evaluate)
    reproductions   names of tables and figures, or `all`: their cells too
    claims          ids of claims, or `all`: theirs too, with the runs of the analyses that they read
    encoders        at most so many processes encode one collection's documents together (1)
    memory          {stage: GB that one such unit of work takes}, where the rough figures of units.py do not fit
    cluster         what a job asks for, by submitit's names (timeout_min, mem_gb, cpus_per_task, gpus_per_node,
                    slurm_partition, ...), and `stages`: {stage: the same, for jobs that do this}
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xtrrep import claims as testing
from xtrrep import config as configs
from xtrrep import pipeline, reproduce, study
from xtrrep.console import UsageError, XtrrepError, say, suggest
from xtrrep.pipeline import Plan
from xtrrep.stages.table import BY_NAME
from xtrrep.yamlfile import check_keys, need_list, need_mapping, need_number, read_yaml, words_in

KEYS = {"title", "overrides", "axes", "cells", "until", "reproductions", "claims", "encoders", "memory", "cluster"}
Words = tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep's file. `cells` are what its own cells add to `overrides`; `cluster` is by stage, "" for any. `seeds` are
    no part of it: each cell is trained under every one of them, or under the config's own."""

    name: str
    title: str
    overrides: Words
    cells: tuple[Words, ...]
    until: str
    reproductions: Words
    claims: Words
    encoders: int
    memory: Mapping[str, float]
    cluster: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...] = ()


def names() -> list[str]:
    """Every sweep there is."""
    return configs.options("sweeps")


def load(name: str) -> Sweep:
    """Read and check a sweep. Raises UsageError for an unknown name, or naming file and fault."""
    if name not in names():
        raise UsageError(f"no sweep named {name!r}", hint=suggest(name, names()))
    return parse_sweep(configs.config_dir() / "sweeps" / f"{name}.yaml")


def parse_sweep(path: Path) -> Sweep:
    """As `load`, from any file."""
    text = read_yaml(path)
    check_keys(path, "it", text, KEYS, {"title"})
    axes = [
        [_choice(path, value) for value in need_list(path, "an axis", axis)]
        for axis in need_list(path, "axes", text.get("axes", []))
    ]
    if any(not axis for axis in axes):
        raise UsageError(f"{path}: an axis has no choices", hint="a list of overrides, or no axis")
    crossed = [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*axes)] if axes else []
    cells = [*crossed, *(words_in(path, "a cell", value) for value in need_list(path, "cells", text.get("cells", [])))]
    reproductions = words_in(path, "reproductions", text.get("reproductions", []))
    claims = words_in(path, "claims", text.get("claims", []))
    if not cells and not reproductions and not claims:
        raise UsageError(f"{path} asks for no cell", hint="axes, cells, reproductions or claims")
    for twice in {cell for cell in cells if cells.count(cell) > 1}:
        raise UsageError(f"{path} names one cell twice: {' '.join(twice)}", hint="name it once")
    until = _stage(path, "until", text.get("until", "evaluate"))
    memory = need_mapping(path, "memory", text.get("memory", {}))
    for stage, number in memory.items():
        need_number(path, f"memory of {_stage(path, 'memory', stage)}", number)
        if number <= 0:
            raise UsageError(
                f"{path}: memory of {stage} is not above 0 GB", hint="a number of gigabytes, for example 4"
            )
    encoders = text.get("encoders", 1)
    if isinstance(encoders, bool) or not isinstance(encoders, int) or encoders < 1:
        raise UsageError(f"{path}: encoders is no number of processes: {encoders!r}", hint="a whole number from 1")
    return Sweep(
        path.stem,
        str(text["title"]),
        words_in(path, "overrides", text.get("overrides", [])),
        tuple(cells),
        until,
        reproductions,
        claims,
        encoders,
        {stage: float(number) for stage, number in memory.items()},
        _cluster(path, text.get("cluster", {})),
    )


def _choice(path: Path, value: Any) -> Words:
    return (value,) if isinstance(value, str) else words_in(path, "a choice of an axis", value)


def _stage(path: Path, what: str, value: Any) -> str:
    if value not in BY_NAME:
        raise UsageError(f"{path}: {what} names no stage: {value!r}", hint=suggest(str(value), BY_NAME))
    return str(value)


def _cluster(path: Path, value: Any) -> dict[str, dict[str, Any]]:
    every = dict(need_mapping(path, "cluster", value))
    stages = need_mapping(path, "stages of cluster", every.pop("stages", {}))
    own = {
        _stage(path, "cluster", stage): need_mapping(path, f"cluster of {stage}", found)
        for stage, found in stages.items()
    }
    return {"": every, **own}


def plans(sweep: Sweep, extra: Sequence[str]) -> tuple[dict[str, Plan], dict[str, str]]:
    """Every cell's plan by its name, and why the others have none. `extra`: overrides of all cells, `scale=` too.

    Raises UsageError for an override of what the cells, or the sweep's seeds, say themselves.
    """
    study.check_seeds(sweep.seeds, [*sweep.overrides, *extra])
    fixed = {word.partition("=")[0] for cell in sweep.cells for word in cell}
    for word in extra:
        if word.partition("=")[0] in fixed:
            raise UsageError(
                f"{word!r} cannot be given: configs/sweeps/{sweep.name}.yaml sets it for its cells",
                hint="leave it out, or write a sweep of your own beside that file",
            )
    found: dict[str, Plan] = {}
    lacking: dict[str, str] = {}
    for cell in sweep.cells:
        for seed in sweep.seeds or (None,):
            trained = study.seed_words(seed) if seed is not None else []
            name = " ".join(cell) or "the defaults"
            name += f", seed {seed}" if seed is not None else ""
            try:
                words = reproduce.last_wins([*sweep.overrides, *cell, *extra, *trained])
                found[name] = pipeline.plan(configs.compose(words), sweep.until)
            except XtrrepError as error:
                lacking[name] = str(error)
    rest = reproduce.last_wins([word for word in (*sweep.overrides, *extra) if not word.startswith("scale=")])
    for what in _reproductions(sweep, _scale(sweep, extra)):
        made, refused = reproduce.named_plans(what, rest)
        found |= {f"{what.name}: {name}": plan for name, plan in made.items()}
        lacking |= {f"{what.name}: {name}": reason for name, reason in refused.items()}
    if sweep.claims:
        family = testing.load(_scale(sweep, extra), () if study.ALL in sweep.claims else sweep.claims)
        made, refused = testing.named_plans(family, [*rest, *_seeds_of_claims(sweep)])
        found |= made
        lacking |= refused
    return found, lacking


def _scale(sweep: Sweep, extra: Sequence[str]) -> str:
    scales = [word.removeprefix("scale=") for word in (*sweep.overrides, *extra) if word.startswith("scale=")]
    return scales[-1] if scales else "demo"


def _seeds_of_claims(sweep: Sweep) -> list[str]:
    return [f"claims.seeds=[{','.join(map(str, sweep.seeds))}]"] if sweep.seeds else []


def _reproductions(sweep: Sweep, scale: str) -> list[study.Known]:
    """The reproductions a sweep names, as far as their collections are at hand."""
    found: dict[str, study.Known] = {}
    for name in sweep.reproductions:
        for what in study.load_all(name, scale):
            found[what.name] = replace(what, seeds=sweep.seeds)
    if found:
        say(f"reproductions: {', '.join(found)}, scale={scale}")
    return list(found.values())
