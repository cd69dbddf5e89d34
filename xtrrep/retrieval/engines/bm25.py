"""BM25 over words, the reference row beside every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtrrep.console import UsageError
from xtrrep.data.bm25 import Bm25
from xtrrep.retrieval.engines import Place, TextEngine, engines


@engines.register(
    "bm25",
    "words, no model: the reference row",
    paper="Robertson and Zaragoza 2009",
    requires="bm25s",
    install="pip install bm25s",
)
@dataclass(frozen=True)
class Bm25Engine(TextEngine):
    scoring = "bm25"

    k1: float  # how soon a repeated word stops counting more
    b: float  # how much the length of a document counts, from 0 to 1

    def __post_init__(self) -> None:
        if self.k1 <= 0 or not 0 <= self.b <= 1:
            raise UsageError(
                f"index.k1={self.k1} or index.b={self.b} is out of range", hint="k1 above 0, b between 0 and 1"
            )

    def build(self, texts: Sequence[str], out: Path, place: Place) -> dict[str, Any]:
        Bm25.build(texts, self.k1, self.b).save(out)
        return {"units": {"documents": len(texts)}}

    def load(self, folder: Path, place: Place) -> Bm25:
        return Bm25.load(folder)
