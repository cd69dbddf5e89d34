"""The configuration: a typed schema in the paper's symbols, composed by Hydra, refused when anything is unknown.

Groups live in `configs/` and are merged in the order `configs/root.yaml` lists. What decides a result is part of its
identity; `machine`, and how often something is saved or looked at, are not. Symbols: `k_train` is k in training,
`k_prime` is k' at retrieval.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING as REQUIRED
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from xtrrep.config.registry import load_plugins
from xtrrep.console import DataError, UsageError, suggest

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
def checkout() -> Path | None:
    """The source tree this package runs from, or None when it is installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "configs" / "root.yaml").exists() and (root / "pyproject.toml").exists() else None


def config_dir() -> Path:
    """`configs/` of the source tree, or the copy inside the installed wheel."""
    root = checkout()
    return root / "configs" if root else Path(__file__).resolve().parents[1] / "configs"


def artifacts_root() -> Path:
    """`$XTRREP_HOME`, or `artifacts/` in the source tree (in the current folder when installed)."""
    home = os.environ.get("XTRREP_HOME")
    return Path(home).expanduser().resolve() if home else (checkout() or Path.cwd()) / "artifacts"


def results_root() -> Path:
    """`results/runs/` in the source tree, in `$XTRREP_HOME` where that is set, else in the current folder."""
    home = os.environ.get("XTRREP_HOME")
    return (Path(home).expanduser().resolve() if home else checkout() or Path.cwd()) / "results" / "runs"


def recorded_root() -> Path | None:
    """`results/recorded/` of the source tree; None where installed without one."""
    root = checkout()
    return root / "results" / "recorded" if root else None


_added: dict[str, dict[str, dict[str, Any]]] = {}  # by group and choice, the values of parts that have no file here


def add_option(group: str, name: str, values: dict[str, Any]) -> None:
    """A choice of a group for which `configs/` has no file: a part from outside the package."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group=group, name=name, node=values)
    _added.setdefault(group, {})[name] = values


def options(group: str) -> list[str]:
    """Every choice of a group, e.g. `beir/nfcorpus/test` of `data`."""
    return sorted(_files_of(config_dir() / group) | _added.get(group, {}).keys())


@cache
def _files_of(folder: Path) -> frozenset[str]:
    return frozenset(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def choice_values(group: str, name: str) -> dict[str, Any]:
    """What a choice of a group sets."""
    if name in _added.get(group, {}):
        return _added[group][name]
    content = OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{name}.yaml"))
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def keys_of(group: str) -> set[str]:
    """The dotted keys that any choice of a group sets."""
    files = (config_dir() / group).rglob("*.yaml")
    return {key for path in files for key in dict(_flatten(OmegaConf.to_container(OmegaConf.load(path))))}


_COMPOSING = threading.RLock()  # Hydra's plugins, its version base and its stored schema are the process's


@contextmanager
def _loader() -> Iterator[Any]:
    """Hydra's loader over `configs/`, apart from the state that a Hydra application keeps in this process.

    `hydra.initialize` would replace that application's own `GlobalHydra`. The version base is put back afterwards, and
    the schema is stored in a group of our own.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_store import ConfigStore
    from hydra.version import VersionBase
    from packaging.version import Version

    with _COMPOSING:
        ConfigStore.instance().store(group="xtrrep", name="schema", node=Config)
        base = VersionBase.instance()
        before = base.version_base
        base.version_base = Version("1.3")
        try:
            yield ConfigLoaderImpl(create_config_search_path(str(config_dir())))
        finally:
            base.version_base = before


def _load(overrides: list[str]) -> DictConfig:
    """`configs/root.yaml` with its groups and overrides. Raises what Hydra and OmegaConf raise."""
    from hydra.types import RunMode

    with _loader() as loader:
        cfg = loader.load_configuration("root", overrides, RunMode.RUN, from_shell=False)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg  # type: ignore[no-any-return]


OF_A_COLLECTION = ("n_query", "n_doc", "drop_self", "measures")  # these follow a collection under every name


