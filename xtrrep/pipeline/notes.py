"""What someone should know beside the scores of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.config import Source
from xtrrep.pipeline.pages import page_note
from xtrrep.pipeline.stages.collection import missing_note
from xtrrep.store.encode import cut_note


def notes_of(plan: pipeline.Plan, folders: Mapping[str, Path]) -> dict[str, list[str]]:
    """What someone should know beside the scores, by stage, read from the manifests of complete stages: what was cut,
    absent or odd, and a k_train that stands for one of the study's."""
    cfg, notes = plan.cfg, {}
    for name in [step.stage.name for step in plan.steps if step.stage.name in folders]:
        facts = artifacts.read_manifest(folders[name])["facts"]
        found: list[str | None] = []
        if name == "data" and facts.get("judged_missing"):
            found.append(missing_note(facts))
        if name == "data" and cfg.data.loader == "folder" and (same := configs.collection_at(str(cfg.data.path))):
            lengths = f"n_query={cfg.data.n_query or cfg.model.n_query}, drop_self={str(cfg.data.drop_self).lower()}"
            found.append(f"{cfg.data.path} is taken for {same} by its name: {lengths}")
        if name in ("train", "distill"):
            found += facts.get("odd", [])
        if name == "train" and (studys := configs.sparse_as(cfg.train)):
            own = ", ".join(map(str, configs.k_trains(cfg.train)))
            found.append(f"{cfg.config} has k_train={own} at scale={cfg.scale}, as sparse as the study's {studys}")
        if name == "documents":
            found.append(cut_note(facts, "document", "data.n_doc" if cfg.data.n_doc else "model.n_doc"))
        if name == "queries":
            found.append(cut_note(facts, "query", "data.n_query" if cfg.data.n_query else "model.n_query"))
        if name == "retrieve" and (empty := facts.get("queries_without_results")):
            source = f"no line in {Path(cfg.retrieve.from_run).name}" if cfg.retrieve.from_run else "no result"
            of = f"{empty:,} of {facts['units']['queries']:,} judged queries"
            found.append(f"{of} have {source}: each scores 0 in the mean")
        if name == "evaluate" and cfg.model.source in (Source.released, Source.checkpoint):
            found.append(page_note(cfg, facts["measures"]))
        if kept := [text for text in found if text]:
            notes[name] = kept
    return notes
