"""Training triples and scored lists, in lines of JSON and in Parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from fuzz import reference
from fuzz.harness import Fault, Reader, agree, expectation, outcome_of, write_files
from fuzz.strategies import (
    BYTES,
    HALF,
    IDS,
    NUMBERS,
    TEXTS,
    VALUES,
    WORDS,
    Draw,
    FilesCase,
    json_line,
    odd_row,
)
from xtrrep.data.scored import read_scored
from xtrrep.data.triples import COLUMNS, read_triples

KINDS = [*TEXTS, "half surrogate in text", "odd field", *BYTES]


def _text(draw: Draw, kind: str) -> str:
    """A text of the kind, or one that is surely fine."""
    odd = HALF if kind == "half surrogate in text" else TEXTS.get(kind, WORDS)
    return draw(odd) if draw(st.booleans()) else draw(WORDS)


@st.composite
def triples_cases(draw: Draw) -> FilesCase:
    kind = draw(st.sampled_from(KINDS))
    rows: list[Any] = [{name: _text(draw, kind) for name in COLUMNS} for _ in range(draw(st.integers(1, 4)))]
    if kind == "odd field":
        rows[-1] = odd_row(draw, rows[-1])
    raw = b"".join(json_line(draw, row) for row in rows)
    return FilesCase(kind, {"t.jsonl": BYTES[kind](draw, raw) if kind in BYTES else raw})


def check_triples(case: FilesCase, folder: Path) -> bool:
    write_files(folder, case.files)
    expected = expectation(lambda: reference.triples("t.jsonl", case.files["t.jsonl"]))
    return agree(*outcome_of(lambda: read_triples(str(folder / "t.jsonl")).to_list()), expected, folder)


@dataclass(frozen=True)
class ColumnsCase:
    """Columns of a Parquet file as Python values or ready arrays, and how many bytes of the file are there."""

    kind: str
    columns: dict[str, Any]
    kept: float = 1.0
    flipped: int | None = None


PARQUET = ("numbers", "lists", "nulls", "bytes", "bytes that are no UTF-8", "a column less", "no row", "dictionary")


@st.composite
def parquet_cases(draw: Draw) -> ColumnsCase:
    texts = [name for name in TEXTS if name != "text of 1 MB"]
    kind = draw(st.sampled_from([*texts, *PARQUET, "cut short", "bytes changed"]))
    size = 0 if kind == "no row" else draw(st.integers(1, 4))
    columns: dict[str, Any] = {name: [_text(draw, kind) for _ in range(size)] for name in COLUMNS}
    odd = draw(st.sampled_from(COLUMNS))
    match kind:
        case "numbers":
            columns[odd] = [1.5] * size
        case "lists":
            columns[odd] = [["a"]] * size
        case "nulls":
            columns[odd] = draw(st.sampled_from([[None] * size, [*columns[odd][1:], None]]))
        case "bytes":
            columns[odd] = [text.encode() for text in columns[odd]]
        case "bytes that are no UTF-8":
            columns[odd] = [b"\xff"] * size
        case "a column less":
            del columns[odd]
        case "dictionary":
            columns[odd] = pa.array(columns[odd]).dictionary_encode()
    kept = draw(st.floats(0, 0.999)) if kind == "cut short" else 1.0
    return ColumnsCase(kind, columns, kept, draw(st.integers(0, 10**6)) if kind == "bytes changed" else None)


def _write_parquet(case: ColumnsCase, path: Path) -> None:
    pq.write_table(pa.table(case.columns), path)
    raw = bytearray(path.read_bytes())
    if case.flipped is not None:
        raw[case.flipped % len(raw)] ^= 1 + case.flipped % 255
    path.write_bytes(raw[: int(len(raw) * case.kept)])


def check_parquet(case: ColumnsCase, folder: Path) -> bool:
    path = folder / "t.parquet"
    _write_parquet(case, path)
    got, error = outcome_of(lambda: read_triples(str(path)).to_list())
    if case.flipped is not None:
        # Parquet's pages carry no checksum here, so a changed byte may be another text: it must be a text, or refused.
        if error is not None:
            return agree(got, error, Fault("t.parquet"), folder)
        assert all(isinstance(text, str) and text.strip() for row in got for text in row.values())
        return True
    expected = expectation(lambda: _parquet_reference(case))
    return agree(got, error, expected, folder)


def _parquet_reference(case: ColumnsCase) -> list[dict[str, str]]:
    columns = {
        name: list(getattr(values, "to_pylist", lambda values=values: values)())
        for name, values in case.columns.items()
    }
    if case.kept < 1 or not {*COLUMNS} <= columns.keys() or not columns["query"] or case.kind == "lists":
        raise Fault("t.parquet")
    rows = []
    for at in range(len(columns["query"])):
        row = {}
        for name in COLUMNS:
            value = columns[name][at]
            try:
                text = value.decode() if isinstance(value, bytes) else str(value)
            except UnicodeDecodeError:
                raise Fault("t.parquet") from None
            if value is None or not text.strip():
                raise Fault("t.parquet")
            row[name] = text
        rows.append(row)
    return rows


@dataclass(frozen=True)
class ScoredCase(FilesCase):
    n_ways: int = 2

    def __repr__(self) -> str:
        return f"{super().__repr__()}, n_ways={self.n_ways}"


@st.composite
def scored_cases(draw: Draw) -> ScoredCase:
    kind = draw(st.sampled_from([*KINDS, "odd score", "lists as text", "lists of different length"]))
    rows: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        documents = [_text(draw, kind) for _ in range(draw(st.integers(1, 4)))]
        rows.append(
            {"query": _text(draw, kind), "documents": documents, "scores": [1.0 - n for n in range(len(documents))]}
        )
    row = rows[-1]
    match kind:
        case "odd field":
            rows[-1] = odd_row(draw, row)
        case "odd score":
            row["scores"][draw(st.integers(0, len(row["scores"]) - 1))] = draw(st.one_of(NUMBERS, VALUES))
        case "lists of different length":
            row[draw(st.sampled_from(["documents", "scores"]))].append(draw(st.sampled_from(["x", 1.0])))
        case "lists as text":
            row["documents"] = draw(
                st.sampled_from([repr(row["documents"]), "[", "('a', 'b')", r"['\ud800', 'b']", "{1}", "0"])
            )
            row["scores"] = draw(st.sampled_from([str(row["scores"]), "[1, nan]", "[1e999, 0]", "(1, 2)", "[" * 500]))
    raw = b"".join(json_line(draw, row) for row in rows)
    return ScoredCase(kind, {"l.jsonl": BYTES[kind](draw, raw) if kind in BYTES else raw}, draw(st.integers(2, 3)))


def _ways(rows: Any, n_ways: int) -> list[list[Any]]:
    names = ["query", *(f"document_{n}" for n in range(1, n_ways + 1)), "label"]
    return [[row[name] for name in names] for row in rows]


def check_scored(case: ScoredCase, folder: Path) -> bool:
    write_files(folder, case.files)
    expected = expectation(lambda: reference.scored("l.jsonl", case.files["l.jsonl"], case.n_ways))

    def ours() -> Any:
        return _ways(read_scored(str(folder / "l.jsonl"), n_ways=case.n_ways).to_list(), case.n_ways)

    return agree(*outcome_of(ours), expected, folder)


@st.composite
def by_id_cases(draw: Draw) -> ScoredCase:
    """The layout of three parts: ids in the lists, texts beside them."""
    id_kinds = [name for name in IDS if name not in ("id with slashes", "odd id")]
    kind = draw(
        st.sampled_from([*id_kinds, "odd field", "id twice", "unknown id", "empty text", "half surrogate in text"])
    )
    queries: list[Any] = [{"query_id": n, "text": _text(draw, kind)} for n in range(2)]
    documents: list[Any] = [{"document_id": n, "text": _text(draw, kind)} for n in range(3)]
    lists: list[Any] = [{"query_id": n, "document_ids": [n, 2], "scores": [1, 0.5]} for n in range(2)]
    part = draw(st.sampled_from([queries, documents, lists]))
    match kind:
        case "odd field":
            part[-1] = odd_row(draw, part[-1])
        case "id twice":
            part.append(part[0])
        case "unknown id":
            lists[-1]["document_ids"][0] = draw(st.sampled_from([9, "9", -1, "x", True, None, 2**70]))
        case name if name in IDS:
            id = draw(IDS[name])
            key = "document_id" if part is documents else "query_id"
            part[0][key] = id
            if part is documents:
                lists[0]["document_ids"][0] = id
            elif part is queries:
                lists[0]["query_id"] = id
    parts = {"queries": queries, "documents": documents, "train": lists}
    files = {f"{name}.jsonl": b"".join(json_line(draw, row) for row in rows) for name, rows in parts.items()}
    return ScoredCase(kind, files)


def check_by_id(case: ScoredCase, folder: Path) -> bool:
    write_files(folder, case.files)
    expected = expectation(lambda: _by_id_reference(case))

    def ours() -> Any:
        return _ways(read_scored(str(folder), n_ways=2).to_list(), 2)

    return agree(*outcome_of(ours), expected, folder)


def _by_id_reference(case: ScoredCase) -> list[list[Any]]:
    texts: dict[str, dict[str, Any]] = {}
    for part, key in (("queries", "query_id"), ("documents", "document_id")):
        found: dict[str, Any] = {}
        for number, row in reference.objects(f"{part}.jsonl", case.files[f"{part}.jsonl"]):
            fault = Fault(f"{part}.jsonl", number)
            if not {key, "text"} <= row.keys() or type(row[key]) not in (str, int) or str(row[key]) in found:
                raise fault
            if reference.HALF.search(str(row[key])):
                raise fault
            if type(row["text"]) is str and reference.HALF.search(row["text"]):
                raise fault
            found[str(row[key])] = row["text"]
        texts[part] = found
    rows = []
    for number, row in reference.objects("train.jsonl", case.files["train.jsonl"]):
        fault = Fault("train.jsonl", number)
        if not {"query_id", "document_ids", "scores"} <= row.keys():
            raise fault
        ids, scores = reference.a_list(row["document_ids"], fault), reference.a_list(row["scores"], fault)
        if len(ids) != len(scores):
            raise fault
        if len(ids) < 2:
            continue
        labels = [reference.a_score(score, fault) for score in scores[:2]]
        asked = [(row["query_id"], "queries"), *((id, "documents") for id in ids[:2])]
        line = []
        for id, part in asked:
            if type(id) not in (str, int) or str(id) not in texts[part]:
                raise fault
            line.append(reference.words(texts[part][str(id)], fault))
        rows.append([*line, labels])
    if not rows:
        raise Fault("")
    return rows


READERS = [
    Reader("triples", 1200, triples_cases(), check_triples),
    Reader("triples in Parquet", 400, parquet_cases(), check_parquet),
    Reader("scored lists", 1000, scored_cases(), check_scored),
    Reader("scored lists by id", 500, by_id_cases(), check_by_id),
]


def check_triples_bytes(raw: bytes, folder: Path) -> bool:
    return check_triples(FilesCase("bytes", {"t.jsonl": raw}), folder)


def check_scored_bytes(raw: bytes, folder: Path) -> bool:
    return check_scored(ScoredCase("bytes", {"l.jsonl": raw}), folder)


BYTE_READERS = {
    "triples.jsonl": (check_triples_bytes, [b'{"query": "a", "positive": "b", "negative": "c"}\n']),
    "scored.jsonl": (
        check_scored_bytes,
        [
            b'{"query": "a", "documents": ["b", "c"], "scores": [1, 0.5]}\n',
            b'{"query": "a", "documents": "[\'b\', \'c\']", "scores": "[1, 2]"}\n',
        ],
    ),
}
