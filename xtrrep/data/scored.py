"""Scored lists for distillation: a query, candidate documents, and what a teacher scores each of them.

Lists come in two layouts, in local files and on the hub alike:

    texts   query, documents (a list of texts), scores (a list of numbers)
    ids     three parts: `train` with query_id, document_ids and scores, `queries` with query_id and text, `documents`
            with document_id and text

The second is the layout of lightonai/ms-marco-en-bge-gemma, the study's data (docs/protocol.md 2). That dataset
writes its lists as text, "[12, 7]", so a list in a text is read as the list.
"""

from __future__ import annotations

import ast
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError, machine_error, progress, say
from xtrrep.data import Collection, text_fault, triples
from xtrrep.data.folder import read_json_lines
from xtrrep.data.streamed import Order, Streamed
from xtrrep.data.triples import SUFFIXES, Corpus, need_columns, need_text

if TYPE_CHECKING:
    from datasets import Dataset

TEXTS = ("query", "documents", "scores")
IDS = ("query_id", "document_ids", "scores")
PARTS = ("train", "queries", "documents")
HINT = "distill.lists=FILE.jsonl with query, documents and scores, or a folder with train, queries and documents"
ROWS_AT_ONCE = 4096
PEEK = 100  # rows of a stream that are tried before training starts

