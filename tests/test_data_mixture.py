"""Several collections as one: what the parts hold, under ids that say which part."""

import json
from pathlib import Path

import pytest

from xtrrep.config import compose
from xtrrep.console import DataError, UsageError
from xtrrep.data import check, resolve, sources
from xtrrep.data.triples import mine

PARTS = ("data=lab/train", "data.parts=[beir/mini/test,beir/other/test]")


def write(folder: Path, documents: dict[str, str], queries: dict[str, str], positive: dict[str, str]) -> None:
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": id, "title": "", "text": text}) for id, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t1" for query, document in positive.items())]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two collections that use the same ids for other texts."""
    write(tmp_path / "mini", {"a": "red apples", "b": "blue skies"}, {"1": "apples?"}, {"1": "a"})
    write(
        tmp_path / "other", {"a": "green apples", "c": "grey seas"}, {"1": "sea", "2": "green?"}, {"1": "c", "2": "a"}
    )
    monkeypatch.setenv("XTRREP_DATA", str(tmp_path))
    return tmp_path


def test_a_mixture_holds_every_part_once(home: Path, tmp_path: Path) -> None:
    cfg = compose(PARTS).data
    source = sources.get(cfg.loader)
    source.prepare(cfg, tmp_path / "out")
    mixed = source.open(cfg, tmp_path / "out")
    assert dict(mixed.documents()) == {
        "0:a": "red apples",
        "0:b": "blue skies",
        "1:a": "green apples",
        "1:c": "grey seas",
    }
    assert mixed.queries == {"0:1": "apples?", "1:1": "sea", "1:2": "green?"}
    assert mixed.qrels == {"0:1": {"0:a": 1}, "1:1": {"1:c": 1}, "1:2": {"1:a": 1}}
    assert check(mixed) == {"documents": 4, "queries": 3, "judgements": 3, "judged_missing": 0}
    assert mine(mixed, tmp_path / "triples", seed=0)["triples"] == 3
    few = compose([*PARTS, "data.max_queries=2"]).data
    assert list(source.open(few, tmp_path / "out").qrels) == ["0:1", "1:1"]


def test_a_mixture_is_another_when_a_part_or_their_order_is(home: Path) -> None:
    def content(*words: str) -> str:
        data = compose(["data=lab/train", *words]).data
        return str(sources.get(data.loader).content(data))

    first = content("data.parts=[beir/mini/test,beir/other/test]")
    assert first == content("data.parts=[beir/mini/test,beir/other/test]")
    assert first != content("data.parts=[beir/other/test,beir/mini/test]")
    assert first != content("data.parts=[beir/mini/test]")
    with (home / "other" / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "d", "title": "", "text": "new"}) + "\n")
    assert first != content("data.parts=[beir/mini/test,beir/other/test]")


def test_a_mixture_of_nothing_of_itself_or_of_something_unknown_is_refused(home: Path) -> None:
    def fails(words: str) -> str:
        data = compose(["data=lab/train", f"data.parts={words}"]).data
        with pytest.raises((DataError, UsageError)) as caught:
            sources.get(data.loader).content(data)
        return str(caught.value)

    assert "a mixture of nothing" in fails("[]")
    assert "which is a mixture itself" in fails("[beir/mini/test,lab/train]")
    assert "no collection named 'beir/absent/test'" in fails("[beir/absent/test]")


def test_a_frozen_pydoc_is_read_from_the_local_folder(home: Path) -> None:
    assert resolve(compose(["data=pydoc/test"]).data).loader == "pydoc"
    (home / "pydoc").mkdir()
    (home / "mini").rename(home / "pydoc" / "test")
    found = resolve(compose(["data=pydoc/test"]).data)
    assert (found.loader, found.path, found.split) == ("folder", str(home / "pydoc" / "test"), "test")
    assert resolve(compose(["data=pydoc/train"]).data).loader == "pydoc"
