"""The stages, in order, and one function that runs a config up to a stage. Read this file first.

    data         the collection, checked; built where it is not a local folder
    train_data   the same for the collection we train on
    distill_data the collection whose candidates a teacher scores
    eval_data    a small collection to look at during training
    triples      (query, positive, hard negative), mined with BM25
    scored       (query, candidates, the teacher's scores)
    train        the encoder, from the backbone, contrastive
    distill      then from a teacher's scores (stage=kd)
    documents    token embeddings of the documents
    queries      token embeddings of the judged queries
    index        an engine's files over the documents
    retrieve     ranked documents a query: a TREC run file
    evaluate     measures, per query first
    latency      how long a query takes, in a process of its own
    analyze      tables and figures over many runs

Each stage leaves `ROOT/STAGE/LABEL-FINGERPRINT/` with a `manifest.json` (artifacts.py), where ROOT is `artifacts/` for
what is costly and `results/runs/` for what people read: `STAGES` below says which (the collections share the folder of
`data`; `analyze`, which stands over many plans, goes to the results). `$XTRREP_HOME` replaces `artifacts/` and then
holds `results/runs/` too. The fingerprint covers the part of the config that the stage reads, the fingerprints of the
stages it needs, and the content of data and weights (of what lies on a hub: its id and revision). So a whole plan is
known before anything runs, and a stage is re-used exactly when a folder with its fingerprint has a manifest, whatever
LABEL that folder was first made under. Of the machine only what changes numbers counts: the precision it computes in
(`auto` is bf16 where the processor has it), and `machine.compile` in training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtrrep import artifacts, runfile
from xtrrep import config as configs
from xtrrep.artifacts import Spec, digest, hash_file
from xtrrep.config import (
    Config,
    Data,
    Distill,
    Loop,
    Missing,
    Precision,
    Scorer,
    Scoring,
    SelfMatch,
    Source,
    TrainStage,
    k_trains,
    min_max_of,
    objective_of,
    plain,
    temperature_of,
)
from xtrrep.console import DataError, UsageError, say
from xtrrep.data import Collection, check, open_collection, resolve, sources
from xtrrep.index import Place, engine_of, split_params
from xtrrep.model import weights
from xtrrep.model.encoder import device_of, resolve_precision
from xtrrep.report.table import Table
from xtrrep.retrieve import (
    Counts,
    Outcome,
    Setting,
    keep_run,
    rank_query,
    retrieve,
    retrieve_documents,
    retrieve_run,
    retrieve_text,
)
from xtrrep.scoring.imputation import imputations

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import MultiVectorEncoder

    from xtrrep.explain import Explanation

Specs = Mapping[str, Spec]
Folders = Mapping[str, Path]


@dataclass(frozen=True)
class Stage:
    """One kind of work: what it needs, what it leaves, and where."""

    name: str
    leaves: str
    needs: Callable[[Config], Sequence[str]]
    root: Callable[[], Path]
    spec: Callable[[Config, Specs], Spec]
    run: Callable[[Config, Specs, Folders, Path], dict[str, Any]]


# --- what a config means -----------------------------------------------------------------------------------------


def kind_of(cfg: Config) -> str:
    """What answers a query: a "token", "document" or "text" engine; or the ranking of `retrieve.from_run`, re-ranked
    ("rerank") or as it is ("given")."""
    if cfg.retrieve.from_run is not None:
        return "given" if cfg.retrieve.scoring is Scoring.run else "rerank"
    return engine_of(cfg.index)[0].kind


def needs_model(cfg: Config) -> bool:
    """Whether texts are encoded at all."""
    return kind_of(cfg) not in ("text", "given")


def engine_label(cfg: Config) -> str:
    """How tables and folders call what answered: the engine, or a run from outside."""
    return "run" if cfg.retrieve.from_run is not None else str(cfg.index["engine"])


def place_of(cfg: Config) -> Place:
    return Place(_device(cfg.machine.device), cfg.machine.threads)


def model_label(cfg: Config) -> str:
    """How tables and folders call the model: `I/xtr_k128`, `II/xtr_k256_kd`, `untrained`, or a checkpoint's name."""
    if cfg.model.source is Source.trained:
        return f"{cfg.setup}/{cfg.config}" + ("_kd" if is_distilled(cfg) else "")
    if cfg.model.source is Source.untrained:
        return "untrained"
    if cfg.model.source is Source.vectors:
        return Path(str(cfg.model.vectors)).expanduser().resolve().name
    path = Path(str(cfg.model.checkpoint)).expanduser()
    return path.resolve().parent.name if path.name in ("model", "", ".") else path.name


def is_distilled(cfg: Config) -> bool:
    return cfg.stage is TrainStage.kd


def loop_of(cfg: Config) -> Loop:
    """The training that gives the model its last weights."""
    return cfg.distill if is_distilled(cfg) else cfg.train


def setting_of(cfg: Config) -> Setting:
    """Scoring and its k', with `model` resolved to the scoring the model was trained for.

    Raises UsageError for what the engine cannot do: PLAID and WARP score by themselves.
    """
    kind, asked = kind_of(cfg), cfg.retrieve
    drop_self = cfg.data.drop_self and cfg.protocol.self_match is SelfMatch.collection
    _check_fit(cfg, kind)
    if kind != "token":
        own = {"text": "bm25", "rerank": "colbert", "given": "run"}
        scoring = engine_of(cfg.index)[0].scoring if kind == "document" else own[kind]
        return Setting(scoring, None, "none", asked.top_k, drop_self, False, asked.rerank)
    scoring = cfg.retrieve.scoring.value
    if cfg.retrieve.scoring is Scoring.model:
        scoring = "xtr" if cfg.train.scorer is Scorer.xtr else "colbert"
    default = cfg.retrieve.k_prime_xtr if scoring == "xtr" else cfg.retrieve.k_prime_colbert
    return Setting(
        scoring=scoring,
        k_prime=cfg.retrieve.k_prime or default,
        imputation=cfg.retrieve.imputation if scoring == "xtr" else "none",
        top_k=cfg.retrieve.top_k,
        drop_self=drop_self,
        zero_missing=cfg.protocol.missing_slots is Missing.zero,
        rerank=asked.rerank,
    )


