"""Scored lists: both layouts, on disk and streamed, what is left out, and what is refused where."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xtrrep.console import DataError
from xtrrep.data import scored
from xtrrep.data.scored import local_files, read_scored

LISTS = [
    {"query": f"q{n}", "documents": [f"d{n}{w}" for w in "abcd"], "scores": [n + 0.5, 3, -1.25, 0.1]} for n in range(6)
]
GOOD = LISTS[0]


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def expected(rows: list[dict[str, Any]], n_ways: int) -> list[dict[str, Any]]:
    return [
        {"query": row["query"]}
        | {f"document_{at + 1}": row["documents"][at] for at in range(n_ways)}
        | {"label": row["scores"][:n_ways]}
        for row in rows
    ]


def by_id(rows: list[dict[str, Any]], as_text: bool) -> dict[str, list[dict[str, Any]]]:
    """The three parts of an id layout that hold the same lists; `as_text` writes lists as the hub's data does."""
    lists, queries, documents = [], [], []
    for n, row in enumerate(rows):
        ids = [100 * n + at for at in range(len(row["documents"]))]
        queries.append({"query_id": n, "text": row["query"]})
        documents += [{"document_id": id, "text": text} for id, text in zip(ids, row["documents"], strict=True)]
        scores = row["scores"]
        lists.append(
            {
                "query_id": n,
                "document_ids": str(ids) if as_text else ids,
                "scores": str(scores) if as_text else [float(s) for s in scores],
            }
        )
    return {"train": lists, "queries": queries, "documents": documents[::-1]}


