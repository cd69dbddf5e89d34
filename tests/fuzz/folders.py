"""Collections on disk: BEIR and LoTTE folders, and a BEIR folder written by us."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz import reference
from fuzz.harness import Reader, agree, check_message, expectation, outcome_of, write_files
from fuzz.strategies import BYTES, GZ, HALF, IDS, PLAIN, TEXTS, VALUES, Draw, FilesCase, gz_kinds, json_line, odd_row
from xtrrep.console import DataError
from xtrrep.data import check
from xtrrep.data.folder import read_folder, write_beir

GRADES: dict[str, list[str]] = {
    "negative grade": ["-1", "-1000000", " -2 ", "+1"],
    "huge grade": ["1000000", "1000001", "2147483648", "-9223372036854775809", "9" * 30, "9" * 5000],
    "grade that is no integer": [
        "1.0",
        "x",
        "",
        "1e3",
        "nan",
        "1_0",
        "٣",
        "²",
        "0x1",
        "True",
        "1 0",
        "\x1f1",
        "\u00a01",
    ],
}
JUDGED = {
    "unknown document": ["q0\tgone\t1", "q0\ta b\t1", "q0\td0\0\t1", "q0\t😀\t1"],
    "unknown query": ["gone\td0\t1", "q9\td0\t0", "\tq0\td0\t1"],
    "judged twice": ["q0\td0\t0", "q0\td0\t1\nq0\td0\t-1"],
    "odd header": [
        "qid\td0\t1",
        "query\tdoc\trel",
        "Query-ID \tx\ty",
        "query-id\ta\tb\nquery-id\ta\tscore",
    ],
    "wrong number of fields": ["q0 d0 1", "q0\td0", "q0\t0\td0\t1", "q0\t\t1", "q0\td0\t1\t"],
}
LINE_KINDS = [*TEXTS, "half surrogate in text", *IDS, *GRADES, *JUDGED, "odd field", "id twice"]
FILE_KINDS = [*BYTES, *GZ]


@st.composite
def beir_cases(draw: Draw) -> FilesCase:
    kind = draw(st.sampled_from([*LINE_KINDS, *FILE_KINDS]))
    text = TEXTS.get(kind, PLAIN)
    documents: list[Any] = [{"_id": f"d{n}", "title": "T", "text": "t"} for n in range(draw(st.integers(0, 3)) or 1)]
    queries: list[Any] = [{"_id": f"q{n}", "text": "who?"} for n in range(draw(st.integers(1, 3)))]
    for row in [*documents, *queries]:
        if draw(st.booleans()):
            row["text"] = draw(text)
        if "title" in row and draw(st.booleans()):
            row["title"] = draw(st.one_of(st.none(), text))
    lines = [f"{row['_id']}\td0\t{draw(st.integers(0, 2))}" for row in queries[1:]]
    lines.insert(0, "q0\td0\t1")
    at, rows = draw(st.sampled_from([(0, documents), (0, queries), (-1, documents), (-1, queries)]))
    if kind == "half surrogate in text":
        rows[at][draw(st.sampled_from(["text", "title"]))] = draw(HALF)
    elif kind in IDS:
        name = draw(IDS[kind])
        old, rows[at]["_id"] = rows[at]["_id"], name
        if draw(st.booleans()):  # the judgements follow
            lines = ["\t".join(str(name) if field == old else field for field in line.split("\t")) for line in lines]
    elif kind in GRADES:
        lines.insert(draw(st.integers(0, len(lines))), f"q0\tgone\t{draw(st.sampled_from(GRADES[kind]))}")
    elif kind in JUDGED:
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(JUDGED[kind])))
    elif kind == "odd field":
        rows[at] = odd_row(draw, rows[at])
    elif kind == "id twice":
        rows.append(dict(rows[at]))
    if draw(st.booleans()):
        lines.insert(0, "query-id\tcorpus-id\tscore")
    files = {
        "corpus.jsonl": b"".join(json_line(draw, row) for row in documents),
        "queries.jsonl": b"".join(json_line(draw, row) for row in queries),
        "qrels/test.tsv": ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"),
    }
    if kind in BYTES:
        name = draw(st.sampled_from(sorted(files)))
        files[name] = BYTES[kind](draw, files[name])
    elif kind in GZ:
        name = draw(st.sampled_from(["corpus.jsonl", "queries.jsonl"]))
        files[name + ".gz"] = gz_kinds(draw, files.pop(name))[kind]
    return FilesCase(kind, files)


def check_beir(case: FilesCase, folder: Path) -> bool:
    write_files(folder, case.files)

    def by_file(name: str) -> tuple[str, bytes]:
        return next((found, raw) for found, raw in case.files.items() if found.startswith(name))

    expected = expectation(
        lambda: reference.collection(
            lambda: reference.json_texts(*by_file("corpus")),
            lambda wanted: reference.json_texts(*by_file("queries"), wanted),
            "qrels/test.tsv",
            reference.beir_qrels("qrels/test.tsv", case.files["qrels/test.tsv"]),
        )
    )
    return _compare(folder, "test", expected)


def _compare(folder: Path, split: str, expected: Any) -> bool:
    def ours() -> Any:
        collection = read_folder("fuzzed", folder, split)
        counts = check(collection)
        documents = list(collection.documents())
        assert counts["documents"] == len(documents)
        assert list(collection.documents()) == documents, "a second pass differs"
        return documents, list(collection.queries.items()), collection.qrels

    return agree(*outcome_of(ours), expected, folder)


@st.composite
def lotte_cases(draw: Draw) -> FilesCase:
    kind = draw(st.sampled_from([*TEXTS, *IDS, "odd field", "id twice", "half surrogate in id", *BYTES]))
    text = TEXTS.get(kind, PLAIN)
    passages = [[str(n), draw(text) if draw(st.booleans()) else "t"] for n in range(draw(st.integers(1, 3)))]
    questions = [[str(n), draw(text) if draw(st.booleans()) else "who?"] for n in range(draw(st.integers(1, 2)))]
    answers: list[Any] = [{"qid": n, "query": "who?", "answer_pids": [0]} for n in range(len(questions))]
    rows = draw(st.sampled_from([passages, questions]))
    if kind in IDS:
        name = draw(IDS[kind])
        rows[0][0] = str(name)
        if rows is questions:
            answers[0]["qid"] = name
        else:
            answers[0]["answer_pids"].append(name)
    elif kind == "odd field":
        answers[0] = odd_row(draw, answers[0])
        if draw(st.booleans()):
            answers[0]["answer_pids"] = [0, draw(VALUES)]
    elif kind == "id twice":
        rows.append(rows[0])
    files = {
        "collection.tsv": _tsv(passages),
        "questions.search.tsv": _tsv(questions),
        "qas.search.jsonl": b"".join(json_line(draw, row) for row in answers),
    }
    if kind in BYTES:
        name = draw(st.sampled_from(sorted(files)))
        files[name] = BYTES[kind](draw, files[name])
    return FilesCase(kind, files)


def _tsv(rows: list[list[str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def check_lotte(case: FilesCase, folder: Path) -> bool:
    write_files(folder, case.files)
    files = case.files
    expected = expectation(
        lambda: reference.collection(
            lambda: reference.tsv_texts("collection.tsv", files["collection.tsv"]),
            lambda wanted: reference.tsv_texts("questions.search.tsv", files["questions.search.tsv"], wanted),
            "qas.search.jsonl",
            reference.lotte_qas("qas.search.jsonl", files["qas.search.jsonl"]),
        )
    )
    return _compare(folder, "search", expected)


@dataclass(frozen=True)
class WrittenCase:
    """A collection to write as a BEIR folder and read again: (id, title, text) documents and one query."""

    kind: str
    documents: list[tuple[str, str, str]]
    query: str


@st.composite
def written_cases(draw: Draw) -> WrittenCase:
    kind = draw(st.sampled_from([*TEXTS, "half surrogate in text"]))
    text = HALF if kind == "half surrogate in text" else TEXTS[kind]
    documents = [(f"d{n}", draw(text), draw(text)) for n in range(draw(st.integers(1, 3)))]
    return WrittenCase(kind, documents, draw(text))


def check_written(case: WrittenCase, folder: Path) -> bool:
    """What we write we read; what cannot be written leaves no file."""
    qrels = [("q", "d0", 1)]
    _, error = outcome_of(
        lambda: write_beir(folder, "test", documents=case.documents, queries=[("q", case.query)], qrels=qrels)
    )
    if case.kind == "half surrogate in text":
        assert isinstance(error, DataError), "half a surrogate pair was written"
        check_message(error, str(folder / "corpus.jsonl"))
        assert not (folder / "corpus.jsonl").exists(), "half a file is left"
        return False
    if error is not None:
        raise error
    collection, error = outcome_of(lambda: read_folder("fuzzed", folder, "test"))
    if not case.query.strip():
        assert error is not None, "a query without words was accepted"
        check_message(error, str(folder / "queries.jsonl"))
        return False
    wanted = [(id, "\n\n".join(part for part in (title, text) if part.strip())) for id, title, text in case.documents]
    assert list(collection.documents()) == wanted
    assert (collection.queries, collection.qrels) == ({"q": case.query}, {"q": {"d0": 1}})
    return True


READERS = [
    Reader("BEIR folder", 3000, beir_cases(), check_beir),
    Reader("LoTTE folder", 1500, lotte_cases(), check_lotte),
    Reader("BEIR folder written", 200, written_cases(), check_written),
]

# One file of bytes each, for the search that follows coverage: what the file is called, and its reference.
SMALL_CORPUS, SMALL_QUERIES = b'{"_id": "d0", "text": "t"}\n', b'{"_id": "q0", "text": "who?"}\n'


def check_corpus_bytes(raw: bytes, folder: Path) -> bool:
    return check_beir(_case(raw, SMALL_QUERIES, b"q0\td0\t1\n"), folder)


def check_queries_bytes(raw: bytes, folder: Path) -> bool:
    return check_beir(_case(SMALL_CORPUS, raw, b"q0\td0\t1\n"), folder)


def check_qrels_bytes(raw: bytes, folder: Path) -> bool:
    return check_beir(_case(SMALL_CORPUS, SMALL_QUERIES, raw), folder)


def _case(corpus: bytes, queries: bytes, qrels: bytes) -> FilesCase:
    return FilesCase("bytes", {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels/test.tsv": qrels})


def check_gz_bytes(raw: bytes, folder: Path) -> bool:
    files = {"corpus.jsonl.gz": raw, "queries.jsonl": SMALL_QUERIES, "qrels/test.tsv": b"q0\td0\t1\n"}
    return check_beir(FilesCase("bytes", files), folder)


def check_collection_tsv_bytes(raw: bytes, folder: Path) -> bool:
    return check_lotte(_lotte(raw, b'{"qid": 0, "answer_pids": [0]}\n'), folder)


def check_qas_bytes(raw: bytes, folder: Path) -> bool:
    return check_lotte(_lotte(b"0\tt\n", raw), folder)


def _lotte(passages: bytes, qas: bytes) -> FilesCase:
    files = {"collection.tsv": passages, "questions.search.tsv": b"0\twho?\n", "qas.search.jsonl": qas}
    return FilesCase("bytes", files)


BYTE_READERS = {
    "corpus.jsonl": (check_corpus_bytes, [SMALL_CORPUS, b'{"_id": 2, "title": "a", "text": "b"}\r\n' + SMALL_CORPUS]),
    "queries.jsonl": (check_queries_bytes, [SMALL_QUERIES]),
    "qrels.tsv": (check_qrels_bytes, [b"query-id\tcorpus-id\tscore\nq0\td0\t1\n", b"q0\td0\t-1\nq0\td0\t1"]),
    "corpus.jsonl.gz": (check_gz_bytes, [gzip.compress(SMALL_CORPUS, mtime=0)]),
    "collection.tsv": (check_collection_tsv_bytes, [b"0\tt\n1\tu\n"]),
    "qas.jsonl": (check_qas_bytes, [b'{"qid": 0, "query": "who?", "answer_pids": [0, 1]}\n']),
}
