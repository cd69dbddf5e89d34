"""Exact search on a torch device against the numpy engine: same rankings, ties included, for every setting.

The device here is the processor, but for the tests marked `gpu`. Vectors of small whole numbers make every product
exact, whatever the order of its additions: then nothing may differ, and ties are everywhere.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import unit_vectors, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrrep.console import DataError
from xtrrep.retrieval import device as scoring
from xtrrep.retrieval import retrieve as retrieving
from xtrrep.retrieval.engines import Place, engine_of, exact_device
from xtrrep.retrieval.engines.exact import Searcher
from xtrrep.retrieval.imputation import imputations
from xtrrep.retrieval.retrieve import Setting, rank_query, retrieve
from xtrrep.store.encode import Store

gpu = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]


def whole_numbers(rng: np.random.Generator, count: int, dim: int, low: int) -> list[np.ndarray]:
    """`count` texts of `low` to 5 vectors of -1, 0 and 1, none of them zero."""
    texts = []
    for _ in range(count):
        rows = rng.integers(-1, 2, size=(int(rng.integers(low, 6)), dim))
        rows[:, 0] = np.where(rows.any(axis=1), rows[:, 0], 1)
        texts.append(rows.astype(np.float16))
    return texts


def plain_store(folder: Path, vectors: Sequence[np.ndarray], shard: int, letter: str = "d") -> Store:
    """As `write_store`, without a manifest and its checks: dozens of them take no time."""
    (folder / letter / "vectors").mkdir(parents=True)
    for number, begin in enumerate(range(0, len(vectors), shard)):
        rows = np.concatenate(vectors[begin : begin + shard]).astype(np.float16)
        np.save(folder / letter / "vectors" / f"{number:05d}.npy", rows)
    ids = [f"{letter}{i}" for i in range(len(vectors))]
    return Store(folder / letter, "made", ids, np.array([len(v) for v in vectors], np.int64))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks smaller than a collection, a batch and k', and no room to keep the store."""
    monkeypatch.setattr(exact_device, "TOKENS", 7)
    monkeypatch.setattr(exact_device, "ROWS", 4)
    monkeypatch.setattr(scoring, "MANY", 1)
    monkeypatch.setattr(exact_device, "room", lambda device: 0)


def same(documents: Store, queries: Store, asked: Sequence[Setting], batch: int, where: str = "cpu") -> None:
    """Both engines give the same ids, scores and counts under every setting."""
    ours = retrieve(exact_device.Searcher(documents, where), documents, queries, asked, batch)
    theirs = retrieve(Searcher(documents), documents, queries, asked, batch)
    for setting in asked:
        assert ours[setting].run == theirs[setting].run, setting
        assert ours[setting].counts == theirs[setting].counts, setting