@cache
def _named_collections(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """The BEIR and LoTTE collections of configs/data: {name: (the name without its split, what its file says)}."""
    found = {}
    for path in sorted((folder / "data").rglob("*.yaml")):
        values = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(values, dict) and values.get("loader") == "ir_datasets":
            name = str(path.relative_to(folder / "data").with_suffix(""))
            found[name] = (name.removesuffix(f"/{values['split']}"), {str(key): v for key, v in values.items()})
    return found


def _same_collection(value: str) -> str | None:
    """The name in configs/data of `beir/arguana/test`, `beir/nfcorpus`, ...: with or without the split."""
    for name, (base, values) in _named_collections(config_dir()).items():
        if value in (base, f"{base}/{values['split']}"):
            return name
    return None


def collection_at(path: str) -> str | None:
    """The collection that a folder holds by its name, such as `beir/arguana` for `.../arguana`; None for any other."""
    parts = Path(path).expanduser().resolve().parts
    for name, (base, _) in _named_collections(config_dir()).items():
        tail = tuple(base.removeprefix("beir/").removesuffix("/v2").split("/"))
        if parts[-len(tail) :] == tail:
            return name
    return None


def _settings_of(name: str | None) -> list[str]:
    """The overrides that a named collection brings along, whatever split or folder it is read from."""
    if name is None:
        return []
    _, values = _named_collections(config_dir())[name]
    settings = {key: values[key] for key in OF_A_COLLECTION if key in values}
    return [
        f"data.{key}=[{','.join(value)}]" if isinstance(value, list) else f"data.{key}={str(value).lower()}"
        for key, value in settings.items()
    ]


def _local_collection(value: str) -> list[str] | None:
    """Overrides for `beir/NAME/SPLIT` where `$XTRREP_DATA/NAME` is a folder and no file names the collection."""
    parts = value.split("/")
    home = os.environ.get("XTRREP_DATA")
    if len(parts) == 3 and parts[0] == "beir" and home and (Path(home) / parts[1]).is_dir():
        place = Path(home) / parts[1]
        settings = _settings_of(collection_at(str(place)))
        return ["data=folder", f"data.id={value}", f"data.path={place}", f"data.split={parts[2]}", *settings]
    return None


@cache
def _registry() -> dict[str, Any]:
    """What ir-datasets lists of its collections: counts by id. Read without importing the library."""
    import json
    from importlib.util import find_spec

    spec = find_spec("ir_datasets")
    if spec is None or spec.origin is None:
        return {}
    return dict(json.loads((Path(spec.origin).parent / "etc" / "metadata.json").read_text(encoding="utf-8")))


def registered() -> list[str]:
    """The ids of ir-datasets that have documents, queries and judgements."""
    return [id for id, entry in _registry().items() if entry.keys() >= {"docs", "queries", "qrels"}]


def _count(id: str, kind: str) -> int | None:
    """Documents or queries of an ir-datasets id; some entries refer to another id's."""
    entry = _registry().get(id, {}).get(kind, {})
    return _count(entry["_ref"], kind) if "_ref" in entry else entry.get("count")


# Thirteen of BEIR's collections with 50 queries each and a small corpus.
NANOBEIR = {
    f"nanobeir/{name.lower()}": f"hub:zeta-alpha-ai/Nano{name}"
    for name in (
        "ArguAna", "ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO", "NFCorpus", "NQ",
        "QuoraRetrieval", "SCIDOCS", "SciFact", "Touche2020",
    )
}  # fmt: skip


def _hub_collection(value: str) -> list[str] | None:
    """Overrides for `hub:ORG/NAME[/SPLIT]` and `nanobeir/NAME`."""
    place = NANOBEIR.get(value, value)
    if not place.startswith("hub:"):
        return None
    overrides = ["data=folder", f"data.id={value}", "data.loader=hub", f"data.path={place}"]
    overrides += ["data.measures=[nDCG@10,Recall@100]"]
    return [*overrides, *(["data.drop_self=true"] if value.endswith("/arguana") else [])]


def _registered_collection(value: str) -> list[str] | None:
    """Overrides for an ir-datasets id that no file names: its size, and the measures its benchmark reports."""
    if value not in registered():
        return None
    group, last = value.partition("/")[0], value.rpartition("/")[2]
    split = last if last in ("train", "dev", "test", "search", "forum") else "test"
    measures = "[nDCG@10,Recall@100]"
    if group == "lotte":
        measures = "[Success@5]"
    elif group in ("msmarco-passage", "msmarco-passage-v2"):
        measures = "[nDCG@10,MRR@10,Recall@100]" if "trec-dl" in value else "[MRR@10,Recall@100]"
    size = [_count(value, "docs"), _count(value, "queries")]
    sized = [f"data.size=[{size[0]},{size[1]}]"] if None not in size else []
    overrides = ["data=folder", f"data.id={value}", "data.loader=ir_datasets", f"data.split={split}"]
    return [*overrides, f"data.measures={measures}", *sized]


def _split_override(text: str) -> tuple[str, str]:
    if text[:1] in "+~":
        raise UsageError(
            f"{text!r}: adding (+) and deleting (~) keys is refused, since it would let a typo through",
            hint=f"write {text.lstrip('+~')!r} if the key exists; `xtrrep show` lists every key",
        )
    if "${" in text:
        raise UsageError(
            f"{text!r}: references (${{...}}) are refused: one to the environment would be stored with the result",
            hint="write the value itself",
        )
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r} is not a KEY=VALUE override", hint="for example retrieve.k_prime=1000")
    return key, value


