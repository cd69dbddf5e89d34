"""The stages that leave a model: triples, train, scored, distill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.artifacts import Folders, Spec, Specs, digest
from xtrrep.artifacts.hashes import hash_outside
from xtrrep.config import (
    Config,
    Distill,
    Loop,
    Precision,
    Scorer,
    Scoring,
    TrainStage,
    is_raw,
    k_trains,
    kept_steps,
    min_max_of,
    objective_of,
    plain,
    sparse_as,
    temperature_of,
)
from xtrrep.console import say
from xtrrep.data import open_collection
from xtrrep.model import hub
from xtrrep.pipeline.identity import (
    device_named,
    is_distilled,
    lengths_of,
    loop_of,
    model_label,
    place_of,
    precision_of,
    precision_to_run,
    setting_of,
    slug,
    step_of,
    training_collection,
    weights_identity,
)
from xtrrep.retrieval.engines.exact import Exact
from xtrrep.retrieval.retrieve import retrieve
from xtrrep.train import distributed

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder


def triples_spec(cfg: Config, specs: Specs) -> Spec:
    config = {"max_triples": cfg.train.max_triples, "seed": cfg.train.seed}
    if cfg.train.per_query is not None:
        config["per_query"] = cfg.train.per_query
    return Spec("triples", slug(str(cfg.train.data)), 1, config, {"data": specs["train_data"].fingerprint})


def triples_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.data.triples import mine

    collection = open_collection(training_collection(cfg.train.data, "train.data"), folders["train_data"])
    train = cfg.train
    facts = mine(collection, out, seed=train.seed, max_triples=train.max_triples, per_query=train.per_query)
    return {"units": {"queries": facts["queries"]}, **facts}


def model_config(cfg: Config) -> dict[str, Any]:
    """What defines the untrained encoder."""
    keys = ("layers", "dim", "n_query", "projection", "query_expansion", "skip_punctuation", "seed")
    model = plain(cfg.model)
    return {key: model[key] for key in keys}


def loop_config(cfg: Config, loop: Loop) -> dict[str, Any]:
    """What of a training decides its weights: no paths, nothing that only looks, variants by what they resolve to."""
    dropped = {"data", "triples", "lists", "teacher", "teacher_revision", "revision"}
    dropped |= {"max_triples", "max_queries", "per_query", "max_bad_rows", "sparse_as", "released", "keep"}
    dropped |= {"checkpoint_every", "eval_every", "eval_data", "objective", "temperature_colbert", "temperature_xtr"}
    config = {key: value for key, value in plain(loop).items() if key not in dropped}
    config["precision"] = precision_of(cfg, loop.precision, "train").value
    config["temperature_lr"] = (loop.temperature_lr or loop.learning_rate) if loop.learn_temperature else None
    if kept_steps(loop):
        config["keep"] = list(kept_steps(loop))
    config["scorer"] = cfg.train.scorer.value
    config["k_train"] = list(k_trains(cfg.train))
    config |= dict(zip(("z", "missing", "mask"), objective_of(cfg.train), strict=True))
    if loop is cfg.train:
        if is_raw(cfg.train):
            config["vectors"] = "raw"
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
    """The identity of training data from outside: a hash of its files, or the hub's id and the content there."""
    if files:
        root = configs.artifacts_root()
        return {kind: digest([[file.suffix, hash_outside(file, root)] for file in files])}
    commit = hub.commit_of("dataset", source, revision)
    return {kind: f"{source}@{revision if commit is None else commit.content}"}


def _train_label(cfg: Config, suffix: str = "") -> str:
    return slug(f"{cfg.setup}-{cfg.config}{suffix}-{cfg.scale}")


def train_spec(cfg: Config, specs: Specs) -> Spec:
    config = loop_config(cfg, cfg.train)
    content = dict(weights_identity(cfg.model.backbone, cfg.model.revision))
    if cfg.train.triples is not None:
        from xtrrep.data.streamed import BLOCK
        from xtrrep.data.triples import local_files

        files = local_files(cfg.train.triples)  # refuses a missing one before anything runs
        content |= _source_content("triples", cfg.train.triples, cfg.train.revision, files)
        config["max_triples"] = cfg.train.max_triples
        config |= {} if files else {"shuffled_in": BLOCK}
    upstream = {"triples": specs["triples"].fingerprint} if "triples" in specs else {}
    return Spec("train", _train_label(cfg), 2, {"model": model_config(cfg), "train": config}, upstream, content)


