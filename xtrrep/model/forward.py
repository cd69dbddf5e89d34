"""Texts through a `MultiVectorEncoder`: the vectors its own `encode` gives, in batches of nearly equal length.

`encode` sorts by characters, takes a fixed number of texts at a time and tokenises while the model waits. Here texts
are tokenised first, by the model's own `preprocess` (markers, truncation, [MASK] expansion), then put together by
their number of tokens, as many as fit a budget, and the batch goes through the model's modules. A budget keeps every
pass at the size that a processor's caches or a GPU's cores like best, whatever the length of the texts.

B texts of a batch, W tokens of its longest, K vectors kept of it, H dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from xtrrep.config import Precision
from xtrrep.console import DataError

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

CPU_TOKENS, GPU_TOKENS = 2048, 32768  # of a batch, padding included
TOKENISED_AT_ONCE = 256  # texts: what the tokenizer pads in between stays small


def default_budget(device: str) -> int:
    """Tokens of a batch, padding included, where nothing else is asked for."""
    return CPU_TOKENS if device == "cpu" else GPU_TOKENS


@dataclass(frozen=True)
class Cut:
    """How many texts were longer than the model's limit, and what of them is not read."""

    limit: int | None = None  # tokens of a text, special tokens included; None: no limit is known
    texts: int = 0
    lost: int = 0  # tokens beyond the limit
    tokens: int = 0  # of all texts before they were cut


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts laid end to end without padding, and how to pad them."""

    features: dict[
        str, NDArray[Any]
    ]  # name: (tokens,); `input_ids`, `attention_mask` and whatever else the model reads
    widths: NDArray[np.int64]  # (N,) tokens of each text, [MASK] expansion included
    rest: dict[str, Any]  # features that say something of all texts, such as the modality
    pad: dict[str, int]  # what a feature holds where there is no token; 0 if it is not named
    left: bool  # padding stands before the tokens
    cut: Cut

    def __len__(self) -> int:
        return len(self.widths)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(N,) first token of each text."""
        return np.cumsum(self.widths) - self.widths

    def padded(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The features of some texts as a batch, (B, W) each, as wide as the longest of them."""
        widths = self.widths[rows][:, None]
        width = max(1, int(widths.max()))
        column = np.arange(width) - (width - widths if self.left else 0)
        real = (column >= 0) & (column < widths)
        source = (self.offsets[rows][:, None] + column)[real]
        batch = {}
        for name, flat in self.features.items():
            values = np.full(real.shape, self.pad.get(name, 0), flat.dtype)
            values[real] = flat[source]
            batch[name] = torch.from_numpy(values)
        return batch


def tokenise(model: MultiVectorEncoder, texts: Sequence[str], task: str) -> Tokens:
    """What the model's own `encode` would feed to its modules, without the padding.

    Raises DataError for a model whose batches are not rows of tokens.
    """
    # `encode` resolves the default prompt and no other; a checkpoint's markers come with its preprocess.
    prompt = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
    limit = limit_of(model, task)
    real: list[NDArray[np.int64]] = []  # tokens of each text, without expansion
    parts: list[dict[str, NDArray[Any]]] = []
    widths = [np.empty(0, np.int64)]
    rest: dict[str, Any] = {}
    for start in range(0, len(texts), TOKENISED_AT_ONCE):
        features = model.preprocess(list(texts[start : start + TOKENISED_AT_ONCE]), prompt=prompt, task=task)
        if "attention_mask" not in features or "cu_seq_lens_q" in features:
            raise DataError(
                "this model's batches are not rows of padded tokens", hint="model[0].unpad_inputs = False, if it has it"
            )
        used = features["attention_mask"].numpy() > 0
        expanded = features.get("query_expansion_positions")
        real.append((used if expanded is None else used & ~expanded.numpy()).sum(axis=1))
        if expanded is not None:  # scored, whether attended or not
            used = used | expanded.numpy()
        rows = {k: v.numpy() for k, v in features.items() if isinstance(v, torch.Tensor) and v.shape == used.shape}
        parts.append({name: values[used] for name, values in rows.items()})
        widths.append(used.sum(axis=1))
        rest = {name: value for name, value in features.items() if name not in rows}
    tokenizer = model.tokenizer
    return Tokens(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {},
        np.concatenate(widths),
        rest,
        {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)},
        tokenizer.padding_side == "left",
        _cut(model, texts, np.concatenate(real) if real else np.empty(0, np.int64), limit, task),
    )


def limit_of(model: MultiVectorEncoder, task: str) -> int | None:
    """The most tokens that the model reads of a text, special tokens included; None where it has no such setting."""
    transformer: Any = model[0]
    expansion = getattr(transformer, "query_expansion", None)
    if task == "query" and expansion and expansion.get("strategy") == "fixed":
        return int(expansion["length"])
    limit = getattr(transformer, f"{task}_length", None)
    return None if limit is None else int(limit)


def _cut(model: MultiVectorEncoder, texts: Sequence[str], real: NDArray[np.int64], limit: int | None, task: str) -> Cut:
    """What was cut of texts of which `real` (N,) tokens are left. Those that reach the limit are read once more."""
    total = int(real.sum())
    if limit is None:
        return Cut(tokens=total)
    at_limit = np.flatnonzero(real >= limit)
    whole = _lengths(model, [texts[row] for row in at_limit.tolist()], task)
    lost = np.maximum(whole - real[at_limit], 0)
    return Cut(limit, int((lost > 0).sum()), int(lost.sum()), total + int(lost.sum()))


def _lengths(model: MultiVectorEncoder, texts: Sequence[str], task: str) -> NDArray[np.int64]:
    """(N,) tokens of each text with nothing cut; the model's own tokenizer keeps its settings."""
    if not texts:
        return np.empty(0, np.int64)
    marker = model.prompts.get(task) or ""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        ids = model.tokenizer([marker + text for text in texts], truncation=False, padding=False)["input_ids"]
        return np.array([len(row) for row in ids], np.int64)
    from tokenizers import Tokenizer

    free = Tokenizer.from_str(backend.to_str())
    free.no_truncation()
    free.no_padding()
    return np.array([len(found.ids) for found in free.encode_batch([marker + text for text in texts])], np.int64)


def batches(widths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Texts put together by length, longest first: rows x widest row <= budget, and at least one row each.

    Longest first, so that memory runs out at once or never. The widths alone decide.
    """
    order = np.argsort(-widths, kind="stable")
    found, start = [], 0
    while start < len(order):
        size = max(1, budget // max(1, int(widths[order[start]])))
        found.append(order[start : start + size])
        start += size
    return found


@dataclass(frozen=True)
class Batch:
    """A batch on its way back from the model. `fetch` waits for it."""

    rows: NDArray[np.int64]  # (B,) which texts
    ids: NDArray[np.int32] | None  # (B, W) vocabulary ids; None where the model itself pools tokens
    mask: torch.Tensor  # (B, W) which vectors are kept
    units: torch.Tensor  # (B, W, H) unit vectors
    wait: Callable[[], None]

    def fetch(self) -> Iterator[tuple[int, torch.Tensor, NDArray[np.int32]]]:
        """(text, its vectors, their vocabulary ids or -1) one after the other."""
        self.wait()
        kept = self.units[self.mask]  # (K, H)
        ids = np.full(len(kept), -1, np.int32) if self.ids is None else self.ids[self.mask.numpy()]
        ends = np.cumsum(self.mask.sum(dim=1).numpy())
        for row, start, end in zip(self.rows, np.concatenate([[0], ends[:-1]]), ends, strict=True):
            yield int(row), kept[start:end], ids[start:end]


def launch(model: MultiVectorEncoder, tokens: Tokens, rows: NDArray[np.int64], task: str, dtype: torch.dtype) -> Batch:
    """Send some texts through the model's modules; on a GPU, return before it is done. Call it inside `inference`."""
    from sentence_transformers.multi_vector_encoder.modules import BaseTokenPooling

    features: dict[str, Any] = dict(tokens.padded(rows))
    pools = any(isinstance(module, BaseTokenPooling) and module.applies_to(task) for module in model)
    ids = None if pools else features["input_ids"].numpy().astype(np.int32)
    device = torch.device(model.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        features = {name: value.pin_memory() for name, value in features.items()}
    features = {name: value.to(device, non_blocking=on_gpu) for name, value in features.items()}
    out = model({**features, **tokens.rest}, task=task)
    # Under autocast the vectors come out a little off unit length: normalise once more in float32.
    units = torch.nn.functional.normalize(out["token_embeddings"].float(), dim=-1).to(dtype)
    mask = out["attention_mask"].bool()
    back = [value.to("cpu", non_blocking=on_gpu) for value in (mask, units)]
    return Batch(rows, ids, back[0], back[1], _recorded(device) if on_gpu else lambda: None)


def _recorded(device: torch.device) -> Callable[[], None]:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


@contextmanager
def inference(model: MultiVectorEncoder, precision: Precision, device: str) -> Iterator[None]:
    """No gradients, the precision asked for, and the fastest float32 product of this processor.

    One context for many batches: autocast then casts the weights once.
    torch.compile is no part of it: on a CPU two layers of MiniLM take half a minute to compile, and are then 1.04 times
    as fast in bf16 and slower in float32, where oneDNN's products do more.
    """
    model.eval()
    with torch.inference_mode(), arithmetic(precision, device):
        yield


@contextmanager
def arithmetic(precision: Precision, device: str) -> Iterator[None]:
    """Autocast to the precision asked for, or float32 by the faster of two libraries."""
    dtype = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}.get(precision)
    with ExitStack() as stack:
        if dtype is not None:
            stack.enter_context(torch.autocast(device.split(":")[0], dtype=dtype))
        elif device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512":
            stack.enter_context(_OneDNN())
        yield


class _OneDNN(TorchFunctionMode):
    """float32 linear layers by oneDNN.

    torch gives them to MKL, which uses half the vector width of an AMD processor: 105 against 240 GFLOP/s on a core of
    Zen 5. The sums are the same but for their order.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and not kwargs:
            values, weight, bias = args if len(args) == 3 else (*args, None)
            if values.dtype == weight.dtype == torch.float32 and values.device.type == "cpu" and weight.is_contiguous():
                return torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))