def _check_fit(cfg: Config, kind: str) -> None:
    """Refuse retrieval settings that what answers the query would silently ignore."""
    asked = cfg.retrieve
    if asked.scoring is Scoring.run and kind != "given":
        raise UsageError("retrieve.scoring=run keeps the scores of a run", hint="retrieve.from_run=FILE")
    if kind == "token":
        if asked.rerank is not None and asked.scoring is Scoring.colbert:
            raise UsageError("retrieve.rerank re-ranks by MaxSim what retrieve.scoring=colbert ranks by it already")
        if asked.imputation != "min" and asked.scoring is Scoring.colbert:
            raise UsageError(
                f"ColBERT scoring imputes nothing: retrieve.imputation={asked.imputation} means nothing",
                hint="retrieve.scoring=xtr",
            )
        return
    name = engine_label(cfg)
    if asked.k_prime is not None:
        hint = "index.nprobe says how far PLAID and WARP look" if kind == "document" else None
        raise UsageError(
            f"{name} retrieves no tokens for us: retrieve.k_prime={asked.k_prime} means nothing", hint=hint
        )
    if asked.imputation != "min":
        raise UsageError(
            f"{name} does not score with our imputation: retrieve.imputation={asked.imputation} means nothing",
            hint="--index scann, or --index exact",
        )
    if kind in ("text", "given") and asked.rerank is not None:
        raise UsageError(
            f"retrieve.rerank needs a model's vectors, and {name} has none",
            hint="retrieve.from_run=FILE re-ranks a run",
        )
    if kind == "document" and asked.scoring not in (Scoring.model, Scoring(engine_of(cfg.index)[0].scoring)):
        raise UsageError(
            f"{name} scores by itself: retrieve.scoring={asked.scoring.value} does not fit",
            hint="--index scann, or --index exact",
        )
    if kind == "rerank" and asked.scoring is Scoring.xtr:
        raise UsageError(
            "a run is re-ranked by MaxSim: retrieve.scoring=xtr does not fit", hint="retrieve.scoring=model"
        )


def lengths_of(cfg: Config) -> tuple[int, int]:
    """(query, document) lengths in tokens: the collection's where it has its own, else the model's."""
    return cfg.data.n_query or cfg.model.n_query, cfg.data.n_doc or cfg.model.n_doc


@cache
def _content(loader: str, key: str) -> dict[str, str]:
    return sources.get(loader).content(Data(**json.loads(key)))


def content_of(data: Data) -> dict[str, str]:
    """Hashes of a collection's corpus, queries and judgements, without building it."""
    data = resolve(data)
    return _content(data.loader, json.dumps(plain(data)))


@cache
def train_data_of(name: str) -> Data:
    """The training collection's own config."""
    return configs.compose([f"data={name}"]).data


@cache
def _weights(name: str, revision: str | None) -> dict[str, str]:
    return weights.identity(name, revision)


@cache
def _device(name: str) -> str:
    return device_of(name)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-.") or "x"


# --- stages: what each one is (spec) and does (run) --------------------------------------------------------------


def _data_spec(stage: str, data: Data) -> Spec:
    content = content_of(data)
    config = {"loader": resolve(data).loader, "max_queries": data.max_queries, "split": data.split}
    return Spec(stage, _slug(data.id), 1, config, content=content)


def _data_run(data: Data, out: Path) -> dict[str, Any]:
    data = resolve(data)
    source = sources.get(data.loader)
    source.prepare(data, out)
    counts = check(source.open(data, out))
    if counts["judged_missing"]:
        say(f"  note: {counts['judged_missing']} judgements name documents that the corpus does not have")
    return {"units": {"collections": 1}, "id": data.id, **counts}


def _training_collection(name: str | None, key: str) -> Data:
    if name is None:
        raise UsageError(f"{key} is null")
    return train_data_of(name)


def _triples_spec(cfg: Config, specs: Specs) -> Spec:
    config = {"max_triples": cfg.train.max_triples, "seed": cfg.train.seed}
    return Spec("triples", _slug(str(cfg.train.data)), 1, config, {"data": specs["train_data"].fingerprint})


def _triples_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.data.triples import mine

    collection = open_collection(_training_collection(cfg.train.data, "train.data"), folders["train_data"])
    facts = mine(collection, out, seed=cfg.train.seed, max_triples=cfg.train.max_triples)
    return {"units": {"queries": facts["queries"]}, **facts}


def _model_config(cfg: Config) -> dict[str, Any]:
    """What defines the untrained encoder."""
    keys = ("layers", "dim", "n_query", "projection", "query_expansion", "skip_punctuation", "seed")
    model = plain(cfg.model)
    return {key: model[key] for key in keys}


def _loop_config(cfg: Config, loop: Loop) -> dict[str, Any]:
    """What of a training decides its weights: no paths, nothing that only looks, variants by what they resolve to."""
    dropped = {"data", "triples", "lists", "teacher", "revision", "max_triples", "max_queries"}
    dropped |= {"checkpoint_every", "eval_every", "eval_data", "objective", "temperature_colbert", "temperature_xtr"}
    config = {key: value for key, value in plain(loop).items() if key not in dropped}
    config["precision"] = resolve_precision(loop.precision, _device(cfg.machine.device)).value
    config["temperature_lr"] = (loop.temperature_lr or loop.learning_rate) if loop.learn_temperature else None
    config["scorer"] = cfg.train.scorer.value
    config["k_train"] = list(k_trains(cfg.train))
    config |= dict(zip(("z", "missing", "mask"), objective_of(cfg.train), strict=True))
    if loop is cfg.train:
        config["temperature"] = temperature_of(cfg.train)
        if cfg.train.loss.value == "contrastive":
            config.pop("mini_batch")
    if cfg.train.scorer is Scorer.colbert:
        for key in ("z", "missing", "mask"):
            config.pop(key)
    if len(config["k_train"]) < 2:
        config.pop("kd_multi", None)
    if isinstance(loop, Distill):
        config["min_max"] = min_max_of(loop)
    if cfg.machine.compile:  # like the precision, it changes numbers
        config["compile"] = True
    return config


def _source_content(kind: str, source: str, revision: str | None, files: Sequence[Path]) -> dict[str, str]:
    """The identity of training data from outside: a hash of its files, or the hub's id and revision."""
    if files:
        return {kind: digest([[file.suffix, hash_file(file)] for file in files])}
    return {kind: f"{source}@{revision}"}


def _train_label(cfg: Config, suffix: str = "") -> str:
    return _slug(f"{cfg.setup}-{cfg.config}{suffix}-{cfg.scale}")


def _train_spec(cfg: Config, specs: Specs) -> Spec:
    config = _loop_config(cfg, cfg.train)
    content = dict(_weights(cfg.model.backbone, cfg.model.revision))
    if cfg.train.triples is not None:
        from xtrrep.data.triples import local_files

        files = local_files(cfg.train.triples)  # refuses a missing one before anything runs
        content |= _source_content("triples", cfg.train.triples, cfg.train.revision, files)
        config["max_triples"] = cfg.train.max_triples
    upstream = {"triples": specs["triples"].fingerprint} if "triples" in specs else {}
    return Spec("train", _train_label(cfg), 2, {"model": _model_config(cfg), "train": config}, upstream, content)


