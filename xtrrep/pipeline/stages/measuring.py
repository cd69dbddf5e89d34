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
from xtrrep.pipeline.identity import answerer, content_of, device_named, engine_label, setting_of
from xtrrep.pipeline.stages.searching import retrieve_spec
from xtrrep.retrieval.engines import VectorEngine


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
    if not isinstance(answer, VectorEngine):
        raise UsageError(f"{engine_label(cfg)} searches no vectors: nothing to measure", hint="--index plaid")
    run = retrieve_spec(cfg, specs)
    device = device_named(cfg.machine.device)
    asked = {key: value for key, value in plain(cfg.latency).items() if key not in ("process", "processes")}
    if cfg.latency.process:  # the first has the identity that a measurement had when there was only one
        asked["process"] = cfg.latency.process
    config = {**asked, "setting": run.config, "device": device}
    config |= {key: cfg.index[key] for key in sorted(answer.speed_only)}
    return Spec(
        "latency", run.label, 2, config, run.upstream, {"processor": processor() if device == "cpu" else hardware()}
    )


def latency_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    import pandas

    from xtrrep.retrieval.latency import Job, measure

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
            device=device_named(cfg.machine.device),
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
