"""XTR as its authors published it (google/xtr-base-en): a T5 encoder, one linear layer in `2_Dense`, unit vectors.

One encoder for both sides, no markers, no [MASK] expansion, no skip list; `</s>` is a token like any other. The text is
lower-cased, which no file of such a folder says: the authors' notebook and XTR-WARP do it in code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError
from xtrrep.model import tensors
from xtrrep.model.layout import dense_of, read_json

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder


def load(folder: Path, device: str) -> MultiVectorEncoder:
    """The checkpoint as a MultiVectorEncoder that lower-cases, here and where it is saved to.

    Raises DataError where there is not exactly one linear layer beside the encoder.
    """

    layers = dense_of(folder)
    if len(layers) != 1:
        names = ", ".join(path.name for path in layers) or "none"
        raise DataError(
            f"{folder} must have one Dense folder beside its T5 encoder, it has {names}",
            hint="is the download complete?",
        )
    activation = str(read_json(layers[0] / "config.json").get("activation_function", "Identity"))
    if not activation.endswith("Identity"):
        raise DataError(f"{layers[0]} applies {activation}; XTR's layer is linear", hint="is it a single-vector model?")
    found = tensors.read(layers[0], ["linear.weight", "linear.bias"])
    if "linear.weight" not in found:
        raise DataError(f"{layers[0]} has no linear.weight", hint="is the download complete?")
    transformer = tensors.backbone(folder, do_lower_case=True)
    _keep_lower_case(transformer)
    return tensors.assemble(transformer, found["linear.weight"], found.get("linear.bias"), device, skiplist=[])


def _keep_lower_case(transformer: Any) -> None:
    """Make the lower-casing survive a save.

    The library lower-cases in the tokenizer's normalizer and does not write the setting down. transformers 5 builds a
    T5Tokenizer anew when it loads one and drops that normalizer; the plain class keeps `tokenizer.json` as it stands.
    """
    from transformers import PreTrainedTokenizerFast

    old = transformer.tokenizer
    transformer.processor = PreTrainedTokenizerFast(
        tokenizer_object=old.backend_tokenizer,
        eos_token=old.eos_token,
        pad_token=old.pad_token,
        unk_token=old.unk_token,
        model_max_length=old.model_max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
