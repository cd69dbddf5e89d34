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
    fp32 = "fp32"  # 32-bit floating point
    bf16 = "bf16"  # 16 bits with the range of fp32
    fp16 = "fp16"  # 16 bits with a smaller range


class Scorer(Enum):
    colbert = "colbert"  # MaxSim
    xtr = "xtr"  # retrieved tokens only


class TrainStage(Enum):
    contrastive = "contrastive"  # from triples
    kd = "kd"  # then distilled from a teacher's scores; setup (II) only


class Objective(Enum):
    stated = "stated"  # the paper's text: retrieved maxima over the number of query tokens that retrieved something
    authors = "authors"  # the released code: negatives lose to 0, Z counts positive maxima, clamped at 1e-3
    authors_raw = "authors_raw"  # the same of (I): dot products of vectors that are not normalised, temperature 1
    released = "released"  # the released code's of the setup: authors_raw for XTR in (I), else authors


class Z(Enum):
    retrieved = "retrieved"  # query tokens that retrieved something of the document, at least 1
    positive_clamped = "positive_clamped"  # query tokens whose maximum is positive, at least 1e-3
    none = "none"  # 1: a sum, as in a run of the authors without the normalisation


class Unretrieved(Enum):
    zero = "zero"  # a document that no query token retrieved scores 0
    drop = "drop"  # it leaves the softmax


class Mask(Enum):
    topk = "topk"  # only the k_train best tokens of the pool count
    none = "none"  # every token counts as retrieved: PrimeQA's defect, a mean of plain maxima


class ContrastiveLoss(Enum):
    contrastive = "contrastive"  # cross-entropy over the documents of the batch
    cached = "cached"  # GradCache: the same gradients from forward passes of train.mini_batch texts


class DistillLoss(Enum):
    kl = "kl"  # KL divergence from the teacher's distribution over a query's candidates
    margin_mse = "margin_mse"  # squared error of score differences to the best candidate


class KdMulti(Enum):
    losses = "losses"  # the paper: the mean of one loss a k_train
    scores = "scores"  # the released code: one loss of the mean score


class Scoring(Enum):
    model = "model"  # as the model was trained
    colbert = "colbert"  # MaxSim over the documents of the retrieved tokens
    xtr = "xtr"  # retrieved tokens, and imputed scores for the rest
    run = "run"  # the scores of retrieve.from_run, as they are


class Fuse(Enum):
    rank = "rank"  # the sum of 1 / (60 + rank) of both rankings
    score = "score"  # the sum of both rankings' scores, each from 0 to 1 over its own documents


class Transform(Enum):
    none = "none"  # vectors as the model gives them
    centre = "centre"  # without the mean of the document tokens
    no_top_direction = "no_top_direction"  # without the direction that document tokens share most
    whiten = "whiten"  # centred, and the spread along each direction replaced by its square root


class Missing(Enum):
    drop = "drop"  # a slot the engine could not fill is no hit
    zero = "zero"  # the study's code: score 0, credited to the first document


class SelfMatch(Enum):
    collection = "collection"  # drop the query's own document where data.drop_self says so
    keep = "keep"  # rank it like any other
    released = "released"  # the released code's of the setup: `collection` in (I), `keep` in (II)


@dataclass
class Model:
    """The encoder. Lengths are in tokens, special tokens included."""

    source: Source = Source.trained  # where the weights come from
    backbone: str = REQUIRED  # a hub id or folder of a transformer, which training starts from
    revision: str | None = None  # of the backbone or checkpoint on the hub: a commit or tag; null: the newest
    checkpoint: str | None = None  # with source=checkpoint: a hub id or folder
    step: int | None = None  # [steps] of train.keep (with stage=kd: distill.keep) to use; null: the last
    vectors: str | None = None  # with source=vectors: a folder of documents/ and queries/ (xtrrep/store/imported.py)
    normalize: bool = False  # imported vectors to unit length
    layers: int | None = None  # [layers] keep only the first; null: all
    dim: int = 128  # [dimensions] length of a token vector
    n_query: int = 32  # [tokens] queries are cut or filled up to this length
    n_doc: int = 300  # [tokens] documents are cut at this length
    projection: Projection = Projection.random  # how the layer above the backbone starts
    query_expansion: bool = True  # pad queries with [MASK] to n_query, scored but not attended
    skip_punctuation: bool = True  # documents only
    seed: int = 42  # of the fresh projection


@dataclass
class Released:
    """What the authors' code trains with where the paper says nothing, as the setup's file has it. `protocol=released`
    takes it."""

    grad_norm: float = 10.0  # gradients are clipped at this norm
    precision: Precision = Precision.bf16  # of the forward pass


