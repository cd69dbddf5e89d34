"""xtrrep: experiments with multi-vector (late-interaction) retrieval, ColBERT and XTR side by side.

XTR is the *conteXtualized Token Retriever* (Lee et al., 2023). Open `xtrrep/pipeline.py` first.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("xtrrep")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0.1.0"
