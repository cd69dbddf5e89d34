"""PLAID, WARP, ScaNN and HNSW against the libraries called directly, and against what must never reach them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import index_choices, unit_vectors, write_store
from threadpoolctl import threadpool_limits

from xtrrep import artifacts, config
from xtrrep.artifacts.hashes import hash_file
from xtrrep.console import DataError, UsageError
from xtrrep.model.encoder import torch_threads
from xtrrep.retrieval.engines import (
    DocumentEngine,
    Place,
    VectorEngine,
    choice_of,
    engine_of,
    engines,
    kmeans,
    split_params,
)
from xtrrep.retrieval.engines.files import build_index, index_spec, open_index
from xtrrep.retrieval.retrieve import Setting, rank_documents, retrieve, retrieve_documents
from xtrrep.store.encode import Store

DIM = 32
PLACE = Place("cpu", 1)


def index_config(choice: str, **changes: Any) -> dict[str, Any]:
    small = engines.get(choice.split("/")[0]).tiny[""]
    return {**config.compose([f"index={choice}"]).index, **small, **changes}


def clustered(rng: np.random.Generator, count: int, centres: np.ndarray, low: int = 6, high: int = 16) -> list[Any]:
    """Unit vectors around shared centres, as token embeddings lie."""
    arrays = []
    for _ in range(count):
        which = rng.integers(0, len(centres), int(rng.integers(low, high)))
        raw = centres[which] + 0.35 * rng.normal(size=(len(which), DIM)) / np.sqrt(DIM)
        arrays.append((raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16))
    return arrays


@dataclass(frozen=True)
class World:
    documents: Store
    queries: Store
    texts: list[np.ndarray]

    @property
    def tokens(self) -> list[np.ndarray]:
        return [text.astype(np.float32) for text in self.texts]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(60, DIM))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    home = tmp_path_factory.mktemp("world")
    texts = clustered(rng, 12, centres, 5, 6) + clustered(rng, 3, centres, 8, 9)
    return World(write_store(home, clustered(rng, 400, centres), 130), write_store(home, texts, 9, "queries"), texts)


@pytest.fixture(scope="module")
def built(world: World, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Build an index once a module and choice: (folder, config)."""
    root = tmp_path_factory.mktemp("indexes")
    known: dict[str, tuple[Path, dict[str, Any]]] = {}

    def get(choice: str) -> tuple[Path, dict[str, Any]]:
        if choice not in known:
            index = index_config(choice)
            known[choice] = make(world.documents, index, root), index
        return known[choice]

    return get


def make(store: Store, index: dict[str, Any], root: Path, place: Place = PLACE) -> Path:
    spec = index_spec("made", store.fingerprint, index)
    return artifacts.make(spec, root, lambda out: build_index(store, index, out, place))


def run_of(world: World, searcher: Any, index: dict[str, Any], top_k: int = 50) -> dict[str, Any]:
    engine = engine_of(index)
    if isinstance(engine, DocumentEngine):
        setting = Setting(engine.scoring, None, "none", top_k)
        return retrieve_documents(searcher, world.documents, world.queries, setting, 4).run
    setting = Setting("xtr", 300, top_k=top_k)
    return retrieve(searcher, world.documents, world.queries, [setting], 4)[setting].run


VECTOR = index_choices(VectorEngine)
# Engines that build files.
APPROXIMATE = [c for c in VECTOR if not getattr(engines.get(c.split("/")[0]), "exhaustive", False)]


@pytest.mark.parametrize("choice", APPROXIMATE)
def test_two_builds_on_any_threads_give_one_run_and_a_moved_index_loads(
    world: World, built: Any, tmp_path: Path, choice: str
) -> None:
    folder, index = built(choice)
    first = run_of(world, open_index(folder, world.documents, index, PLACE), index)
    with torch_threads(2), threadpool_limits(2, user_api="blas"):
        again = make(world.documents, index, tmp_path / "second build", Place("cpu", 2))
    moved = tmp_path / "moved ü"
    shutil.move(again, moved)
    assert run_of(world, open_index(moved, world.documents, index, PLACE), index) == first
    assert sum(len(ranking) for ranking in first.values()) > 100
    for path in moved.rglob("*"):  # nothing names the machine it was made on
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path.name