def train_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.data.triples import read_triples, what_is_odd
    from xtrrep.model.encoder import build
    from xtrrep.train.losses import contrastive

    source = str(folders["triples"] / "triples.jsonl") if "triples" in folders else str(cfg.train.triples)
    train = cfg.train
    triples = read_triples(
        source,
        revision=train.revision,
        max_triples=train.max_triples,
        seed=train.seed,
        max_bad_rows=train.max_bad_rows,
    )
    odd = what_is_odd(source, triples, train.batch_size)
    for text in odd:
        say(f"  note: {text}")
    model = build(cfg.model, device_named(cfg.machine.device))
    facts = _fit(replace(cfg, stage=TrainStage.contrastive), specs, folders, out, model, triples, contrastive)
    return {**facts, "odd": odd + _odd_rows(triples)}


def _odd_rows(rows: Any) -> list[str]:
    """What is odd about the rows of a stream, which is known after the training; said once."""
    from xtrrep.data.streamed import Streamed

    odd = rows.what_was_odd() if isinstance(rows, Streamed) else []
    for text in odd:
        say(f"  note: {text}")
    return odd


def scored_spec(cfg: Config, specs: Specs) -> Spec:
    distill = cfg.distill
    config: dict[str, Any] = {"n_ways": distill.n_ways, "max_queries": distill.max_queries, "seed": distill.seed}
    config |= {"n_doc": distill.n_doc, "precision": _teacher_precision(cfg).value}
    content = {"teacher": digest(weights_identity(distill.teacher, distill.teacher_revision))}
    label = f"{slug(str(distill.data))}--{slug(distill.teacher.rsplit('/', 1)[-1])}"
    return Spec("scored", label, 1, config, {"data": specs["distill_data"].fingerprint}, content)


def _teacher_precision(cfg: Config) -> Precision:
    return precision_of(cfg, cfg.distill.precision)


