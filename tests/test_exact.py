"""Exact token search in blocks against a sort of everything, where many similarities are equal."""

import numpy as np
import pytest
from conftest import write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrrep.retrieval.engines import exact
from xtrrep.store import encode
from xtrrep.store.encode import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """300 tokens of small whole numbers, exact in float16, so that similarities are exact and tie often."""
    rng = np.random.default_rng(5)
    documents = [rng.integers(-2, 3, size=(int(rng.integers(1, 9)), 8)).astype(float) for _ in range(70)]
    for document in documents:
        document[~document.any(axis=1)] = 1
    return write_store(tmp_path_factory.mktemp("exact"), documents, shard=9)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 5),
    k_prime=st.integers(1, 400),
    block=st.integers(1, 80),
    many=st.integers(1, 20),
    resident=st.booleans(),
)
def test_blocks_of_any_size_find_what_a_sort_finds(
    store: Store, seed: int, count: int, k_prime: int, block: int, many: int, resident: bool
) -> None:
    rng = np.random.default_rng(seed)
    queries = rng.integers(1, 4, size=(count, store.dim)).astype(np.float32)
    if seed % 2:
        queries += rng.random((count, store.dim), np.float32)  # no ties
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "RESIDENT_BYTES", 1 << 30 if resident else 0)
        patch.setattr(exact, "BLOCK_VALUES", block * count)
        patch.setattr(exact, "MANY", many)
        opened = Store(store.folder, store.fingerprint, store.ids, store.lengths)
        hits = exact.Searcher(opened).search(queries, k_prime)
    similarities = queries @ store.widened().T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k_prime]
    np.testing.assert_allclose(hits.scores, np.take_along_axis(similarities, order, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(similarities, hits.tokens, axis=1), hits.scores, rtol=1e-5, atol=1e-5)
    for tokens, scores in zip(hits.tokens, hits.scores, strict=True):
        assert len(set(tokens)) == len(tokens) == min(k_prime, store.tokens)
        tied = scores[1:] == scores[:-1]
        assert (tokens[1:][tied] > tokens[:-1][tied]).all()
