"""Training triples: what mining may pick, and what reading refuses."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xtrrep.console import DataError
from xtrrep.data import Collection
from xtrrep.data.streamed import Streamed
from xtrrep.data.triples import COLUMNS, mine, read_triples, what_is_odd

GOOD = {"query": "q", "positive": "p", "negative": "n", "extra": 1}


def make(texts: dict[str, str], queries: dict[str, str], qrels: dict[str, dict[str, int]]) -> Collection:
    return Collection("toy", lambda: iter(texts.items()), queries, qrels)


@pytest.fixture
def animals() -> Collection:
    texts = {f"d{n}": f"cat number{n} purrs" for n in range(40)} | {"copy": "cat number0 purrs", "x": "dogs", "e": ""}
    queries = {"q1": "purring cat", "q2": "cat number7", "q3": "unicorn"}
    qrels = {"q1": {"d0": 1, "d1": 2, "d2": 0, "absent": 1}, "q2": {"d7": 1}, "q3": {"x": 1}}
    return make(texts, queries, qrels)


def rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "triples.jsonl").read_text().splitlines()]


def test_mining_never_returns_a_positive(animals: Collection, tmp_path: Path) -> None:
    texts = dict(animals.documents())
    for seed in range(20):
        facts = mine(animals, tmp_path, seed=seed, depth=10)
        assert facts == {"triples": 4, "queries": 3, "random_negatives": 1}
        for row in rows(tmp_path):
            query_id = next(id for id, text in animals.queries.items() if text == row["query"])
            positives = {texts[id] for id, grade in animals.qrels[query_id].items() if grade > 0 and id in texts}
            assert row["positive"] in positives
            assert row["negative"] in texts.values()
            assert row["negative"] not in positives | {""}  # `copy` is a positive under another id


def test_negatives_come_from_the_top(animals: Collection, tmp_path: Path) -> None:
    seen = set()
    for seed in range(30):
        mine(animals, tmp_path, seed=seed, depth=3)
        seen |= {row["negative"] for row in rows(tmp_path) if row["query"] == "purring cat"}
    # All documents tie for this query, so rank is corpus order; d0, d1 and the copy of d0 are excluded.
    assert seen == {"cat number2 purrs", "cat number3 purrs", "cat number4 purrs"}


def test_mining_is_repeatable(animals: Collection, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        mine(animals, tmp_path / name, seed=seed)
    assert rows(tmp_path / "a") == rows(tmp_path / "b") != rows(tmp_path / "c")


def test_limits(animals: Collection, tmp_path: Path) -> None:
    assert mine(animals, tmp_path, seed=0, per_query=1) == {"triples": 3, "queries": 3, "random_negatives": 1}
    assert mine(animals, tmp_path, seed=0, max_triples=2)["triples"] == len(rows(tmp_path)) == 2


def test_nothing_to_mine(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only positive documents for the query 'q'"):
        mine(make({"a": "cat", "b": "cats"}, {"q": "cat"}, {"q": {"a": 1, "b": 1}}), tmp_path, seed=0)
    with pytest.raises(DataError, match="no positive judgement"):
        mine(make({"a": "cat"}, {"q": "cat"}, {"q": {"a": 0, "gone": 1}}), tmp_path, seed=0)
    assert not list(tmp_path.iterdir()) or not (tmp_path / "triples.jsonl").exists()


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_read_jsonl(tmp_path: Path) -> None:
    shuffled = {"negative": "n2", "positive": "p2", "query": "q2"}
    path = write(tmp_path / "t.jsonl", GOOD, shuffled)
    dataset = read_triples(str(path))
    assert dataset.column_names == COLUMNS
    assert list(dataset)[1] == shuffled
    assert len(list(read_triples(str(path), max_triples=1))) == 1


def test_read_follows_a_changed_file(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", GOOD)
    assert len(list(read_triples(str(path)))) == 1
    write(path, GOOD, GOOD)
    assert len(list(read_triples(str(path)))) == 2


def test_read_parquet_and_folder(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"negative": ["n", "n"], "query": ["a", "b"], "positive": ["p", "p"]}), tmp_path / "1.parquet"
    )
    assert read_triples(str(tmp_path / "1.parquet"), max_triples=1).column_names == COLUMNS
    write(tmp_path / "2.jsonl", GOOD)
    write(tmp_path / "notes.txt", "ignored")
    assert [row["query"] for row in read_triples(str(tmp_path))] == ["a", "b", "q"]
    assert [row["query"] for row in read_triples(str(tmp_path), max_triples=2)] == ["a", "b"]
    pq.write_table(pa.table({"query": ["a"], "positive": [" "], "negative": [None]}), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet: 'positive' is not a text with words in row 1"):
        read_triples(str(tmp_path / "bad.parquet"))
    write(tmp_path / "fake.parquet", "no parquet")
    with pytest.raises(DataError, match=r"fake\.parquet is not a Parquet file"):
        read_triples(str(tmp_path / "fake.parquet"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"t\.jsonl:2: not JSON"),
        (
            {"query": "q", "pos": "p", "negative": "n"},
            r"t\.jsonl:2: no column positive \(found: query, pos, negative\)",
        ),
        ({"query": "q", "positive": " ", "negative": "n"}, r"t\.jsonl:2: 'positive' is not a text with words: ' '"),
        ({"query": "", "positive": "p", "negative": "n"}, r"t\.jsonl:2: 'query' is not a text with words: ''"),
        ({"query": "q", "positive": "p"}, r"t\.jsonl:2: no column negative \(found: query, positive\)"),
        ({"query": "q", "positive": "p", "negative": None}, r"t\.jsonl:2: 'negative' is not a text with words: None"),
        ({"query": "q", "positive": "p", "negative": ""}, r"t\.jsonl:2: 'negative' is not a text with words: ''"),
        ({"query": "q", "positive": "p", "negative": []}, r"t\.jsonl:2: 'negative' is not a text with words: \[\]"),
        ({"query": "q", "positive": "p", "negative": ["n"]}, r"t\.jsonl:2: 'negative' is not a text with words"),
    ],
)
def test_broken_lines(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "t.jsonl", GOOD, line)
    with pytest.raises(DataError, match=message):
        read_triples(str(path))


def test_pairs_are_told_how_to_get_negatives(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"query": "q", "positive": "p"})
    with pytest.raises(DataError, match="no column negative") as caught:
        read_triples(str(path))
    assert "train.data=ID mines the negatives" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": ["a"], "positive": ["p"]}, r"t\.parquet: no column negative \(found: query, positive\)"),
        ({"query": ["a"] * 2, "positive": ["p"] * 2, "negative": ["n", None]}, r"'negative' is not a text .* in row 2"),
        ({"query": ["a"] * 2, "positive": ["p", ""], "negative": ["n"] * 2}, r"'positive' is not a text .* in row 2"),
        ({"query": ["a"], "positive": ["p"], "negative": [["n"]]}, r"t\.parquet is not a Parquet file of texts"),
    ],
)
def test_broken_parquet(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        read_triples(str(tmp_path / "t.parquet"))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_triples(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"holds no \.jsonl or \.parquet"):
        read_triples(str(tmp_path))
    with pytest.raises(DataError, match="holds no triple"):
        read_triples(str(write(tmp_path / "empty.jsonl")))


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"could not read someone/triples from the hub") as caught:
        read_triples("someone/triples")
    assert "train.triples=" in str(caught.value.hint)


ROWS = [{"negative": f"n{n}", "positive": f"p{n}", "id": n, "query": f"q{n}"} for n in range(23)]
FOUND = [{name: row[name] for name in COLUMNS} for row in ROWS]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`someone/triples` on a stand-in of the hub: the library's own streaming, over a folder of Parquet files."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    load = datasets.load_dataset

    def load_dataset(source: str, subset: str | None, *, revision: str | None, split: str, streaming: bool) -> object:
        assert (source, subset, revision, streaming) == ("someone/triples", None, "abc123", True)
        return load(str(folder.parent), split=split, streaming=streaming, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return folder


def publish(folder: Path, rows: list[dict[str, Any]]) -> None:
    for number, start in enumerate(range(0, len(rows), 10)):
        table = pa.Table.from_pylist(rows[start : start + 10])
        pq.write_table(table, folder / f"train-{number:05}-of-00003.parquet", row_group_size=4)


def stream(**changes: Any) -> Any:
    return read_triples("someone/triples", revision="abc123", **changes)


def sorted_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["query"]))


def test_a_stream_is_shuffled_by_its_seed(hub: Path) -> None:
    publish(hub, ROWS)
    dataset = stream()
    assert dataset.column_names == COLUMNS
    found = list(dataset)
    assert [list(row) for row in found] == [COLUMNS] * len(ROWS)  # the order is the loss's
    assert found != FOUND
    assert sorted_rows(found) == sorted_rows(FOUND)
    assert list(stream()) == found
    assert list(stream(seed=1)) != found
    again = stream()
    assert sorted_rows(again.rows(again.next_pass(None))) == sorted_rows(found)
    assert list(again.rows(again.next_pass(None))) != found
    few = stream(max_triples=12)
    first = list(few)
    assert len(first) == 12
    assert sorted_rows(few.rows(few.next_pass(None))) == sorted_rows(first)  # the same rows in every pass


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("at", [0, 1, 4, 9, 10, 17, 20])
def test_a_stream_resumes_where_it_was(hub: Path, at: int, block: int) -> None:
    publish(hub, ROWS)

    def made() -> Streamed:
        dataset = stream(max_triples=20)
        return replace(dataset, order=replace(dataset.order, block=block))

    dataset = made()
    rows = dataset.rows(None)
    head = [next(rows) for _ in range(at)]
    state = json.loads(json.dumps(dataset.position))  # a checkpoint keeps it on disk
    tail = list(rows)
    assert len(head + tail) == 20
    assert list(made().rows(state)) == tail


def test_a_stream_holds_one_block(hub: Path) -> None:
    publish(hub, ROWS)
    dataset = stream()
    dataset.order = replace(dataset.order, block=6)
    block, after = dataset._block({"pass": 0, "shard": 0, "inner": None, "row": 0, "read": 0})
    assert (len(block), after["read"]) == (6, 6)


@pytest.mark.parametrize("value", ["", "  ", None])
def test_bad_rows_of_a_stream_are_skipped_up_to_a_limit(
    hub: Path, value: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [dict(row) for row in ROWS]
    rows[14]["positive"] = value
    publish(hub, rows)
    dataset = stream(max_bad_rows=1)
    assert sorted_rows(dataset) == sorted_rows(FOUND[:14] + FOUND[15:])
    assert dataset.bad == 1
    message = rf"someone/triples: shard 2, row 5: 'positive' is not a text with words: {value!r}"
    assert message in capsys.readouterr().err
    with pytest.raises(DataError, match=rf"{message} \(1 bad rows, and train.max_bad_rows=0\)") as caught:
        list(stream())
    assert caught.value.hint == "train.max_bad_rows=10 skips them"


def test_what_is_odd_about_a_stream(hub: Path) -> None:
    """Unread columns before the first row; what was read is counted, over passes and across a checkpoint."""
    rows = [dict(row) for row in ROWS]
    for number in (2, 9, 21):
        rows[number]["negative"] = rows[number]["positive"]
    rows[14]["query"] = " "
    publish(hub, rows)
    dataset = stream(max_bad_rows=1)
    assert what_is_odd("someone/triples", dataset, 4) == ["someone/triples has columns that are not read: id"]
    assert dataset.what_was_odd() == []
    list(dataset)
    whole = [
        "1 of 23 rows read of someone/triples were skipped, since they cannot be used",
        "3 of 23 rows read of someone/triples have their positive as their negative too",
    ]
    assert dataset.what_was_odd() == whole
    again = stream(max_bad_rows=1)
    half = again.rows(None)
    for _ in range(11):
        next(half)
    state = json.loads(json.dumps(again.position))
    resumed = stream(max_bad_rows=1)
    list(resumed.rows(state))
    assert resumed.what_was_odd() == whole
    list(resumed.rows(resumed.next_pass(state)))
    assert resumed.what_was_odd() == [
        text.replace("1 of 23", "2 of 46").replace("3 of 23", "6 of 46") for text in whole
    ]
    resumed.go_to(state)  # the batches read ahead are not counted
    assert resumed.given == 11
    publish(hub, FOUND)
    assert what_is_odd("someone/triples", stream(), 4) == stream().what_was_odd() == []


def test_a_stream_without_negatives(hub: Path) -> None:
    publish(hub, [{"query": "q", "positive": "p"}])
    with pytest.raises(DataError, match=r"someone/triples: no column negative \(found: query, positive\)"):
        stream()
    publish(hub, [{"query": "q", "positive": "p", "negative": ["n"]}])
    with pytest.raises(DataError, match=r"row 1: 'negative' is not a text with words: \['n'\]"):
        list(stream())
    (hub / "train-00000-of-00003.parquet").unlink()
    (hub / "train.jsonl").write_text("\n")
    with pytest.raises(DataError, match="someone/triples"):
        stream()
