"""The `documents` and `queries` stages: texts encoded, or vectors from outside, as embedding stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep import artifacts
from xtrrep.artifacts import Folders, Spec, Specs, digest
from xtrrep.config import Config, Source, Transform
from xtrrep.console import DataError
from xtrrep.data import Collection, open_collection
from xtrrep.pipeline.identity import (
    content_of,
    device_named,
    is_distilled,
    lengths_of,
    model_label,
    model_needs,
    precision_of,
    precision_to_run,
    slug,
    step_of,
    weights_identity,
)
from xtrrep.pipeline.stages.training import model_config

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder


def model_identity(cfg: Config, specs: Specs) -> str:
    """What the encoder is: our training's fingerprint, or a hash of backbone, head and seed, or of a checkpoint."""
    if cfg.model.source is Source.trained:
        return specs["distill" if is_distilled(cfg) else "train"].fingerprint
    if cfg.model.source in (Source.checkpoint, Source.released):
        return digest(weights_identity(str(cfg.model.checkpoint), cfg.model.revision))
    return digest({"model": model_config(cfg), **weights_identity(cfg.model.backbone, cfg.model.revision)})


def _vectors_of(cfg: Config, stage: str) -> Path:
    return Path(str(cfg.model.vectors)).expanduser() / stage


def encode_spec(stage: str, cfg: Config, specs: Specs) -> Spec:
    if cfg.model.source is Source.vectors:
        from xtrrep.store.imported import identity

        content = {"vectors": identity(_vectors_of(cfg, stage))}
        judged = ("corpus",) if stage == "documents" else ("queries", "qrels")
        content |= {k: content_of(cfg.data)[k] for k in judged}
        imported = {"imported": True, "normalize": cfg.model.normalize}
        return Spec(stage, f"{slug(model_label(cfg))}--{specs['data'].label}", 2, imported, content=content)
    n_query, n_doc = lengths_of(cfg)
    content, step = content_of(cfg.data), step_of(cfg)
    precision = precision_of(cfg, cfg.encode.precision).value
    config: dict[str, Any] = {"precision": precision, "n_doc": n_doc}
    if cfg.encode.pool_factor > 1:
        config["pool_factor"] = cfg.encode.pool_factor
    kept = {"corpus": content["corpus"]}
    if stage == "queries":
        config = {"precision": precision, "n_query": n_query}
        kept = {"queries": content["queries"], "qrels": content["qrels"]}
    if step is not None:
        config["step"] = step
    label = f"{slug(model_label(cfg))}-{cfg.scale}--{specs['data'].label}"
    return Spec(stage, label, 2, config, {"model": model_identity(cfg, specs)}, kept)


def is_changed(stage: str, cfg: Config) -> bool:
    """Whether a store is made from the encoder's: moved in space, or of queries without their expansion."""
    dropped = stage == "queries" and not cfg.retrieve.expansion
    return cfg.encode.transform is not Transform.none or dropped


def store_needs(stage: str, cfg: Config) -> list[str]:
    if not is_changed(stage, cfg):
        return plain_needs(cfg)
    moved = ["documents"] if stage == "queries" and cfg.encode.transform is not Transform.none else []
    return ["data", f"plain_{stage}", *moved]


def plain_needs(cfg: Config) -> list[str]:
    return ["data", *model_needs(cfg)]


def store_spec(stage: str, cfg: Config, specs: Specs) -> Spec:
    """A store as it is searched: the encoder's own, or one that is made from that."""
    if not is_changed(stage, cfg):
        return encode_spec(stage, cfg, specs)
    plain = specs[f"plain_{stage}"]
    config: dict[str, Any] = {}
    upstream = {"plain": plain.fingerprint}
    if cfg.encode.transform is not Transform.none:
        config["transform"] = cfg.encode.transform.name
        if stage == "queries":
            upstream["documents"] = specs["documents"].fingerprint
    if stage == "queries" and not cfg.retrieve.expansion:
        config["expansion"] = False
    names = [config.get("transform", ""), "" if cfg.retrieve.expansion or stage == "documents" else "no-expansion"]
    return Spec(stage, "-".join([plain.label, *filter(None, names)]), 1, config, upstream)


