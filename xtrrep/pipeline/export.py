"""What others can use, as a folder of its own: a trained model, an index, or a run; each with a page that describes it.

A model comes with its weights and every score that this machine has measured for it. An index comes as the stages that
lead to it, laid out as below $XTRREP_HOME, so that commands on another machine re-use them. A run is a TREC file with
its metadata and measures.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.config import Config, Source, TrainStage
from xtrrep.console import DataError, UsageError, machine_error, request_reason
from xtrrep.measure.evaluate import canonical
from xtrrep.measure.significance import interval
from xtrrep.pipeline import Plan, ir_metadata
from xtrrep.pipeline.identity import engine_label, model_label, step_of
from xtrrep.pipeline.stages.training import card_facts
from xtrrep.pipeline.stages.vectors import model_folder
from xtrrep.retrieval.engines import TokenEngine, choice_of, engine_of

UNTIL = {"model": "train", "index": "index", "run": "evaluate"}  # what can be exported, and the stage it ends with


def check(cfg: Config, folder: Path, of: str = "model") -> None:
    """Raise UsageError for a kind that is none, a model that is not of our training and an index without files,
    DataError where `folder` already holds something."""
    if of not in UNTIL:
        raise UsageError(f"--of {of} is nothing to export", hint=f"--of {', '.join(UNTIL)}")
    engine = engine_of(cfg.index)
    if of == "index" and isinstance(engine, TokenEngine) and engine.exhaustive:
        raise UsageError(f"{engine_label(cfg)} searches the vectors and has no index", hint="--of index --index warp")
    if of == "model" and cfg.model.source is not Source.trained:
        raise UsageError("only a model trained here can be exported", hint="model.source=trained")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"the folder {folder} is not empty", hint="name a folder that does not exist yet")


def export(
    plan: Plan, trained: Path, folder: Path, command: str | None = None, *, pylate: bool = False
) -> list[dict[str, Any]]:
    """Copy the model of a finished training stage to `folder`, with a card that lists its scores. Returns the scores.

    `command` is what trained it; the card repeats it. pylate: in PyLate's layout, which sentence-transformers reads
    too.

    Raises as `check`, and DataError for a damaged artifact.
    """
    from xtrrep.model.card import write_card
    from xtrrep.model.pylate_layout import rewrite

    check(plan.cfg, folder)
    manifest = artifacts.check(trained, plan.steps[-1].spec.fingerprint)
    scores = sorted(
        measured(manifest["fingerprint"], step_of(plan.cfg)), key=lambda row: [str(row[key]) for key in sorted(row)]
    )
    with _whole(folder) as partial:
        shutil.copytree(model_folder(plan.cfg, trained), partial, dirs_exist_ok=True)
        if pylate:
            rewrite(partial)
        write_card(partial, card_facts(plan.cfg, plan.specs, manifest["facts"], scores) | {"command": command})
    return scores


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` at the end of the block, or never."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)


def export_index(plan: Plan, folders: Mapping[str, Path], folder: Path, command: str) -> None:
    """Copy the stages that an index is made of, without the collections: a command that would make them re-uses them
    where $XTRREP_HOME is `folder`, or a folder that it is copied into. `command` is what made the index.

    Raises DataError for a damaged artifact.
    """
    with _whole(folder) as home:
        for step in plan.steps:
            if step.spec.stage == "data":
                continue  # another machine reads it from the same source
            made = folders[step.stage.name]
            artifacts.check(made, step.spec.fingerprint)
            shutil.copytree(made, home / made.relative_to(step.stage.root()), dirs_exist_ok=True)
        facts = artifacts.read_manifest(folders["index"])["facts"]
        command = shlex.join([*shlex.split(command), *_commits(plan.cfg, command)])
        _write_page(home, f"{engine_label(plan.cfg)} index of {plan.cfg.data.id}", [
            f"Made by `{command}`, from vectors of {model_label(plan.cfg)}.",
            "To search it with xtrrep, download this folder and name it in `XTRREP_HOME`. The same command then re-uses"
            " the index and encodes nothing but queries:",
            "```sh\nhf download ORG/NAME --repo-type dataset --local-dir my-index\n"
            f"XTRREP_HOME=my-index {command.replace('xtrrep index', 'xtrrep eval', 1)}\n```",
            f"{facts.get('units', {}).get('tokens', 0):,} token vectors. The collection's texts are not in it.",
        ])  # fmt: skip


def _commits(cfg: Config, command: str) -> list[str]:
    """Overrides that name the hub's commits that a plan used, which `main` may have left behind elsewhere."""
    used = {"model.revision": cfg.model.revision, "train.revision": cfg.train.revision}
    used |= {"distill.revision": cfg.distill.revision} if cfg.stage is TrainStage.kd else {}
    return [f"{key}={commit}" for key, commit in used.items() if commit and f"{key}=" not in command]


