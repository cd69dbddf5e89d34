"""Local folders: both layouts, every error with its file and line, and identity by content."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xtrrep.config import Data
from xtrrep.console import DataError
from xtrrep.data import Collection, check, irds, resolve, sources
from xtrrep.data.folder import read_folder, some, write_beir
from xtrrep.data.irds import corpus_id, download_mb

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "mini"
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": "d1", "title": "Fish", "text": "They Swim."},
        {"_id": 2, "title": "", "text": "Birds fly."},
        {"_id": "d3", "title": "Only a title", "text": ""},
        {"_id": "d4", "title": None, "text": "No title."},
    ]
    queries = [{"_id": "q2", "text": "who flies?"}, {"_id": "q9", "text": "unjudged"}, {"_id": "q1", "text": "swim"}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\tgone\t1\nq2\t2\t-1\n")
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td3\t1\n")
    return folder


@pytest.fixture
def lotte(tmp_path: Path) -> Path:
    folder = tmp_path / "topic"
    folder.mkdir()
    (folder / "collection.tsv").write_text("0\tfirst passage\n1\tsecond\twith a tab\n2\tthird\n")
    (folder / "questions.search.tsv").write_text("0\tfirst?\n1\tsecond?\n")
    qas = [{"qid": 0, "query": "first?", "answer_pids": [0, 2]}, {"qid": 1, "query": "second?", "answer_pids": [1]}]
    (folder / "qas.search.jsonl").write_text("".join(json.dumps(row) + "\n" for row in qas))
    return folder


def cfg_of(folder: Path, split: str | None = "test", max_queries: int | None = None) -> Data:
    return Data(id="mine", loader="folder", path=str(folder), split=split, max_queries=max_queries)


def read(folder: Path, split: str | None = "test", max_queries: int | None = None) -> Collection:
    return sources.get("folder").open(cfg_of(folder, split, max_queries), folder)


def test_beir_folder(beir: Path) -> None:
    collection = read(beir)
    expected = [("d1", "Fish\n\nThey Swim."), ("2", "Birds fly."), ("d3", "Only a title"), ("d4", "No title.")]
    assert list(collection.documents()) == expected
    assert list(collection.documents()) == expected  # a second pass starts again
    assert list(collection.queries.items()) == [("q2", "who flies?"), ("q1", "swim")]
    assert collection.qrels == {"q2": {"2": -1}, "q1": {"d1": 2, "gone": 1}}
    assert check(collection) == {"documents": 4, "queries": 2, "judgements": 3, "judged_missing": 1}


def test_bom_crlf_blank_lines_and_gzip(beir: Path) -> None:
    before = list(read(beir).documents())
    corpus, qrels = beir / "corpus.jsonl", beir / "qrels" / "test.tsv"
    text = b"\xef\xbb\xbf" + corpus.read_bytes().replace(b"\n", b"\r\n\r\n")
    (beir / "corpus.jsonl.gz").write_bytes(gzip.compress(text))
    corpus.unlink()
    qrels.write_bytes(b"\xef\xbb\xbf" + qrels.read_bytes().replace(b"\n", b"\r\n"))
    after = read(beir)
    assert list(after.documents()) == before
    assert after.qrels["q1"] == {"d1": 2, "gone": 1}


def test_lotte_folder(lotte: Path) -> None:
    collection = read(lotte, "search")
    assert list(collection.documents()) == [("0", "first passage"), ("1", "second\twith a tab"), ("2", "third")]
    assert collection.queries == {"0": "first?", "1": "second?"}
    assert collection.qrels == {"0": {"0": 1, "2": 1}, "1": {"1": 1}}
    assert check(collection)["judged_missing"] == 0


def test_lotte_split_is_search_or_forum(lotte: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'test'") as caught:
        read(lotte, "test")
    assert "data.split=search" in str(caught.value.hint)


def append(name: str, line: str | bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append("corpus.jsonl", "{broken"), r"corpus\.jsonl:5: not JSON"),
        (append("corpus.jsonl", "[1]"), r"corpus\.jsonl:5: a JSON list, not an object"),
        (append("corpus.jsonl", b"\xff\xfe"), r"corpus\.jsonl:5: not UTF-8"),
        (append("corpus.jsonl", '{"text": "x"}'), r"corpus\.jsonl:5: no field '_id'"),
        (append("corpus.jsonl", '{"_id": 1.5, "text": "x"}'), r"corpus\.jsonl:5: '_id' is 1\.5"),
        (append("corpus.jsonl", '{"_id": "x"}'), r"corpus\.jsonl:5: no field 'text'"),
        (append("corpus.jsonl", '{"_id": "x", "text": ["y"]}'), r"corpus\.jsonl:5: 'text' is a JSON list"),
        (append("corpus.jsonl", '{"_id": "x", "text": "y", "title": 3}'), r"corpus\.jsonl:5: 'title' is a JSON int"),
        (append("corpus.jsonl", '{"_id": "2", "text": "y"}'), r"corpus\.jsonl:5: the id '2' was used before"),
        (append("queries.jsonl", '{"_id": "q1", "text": "y"}'), r"queries\.jsonl:4: the id 'q1' was used before"),
        (append("qrels/test.tsv", "q1 d1 1"), r"test\.tsv:5: a line of 1 instead of 3 fields"),
        (append("qrels/test.tsv", "q1\t0\td1\t1"), r"test\.tsv:5: a line of 4 instead of 3 fields"),
        (append("qrels/test.tsv", "q1\td1\t1.0"), r"test\.tsv:5: the grade '1\.0' is not an integer"),
        (append("qrels/test.tsv", "q1\td1\t1_0"), r"test\.tsv:5: the grade '1_0' is not an integer"),
        (append("qrels/test.tsv", "q1\td1\t\x1f1"), r"test\.tsv:5: the grade '\\x1f1' is not an integer"),
        (append("qrels/test.tsv", "q1\td1\t1000001"), r"test\.tsv:5: the grade 1000001 is out of range"),
        (append("qrels/test.tsv", "q1\td1\0x\t1"), r"test\.tsv:5: the id 'd1\\x00x' has a NUL"),
        (append("corpus.jsonl", '{"_id": "a b", "text": "y"}'), r"corpus\.jsonl:5: the id 'a b' has white space"),
        (append("corpus.jsonl", '{"_id": "x", "text": "\\ud800"}'), r"corpus\.jsonl:5: 'text' has half of a surrogate"),
        (append("corpus.jsonl", "[" * 100000), r"corpus\.jsonl:5: not JSON"),
        (append("corpus.jsonl", '{"_id": ' + "9" * 5000 + "}"), r"corpus\.jsonl:5: not JSON"),
        (
            append("qrels/test.tsv", "q7\td1\t1\nq8\td1\t1"),
            r"judges queries that have no text .*: 2 of 4, the first is 'q7'",
        ),
    ],
)
def test_errors_name_file_and_line(beir: Path, change: Callable[[Path], None], message: str) -> None:
    change(beir)
    with pytest.raises(DataError, match=message):
        check(read(beir))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append("collection.tsv", "no tab"), r"collection\.tsv:4: not an id, a tab and a text"),
        (append("collection.tsv", "2\tagain"), r"collection\.tsv:4: the id '2' was used before"),
        (append("qas.search.jsonl", '{"qid": 1, "answer_pids": 3}'), r"search\.jsonl:3: 'answer_pids' is not a list"),
        (append("qas.search.jsonl", '{"answer_pids": [1]}'), r"search\.jsonl:3: no field 'qid'"),
        (append("qas.search.jsonl", '{"qid": 5, "answer_pids": [1]}'), r"judges queries .*: 1 of 3, the first is '5'"),
        (lambda folder: (folder / "questions.search.tsv").unlink(), r"no questions\.search\.tsv"),
    ],
)
def test_lotte_errors(lotte: Path, change: Callable[[Path], object], message: str) -> None:
    change(lotte)
    with pytest.raises(DataError, match=message):
        check(read(lotte, "search"))


def test_missing_folder_layout_and_split(tmp_path: Path, beir: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither a BEIR folder \(corpus\.jsonl.*nor a LoTTE folder"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"no split 'train': there is no qrels/train\.tsv") as caught:
        read(beir, "train")
    assert "dev, test" in str(caught.value.hint)
    assert "data=ID ends in one" in str(caught.value.hint)  # data.split= is refused beside a named collection
    with pytest.raises(DataError, match="no split None"):
        read(beir, None)
    with pytest.raises(DataError, match="needs a folder"):
        sources.get("folder").content(Data(id="x", loader="folder"))


def test_truncated_gzip(beir: Path) -> None:
    whole = gzip.compress((beir / "corpus.jsonl").read_bytes())
    (beir / "corpus.jsonl").unlink()
    (beir / "corpus.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match="broken gzip"):
        check(read(beir))


def test_a_damaged_gzip_names_the_file(beir: Path) -> None:
    whole = bytearray(gzip.compress((beir / "corpus.jsonl").read_bytes(), mtime=0))
    (beir / "corpus.jsonl").unlink()
    for at in range(10, len(whole) - 8):  # the deflated part: some damage is a zlib error and no gzip error
        (beir / "corpus.jsonl.gz").write_bytes(bytes([*whole[:at], whole[at] ^ 0xFF, *whole[at + 1 :]]))
        with pytest.raises(DataError, match=r"corpus\.jsonl\.gz"):
            check(read(beir))


def test_a_query_called_query_is_no_header(beir: Path) -> None:
    append("queries.jsonl", '{"_id": "query", "text": "y"}')(beir)
    (beir / "qrels" / "test.tsv").write_text("query\td1\t2\nq2\t2\t1\n")
    assert set(read(beir).qrels) == {"query", "q2"}


def test_first_line_of_headerless_qrels_is_kept(beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text("q1\td1\t2\nq2\t2\t1\n")
    assert set(read(beir).qrels) == {"q1", "q2"}


def test_check_refuses_empty_and_duplicates() -> None:
    def collection(ids: list[str], queries: dict[str, str]) -> Collection:
        return Collection("c", lambda: iter([(id, "text") for id in ids]), queries, {q: {"a": 1} for q in queries})

    with pytest.raises(DataError, match="empty corpus"):
        check(collection([], {"q": "x"}))
    with pytest.raises(DataError, match="two documents with the id 'a'"):
        check(collection(["a", "b", "a"], {"q": "x"}))
    with pytest.raises(DataError, match="no judged query"):
        check(collection(["a"], {}))


def test_content_follows_the_bytes_and_not_the_place(beir: Path) -> None:
    source = sources.get("folder")
    before = source.content(cfg_of(beir))
    moved = beir.rename(beir.with_name("moved"))
    assert source.content(cfg_of(moved)) == before
    append("corpus.jsonl", '{"_id": "d5", "text": "new"}')(moved)
    after = source.content(cfg_of(moved))
    assert after["corpus"] != before["corpus"]
    assert (after["queries"], after["qrels"]) == (before["queries"], before["qrels"])


def test_splits_share_a_corpus_but_not_their_queries(beir: Path) -> None:
    source = sources.get("folder")
    test, dev = source.content(cfg_of(beir)), source.content(cfg_of(beir, "dev"))
    assert test["corpus"] == dev["corpus"]
    assert test["queries"] != dev["queries"]  # the split decides which queries are read
    assert test["qrels"] != dev["qrels"]


def test_max_queries_cuts_and_enters_the_identity(beir: Path) -> None:
    collection = read(beir, max_queries=1)
    assert list(collection.queries) == list(collection.qrels) == ["q2"]
    source = sources.get("folder")
    whole, cut = source.content(cfg_of(beir)), source.content(cfg_of(beir, max_queries=1))
    assert cut["queries"] == whole["queries"] + ":some=1"
    assert cut["corpus"] == whole["corpus"]


def test_some_queries_are_spread_over_all_of_them() -> None:
    """The reference is numpy's: n starts of n even pieces."""
    queries = {f"q{i}": f"text {i}" for i in range(17)}
    for count in range(1, 20):
        starts = np.floor(np.linspace(0, 17, min(count, 17), endpoint=False) + 1e-9).astype(int)
        assert list(some(queries, count)) == [f"q{i}" for i in starts]
    assert some(queries, None) == queries


