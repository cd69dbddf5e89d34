"""xtrrep: experiments with multi-vector (late-interaction) retrieval, ColBERT and XTR side by side.

XTR is the *conteXtualized Token Retriever* (Lee et al., 2023). Open `xtrrep/pipeline/` first. `xtrrep/api.py` holds
what is for use from Python, and is imported when first asked for.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("xtrrep")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0.1.0"

# Not the names of modules: `import xtrrep.store.encode` would put the module in their place.
_API = frozenset(
    [
        "Index",
        "Result",
        "build_index",
        "change_documents",
        "encode_texts",
        "evaluate_run",
        "load_model",
        "run_config",
        "search",
        "store_vectors",
    ]
)


def __getattr__(name: str) -> Any:
    if name in _API:
        from xtrrep import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