EVERY = [Setting("colbert", 1)] + [Setting("xtr", 1, imputation=name) for name in imputations.entries()]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    texts=st.integers(1, 30),
    dim=st.integers(1, 6),
    depths=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    top_k=st.integers(1, 40),
    batch=st.integers(1, 5),
    zero=st.booleans(),
    general=st.booleans(),
    cut=st.booleans(),
)
def test_every_setting_ranks_as_numpy_does(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    texts: int,
    dim: int,
    depths: list[int],
    top_k: int,
    batch: int,
    zero: bool,
    general: bool,
    cut: bool,
) -> None:
    """Ties, texts and queries without vectors, k' beyond the tokens, every imputation, on both paths of retrieve."""
    rng, home = np.random.default_rng(seed), tmp_path_factory.mktemp("exact")
    vectors = whole_numbers(rng, texts, dim, 0)
    documents = plain_store(home, [*vectors, np.ones((1, dim))], 4)
    queries = plain_store(home, [*whole_numbers(rng, 4, dim, 0), np.ones((1, dim))], 2, "q")
    asked = [replace(s, k_prime=k, top_k=top_k, zero_missing=zero) for s in EVERY for k in dict.fromkeys(depths)]
    with pytest.MonkeyPatch.context() as patch:
        if general:
            patch.setattr(retrieving, "EXHAUSTIVE_DOCUMENTS", 0)
        if cut:
            patch.setattr(exact_device, "TOKENS", 7)
            patch.setattr(exact_device, "ROWS", 4)
            patch.setattr(scoring, "MANY", 1)
            patch.setattr(exact_device, "room", lambda device: 0)
        same(documents, queries, asked, batch)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k_prime=st.integers(1, 120),
    block=st.sampled_from([5, 20, 1 << 25]),
    many=st.sampled_from([1, 2, 8]),
)
def test_hits_and_maxima_are_those_of_numpy(
    tmp_path_factory: pytest.TempPathFactory, seed: int, k_prime: int, block: int, many: int
) -> None:
    """Position by position: what analyses and explanations read, ties kept by token position on both."""
    rng, home = np.random.default_rng(seed), tmp_path_factory.mktemp("hits")
    documents = plain_store(home, [*whole_numbers(rng, 20, 3, 0), np.ones((1, 3))], 4)
    query = np.concatenate(whole_numbers(rng, 3, 3, 1)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xtrrep.retrieval.engines.exact.BLOCK_VALUES", block)
        patch.setattr(exact_device, "TOKENS", block)
        patch.setattr(scoring, "MANY", many)
        ours, theirs = exact_device.Searcher(documents, "cpu"), Searcher(documents)
        mine, other = ours.search(query, k_prime), theirs.search(query, k_prime)
        np.testing.assert_array_equal(mine.tokens, other.tokens)
        np.testing.assert_array_equal(mine.scores, other.scores)
        np.testing.assert_array_equal(ours.maxima(query, k_prime).documents, theirs.maxima(query, k_prime).documents)
        np.testing.assert_array_equal(ours.maxima(query, k_prime).best, theirs.maxima(query, k_prime).best)
    everything = documents.rows(0, documents.tokens).astype(np.float32) @ query.T
    for row, tokens in enumerate(mine.tokens):
        assert tokens.tolist() == np.argsort(-everything[:, row], kind="stable")[:k_prime].tolist()


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("limit", [0, 50_000])
def test_real_vectors_rank_alike(tmp_path: Path, where: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit vectors of float16: the same documents in the same order, scores to 1e-5."""
    monkeypatch.setattr(retrieving, "EXHAUSTIVE_DOCUMENTS", limit)
    rng = np.random.default_rng(3)
    documents = write_store(tmp_path, unit_vectors(rng, 400, 32, 1, 30), 90)
    queries = write_store(tmp_path, unit_vectors(rng, 12, 32, 4, 9), 5, "queries")
    asked = [replace(s, k_prime=k, rerank=r) for s in EVERY[1:] for k in (1, 50, 3000, 10**5) for r in (None, 20)]
    asked += [replace(EVERY[0], k_prime=k, drop_self=True) for k in (1, 50, 3000, 10**5)]
    ours = retrieve(exact_device.Searcher(documents, where), documents, queries, asked, 5)
    theirs = retrieve(Searcher(documents), documents, queries, asked, 5)
    for setting in asked:
        assert ours[setting].counts == theirs[setting].counts
        for name, ranking in theirs[setting].run.items():
            assert [d for d, _ in ours[setting].run[name]] == [d for d, _ in ranking]
            np.testing.assert_allclose([s for _, s in ours[setting].run[name]], [s for _, s in ranking], rtol=1e-5)


@pytest.mark.parametrize("where", DEVICES)
def test_whole_numbers_are_exact_on_any_device(tmp_path: Path, where: str) -> None:
    rng = np.random.default_rng(11)
    documents = write_store(tmp_path, whole_numbers(rng, 300, 4, 1), 70)
    queries = write_store(tmp_path, whole_numbers(rng, 9, 4, 1), 5, "queries")
    same(documents, queries, [replace(s, k_prime=k) for s in EVERY for k in (3, 64, 10**4)], 4, where)


def test_blocks_and_batches_change_nothing(tmp_path: Path, small_blocks: None) -> None:
    rng = np.random.default_rng(5)
    documents = write_store(tmp_path, whole_numbers(rng, 60, 5, 1), 9)
    queries = write_store(tmp_path, whole_numbers(rng, 7, 5, 1), 3, "queries")
    for batch in (1, 3, 16):
        same(documents, queries, [replace(s, k_prime=40) for s in EVERY], batch)


def test_entries_above_a_floor_are_picked_out_or_the_largest_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    similarities = torch.tensor([[1.0, 5, 2, 5, 0], [3.0, 3, 3, 3, 3], [0.0, -1, 9, 8, 7]])
    positions, floor = torch.arange(10, 15), torch.tensor([[2.0], [3.0], [7.5]])
    whole = scoring.keys(similarities, positions)
    monkeypatch.setattr(scoring, "MANY", 2)
    picked = scoring.above(similarities, positions, floor, 4)
    assert picked.tolist() == [whole[0, [1, 3]].tolist(), [scoring.NEVER] * 2, whole[2, [2, 3]].tolist()]
    monkeypatch.setattr(scoring, "MANY", 8)
    taken = scoring.above(similarities, positions, floor, 4).sort(descending=True).values
    assert taken.tolist() == whole.sort(descending=True).values[:, :4].tolist()


def test_what_comes_as_close_as_rounding_is_a_tie(tmp_path: Path) -> None:
    """Within retrieve.TIE of the k'-th: both are retrieved where all maxima are known, as by the numpy engine."""
    documents = plain_store(tmp_path, [np.array([[0.5, 0]]), np.array([[0.5, 1]]), np.array([[0.4, 0]])], 3)
    query, setting = np.array([[1, 1e-7]], np.float32), Setting("xtr", 1)
    found = [
        rank_query(s, documents, query, setting) for s in (exact_device.Searcher(documents, "cpu"), Searcher(documents))
    ]
    assert found[0] == found[1]
    assert [name for name, _ in found[0]] == ["d1", "d0"]


def test_what_does_not_fit_is_searched_in_larger_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = write_store(tmp_path, unit_vectors(np.random.default_rng(1), 10, 8))
    searcher = exact_device.Searcher(documents, "cpu")
    assert searcher.at_once(16, 32, 1000) == 16
    need = documents.tokens * 8 * 2
    monkeypatch.setattr(exact_device, "room", lambda device: need - 1)
    assert exact_device.Searcher(documents, "cpu").at_once(16, 32, 1000) == 16  # never below what was asked for
    monkeypatch.setattr(exact_device, "room", lambda device: need)
    assert exact_device.Searcher(documents, "cpu")._resident is not None
    searcher = exact_device.Searcher(documents, "cpu")
    monkeypatch.setattr(exact_device, "room", lambda device: 0)
    assert searcher._resident is None
    monkeypatch.setattr(exact_device, "room", lambda device: 10**9)
    assert searcher.at_once(16, 32, 1000) == 10**9 // (32 * (24000 + 40) + 40)


def test_the_device_of_the_machine_chooses(tmp_path: Path) -> None:
    documents = write_store(tmp_path, unit_vectors(np.random.default_rng(1), 10, 8))
    engine = engine_of({"engine": "exact"})
    assert isinstance(engine.load(tmp_path, documents, Place("cpu")), Searcher)
    loaded = engine.load(tmp_path, documents, Place("cuda:1"))
    assert isinstance(loaded, exact_device.Searcher)
    assert loaded.device == "cuda:1"


def test_the_manifest_says_the_device_of_a_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    documents, queries = (write_store(tmp_path, unit_vectors(rng, 5, 8), 3, s) for s in ("documents", "queries"))
    setting = Setting("xtr", 5)
    outcome = retrieve(exact_device.Searcher(documents, "cpu"), documents, queries, [setting], 2)[setting]
    assert outcome.facts(setting)["device"] == "cpu"
    query = queries.vectors(2).astype(np.float32)
    assert rank_query(exact_device.Searcher(documents, "cpu"), documents, query, setting) == outcome.run["q2"]


def test_bad_queries_are_refused(tmp_path: Path) -> None:
    documents = write_store(tmp_path, unit_vectors(np.random.default_rng(1), 5, 8))
    with pytest.raises(DataError, match="not finite"):
        exact_device.Searcher(documents, "cpu").search(np.full((1, 8), np.nan, np.float32), 3)


def test_more_vectors_than_a_key_tells_apart_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = plain_store(tmp_path, unit_vectors(np.random.default_rng(1), 5, 8), 3)
    monkeypatch.setattr(scoring, "LARGEST", documents.tokens - 1)
    with pytest.raises(DataError, match="more than one search on a GPU can number"):
        exact_device.Searcher(documents, "cpu").search(np.ones((1, 8), np.float32), 3)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0]),
            st.integers(0, scoring.LARGEST),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_keys_order_scores_then_numbers_and_give_both_back(pairs: list[tuple[float, int]]) -> None:
    scores = torch.tensor([score for score, _ in pairs], dtype=torch.float32)
    numbers = torch.tensor([number for _, number in pairs])
    packed = scoring.keys(scores, numbers)
    back, values = scoring.unpack(packed)
    assert back.tolist() == numbers.tolist()
    assert values.tolist() == scores.tolist()
    assert (packed > scoring.NEVER).all()
    expected = sorted(pairs, key=lambda pair: (-np.float32(pair[0]), pair[1]))
    found_numbers, found_scores = scoring.unpack(packed.sort(descending=True).values)
    assert list(zip(found_scores.tolist(), found_numbers.tolist(), strict=True)) == expected


def test_products_are_in_full_precision_and_the_setting_returns() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with scoring.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