def as_parquet(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def hub_folder(folder: Path, as_text: bool = True, lists: list[dict[str, Any]] = LISTS) -> Path:
    """The three subsets of lightonai/ms-marco-en-bge-gemma as a dataset repository holds them: its card names them."""
    parts = by_id(lists, as_text)
    files = {"train": "dataset", "queries": "english_queries.train", "documents": "english_collection"}
    lines = ["---", "configs:"]
    for part, name in files.items():
        as_parquet(folder / f"{name}.parquet", parts[part])
        lines += [f"- config_name: {part}", "  data_files:", "  - split: train", f"    path: {name}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`someone/lists` on a stand-in of the hub: the library's own streaming, over a local folder."""
    folder = tmp_path / "hub"
    folder.mkdir()
    load, names = datasets.load_dataset, datasets.get_dataset_config_names

    def local(source: str, revision: str | None) -> str:
        assert (source, revision) == ("someone/lists", "abc123")
        return str(folder)

    def load_dataset(source: str, subset: str | None, *, revision: str | None, split: str, streaming: bool) -> object:
        assert streaming == (subset in ("train", None))  # lists are streamed, texts are looked up
        cache = str(tmp_path / "cache")
        return load(local(source, revision), subset, split=split, streaming=streaming, cache_dir=cache)

    def config_names(source: str, *, revision: str | None) -> list[str]:
        return names(local(source, revision))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", config_names)
    return folder


def stream(**changes: Any) -> Any:
    return read_scored("someone/lists", revision="abc123", **({"n_ways": 3} | changes))


# --- on disk ------------------------------------------------------------------------------------------------------


def test_files_of_texts(tmp_path: Path) -> None:
    write(tmp_path / "1.jsonl", *LISTS[:2])
    as_parquet(tmp_path / "2.parquet", [{**row, "scores": [float(s) for s in row["scores"]]} for row in LISTS[2:]])
    write(tmp_path / "notes.txt", "ignored")
    dataset = read_scored(str(tmp_path), n_ways=4)
    assert dataset.column_names == ["query", "document_1", "document_2", "document_3", "document_4", "label"]
    assert list(dataset) == expected(LISTS, 4)
    assert list(read_scored(str(tmp_path / "1.jsonl"), n_ways=2)) == expected(LISTS[:2], 2)
    assert list(read_scored(str(tmp_path), n_ways=3, max_queries=3)) == expected(LISTS[:3], 3)
    assert [path.name for path in local_files(str(tmp_path))] == ["1.jsonl", "2.parquet"]
    assert local_files("someone/lists") == []


@pytest.mark.parametrize("as_text", [True, False])
def test_folders_of_ids(tmp_path: Path, as_text: bool) -> None:
    parts = by_id(LISTS, as_text)
    as_parquet(tmp_path / "train" / "0.parquet", parts["train"][:4])
    as_parquet(tmp_path / "train" / "1.parquet", parts["train"][4:])
    write(tmp_path / "queries.jsonl", *parts["queries"])
    as_parquet(tmp_path / "documents.parquet", parts["documents"])
    assert list(read_scored(str(tmp_path), n_ways=3)) == expected(LISTS, 3)
    names = [str(path.relative_to(tmp_path)) for path in local_files(str(tmp_path))]
    assert names == ["train/0.parquet", "train/1.parquet", "queries.jsonl", "documents.parquet"]


def test_an_id_is_a_text_or_a_number(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"query_id": "1", "document_ids": ["x", 7], "scores": [1, 2]})
    write(tmp_path / "queries.jsonl", {"query_id": 1, "text": "q"})
    write(tmp_path / "documents.jsonl", {"document_id": "x", "text": "dx"}, {"document_id": "7", "text": "d7"})
    (row,) = read_scored(str(tmp_path), n_ways=2)
    assert (row["query"], row["document_1"], row["document_2"]) == ("q", "dx", "d7")


def test_short_lists_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = {"query": "short", "documents": ["a", "b"], "scores": [1, 2]}
    path = write(tmp_path / "l.jsonl", short, *LISTS[:2], short, LISTS[2])
    assert list(read_scored(str(path), n_ways=3)) == expected(LISTS[:3], 3)
    assert "note: 2 of 5 lists have fewer than 3 candidates and are left out" in capsys.readouterr().err
    assert list(read_scored(str(path), n_ways=3, max_queries=2)) == expected(LISTS[:2], 3)
    with pytest.raises(DataError, match=r"no list of .*l\.jsonl has 5 candidates: the longest has 4") as caught:
        read_scored(str(path), n_ways=5)
    assert caught.value.hint == "distill.n_ways=4"


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", GOOD)
    assert len(read_scored(str(path), n_ways=2)) == 1
    write(path, GOOD, LISTS[1])
    assert len(read_scored(str(path), n_ways=2)) == 2


BAD = [
    ({"query": "q", "docs": ["a"], "scores": [1]}, r"no column documents \(found: query, docs, scores\)"),
    ({"query": "q"}, r"no column documents, scores \(found: query\)"),
    ({**GOOD, "scores": [1, 2, 3]}, r"3 scores for 4 documents"),
    ({**GOOD, "scores": [1, 2, 3, 4, 5]}, r"5 scores for 4 documents"),
    ({**GOOD, "scores": [1, float("nan"), 3, 4]}, r"score 2 is not a finite number: nan"),
    ({**GOOD, "scores": [1, 2, float("-inf"), 4]}, r"score 3 is not a finite number: -inf"),
    ({**GOOD, "scores": [1, 10**400, 3, 4]}, r"score 2 is not a finite number: 1000"),
    ({**GOOD, "scores": ["1", 2, 3, 4]}, r"score 1 is not a finite number: '1'"),
    ({**GOOD, "scores": [True, 2, 3, 4]}, r"score 1 is not a finite number: True"),
    ({**GOOD, "scores": [None, 2, 3, 4]}, r"score 1 is not a finite number: None"),
    ({**GOOD, "scores": 3}, r"'scores' is not a list: 3"),
    ({**GOOD, "scores": "1 2 3 4"}, r"'scores' is a text, not a list"),
    ({**GOOD, "scores": "[nan, 2, 3, 4]"}, r"'scores' is a text, not a list"),
    ({**GOOD, "documents": [], "scores": []}, r"'documents' is an empty list"),
    ({**GOOD, "documents": None}, r"'documents' is not a list: None"),
    ({**GOOD, "documents": ["a", " ", "c", "d"]}, r"'document 2' is not a text with words: ' '"),
    ({**GOOD, "documents": ["a", None, "c", "d"]}, r"'document 2' is not a text with words: None"),
    ({**GOOD, "documents": ["a", ["b"], "c", "d"]}, r"'document 2' is not a text with words: \['b'\]"),
    ({**GOOD, "query": ""}, r"'query' is not a text with words: ''"),
    ({**GOOD, "query": None}, r"'query' is not a text with words: None"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_lists_of_texts(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "l.jsonl", GOOD, row)
    with pytest.raises(DataError, match=r"l\.jsonl:2: " + message):
        read_scored(str(path), n_ways=3)


def test_bad_parquet(tmp_path: Path) -> None:
    rows = [{**row, "scores": [float(s) for s in row["scores"]]} for row in LISTS]
    rows[4]["scores"] = [1.0, float("inf"), 2.0, 3.0]
    path = as_parquet(tmp_path / "l.parquet", rows)
    with pytest.raises(DataError, match=r"l\.parquet: row 5: score 2 is not a finite number: inf"):
        read_scored(str(path), n_ways=3)
    as_parquet(path, [{"query": "q", "texts": ["a"], "scores": [1.0]}])
    with pytest.raises(DataError, match=r"l\.parquet: no column documents \(found: query, texts, scores\)"):
        read_scored(str(path), n_ways=3)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"l\.parquet is not a Parquet file"):
        read_scored(str(path), n_ways=3)


def id_folder(folder: Path, change: Callable[[dict[str, list[dict[str, Any]]]], None]) -> Path:
    parts = by_id(LISTS, as_text=False)
    change(parts)
    for part, rows in parts.items():
        write(folder / f"{part}.jsonl", *rows)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["train"][1].update(document_ids=[100, 999, 102]) or p["train"][1].update(scores=[1, 2, 3]),
         r"train\.jsonl:2: ID '999' from input column 'document_ids' has no text"),
        (lambda p: p["train"][2].update(query_id="77"), r"train\.jsonl:3: ID '77' from input column 'query_id' has no"),
        (lambda p: p["train"][2].update(query_id=None), r"train\.jsonl:3: 'query_id' holds None, which is not an id"),
        (lambda p: p["train"][0].update(document_ids=[1.5] * 4), r"train\.jsonl:1: 'document_ids' holds 1\.5, which"),
        (lambda p: p["train"][0].update(scores=[1]), r"train\.jsonl:1: 1 scores for 4 document_ids"),
        (lambda p: p["train"][3].pop("scores"), r"train\.jsonl:4: no column scores \(found: query_id, document_ids\)"),
        (lambda p: p["queries"][4].update(text=" "), r"train\.jsonl:5: 'query 4' is not a text with words"),
        (lambda p: p["documents"][-2].update(text=None), r"train\.jsonl:1: 'document 1' is not a text with words"),
        (lambda p: p["documents"].append({"document_id": 3, "text": "x"}), r"documents\.jsonl:25: the id '3' was used"),
        (lambda p: p["queries"][0].pop("query_id"), r"queries\.jsonl:1: no column query_id \(found: text\)"),
    ],
)  # fmt: skip
def test_bad_lists_of_ids(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_scored(str(id_folder(tmp_path, change)), n_ways=3)


def test_a_text_that_no_list_uses_may_be_empty(tmp_path: Path) -> None:
    folder = id_folder(tmp_path, lambda parts: parts["documents"].append({"document_id": "unused", "text": ""}))
    assert list(read_scored(str(folder), n_ways=4)) == expected(LISTS, 4)


def test_missing_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        read_scored(str(tmp_path / "none.jsonl"), n_ways=2)
    assert "distill.lists=" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"holds no \.jsonl or \.parquet"):
        read_scored(str(tmp_path), n_ways=2)
    write(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"empty\.jsonl holds no list"):
        read_scored(str(tmp_path / "empty.jsonl"), n_ways=2)
    write(tmp_path / "documents.jsonl", {"document_id": 1, "text": "d"})
    with pytest.raises(DataError, match=r"has no train and no queries \(found: documents\.jsonl, empty\.jsonl\)"):
        read_scored(str(tmp_path), n_ways=2)