def test_scann_as_the_library_builds_it_is_another_index_that_says_so(world: World, built: Any, tmp_path: Path) -> None:
    folder, index = built("scann")
    other = make(world.documents, index | {"repeatable": False}, tmp_path)
    one, two = (artifacts.read_manifest(path) for path in (folder, other))
    assert one["fingerprint"] != two["fingerprint"]
    assert (one["facts"]["repeatable"], two["facts"]["repeatable"]) == (True, False)
    assert two["facts"]["against_exact"]["recall@100"] == pytest.approx(
        one["facts"]["against_exact"]["recall@100"], abs=0.1
    )
    assert run_of(world, open_index(other, world.documents, index | {"repeatable": False}, PLACE), index)


def direct_warp(world: World, index: dict[str, Any], folder: Path, settings: dict[str, Any]) -> list[Any]:
    from xtr_warp import XTRWarp

    library = XTRWarp(str(folder), device="cpu")
    library.create(
        str(world.documents.folder / "vectors"),
        device="cpu",
        nbits=index["nbits"],
        kmeans_niters=index["kmeans_niters"],
        max_points_per_centroid=index["max_points_per_centroid"],
        seed=index["seed"],
        show_progress=False,
    )
    library.load(device="cpu")
    return [
        library.search(torch.from_numpy(query), top_k=100, num_threads=1, show_progress=False, **settings)[0]
        for query in world.tokens
    ]


def same(ours: tuple[np.ndarray, np.ndarray], theirs: Sequence[tuple[int, float]]) -> None:
    """One ranking, scores to 1e-5; documents may change places only where scores tie."""
    numbers, scores = ours
    assert len(numbers) == len(theirs) > 0
    np.testing.assert_allclose(scores, [score for _, score in theirs], atol=1e-5)
    for number, score, (document, _) in zip(numbers, scores, theirs, strict=True):
        assert number == document or any(d == number and abs(s - score) <= 1e-5 for d, s in theirs)


@pytest.mark.parametrize("choice", ["warp", "warp/library"])
def test_warp_is_the_library_called_directly(world: World, built: Any, tmp_path: Path, choice: str) -> None:
    folder, index = built(choice)
    searcher = open_index(folder, world.documents, index, PLACE)
    names = ("nprobe", "t_prime", "bound", "max_candidates", "centroid_score_threshold")
    if choice == "warp":
        assert searcher.settings == {name: index[name] for name in names}
    # The library's own tuning at the top_k and length that the YAML names is what was resolved.
    resolved = {name: index[name] for name in names if index[name] is not None} or searcher.settings
    theirs = direct_warp(world, index, tmp_path / "direct", resolved)
    for query, expected in zip(world.tokens, theirs, strict=True):
        (ours,) = rank_documents(searcher, [query], 100)
        same(ours, expected)


@pytest.mark.parametrize("choice", ["plaid", "plaid/library"])
def test_plaid_is_the_library_called_directly(world: World, built: Any, tmp_path: Path, choice: str) -> None:
    from fast_plaid.search import FastPlaid

    folder, index = built(choice)
    searcher = open_index(folder, world.documents, index, PLACE)
    library = FastPlaid(str(tmp_path / "direct"), device="cpu")
    vectors = [torch.from_numpy(np.array(world.documents.vectors(i))) for i in range(len(world.documents))]
    library.create(
        vectors,
        nbits=index["nbits"],
        kmeans_niters=index["kmeans_niters"],
        max_points_per_centroid=index["max_points_per_centroid"],
        seed=index["seed"],
    )
    theirs = library.search(
        [torch.from_numpy(query) for query in world.tokens],
        top_k=100,
        n_ivf_probe=index["nprobe"],
        n_full_scores=index["n_full_scores"],
        show_progress=False,
        n_processes=1,
    )
    for ours, expected in zip(rank_documents(searcher, world.tokens, 100), theirs, strict=True):
        same(ours, expected)


