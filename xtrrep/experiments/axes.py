"""The cells of a grid: every combination of its axes, whose choices a file lists or the configuration gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec

from xtrrep.config import Config, choice_values, flat, options
from xtrrep.console import UsageError, suggest
from xtrrep.experiments.analyses import models_of
from xtrrep.experiments.cell import Overrides, parse_overrides
from xtrrep.measure.evaluate import canonical
from xtrrep.retrieval.engines import TextEngine, TokenEngine, engines
from xtrrep.retrieval.imputation import imputations

K_PRIME = "k'"  # the axis that a sweep is drawn over
STEP = "step"  # the axis that the figure `steps` is drawn over
EACH = "each"  # the choice of an axis that stands for all choices of a source
MEASURES = ("analyze.measure", "data.measures")  # keys that a column may name in place of a measure
SMALLEST, LARGEST = "smallest", "largest"  # in coordinates: the choice of an axis of numbers

SWEEP = "sweep"  # the source of an axis whose choices are an engine's settings
PRESET = "preset"  # its choice that changes nothing

Place = dict[str, str]  # axis -> choice


def _engines(cfg: Config, chosen: Overrides) -> dict[str, Overrides]:
    if not cfg.analyze.engines:
        raise UsageError("analyze.engines names no engine", hint="'analyze.engines=[exact,plaid,warp]'")
    for choice in cfg.analyze.engines:
        if issubclass(engines.get(choice.partition("/")[0]), TextEngine):
            hint = f"xtrrep eval --index {choice}"
            raise UsageError(f"analyze.engines names {choice}, which searches no vectors", hint=hint)
    return {choice: {"index": choice} for choice in cfg.analyze.engines}


def _installed(cfg: Config, chosen: Overrides) -> dict[str, Overrides]:
    """The engines of `analyze.sweep`, or every engine over vectors whose library is here, with the library's preset."""
    known = options("index")
    if not cfg.analyze.sweep:
        found = [
            name
            for name, entry in engines.entries().items()
            if not issubclass(entry.value, TextEngine) and (not entry.requires or find_spec(entry.requires))
        ]
        return {choice: {"index": choice} for name in found for choice in (name, f"{name}/library") if choice in known}
    for choice in cfg.analyze.sweep:
        if choice not in known:
            raise UsageError(f"analyze.sweep names {choice!r}, which is no engine", hint=suggest(choice, known))
    return {choice: {"index": choice} for choice in cfg.analyze.sweep}


def _settings(cfg: Config, chosen: Overrides) -> dict[str, Overrides]:
    """The settings of the engine that a row has chosen: its own `sweep`, one value changed at a time. What the row has
    set already is left as it is, and a preset of an engine has no other settings."""
    choice = chosen.get("index", "")
    engine = engines.get(choice.partition("/")[0])
    words = issubclass(engine, TextEngine)
    found: dict[str, Overrides] = {} if words and "retrieve.fuse" in chosen else {PRESET: {}}
    if "/" in choice:
        return found
    maxsim = issubclass(engine, TokenEngine) and chosen.get("retrieve.scoring") == "colbert"
    usual = choice_values("index", choice)
    usual["retrieve.k_prime"] = cfg.retrieve.k_prime_colbert if maxsim else cfg.retrieve.k_prime_xtr
    for name, values in engine.sweep.items():
        key = name if "." in name else f"index.{name}"
        if key in chosen or (maxsim and key == "retrieve.rerank"):
            continue
        for value in values:
            if usual.get(name) != value:
                found[f"{key.rpartition('.')[2]}={value}"] = {key: str(value)}
    return found


def round_of(overrides: Mapping[str, str], setting: str) -> int:
    """When a setting of `sweep` is run: the preset and the ends of the first parameter in round 0, then what halves
    the distance between those before; every other parameter a round later."""
    name, _, value = setting.partition("=")
    engine = engines.get(overrides["index"].partition("/")[0])
    for later, (key, values) in enumerate(engine.sweep.items()):
        if key.rpartition(".")[2] == name:
            return _halvings(len(values))[values.index(int(value))] + bool(later)
    return 0


