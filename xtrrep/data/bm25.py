"""BM25 as a baseline and as a source of hard negatives: bm25s with PyStemmer, Lucene's formula.

k1 = 0.9 and b = 0.4 are Anserini's defaults, which the published BEIR baselines use.

Legend: Q queries, N documents, k results a query.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError, typed

if TYPE_CHECKING:
    import numpy as np

K1, B = 0.9, 0.4
NO_HIT = -1


def tokenize(texts: Iterable[str]) -> list[list[str]]:
    """Lower-cased words of two letters and more, English stop words removed, stemmed (Snowball English)."""
    import bm25s
    import Stemmer

    tokens: list[list[str]] = bm25s.tokenize(
        list(texts),
        stopwords="en",
        stemmer=Stemmer.Stemmer("english"),
        return_ids=False,
        show_progress=False,
    )
    # bm25s stands one empty token in for a text without words, which would count in lengths and match other such texts.
    return [[token for token in row if token] for row in tokens]


@dataclass(frozen=True)
class Bm25:
    """An index over numbered documents."""

    index: Any  # bm25s.BM25

    @classmethod
    def build(cls, texts: Iterable[str], k1: float = K1, b: float = B) -> Bm25:
        """Index documents 0..N-1. Raises DataError where they hold no word at all."""
        import bm25s

        tokens = tokenize(texts)
        if not any(tokens):
            raise DataError(
                "BM25 found no word in the corpus", hint="do its documents have texts? --index exact needs no words"
            )
        index = bm25s.BM25(k1=k1, b=b, method="lucene")
        # Numbered here: bm25s would number words as a set happens to hold them, otherwise in every process.
        vocabulary = {word: number for number, word in enumerate(sorted({word for row in tokens for word in row}))}
        index.index(([[vocabulary[word] for word in row] for row in tokens], vocabulary), show_progress=False)
        return cls(index)

    def search(self, queries: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Document numbers (Q, k) int64 and scores (Q, k) float32, best first, k = min(top_k, N).

        Ties go to the smaller number. Only documents that share a word with the query are results; slots left over
        hold NO_HIT and NaN.
        """
        import numpy as np

        k = min(top_k, self.index.scores["num_docs"])
        numbers = np.full((len(queries), k), NO_HIT, dtype=np.int64)
        scores = np.full((len(queries), k), np.nan, dtype=np.float32)
        for row, tokens in enumerate(tokenize(queries)):
            ids = self.index.get_tokens_ids(tokens)
            if not ids or not k:
                continue
            # bm25s' own retrieve() leaves the order of ties to a partition, hence the selection here.
            all_scores = self.index.get_scores_from_ids(ids)
            worst = np.partition(all_scores, -k)[-k]
            hits = np.flatnonzero((all_scores >= worst) & (all_scores > 0))
            best = hits[np.lexsort((hits, -all_scores[hits]))][:k]
            numbers[row, : len(best)] = best
            scores[row, : len(best)] = all_scores[best]
        return numbers, scores

    def save(self, folder: Path) -> None:
        """Write bm25s' own files into a folder."""
        self.index.save(str(folder), show_progress=False)

    @classmethod
    def load(cls, folder: Path) -> Bm25:
        """Read what `save` wrote. Raises DataError where it is not there."""
        import bm25s

        try:
            return cls(bm25s.BM25.load(str(folder), show_progress=False))
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} holds no BM25 index ({error})", hint=f"rm -r {typed(folder)} and run again"
            ) from None