def _train_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.data.triples import read_triples
    from xtrrep.model.encoder import build
    from xtrrep.train.losses import contrastive

    source = str(folders["triples"] / "triples.jsonl") if "triples" in folders else str(cfg.train.triples)
    triples = read_triples(source, revision=cfg.train.revision, max_triples=cfg.train.max_triples)
    model = build(cfg.model, _device(cfg.machine.device))
    return _fit(replace(cfg, stage=TrainStage.contrastive), specs, folders, out, model, triples, contrastive)


def _scored_spec(cfg: Config, specs: Specs) -> Spec:
    distill = cfg.distill
    config: dict[str, Any] = {"n_ways": distill.n_ways, "max_queries": distill.max_queries, "seed": distill.seed}
    config |= {"n_doc": distill.n_doc, "precision": _teacher_precision(cfg).value}
    content = {"teacher": digest(_weights(distill.teacher, None))}
    label = f"{_slug(str(distill.data))}--{_slug(distill.teacher.rsplit('/', 1)[-1])}"
    return Spec("scored", label, 1, config, {"data": specs["distill_data"].fingerprint}, content)


def _teacher_precision(cfg: Config) -> Precision:
    return resolve_precision(cfg.distill.precision, _device(cfg.machine.device))


def _scored_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.train.teacher import score

    data = _training_collection(cfg.distill.data, "distill.data")
    facts = score(
        open_collection(data, folders["distill_data"]),
        out,
        teacher=cfg.distill.teacher,
        n_ways=cfg.distill.n_ways,
        max_queries=cfg.distill.max_queries,
        seed=cfg.distill.seed,
        n_doc=cfg.distill.n_doc,
        precision=_teacher_precision(cfg),
        batch_size=cfg.machine.encode_batch,
        device=_device(cfg.machine.device),
        cache=configs.artifacts_root() / "weights",
    )
    return {"units": {"lists": facts["lists"]}, **facts}


def _distill_spec(cfg: Config, specs: Specs) -> Spec:
    config = _loop_config(cfg, cfg.distill)
    upstream = {"train": specs["train"].fingerprint}
    content = {}
    if "scored" in specs:
        upstream["scored"] = specs["scored"].fingerprint
    else:
        from xtrrep.data.scored import local_files

        lists = str(cfg.distill.lists)
        content = _source_content("lists", lists, cfg.distill.revision, local_files(lists))
        config["max_queries"] = cfg.distill.max_queries
    return Spec("distill", _train_label(cfg, "_kd"), 1, {"distill": config}, upstream, content)


def _distill_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.data.scored import read_scored
    from xtrrep.model.encoder import load
    from xtrrep.train.losses import distill

    n_ways, revision = cfg.distill.n_ways, cfg.distill.revision
    source = str(folders["scored"] / "scored.jsonl") if "scored" in folders else str(cfg.distill.lists)
    lists = read_scored(source, revision=revision, n_ways=n_ways, max_queries=cfg.distill.max_queries)
    model = load(folders["train"] / "model", cfg.model, _device(cfg.machine.device))
    return _fit(cfg, specs, folders, out, model, lists, partial(distill, cfg=cfg.distill))


def _fit(
    cfg: Config,
    specs: Specs,
    folders: Folders,
    out: Path,
    model: MultiVectorEncoder,
    rows: Any,
    loss: Callable[[Any, Any], Any],
) -> dict[str, Any]:
    """Train, draw the loss, write the card."""
    from xtrrep.model.card import write_card
    from xtrrep.report.figure import loss_curve
    from xtrrep.train.log import read_log
    from xtrrep.train.trainer import fit

    loop, device = loop_of(cfg), _device(cfg.machine.device)
    evaluate = _evaluator(cfg, folders) if loop.eval_data else None
    facts = fit(model, rows, loop, out, device, loss=loss(model, cfg.train), machine=cfg.machine, evaluate=evaluate)
    log = [row for row in read_log(out / "log.jsonl", "loss") if row["loss"] is not None]
    title = f"{model_label(cfg)}, scale={cfg.scale}: training loss"
    guess = None if isinstance(loop, Distill) else facts["ln_pool"]
    loss_curve([r["step"] for r in log], [r["loss"] for r in log], guess, title, out / "loss")
    write_card(out / "model", card_facts(cfg, specs, facts))
    return facts


def _evaluator(cfg: Config, folders: Folders) -> Callable[[MultiVectorEncoder], dict[str, float]]:
    """Measures of a model in training on `eval_data`, searched exactly; its stores are gone afterwards."""
    import tempfile

    from xtrrep.encode import Store, encode
    from xtrrep.evaluate import canonical, evaluate
    from xtrrep.model.encoder import set_lengths

    loop, device = loop_of(cfg), _device(cfg.machine.device)
    cfg = replace(cfg, data=_training_collection(loop.eval_data, "eval_data"))
    collection = open_collection(cfg.data, folders["eval_data"])
    documents = artifacts.read_manifest(folders["eval_data"])["facts"]["documents"]
    scoring = Scoring.model if cfg.retrieve.scoring is Scoring.run else cfg.retrieve.scoring
    asked = replace(cfg.retrieve, from_run=None, rerank=None, scoring=scoring)
    cfg = replace(cfg, index={"engine": "exact"}, retrieve=asked)  # whatever engine the run itself ends with
    setting, batch_size = setting_of(cfg), cfg.machine.encode_batch
    engine, params = engine_of(cfg.index)

    def store(model: MultiVectorEncoder, task: str, texts: Any, count: int, scratch: Path) -> Store:
        def run(out: Path) -> dict[str, Any]:
            return encode(model, texts, count, out, cfg.encode, task=task, device=device, batch_size=batch_size)

        return Store.open(artifacts.make(Spec("eval", task, 1, {}), scratch / task, run))

    def measure(model: MultiVectorEncoder) -> dict[str, float]:
        set_lengths(model, *lengths_of(cfg), model[0].query_expansion)  # the trainer sets them back
        with tempfile.TemporaryDirectory() as scratch:
            corpus = store(model, "document", collection.documents(), documents, Path(scratch))
            queries = list(collection.queries.items())
            asked = store(model, "query", queries, len(queries), Path(scratch))
            searcher = engine.load(Path(scratch), corpus, params, place_of(cfg))
            outcome = retrieve(searcher, corpus, asked, [setting], cfg.machine.query_batch)[setting]
        scores = evaluate(collection.qrels, outcome.run, cfg.data.measures)
        return {canonical(name): float(scores[name].mean()) for name in scores.columns}

    return measure