def _for_hydra(text: str) -> str:
    """The override as Hydra's grammar wants it. A text, and each text of a list, is taken as it was typed."""
    key, value = _split_override(text)
    if value == "null":
        return text
    if _is_text(key):
        return f"{key}={_quoted(_unwrapped(value))}"
    if _is_list_of_texts(key) and value[:1] == "[":
        return f"{key}=[{','.join(map(_quoted, _items(text, value)))}]"
    if value[:1] in ("[", "{", "'", '"') or re.fullmatch(r"[\w./:+@%-]*", value, re.ASCII):
        return text
    return f"{key}={_quoted(value)}"


def _quoted(value: str) -> str:
    """A text in quotes, where the grammar reads backslashes only before a quote."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    return "'" + re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped) + "'"


def _unwrapped(value: str) -> str:
    """A value without the quotes that a shell left around all of it."""
    quote = value[:1]
    wrapped = len(value) > 1 and quote in ("'", '"') and value[-1] == quote and quote not in value[1:-1]
    return value[1:-1] if wrapped else value


def _items(text: str, value: str) -> list[str]:
    """The texts of `[A,B(x=1,y=2),"C"]`: commas within brackets or quotes belong to a text. Raises UsageError."""
    fault = UsageError(
        f"{text!r} cannot be read as a list", hint="is a bracket or a quote left open, or a text missing?"
    )
    if value[-1] != "]" or len(value) < 2:
        raise fault
    items: list[str] = []
    closing: list[str] = []
    start, inner = 0, value[1:-1]
    for at, sign in enumerate(inner):
        if closing and sign == closing[-1]:
            closing.pop()
        elif closing and closing[-1] in "'\"":
            continue
        elif sign in OPENING:
            closing.append(OPENING[sign])
        elif sign in ")]}":
            raise fault
        elif sign == "," and not closing:
            items.append(inner[start:at])
            start = at + 1
    if closing:
        raise fault
    items = [_unwrapped(item.strip()) for item in (*items, inner[start:])] if inner.strip() else []
    if "" in items:
        raise fault
    return items


OPENING = {"(": ")", "[": "]", "{": "}", "'": "'", '"': '"'}


def _type_of(key: str) -> Any:
    """The type that the schema gives a dotted key; None where it gives none."""
    section, _, name = key.partition(".")
    owner = _hints(Config).get(section)
    return _hints(owner).get(name) if isinstance(owner, type) and is_dataclass(owner) else None


@cache
def _hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner)


def _is_text(key: str) -> bool:
    """Whether the schema says that a dotted key holds a text, so that 1e3 or a,b is one too."""
    return _type_of(key) in (str, str | None)


def _is_list_of_texts(key: str) -> bool:
    return _type_of(key) in (list[str], list[str] | None)


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not prefix):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def flat(cfg: DictConfig | Config) -> dict[str, Any]:
    """Dotted keys and plain values; enums by name."""
    node = cfg if isinstance(cfg, DictConfig) else OmegaConf.structured(cfg)
    return dict(_flatten(OmegaConf.to_container(node, resolve=True, enum_to_str=True)))


def _group_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split into group choices (checked against the files) and value overrides."""
    groups: list[str] = []
    values: list[str] = []
    chosen: dict[str, str] = {}
    for text in overrides:
        key, value = _split_override(text)
        if key == "config" and value.endswith("_kd") and value.removesuffix("_kd") in options("config"):
            # The name a distilled model prints is a name that can be typed.
            text, value = f"config={value.removesuffix('_kd')}", value.removesuffix("_kd")
            values.append("stage=kd")
        if key not in GROUPS:
            values.append(text)
            continue
        if key == "data" and value not in options("data") and (same := _same_collection(value)):
            text, value = f"data={same}", same
        if chosen.setdefault(key, value) != value:
            raise UsageError(f"{key} is given twice: {chosen[key]!r} and {value!r}", hint=f"give {key}= once")
        local = None
        if key == "data" and value not in options("data"):
            local = _local_collection(value) or _registered_collection(value) or _hub_collection(value)
        if local:
            groups.append(local[0])
            values = local[1:] + values
        elif value not in options(key):
            kind = {"data": "collection", "index": "engine", "config": "config"}.get(key, key)
            hint = suggest(value, [*options(key), *([*registered(), *NANOBEIR] if key == "data" else [])])
            if key == "data" and value.startswith("beir/"):
                hint = f"{hint} A local BEIR folder $XTRREP_DATA/NAME serves beir/NAME/SPLIT."
            raise (DataError if key in ("data", "index") else UsageError)(
                f"no {kind} named {value!r} in this version", hint=hint
            )
        else:
            groups.append(text)
    placed = [text for text in overrides if text.startswith(("data.path=", "data.split="))]
    paths = [_unwrapped(text.partition("=")[2]) for text in placed if text.startswith("data.path=")]
    if paths and chosen.get("data", "folder") == "folder":
        values = _settings_of(collection_at(paths[-1])) + values
    if paths and "data" not in chosen:
        groups.append("data=folder")
    elif placed and chosen.get("data") != "folder":
        raise UsageError(
            f"{placed[0]!r} cannot change the named collection {chosen.get('data', 'pydoc/test')!r}",
            hint="another split is another data=ID; a folder is data.path=FOLDER data.split=SPLIT without data=",
        )
    return groups, values


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose and check the configuration.

    Raises UsageError for an unknown or ill-typed key, in a file or an override, with a suggestion, and DataError
    for an unknown collection or engine.
    """
    from hydra.errors import HydraException

    load_plugins()
    groups, values = _group_overrides(overrides)
    try:
        known = _known_keys(config_dir(), next((text for text in groups if text.startswith("index=")), None))
        _check_keys(values, known)
        typed = _assemble(groups, values)
        _check_index_types(values, known)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, values) from None
    if typed.data.id == "folder" and typed.data.path:
        typed.data.id = f"{Path(typed.data.path).expanduser().resolve().name}/{typed.data.split}"
    if typed.train.objective is Objective.released:
        typed.train.objective = _released_objective(typed)
    _check_meaning(typed)
    return typed


def _assemble(groups: Sequence[str], values: Sequence[str]) -> Config:
    """The configuration, section by section, each composed by Hydra once a process for the same groups and values.

    Equal to one composition of everything: `data` and `index` are set by no other group, and no file refers to a key
    of another section (tests/test_config.py compares the two). A grid of cells composes each of its parts once.
    """
    shared = tuple(text for text in groups if not text.startswith(("data=", "index=")))
    parts = {}
    for item in fields(Config):
        name = item.name
        if name in ("data", "index"):
            own: tuple[str, ...] = tuple(text for text in groups if text.startswith(f"{name}="))
        else:
            own = shared
        set_here = tuple(text for text in values if text.partition("=")[0].partition(".")[0] == name)
        parts[name] = copy(getattr(_composed(config_dir(), own, set_here), name))
    return Config(**parts)


@cache
def _composed(folder: Path, groups: tuple[str, ...], values: tuple[str, ...]) -> Config:
    """What groups and values say, as objects: groups are read once, values set as Hydra sets them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    cfg = deepcopy(_grouped(folder, groups))
    parser = OverridesParser.create()
    for text in values:
        override = parser.parse_override(_for_hydra(text))
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    typed = OmegaConf.to_object(cfg)
    if not isinstance(typed, Config):
        raise TypeError(f"composed a {type(typed).__name__}, not a Config")
    return typed


