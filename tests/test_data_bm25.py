"""BM25 against the formula written out, its tie rule, and the published score on NFCorpus."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from xtrrep.console import DataError
from xtrrep.data.bm25 import K1, NO_HIT, B, Bm25, tokenize
from xtrrep.data.folder import read_folder

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
TEXTS = [
    "The cat sat on the mat with another cat",
    "Dogs chase cats around gardens",
    "A garden needs water, sun and more water",
    "",
    "Quantum garden gnomes",
    "Dogs chase cats around gardens",
]


def naive(texts: list[str], query: str, k1: float, b: float) -> list[float]:
    """Lucene: the sum of idf tf / (tf + k1 (1 - b + b |d| / mean |d|)), idf = ln(1 + (N - n + 1/2) / (n + 1/2))."""
    documents = [Counter(tokens) for tokens in tokenize(texts)]
    mean = sum(document.total() for document in documents) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for token in tokenize([query])[0]:
            n = sum(token in other for other in documents)
            if not n:
                continue
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            score += idf * document[token] / (document[token] + k1 * (1 - b + b * document.total() / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(K1, B), (1.5, 0.75)])
def test_scores_are_the_formula(k1: float, b: float) -> None:
    queries = ["cats in the garden", "watering a garden with water", "chasing dogs"]
    numbers, scores = Bm25.build(iter(TEXTS), k1, b).search(queries, top_k=len(TEXTS))
    assert (str(numbers.dtype), str(scores.dtype)) == ("int64", "float32")
    for query, row, found in zip(queries, numbers, scores, strict=True):
        expected = naive(TEXTS, query, k1, b)
        order = sorted((n for n in range(len(TEXTS)) if expected[n] > 0), key=lambda n: (-expected[n], n))
        assert row[row != NO_HIT].tolist() == order
        np.testing.assert_allclose(found[row != NO_HIT], [expected[n] for n in order], rtol=1e-5)


def test_first_document_may_be_empty() -> None:
    numbers, _ = Bm25.build(["", "the", "cat", "dog"]).search(["cats", "the"], 2)
    assert numbers.tolist() == [[2, NO_HIT], [NO_HIT, NO_HIT]]


def test_ties_go_to_the_smaller_number_even_at_the_cut() -> None:
    index = Bm25.build(["same words"] * 50 + ["other"])
    numbers, scores = index.search(["words"], 7)
    assert numbers.tolist() == [list(range(7))]
    assert len(set(scores[0].tolist())) == 1


@pytest.mark.parametrize("query", ["", "the of and", "zebra", "!?"])
def test_no_shared_word_means_no_result(query: str) -> None:
    numbers, scores = Bm25.build(TEXTS).search([query, "cat"], 3)
    assert (numbers[0] == NO_HIT).all()
    assert np.isnan(scores[0]).all()
    assert numbers[1, 0] == 0


def test_top_k_is_clipped_to_the_corpus() -> None:
    numbers, _ = Bm25.build(TEXTS).search(["cat"], 1000)
    assert numbers.shape == (1, len(TEXTS))
    assert Bm25.build(TEXTS).search([], 3)[0].shape == (0, 3)


def test_save_and_load(tmp_path: Path) -> None:
    index = Bm25.build(TEXTS)
    index.save(tmp_path / "bm25")
    again = Bm25.load(tmp_path / "bm25")
    for left, right in zip(index.search(["cat garden"], 4), again.search(["cat garden"], 4), strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(DataError, match="holds no BM25 index"):
        Bm25.load(tmp_path / "nowhere")


def test_corpus_without_a_word() -> None:
    for texts in ([], ["", "the"]):
        with pytest.raises(DataError, match="no word"):
            Bm25.build(texts)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared collections are not on this machine")
def test_published_score_on_nfcorpus() -> None:
    collection = read_folder("nfcorpus", SHARED / "nfcorpus", "test")
    ids, texts = zip(*collection.documents(), strict=True)
    numbers, _ = Bm25.build(texts).search(list(collection.queries.values()), 10)
    total = 0.0
    for query_id, row in zip(collection.queries, numbers.tolist(), strict=True):
        grades = collection.qrels[query_id]
        best = sorted(grades.values(), reverse=True)[:10]
        gains = [grades.get(ids[n], 0) if n != NO_HIT else 0 for n in row]
        total += sum(g / math.log2(r + 2) for r, g in enumerate(gains)) / sum(
            g / math.log2(r + 2) for r, g in enumerate(best)
        )
    assert total / len(numbers) == pytest.approx(0.318, abs=0.001)
