"""The `evaluate` and `latency` stages: what a run is worth, and how long a query takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep.artifacts import Folders, Spec, Specs
from xtrrep.config import Config, plain
from xtrrep.console import UsageError
from xtrrep.data import open_collection
from xtrrep.measure import run_file
from xtrrep.pipeline.identity import (
    GivenRun,
    answerer,
    content_of,
    device_named,
    needs_model,
    setting_of,
    words_config,
)
from xtrrep.pipeline.stages.searching import retrieve_needs, retrieve_spec
from xtrrep.retrieval.words import check_order


def evaluate_spec(cfg: Config, specs: Specs) -> Spec:
    from xtrrep.measure.evaluate import parse

    parse(cfg.data.measures)  # refuses an unknown measure before anything runs
    run = specs["retrieve"]
    config = {"measures": list(cfg.data.measures)}
    return Spec("evaluate", run.label, 1, config, {"run": run.fingerprint}, {"qrels": content_of(cfg.data)["qrels"]})


def evaluate_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.measure.evaluate import canonical, evaluate

    artifacts.check(folders["retrieve"], specs["retrieve"].fingerprint)
    collection = open_collection(cfg.data, folders["data"])
    scores = evaluate(collection.qrels, run_file.read(folders["retrieve"] / "run.trec"), cfg.data.measures)
    artifacts.write_atomic(out / "per_query.csv", lambda file: file.write(scores.to_csv(lineterminator="\n").encode()))
    means = {canonical(name): float(scores[name].mean()) for name in scores.columns}
    artifacts.write_json(out / "measures.json", means)
    return {"units": {"queries": len(scores)}, "measures": means}


def latency_spec(cfg: Config, specs: Specs) -> Spec:
    from xtrrep.retrieval.latency import hardware, processor

    answer = answerer(cfg)
    if isinstance(answer, GivenRun):
        raise UsageError("a run made elsewhere is not searched: nothing to measure", hint="--index plaid")
    run = retrieve_spec(cfg, specs)
    device = device_named(cfg.machine.device)
    asked = {key: value for key, value in plain(cfg.latency).items() if key not in ("process", "processes")}
    if cfg.latency.process:  # the first has the identity that a measurement had when there was only one
        asked["process"] = cfg.latency.process
    config = {**asked, "setting": run.config, "device": device}
    config |= {key: cfg.index[key] for key in sorted(answer.speed_only)}
    content = {**run.content, "processor": processor() if device == "cpu" else hardware()}
    return Spec("latency", run.label, 2, config, run.upstream, content)


def latency_needs(cfg: Config) -> list[str]:
    needs = retrieve_needs(cfg)
    return needs if "index" in needs else ["index", "documents", "queries"]


def _words_of(cfg: Config, specs: Specs, folders: Folders) -> dict[str, Any]:
    """What a measuring process needs beside vectors, where words are searched."""
    from xtrrep.store.encode import Store

    if "data" not in latency_needs(cfg):
        return {}
    collection = open_collection(cfg.data, folders["data"])
    found: dict[str, Any] = {"texts": collection.queries}
    ids = [name for name, _ in collection.documents()]
    if needs_model(cfg):
        check_order(ids, Store.open(folders["documents"], specs["documents"].fingerprint))
        order = Store.open(folders["queries"], specs["queries"].fingerprint).ids
        found["texts"] = {name: collection.queries[name] for name in order}
    if "words" in specs:
        found |= {"words": str(folders["words"].resolve()), "words_fingerprint": specs["words"].fingerprint}
        found["words_engine"] = dict(words_config(cfg).index)
    return {**found, "collection": len(ids)}


def latency_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    import pandas

    from xtrrep.retrieval.latency import Job, measure

    report = measure(
        Job(
            documents=str(folders["documents"].resolve()) if needs_model(cfg) else "",
            documents_fingerprint=specs["documents"].fingerprint if needs_model(cfg) else "",
            queries=str(folders["queries"].resolve()) if needs_model(cfg) else "",
            queries_fingerprint=specs["queries"].fingerprint if needs_model(cfg) else "",
            index=str(folders["index"].resolve()),
            index_fingerprint=specs["index"].fingerprint,
            engine=dict(cfg.index),
            setting=vars(setting_of(cfg)),
            device=device_named(cfg.machine.device),
            recipe=cfg.latency.recipe.value,
            threads=cfg.latency.threads,
            warmup=cfg.latency.warmup,
            repeats=cfg.latency.repeats,
            max_queries=cfg.latency.max_queries,
            **_words_of(cfg, specs, folders),
        )
    )
    artifacts.write_json(out / "latency.json", report["summary"])
    text = pandas.DataFrame(report["queries"]).to_csv(index=False, lineterminator="\n")
    artifacts.write_atomic(out / "latency.csv", lambda file: file.write(text.encode()))
    return {"units": {"queries": report["summary"]["queries"]}, **report["summary"]}
