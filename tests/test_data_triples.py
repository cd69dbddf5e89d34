"""Training triples: what mining may pick, and what reading refuses."""

import json
from pathlib import Path

import pytest

from xtrrep.console import DataError
from xtrrep.data import Collection
from xtrrep.data.triples import COLUMNS, mine, read_triples

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
    import pyarrow as pa
    import pyarrow.parquet as pq

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
        ({"query": "q", "positive": " ", "negative": "n"}, r"t\.jsonl:2: 'positive' is not a text with words"),
        ({"query": "q", "positive": "p", "negative": ["n"]}, r"t\.jsonl:2: 'negative' is not a text with words"),
    ],
)
def test_broken_lines(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "t.jsonl", GOOD, line)
    with pytest.raises(DataError, match=message):
        read_triples(str(path))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_triples(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"holds no \.jsonl or \.parquet"):
        read_triples(str(tmp_path))
    with pytest.raises(DataError, match="holds no triple"):
        read_triples(str(write(tmp_path / "empty.jsonl")))


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"could not read someone/triples from the hub") as caught:
        read_triples("someone/triples")
    assert "train.triples=" in str(caught.value.hint)

    def stream(source: str, *, revision: str | None, split: str, streaming: bool) -> object:
        assert (revision, split, streaming) == ("abc", "train", True)
        return datasets.Dataset.from_list(
            [{"id": n, **dict(reversed(GOOD.items()))} for n in range(5)]
        ).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", stream)
    found = list(read_triples("someone/triples", revision="abc", max_triples=3))
    assert len(found) == 3
    assert list(found[0]) == COLUMNS
