"""Training triples: mined from a judged collection with BM25, or read from a file or the model hub."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.artifacts import write_atomic
from xtrrep.console import DataError, progress
from xtrrep.data import Collection
from xtrrep.data.bm25 import Bm25
from xtrrep.data.folder import read_json_lines

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

COLUMNS = ["query", "positive", "negative"]
SUFFIXES = (".jsonl", ".parquet")
QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class _Corpus:
    texts: list[str]
    numbers: dict[str, int]  # document id -> its place in `texts`

    def positives(self, grades: dict[str, int]) -> list[int]:
        return [self.numbers[id] for id, grade in grades.items() if grade > 0 and id in self.numbers]


def mine(
    collection: Collection,
    out: Path,
    *,
    seed: int,
    depth: int = 30,
    max_triples: int | None = None,
    per_query: int | None = None,
) -> dict[str, int]:
    """Write `triples.jsonl` (texts of query, positive, negative) into `out`, one triple a judged positive pair.

    The negative is drawn among the `depth` best BM25 hits that are neither judged positive nor a copy of a positive,
    or among all other documents where BM25 has no such hit. `per_query` limits the positives of a query and
    `max_triples` the whole; both are random samples by `seed`.

    Returns `triples`, `queries` and `random_negatives`. Raises DataError where no judged positive is in the corpus,
    and for a query whose every document is positive.
    """
    documents = list(collection.documents())
    corpus = _Corpus([text for _, text in documents], {id: number for number, (id, _) in enumerate(documents)})
    rng = random.Random(seed)
    wanted = _sample_pairs(collection, corpus, rng, per_query, max_triples)
    if not wanted:
        raise DataError(f"{collection.id} has no positive judgement of a document in its corpus to train on")
    facts = {"triples": 0, "queries": len(wanted), "random_negatives": 0}

    def write(file: Any) -> None:
        for query_id, positive, negatives in _candidates(collection, corpus, wanted, depth):
            facts["triples"] += 1
            facts["random_negatives"] += not negatives
            negative = rng.choice(negatives) if negatives else _other(collection, corpus, query_id, rng)
            texts = (collection.queries[query_id], corpus.texts[positive], corpus.texts[negative])
            file.write((json.dumps(dict(zip(COLUMNS, texts, strict=True)), ensure_ascii=False) + "\n").encode())

    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "triples.jsonl", write)
    return facts


def _sample_pairs(
    collection: Collection, corpus: _Corpus, rng: random.Random, per_query: int | None, max_triples: int | None
) -> dict[str, list[int]]:
    """Query id -> numbers of the positives to use, in file order."""
    pairs: list[tuple[str, int]] = []
    for query_id in collection.queries:
        positives = [n for n in corpus.positives(collection.qrels[query_id]) if corpus.texts[n].strip()]
        pairs += [(query_id, positives[at]) for at in _sample(len(positives), per_query, rng)]
    wanted: dict[str, list[int]] = {}
    for at in _sample(len(pairs), max_triples, rng):
        wanted.setdefault(pairs[at][0], []).append(pairs[at][1])
    return wanted


def _sample(size: int, limit: int | None, rng: random.Random) -> Iterable[int]:
    return range(size) if limit is None or size <= limit else sorted(rng.sample(range(size), limit))


def _candidates(
    collection: Collection, corpus: _Corpus, wanted: dict[str, list[int]], depth: int
) -> Iterator[tuple[str, int, list[int]]]:
    """(query id, positive, its hard negatives by rank), as document numbers."""
    bm25 = Bm25.build(corpus.texts)
    ids = list(wanted)
    with progress(len(ids), "mine negatives", "queries") as bar:
        for start in range(0, len(ids), QUERIES_AT_ONCE):
            chunk = ids[start : start + QUERIES_AT_ONCE]
            excluded = {id: _excluded(corpus, collection.qrels[id]) for id in chunk}
            most = max(len(corpus.positives(collection.qrels[id])) for id in chunk)
            # Twice the depth leaves room for copies of a positive among the hits.
            numbers, _ = bm25.search([collection.queries[id] for id in chunk], 2 * depth + most)
            for id, row in zip(chunk, numbers.tolist(), strict=True):
                negatives = [n for n in row if n >= 0 and not _is_excluded(corpus, excluded[id], n)][:depth]
                for positive in wanted[id]:
                    yield id, positive, negatives
            bar.update(len(chunk))


def _excluded(corpus: _Corpus, grades: dict[str, int]) -> set[str]:
    """The texts of a query's positives: a copy of one under another id is no negative either."""
    return {corpus.texts[number] for number in corpus.positives(grades)}


