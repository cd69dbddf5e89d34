"""The stage table: what each kind of work needs, what it leaves, and where. `pipeline.py` plans and runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtrrep import config as configs
from xtrrep.artifacts import Folders, Spec, Specs
from xtrrep.config import Config, Data
from xtrrep.pipeline.identity import training_collection
from xtrrep.pipeline.stages.collection import data_run, data_spec
from xtrrep.pipeline.stages.measuring import evaluate_run, evaluate_spec, latency_needs, latency_run, latency_spec
from xtrrep.pipeline.stages.searching import (
    index_run,
    index_spec,
    retrieve_needs,
    retrieve_run_stage,
    retrieve_spec,
    words_run,
    words_spec,
)
from xtrrep.pipeline.stages.tokens import tokens_run, tokens_spec
from xtrrep.pipeline.stages.training import (
    distill_run,
    distill_spec,
    scored_run,
    scored_spec,
    train_run,
    train_spec,
    triples_run,
    triples_spec,
)
from xtrrep.pipeline.stages.vectors import (
    encode_run,
    encode_share,
    encode_spec,
    plain_needs,
    store_needs,
    store_run,
    store_spec,
)
from xtrrep.retrieval.engines import TextEngine, engine_of


@dataclass(frozen=True)
class Stage:
    """One kind of work: what it needs, what it leaves, where, and what it takes.

    share: does part of the work beside other processes. ranks: several processes of one training join in it. gpu:
    wants one, unless it searches with an engine that does not. seconds: roughly, for one unit of work on two cores at
    scale=demo; None where nothing is known. memory_gb: roughly, at scale=demo; store_bytes: more for each number of the
    embedding store.
    """

    name: str
    leaves: str
    needs: Callable[[Config], Sequence[str]]
    root: Callable[[], Path]
    spec: Callable[[Config, Specs], Spec]
    run: Callable[[Config, Specs, Folders, Path], dict[str, Any]]
    share: Callable[[Config, Folders, Path], None] | None = None
    ranks: bool = False
    gpu: bool = False
    searches: bool = False
    seconds: float | None = None
    memory_gb: float = 1.0
    store_bytes: int = 0


def _collection_stage(name: str, leaves: str, data: Callable[[Config], Data], seconds: float = 12.0) -> Stage:
    return Stage(
        name,
        leaves,
        lambda cfg: [],
        configs.artifacts_root,
        lambda cfg, specs: data_spec("data", data(cfg)),
        lambda cfg, specs, folders, out: data_run(data(cfg), out),
        seconds=seconds,
    )


def _encoding_stage(kind: str, seconds: float, memory_gb: float) -> Stage:
    """The encoder's own vectors where a store is made from them: the same artifact as `kind` is elsewhere."""
    return Stage(
        f"plain_{kind}",
        "vectors/, tokens/, ids.json",
        plain_needs,
        configs.artifacts_root,
        lambda cfg, specs: encode_spec(kind, cfg, specs),
        lambda cfg, specs, folders, out: encode_run(kind, cfg, folders, out),
        gpu=True,
        seconds=seconds,
        memory_gb=memory_gb,
    )


STAGES: tuple[Stage, ...] = (
    _collection_stage("data", "counts; corpus, queries and qrels where built", lambda cfg: cfg.data, 2.0),
    _collection_stage(
        "train_data", "the same, for training", lambda cfg: training_collection(cfg.train.data, "train.data")
    ),
    _collection_stage(
        "distill_data", "the same, for a teacher", lambda cfg: training_collection(cfg.distill.data, "distill.data")
    ),
    _collection_stage(
        "eval_data",
        "the same, for a look during training",
        lambda cfg: training_collection(cfg.train.eval_data or cfg.distill.eval_data, "train.eval_data"),
    ),
    Stage(
        "triples",
        "triples.jsonl",
        lambda cfg: ["train_data"],
        configs.artifacts_root,
        triples_spec,
        triples_run,
        seconds=0.002,
        memory_gb=1.5,
    ),
    Stage(
        "scored",
        "scored.jsonl",
        lambda cfg: ["distill_data"],
        configs.artifacts_root,
        scored_spec,
        scored_run,
        gpu=True,
        seconds=0.3,
        memory_gb=3.0,
    ),
    Stage(
        "train",
        "model/, loss.csv, loss.png, loss.svg, loss.pdf, log.jsonl",
        lambda cfg: (["triples"] if cfg.train.data else []) + (["eval_data"] if cfg.train.eval_data else []),
        configs.artifacts_root,
        train_spec,
        train_run,
        ranks=True,
        gpu=True,
        seconds=1.3,
        memory_gb=3.5,
    ),
    Stage(
        "distill",
        "the same",
        lambda cfg: (
            ["train", *(["scored"] if cfg.distill.data else [])] + (["eval_data"] if cfg.distill.eval_data else [])
        ),
        configs.artifacts_root,
        distill_spec,
        distill_run,
        ranks=True,
        gpu=True,
        seconds=1.4,
        memory_gb=3.5,
    ),
    _encoding_stage("documents", seconds=0.02, memory_gb=2.0),
    _encoding_stage("queries", seconds=0.006, memory_gb=1.5),
    Stage(
        "documents",
        "vectors/, tokens/, ids.json",
        lambda cfg: store_needs("documents", cfg),
        configs.artifacts_root,
        lambda cfg, specs: store_spec("documents", cfg, specs),
        lambda cfg, specs, folders, out: store_run("documents", cfg, specs, folders, out),
        encode_share,
        gpu=True,
        seconds=0.02,
        memory_gb=2.0,
    ),
    Stage(
        "queries",
        "vectors/, tokens/, ids.json",
        lambda cfg: store_needs("queries", cfg),
        configs.artifacts_root,
        lambda cfg, specs: store_spec("queries", cfg, specs),
        lambda cfg, specs, folders, out: store_run("queries", cfg, specs, folders, out),
        gpu=True,
        seconds=0.006,
        memory_gb=1.5,
    ),
    Stage(
        "index",
        "the engine's own files",
        lambda cfg: ["data"] if isinstance(engine_of(cfg.index), TextEngine) else ["documents"],
        configs.artifacts_root,
        index_spec,
        index_run,
        gpu=True,
        searches=True,
        store_bytes=8,  # a build holds it in float32 and what it makes of it
    ),
    Stage(
        "words",
        "BM25's files, beside an engine's",
        lambda cfg: ["data"],
        configs.artifacts_root,
        words_spec,
        words_run,
    ),
    Stage(
        "retrieve",
        "run.trec, candidates.csv",
        retrieve_needs,
        configs.results_root,
        retrieve_spec,
        retrieve_run_stage,
        gpu=True,
        searches=True,
        seconds=0.03,
        store_bytes=4,
    ),
    Stage(
        "evaluate",
        "per_query.csv, measures.json",
        lambda cfg: ["retrieve", "data"],
        configs.results_root,
        evaluate_spec,
        evaluate_run,
        seconds=0.0005,
        memory_gb=0.5,
    ),
    Stage(
        "tokens",
        "tokens.json",
        lambda cfg: ["data", "documents", "queries"],
        configs.results_root,
        tokens_spec,
        tokens_run,
        gpu=True,
        searches=True,
        seconds=0.06,
        store_bytes=4,
    ),
    Stage(
        "latency",
        "latency.json, latency.csv",
        latency_needs,
        configs.results_root,
        latency_spec,
        latency_run,
        gpu=True,
        searches=True,
        store_bytes=4,
    ),
)


BY_NAME = {stage.name: stage for stage in STAGES}