# --- streamed -----------------------------------------------------------------------------------------------------


def sorted_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=str)


@pytest.mark.parametrize("as_text", [True, False])
def test_streamed_ids(hub: Path, as_text: bool) -> None:
    hub_folder(hub, as_text)
    dataset = stream()
    assert dataset.column_names == ["query", "document_1", "document_2", "document_3", "label"]
    assert sorted_rows(dataset) == sorted_rows(expected(LISTS, 3))
    assert sorted_rows(stream(max_queries=4)) == sorted_rows(expected(LISTS[:4], 3))


def test_streamed_texts(hub: Path) -> None:
    write(hub / "train.jsonl", *LISTS)
    assert sorted_rows(stream()) == sorted_rows(expected(LISTS, 3))


@pytest.mark.parametrize("at", range(5))
def test_a_stream_resumes_where_it_was(hub: Path, at: int) -> None:
    short = {"query": "short", "documents": ["a", "b"], "scores": [1, 2]}
    hub_folder(hub, lists=[LISTS[0], short, *LISTS[1:3], short, *LISTS[3:]])
    dataset = stream()
    rows = dataset.rows(None)
    head = [next(rows) for _ in range(at)]
    state = json.loads(json.dumps(dataset.position))  # a checkpoint keeps it on disk
    tail = list(rows)
    assert sorted_rows(head + tail) == sorted_rows(expected(LISTS, 3))
    assert list(stream().rows(state if at else None)) == tail