Row = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How lists are written: three columns, and from where, row and number of candidates to query and candidates."""

    columns: tuple[str, str, str]
    resolve: Callable[[str, Row, int], tuple[str, list[str]]]


# --- choosing the candidates a teacher will score -----------------------------------------------------------------


@dataclass(frozen=True)
class Candidates:
    """A query's text and its candidates' texts; the first is judged positive, the others are not."""

    query: str
    documents: list[str]


def choose(
    collection: Collection, *, n_ways: int, max_queries: int | None, seed: int, depth: int = 30
) -> tuple[list[Candidates], int]:
    """One list a query, and how many candidates of all lists are random ones.

    Candidate 1 is one of the query's positives, by lot. The other `n_ways` - 1 are drawn from the `depth` best BM25
    hits that are neither positive nor a copy of a positive or of each other, and keep their order; random documents
    fill up where BM25 has too few. `max_queries` is a random sample by `seed`. Raises DataError where the collection
    has no judged positive, or too few documents for a list.
    """
    corpus = Corpus.of(collection)
    rng = random.Random(seed)
    wanted = triples.sample_pairs(collection, corpus, rng, 1, max_queries)
    lists, filled = [], 0
    for query_id, positive, hits in triples.hard_negatives(collection, corpus, wanted, max(depth, n_ways - 1)):
        texts = list(dict.fromkeys(corpus.texts[number] for number in hits))
        if len(texts) > n_ways - 1:
            texts = [texts[at] for at in sorted(rng.sample(range(len(texts)), n_ways - 1))]
        while len(texts) < n_ways - 1:
            number = triples.random_negative(collection, corpus, query_id, rng, texts)
            if number is None:
                raise DataError(
                    f"{collection.id} has only {len(texts)} different documents that are not relevant to the query "
                    f"{query_id!r}, and a list of {n_ways} needs {n_ways - 1}",
                    hint=f"distill.n_ways={len(texts) + 1}" if texts else "add documents that are not relevant",
                )
            texts.append(corpus.texts[number])
            filled += 1
        lists.append(Candidates(collection.queries[query_id], [corpus.texts[positive], *texts]))
    return lists, filled


# --- reading lists ------------------------------------------------------------------------------------------------


def read_scored(
    source: str,
    *,
    revision: str | None = None,
    n_ways: int,
    max_queries: int | None = None,
    seed: int = 42,
    max_bad_rows: int = 0,
) -> Dataset | Streamed:
    """Lists with the columns query, document_1 to document_N and label (N floats), where N is `n_ways`.

    They are the first N candidates of each list, in the order given. `source` is a `.jsonl` or `.parquet` file of
    lists of texts, a folder of such files, a folder with `train`, `queries` and `documents` (each a `.jsonl`, a
    `.parquet` or a folder of them), or a dataset id on the hub in either layout. Files are read into memory. From the
    hub the lists of split `train` at `revision` are streamed in an order by `seed`; the queries and documents that ids
    refer to go through the hub's cache on disk.

    A list with fewer than N candidates is left out, and how many were is said; `max_queries` takes the first lists of
    those that stay. Raises DataError, naming the line or row, for a missing column, a list that is empty or no list,
    scores of another number than the candidates, a score that is no finite number, a text without words, an unknown
    id, where no list has N candidates, and where the hub cannot be read. Of a stream, bad lists are skipped until
    there are more than `max_bad_rows`, where the first 100 hold a good one.
    """
    if n_ways < 2:
        raise ValueError(f"n_ways={n_ways}: a list needs two candidates to compare")
    files = _find(source)
    if files is None:
        return _stream_hub(source, revision, n_ways, Order(seed, max_queries, "distill", max_bad_rows))
    return _read_local(source, files, n_ways, max_queries)


def what_is_odd(source: str, lists: Dataset | Streamed) -> list[str]:
    """What of lists is not read, in words: columns beside the three."""
    if isinstance(lists, Streamed):
        return triples.unread_columns(source, lists.unread)
    files = _find(source)
    if files is None:
        return []
    known = set(IDS if files.documents else TEXTS)
    return triples.unread_columns(source, {name for file in files.lists for name in triples.columns_of(file)} - known)


def local_files(source: str) -> list[Path]:
    """All files of a local `source`, lists first; none where it is a hub id. Raises DataError for a missing one."""
    files = _find(source)
    return [] if files is None else [*files.lists, *files.queries, *files.documents]


@dataclass(frozen=True)
class _Files:
    """The files of a local source. Without queries and documents, the lists hold texts."""

    lists: list[Path]
    queries: list[Path]
    documents: list[Path]


def _find(source: str) -> _Files | None:
    folder = Path(source).expanduser()
    if folder.is_dir():
        parts = {name: _part(folder, name) for name in PARTS}
        if parts["queries"] or parts["documents"]:
            missing = [name for name in PARTS if not parts[name]]
            if missing:
                found = ", ".join(sorted(path.name for path in folder.iterdir()))
                raise DataError(f"{folder} has no {' and no '.join(missing)} (found: {found})", hint=HINT)
            return _Files(parts["train"], parts["queries"], parts["documents"])
    files = triples.local_files(source, hint=HINT)
    return _Files(files, [], []) if files else None


def _part(folder: Path, name: str) -> list[Path]:
    """`FOLDER/name.jsonl`, `FOLDER/name.parquet`, or such files in `FOLDER/name/`."""
    inside = folder / name
    if inside.is_dir():
        return sorted(path for path in inside.iterdir() if path.suffix in SUFFIXES)
    return [path for path in (folder / f"{name}{suffix}" for suffix in SUFFIXES) if path.is_file()]


def _read_local(source: str, files: _Files, n_ways: int, limit: int | None) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset

    layout = Layout(TEXTS, _from_texts)
    if files.documents:
        layout = _from_ids(_read_texts(files.queries, "query_id"), _read_texts(files.documents, "document_id"))
    fields = [pa.field(name, pa.large_string()) for name in _columns(n_ways)[:-1]]
    schema = pa.schema([*fields, pa.field("label", pa.list_(pa.float64()))])
    tables: list[pa.Table] = []
    block: list[Row] = []
    kept = skipped = longest = 0
    rows = (pair for path in files.lists for pair in _rows(path, layout.columns))
    with progress(min(sum(map(_count, files.lists)), limit or sys.maxsize), "read scored lists", "list") as bar:
        for where, row in rows:
            found, size = _list(where, row, n_ways, layout)
            longest = max(longest, size)
            skipped += found is None
            if found is not None:
                kept += 1
                block.append(found)
                bar.update(1)
            if len(block) == ROWS_AT_ONCE:
                tables.append(pa.Table.from_pylist(block, schema=schema))
                block = []
            if kept == limit:
                break
    if not kept:
        raise _none_long_enough(source, n_ways, longest)
    if skipped:
        say(f"  note: {skipped} of {kept + skipped} lists have fewer than {n_ways} candidates and are left out")
    tables.append(pa.Table.from_pylist(block, schema=schema))
    return Dataset(pa.concat_tables(tables))


def _none_long_enough(source: str, n_ways: int, longest: int) -> DataError:
    if not longest:
        return DataError(f"{source} holds no list", hint=HINT)
    return DataError(
        f"no list of {source} has {n_ways} candidates: the longest has {longest}",
        hint=f"distill.n_ways={longest}" if longest > 1 else "a list needs two candidates and more",
    )


def _columns(n_ways: int) -> list[str]:
    return ["query", *(f"document_{number}" for number in range(1, n_ways + 1)), "label"]


def _count(path: Path) -> int:
    """Rows of a file, or lines, for the progress bar only."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError):  # the reader says what is wrong with it
            return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """(`file:line` or `file: row n`, row) of a file. Raises DataError where one of the columns is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = HINT if columns is not IDS else "lists of ids have the columns query_id, document_ids and scores"
    if path.suffix != ".parquet":
        for where, row in read_json_lines(path):
            need_columns(where, row, columns, hint)
            yield where, row
        return
    try:
        with pq.ParquetFile(path) as file:
            need_columns(str(path), file.schema_arrow.names, columns, hint)
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # a damaged page is an OSError
        raise machine_error(error) or DataError(
            f"{path} is not a Parquet file ({error})", hint="fetch or write it again"
        ) from None


def _list(where: str, row: Row, n_ways: int, layout: Layout) -> tuple[Row | None, int]:
    """The row of training columns, None where it has too few candidates, and how many candidates it has."""
    name = layout.columns[1]
    size = len(_values(where, row, name))
    scores = _values(where, row, "scores")
    if len(scores) != size:
        raise DataError(
            f"{where}: {len(scores)} scores for {size} {name}", hint="scores has one number for each candidate"
        )
    if size < n_ways:
        return None, size
    label = [_score(where, number, value) for number, value in enumerate(scores[:n_ways], 1)]
    query, documents = layout.resolve(where, row, n_ways)
    return dict(zip(_columns(n_ways), [query, *documents, label], strict=True)), size


def _values(where: str, row: Row, name: str) -> list[Any]:
    value = row[name]
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise DataError(
                f"{where}: {name!r} is a text, not a list: {value!r}"[:300], hint="a list, for example [3, 7]"
            ) from None
    if not isinstance(value, list | tuple) or not value:
        what = "an empty list" if isinstance(value, list | tuple) else f"not a list: {value!r}"
        raise DataError(f"{where}: {name!r} is {what}"[:300], hint="one entry for each candidate")
    return list(value)


def _score(where: str, number: int, value: Any) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer that no float holds
        pass
    raise DataError(
        f"{where}: score {number} is not a finite number: {value!r}"[:300], hint="leave the list out, or score it again"
    )


def _from_texts(where: str, row: Row, n_ways: int) -> tuple[str, list[str]]:
    documents = _values(where, row, "documents")[:n_ways]
    query = need_text(where, "query", row["query"])
    return query, [need_text(where, f"document {number}", text) for number, text in enumerate(documents, 1)]


def _from_ids(queries: Dataset, documents: Dataset) -> Layout:
    """Look texts up by id. The datasets have the columns query_id or document_id, and text."""
    from sentence_transformers.util import resolve_ids

    # Borrowed for its index of sorted ids, which holds MS MARCO's 8.8 million in a fraction of a dict's memory.
    lookup = resolve_ids(
        {"query_id": (queries, "query_id", "text"), "document_ids": (documents, "document_id", "text")},
        output_format="lists",
    )
    query_kind = _id_kind(queries, "query_id")
    document_kind = _id_kind(documents, "document_id")

    def resolve(where: str, row: Row, n_ways: int) -> tuple[str, list[str]]:
        names = _values(where, row, "document_ids")[:n_ways]
        ids = [_id(where, "document_ids", name, document_kind) for name in names]
        query_id = _id(where, "query_id", row["query_id"], query_kind)
        try:
            found = lookup({"query_id": [query_id], "document_ids": [ids]})
        except KeyError as error:
            raise DataError(
                f"{where}: {str(error.args[0]).partition(' was not')[0]} has no text",
                hint="train, queries and documents must be of the same release",
            ) from None
        query = need_text(where, f"query {query_id}", found["query"][0])
        pairs = zip(ids, found["documents"][0], strict=True)
        return query, [need_text(where, f"document {id}", text) for id, text in pairs]

    return Layout(IDS, resolve)


def _id_kind(dataset: Dataset, column: str) -> type[int] | type[str]:
    return int if "int" in str(dataset.features[column].dtype) else str


def _id(where: str, name: str, value: Any, kind: type[int] | type[str]) -> int | str:
    """An id as its lookup writes it: 7 and "7" are the same one."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: {name!r} holds {value!r}, which is not an id", hint="ids are texts or whole numbers")
    try:
        return kind(value)
    except ValueError:
        raise DataError(
            f"{where}: {name!r} holds {value!r}, but the texts' ids are whole numbers",
            hint="the lists and the texts must be of one release",
        ) from None


