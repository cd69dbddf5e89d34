"""Stanford ColBERT checkpoints (colbert-ir/colbertv2.0 and its kin), after ColBERT's own query and doc tokenizers.

`[CLS] marker tokens [SEP]`: the marker is a token put in at position 1, [unused0] for queries and [unused1] for
documents; lengths count it. Queries are filled up with [MASK], scored always, attended only where the metadata says so.
sentence-transformers reads such a folder too, but only where config.json says HF_ColBERT: any other spelling gets a
random head without an error, and a marker that the vocabulary lacks is quietly split into pieces.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

from xtrrep.console import DataError
from xtrrep.model import tensors
from xtrrep.model.layout import read_json

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder


def load(folder: Path, device: str) -> MultiVectorEncoder:
    """The checkpoint as a MultiVectorEncoder, with the lengths, markers and masks of its metadata.

    Raises DataError where `linear.weight` is not in the weights file or a marker is not in the vocabulary.
    """
    from tokenizers import AddedToken

    metadata = read_json(folder / "artifact.metadata")
    found = tensors.read(folder, ["linear.weight"])
    if "linear.weight" not in found:
        raise DataError(
            f"{folder} looks like a Stanford ColBERT checkpoint, but its weights have no linear.weight",
            hint="is it a checkpoint of ColBERT, or only its backbone?",
        )
    transformer = tensors.backbone(folder)
    markers = {
        "query": metadata.get("query_token_id") or "[unused0]",
        "document": metadata.get("doc_token_id") or "[unused1]",
    }
    tokenizer = transformer.tokenizer
    missing = [marker for marker in markers.values() if marker not in tokenizer.get_vocab()]
    if missing:
        raise DataError(f"{folder}: the vocabulary has no marker {', '.join(missing)}", hint="is it complete?")
    # As a special token a marker at the front of the text is one token at position 1, as Stanford's code puts it in.
    special = [AddedToken(marker, normalized=False, special=True) for marker in markers.values()]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    transformer.document_length = metadata.get("doc_maxlen")
    transformer.query_expansion = {
        "strategy": "fixed",
        "attend": bool(metadata.get("attend_to_mask_tokens")),
        "length": metadata.get("query_maxlen") or 32,
        "token": None,
    }
    return tensors.assemble(
        transformer,
        found["linear.weight"],
        None,
        device,
        # ColBERTConfig's own default is True.
        skiplist=list(string.punctuation) if metadata.get("mask_punctuation", True) else [],
        prompts={role: f"{marker} " for role, marker in markers.items()},
    )