def _is_excluded(corpus: _Corpus, excluded: set[str], number: int) -> bool:
    text = corpus.texts[number]
    return text in excluded or not text.strip()


def _other(collection: Collection, corpus: _Corpus, query_id: str, rng: random.Random) -> int:
    """A random document that is not positive. Raises DataError where there is none."""
    excluded = _excluded(corpus, collection.qrels[query_id])
    size = len(corpus.texts)
    start = rng.randrange(size)
    for step in range(size):
        if not _is_excluded(corpus, excluded, number := (start + step) % size):
            return number
    raise DataError(
        f"{collection.id} has only positive documents for the query {query_id!r}, so there is no negative to train on",
        hint="add documents that are not relevant to every query",
    )


def read_triples(
    source: str, *, revision: str | None = None, max_triples: int | None = None
) -> Dataset | IterableDataset:
    """Triples with exactly the columns query, positive, negative, the first `max_triples` where that is set.

    `source` is a `.jsonl` or `.parquet` file, a folder of them (read in name order, into memory), or a dataset id on
    the hub (streamed, split `train`). Raises DataError for a missing column, an empty text, a line that is not JSON,
    or a hub that cannot be reached.
    """
    files = local_files(source)
    return _read_local(files, max_triples) if files else _stream_hub(source, revision, max_triples)


def local_files(source: str) -> list[Path]:
    """The files of a local `source`, in name order; none where it is a hub id. Raises DataError for a missing one."""
    path = Path(source).expanduser()
    if not (path.exists() or path.suffix in SUFFIXES or source.startswith(("/", ".", "~"))):
        return []
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files or not files[0].exists():
        what = "holds no .jsonl or .parquet file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}", hint="train.triples=FILE.jsonl with query, positive and negative")
    return files


def _read_local(files: list[Path], limit: int | None) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset

    tables: list[pa.Table] = []
    for file in files:
        left = None if limit is None else limit - sum(table.num_rows for table in tables)
        tables.append(_read_parquet(file, left) if file.suffix == ".parquet" else _read_jsonl(file, left))
    # Built in memory and not by `load_dataset`, whose cache would outlive a change of the file.
    table = pa.concat_tables(tables)
    if not table.num_rows:
        raise DataError(f"{files[0].parent if len(files) > 1 else files[0]} holds no triple")
    return Dataset(table)


def _read_jsonl(path: Path, limit: int | None) -> Any:
    import pyarrow as pa

    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    for count, (where, row) in enumerate(read_json_lines(path)):
        if count == limit:
            break
        _need_columns(where, row)
        for name in COLUMNS:
            if not isinstance(row[name], str) or not row[name].strip():
                raise DataError(f"{where}: {name!r} is not a text with words: {row[name]!r}")
            columns[name].append(row[name])
    return pa.table(columns, schema=pa.schema([(name, pa.large_string()) for name in COLUMNS]))


def _read_parquet(path: Path, limit: int | None) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        _need_columns(str(path), pq.read_schema(path).names)
        table = pq.read_table(path, columns=COLUMNS).slice(0, limit)
        table = table.select(COLUMNS).cast(pa.schema([(name, pa.large_string()) for name in COLUMNS]))
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file of texts ({error})") from None
    for name in COLUMNS:
        filled = pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table[name])), 0), False)
        row = pc.index(filled, False).as_py()
        if row >= 0:
            raise DataError(f"{path}: {name!r} is not a text with words in row {row + 1}")
    return table


def _need_columns(where: str, found: Iterable[str]) -> None:
    found = list(found)
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)} (found: {', '.join(found) or 'none'})",
            hint="triples have the columns query, positive and negative",
        )


def _stream_hub(source: str, revision: str | None, limit: int | None) -> IterableDataset:
    from datasets import load_dataset

    try:
        dataset = load_dataset(source, revision=revision, split="train", streaming=True)
        first: dict[str, Any] = next(iter(dataset), {})  # nothing is fetched before the first row is asked for
    except Exception as error:  # datasets, huggingface_hub and the HTTP client each raise their own kinds
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"could not read {source} from the hub ({type(error).__name__}: {reason})",
            hint="check the id and the network, or name a local file: train.triples=FILE.jsonl",
        ) from error
    _need_columns(source, first)
    dataset = dataset.select_columns(COLUMNS)
    return dataset if limit is None else dataset.take(limit)