def _halvings(count: int) -> list[int]:
    """How often a row of so many values is halved before each of them is an end of a part."""
    depths = [0] * count
    parts = [(0, count - 1, 1)]
    for low, high, depth in parts:
        if high - low > 1:
            middle = (low + high) // 2
            depths[middle] = depth
            parts += [(low, middle, depth + 1), (middle, high, depth + 1)]
    return depths


def _steps(cfg: Config, chosen: Overrides) -> dict[str, Overrides]:
    """Steps of contrastive training, and its last: one training keeps the models of all of them."""
    steps = sorted({step for step in cfg.analyze.steps if step < cfg.train.steps} | {cfg.train.steps})
    kept = {"train.keep": str(steps[:-1]).replace(" ", "")}
    return {str(step): {**kept, "model.step": str(step)} for step in steps}


SOURCES: dict[str, Callable[[Config, Overrides], dict[str, Overrides]]] = {
    "models": lambda cfg, _: {name: parse_overrides(texts) for name, texts in models_of(cfg).items()},
    "k_primes": lambda cfg, _: {str(k): {"retrieve.k_prime": str(k)} for k in cfg.analyze.k_primes},
    "engines": _engines,
    "installed": _installed,
    "steps": _steps,
    "imputations": lambda cfg, _: {name: {"retrieve.imputation": name} for name in imputations.entries()},
    SWEEP: _settings,
}


def ends(cfg: Config) -> dict[str, str]:
    """What `{smallest}` and `{largest}` stand for in a column's overrides."""
    return {SMALLEST: str(min(cfg.analyze.k_primes)), LARGEST: str(max(cfg.analyze.k_primes))}


def is_wanted(when: str | None, what: str, config: Callable[[], Config]) -> bool:
    """Whether the key that `when` names holds something. Raises UsageError for a key that is not there."""
    if when is None:
        return True
    known = flat(config())
    if when not in known:
        raise UsageError(f"{what}: no key {when!r}", hint=suggest(when, known))
    return bool(known[when])


def choices_of(axis: Mapping[str, Sequence[str]], cfg: Config | None, chosen: Overrides) -> dict[str, Overrides]:
    """The choices of one axis by name, with the overrides that make them. `chosen`: those of the axes before."""
    found: dict[str, Overrides] = {}
    for choice, texts in axis.items():
        if choice == EACH:
            if cfg is None:
                raise ValueError("a source of choices needs a configuration")
            found = found | SOURCES[texts[0]](cfg, chosen) | found  # in the order of the file, and what it lists wins
        else:
            found[choice] = parse_overrides(texts)
    return found


def crossed(
    axes: Mapping[str, Mapping[str, Sequence[str]]], cfg: Config | None = None
) -> dict[str, tuple[Place, Overrides]]:
    """Every combination of the axes' choices by name, such as "xtr_k128, 1000". One that its engine cannot score is
    left out: PLAID and WARP each know one scoring, and words are re-ranked by MaxSim."""
    cells: list[tuple[Place, Overrides]] = [({}, {})]
    for axis, listed in axes.items():
        cells = [
            ({**place, axis: choice}, {**overrides, **own})
            for place, overrides in cells
            for choice, own in choices_of(listed, cfg, overrides).items()
        ]
    found = {}
    for place, overrides in cells:
        engine = engines.entries().get(overrides.get("index", "").partition("/")[0])
        if engine is not None and not issubclass(engine.value, TokenEngine):
            scoring = "colbert" if issubclass(engine.value, TextEngine) else engine.value.scoring
            if overrides.get("retrieve.scoring", scoring) != scoring:
                continue
            overrides.setdefault("retrieve.imputation", "min")
        found[", ".join(place.values())] = place, overrides
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
