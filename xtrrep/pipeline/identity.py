"""What a config means: which engine answers with which scoring, and what things are called and are by content."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from xtrrep import config as configs
from xtrrep.config import (
    Config,
    Data,
    Loop,
    Missing,
    Precision,
    Scorer,
    Scoring,
    SelfMatch,
    Source,
    TrainStage,
    kept_steps,
    plain,
)
from xtrrep.console import UsageError
from xtrrep.data import resolve, sources
from xtrrep.model import hub, weights
from xtrrep.model.encoder import device_of
from xtrrep.model.precision import Work, resolve_precision
from xtrrep.retrieval.engines import AnyEngine, DocumentEngine, Place, TextEngine, TokenEngine, VectorEngine, engine_of
from xtrrep.retrieval.retrieve import Setting


@dataclass(frozen=True)
class GivenRun:
    """The ranking of `retrieve.from_run` in place of an engine: re-ranked by MaxSim, or kept as it is."""

    rerank: bool

    @property
    def scoring(self) -> str:
        return "colbert" if self.rerank else "run"


def answerer(cfg: Config) -> AnyEngine | GivenRun:
    """What answers a query: the engine of `index=`, or the run that `retrieve.from_run` names."""
    if cfg.retrieve.from_run is not None:
        return GivenRun(cfg.retrieve.scoring is not Scoring.run)
    return engine_of(cfg.index)


def needs_model(cfg: Config) -> bool:
    """Whether texts are encoded at all."""
    answer = answerer(cfg)
    if isinstance(answer, TextEngine):
        return cfg.retrieve.rerank is not None
    return answer.rerank if isinstance(answer, GivenRun) else True


def engine_label(cfg: Config) -> str:
    """How tables and folders call what answered: the engine, or a run from outside."""
    return "run" if cfg.retrieve.from_run is not None else str(cfg.index["engine"])


def place_of(cfg: Config) -> Place:
    return Place(device_named(cfg.machine.device), cfg.machine.threads)


GPU_SCALES = ("lab", "paper")  # whose stages run on a GPU, unless machine.device names another place


def runs_on_gpu(cfg: Config) -> bool:
    """Whether the stages of a config run on a GPU: as machine.device says, else as its scale does.

    Only at the other scales, which run where they are planned, does `auto` ask this machine.
    """
    name = cfg.machine.device
    if name == "auto":
        return cfg.scale in GPU_SCALES or device_named(name) != "cpu"
    return name.partition(":")[0] == "cuda" or device_named(name) != "cpu"


def precision_of(cfg: Config, precision: Precision, work: Work = "encode") -> Precision:
    """What `auto` and fp16 mean where the stages of a config run, whichever machine plans them.

    On a processor fp16 is fp32, and `auto` is what a short timing finds faster. On a GPU `auto` is bf16.
    """
    if not runs_on_gpu(cfg):
        return resolve_precision(precision, "cpu", work)
    if precision is Precision.auto and cfg.scale not in GPU_SCALES:
        return resolve_precision(precision, device_named(cfg.machine.device), work)
    return Precision.bf16 if precision is Precision.auto else precision


def precision_to_run(cfg: Config, precision: Precision) -> Precision:
    """What a stage is given: `auto` stays on a processor, so that the stage's manifest holds the timing behind it."""
    here = precision is Precision.auto and not runs_on_gpu(cfg)
    return precision if here else precision_of(cfg, precision)


def model_label(cfg: Config) -> str:
    """How tables and folders call the model: `I/xtr_k128`, `II/xtr_k256_kd`, `untrained`, or a checkpoint's name."""
    if cfg.model.source is Source.trained:
        step = step_of(cfg)
        own = "" if step is None else f" step {step}"
        return f"{cfg.setup}/{cfg.config}" + ("_kd" if is_distilled(cfg) else "") + own
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


def step_of(cfg: Config) -> int | None:
    """The kept step whose model a config asks for; None is the last one."""
    return cfg.model.step if cfg.model.step in kept_steps(loop_of(cfg)) else None


def setting_of(cfg: Config) -> Setting:
    """Scoring and its k', with `model` resolved to the scoring the model was trained for.

    Raises UsageError for what the engine cannot do: PLAID and WARP score by themselves.
    """
    answer, asked = answerer(cfg), cfg.retrieve
    kept = {SelfMatch.collection: False, SelfMatch.keep: True, SelfMatch.released: cfg.setup == "II"}
    drop_self = cfg.data.drop_self and not kept[cfg.protocol.self_match]
    _check_fit(cfg, answer)
    if not isinstance(answer, TokenEngine):
        return Setting(answer.scoring, None, "none", asked.top_k, drop_self, False, asked.rerank, fuse_of(cfg))
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
        fuse=fuse_of(cfg),
    )


def fuse_of(cfg: Config) -> str | None:
    """How a ranking by words is made one with the answer's; None where none is asked for."""
    return None if cfg.retrieve.fuse is None else cfg.retrieve.fuse.value


def words_config(cfg: Config) -> Config:
    """The config of the words beside a model's ranking: BM25 as `index=bm25` says it."""
    return replace(cfg, index=configs.choice_values("index", "bm25"))


