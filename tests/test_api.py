"""docs/API.md, run from top to bottom as a reader would; and what the functions refuse."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, unit_vectors

import xtrrep
from xtrrep.console import DataError, UsageError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def homes(tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    return tmp_path


def test_the_documented_page_runs(homes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = xtrrep.run_config(*TINY, until="train")
    names: dict[str, Any] = {
        "MODEL": str(trained.folder / "model"),
        "STORES": str(homes / "stores"),
        "OVERRIDES": [*TINY, "retrieve.k_prime=100"],
    }
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "API.md").read_text(), re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(block, names)
    assert names["run"]["q1"][0][0] == "paths"
    assert names["scores"]["RR@10"] > 0.5
    assert names["changed"].ids == ["page 2", "page 3"]
    assert 0 <= names["result"].facts["measures"]["nDCG@10"] <= 1
    assert trained.folder not in names["result"].ran  # re-used
    printed = capsys.readouterr().out
    assert "['paths', 'axes', 'files']" in printed
    assert "[('page 2'" in printed or "[('page 1'" in printed


def test_the_same_again_is_re_used(homes: Path) -> None:
    vectors = {f"d{i}": v for i, v in enumerate(unit_vectors(np.random.default_rng(0), 30, 16))}
    first, again = (xtrrep.store_vectors(vectors, homes / "stores") for _ in range(2))
    assert first.folder == again.folder
    made = xtrrep.build_index(first, "warp", homes / "stores", num_partitions=16)
    before = made.folder.stat().st_mtime_ns
    wider = xtrrep.build_index(first, "warp", homes / "stores", num_partitions=16, nprobe=3)
    assert wider.folder == made.folder
    assert made.folder.stat().st_mtime_ns == before
    assert wider.searcher.settings["nprobe"] == 3


def test_a_store_of_queries_and_plain_vectors_rank_alike(homes: Path) -> None:
    rng = np.random.default_rng(1)
    documents = xtrrep.store_vectors({f"d{i}": v for i, v in enumerate(unit_vectors(rng, 40, 16))}, homes)
    asked = {f"q{i}": v for i, v in enumerate(unit_vectors(rng, 4, 16, 3, 6))}
    queries = xtrrep.store_vectors(asked, homes, task="query")
    for engine, words in (("exact", {"k_prime": 30}), ("plaid", {})):
        index = xtrrep.build_index(documents, engine, homes)
        whole, plain = (xtrrep.search(index, q, top_k=5, **words) for q in (queries, asked))
        for name, ranking in whole.items():
            assert dict(ranking) == pytest.approx(dict(plain[name]), abs=1e-5)
        reranked = xtrrep.search(index, asked, top_k=5, rerank=40, **words)
        for name, ranking in reranked.items():
            maxsim = {
                d: float((asked[name].astype(np.float32) @ documents.vectors(i).astype(np.float32).T).max(1).sum())
                for i, d in enumerate(documents.ids)
            }
            for document, score in ranking:
                assert score == pytest.approx(maxsim[document], abs=1e-4)
            assert [s for _, s in ranking] == sorted((s for _, s in ranking), reverse=True)


def test_a_change_makes_a_new_store_and_leaves_the_old(homes: Path) -> None:
    rng = np.random.default_rng(2)
    arrays = unit_vectors(rng, 20, 16)
    parent = xtrrep.store_vectors({f"d{i}": v for i, v in enumerate(arrays)}, homes)
    new = unit_vectors(rng, 1, 16)[0]
    child = xtrrep.change_documents(parent, homes, add={"new": new, "d3": new}, delete=["d3", "d7"])
    assert child.fingerprint != parent.fingerprint
    assert child.ids == [f"d{i}" for i in range(20) if i not in (3, 7)] + ["new", "d3"]
    np.testing.assert_array_equal(child.vectors(child.ids.index("d8")), arrays[8])
    np.testing.assert_array_equal(child.vectors(child.ids.index("d3")), new)
    assert parent.ids == [f"d{i}" for i in range(20)]
    again = xtrrep.change_documents(parent, homes, add={"new": new, "d3": new}, delete=["d7", "d3"])
    assert again.folder == child.folder
    found = xtrrep.search(xtrrep.build_index(child, "exact", homes), {"q": new}, scoring="colbert", k_prime=10**6)["q"]
    assert {name for name, _ in found[:2]} == {"new", "d3"}
    assert "d7" not in dict(found)
    for words, says in (
        ({"delete": ["nobody"]}, "nobody"),
        ({"add": {"d1": new}}, "'d1' already"),
        ({"add": {"x": new[:, :8]}}, "dimension 16"),
    ):
        with pytest.raises(DataError, match=says):
            xtrrep.change_documents(parent, homes, **words)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.full((2, 8), np.nan), "not finite"),
        (np.zeros((2, 8)), "is zero"),
        (np.full((2, 8), 3.0), "length 8.49"),
        (np.ones((2, 9)) / 3, "dimension 8"),
    ],
)
def test_vectors_that_cannot_be_searched(homes: Path, rows: np.ndarray, says: str) -> None:
    good = np.eye(8)[:2]
    with pytest.raises(DataError, match=says) as caught:
        xtrrep.store_vectors({"good": good, "bad": rows}, homes)
    assert "'bad'" in str(caught.value)
    assert not list(homes.rglob("manifest.json"))


def test_normalize_makes_unit_vectors(homes: Path) -> None:
    store = xtrrep.store_vectors({"d": np.full((2, 4), 3.0)}, homes, normalize=True)
    np.testing.assert_allclose(store.vectors(0).astype(np.float32), 0.5, atol=1e-3)


def test_settings_that_do_not_fit(homes: Path) -> None:
    store = xtrrep.store_vectors(
        {f"d{i}": v for i, v in enumerate(unit_vectors(np.random.default_rng(0), 30, 16))}, homes
    )
    plaid, exact = (xtrrep.build_index(store, name, homes) for name in ("plaid", "exact"))
    query = {"q": np.eye(16)[:2]}
    for index, words, says in (
        (plaid, {"k_prime": 10}, "k_prime"),
        (plaid, {"imputation": "zero"}, "imputation"),
        (exact, {"top_k": 0}, "top_k"),
        (exact, {"k_prime": 0}, "k_prime"),
        (exact, {"scoring": "bm25"}, "bm25"),
    ):
        with pytest.raises(UsageError, match=says):
            xtrrep.search(index, query, **words)
    with pytest.raises(DataError, match="powerlaw"):
        xtrrep.search(exact, query, imputation="powerlaw")
    with pytest.raises(DataError, match="dimension 16"):
        xtrrep.search(exact, {"q": np.eye(8)})
    with pytest.raises(UsageError, match=r"no parameter|unknown key"):
        xtrrep.build_index(store, "plaid", homes, nprobes=3)
    with pytest.raises(UsageError, match="ranks words"):
        xtrrep.build_index(store, "bm25", homes)


def test_names_and_modules_do_not_collide() -> None:
    import xtrrep.measure.evaluate
    import xtrrep.retrieval.engines
    import xtrrep.store.encode

    for name in ("build_index", "encode_texts", "evaluate_run", "load_model", "run_config", "search", "store_vectors"):
        assert callable(getattr(xtrrep, name))
        assert name in dir(xtrrep)
    with pytest.raises(AttributeError, match="nonsense"):
        xtrrep.nonsense  # noqa: B018
