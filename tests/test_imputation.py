"""Every registered imputation: by hand, and the properties that must hold of them."""

import numpy as np
import pytest
from conftest import unit_vectors, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrrep.console import DataError
from xtrrep.retrieval.engines.exact import Searcher
from xtrrep.retrieval.imputation import imputations
from xtrrep.retrieval.imputation.mean_and_percentile import percentile
from xtrrep.retrieval.rank import xtr_rank

ALL = tuple(imputations.entries())


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """(T, k') descending, NaN-padded, of any sign."""
    count, width = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = np.sort(rng.normal(draw(st.sampled_from([-1.0, 0.0, 1.0])), 0.5, (count, width)), axis=1)[:, ::-1].copy()
    for i in range(count):
        scores[i, int(rng.integers(0, width + 1)) if draw(st.booleans()) else width :] = np.nan
    return scores.astype(np.float32)


@pytest.mark.parametrize("name", ALL)
def test_a_row_without_hits_imputes_nothing(name: str) -> None:
    scores = np.array([[np.nan, np.nan], [0.5, 0.25]])
    found = imputations[name](scores)
    assert found.dtype == np.float32
    assert found.shape == (2,)
    assert found[0] == 0
    assert imputations[name](np.empty((3, 0))).tolist() == [0, 0, 0]


def test_by_hand() -> None:
    """Scores 0.8, 0.4, 0.2, 0.1 at ranks 1 to 4; then the same with the last slot empty."""
    scores = np.array([[0.8, 0.4, 0.2, 0.1], [0.8, 0.4, 0.2, np.nan]])
    by_hand = {
        "min": [0.1, 0.2],
        "zero": [0.0, 0.0],
        "mean": [1.5 / 4, 1.4 / 3],
        # place 0.1 * 3 from below: 0.1 + 0.3 * 0.1; place 0.1 * 2: 0.2 + 0.2 * 0.2
        "percentile": [0.13, 0.24],
    }
    for name, expected in by_hand.items():
        np.testing.assert_allclose(imputations[name](scores), expected, rtol=1e-6)


def test_power_law_by_hand() -> None:
    """0.8 / r exactly: the law carried on to rank 100 * 4 is 0.8 / 400. Two points fix it; one does not."""
    falls = np.array([[0.8, 0.4, 0.8 / 3, 0.2]])
    np.testing.assert_allclose(imputations["power_law"](falls), [0.8 / 400], rtol=1e-5)
    two = np.array([[0.8, 0.4, -0.1, -0.2]])  # fitted on the positive, kept below the smallest
    np.testing.assert_allclose(imputations["power_law"](two), [-0.2])
    one = np.array([[0.8, -0.4, np.nan, np.nan]])
    np.testing.assert_allclose(imputations["power_law"](one), [-0.4])
    flat = np.array([[0.5, 0.5, 0.5]])
    np.testing.assert_allclose(imputations["power_law"](flat), [0.5], rtol=1e-6)


@settings(max_examples=300, deadline=None)
@given(rows())
def test_bounds(scores: np.ndarray) -> None:
    found = {name: imputations[name](scores) for name in ALL}
    low = found["min"]
    for values in found.values():
        assert values.shape == (len(scores),)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (values <= np.maximum(np.where(np.isnan(scores[:, 0]), 0, scores[:, 0]), 0) + 1e-6).all()
    for name in ALL:  # a row's value depends on that row alone, and its empty slots say nothing
        alone = np.concatenate([imputations[name](row[None]) for row in scores])
        np.testing.assert_array_equal(alone, found[name])
    assert (found["power_law"] <= low).all()
    assert (found["power_law"] >= np.minimum(low, 0)).all()
    assert (found["percentile"] >= low - 1e-6).all()
    assert (found["mean"] >= low - 1e-6).all()
    for row, value, mean in zip(scores, found["percentile"], found["mean"], strict=True):
        hits = row[~np.isnan(row)]
        if len(hits):
            assert value == pytest.approx(np.percentile(hits, 10), abs=1e-5)
            assert mean == pytest.approx(hits.mean(), abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(rows())
def test_the_lowest_percentile_is_min(scores: np.ndarray) -> None:
    np.testing.assert_array_equal(percentile(scores, q=0), imputations["min"](scores))
    best = np.where(np.isnan(scores[:, 0]), 0, scores[:, 0])
    np.testing.assert_array_equal(percentile(scores, q=100), best)


def test_a_percentile_beyond_its_range() -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile(np.ones((1, 2)), q=101)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), k_prime=st.integers(1, 60))
def test_with_exact_search_min_imputation_bounds_maxsim(
    tmp_path_factory: pytest.TempPathFactory, seed: int, k_prime: int
) -> None:
    """Min imputation makes XTR at least MaxSim for every candidate; with all tokens retrieved each is MaxSim."""
    rng = np.random.default_rng(seed)
    vectors = unit_vectors(rng, 12, 8)
    store = write_store(tmp_path_factory.mktemp("store"), vectors)
    query = unit_vectors(rng, 1, 8, 3, 6)[0].astype(np.float32)
    maxsim = np.array([(query @ v.astype(np.float32).T).max(axis=1).sum() for v in vectors])
    hits = Searcher(store).search(query, k_prime)
    found, scores = xtr_rank(store.document_of[hits.tokens], hits.scores, top_k=100)
    assert (scores >= maxsim[found] - 1e-4).all()
    hits = Searcher(store).search(query, store.tokens)
    for name in ALL:
        found, scores = xtr_rank(store.document_of[hits.tokens], hits.scores, imputation=name, top_k=100)
        assert len(found) == len(vectors)
        np.testing.assert_allclose(scores, maxsim[found], atol=1e-4)


def test_an_unknown_imputation() -> None:
    with pytest.raises(DataError, match="powerlaw") as caught:
        imputations["powerlaw"]
    assert "power_law" in str(caught.value.hint)
