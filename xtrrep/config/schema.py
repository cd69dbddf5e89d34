"""The configuration as types, in the paper's symbols: `k_train` is k in training, `k_prime` is k' at retrieval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_type_hints

from omegaconf import MISSING as REQUIRED
from omegaconf import DictConfig, OmegaConf

from xtrrep.console import UsageError

SHOW = "`xtrrep show` lists every key and its value"


class Source(Enum):
    trained = "trained"  # our training from the backbone
    released = "released"  # the study's public checkpoint of the same name
    untrained = "untrained"  # the backbone and its fresh projection, before any step
    checkpoint = "checkpoint"  # a multi-vector model as it is, from model.checkpoint
    vectors = "vectors"  # no model: vectors made elsewhere, from model.vectors


class Projection(Enum):
    random = "random"  # nn.Linear's own initialisation, as in the paper
    orthonormal = "orthonormal"  # orthonormal rows: similarities survive the projection from step 0


class Precision(Enum):
    auto = "auto"  # the faster of fp32 and bf16 on this processor, timed once; bf16 on a GPU that has it
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Scorer(Enum):
    colbert = "colbert"  # MaxSim
    xtr = "xtr"  # retrieved tokens only


class TrainStage(Enum):
    contrastive = "contrastive"
    kd = "kd"  # then distilled from a teacher's scores; setup (II) only


class Objective(Enum):
    stated = "stated"  # the paper's text: retrieved maxima over the number of query tokens that retrieved something
    authors = "authors"  # the released code: negatives lose to 0, Z counts positive maxima, clamped at 1e-3
    authors_raw = "authors_raw"  # the same of (I): dot products of vectors that are not normalised, temperature 1
    released = "released"  # the released code's of the setup: authors_raw for XTR in (I), else authors


class Z(Enum):
    retrieved = "retrieved"
    positive_clamped = "positive_clamped"


class Unretrieved(Enum):
    zero = "zero"  # a document that no query token retrieved scores 0
    drop = "drop"  # it leaves the softmax


class Mask(Enum):
    topk = "topk"
    none = "none"  # every token counts as retrieved: PrimeQA's defect, a mean of plain maxima


class ContrastiveLoss(Enum):
    contrastive = "contrastive"
    cached = "cached"  # GradCache: the same gradients from forward passes of train.mini_batch texts


class DistillLoss(Enum):
    kl = "kl"
    margin_mse = "margin_mse"


class KdMulti(Enum):
    losses = "losses"  # the paper: the mean of one loss a k_train
    scores = "scores"  # the released code: one loss of the mean score


class Scoring(Enum):
    model = "model"  # as the model was trained
    colbert = "colbert"
    xtr = "xtr"
    run = "run"  # the scores of retrieve.from_run, as they are


class Missing(Enum):
    drop = "drop"  # a slot the engine could not fill is no hit
    zero = "zero"  # the study's code: score 0, credited to the first document


class SelfMatch(Enum):
    collection = "collection"  # drop the query's own document where data.drop_self says so
    keep = "keep"


@dataclass
class Model:
    """The encoder. Lengths are in tokens, special tokens included."""

    source: Source = Source.trained
    backbone: str = REQUIRED
    revision: str | None = None
    checkpoint: str | None = None
    vectors: str | None = None  # a folder of documents/ and queries/ (xtrrep/store/imported.py)
    normalize: bool = False  # imported vectors to unit length
    layers: int | None = None  # keep the first n transformer layers
    dim: int = 128
    n_query: int = 32
    n_doc: int = 300
    projection: Projection = Projection.random
    query_expansion: bool = True  # pad queries with [MASK] to n_query, scored but not attended
    skip_punctuation: bool = True  # documents only
    seed: int = 42


@dataclass
class Loop:
    """What contrastive training and distillation share."""

    n_doc: int = 300  # document length in training
    batch_size: int = 196
    steps: int = 50000
    learning_rate: float = 3e-5
    warmup_ratio: float = 0.01
    weight_decay: float = 0.0
    grad_norm: float = 10.0
    learn_temperature: bool = False
    temperature_lr: float | None = None  # null: learning_rate, as in the study
    precision: Precision = Precision.bf16
    seed: int = 42
    checkpoint_every: int = 1000
    eval_every: int | None = None  # steps; null: no evaluation during training
    eval_data: str | None = None  # a small collection, searched exactly
    max_bad_rows: int = 1000  # of the hub's rows, skipped and counted; one more ends the training


@dataclass
class Train(Loop):
    """Contrastive training."""

    scorer: Scorer = Scorer.xtr
    k_train: Any = 128  # one, or a list of several whose losses are averaged; null for ColBERT
    objective: Objective = Objective.stated
    z: Z | None = None  # null, here and below: what the objective says
    missing: Unretrieved | None = None
    mask: Mask | None = None
    temperature: float | None = None  # null: by scorer
    temperature_colbert: float = 1.0
    temperature_xtr: float = 0.05
    loss: ContrastiveLoss = ContrastiveLoss.contrastive
    mini_batch: int = 32
    data: str | None = None  # a collection with training qrels; hard negatives are mined with BM25
    triples: str | None = None  # or a hub id / a local .jsonl or .parquet with query, positive, negative
    revision: str | None = None  # of the hub's triples
    max_triples: int | None = None
    per_query: int | None = None  # of train.data, at most so many positives a query


@dataclass
class Distill(Loop):
    """Distillation from a teacher's scores, after `train` (setup II, stage=kd). Scorer and k_train are `train`'s."""

    batch_size: int = 16
    steps: int = 20000
    learning_rate: float = 4e-6
    warmup_ratio: float = 0.0
    loss: DistillLoss = DistillLoss.kl
    kd_multi: KdMulti = KdMulti.losses
    min_max: bool | None = None  # both sides' scores to [0, 1] over a query's candidates; null: for kl, not margin_mse
    temperature: float = 1.0
    n_ways: int = 16  # candidates a query
    data: str | None = None  # a collection whose BM25 candidates `teacher` scores
    teacher: str = "pypi/all-mpnet-base-v2"
    teacher_revision: str | None = None  # of a teacher on the hub
    lists: str | None = None  # or a hub id / a local .jsonl or .parquet with query, documents, scores
    revision: str | None = None  # of the hub's lists
    max_queries: int | None = None


@dataclass
class Data:
    """A collection to search. `loader` names where it comes from; see `xtrrep/data/`."""

    id: str = REQUIRED
    loader: str = REQUIRED
    path: str | None = None
    parts: list[str] | None = None  # collections that a mixture joins
    split: str | None = None
    n_query: int | None = None  # overrides model.n_query, e.g. 64 on ArguAna
    n_doc: int | None = None  # overrides model.n_doc
    drop_self: bool = False
    measures: list[str] = field(default_factory=lambda: ["nDCG@10", "Recall@100", "MRR@10", "Success@5"])
    max_queries: int | None = None  # n judged queries, evenly spread over their file
    download_mb: int | None = None  # for the plan, like `size`
    size: list[int] | None = None  # documents and judged queries


@dataclass
class Encode:
    precision: Precision = Precision.fp16
    pool_factor: float = 1.0  # keep about 1 / pool_factor of a document's tokens, clustered (Clavié et al. 2024)
    shard_documents: int = 8192


@dataclass
class Retrieve:
    scoring: Scoring = Scoring.model
    k_prime: int | None = None  # null: k_prime_xtr or k_prime_colbert, by scoring
    k_prime_xtr: int = 40000
    k_prime_colbert: int = 4000
    imputation: str = "min"
    top_k: int = 100
    rerank: int | None = None  # so many of the best once more, by exact MaxSim
    from_run: str | None = None  # a TREC run file in place of an index: its documents, re-ranked by MaxSim


class Recipe(Enum):
    single = "single"  # one query at a time, warmed up, repeated
    paper = "paper"  # the study's: one call over all queries, once


@dataclass
class Latency:
    threads: int = 1  # set before anything is imported
    warmup: int = 10  # queries
    repeats: int = 3
    max_queries: int = 200  # the first n
    recipe: Recipe = Recipe.single


@dataclass
class Protocol:
    name: str = "stated"
    missing_slots: Missing = Missing.drop
    self_match: SelfMatch = SelfMatch.collection


@dataclass
class Analyze:
    name: str = "k_prime"
    models: list[str] = field(default_factory=list)  # configs to compare; "untrained" is the backbone
    k_primes: list[int] = field(default_factory=list)
    nprobes: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])  # for `analyze.name=candidates`
    engines: list[str] = field(default_factory=list)  # choices of index=, for `analyze.name=engines`
    measure: str = "nDCG@10"
    resamples: int = 10000
    bm25: bool = True


@dataclass
class Machine:
    """Never part of a result's identity."""

    device: str = "auto"
    threads: int | None = None  # null: torch's and numpy's defaults, and one a core for an engine's search
    encode_tokens: int | None = None  # a batch's, padding included; null: 2,048 on a CPU, 32,768 on a GPU
    query_batch: int = 16  # queries a token search
    gradient_checkpointing: bool = False  # less memory, one more forward pass
    compile: bool = False  # torch.compile of the encoder in training
    tensorboard: bool = True
    wandb: bool = False


