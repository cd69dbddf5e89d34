"""A saved model in PyLate's own layout, which PyLate and sentence-transformers both read.

A save of sentence-transformers 6 names classes that the releases which PyLate is built on do not have. PyLate's layout
lists a transformer and a linear layer, and keeps lengths, expansion and the skiplist as settings of the whole model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from xtrrep.artifacts import write_json
from xtrrep.console import DataError
from xtrrep.model.layout import read_json, read_json_list

KINDS = ["Transformer", "Dense", "MultiVectorMask", "Normalize"]  # of a model that we save, in this order
SETTINGS, MODULES, TRANSFORMER = "config_sentence_transformers.json", "modules.json", "sentence_bert_config.json"
RELEASES = {"sentence_transformers": "5.3.0", "transformers": "5.3.0", "pytorch": "2.11.0"}  # that read such a save


def rewrite(folder: Path) -> None:
    """Turn the save in `folder` into PyLate's layout. Its vectors stay what they are.

    Raises DataError for a save of other modules, and for settings that PyLate has no name for.
    """
    modules = read_json_list(folder / MODULES)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds != KINDS:
        raise DataError(
            f"{folder} has the modules {', '.join(kinds)}", hint="PyLate's layout is for models trained here"
        )
    transformer, settings = read_json(folder / TRANSFORMER), read_json(folder / SETTINGS)
    mask, dense = read_json(folder / modules[2]["path"] / "config.json"), folder / modules[1]["path"]
    expansion = transformer.get("query_expansion")
    if any(settings.get("prompts", {}).values()) or (expansion or {}).get("strategy", "fixed") != "fixed":
        raise DataError(f"{folder} has prompts or an expansion that PyLate does not have", hint="leave out --pylate")
    write_json(folder / SETTINGS, _settings(transformer, expansion, mask))
    write_json(folder / TRANSFORMER, {"max_seq_length": transformer["document_length"], "do_lower_case": False})
    linear = read_json(dense / "config.json")
    kept = {key: linear[key] for key in ("in_features", "out_features", "bias", "activation_function")}
    write_json(dense / "config.json", kept | {"use_residual": False})
    names = {
        modules[0]["path"]: "sentence_transformers.models.Transformer",
        modules[1]["path"]: "pylate.models.Dense.Dense",
    }
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(names.items())]
    write_json(folder / MODULES, listed)
    for module in modules[2:]:
        shutil.rmtree(folder / module["path"])


def _settings(transformer: dict[str, Any], expansion: dict[str, Any] | None, mask: dict[str, Any]) -> dict[str, Any]:
    return {
        "__version__": RELEASES,
        "model_type": "ColBERT",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "",
        "document_prefix": "",
        "query_length": (expansion or {}).get("length") or transformer["query_length"],
        "document_length": transformer["document_length"],
        "attend_to_expansion_tokens": bool((expansion or {}).get("attend", False)),
        "skiplist_words": mask.get("skiplist_words") or [],
        "do_query_expansion": expansion is not None,
    }