def test_plaid_clusters_the_first_documents_alone_when_told(world: World, tmp_path: Path) -> None:
    """The centroids are those of the library over these documents; the index holds all; without it nothing is new."""
    from fast_plaid.search import FastPlaid

    folder = make(world.documents, index_config("plaid", centroids_from=150), tmp_path / "ours")
    library = FastPlaid(str(tmp_path / "direct"), device="cpu")
    vectors = [torch.from_numpy(np.array(world.documents.vectors(i))) for i in range(150)]
    library.create(vectors, nbits=2, kmeans_niters=4, max_points_per_centroid=256, seed=42)
    ours, theirs = (np.load(path / "centroids.npy") for path in (folder, tmp_path / "direct"))
    np.testing.assert_array_equal(ours, theirs)
    assert json.loads((folder / "metadata.json").read_text())["num_embeddings"] == world.documents.tokens
    default = index_config("plaid")
    assert "centroids_from" not in split_params(default)[0]
    assert split_params(default | {"centroids_from": 150})[0] == split_params(default)[0] | {"centroids_from": 150}
    assert [choice_of(index_config(name)) for name in ("plaid", "plaid/harness")] == ["plaid", "plaid/harness"]


@pytest.mark.parametrize("choice", ["scann", "scann/library", "scann/bf16"])
def test_scann_is_the_library_called_directly(world: World, built: Any, choice: str) -> None:
    import scann

    folder, index = built(choice)
    searcher = open_index(folder, world.documents, index, PLACE)
    vectors = world.documents.rows(0, world.documents.tokens).astype(np.float32)
    tree = scann.scann_ops_pybind.builder(vectors, 10, "dot_product").tree(
        num_leaves=index["num_leaves"],
        num_leaves_to_search=index["num_leaves_to_search"],
        training_sample_size=len(vectors),
        spherical=index["spherical"],
        random_init=False,
    )
    if choice == "scann/bf16":
        tree = tree.score_brute_force(scann.ReorderType.BFLOAT16)
    else:
        threshold = index["anisotropic_quantization_threshold"]
        tree = tree.score_ah(index["dimensions_per_block"], anisotropic_quantization_threshold=threshold)
    tree.set_n_training_threads(1)
    library = tree.build()
    rows = np.concatenate(world.tokens)
    found, scores = library.search_batched(rows, 200, 200)
    ours = searcher.search(rows, 200)
    np.testing.assert_allclose(ours.scores, scores, atol=1e-5)
    assert (ours.tokens == found).mean() > 0.999  # ties may change places


@pytest.mark.parametrize("choice", ["warp", "warp/library", "plaid"])
def test_one_query_scores_alike_at_every_top_k(world: World, built: Any, choice: str) -> None:
    folder, index = built(choice)
    searcher = open_index(folder, world.documents, index, PLACE)
    for query in world.tokens:
        ((few, few_scores),) = rank_documents(searcher, [query], 10)
        ((many, many_scores),) = rank_documents(searcher, [query], 1000)
        assert few.tolist() == many[:10].tolist()
        np.testing.assert_array_equal(few_scores, many_scores[:10])


@pytest.mark.parametrize("choice", VECTOR)
def test_threads_change_no_score(world: World, built: Any, choice: str) -> None:
    folder, index = built(choice)
    found = {}
    for count in (1, 2):
        with torch_threads(count), threadpool_limits(count, user_api="blas"):
            searcher = open_index(folder, world.documents, index, Place("cpu", count))
            found[count] = run_of(world, searcher, index)
    if not engine_of(index).threads_keep_scores:
        for query, ranking in found[1].items():
            assert dict(found[2][query]) == pytest.approx(dict(ranking), abs=1e-5)
    else:
        assert found[1] == found[2]
        assert run_of(world, open_index(folder, world.documents, index, Place()), index) == found[1]  # a user's