@dataclass
class Config:
    setup: str = REQUIRED
    config: str = REQUIRED
    scale: str = REQUIRED
    stage: TrainStage = TrainStage.contrastive
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    distill: Distill = field(default_factory=Distill)
    data: Data = field(default_factory=Data)
    encode: Encode = field(default_factory=Encode)
    index: dict[str, Any] = field(default_factory=dict)  # `engine`, and that engine's own parameters
    retrieve: Retrieve = field(default_factory=Retrieve)
    latency: Latency = field(default_factory=Latency)
    protocol: Protocol = field(default_factory=Protocol)
    analyze: Analyze = field(default_factory=Analyze)
    machine: Machine = field(default_factory=Machine)


GROUPS = ("setup", "config", "data", "index", "protocol", "scale")


@cache
def hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not prefix):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def flat(cfg: DictConfig | Config) -> dict[str, Any]:
    """Dotted keys and plain values; enums by name."""
    node = cfg if isinstance(cfg, DictConfig) else OmegaConf.structured(cfg)
    return dict(flatten(OmegaConf.to_container(node, resolve=True, enum_to_str=True)))


def k_trains(train: Train) -> tuple[int, ...]:
    """`train.k_train` as a tuple: several for a stacked objective, none for ColBERT. Raises UsageError."""
    if train.scorer is Scorer.colbert:
        return ()
    values = train.k_train if isinstance(train.k_train, list | tuple) else [train.k_train]
    if not values or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in values):
        raise UsageError(
            f"train.scorer=xtr needs a positive train.k_train, one or a list, got {train.k_train}",
            hint="train.k_train=128 or train.k_train=[128,256,512]",
        )
    if len(set(values)) < len(values):
        raise UsageError(
            f"train.k_train={train.k_train} names one k twice", hint=f"train.k_train={list(dict.fromkeys(values))}"
        )
    return tuple(values)