def card_facts(
    cfg: Config, specs: Specs, facts: Mapping[str, Any], scores: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What the model card says of a trained model; `scores` are rows of measured results."""
    stage = "distill" if is_distilled(cfg) else "train"
    train = cfg.train
    ks = k_trains(train)
    data = [str(train.data or train.triples)]
    if is_distilled(cfg):
        taught = f"{cfg.distill.data}, scored by {cfg.distill.teacher}" if cfg.distill.data else str(cfg.distill.lists)
        data.append(f"distilled on {taught}")
    settings = {"model": _model_config(cfg), "train": _loop_config(cfg, train)}
    if is_distilled(cfg):
        settings["distill"] = _loop_config(cfg, cfg.distill)
    verdict = f"The training diverged at step {facts['diverged_at']}." if facts["diverged_at"] is not None else None
    return {
        "name": model_label(cfg),
        "scorer": train.scorer.value,
        "k_train": list(ks) if len(ks) > 1 else (ks[0] if ks else None),
        "objective": ("authors" if objective_of(train)[0] == "positive_clamped" else "stated") if ks else None,
        "setup": cfg.setup,
        "config": cfg.config,
        "stage": cfg.stage.value,
        "scale": cfg.scale,
        "base_model": cfg.model.backbone,
        "base_revision": cfg.model.revision,
        "data": data,
        "dim": cfg.model.dim,
        "n_query": cfg.model.n_query,
        "n_doc": cfg.model.n_doc,
        "steps": facts["units"]["steps"],
        "settings": settings,
        "fingerprint": specs[stage].fingerprint,
        "temperature": {"first": facts["temperature_first"], "last": facts["temperature_last"]},
        "loss": {"first": facts["loss_first"], "last": facts["loss_last"], "ln_pool": facts["ln_pool"]},
        "verdict": verdict,
        "scores": list(scores) or None,
    }


def model_identity(cfg: Config, specs: Specs) -> str:
    """What the encoder is: our training's fingerprint, or a hash of backbone, head and seed, or of a checkpoint."""
    if cfg.model.source is Source.trained:
        return specs["distill" if is_distilled(cfg) else "train"].fingerprint
    if cfg.model.source in (Source.checkpoint, Source.released):
        return digest(_weights(str(cfg.model.checkpoint), cfg.model.revision))
    return digest({"model": _model_config(cfg), **_weights(cfg.model.backbone, cfg.model.revision)})


def _vectors_of(cfg: Config, stage: str) -> Path:
    return Path(str(cfg.model.vectors)).expanduser() / stage


def _encode_spec(stage: str, cfg: Config, specs: Specs) -> Spec:
    if cfg.model.source is Source.vectors:
        from xtrrep.vectors import identity

        content = {"vectors": identity(_vectors_of(cfg, stage))}
        judged = ("corpus",) if stage == "documents" else ("queries", "qrels")
        content |= {k: content_of(cfg.data)[k] for k in judged}
        imported = {"imported": True, "normalize": cfg.model.normalize}
        return Spec(stage, f"{_slug(model_label(cfg))}--{specs['data'].label}", 2, imported, content=content)
    n_query, n_doc = lengths_of(cfg)
    content = content_of(cfg.data)
    precision = resolve_precision(cfg.encode.precision, _device(cfg.machine.device)).value
    config: dict[str, Any] = {"precision": precision, "n_doc": n_doc}
    if cfg.encode.pool_factor > 1:
        config["pool_factor"] = cfg.encode.pool_factor
    kept = {"corpus": content["corpus"]}
    if stage == "queries":
        config = {"precision": precision, "n_query": n_query}
        kept = {"queries": content["queries"], "qrels": content["qrels"]}
    label = f"{_slug(model_label(cfg))}-{cfg.scale}--{specs['data'].label}"
    return Spec(stage, label, 2, config, {"model": model_identity(cfg, specs)}, kept)


def _encoder(cfg: Config, folders: Folders) -> MultiVectorEncoder:
    from xtrrep.model.encoder import get

    n_query, n_doc = lengths_of(cfg)
    made = folders.get("distill" if is_distilled(cfg) else "train")
    trained = made / "model" if made else None
    # The untrained head depends on the seed only; the lengths are the collection's.
    return get(replace(cfg.model, n_query=n_query, n_doc=n_doc), trained, _device(cfg.machine.device))


def _encode_run(stage: str, cfg: Config, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.encode import encode

    collection = open_collection(cfg.data, folders["data"])
    if cfg.model.source is Source.vectors:
        return _import_run(stage, cfg, collection, out)
    count = artifacts.read_manifest(folders["data"])["facts"]["documents"]
    texts = collection.documents() if stage == "documents" else list(collection.queries.items())
    return encode(
        _encoder(cfg, folders),
        texts,
        count if stage == "documents" else len(collection.queries),
        out,
        cfg.encode,
        task=stage.removesuffix("s") if stage == "documents" else "query",
        device=_device(cfg.machine.device),
        batch_size=cfg.machine.encode_batch,
    )


def _import_run(stage: str, cfg: Config, collection: Collection, out: Path) -> dict[str, Any]:
    from xtrrep import vectors

    folder, shard = _vectors_of(cfg, stage), cfg.encode.shard_documents
    if stage == "documents":
        count = vectors.same_ids(folder, (name for name, _ in collection.documents()))
        return vectors.write(
            out, vectors.read(folder), count, normalize=cfg.model.normalize, shard_documents=shard, what="document"
        )
    rows = vectors.select(vectors.read(folder), list(collection.queries), folder)
    return vectors.write(out, rows, len(rows), normalize=cfg.model.normalize, shard_documents=shard, what="query")


def _index_spec(cfg: Config, specs: Specs) -> Spec:
    from xtrrep.index.files import index_spec

    if engine_of(cfg.index)[0].kind == "text":  # refuses an unknown engine or parameter
        config = dict(cfg.index)
        content = {"corpus": content_of(cfg.data)["corpus"]}
        return Spec("index", f"{config['engine']}--{specs['data'].label}", 2, config, content=content)
    return index_spec(specs["documents"].label, specs["documents"].fingerprint, cfg.index)


def _index_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.encode import Store
    from xtrrep.index.files import build_index

    engine, params = engine_of(cfg.index)
    place = place_of(cfg)
    if engine.kind == "text":
        texts = [text for _, text in open_collection(cfg.data, folders["data"]).documents()]
        if not texts:
            raise DataError(f"{cfg.data.id} holds no documents")
        return engine.build(texts, params, out, place)
    return build_index(Store.open(folders["documents"], specs["documents"].fingerprint), cfg.index, out, place)


def _from_run(cfg: Config) -> Path:
    path = Path(str(cfg.retrieve.from_run)).expanduser()
    if not path.is_file():
        raise DataError(f"no run file {path}", hint="xtrrep retrieve --index bm25 leaves one")
    return path


def _retrieve_spec(cfg: Config, specs: Specs) -> Spec:
    setting = setting_of(cfg)
    kind = kind_of(cfg)
    if setting.scoring == "xtr" and kind == "token":
        imputations.get(setting.imputation)  # refuses an unknown one before anything runs
    content = {} if kind not in ("text", "given") else {k: content_of(cfg.data)[k] for k in ("queries", "qrels")}
    config: dict[str, Any] = dict(vars(setting))
    if kind in ("rerank", "given"):
        path = _from_run(cfg)
        content["from_run"] = hash_file(path)
        upstream = {name: specs[name].fingerprint for name in _retrieve_needs(cfg) if name != "data"}
        over = specs["documents" if kind == "rerank" else "data"].label
        return Spec("retrieve", f"run-{_slug(path.stem)}--{over}", 2, config, upstream, content)
    engine, params = engine_of(cfg.index)
    config["search"] = split_params(cfg.index)[1]
    if kind == "token" and not engine.prefix(params):
        config["search"]["searched_to"] = setting.k_prime  # its k' best are not the first k' of a deeper search
    upstream = {"index": specs["index"].fingerprint}
    if kind == "text":
        return Spec("retrieve", specs["index"].label, 2, config, upstream, content)
    upstream["queries"] = specs["queries"].fingerprint
    label = specs["index"].label + (f"--{setting.scoring}-{setting.k_prime}" if kind == "token" else "")
    return Spec("retrieve", label, 2, config, upstream)


def _retrieve_needs(cfg: Config) -> list[str]:
    needs = {"text": ["index", "data"], "given": ["data"], "rerank": ["documents", "queries"]}
    return needs.get(kind_of(cfg), ["index", "documents", "queries"])


def _retrieve_many(cfgs: Sequence[Config], specs: Specs, folders: Folders) -> list[Outcome]:
    """Runs for several configs that share index, queries and search parameters, from one token search."""
    from xtrrep.encode import Store

    cfg = cfgs[0]
    kind, settings = kind_of(cfg), [setting_of(c) for c in cfgs]
    if kind == "text":
        collection = open_collection(cfg.data, folders["data"])
        searcher = open_text_index(cfg, specs, folders)
        ids = [name for name, _ in collection.documents()]
        return [retrieve_text(searcher, ids, collection.queries, s.top_k, drop_self=s.drop_self) for s in settings]
    if kind == "given":
        run = runfile.read(_from_run(cfg))
        collection = open_collection(cfg.data, folders["data"])
        _check_judged(run, collection.queries, _from_run(cfg))
        return [keep_run(run, collection.queries, setting) for setting in settings]
    documents = Store.open(folders["documents"], specs["documents"].fingerprint)
    queries = Store.open(folders["queries"], specs["queries"].fingerprint)
    batch = cfg.machine.query_batch
    if kind == "rerank":
        run, path = runfile.read(_from_run(cfg)), _from_run(cfg)
        _check_judged(run, queries.ids, path)
        return [retrieve_run(run, documents, queries, setting, str(path)) for setting in settings]
    searcher = open_index(cfg, specs, folders)
    if kind == "document":
        return [retrieve_documents(searcher, documents, queries, setting, batch) for setting in settings]
    outcomes = retrieve(searcher, documents, queries, list(dict.fromkeys(settings)), batch)
    return [outcomes[setting] for setting in settings]


def _check_judged(run: runfile.Run, queries: Iterable[str], path: Path) -> None:
    """A run that answers none of the queries is of another collection."""
    if not run.keys() & set(queries):
        raise DataError(
            f"{path} answers none of the judged queries", hint="data=ID of the collection that the run is of"
        )


def open_text_index(cfg: Config, specs: Specs, folders: Folders) -> Any:
    engine, params = engine_of(cfg.index)
    artifacts.check(folders["index"], specs["index"].fingerprint, contents=True)
    return engine.load(folders["index"], None, params, place_of(cfg))


def open_index(cfg: Config, specs: Specs, folders: Folders) -> Any:
    """The searcher of a built index; raises as `index.files.open_index`."""
    from xtrrep.encode import Store
    from xtrrep.index.files import open_index

    store = Store.open(folders["documents"], specs["documents"].fingerprint)
    return open_index(folders["index"], store, cfg.index, place_of(cfg), specs["index"].fingerprint)


def _say_empty_slots(outcome: Outcome, k_prime: int) -> None:
    if outcome.tokens < k_prime:
        say(
            f"  note: k'={k_prime:,} is more than the collection's {outcome.tokens:,} tokens: all of them are retrieved"
        )
    elif outcome.missing:
        share = outcome.missing / outcome.slots
        say(f"  note: the token search left {share:.1%} of the k'={k_prime:,} slots empty (no hit, not 0)")


def _write_run(cfg: Config, outcome: Outcome, out: Path, **extra: float) -> dict[str, Any]:
    setting = setting_of(cfg)
    tag = f"{_slug(model_label(cfg))}-{setting.scoring}" if needs_model(cfg) else engine_label(cfg)
    runfile.write(out / "run.trec", outcome.run, tag)
    columns = ["query", *(f.name for f in fields(Counts))]
    counts = Table("", columns, [[name, *vars(count).values()] for name, count in outcome.counts.items()])
    artifacts.write_atomic(out / "candidates.csv", lambda file: file.write(counts.csv().encode()))
    if kind_of(cfg) == "token" and setting.k_prime is not None:
        _say_empty_slots(outcome, setting.k_prime)
    return {**outcome.facts(setting), **extra}


def _retrieve_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    return _write_run(cfg, _retrieve_many([cfg], specs, folders)[0], out)


def _evaluate_spec(cfg: Config, specs: Specs) -> Spec:
    from xtrrep.evaluate import parse

    parse(cfg.data.measures)  # refuses an unknown measure before anything runs
    run = specs["retrieve"]
    config = {"measures": list(cfg.data.measures)}
    return Spec("evaluate", run.label, 1, config, {"run": run.fingerprint}, {"qrels": content_of(cfg.data)["qrels"]})


def _evaluate_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.evaluate import canonical, evaluate

    artifacts.check(folders["retrieve"], specs["retrieve"].fingerprint)
    collection = open_collection(cfg.data, folders["data"])
    scores = evaluate(collection.qrels, runfile.read(folders["retrieve"] / "run.trec"), cfg.data.measures)
    artifacts.write_atomic(out / "per_query.csv", lambda file: file.write(scores.to_csv(lineterminator="\n").encode()))
    means = {canonical(name): float(scores[name].mean()) for name in scores.columns}
    artifacts.write_json(out / "measures.json", means)
    return {"units": {"queries": len(scores)}, "measures": means}


def _latency_spec(cfg: Config, specs: Specs) -> Spec:
    from xtrrep.latency import processor

    if kind_of(cfg) not in ("token", "document"):
        raise UsageError(f"{engine_label(cfg)} searches no vectors: nothing to measure", hint="--index plaid")
    run = _retrieve_spec(cfg, specs)
    config = {**plain(cfg.latency), "setting": run.config, "device": _device(cfg.machine.device)}
    config |= {key: cfg.index[key] for key in sorted(engine_of(cfg.index)[0].speed_only)}
    return Spec("latency", run.label, 1, config, run.upstream, {"processor": processor()})


def _latency_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    import pandas

    from xtrrep.latency import Job, measure

    report = measure(
        Job(
            documents=str(folders["documents"].resolve()),
            documents_fingerprint=specs["documents"].fingerprint,
            queries=str(folders["queries"].resolve()),
            queries_fingerprint=specs["queries"].fingerprint,
            index=str(folders["index"].resolve()),
            index_fingerprint=specs["index"].fingerprint,
            engine=dict(cfg.index),
            setting=vars(setting_of(cfg)),
            device=_device(cfg.machine.device),
            recipe=cfg.latency.recipe.value,
            threads=cfg.latency.threads,
            warmup=cfg.latency.warmup,
            repeats=cfg.latency.repeats,
            max_queries=cfg.latency.max_queries,
        )
    )
    artifacts.write_json(out / "latency.json", report["summary"])
    text = pandas.DataFrame(report["queries"]).to_csv(index=False, lineterminator="\n")
    artifacts.write_atomic(out / "latency.csv", lambda file: file.write(text.encode()))
    return {"units": {"queries": report["summary"]["queries"]}, **report["summary"]}


def _model_needs(cfg: Config) -> list[str]:
    if cfg.model.source is not Source.trained:
        return []
    return ["distill"] if is_distilled(cfg) else ["train"]


def _collection_stage(name: str, leaves: str, data: Callable[[Config], Data]) -> Stage:
    return Stage(
        name,
        leaves,
        lambda cfg: [],
        configs.artifacts_root,
        lambda cfg, specs: _data_spec("data", data(cfg)),
        lambda cfg, specs, folders, out: _data_run(data(cfg), out),
    )


STAGES: tuple[Stage, ...] = (
    _collection_stage("data", "counts; corpus, queries and qrels where built", lambda cfg: cfg.data),
    _collection_stage(
        "train_data", "the same, for training", lambda cfg: _training_collection(cfg.train.data, "train.data")
    ),
    _collection_stage(
        "distill_data", "the same, for a teacher", lambda cfg: _training_collection(cfg.distill.data, "distill.data")
    ),
    _collection_stage(
        "eval_data",
        "the same, for a look during training",
        lambda cfg: _training_collection(cfg.train.eval_data or cfg.distill.eval_data, "train.eval_data"),
    ),
    Stage("triples", "triples.jsonl", lambda cfg: ["train_data"], configs.artifacts_root, _triples_spec, _triples_run),
    Stage("scored", "scored.jsonl", lambda cfg: ["distill_data"], configs.artifacts_root, _scored_spec, _scored_run),
    Stage(
        "train",
        "model/, loss.csv, loss.png, loss.svg, log.jsonl",
        lambda cfg: (["triples"] if cfg.train.data else []) + (["eval_data"] if cfg.train.eval_data else []),
        configs.artifacts_root,
        _train_spec,
        _train_run,
    ),
    Stage(
        "distill",
        "the same",
        lambda cfg: (
            ["train", *(["scored"] if cfg.distill.data else [])] + (["eval_data"] if cfg.distill.eval_data else [])
        ),
        configs.artifacts_root,
        _distill_spec,
        _distill_run,
    ),
    Stage(
        "documents",
        "vectors/, tokens/, ids.json",
        lambda cfg: ["data", *_model_needs(cfg)],
        configs.artifacts_root,
        lambda cfg, specs: _encode_spec("documents", cfg, specs),
        lambda cfg, specs, folders, out: _encode_run("documents", cfg, folders, out),
    ),
    Stage(
        "queries",
        "vectors/, tokens/, ids.json",
        lambda cfg: ["data", *_model_needs(cfg)],
        configs.artifacts_root,
        lambda cfg, specs: _encode_spec("queries", cfg, specs),
        lambda cfg, specs, folders, out: _encode_run("queries", cfg, folders, out),
    ),
    Stage(
        "index",
        "the engine's own files",
        lambda cfg: ["data"] if kind_of(cfg) == "text" else ["documents"],
        configs.artifacts_root,
        _index_spec,
        _index_run,
    ),
    Stage(
        "retrieve",
        "run.trec, candidates.csv",
        _retrieve_needs,
        configs.results_root,
        _retrieve_spec,
        _retrieve_run,
    ),
    Stage(
        "evaluate",
        "per_query.csv, measures.json",
        lambda cfg: ["retrieve", "data"],
        configs.results_root,
        _evaluate_spec,
        _evaluate_run,
    ),
    Stage(
        "latency",
        "latency.json, latency.csv",
        lambda cfg: ["index", "documents", "queries"],
        configs.results_root,
        _latency_spec,
        _latency_run,
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}


# --- plan and run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A stage of a plan: what it will leave, where, and whether that is there already."""

    stage: Stage
    spec: Spec
    folder: Path
    reuse: bool


@dataclass(frozen=True)
class Plan:
    """One config's steps in order; every step's needs stand before it."""

    cfg: Config
    steps: tuple[Step, ...]

    @property
    def specs(self) -> dict[str, Spec]:
        return {step.stage.name: step.spec for step in self.steps}


@dataclass
class Done:
    """What a run did: folders by stage for each config, and which fingerprints were run or re-used."""

    folders: list[dict[str, Path]] = field(default_factory=list)
    ran: list[Path] = field(default_factory=list)
    reused: list[Path] = field(default_factory=list)


def plan(cfg: Config, until: str, *also: str) -> Plan:
    """The steps that lead to stage `until` (and others), without running anything."""
    if cfg.model.source is Source.released:
        from xtrrep.model.released import released_id

        cfg = replace(cfg, model=replace(cfg.model, checkpoint=released_id(cfg.setup, cfg.config, cfg.stage.value)))
    if until == "train" and cfg.model.source is not Source.trained:
        raise UsageError(
            f"model.source={cfg.model.source.value} has nothing to train", hint="xtrrep eval uses it as it is"
        )
    if until == "train":
        until = _model_needs(cfg)[0] if _model_needs(cfg) else "train"
    wanted: set[str] = set()

    def visit(name: str) -> None:
        if name not in wanted:
            for need in BY_NAME[name].needs(cfg):
                visit(need)
            wanted.add(name)

    for name in (until, *also):
        visit(name)
    specs: dict[str, Spec] = {}
    steps = []
    for stage in STAGES:
        if stage.name in wanted:
            specs[stage.name] = spec = stage.spec(cfg, specs)
            folder = artifacts.folder_of(spec, stage.root())
            steps.append(Step(stage, spec, folder, artifacts.is_complete(spec, stage.root())))
    return Plan(cfg, tuple(steps))


def run(plans: Sequence[Plan]) -> Done:
    """Carry out plans together: what they share runs once, and runs that share an index share its token search."""
    done = Done([{} for _ in plans])
    seen: dict[str, Path] = {}
    for stage in STAGES:
        todo = [(i, p, step) for i, p in enumerate(plans) for step in p.steps if step.stage is stage]
        if stage.name == "retrieve":
            _run_retrievals([(p, step) for _, p, step in todo], seen, done)
        for i, p, step in todo:
            if step.spec.fingerprint not in seen:
                _carry_out(p, step, done.folders[i], seen, done)
            done.folders[i][stage.name] = seen[step.spec.fingerprint]
    return done


def _carry_out(p: Plan, step: Step, folders: Folders, seen: dict[str, Path], done: Done) -> None:
    root = step.stage.root()
    if artifacts.is_complete(step.spec, root):
        folder = artifacts.folder_of(step.spec, root)
        # All files there, of the recorded size, before anyone builds on them.
        artifacts.check(folder, step.spec.fingerprint)
        say(f"reuse  {step.stage.name:<10} {_short(folder)}")
        done.reused.append(folder)
    else:
        say(f"run    {step.stage.name:<10} {_short(step.folder)}")
        folder = artifacts.make(step.spec, root, lambda out: step.stage.run(p.cfg, p.specs, folders, out))
        done.ran.append(folder)
    if step.stage.name in ("train", "distill"):
        _say_verdict(loop_of(p.cfg) if step.stage.name == "distill" else p.cfg.train, folder)
    seen[step.spec.fingerprint] = folder


def _say_verdict(loop: Loop, folder: Path) -> None:
    """What a person should know of a trained model before reading its scores."""
    facts = artifacts.read_manifest(folder)["facts"]
    if facts["diverged_at"] is not None:
        say(f"  note: this training diverged at step {facts['diverged_at']}; its weights are those of step "
            f"{facts['model_step']}")  # fmt: skip
    if loop.eval_data and not (folder / "eval.csv").exists():
        say("  note: it was trained before without an evaluation on the way; another seed would have one")


def one_search(spec: Spec) -> tuple[str, ...]:
    """Runs with one answer here share a search: index, queries (upstream or content) and search parameters."""
    return (*spec.upstream.values(), *spec.content.values(), digest(spec.config.get("search")))


def _run_retrievals(todo: Sequence[tuple[Plan, Step]], seen: dict[str, Path], done: Done) -> None:
    """The missing runs, grouped by index and queries, each group from one token search."""
    groups: dict[tuple[str, ...], dict[str, tuple[Plan, Step]]] = {}
    for p, step in todo:
        if not artifacts.is_complete(step.spec, step.stage.root()):
            groups.setdefault(one_search(step.spec), {})[step.spec.fingerprint] = (p, step)
    for group in groups.values():
        if len(group) < 2:
            continue  # alone, it runs like any other stage
        members = list(group.values())
        first = members[0][0]
        folders = {s.stage.name: seen[s.spec.fingerprint] for s in first.steps if s.spec.fingerprint in seen}
        what = _short(folders["index"]) if "index" in folders else engine_label(first.cfg)
        say(f"run    retrieve   {len(members)} settings, one search of {what}")
        start = time.monotonic()
        outcomes = _retrieve_many([p.cfg for p, _ in members], first.specs, folders)
        seconds = round(time.monotonic() - start, 3)
        for (p, step), outcome in zip(members, outcomes, strict=True):
            write = partial(_write_run, p.cfg, outcome, shared_search_seconds=seconds)
            seen[step.spec.fingerprint] = artifacts.make(step.spec, step.stage.root(), write)
            done.ran.append(seen[step.spec.fingerprint])


def _short(folder: Path) -> str:
    """A path as people type it: relative to the current folder where it lies below it."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


# --- one typed query ---------------------------------------------------------------------------------------------


def check_query(query: str) -> None:
    """Raise UsageError for a typed query that is blank or holds bytes that are no text."""
    if not query.strip():
        raise UsageError("the query has no words to search for", hint='xtrrep search "shortest path between two nodes"')
    try:
        query.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the query {query!r} holds bytes that are no text", hint="type it as UTF-8") from None


def _check_searchable(cfg: Config) -> None:
    """Raise UsageError where a typed query cannot be answered: no encoder for it, or a run instead of an engine."""
    if kind_of(cfg) in ("given", "rerank"):
        raise UsageError("retrieve.from_run holds its own queries: there is nothing to search", hint="xtrrep eval")
    if kind_of(cfg) != "text" and cfg.model.source is Source.vectors:
        raise UsageError(
            "imported vectors have no model to encode a typed query",
            hint="xtrrep.search of the Python API takes vectors",
        )


def _encode_typed(
    cfg: Config, encoder: MultiVectorEncoder, query: str
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A typed query's (T, H) vectors and (T,) vocabulary ids, rounded as a store's are."""
    from xtrrep.encode import encode_batch

    device = _device(cfg.machine.device)
    precision = resolve_precision(cfg.encode.precision, device)
    ((vectors, ids),) = encode_batch(encoder, [("typed", query)], task="query", precision=precision, device=device)
    return vectors.astype("float32"), ids


def search(p: Plan, folders: Folders, query: str) -> list[tuple[str, float, str]]:
    """The `retrieve.top_k` best documents for a typed query on a built index: (id, score, text), best first."""
    cfg, specs, kind = p.cfg, p.specs, kind_of(p.cfg)
    _check_searchable(cfg)
    collection = open_collection(cfg.data, folders["data"])
    setting = replace(setting_of(cfg), drop_self=False)
    if kind == "text":
        ids = [name for name, _ in collection.documents()]
        searcher = open_text_index(cfg, specs, folders)
        ranking = retrieve_text(searcher, ids, {"typed": query}, setting.top_k, drop_self=False).run["typed"]
    else:
        from xtrrep.encode import Store

        documents = Store.open(folders["documents"], specs["documents"].fingerprint)
        vectors, _ = _encode_typed(cfg, _encoder(cfg, folders), query)
        ranking = rank_query(open_index(cfg, specs, folders), documents, vectors, setting)
    wanted = {name for name, _ in ranking}
    texts = {name: text for name, text in collection.documents() if name in wanted}
    return [(name, score, texts[name]) for name, score in ranking]


def check_explainable(cfg: Config) -> None:
    """Raise UsageError for an engine that retrieves no tokens, and where a typed query cannot be answered."""
    _check_searchable(cfg)
    if kind_of(cfg) != "token":
        raise UsageError(
            f"{engine_label(cfg)} ranks documents by itself and names no tokens: there is nothing to explain",
            hint="--index exact, or --index scann",
        )


def explain(p: Plan, folders: Folders, query: str, document: str) -> Explanation:
    """What each token of a typed query finds in one document of a built index, under XTR and under MaxSim.

    Raises UsageError as `check_explainable` and DataError for a document that the collection does not hold.
    """
    from xtrrep.encode import Store
    from xtrrep.explain import Explanation, evidence, tokens_of

    cfg, specs = p.cfg, p.specs
    check_explainable(cfg)
    documents = Store.open(folders["documents"], specs["documents"].fingerprint)
    if document not in documents.ids:
        raise DataError(
            f"{cfg.data.id} has no document {document!r}; its ids look like {documents.ids[0]!r}",
            hint="`xtrrep search` prints the ids of the best documents",
        )
    number = documents.ids.index(document)
    encoder = _encoder(cfg, folders)
    vectors, ids = _encode_typed(cfg, encoder, query)
    # ColBERT imputes nothing: beside it stands what XTR would make of the same k' hits.
    setting = replace(setting_of(cfg), drop_self=False, imputation=cfg.retrieve.imputation)
    imputations.get(setting.imputation)
    texts = open_collection(cfg.data, folders["data"]).documents()
    return Explanation(
        query=query,
        document=document,
        text=next(text for name, text in texts if name == document),
        engine=engine_label(cfg),
        setting=setting,
        query_tokens=tokens_of(encoder.tokenizer, ids, encoder[0].query_expansion),
        document_tokens=tokens_of(
            encoder.tokenizer,
            documents.vocabulary_ids(np.arange(documents.offsets[number], documents.offsets[number + 1])),
        ),
        similarities=vectors @ documents.vectors(number).astype("float32").T,
        evidence=evidence(open_index(cfg, specs, folders), documents, vectors, number, setting),
    )


# --- analyses: many runs, one table -------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnalysisPlan:
    """An analysis: the plans of its cells, and its own identity over all of them."""

    cfg: Config
    cells: tuple[Any, ...]
    plans: tuple[Plan, ...]
    spec: Spec
    folder: Path

    @property
    def reuse(self) -> bool:
        return artifacts.is_complete(self.spec, configs.results_root())


def plan_analysis(overrides: Sequence[str]) -> AnalysisPlan:
    """Compose every cell the analysis asks for and plan all of them."""
    from xtrrep.analyze import analyses

    cfg = configs.compose(overrides)
    analysis = analyses.get(cfg.analyze.name)
    cells = tuple(analysis.cells(cfg))
    plans = []
    for cell in cells:
        names = {text.partition("=")[0] for text in cell.overrides}
        kept = [text for text in overrides if text.partition("=")[0] not in names]
        if "index" in names:  # what another engine was told means nothing to this one
            kept = [text for text in kept if not text.startswith("index.")]
        if "index=bm25" in cell.overrides:
            kept = [text for text in kept if not text.startswith("retrieve.") or text.startswith("retrieve.top_k=")]
        if "config" in names:  # a cell's name says whether it is distilled
            kept = [text for text in kept if not text.startswith("stage=")]
        plans.append(plan(configs.compose([*kept, *cell.overrides]), "evaluate", *cell.also))
    upstream = {
        "/".join(filter(None, [*_named(c), stage])): p.specs[stage].fingerprint
        for c, p in zip(cells, plans, strict=True)
        for stage in ("evaluate", *c.also)
    }
    shown = [cfg.data.id, cfg.setup, cfg.scale, cfg.index["engine"], cfg.protocol.name, cfg.train.seed]
    described = {"analyze": plain(cfg.analyze), "shown": shown}
    spec = Spec(
        "analyze", f"{cfg.analyze.name}--{_slug(cfg.data.id)}-{cfg.scale}-{cfg.index['engine']}", 1, described, upstream
    )
    return AnalysisPlan(cfg, cells, tuple(plans), spec, artifacts.folder_of(spec, configs.results_root()))


def _named(cell: Any) -> list[str]:
    """What tells a cell of an analysis from its others."""
    return [cell.model, cell.engine, cell.scoring, str(cell.k_prime), cell.setting]


def run_analysis(p: AnalysisPlan) -> tuple[Path, Done]:
    """Make or re-use every run and then the analysis; returns its folder."""
    import pandas

    from xtrrep.analyze import analyses

    done = run(p.plans)
    if p.reuse:
        say(f"reuse  analyze    {_short(p.folder)}")
        done.reused.append(p.folder)
        return p.folder, done
    scores = {
        cell: pandas.read_csv(folders["evaluate"] / "per_query.csv", index_col="query", dtype={"query": str})
        for cell, folders in zip(p.cells, done.folders, strict=True)
    }
    runs = {cell: q.specs["retrieve"].fingerprint for cell, q in zip(p.cells, p.plans, strict=True)}
    made = dict(zip(p.cells, done.folders, strict=True))
    say(f"run    analyze    {_short(p.folder)}")
    analysis = analyses.get(p.cfg.analyze.name)
    folder = artifacts.make(p.spec, configs.results_root(), lambda out: analysis.make(p.cfg, scores, out, runs, made))
    done.ran.append(folder)
    return folder, done
