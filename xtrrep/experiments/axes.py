"""The cells of a grid: every combination of its axes, whose choices a file lists or the configuration gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from xtrrep.config import Config
from xtrrep.console import UsageError
from xtrrep.experiments.analyses import models_of
from xtrrep.experiments.cell import Overrides, parse_overrides
from xtrrep.measure.evaluate import canonical
from xtrrep.retrieval.engines import DocumentEngine, TextEngine, engines
from xtrrep.retrieval.imputation import imputations

K_PRIME = "k'"  # the axis that a sweep is drawn over
EACH = "each"  # the choice of an axis that stands for all choices of a source
MEASURES = ("analyze.measure", "data.measures")  # keys that a column may name in place of a measure
SMALLEST, LARGEST = "smallest", "largest"  # in coordinates: the choice of an axis of numbers

Place = dict[str, str]  # axis -> choice


def _engines(cfg: Config) -> dict[str, Overrides]:
    if not cfg.analyze.engines:
        raise UsageError("analyze.engines names no engine", hint="'analyze.engines=[exact,plaid,warp]'")
    for choice in cfg.analyze.engines:
        if issubclass(engines.get(choice.partition("/")[0]), TextEngine):
            hint = f"xtrrep eval --index {choice}"
            raise UsageError(f"analyze.engines names {choice}, which searches no vectors", hint=hint)
    return {choice: {"index": choice} for choice in cfg.analyze.engines}


SOURCES: dict[str, Callable[[Config], dict[str, Overrides]]] = {
    "models": lambda cfg: {name: parse_overrides(texts) for name, texts in models_of(cfg).items()},
    "k_primes": lambda cfg: {str(k_prime): {"retrieve.k_prime": str(k_prime)} for k_prime in cfg.analyze.k_primes},
    "engines": _engines,
    "imputations": lambda cfg: {name: {"retrieve.imputation": name} for name in imputations.entries()},
}


def choices_of(axis: Mapping[str, Sequence[str]], cfg: Config | None) -> dict[str, Overrides]:
    """The choices of one axis by name, with the overrides that make them."""
    found: dict[str, Overrides] = {}
    for choice, texts in axis.items():
        if choice == EACH:
            if cfg is None:
                raise ValueError("a source of choices needs a configuration")
            found = found | SOURCES[texts[0]](cfg) | found  # in the order of the file, and what it lists wins
        else:
            found[choice] = parse_overrides(texts)
    return found


def crossed(
    axes: Mapping[str, Mapping[str, Sequence[str]]], cfg: Config | None = None
) -> dict[str, tuple[Place, Overrides]]:
    """Every combination of the axes' choices by name, such as "xtr_k128, 1000". One that its engine cannot score is
    left out: PLAID and WARP each know one scoring."""
    found = {}
    for chosen in itertools.product(*(choices_of(axis, cfg).items() for axis in axes.values())):
        overrides: Overrides = {}
        for _, own in chosen:
            overrides |= own
        engine = engines.entries().get(overrides.get("index", "").partition("/")[0])
        if engine is not None and issubclass(engine.value, DocumentEngine):
            if overrides.get("retrieve.scoring", engine.value.scoring) != engine.value.scoring:
                continue
            overrides.setdefault("retrieve.imputation", "min")
        names = [choice for choice, _ in chosen]
        found[", ".join(names)] = dict(zip(axes, names, strict=True)), overrides
    return found


def is_depth(choice: str) -> bool:
    """Whether a choice is a whole number, such as a k'."""
    return choice.isascii() and choice.isdigit()


def moved(place: Mapping[str, str], to: Mapping[str, str], places: Iterable[Mapping[str, str]]) -> Place:
    """A place with some coordinates changed. `smallest` and `largest` are the ends of an axis of numbers."""
    where = dict(to)
    for axis, choice in to.items():
        if choice in (SMALLEST, LARGEST):
            choices = {other[axis] for other in places}
            if not all(map(is_depth, choices)):
                raise UsageError(f"`{choice}` of an axis whose choices are no numbers: {axis}", hint="a choice by name")
            where[axis] = (min if choice == SMALLEST else max)(choices, key=float)
    return {**place, **where}


def measures_of(name: str, column: str, cfg: Callable[[], Config]) -> dict[str, str]:
    """Measures by the names of their columns: of a key of the configuration each that it holds, under its own name.

    Raises UsageError where `analyze.measure` is none of the collection's measures.
    """
    if name not in MEASURES:
        return {column: name}
    measures = cfg().data.measures
    if name == "data.measures":
        return {measure: measure for measure in measures}
    wanted = cfg().analyze.measure
    known = [measure for measure in measures if canonical(measure) == canonical(wanted)]
    if not known:
        raise UsageError(
            f"analyze.measure={wanted} is not among data.measures={measures}", hint=f"analyze.measure={measures[0]}"
        )
    return {known[0]: known[0]}