def objective_of(train: Train) -> tuple[str, str, str]:
    """(z, missing, mask) by name: the objective's own where the config leaves them null."""
    z = train.z or (Z.retrieved if train.objective is Objective.stated else Z.positive_clamped)
    return z.value, (train.missing or Unretrieved.zero).value, (train.mask or Mask.topk).value


def is_raw(train: Train) -> bool:
    """Whether the loss takes dot products of vectors as they are projected, and not of unit vectors."""
    return train.objective is Objective.authors_raw and train.scorer is Scorer.xtr


def min_max_of(distill: Distill) -> bool:
    """Whether scores are normalised: as the study's KL does, and Margin-MSE in the field does not."""
    return distill.loss is DistillLoss.kl if distill.min_max is None else distill.min_max


def temperature_of(train: Train) -> float:
    """The initial temperature: `train.temperature`, or the one of the scorer."""
    by_scorer = train.temperature_xtr if train.scorer is Scorer.xtr else train.temperature_colbert
    by_scorer = 1.0 if is_raw(train) else by_scorer
    return by_scorer if train.temperature is None else train.temperature


def plain(section: Any) -> dict[str, Any]:
    """A config section as plain JSON values, enums by name, for fingerprints and manifests."""
    if not is_dataclass(section) or isinstance(section, type):
        raise TypeError(f"{type(section).__name__} is not a config section")
    return {item.name: _plain(getattr(section, item.name)) for item in fields(section)}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        return plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
