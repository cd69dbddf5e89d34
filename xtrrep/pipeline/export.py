"""A trained model as a folder of its own: weights, and a card with every score this machine has measured for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.config import Config, Source
from xtrrep.console import DataError, UsageError, machine_error, request_reason
from xtrrep.measure.evaluate import canonical
from xtrrep.measure.significance import interval
from xtrrep.pipeline import Plan
from xtrrep.pipeline.stages.training import card_facts
from xtrrep.retrieval.engines import choice_of


def check(cfg: Config, folder: Path) -> None:
    """Raise UsageError for a model that is not of our training, DataError where `folder` already holds something."""
    if cfg.model.source is not Source.trained:
        raise UsageError("only a model trained here can be exported", hint="model.source=trained")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"the folder {folder} is not empty", hint="name a folder that does not exist yet")


def export(plan: Plan, trained: Path, folder: Path, command: str | None = None) -> list[dict[str, Any]]:
    """Copy the model of a finished training stage to `folder`, with a card that lists its scores. Returns the scores.

    `command` is what trained it; the card repeats it.

    Raises as `check`, and DataError for a damaged artifact.
    """
    from xtrrep.model.card import write_card

    check(plan.cfg, folder)
    manifest = artifacts.check(trained, plan.steps[-1].spec.fingerprint)
    scores = sorted(measured(manifest["fingerprint"]), key=lambda row: [str(row[key]) for key in sorted(row)])
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(trained / "model", partial)
    write_card(partial, card_facts(plan.cfg, plan.specs, manifest["facts"], scores) | {"command": command})
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)
    return scores


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder as the hub's model `repository`, made where it is not there. Returns the commit's page.

    Raises DataError where the hub cannot be reached or lets nobody write.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        info = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by xtrrep")
    except Exception as error:  # whatever the HTTP library under the client raises; its types change with it
        why = request_reason(error)
        hint = f"hf auth login, then `hf upload {repository} {folder}`; the folder is complete"
        raise machine_error(error, "HF_HOME") or DataError(
            f"could not push to {repository} ({why})", hint=hint
        ) from error
    return str(info.commit_url)


def check_repository(name: str) -> None:
    """Raise UsageError where `name` is no ORG/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"--push {name}: {str(error).splitlines()[0]}", hint="--push ORG/NAME") from None
    if name.count("/") != 1:
        raise UsageError(f"--push {name} names no organisation or user", hint=f"--push YOU/{name}")


def measured(model: str) -> Iterator[dict[str, Any]]:
    """Every measure of every evaluated run whose documents the model with this fingerprint encoded."""
    made = artifacts.complete(configs.artifacts_root()) + artifacts.complete(configs.results_root())
    by_print = {manifest["fingerprint"]: (folder, manifest) for folder, manifest in made}
    # By corpus and judgements: two splits of a collection share the corpus.
    names = {(m["content"]["corpus"], m["content"]["qrels"]): m["facts"]["id"] for _, m in made if m["stage"] == "data"}
    for folder, evaluation in made:
        if evaluation["stage"] != "evaluate":
            continue
        chain = [evaluation]
        for key in ("run", "index", "documents"):
            found = by_print.get(chain[-1]["upstream"].get(key, ""))
            if found is None:
                break  # a text engine has no documents, and what was deleted cannot be told apart
            chain.append(found[1])
        if len(chain) < 4 or chain[3]["upstream"].get("model") != model:
            continue
        run, index, documents = chain[1:]
        if (
            run["config"].get("rerank")
            or run["config"]["imputation"] not in ("min", "none")
            or documents["config"].get("pool_factor")
        ):
            continue  # a variant of the search, not a score of the model
        values = pd.read_csv(folder / "per_query.csv", index_col=0).rename(columns=canonical)
        for measure, value in evaluation["facts"]["measures"].items():
            yield {
                "data": names.get((documents["content"]["corpus"], evaluation["content"]["qrels"]), documents["label"]),
                "engine": choice_of(index["config"] | run["config"].get("search", {})),
                "scoring": run["config"]["scoring"],
                "k_prime": run["config"]["k_prime"],
                "measure": measure,
                "value": value,
                "interval": interval(values[measure]),
            }