@dataclass
class Loop:
    """What contrastive training and distillation share."""

    n_doc: int = 300  # [tokens] documents are cut at this length in training
    batch_size: int = 196  # [queries] of one step, over all processes
    steps: int = 50000  # [steps] length of the training
    learning_rate: float = 3e-5  # at its highest; it falls linearly to 0
    warmup_ratio: float = 0.01  # [share of steps] during which the learning rate rises
    weight_decay: float = 0.0  # AdamW's
    grad_norm: float = 10.0  # gradients are clipped at this norm
    learn_temperature: bool = False  # train the temperature too
    temperature_lr: float | None = None  # null: learning_rate, as in the study
    precision: Precision = Precision.bf16  # of the forward pass
    released: Released = field(default_factory=Released)  # what `protocol=released` sets these two to
    seed: int = 42  # of order, dropout and everything random
    checkpoint_every: int = 1000  # [steps] between checkpoints
    keep: list[int] = field(default_factory=list)  # [steps] after which the model is kept beside the last, 0 the start
    eval_every: int | None = None  # [steps] between evaluations; null: none
    eval_data: str | None = None  # a small collection to evaluate on during training, searched exactly
    max_bad_rows: int = 1000  # [rows] of the hub, skipped and counted; one more ends the training


@dataclass
class SparseAs:
    """The k_train that retrieves the share of (query token, document) pairs that the study's does in its own batch.

    A scale's file says so for the scale's batch, as scripts/record_density.py measured it against the batch of setup
    (I). At the study's scale, here, it is the number itself.
    """

    k64: int = 64  # [tokens] k_train of config=xtr_k64
    k128: int = 128  # [tokens] k_train of config=xtr_k128
    k256: int = 256  # [tokens] k_train of config=xtr_k256
    k512: int = 512  # [tokens] k_train of config=xtr_k512


@dataclass
class Train(Loop):
    """Contrastive training."""

    scorer: Scorer = Scorer.xtr  # what is trained: MaxSim or the XTR objective
    k_train: Any = 128  # [tokens] one, or a list of several whose losses are averaged; null for ColBERT
    sparse_as: SparseAs = field(default_factory=SparseAs)  # what `config=xtr_k128` sets k_train to, and so on
    objective: Objective = Objective.stated  # which form of the XTR objective
    z: Z | None = None  # what a score is divided by; null, here and in the next two: what the objective says
    missing: Unretrieved | None = None  # what a document counts that nothing retrieved
    mask: Mask | None = None  # which tokens count as retrieved
    temperature: float | None = None  # scores are divided by it; null: one of the next two, by scorer
    temperature_colbert: float = 1.0  # the temperature where scorer=colbert
    temperature_xtr: float = 0.05  # the temperature where scorer=xtr
    loss: ContrastiveLoss = ContrastiveLoss.contrastive  # how the loss is computed
    mini_batch: int = 32  # [texts] of one forward pass with loss=cached
    data: str | None = None  # a collection with training qrels; hard negatives are mined with BM25
    triples: str | None = None  # or triples: a hub id, or a local .jsonl or .parquet with query, positive, negative
    revision: str | None = None  # of the hub's triples
    max_triples: int | None = None  # [triples] read at most; null: all
    per_query: int | None = None  # [positives] of train.data, at most so many for a query; null: all


@dataclass
class Distill(Loop):
    """Distillation from a teacher's scores, after `train` (setup II, stage=kd). Scorer and k_train are `train`'s."""

    batch_size: int = 16
    steps: int = 20000
    learning_rate: float = 4e-6
    warmup_ratio: float = 0.0
    loss: DistillLoss = DistillLoss.kl  # which loss
    kd_multi: KdMulti = KdMulti.losses  # how several k_train are combined
    min_max: bool | None = None  # both sides' scores to [0, 1] over a query's candidates; null: for kl, not margin_mse
    temperature: float = 1.0  # the student's scores are divided by it
    n_ways: int = 16  # [documents] candidates of a query
    data: str | None = None  # a collection whose BM25 candidates `teacher` scores
    teacher: str = "pypi/all-mpnet-base-v2"  # pypi/NAME, or a cross-encoder by hub id or folder
    teacher_revision: str | None = None  # of a teacher on the hub
    lists: str | None = None  # or scored lists: a hub id, or a local .jsonl or .parquet with query, documents, scores
    revision: str | None = None  # of the hub's lists
    max_queries: int | None = None  # [queries] used at most; null: all


MEASURES = ("nDCG@10", "Recall@100", "MRR@10", "Success@5")


@dataclass
class Data:
    """A collection to search. `loader` names where it comes from; see `xtrrep/data/`."""

    id: str = REQUIRED  # its name in tables and folders
    loader: str = REQUIRED  # folder, ir_datasets, pydoc or mixture
    path: str | None = None  # with loader=folder: a BEIR folder
    parts: list[str] | None = None  # with loader=mixture: the collections that it joins
    split: str | None = None  # whose judgements: qrels/SPLIT.tsv
    n_query: int | None = None  # [tokens] overrides model.n_query, e.g. 64 on ArguAna
    n_doc: int | None = None  # [tokens] overrides model.n_doc
    drop_self: bool = False  # leave out the document that is the query itself (ArguAna, Quora)
    measures: list[str] = field(default_factory=lambda: [*MEASURES])  # names of ir-measures
    max_queries: int | None = None  # [judged queries] so many, evenly spread over their file; null: all
    download_mb: int | None = None  # [MB] of its download, for the plan
    size: list[int] | None = None  # [documents, judged queries] for the plan


