"""A local folder in BEIR or LoTTE layout, read in place, with the file and line of whatever is wrong in it.

BEIR's own loader answers a broken line with a bare KeyError and drops the first line of a qrels file whatever it
holds, and `datasets.load_dataset` reads only the qrels of such a folder; hence a reader of our own.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from xtrrep import config as configs
from xtrrep.artifacts import write_atomic
from xtrrep.artifacts.hashes import hash_outside
from xtrrep.config import Data
from xtrrep.console import DataError
from xtrrep.data import LARGEST_GRADE, RENAME, Collection, id_fault, sources, text_fault

Rows = Iterator[tuple[str, str]]
QUERY_HEADERS = ("query-id", "query_id", "qid", "query")
GRADE = re.compile(" *[+-]?[0-9]{1,20} *")
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Layout:
    """The three files of a collection and how to read each of them."""

    name: str
    corpus: Path
    queries: Path
    qrels: Path
    read_texts: Callable[[Path, Container[str] | None], Rows]  # file, the ids that a run will hold (None: all)
    read_qrels: Callable[[Path], dict[str, dict[str, int]]]


def find_layout(folder: Path, split: str | None) -> Layout:
    """Recognise a folder. Raises DataError where it is absent, of no known layout, or lacks the split."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", hint="data.path=FOLDER names one in BEIR or LoTTE layout")
    corpus, queries = _maybe_zipped(folder / "corpus.jsonl"), _maybe_zipped(folder / "queries.jsonl")
    if corpus and queries:
        qrels = _need_split(folder, split, "qrels/", ".tsv")
        return Layout("beir", corpus, queries, qrels, _read_json_texts, _read_beir_qrels)
    collection = _maybe_zipped(folder / "collection.tsv")
    if collection:
        qas = _need_split(folder, split, "qas.", ".jsonl")
        questions = _maybe_zipped(folder / f"questions.{split}.tsv")
        if not questions:
            raise DataError(f"{folder} has {qas.name} but no questions.{split}.tsv", hint="copy both from LoTTE")
        return Layout("lotte", collection, questions, qas, _read_tsv_texts, _read_lotte_qas)
    raise DataError(
        f"{folder} is neither a BEIR folder (corpus.jsonl and queries.jsonl, qrels/SPLIT.tsv) "
        "nor a LoTTE folder (collection.tsv, questions.SPLIT.tsv, qas.SPLIT.jsonl), each file as it is or in .gz",
        hint="check data.path, and that the archive was unpacked",
    )


