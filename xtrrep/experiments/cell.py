"""One run of an experiment: a composed config, and the stages that it ends with.

A cell is composed once, from overrides. What varies after that (training seeds, measures, the latency recipe) is set
field by field on the composed config.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from xtrrep import config as configs
from xtrrep import pipeline
from xtrrep.config import Config
from xtrrep.console import DataError, UsageError
from xtrrep.retrieval.engines import TextEngine, engines

Overrides = dict[str, str]  # dotted key (or group) -> value as typed

AFTER_WORDS = ("retrieve.rerank", "retrieve.fuse")  # what a model does with a ranking by words
SEED_KEYS = ("train.seed", "model.seed", "distill.seed")


@dataclass(frozen=True)
class Cell:
    """name: unique in its experiment. until: the stages that the run ends with, such as ("evaluate", "latency")."""

    name: str
    config: Config
    until: tuple[str, ...] = ("evaluate",)

    def with_seed(self, seed: int | None) -> Cell:
        """The same cell, its model trained under another seed. None leaves the config's own seeds."""
        if seed is None:
            return self
        cfg = self.config
        trained = replace(
            cfg,
            train=replace(cfg.train, seed=seed),
            model=replace(cfg.model, seed=seed),
            distill=replace(cfg.distill, seed=seed),
        )
        return replace(self, name=f"{self.name}, seed {seed}", config=trained)

    def with_process(self, number: int) -> Cell:
        """The same cell, its latency measured by the process of that number."""
        return replace(self, config=replace(self.config, latency=replace(self.config.latency, process=number)))

    def plan(self) -> pipeline.Plan:
        """The steps that lead to the cell's stages. Raises UsageError and DataError as `pipeline.plan`."""
        return pipeline.plan(self.config, *self.until)


def parse_overrides(texts: Iterable[str]) -> Overrides:
    """Overrides by key. Of two of one key the later wins. Raises UsageError for a text without `=`."""
    parsed = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{text!r} is not a KEY=VALUE override", hint="for example retrieve.k_prime=1000")
        parsed[key] = value
    return parsed


def as_texts(overrides: Mapping[str, str]) -> list[str]:
    """Overrides as they are typed."""
    return [f"{key}={value}" for key, value in overrides.items()]


def compose_cell(name: str, overrides: Mapping[str, str], until: Sequence[str] = ("evaluate",)) -> Cell:
    """Compose a cell from overrides that several rows share.

    An `index.` parameter is left out where another engine has it and the chosen one does not, and `retrieve.` settings
    but AFTER_WORDS are left out for an engine that searches words: a table's own overrides are written for its other
    rows. Raises UsageError and DataError as `config.compose`.
    """
    kept = dict(overrides)
    choice = kept.get("index")
    if choice is not None and choice in configs.options("index"):
        engine = engines.get(choice.partition("/")[0])
        own = _parameters(engine)
        known = set().union(*(_parameters(entry.value) for entry in engines.entries().values()))
        kept = {key: value for key, value in kept.items() if key in own or key not in known}
        if issubclass(engine, TextEngine):
            kept = {k: v for k, v in kept.items() if not k.startswith("retrieve.") or k in AFTER_WORDS}
    return Cell(name, configs.compose(as_texts(kept)), tuple(until))


def searches_words(overrides: Mapping[str, str]) -> bool:
    """Whether overrides choose an engine that ranks documents by their words."""
    entry = engines.entries().get(overrides.get("index", "").partition("/")[0])
    return entry is not None and issubclass(entry.value, TextEngine)


def _parameters(params: type) -> set[str]:
    return {f"index.{parameter.name}" for parameter in fields(params)}


def check_seeds(seeds: Sequence[int], overrides: Mapping[str, str]) -> None:
    """Refuse, beside several training seeds, an override that sets a seed or a model that is not trained here."""
    if not seeds:
        return
    twice = [f"{key}={overrides[key]}" for key in SEED_KEYS if key in overrides]
    if twice:
        raise UsageError(f"{' '.join(twice)}: --seeds says under which seeds to train", hint="leave one of the two out")
    if overrides.get("model.source", "trained") != "trained":
        raise UsageError(
            f"model.source={overrides['model.source']} is not trained here, so there is one model for all seeds",
            hint="leave out --seeds",
        )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from "42,43,44". Raises UsageError where one is no whole number, or is given twice."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--seeds {text} is not a list of whole numbers", hint="for example --seeds 42,43,44"
        ) from None
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"--seeds {text} names a seed twice, or one below 0", hint="for example --seeds 42,43,44")
    return seeds


def at_hand(data: str) -> bool:
    """Whether a collection can be read here without a network: embedded, a local folder, or an archive that is here."""
    from xtrrep.data import irds, resolve

    try:
        cfg = resolve(configs.compose([f"data={data}"]).data)
        return cfg.loader != "ir_datasets" or irds.is_present(cfg)
    except DataError:
        return False
