"""Building, loading and preparing a `MultiVectorEncoder`.

A backbone gets the study's head: one bias-free linear layer to `dim`, [MASK] expansion that is scored but not
attended, a punctuation skip list on documents, no prefixes, unit vectors. A multi-vector checkpoint (ours, a
sentence-transformers or a PyLate save) is taken as it is.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.config import Model, Precision, Projection, Source
from xtrrep.console import DataError, UsageError
from xtrrep.model import weights

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder


def device_of(name: str) -> str:
    """`auto` becomes `cuda` where there is one, else `cpu`."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise UsageError(f"machine.device={name!r} is no device", hint="auto, cpu, cuda or cuda:1") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise DataError(f"machine.device={name} but torch sees no GPU", hint="machine.device=cpu")
    return name


def processor_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively (without it, bf16 is slower than fp32)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return any(flag in text for flag in ("avx512_bf16", "amx_bf16"))


def resolve_precision(precision: Precision, device: str) -> Precision:
    """`auto` becomes bf16 where it is native, else fp32. fp16 needs a GPU and is fp32 on a CPU."""
    if precision is Precision.fp16 and device == "cpu":
        return Precision.fp32
    if precision is not Precision.auto:
        return precision
    if device == "cpu":
        return Precision.bf16 if processor_has_bf16() else Precision.fp32
    import torch

    return Precision.bf16 if torch.cuda.is_bf16_supported() else Precision.fp16


def is_multi_vector(folder: Path) -> bool:
    """Whether a folder is already a multi-vector model (sentence-transformers, PyLate or Stanford ColBERT)."""
    if (folder / "artifact.metadata").exists():
        return True
    settings = folder / "config_sentence_transformers.json"
    if not settings.exists():
        return False
    try:
        content = json.loads(settings.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{settings} is not JSON ({error})") from None
    return content.get("model_type") in ("MultiVectorEncoder", "ColBERT") or "query_prefix" in content


def quiet() -> None:
    """Keep the libraries' own bars and notices off stderr; our progress and errors say what matters."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def build(cfg: Model, device: str) -> MultiVectorEncoder:
    """An untrained encoder from `cfg.backbone`, with a head initialised from `cfg.seed`.

    A backbone that is already a multi-vector model keeps its own head. Raises DataError where weights are missing.
    """
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    quiet()
    folder = weights.locate(cfg.backbone)
    if folder is not None and is_multi_vector(folder):
        return load(folder, cfg, device)
    options = {} if folder is not None else {"revision": cfg.revision}
    try:
        transformer = Transformer(str(folder or cfg.backbone), model_kwargs=options, processor_kwargs=options)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"cannot load the backbone {cfg.backbone!r}: {str(error).splitlines()[0]}",
            hint="scale=demo needs no hub; a local folder works too: model.backbone=FOLDER",
        ) from None
    if cfg.layers is not None:
        _keep_layers(transformer, cfg.layers)
    head = Dense(
        transformer.get_embedding_dimension(),
        cfg.dim,
        bias=False,
        activation_function=torch.nn.Identity(),
        module_input_name="token_embeddings",
        module_output_name="token_embeddings",
    )
    with torch.no_grad():
        head.linear.weight.copy_(projection(cfg, head.linear.in_features))
    mask = MultiVectorMask(skiplist_words=list(string.punctuation) if cfg.skip_punctuation else [])
    normalize = Normalize(module_input_name="token_embeddings")
    model = MultiVectorEncoder(modules=[transformer, head, mask, normalize], device=device)
    expansion = {"strategy": "fixed", "attend": False, "length": cfg.n_query, "token": None}
    set_lengths(model, cfg.n_query, cfg.n_doc, expansion if cfg.query_expansion else None)
    return model


def projection(cfg: Model, width: int) -> torch.Tensor:
    """The head's initial weight (dim, width), the same on every machine for a seed."""
    import torch

    generator = torch.Generator().manual_seed(cfg.seed)
    weight = torch.empty(cfg.dim, width)
    if cfg.projection is Projection.orthonormal:
        return torch.nn.init.orthogonal_(weight, generator=generator)
    # nn.Linear's own: kaiming_uniform_(a=sqrt(5)) is uniform within 1/sqrt(width).
    return weight.uniform_(-(width**-0.5), width**-0.5, generator=generator)


def _keep_layers(transformer: Any, count: int) -> None:
    backbone = transformer.model
    layers = getattr(getattr(backbone, "encoder", None), "layer", None) or getattr(backbone, "layers", None)
    if layers is None:
        raise DataError(f"cannot cut layers of a {type(backbone).__name__}", hint="model.layers=null")
    if not 1 <= count <= len(layers):
        raise DataError(f"model.layers={count} but {type(backbone).__name__} has {len(layers)}")
    del layers[count:]
    backbone.config.num_hidden_layers = count


def load(folder: str | Path, cfg: Model, device: str) -> MultiVectorEncoder:
    """A multi-vector model as saved: head, prefixes, skip list and expansion are its own; lengths are `cfg`'s."""
    from safetensors import SafetensorError
    from sentence_transformers import MultiVectorEncoder

    quiet()
    try:
        # A folder has no revisions; a hub id is loaded at the one its identity names.
        model = MultiVectorEncoder(str(folder), device=device, revision=None if Path(folder).is_dir() else cfg.revision)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"cannot load the model {folder}: {str(error).splitlines()[0]}",
            hint="is the folder complete? rm -r a trained one to train it again",
        ) from None
    set_lengths(model, cfg.n_query, cfg.n_doc, model[0].query_expansion)
    return model


def get(cfg: Model, trained: Path | None, device: str) -> MultiVectorEncoder:
    """The encoder a config asks for; `trained` is the folder our own training left."""
    if cfg.source is Source.trained:
        if trained is None:
            raise DataError("the trained model has not been made yet", hint="xtrrep train")
        return load(trained, cfg, device)
    if cfg.source is Source.checkpoint:
        name = str(cfg.checkpoint)
        return load(weights.locate(name) or name, cfg, device)
    return build(cfg, device)


def check_length(model: MultiVectorEncoder, name: str, length: int) -> None:
    """Raise UsageError for a length above what the backbone has positions for."""
    limit = model[0].max_seq_length
    if limit and length > limit:
        raise UsageError(f"{name}={length} is above the backbone's limit of {limit} tokens", hint=f"at most {limit}")


def set_lengths(model: MultiVectorEncoder, n_query: int, n_doc: int, expansion: dict[str, Any] | None) -> None:
    """Fix query and document lengths in tokens, and the query expansion, whose length is n_query.

    Under fixed expansion a per-call length is ignored by the library, so the attribute itself is set.
    """
    transformer = model[0]
    check_length(model, "n_query", n_query)
    check_length(model, "n_doc", n_doc)
    transformer.query_expansion = None
    transformer.query_length = n_query
    transformer.document_length = n_doc
    if expansion is not None:
        transformer.query_expansion = {**expansion, "length": n_query}
