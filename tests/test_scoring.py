"""Aggregation and imputation against naive loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrrep.scoring import aggregate
from xtrrep.scoring.aggregate import top, xtr_rank
from xtrrep.scoring.imputation import imputations
from xtrrep.scoring.maxsim import document_maxima


def naive_xtr(documents: np.ndarray, scores: np.ndarray) -> dict[int, float]:
    """XTR with min imputation, word for word: dictionaries and loops."""
    total: dict[int, float] = {}
    best: list[dict[int, float]] = []
    lowest = []
    for row, row_scores in zip(documents, scores, strict=True):
        found: dict[int, float] = {}
        for d, s in zip(row.tolist(), row_scores.tolist(), strict=True):
            if not np.isnan(s):
                found[d] = max(s, found.get(d, -np.inf))
        best.append(found)
        hits = [s for s in row_scores.tolist() if not np.isnan(s)]
        lowest.append(min(hits) if hits else 0.0)
    for document in {d for found in best for d in found}:
        total[document] = sum(found.get(document, low) for found, low in zip(best, lowest, strict=True))
    return total


@st.composite
def hits(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows, width, size = draw(st.integers(1, 5)), draw(st.integers(1, 12)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grid = draw(st.sampled_from([0.25, 1e-3]))  # a coarse grid makes ties
    scores = np.sort(np.round(rng.normal(size=(rows, width)) / grid) * grid, axis=1)[:, ::-1].astype(np.float32)
    documents = rng.integers(0, size, (rows, width))
    for i in range(rows):
        empty = int(rng.integers(0, width + 1)) if draw(st.booleans()) else 0
        scores[i, width - empty :] = np.nan
        documents[i, width - empty :] = draw(st.sampled_from([0, -1, 10**9]))  # whatever stands in an empty slot
    return documents, scores


@settings(max_examples=300, deadline=None)
@given(hits())
def test_xtr_rank_is_the_naive_loop(pair: tuple[np.ndarray, np.ndarray]) -> None:
    documents, scores = pair
    expected = naive_xtr(documents, scores)
    found, values = xtr_rank(documents, scores, top_k=10**6)
    assert set(found.tolist()) == set(expected)
    for document, value in zip(found.tolist(), values.tolist(), strict=True):
        assert value == pytest.approx(expected[document], abs=1e-5)
    order = sorted(zip((-values).tolist(), found.tolist(), strict=True))
    assert [d for _, d in order] == found.tolist()  # best first, ties by document number


def test_by_hand() -> None:
    """Two query tokens, three documents: 0 hit by both, 1 by the first, 2 by the second."""
    documents = np.array([[0, 1, 0], [2, 0, 2]])
    scores = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]], np.float32)
    found, values = xtr_rank(documents, scores)
    assert found.tolist() == [0, 2, 1]
    np.testing.assert_allclose(values, [0.9 + 0.5, 0.7 + 0.6, 0.8 + 0.4], atol=1e-6)


def test_nothing_retrieved() -> None:
    found, values = xtr_rank(np.zeros((2, 3), int), np.full((2, 3), np.nan, np.float32))
    assert len(found) == len(values) == 0


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=30), st.integers(1, 35))
def test_top_is_a_sort(values: list[float], k: int) -> None:
    numbers = np.arange(len(values)) * 3
    scores = np.array(values, np.float32)
    found, best = top(numbers, scores, k)
    expected = sorted(zip(-scores, numbers, strict=True))[:k]
    assert found.tolist() == [n for _, n in expected]
    assert best.tolist() == [-s for s, _ in expected]


@settings(max_examples=150, deadline=None)
@given(hits(), st.sampled_from(list(imputations.entries())))
def test_grid_and_rows_agree(pair: tuple[np.ndarray, np.ndarray], imputation: str) -> None:
    """The two ways to aggregate, chosen by size, are one: scores, candidates and filled cells."""
    documents, scores = pair
    grid = aggregate.aggregate(documents, scores, imputation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregate, "GRID_CELLS", 0)
        patch.setattr(aggregate, "GRID_CELLS_A_HIT", 0)
        rows = aggregate.aggregate(documents, scores, imputation)
        patch.setattr(aggregate, "LARGEST_DENSE", 0)
        patch.setattr(aggregate, "NUMBERS_A_HIT", 0)
        renumbered = aggregate.aggregate(documents, scores, imputation)
    for other in (rows, renumbered):
        assert other.documents.tolist() == grid.documents.tolist()
        assert other.filled == grid.filled
        np.testing.assert_allclose(other.scores, grid.scores, atol=1e-5)
    pairs = {(t, d) for t, row in enumerate(documents) for d, s in zip(row, scores[t], strict=True) if not np.isnan(s)}
    assert grid.filled == len(pairs)


def test_ragged_lists_and_holes() -> None:
    """Rows of different length, and a NaN before a hit, mean what a padded rectangle means."""
    ragged = xtr_rank([[0, 1, 0], [2]], [[0.9, 0.8, 0.7], [0.6]])
    assert ragged[0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(ragged[1], [0.9 + 0.6, 0.8 + 0.6, 0.7 + 0.6], atol=1e-6)
    padded = xtr_rank(np.array([[0, 1, 0], [2, -5, 99]]), np.array([[0.9, 0.8, 0.7], [0.6, np.nan, np.nan]]))
    holes = xtr_rank(
        np.array([[7, 0, 1, 0], [-1, 2, 4, 4]]),
        np.array([[np.nan, 0.9, 0.8, 0.7], [np.nan, 0.6, np.nan, np.nan]]),
    )
    for other in (padded, holes):
        np.testing.assert_array_equal(other[0], ragged[0])
        np.testing.assert_array_equal(other[1], ragged[1])
    assert xtr_rank([], [])[0].tolist() == []
    assert xtr_rank([[]], [[]])[0].tolist() == []
    big = xtr_rank(np.array([[10**12, 5]]), np.array([[0.9, 0.1]]))  # memory follows the hits, not the numbers
    assert big[0].tolist() == [10**12, 5]


@pytest.mark.parametrize(
    ("documents", "scores", "words", "says"),
    [
        ([[0, 1]], [[0.5]], {}, "same number"),
        (np.zeros((2, 3), int), np.zeros((2, 2)), {}, "must both be"),
        (np.array([[-1]]), np.array([[0.5]]), {}, "document -1"),
        (np.array([[0.5]]), np.array([[0.5]]), {}, "integers"),
        (np.array([[0]]), np.array([[0.5]]), {"top_k": 0}, "top_k"),
    ],
)
def test_hits_that_do_not_fit(documents: object, scores: object, words: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        xtr_rank(documents, scores, **words)  # type: ignore[arg-type]


def test_document_maxima_is_the_naive_loop() -> None:
    rng = np.random.default_rng(0)
    query = rng.normal(size=(5, 8)).astype(np.float32)
    documents = [rng.normal(size=(n, 8)).astype(np.float32) for n in (3, 1, 7, 2)]
    maxima = document_maxima(query @ np.concatenate(documents).T, np.cumsum([0, 3, 1, 7]))
    expected = [[max(float(q @ t) for t in d) for d in documents] for q in query]
    np.testing.assert_allclose(maxima, expected, rtol=1e-5)
