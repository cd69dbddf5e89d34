"""Building, loading and preparing a `MultiVectorEncoder`.

A backbone gets the study's head: one bias-free linear layer to `dim`, [MASK] expansion that is scored but not
attended, a punctuation skip list on documents, no prefixes, unit vectors. A multi-vector checkpoint (ours, a
sentence-transformers or PyLate save, Stanford's ColBERT, Google's XTR) is taken as it is.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.config import Model, Projection, Source
from xtrrep.console import DataError, UsageError, machine_error, say
from xtrrep.model import hub, stanford, t5, tensors
from xtrrep.model.layout import Layout, is_multi_vector, layout_of

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder


LengthKeys = tuple[str, str]  # the keys that the lengths of queries and documents are from
LENGTHS: LengthKeys = ("model.n_query", "model.n_doc")


def device_of(name: str) -> str:
    """`auto` becomes `cuda` where there is one, else `cpu`."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise UsageError(f"machine.device={name!r} is not a device", hint="auto, cpu, cuda or cuda:1") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise DataError(f"machine.device={name} but torch sees no GPU", hint="machine.device=cpu")
    return name


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's own threads set to `count` for the length of a block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quiet() -> None:
    """Keep the libraries' own bars and notices off stderr; our progress and errors say what matters."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def quietly() -> Iterator[None]:
    """As `quiet`, and as it was before at the end of the block: for a process that is not ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    quiet()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def build(cfg: Model, device: str, lengths: LengthKeys = LENGTHS) -> MultiVectorEncoder:
    """An untrained encoder from `cfg.backbone`, with a head initialised from `cfg.seed`.

    A backbone that is already a multi-vector model keeps its own head. `lengths` are the keys that the two lengths are
    from, for an error's hint. Raises DataError where weights are missing, or where the tokenizer does not fit them, and
    UsageError for a length above what the backbone has positions for.
    """
    quiet()
    folder = hub.folder_of(cfg.backbone, cfg.revision)
    if is_multi_vector(folder):
        return load(folder, cfg, device, lengths)
    try:
        transformer = tensors.backbone(folder)
    except (OSError, ValueError, KeyError) as error:
        raise machine_error(error) or DataError(
            f"cannot load the backbone {cfg.backbone!r}: {_first_line(error)}",
            hint="is the folder complete? model.backbone=FOLDER names another",
        ) from None
    if cfg.layers is not None:
        _keep_layers(transformer, cfg.layers)
    weight = projection(cfg, transformer.get_embedding_dimension())
    skiplist = list(string.punctuation) if cfg.skip_punctuation else []
    model = tensors.assemble(transformer, weight, None, device, skiplist=skiplist)
    expansion = {"strategy": "fixed", "attend": False, "length": cfg.n_query, "token": None}
    _fit_tokenizer(model, cfg.backbone, cfg.query_expansion, "model.query_expansion=false expands no queries")
    set_lengths(model, cfg.n_query, cfg.n_doc, expansion if cfg.query_expansion else None, lengths)
    return model