@cache
def _grouped(folder: Path, groups: tuple[str, ...]) -> DictConfig:
    return _load(list(groups))


@cache
def _known_keys(folder: Path, engine: str | None) -> dict[str, Any]:
    """Every key with its default, by the engine that is chosen: only `index` has no schema."""
    return flat(_load([engine] if engine else []))


def compose_with_origins(overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """As `compose`, with the file (relative to `configs/`) or override that set each dotted key."""
    from hydra.types import RunMode

    typed = compose(overrides)
    groups, values = _group_overrides(overrides)
    with _loader() as loader:
        defaults = loader.compute_defaults_list("root", groups, RunMode.RUN)
    origins = dict.fromkeys(flat(typed), "schema default")
    for entry in defaults.defaults:
        if (
            entry.config_path and (config_dir() / f"{entry.config_path}.yaml").exists()
        ):  # not the schema, not Hydra's own
            for key in _keys_of_file(entry.config_path, entry.package or ""):
                origins[key] = f"configs/{entry.config_path}.yaml"
    for text in values:
        key = _split_override(text)[0]
        for full in origins:
            if full == key or full.startswith(key + "."):
                origins[full] = f"override {text}"
    return typed, origins


def _keys_of_file(name: str, package: str) -> list[str]:
    content = OmegaConf.to_container(OmegaConf.load(config_dir() / f"{name}.yaml"))
    if not isinstance(content, dict):
        return []
    content.pop("defaults", None)
    prefix = "" if package in ("", "_global_") else package
    return [key for key, _ in _flatten(content, prefix)] if content else []


def _check_keys(values: Sequence[str], known: dict[str, Any]) -> None:
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(key.count(".") + 1)}
    for text in values:
        key, value = _split_override(text)
        if key not in nodes and (engines := _engines_with(key)):
            raise UsageError(f"the engine chosen has no {key}", hint=f"--index {' or --index '.join(engines)} has it")
        if key not in nodes:
            raise UsageError(f"unknown key {key!r}", hint=suggest(key, known, listing=SHOW))
        if key not in known:
            raise UsageError(
                f"{key!r} is a group of keys and takes no value itself",
                hint=f"its keys: {', '.join(k for k in known if k.startswith(key + '.'))}",
            )
        if "," in value and not value.startswith(("[", "{", "'", '"')) and not _is_text(key):
            raise UsageError(f"{text!r} names several values", hint=f"a list is written {key}=[{value}]")