@dataclass
class Encode:
    precision: Precision = Precision.fp16  # in which texts are encoded
    pool_factor: float = 1.0  # keep about 1 / pool_factor of a document's tokens, clustered (Clavié et al. 2024)
    transform: Transform = Transform.none  # what is done to stored vectors, which are then brought to unit length
    shard_documents: int = 8192  # [documents] in one file of vectors


@dataclass
class Retrieve:
    scoring: Scoring = Scoring.model  # how documents are scored from tokens
    k_prime: int | None = None  # [tokens] k', retrieved for each query token; null: the next two, by scoring
    k_prime_xtr: int = 40000  # [tokens] k' under XTR scoring, where k_prime is null
    k_prime_colbert: int = 4000  # [tokens] k' under ColBERT scoring, where k_prime is null
    expansion: bool = True  # false: queries are searched without the vectors of their [MASK] expansion
    imputation: str = "min"  # stands in for a token that was not retrieved: min, zero, mean, percentile, power_law
    top_k: int = 100  # [documents] kept of a query
    rerank: int | None = None  # [documents] so many of the best ranked once more, by exact MaxSim
    fuse: Fuse | None = None  # how BM25's ranking is made one with the model's; null: it is not asked
    from_run: str | None = None  # a TREC run file in place of an index: its documents, re-ranked by MaxSim


class Recipe(Enum):
    single = "single"  # one query at a time, warmed up, repeated
    paper = "paper"  # the study's: one call over all queries, once


@dataclass
class Latency:
    threads: int = 1  # [threads] set before anything is imported
    warmup: int = 10  # [queries] before the first that is timed
    repeats: int = 3  # [times] every query is timed
    max_queries: int = 200  # [queries] timed, the first of the file
    recipe: Recipe = Recipe.single  # whose way of timing
    process: int = 0  # [number] another one measures again, in a process of its own
    processes: int = 5  # [processes] a comparison of times measures each cell so often, shared among training seeds


@dataclass
class Protocol:
    name: str = "stated"  # the choice of protocol=
    missing_slots: Missing = Missing.drop  # what a slot that the engine could not fill counts as
    self_match: SelfMatch = SelfMatch.collection  # what happens to the document that is the query itself


@dataclass
class Analyze:
    name: str = "k_prime"  # which analysis; `xtrrep ls` lists them
    models: list[str] = field(default_factory=list)  # configs to compare; "untrained" is the backbone
    k_primes: list[int] = field(default_factory=list)  # [tokens] the values of k' to compare
    nprobes: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])  # [clusters] for `analyze.name=candidates`
    engines: list[str] = field(default_factory=list)  # choices of index=, for `analyze.name=engines`
    sweep: list[str] = field(default_factory=list)  # choices of index= for `analyze pareto`; none: all installed
    minutes: float = 30.0  # [minutes] after which `analyze pareto` begins no further point
    steps: list[int] = field(default_factory=lambda: [0, 500, 2000, 10000])  # [steps] for `analyze.name=dynamics`
    timed: bool = False  # measure latencies too, for `analyze.name=dynamics`
    measure: str = "nDCG@10"  # a name of ir-measures
    resamples: int = 10000  # [samples] of a bootstrap interval
    bm25: bool = True  # add a row for BM25


@dataclass
class Machine:
    """Never part of a result's identity."""

    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int | None = None  # [threads] null: torch's and numpy's defaults, and one a core for an engine's search
    encode_tokens: int | None = None  # [tokens] a batch's, padding included; null: 2,048 on a CPU, 32,768 on a GPU
    query_batch: int = 16  # [queries] in one token search
    gradient_checkpointing: bool = False  # less memory, one more forward pass
    compile: bool = False  # torch.compile of the encoder in training
    tensorboard: bool = True  # write its events beside the training log
    wandb: bool = False  # send the training log to Weights & Biases


@dataclass
class Config:
    setup: str = REQUIRED  # I or II of the study
    config: str = REQUIRED  # which model: colbert, xtr_k128 and so on
    scale: str = REQUIRED  # how large: demo, lab or paper
    stage: TrainStage = TrainStage.contrastive  # the last stage of training
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


def kept_steps(loop: Loop) -> tuple[int, ...]:
    """The steps before the last that a training keeps the model of, ascending."""
    return tuple(sorted(set(loop.keep) - {loop.steps}))


def sparse_as(train: Train) -> str:
    """The k_train of the study that are as sparse in the study's batch, where the scale has others; else nothing."""
    known = {getattr(train.sparse_as, item.name): int(item.name[1:]) for item in fields(SparseAs)}
    found = [known.get(k) for k in k_trains(train)]
    return "" if None in found or tuple(found) == k_trains(train) else ", ".join(map(str, found))


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