def test_write_beir_round_trip(tmp_path: Path) -> None:
    write_beir(
        tmp_path,
        "test",
        documents=[("d", "Title", "a\tb\nc"), ("e", "", "é")],
        queries=[("q", "what?")],
        qrels=[("q", "d", 3)],
    )
    collection = read_folder("back", tmp_path, "test")
    assert list(collection.documents()) == [("d", "Title\n\na\tb\nc"), ("e", "é")]
    assert (collection.queries, collection.qrels) == ({"q": "what?"}, {"q": {"d": 3}})


def test_local_folders_serve_ir_datasets_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nfcorpus/qrels/test.tsv", "arguana/qrels/test.tsv", "webis-touche2020/qrels/test.tsv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name in ("lotte/writing/test", "lotte/science"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "qas.search.jsonl").touch()

    def where(id: str) -> tuple[str, str | None, str | None]:
        cfg = resolve(Data(id=id, loader="ir_datasets", split="given", drop_self=True))
        assert (cfg.id, cfg.drop_self) == (id, True)
        return cfg.loader, cfg.path and str(Path(cfg.path).relative_to(tmp_path)), cfg.split

    monkeypatch.delenv("XTRREP_DATA", raising=False)
    assert where("beir/nfcorpus/test") == ("ir_datasets", None, "given")
    monkeypatch.setenv("XTRREP_DATA", str(tmp_path))
    assert where("beir/nfcorpus/test") == ("folder", "nfcorpus", "test")
    assert where("beir/nfcorpus/train")[0] == "ir_datasets"  # no such qrels there
    assert where("beir/arguana") == ("folder", "arguana", "test")
    assert where("beir/webis-touche2020/v2") == ("folder", "webis-touche2020", "test")
    assert where("beir/webis-touche2020")[0] == "ir_datasets"  # v1 is another corpus
    assert where("lotte/writing/test/search") == ("folder", "lotte/writing/test", "search")
    assert where("lotte/science/test/search") == ("folder", "lotte/science", "search")
    assert where("lotte/science/dev/search")[0] == "ir_datasets"