def _engines_with(key: str) -> list[str]:
    """The engines that a parameter `index.NAME` belongs to."""
    group, _, name = key.partition(".")
    choices = [choice for choice in options("index") if group == "index" and "/" not in choice]
    return [choice for choice in choices if name in choice_values("index", choice)]


def _check_index_types(values: Sequence[str], known: dict[str, Any]) -> None:
    """Engine parameters have no schema of their own, so hold them to the type their file gives them."""
    import yaml

    for text in values:
        key, raw = _split_override(text)
        if not key.startswith("index.") or known[key] is None:
            continue
        try:
            value = yaml.safe_load(raw)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that is none, such as 2001-99-99
            value = raw
        wanted = type(known[key])
        if value is None:
            continue  # the engine knows whether it may be
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise UsageError(f"{key}={raw!r} is not of type {wanted.__name__}", hint=f"for example {key}={known[key]}")


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


def _released_objective(cfg: Config) -> Objective:
    """What the released code trained a config's setup with (docs/protocol.md section 8)."""
    return Objective.authors_raw if cfg.setup == "I" and cfg.train.scorer is Scorer.xtr else Objective.authors


def min_max_of(distill: Distill) -> bool:
    """Whether scores are normalised: as the study's KL does, and Margin-MSE in the field does not."""
    return distill.loss is DistillLoss.kl if distill.min_max is None else distill.min_max


def temperature_of(train: Train) -> float:
    """The initial temperature: `train.temperature`, or the one of the scorer."""
    by_scorer = train.temperature_xtr if train.scorer is Scorer.xtr else train.temperature_colbert
    by_scorer = 1.0 if is_raw(train) else by_scorer
    return by_scorer if train.temperature is None else train.temperature