def scored_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.model.forward import default_budget
    from xtrrep.train.teacher import score

    device = device_named(cfg.machine.device)
    data = training_collection(cfg.distill.data, "distill.data")
    facts = score(
        open_collection(data, folders["distill_data"]),
        out,
        teacher=cfg.distill.teacher,
        n_ways=cfg.distill.n_ways,
        max_queries=cfg.distill.max_queries,
        seed=cfg.distill.seed,
        n_doc=cfg.distill.n_doc,
        precision=_teacher_precision(cfg),
        batch_size=max(1, (cfg.machine.encode_tokens or default_budget(device)) // cfg.distill.n_doc),
        device=device,
        cache=configs.artifacts_root() / "weights",
        revision=cfg.distill.teacher_revision,
    )
    return {"units": {"lists": facts["lists"]}, **facts}


def distill_spec(cfg: Config, specs: Specs) -> Spec:
    config = loop_config(cfg, cfg.distill)
    upstream = {"train": specs["train"].fingerprint}
    content = {}
    if "scored" in specs:
        upstream["scored"] = specs["scored"].fingerprint
    else:
        from xtrrep.data.scored import local_files
        from xtrrep.data.streamed import BLOCK

        lists = str(cfg.distill.lists)
        files = local_files(lists)
        content = _source_content("lists", lists, cfg.distill.revision, files)
        config["max_queries"] = cfg.distill.max_queries
        config |= {} if files else {"shuffled_in": BLOCK}
    return Spec("distill", _train_label(cfg, "_kd"), 1, {"distill": config}, upstream, content)


def distill_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.data.scored import read_scored, what_is_odd
    from xtrrep.model.encoder import load
    from xtrrep.train.losses import distill

    source = str(folders["scored"] / "scored.jsonl") if "scored" in folders else str(cfg.distill.lists)
    lists = read_scored(
        source,
        revision=cfg.distill.revision,
        n_ways=cfg.distill.n_ways,
        max_queries=cfg.distill.max_queries,
        seed=cfg.distill.seed,
        max_bad_rows=cfg.distill.max_bad_rows,
    )
    odd = [] if "scored" in folders else what_is_odd(source, lists)
    for text in odd:
        say(f"  note: {text}")
    model = load(folders["train"] / "model", cfg.model, device_named(cfg.machine.device))
    facts = _fit(cfg, specs, folders, out, model, lists, partial(distill, cfg=cfg.distill))
    return {**facts, "odd": odd}


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

    cfg = replace(cfg, model=replace(cfg.model, step=None))  # whichever step the run goes on with
    loop, device = loop_of(cfg), device_named(cfg.machine.device)
    loop = replace(loop, precision=precision_to_run(cfg, loop.precision))
    evaluate = _evaluator(cfg, folders) if loop.eval_data else None
    facts = fit(model, rows, loop, out, device, loss=loss(model, cfg.train), machine=cfg.machine, evaluate=evaluate)
    if distributed.rank() > 0:
        return facts  # the first one draws and writes
    log = [row for row in read_log(out / "log.jsonl", "loss") if row["loss"] is not None]
    title = f"{model_label(cfg)}, scale={cfg.scale}: training loss"
    guess = None if isinstance(loop, Distill) else facts["ln_pool"]
    loss_curve([r["step"] for r in log], [r["loss"] for r in log], guess, title, out / "loss")
    write_card(out / "model", card_facts(cfg, specs, facts))
    return facts


def _evaluator(cfg: Config, folders: Folders) -> Callable[[MultiVectorEncoder], dict[str, float]]:
    """Measures of a model in training on `eval_data`, searched exactly; its stores are gone afterwards."""
    import tempfile

    from xtrrep.measure.evaluate import canonical, evaluate
    from xtrrep.model.encoder import set_lengths
    from xtrrep.store.encode import Store, encode

    loop, device = loop_of(cfg), device_named(cfg.machine.device)
    cfg = replace(cfg, data=training_collection(loop.eval_data, "eval_data"))
    collection = open_collection(cfg.data, folders["eval_data"])
    documents = artifacts.read_manifest(folders["eval_data"])["facts"]["documents"]
    scoring = Scoring.model if cfg.retrieve.scoring is Scoring.run else cfg.retrieve.scoring
    asked = replace(cfg.retrieve, from_run=None, rerank=None, fuse=None, scoring=scoring)
    cfg = replace(cfg, index={"engine": "exact"}, retrieve=asked)  # whatever engine the run itself ends with
    setting, batch_tokens = setting_of(cfg), cfg.machine.encode_tokens
    encode_cfg = replace(cfg.encode, precision=precision_to_run(cfg, cfg.encode.precision))

    def store(model: MultiVectorEncoder, task: str, texts: Any, count: int, scratch: Path) -> Store:
        def run(out: Path) -> dict[str, Any]:
            return encode(model, texts, count, out, encode_cfg, task=task, device=device, batch_tokens=batch_tokens)

        return Store.open(artifacts.make(Spec("eval", task, 1, {}), scratch / task, run))

    def measure(model: MultiVectorEncoder) -> dict[str, float]:
        set_lengths(model, *lengths_of(cfg), model[0].query_expansion)  # the trainer sets them back
        with tempfile.TemporaryDirectory() as scratch:
            corpus = store(model, "document", collection.documents(), documents, Path(scratch))
            queries = list(collection.queries.items())
            asked = store(model, "query", queries, len(queries), Path(scratch))
            searcher = Exact().load(Path(scratch), corpus, place_of(cfg))
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
    settings = {"model": model_config(cfg), "train": loop_config(cfg, train)}
    if is_distilled(cfg):
        settings["distill"] = loop_config(cfg, cfg.distill)
    verdict = f"The training diverged at step {facts['diverged_at']}." if facts["diverged_at"] is not None else None
    return {
        "name": model_label(cfg),
        "scorer": train.scorer.value,
        "k_train": list(ks) if len(ks) > 1 else (ks[0] if ks else None),
        "sparse_as": sparse_as(train) or None,
        "objective": train.objective.value if ks else None,
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
        "steps": facts["units"]["steps"] if step_of(cfg) is None else step_of(cfg),
        "settings": settings,
        "fingerprint": specs[stage].fingerprint,
        "temperature": {"first": facts["temperature_first"], "last": facts["temperature_last"]},
        "loss": {"first": facts["loss_first"], "last": facts["loss_last"], "ln_pool": facts["ln_pool"]},
        "verdict": verdict,
        "scores": list(scores) or None,
    }
