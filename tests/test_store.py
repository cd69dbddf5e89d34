"""The embedding store: what it hands out against a plain array, and how little of it is in memory meanwhile."""

import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import unit_vectors, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrrep.retrieval import maxsim, retrieve
from xtrrep.retrieval.engines import check_store, exact
from xtrrep.retrieval.retrieve import Setting
from xtrrep.store import encode
from xtrrep.store.encode import Store

DIM = 16


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, np.ndarray, np.ndarray]:
    """A store with empty documents and a whole shard of them; its vectors and vocabulary ids as plain arrays."""
    rng = np.random.default_rng(3)
    documents = unit_vectors(rng, 40, DIM, low=0)
    documents[7:14] = [documents[0][:0]] * 7  # the second of the shards of seven
    ids = [rng.integers(1000, size=len(document)).tolist() for document in documents]
    store = write_store(tmp_path_factory.mktemp("ragged"), documents, ids=ids)
    return store, np.concatenate(documents), np.concatenate(ids)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tokens_are_those_of_the_whole(ragged: tuple[Store, np.ndarray, np.ndarray], data: st.DataObject) -> None:
    store, vectors, ids = ragged
    tokens = np.array(data.draw(st.lists(st.integers(0, store.tokens - 1), max_size=30)), np.int64)
    np.testing.assert_array_equal(store.take(tokens), vectors[tokens].astype(np.float32))
    np.testing.assert_array_equal(store.vocabulary_ids(tokens), ids[tokens])
    square = tokens[: len(tokens) // 2 * 2].reshape(2, -1)
    np.testing.assert_array_equal(store.vocabulary_ids(square), ids[square])
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, store.tokens)] * 2)))
    np.testing.assert_array_equal(store.rows(start, stop), vectors[start:stop])


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("resident", [0, encode.RESIDENT_BYTES])
def test_a_pass_over_the_store_is_all_of_it_in_order(
    ragged: tuple[Store, np.ndarray, np.ndarray], size: int, resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "RESIDENT_BYTES", resident)
    vectors, store = ragged[1], Store.open(ragged[0].folder)
    for passes in (store.pieces(size), store.blocks(size)):
        end = 0
        for start, rows in passes:
            assert start == end
            assert 0 < len(rows) <= size
            np.testing.assert_array_equal(rows, vectors[start : start + len(rows)])
            end += len(rows)
        assert end == store.tokens
    np.testing.assert_array_equal(store.widened(), vectors.astype(np.float32))


def test_numbers_are_of_the_documents_asked_for(ragged: tuple[Store, np.ndarray, np.ndarray]) -> None:
    assert ragged[0].numbers({"d3", "d39", "nobody"}) == {"d3": 3, "d39": 39}


# --- memory --------------------------------------------------------------------------------------------------------

SHARD = 64  # documents
LENGTH = 64  # tokens each: a shard has 64 x 64 x 128 x 2 bytes, 1 MiB


@pytest.fixture
def streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Store]:
    """A store of so many shards of 1 MiB that is not held in memory, whatever its size."""
    monkeypatch.setattr(encode, "RESIDENT_BYTES", 0)
    for module in (exact, maxsim):
        monkeypatch.setattr(module, "BLOCK_VALUES", 1 << 15)
    shard = np.random.default_rng(0).normal(size=(SHARD, LENGTH, 128)).astype(np.float16)

    def make(shards: int) -> Store:
        return write_store(tmp_path / str(shards), list(shard) * shards, shard=SHARD)

    return make


def peak(work: Callable[[], object]) -> int:
    """The most bytes allocated at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def resident_pages(store: Store) -> int:
    """Bytes of the store's vector files that are mapped into this process and present."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            here = line.endswith(".npy") and str(store.folder / "vectors") in line
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_a_search_of_a_larger_store_holds_no_more(streamed: Callable[[int], Store]) -> None:
    """Four times the vectors, 36 MiB more of them in float32: what grows is what is kept of each document."""
    queries = np.random.default_rng(1).normal(size=(8, 128)).astype(np.float32)
    settings = [Setting("xtr", 100), Setting("colbert", 100)]

    def work(store: Store, asked: Store) -> None:
        check_store(store)
        searcher = exact.Searcher(store)
        searcher.search(queries, 100)
        retrieve.retrieve(searcher, store, asked, settings, 2)

    peaks = []
    for shards in (6, 24):
        store = streamed(shards)
        asked = write_store(store.folder.parent, [queries[:4], queries[4:]], stage="queries")
        work(store, asked)  # what the first call of anything leaves behind
        peaks.append(peak(lambda store=store, asked=asked: work(store, asked)))
    documents = 18 * SHARD
    # Document maxima of eight query tokens, offsets, lengths and ids: well below 100 bytes a document, not 32,768.
    assert peaks[1] - peaks[0] < 100 * documents + (1 << 18)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/smaps says what is resident")
def test_pages_that_were_read_do_not_stay(streamed: Callable[[int], Store]) -> None:
    store = streamed(12)
    most = 0
    for _, rows in store.pieces(1000):
        rows.sum()
        most = max(most, resident_pages(store))
    shard = SHARD * LENGTH * 128 * 2
    assert shard // 2 < most < 2 * shard  # of twelve
    assert resident_pages(store) < shard // 2
    store.take(np.arange(0, store.tokens, 8))
    assert resident_pages(store) > 6 * shard
    store.release()
    assert resident_pages(store) < shard // 2