def _check_loop(cfg: Config, name: str) -> None:
    """What `train` and `distill` share."""
    loop = getattr(cfg, name)
    for key in ("batch_size", "steps", "checkpoint_every", "n_doc"):
        if getattr(loop, key) <= 0:
            raise UsageError(
                f"{name}.{key} must be positive, got {getattr(loop, key)}", hint=f"{name}.{key}=1 is the least"
            )
    if loop.eval_every is not None and loop.eval_every <= 0:
        raise UsageError(
            f"{name}.eval_every must be positive, got {loop.eval_every}",
            hint=f"{name}.eval_every=1 looks after every step, null never",
        )
    if (loop.eval_every is None) != (loop.eval_data is None):
        raise UsageError(f"{name}.eval_every and {name}.eval_data go together", hint=f"{name}.eval_data=pydoc/test")
    for key, low, high, range_ in (
        ("learning_rate", 0.0, math.inf, "a finite number above 0"),
        ("grad_norm", 0.0, math.inf, "a finite number above 0"),
        ("warmup_ratio", -1e-9, 1.0, "from 0 to 1"),
        ("weight_decay", -1e-9, math.inf, "a finite number, 0 or more"),
        ("temperature_lr", 0.0, math.inf, "a finite number above 0"),
    ):
        number = getattr(loop, key)
        if number is not None and not (low < number < high or number == high == 1.0):
            raise UsageError(f"{name}.{key}={number} is out of range", hint=range_)


def _check_meaning(cfg: Config) -> None:
    """What the types alone cannot say."""
    _check_loop(cfg, "train")
    _check_loop(cfg, "distill")
    positive = {
        "train.mini_batch": cfg.train.mini_batch,
        "train.max_triples": cfg.train.max_triples,
        "train.per_query": cfg.train.per_query,
        "distill.max_queries": cfg.distill.max_queries,
        "model.dim": cfg.model.dim,
        "model.n_doc": cfg.model.n_doc,
        "model.n_query": cfg.model.n_query,
        "data.n_query": cfg.data.n_query,
        "data.n_doc": cfg.data.n_doc,
        "data.max_queries": cfg.data.max_queries,
        "retrieve.top_k": cfg.retrieve.top_k,
        "retrieve.k_prime": cfg.retrieve.k_prime,
        "retrieve.rerank": cfg.retrieve.rerank,
        "latency.threads": cfg.latency.threads,
        "latency.repeats": cfg.latency.repeats,
        "latency.max_queries": cfg.latency.max_queries,
        "encode.shard_documents": cfg.encode.shard_documents,
        "machine.encode_tokens": cfg.machine.encode_tokens,
        "machine.query_batch": cfg.machine.query_batch,
        "machine.threads": cfg.machine.threads,
    }
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise UsageError(f"{key} must be positive, got {value}", hint=f"{key}=1 is the least")
    for key, number in (
        ("train.temperature", cfg.train.temperature),
        ("train.temperature_colbert", cfg.train.temperature_colbert),
        ("train.temperature_xtr", cfg.train.temperature_xtr),
        ("distill.temperature", cfg.distill.temperature),
    ):
        if number is not None and not 0 < number < math.inf:
            raise UsageError(f"{key}={number} is out of range", hint="a finite number above 0")
    if not 1 <= cfg.encode.pool_factor < math.inf:
        raise UsageError(
            f"encode.pool_factor={cfg.encode.pool_factor} is below 1", hint="1 pools nothing, 2 halves the vectors"
        )
    if not cfg.analyze.k_primes or min(cfg.analyze.k_primes) < 1:
        raise UsageError(
            f"analyze.k_primes={cfg.analyze.k_primes} must name at least one k' above 0",
            hint="'analyze.k_primes=[20,100,1000]'",
        )
    if not cfg.analyze.nprobes or min(cfg.analyze.nprobes) < 1:
        raise UsageError(
            f"analyze.nprobes={cfg.analyze.nprobes} must name at least one nprobe above 0",
            hint="'analyze.nprobes=[1,8,32]'",
        )
    if cfg.analyze.resamples < 100:
        raise UsageError(f"analyze.resamples={cfg.analyze.resamples} is too few for an interval", hint="at least 100")
    k_trains(cfg.train)
    if is_raw(cfg.train) and cfg.train.loss is ContrastiveLoss.cached:
        raise UsageError(
            "train.loss=cached embeds unit vectors, and train.objective=authors_raw needs them raw",
            hint="train.loss=contrastive, with machine.gradient_checkpointing=true where memory is short",
        )
    if cfg.distill.n_ways < 2:
        raise UsageError(
            f"distill.n_ways={cfg.distill.n_ways}: one candidate has nothing to be compared with",
            hint="distill.n_ways=2 is the least",
        )
    if cfg.setup == "I" and (cfg.stage is TrainStage.kd or cfg.config == "xtr_multi"):
        what = "stage=kd" if cfg.stage is TrainStage.kd else "config=xtr_multi"
        raise UsageError(f"{what}: setup (I) of the study has no such model", hint="setup=II has it")
    if cfg.train.eval_data and cfg.distill.eval_data and cfg.train.eval_data != cfg.distill.eval_data:
        raise UsageError(
            "train.eval_data and distill.eval_data name two collections", hint="give both the same, or one of them null"
        )
    if cfg.stage is TrainStage.kd and (cfg.distill.data is None) == (cfg.distill.lists is None):
        raise UsageError(
            f"exactly one of distill.data ({cfg.distill.data}) and distill.lists ({cfg.distill.lists}) must be set",
            hint="distill.data=null for the lists, or distill.lists=null distill.data=ID for a collection",
        )
    if (cfg.train.data is None) == (cfg.train.triples is None):
        raise UsageError(
            f"exactly one of train.data ({cfg.train.data}) and train.triples ({cfg.train.triples}) must be set",
            hint="train.data=null for the triples, or train.triples=null train.data=ID for a collection",
        )
    if (cfg.model.source is Source.checkpoint) != (cfg.model.checkpoint is not None):
        raise UsageError("model.source=checkpoint and model.checkpoint=NAME go together", hint="give both, or neither")
    if (cfg.model.source is Source.vectors) != (cfg.model.vectors is not None):
        raise UsageError("model.source=vectors and model.vectors=FOLDER go together", hint="give both, or neither")
    if cfg.model.normalize and cfg.model.source is not Source.vectors:
        raise UsageError(
            "model.normalize=true is for imported vectors: a model's are of unit length already",
            hint="leave it out, or model.source=vectors model.vectors=FOLDER",
        )