def test_bad_lists_of_a_stream_are_skipped_and_counted(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{**GOOD, "documents": ["a", "", "c"], "scores": [1, 2, 3]}]
    short = [{"query": "short", "documents": ["a", "b"], "scores": [1, 2]}]
    write(hub / "train.jsonl", *(LISTS * 20), *short, *bad)
    dataset = stream(max_bad_rows=1)
    assert sorted_rows(dataset) == sorted_rows(expected(LISTS, 3) * 20)
    assert dataset.bad == 1
    said = capsys.readouterr().err
    assert "row 121 has 2 candidates" in said
    assert "row 122: 'document 2' is not a text with words" in said
    with pytest.raises(DataError, match=r"row 122: 'document 2' is not a text .*distill.max_bad_rows=0"):
        list(stream())


@pytest.mark.parametrize(("row", "message"), BAD[:6])
def test_a_stream_whose_head_is_bad(hub: Path, row: dict[str, Any], message: str) -> None:
    write(hub / "train.jsonl", row)
    with pytest.raises(DataError, match=r"someone/lists: (row 1: )?" + message):
        stream()


def test_a_stream_that_cannot_be_used(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_folder(hub)
    with pytest.raises(DataError, match=r"no list of the first 6 lists of someone/lists has 5 candidates: the longest"):
        stream(n_ways=5)

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nfor many reasons")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"could not read someone/lists .*\(ConnectionError: Couldn't reach the Hub\)$"):
        stream()
    monkeypatch.setattr(datasets, "get_dataset_config_names", unreachable)
    with pytest.raises(DataError, match=r"could not read someone/lists") as caught:
        stream()
    assert "distill.lists=FILE.jsonl" in str(caught.value.hint)


def test_columns_of_lists_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    row = {"query": "q", "documents": ["a", "b"], "scores": [1.0, 0.5], "source": "web"}
    path.write_text(json.dumps(row) + "\n")
    assert scored.what_is_odd(str(path), scored.read_scored(str(path), n_ways=2)) == [
        f"{path} has columns that are not read: source"
    ]
    path.write_text(json.dumps({key: row[key] for key in ("query", "documents", "scores")}) + "\n")
    assert scored.what_is_odd(str(path), scored.read_scored(str(path), n_ways=2)) == []
