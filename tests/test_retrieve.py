"""Engines and retrieval against naive loops over the same vectors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import unit_vectors, write_store

from xtrrep.console import DataError
from xtrrep.measure.run_file import separate
from xtrrep.retrieval.engines import Hits, Place, engine_of
from xtrrep.retrieval.engines import exact as exact_engine
from xtrrep.retrieval.engines.exact import Searcher
from xtrrep.retrieval.retrieve import Setting, rank_query, retrieve
from xtrrep.store.encode import Store

DIM = 16


@dataclass(frozen=True)
class HitsOnly:
    """The exact engine with only its token hits visible, to force the general path."""

    inner: Searcher

    def search(self, queries: np.ndarray, k_prime: int) -> Hits:
        return self.inner.search(queries, k_prime)


@dataclass(frozen=True)
class World:
    documents: Store
    queries: Store
    vectors: list[np.ndarray]
    texts: list[np.ndarray]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    rng = np.random.default_rng(1)
    vectors = unit_vectors(rng, 50, DIM)
    texts = unit_vectors(rng, 9, DIM, 3, 7)
    home = tmp_path_factory.mktemp("world")
    return World(write_store(home, vectors), write_store(home, texts, 4, "queries"), vectors, texts)


def naive_hits(world: World, query: np.ndarray, k_prime: int) -> list[list[tuple[float, int, int]]]:
    """(similarity, document, token position) of the k' best, by sorting everything."""
    rows = []
    for q in query.astype(np.float32):
        found, position = [], 0
        for number, document in enumerate(world.vectors):
            for token in document.astype(np.float32):
                found.append((float(q @ token), number, position))
                position += 1
        rows.append(sorted(found, key=lambda hit: (-hit[0], hit[2]))[:k_prime])
    return rows


def naive_ranking(world: World, query: np.ndarray, setting: Setting) -> list[tuple[str, float]]:
    rows = naive_hits(world, query, setting.k_prime)
    candidates = {number for row in rows for _, number, _ in row}
    scores = {}
    for number in candidates:
        if setting.scoring == "colbert":
            document = world.vectors[number].astype(np.float32)
            scores[number] = sum(max(float(q @ t) for t in document) for q in query.astype(np.float32))
        else:
            hits = [[s for s, d, _ in row if d == number] for row in rows]
            scores[number] = sum(max(h) if h else row[-1][0] for h, row in zip(hits, rows, strict=True))
    ranked = sorted(scores.items(), key=lambda item: (-np.float32(item[1]), item[0]))[: setting.top_k]
    return [(f"d{number}", score) for number, score in ranked]


@pytest.mark.parametrize("k_prime", [1, 7, 60, 10**6])
@pytest.mark.parametrize("block", [40, 1 << 25])
def test_exact_search_is_the_naive_loop(
    world: World, k_prime: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_engine, "BLOCK_VALUES", block)
    query = world.texts[0].astype(np.float32)
    hits = Searcher(world.documents).search(query, k_prime)
    for row, expected in enumerate(naive_hits(world, query, k_prime)):
        assert hits.tokens[row].tolist() == [position for _, _, position in expected]
        np.testing.assert_allclose(hits.scores[row], [s for s, _, _ in expected], atol=1e-5)


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("scoring", ["xtr", "colbert"])
@pytest.mark.parametrize("k_prime", [1, 5, 40, 10**6])
def test_retrieval_is_the_naive_loop(world: World, scoring: str, k_prime: int, general: bool) -> None:
    searcher = Searcher(world.documents)
    setting = Setting(scoring, k_prime, top_k=20)
    engine = HitsOnly(searcher) if general else searcher
    run = retrieve(engine, world.documents, world.queries, [setting], 4)[setting].run
    assert list(run) == world.queries.ids
    for query, ranking in zip(world.texts, run.values(), strict=True):
        expected = naive_ranking(world, query, setting)
        assert [d for d, _ in ranking] == [d for d, _ in expected]
        np.testing.assert_allclose([s for _, s in ranking], [s for _, s in expected], atol=1e-5)