def _read_texts(files: list[Path], key: str) -> Dataset:
    """Ids (as texts) and texts. Raises DataError for an id that is missing or occurs twice."""
    import pyarrow as pa
    from datasets import Dataset

    schema = pa.schema([(key, pa.large_string()), ("text", pa.large_string())])
    tables: list[pa.Table] = []
    seen: set[str] = set()
    with progress(sum(map(_count, files)), f"read {key.removesuffix('_id')} texts", "text") as bar:
        for path in files:
            ids: list[str] = []
            texts: list[Any] = []
            for where, row in _rows(path, (key, "text")):
                name = str(_id(where, key, row[key], str))
                if name in seen:
                    raise DataError(f"{where}: the id {name!r} was used before", hint="every id needs one text")
                seen.add(name)
                if fault := text_fault(name) or (text_fault(row["text"]) if isinstance(row["text"], str) else None):
                    raise DataError(f"{where}: {name!r} or its text {fault}", hint="write the file again as UTF-8")
                ids.append(name)
                texts.append(row["text"] if isinstance(row["text"], str) else None)  # refused where a list uses it
                bar.update(1)
            tables.append(pa.table([ids, texts], schema=schema))
    return Dataset(pa.concat_tables(tables))


def _stream_hub(source: str, revision: str | None, n_ways: int, order: Order) -> Streamed:
    from datasets import get_dataset_config_names

    hint = "check the id and the network, or name local files: distill.lists=FILE.jsonl"
    try:
        copy = triples.cached_copy(source, revision)
        subsets = get_dataset_config_names(str(copy or source), revision=None if copy else revision)
    except Exception as error:  # datasets, huggingface_hub and the HTTP client each raise their own kinds
        raise triples.hub_error(source, error, hint) from error
    by_id = set(subsets) >= set(PARTS)
    stream, first = triples.open_hub(source, "train" if by_id else None, revision, streaming=True, hint=hint)
    need_columns(source, first, IDS if by_id else TEXTS, HINT)
    layout = Layout(TEXTS, _from_texts)
    if by_id:
        say(f"  fetching the queries and documents of {source}, unless they are in the hub's cache")
        texts = [triples.open_hub(source, part, revision, streaming=False, hint=hint) for part in PARTS[1:]]
        for (_, row), part, key in zip(texts, PARTS[1:], ("query_id", "document_id"), strict=True):
            need_columns(f"{source} ({part})", row, (key, "text"), HINT)
        layout = _from_ids(texts[0][0], texts[1][0])
    head = [_peek(f"{source}: row {number}", row, n_ways, layout) for number, row in enumerate(islice(stream, PEEK), 1)]
    faults = [found for found in head if isinstance(found, DataError)]
    sizes = [found for found in head if isinstance(found, int)]
    if not any(size >= n_ways for size in sizes):
        raise faults[0] if faults else _none_long_enough(f"the first {len(head)} lists of {source}", n_ways, max(sizes))
    told = False

    def convert(where: str, row: Row) -> Row | None:
        nonlocal told
        found, size = _list(where, row, n_ways, layout)
        if found is None and not told:
            told = True
            say(f"  note: {where} has {size} candidates; lists with fewer than {n_ways} are left out")
        return found

    return Streamed(source, stream, _columns(n_ways), convert, order, sorted(first.keys() - set(layout.columns)))


def _peek(where: str, row: Row, n_ways: int, layout: Layout) -> int | DataError:
    """How many candidates a list has, or what is wrong with it."""
    try:
        return _list(where, row, n_ways, layout)[1]
    except DataError as error:
        return error