def store_run(stage: str, cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.store import changed
    from xtrrep.store.encode import Store

    if not is_changed(stage, cfg):
        return encode_run(stage, cfg, folders, out)
    plain = Store.open(folders[f"plain_{stage}"], specs[f"plain_{stage}"].fingerprint)
    move = None
    if cfg.encode.transform is not Transform.none:
        move = changed.saved(folders["documents"]) if stage == "queries" else None
        move = move or changed.fitted(plain, cfg.encode.transform)
    kept = None
    if stage == "queries" and not cfg.retrieve.expansion:
        kept = ~changed.expansion_tokens(plain)
    return changed.write(out, plain, move, kept)


def model_folder(cfg: Config, trained: Path) -> Path:
    """The model that a config asks for in the folder of its training. Raises DataError where it was not kept."""
    from xtrrep.train.kept import folder_of

    folder = folder_of(trained, step_of(cfg))
    if not folder.exists():
        facts = artifacts.read_manifest(trained)["facts"]
        raise DataError(
            f"there is no model of step {step_of(cfg)}: the training diverged at step {facts['diverged_at']}",
            hint=f"model.step=null is the model of step {facts['model_step']}",
        )
    return folder


def encoder_of(cfg: Config, folders: Folders) -> MultiVectorEncoder:
    from xtrrep.model.encoder import get

    n_query, n_doc = lengths_of(cfg)
    made = folders.get("distill" if is_distilled(cfg) else "train")
    trained = model_folder(cfg, made) if made else None
    # The untrained head depends on the seed only; the lengths are the collection's.
    keys = ("data.n_query" if cfg.data.n_query else "model.n_query", "data.n_doc" if cfg.data.n_doc else "model.n_doc")
    return get(replace(cfg.model, n_query=n_query, n_doc=n_doc), trained, device_named(cfg.machine.device), keys)


def encode_share(cfg: Config, folders: Folders, out: Path) -> None:
    """A share of the documents' shards, beside other processes. Vectors from outside are copied by one."""
    if not is_changed("documents", cfg) and cfg.model.source is not Source.vectors:
        encode_run("documents", cfg, folders, out, together=True)


def encode_run(stage: str, cfg: Config, folders: Folders, out: Path, *, together: bool = False) -> dict[str, Any]:
    from xtrrep.store.encode import encode

    collection = open_collection(cfg.data, folders["data"])
    if cfg.model.source is Source.vectors:
        return _import_run(stage, cfg, collection, out)
    count = artifacts.read_manifest(folders["data"])["facts"]["documents"]
    texts = collection.documents() if stage == "documents" else list(collection.queries.items())
    return encode(
        encoder_of(cfg, folders),
        texts,
        count if stage == "documents" else len(collection.queries),
        out,
        replace(cfg.encode, precision=precision_to_run(cfg, cfg.encode.precision)),
        task=stage.removesuffix("s") if stage == "documents" else "query",
        device=device_named(cfg.machine.device),
        batch_tokens=cfg.machine.encode_tokens,
        together=together,
    )


def _import_run(stage: str, cfg: Config, collection: Collection, out: Path) -> dict[str, Any]:
    from xtrrep.store import imported

    folder, shard = _vectors_of(cfg, stage), cfg.encode.shard_documents
    if stage == "documents":
        count = imported.same_ids(folder, (name for name, _ in collection.documents()))
        return imported.write(
            out, imported.read(folder), count, normalize=cfg.model.normalize, shard_documents=shard, what="document"
        )
    rows = imported.select(imported.read(folder), list(collection.queries), folder)
    return imported.write(out, rows, len(rows), normalize=cfg.model.normalize, shard_documents=shard, what="query")