def test_all_tokens_make_xtr_maxsim(world: World) -> None:
    """k' = every token: XTR's score equals exact MaxSim for every candidate, on both paths."""
    for searcher in (Searcher(world.documents), HitsOnly(Searcher(world.documents))):
        settings = [Setting(scoring, world.documents.tokens, top_k=10**6) for scoring in ("xtr", "colbert")]
        outcomes = retrieve(searcher, world.documents, world.queries, settings, 3)
        for query in world.queries.ids:
            xtr, colbert = (dict(outcomes[s].run[query]) for s in settings)
            assert len(xtr) == len(world.documents)
            assert xtr == pytest.approx(colbert, abs=1e-4)


def test_one_search_serves_many_settings(world: World) -> None:
    """A sweep gives each setting what it would get alone, whatever the batch size and path."""
    settings = [Setting(scoring, k) for scoring in ("xtr", "colbert") for k in (3, 30, 100)]
    searcher = Searcher(world.documents)
    for engine in (searcher, HitsOnly(searcher)):
        together = retrieve(engine, world.documents, world.queries, settings, 16)
        for setting in settings:
            alone = retrieve(engine, world.documents, world.queries, [setting], 2)[setting]
            for query, ranking in together[setting].run.items():
                assert [d for d, _ in ranking] == [d for d, _ in alone.run[query]]
            assert together[setting].counts == alone.counts


def test_gathering_in_blocks_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting("colbert", 20)
    engine = HitsOnly(Searcher(world.documents))
    whole = retrieve(engine, world.documents, world.queries, [setting], 4)[setting].run
    monkeypatch.setattr("xtrrep.retrieval.maxsim.BLOCK_VALUES", 100)
    monkeypatch.setattr("xtrrep.store.encode.RESIDENT_BYTES", 0)
    store = Store.open(world.documents.folder)
    parts = retrieve(HitsOnly(Searcher(store)), store, world.queries, [setting], 4)[setting].run
    for query, ranking in whole.items():
        assert [d for d, _ in ranking] == [d for d, _ in parts[query]]


def test_rank_query_is_retrieve_for_one(world: World) -> None:
    setting = Setting("xtr", 25)
    run = retrieve(Searcher(world.documents), world.documents, world.queries, [setting], 1)[setting].run
    found = rank_query(Searcher(world.documents), world.documents, world.texts[2].astype(np.float32), setting)
    assert found == run["q2"]


def test_more_slots_than_tokens_is_said(world: World) -> None:
    tokens = world.documents.tokens
    setting = Setting("xtr", tokens + 10)
    for engine in (Searcher(world.documents), HitsOnly(Searcher(world.documents))):
        outcome = retrieve(engine, world.documents, world.queries, [setting], 4)[setting]
        assert outcome.missing == 10 * world.queries.tokens
        assert outcome.facts(setting)["missing_slots"] == outcome.missing


@dataclass(frozen=True)
class Short:
    """An engine that finds only the two best tokens and pads as ScaNN does: id 0, NaN."""

    inner: Searcher

    def search(self, queries: np.ndarray, k_prime: int) -> Hits:
        hits = self.inner.search(queries, k_prime)
        tokens, scores = hits.tokens.copy(), hits.scores.copy()
        tokens[:, 2:], scores[:, 2:] = 0, np.nan
        return Hits(tokens, scores)


def test_empty_slots_are_nobodys_hit(world: World) -> None:
    padded, plain = Setting("xtr", 30), Setting("xtr", 2)
    short = retrieve(Short(Searcher(world.documents)), world.documents, world.queries, [padded], 4)[padded]
    two = retrieve(HitsOnly(Searcher(world.documents)), world.documents, world.queries, [plain], 4)[plain]
    assert short.run == two.run
    assert short.missing == 28 * world.queries.tokens