def _fit_tokenizer(model: MultiVectorEncoder, name: str, expands: bool, hint: str) -> None:
    """Give a tokenizer without a padding token its end-of-text token for that, and check it against the weights.

    Padding is never attended to, so any token will do. Raises DataError where there is no such token, no token to
    expand queries with, and for ids beyond the rows of the embedding.
    """
    tokenizer: Any = model.tokenizer
    end = tokenizer.eos_token
    if tokenizer.pad_token is None:
        if end is None:
            raise DataError(
                f"the tokenizer of {name} has no padding token and no end-of-text token",
                hint="tokenizer.add_special_tokens({'pad_token': '[PAD]'}), resize the embedding, and save both",
            )
        say(f"  note: the tokenizer of {name} has no padding token: {end!r} is used, which nothing attends to")
        tokenizer.pad_token = end
    if expands and tokenizer.mask_token is None:
        if end is None:
            raise DataError(f"the tokenizer of {name} has no [MASK] token to expand queries with", hint=hint)
        say(f"  note: the tokenizer of {name} has no [MASK] token: queries are expanded with {end!r}")
    rows = model[0].model.get_input_embeddings().weight.shape[0]
    words = max(tokenizer.get_vocab().values(), default=-1) + 1
    if words > rows:
        raise DataError(
            f"the tokenizer of {name} has {words:,} tokens, but the model has embeddings for only {rows:,} of them",
            hint="call model.resize_token_embeddings(len(tokenizer)) in Python, and save the model again",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def projection(cfg: Model, width: int) -> torch.Tensor:
    """The head's initial weight (dim, width), the same for a seed whatever the number of threads."""
    import torch

    generator = torch.Generator().manual_seed(cfg.seed)
    weight = torch.empty(cfg.dim, width)
    if cfg.projection is Projection.orthonormal:
        with torch_threads(1):  # on several its QR adds up in another order, which half precision makes visible
            return torch.nn.init.orthogonal_(weight, generator=generator)
    # nn.Linear's own: kaiming_uniform_(a=sqrt(5)) is uniform within 1/sqrt(width).
    return weight.uniform_(-(width**-0.5), width**-0.5, generator=generator)


def _keep_layers(transformer: Any, count: int) -> None:
    backbone = transformer.model
    layers = getattr(getattr(backbone, "encoder", None), "layer", None) or getattr(backbone, "layers", None)
    if layers is None:
        raise DataError(f"cannot cut layers of a {type(backbone).__name__}", hint="model.layers=null")
    if not 1 <= count <= len(layers):
        raise DataError(
            f"model.layers={count}, but the {type(backbone).__name__} has {len(layers)} layers",
            hint=f"from 1 to {len(layers)}, or null for all",
        )
    del layers[count:]
    backbone.config.num_hidden_layers = count


def load(name: str | Path, cfg: Model, device: str, lengths: LengthKeys = LENGTHS) -> MultiVectorEncoder:
    """A multi-vector model as saved: head, prefixes, skip list and expansion are its own; lengths are `cfg`'s.

    `name` is a folder, a short name or a hub id. The weights are float32, whatever they were stored in. Raises
    DataError where there is nothing to read, or no multi-vector head in it, and as `build`.
    """
    from pickle import UnpicklingError  # torch's, for a pickle that holds more than tensors

    from safetensors import SafetensorError

    quiet()
    folder = hub.folder_of(name, cfg.revision)
    if not any((folder / file).exists() for file in ("config.json", "modules.json")):
        raise DataError(f"{name} holds no model: it has no config.json", hint="model.checkpoint=FOLDER that holds one")
    layout = layout_of(folder)
    if layout is Layout.backbone:  # the library would put a random head on it, without an error
        raise DataError(
            f"{name} has no multi-vector head",
            hint=f"model.source=untrained model.backbone={name} starts from it with a new one",
        )
    read = {Layout.stanford: stanford.load, Layout.xtr_t5: t5.load}.get(layout, _load_saved)
    try:
        model = read(folder, device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, UnpicklingError) as error:
        raise machine_error(error) or DataError(
            f"cannot load the model {name}: {_first_line(error)}",
            hint="is the folder complete? rm -r a trained one to train it again",
        ) from None
    transformer = model[0]
    if any(model.prompts.values()):
        transformer.preprocess = partial(_preprocess_with_marker, transformer, dict(model.prompts))
    expansion = transformer.query_expansion
    expands = expansion is not None and expansion.get("token") is None
    _fit_tokenizer(model, str(name), expands, "give its tokenizer a mask_token that has a row, and save it again")
    set_lengths(model, cfg.n_query, cfg.n_doc, expansion, lengths)
    return model


def _preprocess_with_marker(
    transformer: Any, markers: dict[str, str | None], inputs: Any, prompt: str | None = None, **kwargs: Any
) -> Any:
    """Put the checkpoint's marker, such as "[Q] ", in front of each text of a task, whoever asks.

    The library keeps markers as prompts and adds them in encode_query and encode_document only: encode(task="query"),
    the trainer and its losses leave them out without a word. A prompt that is given wins, so none is added twice.
    """
    prompt = prompt or markers.get(kwargs.get("task") or "")
    return type(transformer).preprocess(transformer, inputs, prompt=prompt, **kwargs)


def _load_saved(folder: Path, device: str) -> MultiVectorEncoder:
    import torch
    from sentence_transformers import MultiVectorEncoder

    # As they are stored, half-precision weights would make the library round the head to match.
    return MultiVectorEncoder(str(folder), device=device, model_kwargs={"dtype": torch.float32})


def get(cfg: Model, trained: Path | None, device: str, lengths: LengthKeys = LENGTHS) -> MultiVectorEncoder:
    """The encoder a config asks for; `trained` is the folder our own training left. Raises as `build` and `load`."""
    if cfg.source is Source.trained:
        if trained is None:
            raise DataError("the trained model has not been made yet", hint="xtrrep train")
        return load(trained, cfg, device, lengths)
    if cfg.source in (Source.checkpoint, Source.released):
        if cfg.checkpoint is None:  # released: the caller puts the study's name there, released.released_ids
            raise UsageError(f"model.source={cfg.source.value} without a name", hint="model.checkpoint=FOLDER")
        return load(cfg.checkpoint, cfg, device, lengths)
    return build(cfg, device, lengths)


def position_limit(transformer: Any) -> int | None:
    """How many tokens the backbone has positions for; None where they are relative, as in T5.

    Not the tokenizer's maximum: a PyLate save has the length of the last text it tokenized there, one marker short.
    """
    limit = getattr(transformer.config, "max_position_embeddings", None)
    if not limit or limit < 0:
        return None
    for module in transformer.model.modules():
        table = getattr(module, "position_embeddings", None)
        first = getattr(module, "padding_idx", None)
        if isinstance(first, int) and hasattr(table, "num_embeddings"):
            return int(limit) - first - 1  # RoBERTa and MPNet start counting after the padding index
    return int(limit)


def check_length(model: MultiVectorEncoder, name: str, length: int) -> None:
    """Raise UsageError for a length, the value of the key `name`, above what the backbone has positions for."""
    limit = position_limit(model[0])
    if limit is not None and length > limit:
        raise UsageError(
            f"{name}={length} is too long: the backbone reads {limit} tokens at most",
            hint=f"{name}={limit} is the most that this backbone reads",
        )


def set_lengths(
    model: MultiVectorEncoder,
    n_query: int,
    n_doc: int,
    expansion: dict[str, Any] | None,
    lengths: LengthKeys = LENGTHS,
) -> None:
    """Fix query and document lengths in tokens, and the query expansion, whose length is n_query.

    Under fixed expansion a per-call length is ignored by the library, so the attribute itself is set.
    """
    transformer = model[0]
    check_length(model, lengths[0], n_query)
    check_length(model, lengths[1], n_doc)
    transformer.query_expansion = None
    transformer.query_length = n_query
    transformer.document_length = n_doc
    if expansion is not None:
        transformer.query_expansion = {**expansion, "length": n_query}