@pytest.mark.parametrize("choice", ["warp", "plaid"])
def test_queries_of_several_lengths_in_one_batch(world: World, built: Any, choice: str) -> None:
    folder, index = built(choice)
    searcher = open_index(folder, world.documents, index, PLACE)
    mixed = [world.tokens[0], np.empty((0, DIM), np.float32), world.tokens[-1], world.tokens[1]]
    together = rank_documents(searcher, mixed, 20)
    assert len(together[1][0]) == 0  # a query without a token finds nothing
    for query, (numbers, scores) in zip(mixed, together, strict=True):
        if len(query):
            ((alone, alone_scores),) = rank_documents(searcher, [query], 20)
            assert numbers.tolist() == alone.tolist()
            np.testing.assert_allclose(scores, alone_scores, atol=1e-5)


def test_manifests_say_what_was_built(world: World, built: Any) -> None:
    facts = artifacts.read_manifest(built("warp")[0])["facts"]
    assert facts["index_vectors"] == world.documents.tokens
    assert facts["num_partitions"] == 1024  # 2^floor(log2(16 sqrt(4,300)))
    near = artifacts.read_manifest(built("scann")[0])["facts"]["against_exact"]
    assert 0.2 < near["recall@100"] <= 1
    assert abs(near["score_bias"]) <= near["score_error"] < 0.1
    assert near["num_leaves_to_search"] == 10
    exact = artifacts.read_manifest(built("scann/bf16")[0])["facts"]["against_exact"]
    assert exact["score_error"] < near["score_error"]  # what bf16 is for
    graph = artifacts.read_manifest(built("voyager")[0])["facts"]["against_exact"]
    assert graph["recall@100"] > 0.95
    assert graph["score_error"] < 1e-5


def test_search_parameters_build_nothing(world: World, built: Any) -> None:
    """Another nprobe is another run over the same index."""
    for choice, change in (("warp", {"nprobe": 2}), ("plaid", {"nprobe": 1}), ("scann", {"num_leaves_to_search": 1})):
        folder, index = built(choice)
        other = {**index, **change}
        assert index_spec("x", world.documents.fingerprint, other) == index_spec(
            "x", world.documents.fingerprint, index
        )
        narrow = run_of(world, open_index(folder, world.documents, other, PLACE), other)
        assert narrow != run_of(world, open_index(folder, world.documents, index, PLACE), index)


# --- what must never reach an engine -------------------------------------------------------------------------------


def spoiled(rng: np.random.Generator, what: str) -> list[np.ndarray]:
    vectors = unit_vectors(rng, 80, DIM, 4, 9)
    if what == "nan":
        vectors[40][1, 3] = np.nan
    elif what == "infinite":
        vectors[40][0, 0] = np.inf
    elif what == "zero":
        vectors[40][2] = 0
    return vectors


@pytest.mark.parametrize("choice", VECTOR)
@pytest.mark.parametrize(("what", "says"), [("nan", "not finite"), ("infinite", "not finite"), ("zero", "is zero")])
def test_bad_vectors_are_named_before_the_engine_sees_them(tmp_path: Path, choice: str, what: str, says: str) -> None:
    store = write_store(tmp_path, spoiled(np.random.default_rng(0), what), 30)
    with pytest.raises(DataError, match=says) as caught:
        make(store, index_config(choice), tmp_path / "index")
    assert "'d40'" in str(caught.value)
    assert not list((tmp_path / "index").rglob("*.json"))


@pytest.mark.parametrize("choice", VECTOR)
def test_a_store_without_vectors_is_refused(tmp_path: Path, choice: str) -> None:
    store = write_store(tmp_path, [np.empty((0, DIM))] * 3)
    with pytest.raises(DataError, match="no vectors at all"):
        make(store, index_config(choice), tmp_path / "index")


@pytest.mark.parametrize("choice", ["scann", "plaid", "warp"])
def test_too_small_a_corpus_names_the_exact_engine(tmp_path: Path, choice: str) -> None:
    store = write_store(tmp_path, unit_vectors(np.random.default_rng(0), 1, DIM, 1, 2))
    with pytest.raises(DataError, match=choice) as caught:
        make(store, index_config(choice), tmp_path / "index")
    assert "--index exact" in str(caught.value.hint)