def test_zero_filling_is_the_studys_harm(world: World) -> None:
    """protocol=released credits the empty slots to document 0 with score 0, and min imputation collapses to 0."""
    zero, drop = Setting("xtr", 30, zero_missing=True), Setting("xtr", 30)
    filled = retrieve(Short(Searcher(world.documents)), world.documents, world.queries, [zero], 4)[zero].run
    dropped = retrieve(Short(Searcher(world.documents)), world.documents, world.queries, [drop], 4)[drop].run
    for query, text in zip(world.queries.ids, world.texts, strict=True):
        assert "d0" in dict(filled[query])
        rows = naive_hits(world, text, 2)
        best = filled[query][0][0]
        own = [max((s for s, d, _ in row if f"d{d}" == best), default=0.0) for row in rows]
        assert filled[query][0][1] == pytest.approx(sum(own), abs=1e-5)
    assert any(filled[q][0][1] < dropped[q][0][1] - 0.1 for q in filled)


def test_the_querys_own_document_is_dropped_and_replaced(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    vectors = unit_vectors(rng, 12, DIM)
    documents = write_store(tmp_path, vectors)
    queries = Store(documents.folder, documents.fingerprint, documents.ids, documents.lengths)  # each its own query
    for scoring in ("xtr", "colbert"):
        keep, drop = Setting(scoring, 10**4, top_k=5), Setting(scoring, 10**4, top_k=5, drop_self=True)
        outcomes = retrieve(Searcher(documents), documents, queries, [keep, drop], 4)
        for name in documents.ids:
            assert outcomes[keep].run[name][0][0] == name
            assert [d for d, _ in outcomes[keep].run[name][1:]] == [d for d, _ in outcomes[drop].run[name][:4]]
            assert len(outcomes[drop].run[name]) == 5


def test_duplicates_rank_alike_whatever_the_batch(tmp_path: Path) -> None:
    """Ties at the k'-th score: the collection's size chooses the tie rule, never the batch."""
    rng = np.random.default_rng(5)
    vectors = unit_vectors(rng, 20, DIM) * 3  # every document three times
    documents = write_store(tmp_path, vectors)
    queries = write_store(tmp_path, unit_vectors(rng, 11, DIM, 3, 7), 4, "queries")
    for scoring in ("xtr", "colbert"):
        setting = Setting(scoring, 20)
        runs = [retrieve(Searcher(documents), documents, queries, [setting], n)[setting] for n in (1, 4, 16)]
        for other in runs[1:]:
            assert other.counts == runs[0].counts
            for query, ranking in other.run.items():
                assert dict(ranking) == pytest.approx(dict(runs[0].run[query]), abs=1e-5)


def test_zero_filling_does_not_depend_on_the_company(world: World) -> None:
    """protocol=released under ColBERT scoring: a setting alone and in a sweep give one run, with document 0 in it."""
    settings = [Setting("colbert", k, zero_missing=True) for k in (2, 30)]
    engine = Short(Searcher(world.documents))
    together = retrieve(engine, world.documents, world.queries, settings, 4)
    for setting in settings:
        assert together[setting].run == retrieve(engine, world.documents, world.queries, [setting], 4)[setting].run
    assert all("d0" in dict(ranking) for ranking in together[settings[1]].run.values())


@pytest.mark.parametrize("scoring", ["xtr", "colbert"])
def test_zero_filling_beyond_the_collection_is_one_rule_on_both_paths(world: World, scoring: str) -> None:
    setting = Setting(scoring, world.documents.tokens + 3, top_k=10**6, zero_missing=True)
    fast = retrieve(Searcher(world.documents), world.documents, world.queries, [setting], 4)[setting].run
    slow = retrieve(HitsOnly(Searcher(world.documents)), world.documents, world.queries, [setting], 4)[setting].run
    for query, ranking in fast.items():
        assert dict(ranking) == pytest.approx(dict(slow[query]), abs=1e-5)


def test_separate_makes_scores_strictly_fall() -> None:
    scores = np.array([1.0, 1.0, 1.0, 0.5, 0.5, -1.0], np.float32)
    out = separate(scores)
    assert (np.diff(out.astype(np.float64)) < 0).all()
    np.testing.assert_allclose(out, scores, rtol=1e-6)
    assert separate(out).tolist() == out.tolist()


@pytest.fixture(scope="module")
def scann_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    pytest.importorskip("scann")
    rng = np.random.default_rng(3)
    vectors = unit_vectors(rng, 300, 32, 8, 20)
    texts = unit_vectors(rng, 6, 32, 8, 9)
    home = tmp_path_factory.mktemp("scann")
    return World(write_store(home, vectors, 100), write_store(home, texts, 9, "queries"), vectors, texts)


SCANN = {
    "engine": "scann",
    "num_leaves": 50,
    "num_leaves_to_search": 25,
    "training_sample_size": 100000,
    "score": "ah",
    "dimensions_per_block": 1,
    "anisotropic_quantization_threshold": 0.1,
    "reorder": None,
    "spherical": True,
    "repeatable": True,
}


def test_scann_builds_alike_twice_and_moves(scann_world: World, tmp_path: Path) -> None:
    engine = engine_of(SCANN)
    runs, files = [], []
    for name in ("one", "two"):
        folder = tmp_path / "made here" / name
        folder.mkdir(parents=True)
        engine.build(scann_world.documents, folder, Place())
        moved = tmp_path / f"moved {name}"
        folder.rename(moved)
        files.append({p.name: p.read_bytes() for p in sorted(moved.iterdir())})
        setting = Setting("xtr", 200)
        searcher = engine.load(moved, scann_world.documents, Place())
        runs.append(retrieve(searcher, scann_world.documents, scann_world.queries, [setting], 4)[setting].run)
        assert not any(str(tmp_path).encode() in data for data in files[-1].values())
    assert files[0] == files[1]
    assert runs[0] == runs[1]


def test_scann_pads_with_nan_beyond_its_leaves(scann_world: World, tmp_path: Path) -> None:
    engine = engine_of(SCANN)
    engine.build(scann_world.documents, tmp_path, Place())
    tokens = scann_world.documents.tokens
    searcher = engine.load(tmp_path, scann_world.documents, Place())
    query = scann_world.texts[0].astype(np.float32)
    hits = searcher.search(query, tokens + 5)
    assert hits.tokens.shape == (len(query), tokens)
    empty = np.isnan(hits.scores)
    assert 0 < empty.sum() < empty.size  # half of the leaves are searched
    for row, row_empty in zip(hits.scores, empty, strict=True):
        assert (np.diff(row[~row_empty]) <= 0).all()
        assert row_empty[np.argmax(row_empty) :].all()  # empty slots are last
    exact = Searcher(scann_world.documents).search(query, 100)
    overlap = np.mean([len(set(a) & set(b)) / 100 for a, b in zip(hits.tokens[:, :100], exact.tokens, strict=True)])
    assert overlap > 0.5  # random vectors have no clusters, so half of the leaves is about half of the answer


def test_scann_prefix(scann_world: World, tmp_path: Path) -> None:
    """A deeper search starts with the shallower one: what lets a sweep search once."""
    engine = engine_of(SCANN)
    engine.build(scann_world.documents, tmp_path, Place())
    searcher = engine.load(tmp_path, scann_world.documents, Place())
    query = scann_world.texts[1].astype(np.float32)
    deep, shallow = searcher.search(query, 400), searcher.search(query, 50)
    np.testing.assert_array_equal(deep.scores[:, :50], shallow.scores)


def test_engines_refuse_what_they_cannot_search(scann_world: World, tmp_path: Path) -> None:
    searcher = Searcher(scann_world.documents)
    with pytest.raises(DataError, match="dimension 32"):
        searcher.search(np.zeros((2, 31), np.float32), 5)
    with pytest.raises(DataError, match="not finite"):
        searcher.search(np.full((2, 32), np.nan, np.float32), 5)
    engine = engine_of(SCANN | {"num_leaves": 10**6})
    with pytest.raises(DataError, match="1000000 leaves") as caught:
        engine.build(scann_world.documents, tmp_path, Place())
    assert "--index exact" in str(caught.value.hint)