def _explain(error: Exception, values: Sequence[str]) -> UsageError:
    """One line and a suggestion out of Hydra's and OmegaConf's traceback."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OmegaConfBaseException) and cause.full_key):
        cause = cause.__cause__ or cause.__context__  # Hydra wraps without naming the cause
    cause = cause or error
    key = getattr(cause, "full_key", None)
    message = str(getattr(cause, "msg", None) or cause).strip().splitlines()[0].rstrip(".")
    message = message.replace("is not a ListConfig, list or tuple", "is not a list")
    if not key:
        override = getattr(cause, "override", None)  # of Hydra's grammar, which says little else
        if override:
            return UsageError(f"{override!r} cannot be read: {message}", hint="is a bracket or a quote left open?")
        return UsageError(message, hint=SHOW)
    given = next((text for text in values if text.startswith(f"{key}=")), None)
    where = f", in {given!r}" if given else _find_in_files(str(key))
    known = flat(OmegaConf.create({f.name: _defaults(f) for f in fields(Config)}))
    if "not in" in message:
        return UsageError(f"unknown key {key!r}{where}", hint=suggest(str(key), known, listing=SHOW))
    if given and message.endswith("is not a list"):
        return UsageError(f"{given!r} is not a list", hint=f"a list is written {key}=[{given.partition('=')[2]}]")
    example = known.get(str(key))
    hint = f"a value of that type, or {key}=null" if example is None else f"for example {key}={example}"
    return UsageError(f"{key}: {message}{where}", hint=hint)


def _defaults(item: Any) -> Any:
    kind = item.default_factory
    if isinstance(kind, type) and is_dataclass(kind):
        return OmegaConf.structured(kind)
    return item.default if isinstance(item.default, Enum) else "?"


def _find_in_files(key: str) -> str:
    """`, in configs/...` for the file that mentions the last part of a key, if one does."""
    last = key.rsplit(".", 1)[-1]
    for path in sorted(config_dir().rglob("*.yaml")):
        if any(line.strip().startswith(f"{last}:") for line in path.read_text("utf-8").splitlines()):
            return f", in configs/{path.relative_to(config_dir())}"
    return ""


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
