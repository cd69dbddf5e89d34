"""What the types alone cannot say, and Hydra's errors in one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xtrrep.config import places
from xtrrep.config.choices import engines_with
from xtrrep.config.overrides import is_text, split_override
from xtrrep.config.schema import (
    SHOW,
    Config,
    ContrastiveLoss,
    Source,
    TrainStage,
    flat,
    is_raw,
    k_trains,
    kept_steps,
)
from xtrrep.console import UsageError, suggest


def check_keys(values: Sequence[str], known: dict[str, Any]) -> None:
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(key.count(".") + 1)}
    for text in values:
        key, value = split_override(text)
        if key not in nodes and (engines := engines_with(key)):
            raise UsageError(f"the engine chosen has no {key}", hint=f"--index {' or --index '.join(engines)} has it")
        if key not in nodes:
            raise UsageError(f"unknown key {key!r}", hint=suggest(key, known, listing=SHOW))
        if key not in known:
            raise UsageError(
                f"{key!r} is a group of keys and takes no value itself",
                hint=f"its keys: {', '.join(k for k in known if k.startswith(key + '.'))}",
            )
        if "," in value and not value.startswith(("[", "{", "'", '"')) and not is_text(key):
            raise UsageError(f"{text!r} names several values", hint=f"a list is written {key}=[{value}]")


def check_index_types(values: Sequence[str], known: dict[str, Any]) -> None:
    """Engine parameters have no schema of their own, so hold them to the type their file gives them."""
    import yaml

    for text in values:
        key, raw = split_override(text)
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


def _check_loop(cfg: Config, name: str) -> None:
    """What `train` and `distill` share."""
    loop = getattr(cfg, name)
    for key in ("batch_size", "steps", "checkpoint_every", "n_doc"):
        if getattr(loop, key) <= 0:
            raise UsageError(
                f"{name}.{key} must be positive, got {getattr(loop, key)}", hint=f"{name}.{key}=1, or more"
            )
    if any(not 0 <= step <= loop.steps for step in loop.keep):
        there = [step for step in loop.keep if 0 <= step <= loop.steps]
        raise UsageError(
            f"{name}.keep={loop.keep} names a step outside the training, which has {loop.steps}",
            hint=f"{name}.keep={str(there).replace(' ', '')}",
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


def _check_step(cfg: Config) -> None:
    """The step whose model is asked for is one that the training keeps."""
    step, name = cfg.model.step, "distill" if cfg.stage is TrainStage.kd else "train"
    loop = cfg.distill if cfg.stage is TrainStage.kd else cfg.train
    if step is None:
        return
    if cfg.model.source is not Source.trained:
        raise UsageError(
            f"model.step={step} is a step of a training, and model.source={cfg.model.source.value} has none",
            hint="model.source=trained, or model.step=null",
        )
    if step not in (*kept_steps(loop), loop.steps):
        wanted = sorted({*loop.keep, step}) if 0 <= step <= loop.steps else loop.keep
        kept = f"{name}.keep={str(wanted).replace(' ', '')}"
        raise UsageError(
            f"model.step={step} is not kept: {name}.keep={loop.keep}, {name}.steps={loop.steps}",
            hint=f"{kept} keeps it, in a training of its own" if step in wanted else "model.step=null is the last step",
        )


def check_meaning(cfg: Config) -> None:
    """What the types alone cannot say."""
    _check_loop(cfg, "train")
    _check_loop(cfg, "distill")
    _check_step(cfg)
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
        "latency.processes": cfg.latency.processes,
        "encode.shard_documents": cfg.encode.shard_documents,
        "machine.encode_tokens": cfg.machine.encode_tokens,
        "machine.query_batch": cfg.machine.query_batch,
        "machine.threads": cfg.machine.threads,
    }
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise UsageError(f"{key} must be positive, got {value}", hint=f"{key}=1, or more")
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
    if not 0 < cfg.analyze.minutes < math.inf:
        raise UsageError(f"analyze.minutes={cfg.analyze.minutes} must be positive", hint="analyze.minutes=30")
    if any(step < 0 for step in cfg.analyze.steps):
        raise UsageError(f"analyze.steps={cfg.analyze.steps} names a step below 0", hint="analyze.steps=[0,30,60]")
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
            hint="distill.n_ways=2, or more",
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
    if cfg.model.source is Source.vectors and cfg.encode.pool_factor > 1:
        raise UsageError("imported vectors are not encoded, and so not pooled", hint="encode.pool_factor=1")
    if cfg.model.source is Source.vectors and not cfg.retrieve.expansion:
        raise UsageError(
            "retrieve.expansion=false leaves out what the vocabulary ids say is [MASK], and imported vectors have none",
            hint="retrieve.expansion=true, and queries without those vectors",
        )
    if cfg.model.normalize and cfg.model.source is not Source.vectors:
        raise UsageError(
            "model.normalize=true is for imported vectors: a model's are of unit length already",
            hint="leave it out, or model.source=vectors model.vectors=FOLDER",
        )


def explain(error: Exception, values: Sequence[str]) -> UsageError:
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
    for path in sorted(places.config_dir().rglob("*.yaml")):
        if any(line.strip().startswith(f"{last}:") for line in path.read_text("utf-8").splitlines()):
            return f", in configs/{path.relative_to(places.config_dir())}"
    return ""