def export_run(plan: Plan, folders: Mapping[str, Path], folder: Path, command: str) -> None:
    """Write a run's TREC file with its metadata, and its measures for each query. `command` is what made them.

    Raises DataError for a damaged artifact.
    """
    cfg, ranked, scored = plan.cfg, folders["retrieve"], folders["evaluate"]
    for name in ("retrieve", "evaluate"):
        artifacts.check(folders[name], plan.specs[name].fingerprint)
    text = (ranked / "run.trec").read_bytes()
    tag = text.partition(b"\n")[0].decode().rpartition(" ")[2] or engine_label(cfg)
    values = pd.read_csv(scored / "per_query.csv", index_col=0)
    rows = [(canonical(name), values[name].mean(), interval(values[name])) for name in values.columns]
    with _whole(folder) as out:
        (out / "run.trec").write_bytes(ir_metadata.annotated(text, ir_metadata.describe(cfg, tag, command)))
        (out / "measures.txt").write_text(ir_metadata.trec_measures(scored / "per_query.csv", tag), encoding="utf-8")
        table = ["| measure | mean | 95 % interval |", "| --- | --- | --- |"]
        for name, mean, bounds in rows:
            table.append(f"| {name} | {mean:.4f} | {'{:.4f} to {:.4f}'.format(*bounds) if bounds else '—'} |")
        _write_page(out, f"{tag} on {cfg.data.id}", [
            f"Made by `{command}`.",
            "\n".join(table),
            "`run.trec` is a TREC run with ir_metadata in its first lines. `measures.txt` has each query's scores, as"
            " `trec_eval -q` prints them.",
        ])  # fmt: skip


def _write_page(folder: Path, title: str, parts: Sequence[str]) -> None:
    """`README.md` of a data set repository."""
    text = "\n\n".join(["---\ntags: [xtrrep, retrieval]\n---", f"# {title}", *parts])
    (folder / "README.md").write_text(f"{text}\n", encoding="utf-8")


def push(folder: Path, repository: str, of: str = "model") -> str:
    """Upload an exported folder as the hub's `repository`, made where it is not there: a model's, or for an index or a
    run a data set's. Returns the commit's page.

    Raises DataError where the hub cannot be reached or lets nobody write.
    """
    from huggingface_hub import HfApi

    api, kind = HfApi(), "model" if of == "model" else "dataset"
    try:
        api.create_repo(repository, repo_type=kind, exist_ok=True)
        info = api.upload_folder(
            repo_id=repository, repo_type=kind, folder_path=folder, commit_message="Export by xtrrep"
        )
    except Exception as error:  # whatever the HTTP library under the client raises; its types change with it
        why = request_reason(error)
        hint = f"hf auth login, then `hf upload {repository} {folder} --repo-type {kind}`; the folder is complete"
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


def measured(model: str, step: int | None = None) -> Iterator[dict[str, Any]]:
    """Every measure of every evaluated run whose documents were encoded by the training with this fingerprint, in its
    last step or a kept one."""
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
        if len(chain) < 4 or chain[3]["upstream"].get("model") != model or chain[3]["config"].get("step") != step:
            continue
        run, index, documents = chain[1:]
        if (
            run["config"].get("rerank")
            or run["config"].get("fuse")
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