def test_a_dimension_that_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path, unit_vectors(np.random.default_rng(0), 90, 20, 4, 9))
    with pytest.raises(DataError, match="multiple of 8"):
        make(store, index_config("warp"), tmp_path / "index")
    odd = write_store(tmp_path / "odd", unit_vectors(np.random.default_rng(0), 90, 13, 4, 9))
    with pytest.raises(DataError, match="fill bytes"):
        make(odd, index_config("plaid", nbits=1), tmp_path / "index")


@pytest.mark.parametrize(
    ("choice", "changes", "says"),
    [
        ("warp", {"nbits": 3}, "2 or 4"),
        ("warp", {"nbits": 1}, "2 or 4"),
        ("plaid", {"nbits": 3}, "nbits=3"),
        ("warp", {"nprobe": 0}, "nprobe"),
        ("warp", {"centroid_score_threshold": 1.5}, "between 0 and 1"),
        ("warp", {"memory": "disk"}, "memory"),
        ("plaid", {"n_full_scores": 0}, "n_full_scores"),
        ("plaid", {"gpu_memory": "all"}, "gpu_memory"),
        ("plaid", {"num_partitions": -1}, "num_partitions"),
        ("scann", {"score": "int8"}, "int8"),
        ("scann", {"reorder": 0}, "reorder"),
        ("scann/bf16", {"reorder": 100}, "refines the scores"),
        ("voyager", {"m": 0}, "index.m"),
        ("warp", {"num_partitions": "many"}, "int or null"),
        ("warp", {"nbits": 2.5}, "not of type int"),
        ("plaid", {"nprobe": None}, "not of type int"),
        ("scann", {"spherical": 1}, "not of type bool"),
    ],
)
def test_parameters_outside_the_allowed(choice: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        engine_of(index_config(choice, **changes))


@pytest.mark.parametrize("choice", VECTOR)
def test_bad_queries_are_refused(world: World, built: Any, choice: str) -> None:
    folder, index = built(choice)
    searcher = open_index(folder, world.documents, index, PLACE)
    document = isinstance(engine_of(index), DocumentEngine)
    for bad, says in (
        (np.ones((4, DIM + 1), np.float32), "dimension 32"),
        (np.full((4, DIM), np.nan, np.float32), "not finite"),
        (np.zeros((4, DIM), np.float32), "zero"),
    ):
        with pytest.raises(DataError, match=says):
            searcher.search([bad] if document else bad, 5)
    for depth in (0, -1):
        with pytest.raises(UsageError, match="finds nothing"):
            searcher.search([world.tokens[0]] if document else world.tokens[0], depth)


@pytest.mark.parametrize("choice", APPROXIMATE)
@pytest.mark.parametrize("damage", ["truncated", "edited", "missing"])
def test_a_damaged_index_is_never_searched(world: World, built: Any, tmp_path: Path, choice: str, damage: str) -> None:
    """Every file in turn: one byte flipped, the last byte cut, or gone."""
    folder, index = built(choice)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    files = [path for path in sorted(copy.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    filled = [path for path in files if path.stat().st_size]
    assert filled
    for path in filled:
        whole = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "truncated":
            path.write_bytes(whole[:-1])
        else:
            path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(DataError, match=path.name.replace(".", r"\.")) as caught:
            open_index(copy, world.documents, index, PLACE)
        assert f"rm -r {copy}" in str(caught.value.hint)
        path.write_bytes(whole)
    open_index(copy, world.documents, index, PLACE)


def test_searching_leaves_an_index_as_it_was(world: World, built: Any) -> None:
    for choice in APPROXIMATE:
        folder, index = built(choice)
        before = {path: hash_file(path) for path in folder.rglob("*") if path.is_file()}
        run_of(world, open_index(folder, world.documents, index, PLACE), index)
        assert {path: hash_file(path) for path in folder.rglob("*") if path.is_file()} == before


def test_an_index_of_another_store_is_refused(world: World, built: Any, tmp_path: Path) -> None:
    folder, index = built("warp")
    other = write_store(tmp_path, unit_vectors(np.random.default_rng(1), 50, DIM))
    with pytest.raises(DataError, match="another store"):
        open_index(folder, other, index, PLACE)
    with pytest.raises(DataError, match="was built as"):
        open_index(folder, world.documents, {**index, "nbits": 4}, PLACE)


def test_a_panic_becomes_our_error_with_the_engines_words(world: World, built: Any) -> None:
    from xtrrep.retrieval.engines.native import panics

    class Panic(BaseException):
        pass

    with pytest.raises(DataError, match="failed while searching: tensor of shape"), panics("warp", "while searching"):
        raise Panic("tensor of shape\nbacktrace")
    with pytest.raises(KeyboardInterrupt), panics("warp", "while searching"):
        raise KeyboardInterrupt


# --- documents without vectors, more asked than there is -----------------------------------------------------------


@pytest.mark.parametrize("choice", VECTOR)
def test_an_empty_document_keeps_its_place_and_is_never_returned(tmp_path: Path, choice: str) -> None:
    rng = np.random.default_rng(3)
    vectors = unit_vectors(rng, 120, DIM, 5, 9)
    empty = {0, 7, 8, 60, 119}
    for number in empty:
        vectors[number] = np.empty((0, DIM), np.float16)
    store = write_store(tmp_path, vectors, 50)
    index = index_config(choice)
    searcher = open_index(make(store, index, tmp_path / "index"), store, index, PLACE)
    engine = engine_of(index)
    for number in (1, 9, 59, 61, 118):  # every document is its own best match, at its own number
        query = vectors[number].astype(np.float32)
        if isinstance(engine, DocumentEngine):
            ((found, scores),) = rank_documents(searcher, [query], 120)
        else:
            queries = write_store(tmp_path / str(number), [query], 1, "queries")
            setting = Setting("colbert", 400, top_k=120)
            run = retrieve(searcher, store, queries, [setting], 4)[setting].run["q0"]
            found = np.array([store.ids.index(name) for name, _ in run])
            scores = np.array([score for _, score in run])
        assert found[0] == number
        assert not empty & set(found.tolist())
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("choice", VECTOR)
def test_more_asked_than_there_is_is_clipped_and_said(world: World, built: Any, choice: str) -> None:
    folder, index = built(choice)
    searcher = open_index(folder, world.documents, index, PLACE)
    engine = engine_of(index)
    if isinstance(engine, DocumentEngine):
        setting = Setting(engine.scoring, None, "none", 10**6)
        outcome = retrieve_documents(searcher, world.documents, world.queries, setting, 4)
    else:
        setting = Setting("xtr", 200, top_k=10**6)
        outcome = retrieve(searcher, world.documents, world.queries, [setting], 4)[setting]
    assert outcome.facts(setting)["top_k_clipped"] == len(world.documents)
    for ranking in outcome.run.values():
        names = [name for name, _ in ranking]
        assert len(set(names)) == len(names) <= len(world.documents)


def test_the_plan_of_a_clustering(world: World) -> None:
    tokens = world.documents.tokens
    plan = kmeans.plan(
        world.documents.lengths, num_partitions=None, samples=None, iterations=4, max_points=256, engine="plaid"
    )
    assert plan == kmeans.Clustering(400, tokens, 1024, 4)
    few = kmeans.plan(world.documents.lengths, num_partitions=8, samples=20, iterations=2, max_points=3, engine="plaid")
    assert few == kmeans.Clustering(20, 24, 8, 2)
    with pytest.raises(DataError, match="20 sampled documents") as caught:
        kmeans.plan(
            world.documents.lengths, num_partitions=None, samples=20, iterations=4, max_points=256, engine="warp"
        )
    assert "n_samples_kmeans=400" in str(caught.value.hint)


def test_search_and_build_parameters_part() -> None:
    build, search = split_params(index_config("warp"))
    assert build["nbits"] == 2
    assert build["engine"] == "warp"
    assert search["nprobe"] == 32
    assert not build.keys() & search.keys()
    assert json.dumps(build)  # plain values, for the manifest