def test_ir_datasets_ids_and_sizes() -> None:
    assert corpus_id("beir/nfcorpus/test") == "beir/nfcorpus"
    assert corpus_id("beir/arguana") == "beir/arguana"
    assert corpus_id("beir/webis-touche2020/v2") == "beir/webis-touche2020/v2"
    assert corpus_id("lotte/science/test/search") == "lotte/science/test"
    assert download_mb(Data(id="beir/nfcorpus/test", loader="ir_datasets")) == 3
    assert download_mb(Data(id="beir/unknown", loader="ir_datasets")) is None


def test_unknown_ir_datasets_id_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="knows no collection") as caught:
        sources.get("ir_datasets").prepare(Data(id="beir/nfcorpu/test", loader="ir_datasets"), tmp_path)
    assert "beir/nfcorpus/test" in str(caught.value.hint)
    with pytest.raises(DataError, match="no judged queries"):
        sources.get("ir_datasets").prepare(Data(id="beir/nfcorpus", loader="ir_datasets"), tmp_path)


class FakeIrDataset:
    """As much of an ir-datasets dataset as is read."""

    def metadata(self) -> dict[str, dict[str, int]]:
        return {"docs": {"count": 2}}

    def docs_iter(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(doc_id="a", title="Title", text="body"),
            SimpleNamespace(doc_id="b", text="LoTTE and MS MARCO have no titles"),
        ]

    def queries_iter(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(query_id="1", text="what?")]

    def qrels_iter(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(query_id="1", doc_id="b", relevance=2)]