def _maybe_zipped(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _need_split(folder: Path, split: str | None, prefix: str, suffix: str) -> Path:
    """`FOLDER/PREFIXsplitSUFFIX`, or that in .gz. Raises DataError, naming the splits there are, where it is none."""
    if split and (path := _maybe_zipped(folder / f"{prefix}{split}{suffix}")):
        return path
    start = prefix.rpartition("/")[2]
    place = (folder / f"{prefix}x").parent
    names = [path.name.removesuffix(".gz") for path in place.glob(f"{start}*")]
    names = [name for name in names if name.endswith(suffix)]
    found = sorted({name[len(start) : -len(suffix)] for name in names})
    raise DataError(
        f"{folder} has no split {split!r}: there is no {prefix}{split}{suffix}",
        hint=f"splits here: {', '.join(found)}; data=ID ends in one, or data.split={found[0]} beside data.path"
        if found
        else f"put {prefix}SPLIT{suffix} there",
    )


def document_text(title: str | None, body: str) -> str:
    """Title, blank line, body, as the study reads BEIR (docs/protocol.md 4); one alone where the other is empty."""
    parts = [part for part in (title or "", body) if part.strip()]
    return "\n\n".join(parts)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of the lines of a file, or of a `.gz`, that are not blank.

    A byte order mark and CRLF are tolerated. Raises DataError for what is not UTF-8 or no whole gzip file.
    """
    number = 0
    try:
        with cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = (raw.removeprefix(BOM) if number == 1 else raw).decode().rstrip("\r\n")
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 ({error.reason})", hint="convert the file to UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a broken gzip file after line {number} ({error})", hint="fetch it again") from None


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`path:line`, object) of a JSON-lines file. Raises DataError for a line that is not a JSON object."""
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            raise DataError(f"{where}: not JSON ({error})", hint="every line must be one JSON object") from None
        if not isinstance(value, dict):
            raise DataError(f"{where}: a JSON {type(value).__name__}, not an object", hint='for example {"_id": "d1"}')
        yield where, value


def _id(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        problem = f"no field {key!r}" if key not in row else f"{key!r} is {value!r}"
        raise DataError(f"{where}: {problem}", hint=f"every line needs a {key!r} that is a text or a whole number")
    return _encodable(str(value), key, where)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        problem = f"no field {key!r}" if key not in row else f"{key!r} is a JSON {type(value).__name__}"
        raise DataError(f"{where}: {problem}", hint=f"every line needs a {key!r} that is a text, in quotes")
    return _encodable(value, key, where)


def _encodable(text: str, key: str, where: str) -> str:
    """The text as it is. Raises DataError where it cannot be written as UTF-8."""
    if fault := text_fault(text):
        raise DataError(f"{where}: {key!r} {fault}", hint="write the file again as UTF-8")
    return text


def _checked(rows: Iterable[tuple[str, str, str]], wanted: Container[str] | None) -> Rows:
    """Drop the `path:line` of (path:line, id, text).

    Raises DataError for an id that comes twice, and for one of those `wanted` (None: all) that no run file can hold.
    """
    seen: set[str] = set()
    for where, id, text in rows:
        if id in seen:
            raise DataError(f"{where}: the id {id!r} was used before", hint="ids must be unique in a file")
        if (wanted is None or id in wanted) and (fault := id_fault(id)):
            raise DataError(f"{where}: the id {id!r} {fault}", hint=RENAME)
        seen.add(id)
        yield id, text


def _read_json_texts(path: Path, wanted: Container[str] | None) -> Rows:
    """Ids and texts of `corpus.jsonl` or `queries.jsonl`."""

    def rows() -> Iterator[tuple[str, str, str]]:
        for where, row in read_json_lines(path):
            title = None if row.get("title") is None else _text(row, "title", where)
            yield where, _id(row, "_id", where), document_text(title, _text(row, "text", where))

    return _checked(rows(), wanted)


def _read_tsv_texts(path: Path, wanted: Container[str] | None) -> Rows:
    """Ids and texts of LoTTE's `collection.tsv` or `questions.SPLIT.tsv`."""

    def rows() -> Iterator[tuple[str, str, str]]:
        for number, line in read_lines(path):
            id, tab, text = line.partition("\t")
            if not tab or not id:
                raise DataError(
                    f"{path}:{number}: not an id, a tab and a text",
                    hint="one line each: 7, a tab, its text, as in LoTTE",
                )
            yield f"{path}:{number}", id, text

    return _checked(rows(), wanted)


def _read_beir_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Grades from `query-id<TAB>corpus-id<TAB>score`; a pair judged twice keeps its last grade, as in BEIR's loader.

    The first line is a header where it begins like one and its last field is no number.
    """
    qrels: dict[str, dict[str, int]] = {}
    first = True
    for number, line in read_lines(path):
        fields = line.split("\t")
        header = first and fields[0].strip().lower() in QUERY_HEADERS and not GRADE.fullmatch(fields[-1])
        first = False
        if header:
            continue
        if len(fields) != 3 or not fields[0] or not fields[1]:
            raise DataError(
                f"{path}:{number}: a line of {len(fields)} instead of 3 fields: query-id, corpus-id and score",
                hint="fields are separated by one tab",
            )
        if not GRADE.fullmatch(fields[2]):
            raise DataError(f"{path}:{number}: the grade {fields[2]!r} is not an integer", hint="for example 0, 1 or 2")
        grade = int(fields[2])
        if abs(grade) > LARGEST_GRADE:
            raise DataError(
                f"{path}:{number}: the grade {grade} is out of range",
                hint=f"grades lie between -{LARGEST_GRADE:,} and {LARGEST_GRADE:,}",
            )
        _judgeable(fields[1], f"{path}:{number}")
        qrels.setdefault(fields[0], {})[fields[1]] = grade
    return qrels


def _judgeable(document_id: str, where: str) -> None:
    """Raise DataError for an id that trec_eval would take for another: it ends one at a NUL."""
    if "\0" in document_id:
        raise DataError(f"{where}: the id {document_id!r} has a NUL character", hint=RENAME)


def _read_lotte_qas(path: Path) -> dict[str, dict[str, int]]:
    """Grade 1 for every answer of `qas.SPLIT.jsonl`."""
    qrels: dict[str, dict[str, int]] = {}
    for where, row in read_json_lines(path):
        answers = row.get("answer_pids")
        if not isinstance(answers, list):
            raise DataError(f"{where}: 'answer_pids' is not a list", hint='for example "answer_pids": [12, 7]')
        ids = [_id({"answer_pids": pid}, "answer_pids", where) for pid in answers]
        for id in ids:
            _judgeable(id, where)
        qrels.setdefault(_id(row, "qid", where), {}).update(dict.fromkeys(ids, 1))
    return qrels


def content_of(layout: Layout, max_queries: int | None) -> dict[str, str]:
    """Hashes of the three files. Which queries are read depends on the qrels too, so those enter `queries`."""
    queries, qrels, corpus = (
        hash_outside(path, configs.artifacts_root()) for path in (layout.queries, layout.qrels, layout.corpus)
    )
    asked = f"{layout.name}:{queries}:judged={qrels}"
    return {
        "corpus": f"{layout.name}:{corpus}",
        "queries": content_of_some(asked, max_queries),
        "qrels": f"{layout.name}:{qrels}",
    }


def content_of_some(content: str, max_queries: int | None) -> str:
    """The content of a query set cut to `some` of it."""
    return content if max_queries is None else f"{content}:some={max_queries}"


def some(queries: dict[str, str], max_queries: int | None) -> dict[str, str]:
    """At most `max_queries`, evenly spread over their order: the first ones of a file are often of one kind, such as
    one package's in `pydoc`, and say little of the rest."""
    if max_queries is None or len(queries) <= max_queries:
        return queries
    items = list(queries.items())
    return dict(items[i * len(items) // max_queries] for i in range(max_queries))


def read_folder(id: str, folder: Path, split: str | None, max_queries: int | None = None) -> Collection:
    """Open a BEIR or LoTTE folder: queries and qrels are read now, documents when asked for.

    Raises DataError, naming file and line, for anything malformed and for judged queries that have no text.
    Judgements of absent documents are kept: ArguAna has five, and they count against recall.
    """
    layout = find_layout(folder, split)
    qrels = layout.read_qrels(layout.qrels)
    texts = dict(layout.read_texts(layout.queries, qrels))
    blank = [query_id for query_id in qrels if query_id in texts and not texts[query_id].strip()]
    if blank:
        raise DataError(
            f"{layout.queries} has no text for {len(blank)} of {len(qrels)} judged queries, such as {blank[0]!r}",
            hint=f"give them a text, or take their judgements out of {layout.qrels.name}",
        )
    missing = [query_id for query_id in qrels if query_id not in texts]
    if missing:
        raise DataError(
            f"{layout.qrels} judges queries that have no text in {layout.queries.name}: {len(missing)} of "
            f"{len(qrels)}, the first is {missing[0]!r}",
            hint="both files must come from the same release of the collection",
        )
    queries = some({id: text for id, text in texts.items() if id in qrels}, max_queries)
    return Collection(
        id=id,
        documents=lambda: layout.read_texts(layout.corpus, None),
        queries=queries,
        qrels={query_id: qrels[query_id] for query_id in queries},
    )


def write_beir(
    out: Path,
    split: str,
    *,
    documents: Iterable[tuple[str, str, str]],
    queries: Iterable[tuple[str, str]],
    qrels: Iterable[tuple[str, str, int]],
) -> None:
    """Write (id, title, text) documents, (id, text) queries and (query, document, grade) judgements as a BEIR folder.

    Each file is written whole or not at all. Raises DataError for a text that is no UTF-8.
    """
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = ({"_id": id, "title": title, "text": text} for id, title, text in documents)
    for path, texts in (
        (out / "corpus.jsonl", corpus),
        (out / "queries.jsonl", ({"_id": id, "text": text} for id, text in queries)),
    ):
        _write(path, (_json_line(row, path) for row in texts))
    rows = (f"{query_id}\t{document_id}\t{grade}\n" for query_id, document_id, grade in qrels)
    _write(out / "qrels" / f"{split}.tsv", chain(["query-id\tcorpus-id\tscore\n"], rows))


def _json_line(row: dict[str, str], path: Path) -> str:
    for key, text in row.items():
        _encodable(text, key, f"{path}: {row['_id']!r}")
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(path: Path, lines: Iterable[str]) -> None:
    write_atomic(path, lambda file: file.writelines(line.encode() for line in lines))


@sources.register("folder", "a local folder in BEIR or LoTTE layout: data.path=FOLDER data.split=SPLIT")
class Folder:
    """Reads `cfg.path` in place; relative paths start at the current folder."""

    @staticmethod
    def content(cfg: Data) -> dict[str, str]:
        return content_of(find_layout(_path(cfg), cfg.split), cfg.max_queries)

    @staticmethod
    def prepare(cfg: Data, out: Path) -> None:
        find_layout(_path(cfg), cfg.split)

    @staticmethod
    def open(cfg: Data, out: Path) -> Collection:
        return read_folder(cfg.id, _path(cfg), cfg.split, cfg.max_queries)


def _path(cfg: Data) -> Path:
    if not cfg.path:
        raise DataError("data=folder needs a folder", hint="data.path=FOLDER data.split=SPLIT")
    return Path(cfg.path).expanduser()
