"""What is indexed here: every model and engine whose index over one collection is complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.config import Config, Source, TrainStage
from xtrrep.console import UsageError, XtrrepError
from xtrrep.pipeline.identity import GivenRun, answerer, engine_label, model_label, model_needs, needs_model, setting_of
from xtrrep.retrieval.engines import TextEngine, TokenEngine, engine_of

SETUPS = ("I", "II")


@dataclass(frozen=True)
class Indexed:
    """A complete index. name: as the page and its address call it, such as "I/xtr_k128 exact"."""

    name: str
    model: str  # "" for an engine that ranks words
    plan: pipeline.Plan

    @property
    def cfg(self) -> Config:
        return self.plan.cfg

    @property
    def is_token_engine(self) -> bool:
        return isinstance(answerer(self.cfg), TokenEngine)

    @property
    def is_text_engine(self) -> bool:
        return isinstance(answerer(self.cfg), TextEngine)

    @property
    def scoring(self) -> str:
        """How it scores unless the page says otherwise."""
        return setting_of(self.cfg).scoring

    @property
    def folders(self) -> dict[str, Path]:
        return {step.stage.name: artifacts.folder_of(step.spec, step.stage.root()) for step in self.plan.steps}


def indexed(overrides: Sequence[str]) -> dict[str, Indexed]:
    """Every complete index over the collection that the overrides name, by its name; that of the overrides is first.

    Every named model of both setups is looked for, unless the overrides name a model that is not trained here. Raises
    as `config.compose`, and UsageError for a run in place of an engine, and for imported vectors.
    """
    base = configs.compose(overrides)
    if isinstance(answerer(base), GivenRun):
        raise UsageError("retrieve.from_run holds its own queries: there is nothing to search", hint="xtrrep eval")
    if needs_model(base) and base.model.source is Source.vectors:
        raise UsageError("imported vectors have no model to encode a typed query", hint="xtrrep explore --index bm25")
    engines = {name: configs.compose([f"index={name}"]).index for name in configs.options("index")}
    own = next((name for name, index in engines.items() if index == base.index), f"{engine_label(base)} (as typed)")
    found: dict[str, Indexed] = {}
    for cfg in _models(base, overrides):
        for name, index in {own: base.index, **engines}.items():
            if (one := _complete(cfg, name, index)) is not None:
                found.setdefault(one.name, one)
    return found


def _models(base: Config, overrides: Sequence[str]) -> Iterator[Config]:
    """The overrides' own model first, then every named one that could have been trained beside it."""
    yield base
    if base.model.source is not Source.trained:
        return
    kept = [text for text in overrides if text.partition("=")[0] not in ("config", "setup", "stage", "index")]
    kept = [text for text in kept if not text.startswith(("index.", "retrieve."))]
    for setup in SETUPS:
        for name in configs.options("config"):
            try:
                cfg = configs.compose([*kept, f"setup={setup}", f"config={name}"])
            except XtrrepError:
                continue  # such as several k_train at once, which setup I does not have
            yield cfg
            yield replace(cfg, stage=TrainStage.kd)


def _complete(cfg: Config, name: str, index: dict[str, Any]) -> Indexed | None:
    """The index `name` of a model, where it and what answers a query beside it are complete."""
    changed = replace(cfg, index=index)
    text = isinstance(engine_of(index), TextEngine)
    try:
        plan = pipeline.plan(changed, "index")
    except XtrrepError:
        return None  # what cannot be planned has not been indexed
    read = {"data", "index"} if text else {"data", "documents", "index", *model_needs(changed)}
    if not all(step.reuse for step in plan.steps if step.stage.name in read):
        return None
    model = "" if text else model_label(cfg)
    return Indexed(f"{model} {name}".strip(), model, plan)