def test_ir_datasets_become_a_beir_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cfg = sources.get("ir_datasets"), Data(id="msmarco-passage/dev/small", loader="ir_datasets", split="test")
    monkeypatch.setattr(irds, "_load", lambda id: FakeIrDataset())
    source.prepare(cfg, tmp_path)
    collection = source.open(cfg, tmp_path)
    assert list(collection.documents()) == [("a", "Title\n\nbody"), ("b", "LoTTE and MS MARCO have no titles")]
    assert (collection.queries, collection.qrels) == ({"1": "what?"}, {"1": {"b": 2}})


def test_no_network_says_where_a_local_copy_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: FakeIrDataset) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(irds, "_load", lambda id: FakeIrDataset())
    monkeypatch.setattr(FakeIrDataset, "qrels_iter", unreachable)
    with pytest.raises(DataError, match=r"could not download msmarco-passage/dev \(Name or service") as caught:
        sources.get("ir_datasets").prepare(Data(id="msmarco-passage/dev", loader="ir_datasets"), tmp_path / "out")
    assert "data.path=FOLDER" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_every_shipped_collection_is_known_where_it_is_loaded_from() -> None:
    import ir_datasets
    import yaml

    root = Path(__file__).parents[1] / "configs" / "data"
    for path in root.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        assert content["id"] == str(path.relative_to(root).with_suffix(""))
        cfg = Data(**content)
        assert cfg.loader in sources.entries()
        if cfg.loader == "ir_datasets":
            assert ir_datasets.load(cfg.id).has_qrels()
            assert cfg.download_mb == download_mb(cfg)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared collections are not on this machine")
def test_nfcorpus_counts_are_the_published_ones() -> None:
    facts = check(read_folder("nfcorpus", SHARED / "nfcorpus", "test"))
    assert facts == {"documents": 3633, "queries": 323, "judgements": 12334, "judged_missing": 0}