def _check_fit(cfg: Config, answer: AnyEngine | GivenRun) -> None:
    """Refuse retrieval settings that what answers the query would silently ignore."""
    asked = cfg.retrieve
    if asked.scoring is Scoring.run and not isinstance(answer, GivenRun):
        raise UsageError(
            "retrieve.scoring=run keeps the scores of a run file, and none is named", hint="retrieve.from_run=FILE"
        )
    if asked.fuse is not None and not (isinstance(answer, VectorEngine) or asked.rerank is not None):
        raise UsageError(
            f"retrieve.fuse={asked.fuse.value} joins BM25's ranking with a model's, and {engine_label(cfg)} has none",
            hint="--index exact, or --index bm25 with retrieve.rerank=100",
        )
    if isinstance(answer, TokenEngine):
        if asked.rerank is not None and asked.scoring is Scoring.colbert:
            raise UsageError(
                "retrieve.rerank re-ranks by MaxSim what retrieve.scoring=colbert ranks by it already",
                hint="retrieve.scoring=xtr, or leave retrieve.rerank out",
            )
        if asked.imputation != "min" and asked.scoring is Scoring.colbert:
            raise UsageError(
                f"ColBERT scoring imputes nothing: retrieve.imputation={asked.imputation} would do nothing",
                hint="retrieve.scoring=xtr",
            )
        return
    name = engine_label(cfg)
    if asked.k_prime is not None:
        far = "index.nprobe=N says how far PLAID and WARP look"
        hint = far if isinstance(answer, DocumentEngine) else "leave it out, or --index exact"
        raise UsageError(
            f"{name} ranks documents by itself: retrieve.k_prime={asked.k_prime} would do nothing", hint=hint
        )
    if asked.imputation != "min":
        raise UsageError(
            f"{name} ranks documents by itself: retrieve.imputation={asked.imputation} would do nothing",
            hint="--index scann, or --index exact",
        )
    if asked.rerank is not None and not needs_model(cfg):
        raise UsageError(
            "retrieve.rerank ranks by MaxSim, and retrieve.scoring=run keeps the scores of a run",
            hint="leave retrieve.scoring out",
        )
    if isinstance(answer, TextEngine) and asked.scoring is not Scoring.model:
        raise UsageError(
            f"{name} scores words: retrieve.scoring={asked.scoring.value} does not fit", hint="leave it out"
        )
    if isinstance(answer, DocumentEngine) and asked.scoring not in (Scoring.model, Scoring(answer.scoring)):
        raise UsageError(
            f"{name} scores by itself: retrieve.scoring={asked.scoring.value} does not fit",
            hint="--index scann, or --index exact",
        )
    if isinstance(answer, GivenRun) and asked.scoring is Scoring.xtr:
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


def look_again() -> None:
    """Forget what collections and weights were: they may have changed since."""
    _content.cache_clear()
    weights_identity.cache_clear()


@cache
def train_data_of(name: str) -> Data:
    """The training collection's own config."""
    return configs.compose([f"data={name}"]).data


def training_collection(name: str | None, key: str) -> Data:
    if name is None:
        raise UsageError(f"{key}=null names no collection, and one is needed here", hint=f"{key}=pydoc/train")
    return train_data_of(name)


@cache
def weights_identity(name: str, revision: str | None) -> dict[str, str]:
    return weights.identity(name, revision)


@cache
def device_named(name: str) -> str:
    return device_of(name)


# --- the hub's commits --------------------------------------------------------------------------------------------


ENCODED = {"documents", "queries", "plain_documents", "plain_queries"}  # stages that read the encoder


@dataclass(frozen=True)
class Revision:
    """One revision of a hub repository that a config reads: `section.key` of the config holds it."""

    kind: hub.Kind
    name: str
    section: str
    key: str

    def asked(self, cfg: Config) -> str | None:
        value = getattr(getattr(cfg, self.section), self.key)
        return None if value is None else str(value)


def hub_revisions(cfg: Config, stages: Collection[str]) -> Iterator[Revision]:
    """What the given stages of a config read from the hub."""
    from xtrrep.data import scored, triples

    model = str(
        cfg.model.checkpoint if cfg.model.source in (Source.checkpoint, Source.released) else cfg.model.backbone
    )
    encoding = cfg.model.source in (Source.checkpoint, Source.released, Source.untrained)
    reads_model = "train" in stages or (encoding and ENCODED & set(stages))
    if reads_model and model not in weights.ARCHIVES and weights.locate(model) is None:
        yield Revision("model", model, "model", "revision")
    if "train" in stages and cfg.train.triples and not triples.local_files(cfg.train.triples):
        yield Revision("dataset", cfg.train.triples, "train", "revision")
    if "distill" in stages and cfg.distill.lists and not scored.local_files(cfg.distill.lists):
        yield Revision("dataset", cfg.distill.lists, "distill", "revision")
    teacher = cfg.distill.teacher
    if "scored" in stages and teacher not in weights.ARCHIVES and weights.locate(teacher) is None:
        yield Revision("model", teacher, "distill", "teacher_revision")


CommitOf = Callable[[hub.Kind, str, str | None], hub.Commit | None]


def pinned(cfg: Config, stages: Collection[str], commit_of: CommitOf = hub.commit_of) -> Config:
    """The config with every hub revision that these stages read resolved to a commit, where one is known."""
    for revision in hub_revisions(cfg, stages):
        commit = commit_of(revision.kind, revision.name, revision.asked(cfg))
        if commit is not None:
            section = replace(getattr(cfg, revision.section), **{revision.key: commit.id})
            cfg = replace(cfg, **{revision.section: section})
    return cfg


def slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-.") or "x"


def model_needs(cfg: Config) -> list[str]:
    if cfg.model.source is not Source.trained:
        return []
    return ["distill"] if is_distilled(cfg) else ["train"]
