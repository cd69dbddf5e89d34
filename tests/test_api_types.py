"""The Python API takes what people have, with the right value, or refuses it in a sentence that names the argument."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import xtrrep
from xtrrep import api
from xtrrep.console import DataError, UsageError, XtrrepError
from xtrrep.store.encode import Store

EYE = np.eye(16, dtype=np.float32)
QRELS = {"q1": {"doc1": 1}}
RUN = {"q1": [("doc2", 2.0), ("doc1", 1.0)]}
NOT = object()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def store(stores: Path) -> Store:
    return xtrrep.store_vectors({"a": EYE[:3], "b": EYE[3:6]}, stores)


@pytest.fixture(scope="module")
def index(store: Store, stores: Path) -> xtrrep.Index:
    return xtrrep.build_index(store, "exact", stores)


# --- what is accepted, with the right value --------------------------------------------------------------------------

SCORES: dict[str, Callable[[float], Any]] = {
    "float": float,
    "int": int,
    "np.float16": np.float16,
    "np.float32": np.float32,
    "np.float64": np.float64,
    "np.int64": np.int64,
    "torch.float32": torch.tensor,
    "torch.bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "with a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "array of no dimension": lambda x: np.array(x),
}


@pytest.mark.parametrize("kind", SCORES)
def test_scores_of_any_number_type(kind: str) -> None:
    number = SCORES[kind]
    assert xtrrep.evaluate_run(QRELS, {"q1": [("doc2", number(2.0)), ("doc1", number(1.0))]}, ["RR"]) == {"RR": 0.5}
    assert xtrrep.evaluate_run(QRELS, {"q1": {"doc2": number(2.0), "doc1": number(1.0)}}, ["RR"]) == {"RR": 0.5}


@pytest.mark.parametrize(
    "grade", [1, True, 1.0, np.int8(1), np.int64(1), np.float32(1), np.bool_(True), torch.tensor(1)]
)
def test_grades_of_any_number_type(grade: Any) -> None:
    assert xtrrep.evaluate_run({"q1": {"doc1": grade}}, RUN, ["RR"]) == {"RR": 0.5}


@pytest.mark.parametrize("number", [int, np.int32, np.uint64, np.str_, str])
def test_ids_of_any_kind(number: Any, stores: Path) -> None:
    q, first, second = number(7), number(10), number(11)
    assert xtrrep.evaluate_run({q: {first: 1}}, {q: [(second, 2.0), (first, 1.0)]}, ["RR"]) == {"RR": 0.5}
    made = xtrrep.store_vectors({first: EYE[:2], second: EYE[2:4]}, stores)
    assert made.ids == ["10", "11"]
    assert xtrrep.change_documents(made, stores, delete=[first]).ids == ["11"]
    found = xtrrep.search(xtrrep.build_index(made, "exact", stores), {q: EYE[2:3]}, scoring="colbert", top_k=1)
    assert found == {"7": [("11", 1.0)]}


VECTORS: dict[str, Callable[[np.ndarray], Any]] = {
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x.astype(np.float64),
    "integers": lambda x: x.astype(np.int64),
    "big endian": lambda x: x.astype(">f4"),
    "not contiguous": lambda x: np.asfortranarray(np.repeat(x, 2, axis=1))[:, ::2],
    "nested lists": lambda x: x.tolist(),
    "torch": torch.from_numpy,
    "torch.bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "torch.float16": lambda x: torch.from_numpy(x).half(),
    "with a gradient": lambda x: torch.from_numpy(x.copy()).requires_grad_(),
    "inference tensor": lambda x: torch.from_numpy(x).clone(),
    "transposed tensor": lambda x: torch.from_numpy(x.T.copy()).T,
    "a frame": pandas.DataFrame,
}


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_of_any_kind(kind: str, stores: Path) -> None:
    made = xtrrep.store_vectors({"a": VECTORS[kind](EYE[:3]), "b": VECTORS[kind](EYE[3:5])}, stores)
    np.testing.assert_array_equal(made.vectors(0), EYE[:3])
    index = xtrrep.build_index(made, "exact", stores)
    assert xtrrep.search(index, {"q": VECTORS[kind](EYE[3:4])}, scoring="colbert", top_k=1) == {"q": [("b", 1.0)]}


def test_ties_are_broken_by_position_before_any_measure() -> None:
    qrels = {"q": {"b": 1}}
    for first, expected in ((["a", "b"], 0.5), (["b", "a"], 1.0), (["z", "b", "a"], 0.5)):
        run = {"q": [(document, 1.0) for document in first]}
        for measure in ("RR", "RR@10", "nDCG@10", "Success@1", "ERR@10"):
            value = xtrrep.evaluate_run(qrels, run, [measure])[measure]
            whole = xtrrep.evaluate_run(qrels, {"q": [(d, -i) for i, d in enumerate(first)]}, [measure])[measure]
            assert value == whole
        assert xtrrep.evaluate_run(qrels, run, ["RR"])["RR"] == expected
    # 16777217 is 16777216 as a float32: a tie
    assert xtrrep.evaluate_run(qrels, {"q": [("a", 16777216.0), ("b", 16777217.0)]}, ["RR"])["RR"] == 0.5


# --- what is refused ------------------------------------------------------------------------------------------------

ODD = [None, 7, 1.5, b"bytes", [1], ("a",), {1, 2}, object(), torch.ones(2), pandas.DataFrame({"a": ["x"]}), print]


def refused(call: Callable[[], Any], *names: str) -> XtrrepError:
    """The error of a call: ours, one line that names the argument, and a hint."""
    with pytest.raises(XtrrepError) as caught:
        call()
    error = caught.value
    assert "\n" not in str(error)
    assert 5 < len(str(error)) < 400
    assert error.hint
    assert "Traceback" not in str(error)
    assert any(name in str(error) for name in names), f"{error} names none of {names}"
    return error


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_evaluate_run_refuses(value: Any) -> None:
    ev = xtrrep.evaluate_run
    refused(lambda: ev(value, RUN), "qrels")
    refused(lambda: ev(QRELS, value), "run")
    refused(lambda: ev({"q1": value}, RUN), "qrels")
    if not isinstance(value, int):
        refused(lambda: ev({value: {"doc1": 1}} if _hashes(value) else {"q1": None}, RUN), "qrels", "unhashable")
        refused(lambda: ev(QRELS, {"q1": [(value, 1.0)]}), "run")
        refused(lambda: ev({"q1": {"doc1": value}}, RUN), "doc1")
    if not isinstance(value, int | float):
        error = refused(lambda: ev(QRELS, {"q1": [("doc1", value)]}), "run")
        assert "ir-measures" not in error.hint
    refused(lambda: ev(QRELS, {"q1": value}), "run")
    refused(lambda: ev(QRELS, {"q1": [value]}), "run")
    refused(lambda: ev(QRELS, RUN, value), "measure")


def _hashes(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(
    ("qrels", "found", "says"),
    [
        (QRELS, {"q1": [("a", 1.0), ("b", 0.7), ("a", 0.5)]}, "'q1' has document 'a' twice"),
        (QRELS, {"q1": [(1, 1.0), ("1", 0.7)]}, "has document '1' twice"),
        (QRELS, {1: [("a", 1.0)], "1": [("a", 1.0)]}, "query '1' twice"),
        ({1: {"a": 1}, "1": {"a": 1}}, RUN, "query '1' twice"),
        ({"q1": {1: 1, "1": 0}}, RUN, "document '1' twice"),
        ({"q1": {"a": 0.5}}, RUN, "0.5, not a whole number"),
        ({"q1": {"a": float("nan")}}, RUN, "not a whole number"),
        ({"q1": {"a": float("inf")}}, RUN, "not a whole number"),
        ({"q1": {"a": 10**7}}, RUN, "beyond 1,000,000"),
        ({"q1": {"a": "1"}}, RUN, "not a whole number"),
        (QRELS, {"q1": [("a", float("nan"))]}, "not finite"),
        (QRELS, {"q1": [("a", np.float32("inf"))]}, "not finite"),
        (QRELS, {"q1": [("a", 1e39)]}, "not finite"),
        (QRELS, {"q2": [("a", 1.0)]}, "none of the judged queries"),
        ({}, RUN, "judges no query"),
        (QRELS, {"q1": "d1"}, "not a ranking"),
        (QRELS, {"q1": ["d1", "d2"]}, "not a pair"),
        (QRELS, {"q1": [("a", "1.0")]}, "a str for a score"),
        (QRELS, pandas.DataFrame({"query_id": ["q1"], "doc_id": ["a"], "score": [1.0]}), "run is a DataFrame"),
    ],
)
def test_runs_and_judgements_that_cannot_be_scored(qrels: Any, found: Any, says: str) -> None:
    assert says in str(refused(lambda: xtrrep.evaluate_run(qrels, found), says))


def test_the_hint_for_a_frame_makes_a_run() -> None:
    frame = pandas.DataFrame({"query_id": ["q1", "q1"], "doc_id": ["doc2", "doc1"], "score": [2.0, 1.0]})
    error = refused(lambda: xtrrep.evaluate_run(QRELS, frame), "run")
    run = eval(error.hint.removesuffix(" makes a dict of it"), {"frame": frame})
    assert xtrrep.evaluate_run(QRELS, run, "RR") == {"RR": 0.5}


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_store_vectors_and_change_documents_refuse(value: Any, store: Store, stores: Path) -> None:
    refused(lambda: xtrrep.store_vectors(value, stores), "vectors")
    refused(lambda: xtrrep.store_vectors({"a": value}, stores), "vectors['a']")
    refused(lambda: xtrrep.store_vectors({"a": EYE}, value), "root")
    refused(lambda: xtrrep.store_vectors({"a": EYE}, stores, task=value), "task")
    refused(lambda: xtrrep.store_vectors({"a": EYE}, stores, normalize=value), "normalize")
    refused(lambda: xtrrep.change_documents(value, stores, delete=["a"]), "parent")
    refused(lambda: xtrrep.change_documents(store, value, delete=["a"]), "root")
    if value is not None:
        refused(lambda: xtrrep.change_documents(store, stores, add=value), "add")
    refused(lambda: xtrrep.change_documents(store, stores, add={"x": value}), "add['x']")
    if not isinstance(value, tuple):  # of texts: a list of ids
        refused(lambda: xtrrep.change_documents(store, stores, delete=value), "delete", "holds no document")
    if _hashes(value) and not isinstance(value, int):
        refused(lambda: xtrrep.store_vectors({value: EYE}, stores), "vectors")
    refused(lambda: xtrrep.change_documents(store, stores, delete="a"), "delete")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (EYE[0], "shape (16,)"),
        (EYE[None], "shape (1, 16, 16)"),
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
        (EYE.astype(complex), "complex128"),
        (EYE > 0, "bool"),
        (EYE.astype(str), "not numbers"),
        (EYE.astype(object), "not numbers"),
        (np.ma.masked_array(EYE, EYE > 0), "masked"),
        (torch.eye(16, device="meta"), "no array of numbers"),
        (torch.eye(16).to_sparse(), "no array of numbers"),
        ({"x": 1}, "not numbers"),
        ("text", "not numbers"),
    ],
)
def test_vectors_that_are_none(rows: Any, says: str, stores: Path, index: xtrrep.Index) -> None:
    assert says in str(refused(lambda: xtrrep.store_vectors({"a": rows}, stores), "vectors['a']"))
    refused(lambda: xtrrep.search(index, {"a": rows}), "queries['a']")


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_build_index_and_search_refuse(value: Any, store: Store, stores: Path, index: xtrrep.Index) -> None:
    query = {"q": EYE[:1]}
    refused(lambda: xtrrep.build_index(value, "exact", stores), "store")
    refused(lambda: xtrrep.build_index(store, value, stores), "engine")
    refused(lambda: xtrrep.build_index(store, "exact", value), "root")
    refused(lambda: xtrrep.build_index(store, "exact", stores, device=value), "device")
    if value is not None and not isinstance(value, int):
        refused(lambda: xtrrep.build_index(store, "exact", stores, threads=value), "threads")
        refused(lambda: xtrrep.search(index, query, k_prime=value), "k_prime")
        refused(lambda: xtrrep.search(index, query, rerank=value), "rerank")
        refused(lambda: xtrrep.build_index(store, "plaid", stores, nprobe=value), "")  # by the type, or Hydra's grammar
    if not isinstance(value, int):
        refused(lambda: xtrrep.search(index, query, top_k=value), "top_k")
        refused(lambda: xtrrep.search(index, query, batch=value), "batch")
    refused(lambda: xtrrep.search(value, query), "index")
    refused(lambda: xtrrep.search(index, value), "queries")
    refused(lambda: xtrrep.search(index, {"q": value}), "queries['q']")
    refused(lambda: xtrrep.search(index, query, scoring=value), "scoring")
    refused(lambda: xtrrep.search(index, query, imputation=value), "imputation")


@pytest.mark.parametrize("rows", [EYE[:2] * np.nan, EYE[:2] * 0, EYE[:2, :8]])
def test_queries_that_cannot_be_searched(rows: np.ndarray, index: xtrrep.Index) -> None:
    with pytest.raises(DataError):
        xtrrep.search(index, {"q": rows})


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_load_model_and_run_config_refuse(value: Any, tmp_path: Path) -> None:
    refused(lambda: xtrrep.load_model(value), "name")
    if value is not None:
        refused(lambda: xtrrep.load_model("somewhere", revision=value), "revision")
    refused(lambda: xtrrep.load_model("somewhere", device=value), "device")
    refused(lambda: xtrrep.run_config(value), "override")
    refused(lambda: xtrrep.run_config(until=value), "until")


@pytest.fixture(scope="module")
def model() -> Any:
    from xtrrep.config import Source, compose
    from xtrrep.model.encoder import get

    cfg = compose(["model.source=untrained", "model.layers=1", "model.n_query=8", "model.n_doc=24"]).model
    assert cfg.source is Source.untrained
    return get(cfg, None, "cpu")


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_encode_texts_refuses(value: Any, stores: Path, model: Any) -> None:
    texts = {"a": "some words"}
    refused(lambda: xtrrep.encode_texts(value, texts, stores), "model")
    refused(lambda: xtrrep.encode_texts(model, value, stores), "texts")
    refused(lambda: xtrrep.encode_texts(model, {"a": value}, stores), "texts['a']")
    refused(lambda: xtrrep.encode_texts(model, texts, value), "root")
    refused(lambda: xtrrep.encode_texts(model, texts, stores, task=value), "task")
    refused(lambda: xtrrep.encode_texts(model, texts, stores, precision=value), "precision")
    if not isinstance(value, int | float):
        refused(lambda: xtrrep.encode_texts(model, texts, stores, pool_factor=value), "pool_factor")
    if value is not None and not isinstance(value, int):
        refused(lambda: xtrrep.encode_texts(model, texts, stores, batch_tokens=value), "batch_tokens")
    if _hashes(value) and not isinstance(value, int):
        refused(lambda: xtrrep.encode_texts(model, {value: "x"}, stores), "texts")


def test_texts_that_cannot_be_encoded(stores: Path, model: Any) -> None:
    for texts, says in (({}, "no texts"), ({1: "x", "1": "y"}, "'1' twice"), ({"a": "\ud800"}, "surrogate")):
        with pytest.raises(DataError, match=says):
            xtrrep.encode_texts(model, texts, stores)
    with pytest.raises(DataError, match="'q' has no words"):
        xtrrep.encode_texts(model, {"q": " \n"}, stores, task="query")
    assert xtrrep.encode_texts(model, {3: "some words", "b": ""}, stores).ids == ["3", "b"]


def test_every_public_function_says_what_it_raises() -> None:
    for name in api.__all__:
        thing = getattr(xtrrep, name)
        assert thing.__doc__, name
        if name not in ("Index", "Result"):
            assert "Raises UsageError" in " ".join(thing.__doc__.split()), name
            assert "DataError" in thing.__doc__, name


# --- the process that we are a guest in -------------------------------------------------------------------------------


def test_no_state_of_the_process_is_touched(stores: Path, monkeypatch: pytest.MonkeyPatch, collections: Path) -> None:
    """Inside a Hydra application of the host: its config, its version base, threads, variables and logging stay."""
    import hydra
    import transformers
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import VersionBase

    monkeypatch.setenv("XTRREP_HOME", str(stores / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    conf = stores / "conf"
    conf.mkdir()
    (conf / "app.yaml").write_text("k: 5\n")
    store = ConfigStore.instance()
    store.store(name="schema", node={"mine": 1})
    with hydra.initialize_config_dir(str(conf), version_base="1.2"):
        before = (GlobalHydra.instance().hydra, VersionBase.instance().version_base, torch.get_num_threads())
        level, environment = transformers.logging.get_verbosity(), dict(os.environ)
        handlers = list(__import__("logging").getLogger().handlers)
        xtrrep.run_config("data=beir/mini/test", "index=bm25", "machine.threads=1")
        with pytest.raises(DataError):
            xtrrep.load_model(stores / "nothing")
        assert hydra.compose("app", overrides=["k=7"]).k == 7
        assert before == (GlobalHydra.instance().hydra, VersionBase.instance().version_base, torch.get_num_threads())
        assert transformers.logging.get_verbosity() == level
        assert dict(os.environ) == environment
        assert list(__import__("logging").getLogger().handlers) == handlers
        assert store.load("schema.yaml").node == {"mine": 1}


def test_four_threads_may_open_an_index(stores: Path) -> None:
    failed: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for turn in range(3):
                made = xtrrep.store_vectors({"a": EYE[:3], "b": EYE[3 + turn : 6 + turn]}, stores)
                index = xtrrep.build_index(made, "exact", stores)
                assert xtrrep.search(index, {number: EYE[:2]}, scoring="colbert", k_prime=5)[str(number)][0][0] == "a"
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_the_class_of_a_wrong_type_is_one() -> None:
    for call in (
        lambda: xtrrep.evaluate_run(NOT, RUN),
        lambda: xtrrep.store_vectors(NOT, "x"),
        lambda: xtrrep.build_index(NOT),
        lambda: xtrrep.search(NOT, {}),
        lambda: xtrrep.load_model(NOT),
        lambda: xtrrep.run_config(NOT),
        lambda: xtrrep.encode_texts(NOT, {}, "x"),
        lambda: xtrrep.change_documents(NOT, "x"),
    ):
        with pytest.raises(UsageError):
            call()
