"""The embedded collection: what counts as a pair, and that training never sees the test set."""

import ast
from pathlib import Path

import pytest

from xtrrep.config import Data
from xtrrep.console import DataError
from xtrrep.data import Collection, check, pydoc, sources

FILLER = " ".join(["word"] * 40)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pydoc")
    sources.get("pydoc").prepare(Data(id="pydoc/test", loader="pydoc", split="test"), out)
    return out


@pytest.fixture(scope="session")
def collection(prepared: Path) -> Collection:
    return sources.get("pydoc").open(Data(id="pydoc/test", loader="pydoc", split="test"), prepared)


def test_held_out_collection(collection: Collection) -> None:
    facts = check(collection)
    assert 1400 < facts["documents"] == facts["queries"] == facts["judgements"] < 2000
    assert facts["judged_missing"] == 0
    assert {id.split(".")[0].split(":")[0] for id, _ in collection.documents()} == {"networkx", "numpy"}
    assert all(5 <= len(text.split()) <= 25 for text in collection.queries.values())
    assert all(len(text.split()) >= 40 for _, text in collection.documents())
    assert len({text.casefold() for text in collection.queries.values()}) == len(collection.queries)
    assert not any(char.isspace() for id in collection.queries for char in id)


def test_a_known_pair(collection: Collection) -> None:
    id = "networkx.algorithms.smallworld:random_reference"
    assert collection.queries[f"q:{id}"].startswith("Compute a random graph by swapping edges")
    assert collection.qrels[f"q:{id}"] == {id: 1}
    assert dict(collection.documents())[id].startswith("Parameters\n-----")


def test_two_builds_are_the_same(prepared: Path, tmp_path: Path) -> None:
    sources.get("pydoc").prepare(Data(id="pydoc/test", loader="pydoc", split="test"), tmp_path)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes()


def test_splits_without_leakage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docstrings = {
        "networkx": [("nx:a", "finds the shortest path here", f"one {FILLER}"), ("nx:b", "draws a graph", "b")],
        "numpy": [("np:a", "sorts the array in place", f"two {FILLER}")],
        "scipy": [
            ("sp:same_summary", "Finds the shortest path here", f"three {FILLER}"),
            ("sp:same_body", "orders the array in place", f"two {FILLER}"),
            ("sp:new", "solves a linear system quickly", f"four {FILLER}"),
            ("sp:new", "another function of that name", f"five {FILLER}"),
        ],
    }
    monkeypatch.setattr(pydoc, "_package_docstrings", lambda name: iter(docstrings.get(name, [])))

    def build(split: str) -> Collection:
        cfg = Data(id=f"pydoc/{split}", loader="pydoc", split=split)
        sources.get("pydoc").prepare(cfg, tmp_path / split)
        return sources.get("pydoc").open(cfg, tmp_path / split)

    train, test, hard = build("train"), build("test"), build("hard")
    assert [id for id, _ in train.documents()] == ["sp:new", "sp:new#2"]
    assert [id for id, _ in test.documents()] == ["nx:a", "nx:b", "np:a"]
    assert [id for id, _ in hard.documents()] == ["nx:a", "nx:b", "np:a", "sp:new", "sp:new#2"]
    assert (hard.queries, hard.qrels) == (test.queries, test.qrels)
    folded = {text.casefold() for text in test.queries.values()}
    assert not folded & {text.casefold() for text in train.queries.values()}
    assert not {text for _, text in test.documents()} & {text for _, text in train.documents()}


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        (f"Sort the\n   given array now.\n\n{FILLER}", "Sort the given array now."),
        (f"Sort the given array now.\n   \n{FILLER}", "Sort the given array now."),
        (f"Sort the array.\n\n{FILLER}", None),  # four words short of a question
        (f"{'very ' * 25}long.\n\n{FILLER}", None),
        (f"Sort the given array now.\n\n{FILLER[:-5]}", None),
        ("Sort the given array now.", None),
        ("", None),
    ],
)
def test_split_docstring(docstring: str, summary: str | None) -> None:
    parts = pydoc.split_docstring(docstring)
    assert (parts and parts[0]) == summary
    if parts:
        assert parts[1] == FILLER


def test_public_definitions() -> None:
    tree = ast.parse(
        "def f():\n  def inner(): ...\n"
        "def _hidden(): ...\n"
        "class C:\n  def m(self): ...\n  def __init__(self): ...\n  class D:\n    async def n(self): ...\n"
        "class _P:\n  def m(self): ...\n"
        "if True:\n  def g(): ...\n"
    )
    assert [name for name, _ in pydoc._public(tree.body, "")] == ["f", "C", "C.m", "C.D", "C.D.n", "g"]


def test_content_is_that_of_what_is_read() -> None:
    def content(split: str, max_queries: int | None = None) -> dict[str, str]:
        return sources.get("pydoc").content(Data(id="x", loader="pydoc", split=split, max_queries=max_queries))

    test, hard, train = content("test"), content("hard"), content("train")
    assert content("test") == test
    assert len({test["corpus"], hard["corpus"], train["corpus"]}) == 3
    assert (hard["queries"], hard["qrels"]) == (test["queries"], test["qrels"])
    assert train["queries"] != test["queries"]
    assert content("test", 7)["queries"] == test["queries"] + ":some=7"


def test_content_follows_versions_and_recorded_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Data(id="x", loader="pydoc", split="test")
    before = sources.get("pydoc").content(cfg)
    original = pydoc._sources
    monkeypatch.setattr(pydoc, "_sources", lambda name: [(path, "other") for path, _ in original(name)])
    assert sources.get("pydoc").content(cfg) != before


def test_missing_package_and_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'dev'"):
        sources.get("pydoc").prepare(Data(id="x", loader="pydoc", split="dev"), tmp_path)
    monkeypatch.setitem(pydoc.HELD_OUT, "no-such-package", "none")
    with pytest.raises(DataError, match="no-such-package, which is not installed") as caught:
        sources.get("pydoc").content(Data(id="x", loader="pydoc", split="test"))
    assert caught.value.hint == "pip install no-such-package"
