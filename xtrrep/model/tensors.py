"""Tensors of a weights file, and a multi-vector model around a transformer and a projection that were read."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError, machine_error

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder


def read(folder: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The named tensors of a folder's `model.safetensors`, or else of its `pytorch_model.bin`, in float32.

    A pickle is read as tensors only, so it cannot run code. Names that are not there are left out. Raises DataError
    where there is no weights file or where it is damaged.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if safe.exists():
            with safe_open(safe, framework="pt", device="cpu") as file:
                kept = set(file.keys())
                return {name: file.get_tensor(name).float() for name in names if name in kept}
        if pickled.exists():
            state = torch.load(pickled, map_location="cpu", weights_only=True)
            return {name: state[name].float() for name in names if name in state}
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        path = safe if safe.exists() else pickled
        raise machine_error(error) or DataError(
            f"{path} cannot be read as tensors: {str(error).splitlines()[0]}", hint="is the download complete?"
        ) from None
    raise DataError(f"{folder} has no model.safetensors and no pytorch_model.bin", hint="is the download complete?")


def backbone(folder: Path, **options: Any) -> Any:
    """The `Transformer` module of a folder, `options` as it takes them.

    Python code in the folder is never run. By itself transformers would ask the terminal whether to run it.
    """
    from sentence_transformers.base.modules import Transformer

    never = {name: {"trust_remote_code": False} for name in ("model_kwargs", "processor_kwargs", "config_kwargs")}
    return Transformer(str(folder), **never, **options)


def assemble(
    transformer: Any,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    device: str,
    *,
    skiplist: Sequence[str],
    prompts: dict[str, str] | None = None,
) -> MultiVectorEncoder:
    """Transformer, projection (`weight`: dim, width), scoring mask, unit vectors: a MultiVectorEncoder, in float32."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    width = transformer.get_embedding_dimension()
    if weight.shape[1] != width:
        raise DataError(
            f"the projection takes {weight.shape[1]} dimensions, the transformer has {width}",
            hint="are both of one model? Fetch the folder again",
        )
    head = Dense(
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        activation_function=torch.nn.Identity(),
        init_weight=weight,
        init_bias=bias,
        module_input_name="token_embeddings",
        module_output_name="token_embeddings",
    )
    mask = MultiVectorMask(skiplist_words=list(skiplist))
    normalize = Normalize(module_input_name="token_embeddings")
    # transformers loads half-precision weights as they are, and the library then rounds the head to match.
    modules = [transformer.float(), head.float(), mask, normalize]
    return MultiVectorEncoder(modules=modules, prompts=prompts, device=device)
