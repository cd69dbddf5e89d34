"""Plan and run an analysis: the runs that it needs, then its own tables and figures, one artifact over them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.artifacts import Spec
from xtrrep.config import Config, plain
from xtrrep.console import say
from xtrrep.experiments.analyses import analyses
from xtrrep.experiments.cell import Cell, Overrides, as_texts, parse_overrides
from xtrrep.measure.evaluate import read_by_query
from xtrrep.pipeline import Plan, short
from xtrrep.pipeline.identity import slug
from xtrrep.pipeline.notes import notes_of


@dataclass(frozen=True)
class AnalysisPlan:
    """An analysis: the plans of its cells, and its own identity over all of them. units: what its values are of."""

    cfg: Config
    cells: tuple[Any, ...]
    plans: tuple[Plan, ...]
    spec: Spec
    folder: Path
    units: str

    @property
    def reuse(self) -> bool:
        return artifacts.is_complete(self.spec, configs.results_root())


def plan_analysis(overrides: Mapping[str, str], seed: int | None = None) -> AnalysisPlan:
    """Compose every cell that the analysis asks for and plan all of them, their models trained under `seed`."""
    base = Cell("", configs.compose(as_texts(overrides))).with_seed(seed)
    cfg = base.config
    analysis = analyses.get(cfg.analyze.name)
    cells = tuple(analysis.cells(cfg))
    plans = []
    for cell in cells:
        own = {**_shared(overrides, parse_overrides(cell.overrides)), **parse_overrides(cell.overrides)}
        made = Cell("", configs.compose(as_texts(own)), ("evaluate", *cell.also)).with_seed(seed)
        plans.append(made.plan())
    upstream = {
        "/".join(filter(None, [cell.model, cell.engine, cell.scoring, str(cell.k_prime), stage])): (
            plan.specs[stage].fingerprint
        )
        for cell, plan in zip(cells, plans, strict=True)
        for stage in ("evaluate", *cell.also)
    }
    shown = [cfg.data.id, cfg.setup, cfg.scale, cfg.index["engine"], cfg.protocol.name, cfg.train.seed]
    asked = {key: value for key, value in plain(cfg.analyze).items() if key not in ("steps", "timed")}
    described = {"analyze": asked, "shown": shown}
    label = f"{cfg.analyze.name}--{slug(cfg.data.id)}-{cfg.scale}-{cfg.index['engine']}"
    spec = Spec("analyze", label, analysis.schema, described, upstream)
    folder = artifacts.folder_of(spec, configs.results_root())
    return AnalysisPlan(cfg, cells, tuple(plans), spec, folder, analysis.units)


def _shared(overrides: Mapping[str, str], own: Mapping[str, str]) -> Overrides:
    """The analysis' overrides that apply to a cell with overrides of its own."""
    kept = dict(overrides)
    if "index" in own:  # parameters of one engine mean nothing to another
        kept = {key: value for key, value in kept.items() if not key.startswith("index.")}
    if own.get("index") == "bm25":
        kept = {k: v for k, v in kept.items() if not k.startswith("retrieve.") or k == "retrieve.top_k"}
    if "config" in own:  # a cell's name says whether it is distilled
        kept.pop("stage", None)
    return kept


def run_analysis(made: AnalysisPlan) -> Path:
    """Make or reuse every run and then the analysis. Returns its folder."""
    done = pipeline.run(made.plans)
    counted = [
        text
        for plan, folders in zip(made.plans, done.folders, strict=True)
        for texts in notes_of(plan, folders).values()
        for text in texts
    ]
    for text in dict.fromkeys(counted):
        say(f"  note: {text}")
    if made.reuse:
        artifacts.check(made.folder, made.spec.fingerprint)
        say(f"reuse  analyze    {short(made.folder)}")
        return made.folder
    folders = dict(zip(made.cells, done.folders, strict=True))
    scores = {cell: read_by_query(own["evaluate"] / "per_query.csv") for cell, own in folders.items()}
    runs = {cell: plan.specs["retrieve"].fingerprint for cell, plan in zip(made.cells, made.plans, strict=True)}
    say(f"run    analyze    {short(made.folder)}")
    analysis = analyses.get(made.cfg.analyze.name)
    root = configs.results_root()
    return artifacts.make(made.spec, root, lambda out: analysis.make(made.cfg, scores, out, runs, folders))
