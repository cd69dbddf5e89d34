"""Training triples: mined from a judged collection with BM25, or read from a file or the model hub."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.artifacts import write_atomic
from xtrrep.console import DataError, machine_error, progress, request_reason
from xtrrep.data import Collection, text_fault
from xtrrep.data.bm25 import Bm25
from xtrrep.data.folder import read_json_lines
from xtrrep.data.streamed import Order, Streamed

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ["query", "positive", "negative"]
COLUMNS_HINT = (
    "triples have the columns query, positive and negative; for pairs alone, train.data=ID mines the negatives"
)
SUFFIXES = (".jsonl", ".parquet")
QUERIES_AT_ONCE = 256
COPIES = 0.1  # copies of a query's positive among a batch's negatives, from which on it is said


@dataclass(frozen=True)
class Corpus:
    """The documents of a collection, numbered in their order."""

    texts: list[str]
    numbers: dict[str, int]  # document id -> its place in `texts`

    @classmethod
    def of(cls, collection: Collection) -> Corpus:
        documents = list(collection.documents())
        return cls([text for _, text in documents], {id: number for number, (id, _) in enumerate(documents)})

    def positives(self, grades: dict[str, int]) -> list[int]:
        """The documents of grade 1 and more that are there."""
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
    corpus = Corpus.of(collection)
    rng = random.Random(seed)
    wanted = sample_pairs(collection, corpus, rng, per_query, max_triples)
    facts = {"triples": 0, "queries": len(wanted), "random_negatives": 0}

    def write(file: Any) -> None:
        for query_id, positive, negatives in hard_negatives(collection, corpus, wanted, depth):
            facts["triples"] += 1
            facts["random_negatives"] += not negatives
            negative = rng.choice(negatives) if negatives else random_negative(collection, corpus, query_id, rng)
            if negative is None:
                raise DataError(
                    f"{collection.id} has only positive documents for the query {query_id!r}, so there is no negative "
                    "to train on",
                    hint="add documents that are not relevant to every query",
                )
            texts = (collection.queries[query_id], corpus.texts[positive], corpus.texts[negative])
            file.write((json.dumps(dict(zip(COLUMNS, texts, strict=True)), ensure_ascii=False) + "\n").encode())

    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "triples.jsonl", write)
    return facts


def sample_pairs(
    collection: Collection, corpus: Corpus, rng: random.Random, per_query: int | None, max_pairs: int | None
) -> dict[str, list[int]]:
    """Query id -> numbers of the positives to use, in file order: all of them, or random samples within the limits.

    Raises DataError where no judged positive is in the corpus.
    """
    pairs: list[tuple[str, int]] = []
    for query_id in collection.queries:
        positives = [n for n in corpus.positives(collection.qrels[query_id]) if corpus.texts[n].strip()]
        pairs += [(query_id, positives[at]) for at in _sample(len(positives), per_query, rng)]
    wanted: dict[str, list[int]] = {}
    for at in _sample(len(pairs), max_pairs, rng):
        wanted.setdefault(pairs[at][0], []).append(pairs[at][1])
    if not wanted:
        raise DataError(
            f"{collection.id} has no positive judgement of a document in its corpus to train on",
            hint="train.data=ID with a split for training, such as pydoc/train",
        )
    return wanted


def _sample(size: int, limit: int | None, rng: random.Random) -> Iterable[int]:
    return range(size) if limit is None or size <= limit else sorted(rng.sample(range(size), limit))


def hard_negatives(
    collection: Collection, corpus: Corpus, wanted: dict[str, list[int]], depth: int
) -> Iterator[tuple[str, int, list[int]]]:
    """(query id, positive, its hard negatives by rank), as document numbers.

    Hard negatives are the `depth` best BM25 hits that are neither positive nor a copy of a positive: few or none for a
    query that shares no word with the corpus.
    """
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


def _excluded(corpus: Corpus, grades: dict[str, int]) -> set[str]:
    """The texts of a query's positives: a copy of one under another id is no negative either."""
    return {corpus.texts[number] for number in corpus.positives(grades)}


def _is_excluded(corpus: Corpus, excluded: set[str], number: int) -> bool:
    text = corpus.texts[number]
    return text in excluded or not text.strip()


def random_negative(
    collection: Collection, corpus: Corpus, query_id: str, rng: random.Random, taken: Iterable[str] = ()
) -> int | None:
    """A random document that is neither positive nor one of the texts `taken`; None where there is none."""
    excluded = _excluded(corpus, collection.qrels[query_id]) | set(taken)
    size = len(corpus.texts)
    start = rng.randrange(size)
    numbers = ((start + step) % size for step in range(size))
    return next((number for number in numbers if not _is_excluded(corpus, excluded, number)), None)


def read_triples(
    source: str,
    *,
    revision: str | None = None,
    max_triples: int | None = None,
    seed: int = 42,
    max_bad_rows: int = 0,
) -> Dataset | Streamed:
    """Triples with exactly the columns query, positive, negative, at most `max_triples` where that is set.

    `source` is a `.jsonl` or `.parquet` file, a folder of them (the first rows in name order, read into memory), or a
    dataset id on the hub (split `train` at `revision`, streamed in an order by `seed`). Raises DataError for a missing
    column, an empty text, a line that is not JSON, or a hub that cannot be reached. Of a stream, rows without a text
    are skipped until a pass has more than `max_bad_rows`.
    """
    files = local_files(source)
    if files:
        return _read_local(files, max_triples)
    hint = "check the id and the network, or name a local file: train.triples=FILE.jsonl"
    dataset, first = open_hub(source, None, revision, streaming=True, hint=hint)
    need_columns(source, first, COLUMNS, COLUMNS_HINT)

    def convert(where: str, row: dict[str, Any]) -> dict[str, Any]:
        return {name: need_text(where, name, row[name]) for name in COLUMNS}

    order = Order(seed, max_triples, "train", max_bad_rows)
    unread = sorted(first.keys() - set(COLUMNS))
    return Streamed(source, dataset.select_columns(COLUMNS), list(COLUMNS), convert, order, unread)


def what_is_odd(source: str, triples: Dataset | Streamed, batch_size: int) -> list[str]:
    """What of triples is not read, or teaches little, in words: columns beside the three, negatives that are the
    positive, and copies of a positive among a batch's negatives. Of a stream only the first is known before it is
    read."""
    if isinstance(triples, Streamed):
        return unread_columns(source, triples.unread)
    if not (files := local_files(source)):
        return []
    odd = unread_columns(source, {name for file in files for name in columns_of(file)} - set(COLUMNS))
    positives, rows = triples["positive"], len(triples)
    same = sum(positive == negative for positive, negative in zip(positives, triples["negative"], strict=True))
    if same:
        odd.append(f"{same:,} of {rows:,} rows of {source} have their positive as their negative too")
    counts = Counter(positives)
    repeated = sum(count for count in counts.values() if count > 1)
    pairs = sum(count * (count - 1) for count in counts.values())
    copies = (min(batch_size, rows) - 1) * pairs / (rows * (rows - 1)) if rows > 1 else 0.0
    if copies >= COPIES:
        odd.append(
            f"{repeated:,} of {rows:,} rows of {source} have the same positive as another row. A query's negatives are "
            f"the other rows' documents in its batch: {copies:.1f} of them on average are copies of its own positive"
        )
    return odd


def unread_columns(source: str, names: Iterable[str]) -> list[str]:
    """The sentence about columns that are not read; none where there is no such column."""
    return [f"{source} has columns that are not read: {', '.join(sorted(names))}"] if names else []


def columns_of(file: Path) -> list[str]:
    """The columns of a file; of a .jsonl those of its first row."""
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        return [str(name) for name in pq.read_schema(file).names]
    return list(next((row for _, row in read_json_lines(file)), {}))


def local_files(source: str, hint: str = "train.triples=FILE.jsonl with query, positive and negative") -> list[Path]:
    """The files of a local `source`, in name order; none where it is a hub id. Raises DataError for a missing one."""
    path = Path(source).expanduser()
    if not (path.exists() or path.suffix in SUFFIXES or source.startswith(("/", ".", "~"))):
        return []
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files or not files[0].exists():
        what = "holds no .jsonl or .parquet file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}", hint=hint)
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
        raise DataError(
            f"{files[0].parent if len(files) > 1 else files[0]} holds no triple",
            hint="is the file complete? Every row is a query, a positive and a negative text",
        )
    return Dataset(table)


def _read_jsonl(path: Path, limit: int | None) -> Any:
    import pyarrow as pa

    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    for count, (where, row) in enumerate(read_json_lines(path)):
        if count == limit:
            break
        need_columns(where, row, COLUMNS, COLUMNS_HINT)
        for name in COLUMNS:
            columns[name].append(need_text(where, name, row[name]))
    return pa.table(columns, schema=pa.schema([(name, pa.large_string()) for name in COLUMNS]))


def _read_parquet(path: Path, limit: int | None) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        need_columns(str(path), pq.read_schema(path).names, COLUMNS, COLUMNS_HINT)
        table = pq.read_table(path, columns=COLUMNS).slice(0, limit)
        table = table.select(COLUMNS).cast(pa.schema([(name, pa.large_string()) for name in COLUMNS]))
        table.validate(full=True)  # that its texts are UTF-8
    except (pa.ArrowException, OSError) as error:  # a damaged page is an OSError
        raise machine_error(error) or DataError(
            f"{path} is not a Parquet file of texts ({error})", hint="fetch or write it again"
        ) from None
    for name in COLUMNS:
        filled = pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table[name])), 0), False)
        row = pc.index(filled, False).as_py()
        if row >= 0:
            raise DataError(
                f"{path}: {name!r} is not a text with words in row {row + 1}", hint="give it a text, or drop the row"
            )
    return table


def need_columns(where: str, found: Iterable[str], wanted: Sequence[str], hint: str) -> None:
    """Raise DataError, naming the columns found, where one of the `wanted` is missing."""
    found = list(found)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{where}: no column {', '.join(missing)} (found: {', '.join(found) or 'none'})", hint=hint)


def need_text(where: str, name: str, value: Any) -> str:
    """`value`, where it is a text with words. Raises DataError."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{where}: {name!r} is not a text with words: {value!r}"[:300], hint="give it a text, or drop the row"
        )
    if fault := text_fault(value):
        raise DataError(f"{where}: {name!r} {fault}", hint="write the file again as UTF-8")
    return value


def open_hub(
    source: str, subset: str | None, revision: str | None, *, streaming: bool, hint: str
) -> tuple[Any, dict[str, Any]]:
    """Split `train` of a hub dataset's `subset` (None: its only one) and its first row.

    A Dataset, or when `streaming` an IterableDataset; of a whole copy in the hub's cache (`cached_copy`) where there is
    one. Raises DataError where it cannot be read or is empty.
    """
    from datasets import config, load_dataset

    # A stream that is lost is tried again for about a minute. By default it would be ten, in silence.
    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = 3
    config.STREAMING_READ_RETRY_INTERVAL = config.STREAMING_OPEN_RETRY_INTERVAL = 2
    config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 5
    config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 20
    try:
        copy = cached_copy(source, revision)
        at, revision = (source, revision) if copy is None else (str(copy), None)
        dataset = load_dataset(at, subset, revision=revision, split="train", streaming=streaming)
        first = next(iter(dataset), None)  # of a stream, nothing is fetched before the first row is asked for
    except Exception as error:  # datasets, huggingface_hub and the HTTP client each raise their own kinds
        raise hub_error(source, error, hint) from error
    if first is None:
        raise DataError(f"{source}{f' ({subset})' if subset else ''} holds no row", hint=hint)
    return dataset, first


def cached_copy(source: str, revision: str | None) -> Path | None:
    """A whole copy of a hub dataset, as `hf download SOURCE --repo-type dataset` leaves it; None without one.

    A machine without a network trains from it. Streaming leaves none.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError

    try:
        folder = Path(snapshot_download(source, repo_type="dataset", revision=revision, local_files_only=True))
        # Without the client's own listing nobody can tell a whole copy from the card that a stream fetches.
        listed = get_cached_repo_tree(source, revision=folder.name, repo_type="dataset")
    except (OSError, ValueError, CachedRepoTreeNotFoundError, HFValidationError):
        return None
    whole = all((folder / entry.path).exists() for entry in listed if hasattr(entry, "blob_id"))
    return folder if whole else None


def hub_error(source: str, error: Exception, hint: str) -> DataError:
    """One line out of whatever the hub's client raised. `datasets` says "not found" of a hub that does not answer."""
    if full := machine_error(error, "HF_HOME"):
        return full
    reason = request_reason(error)
    if "NotFound" in reason and not _hub_answers():
        return DataError(
            f"could not read {source}: the hub does not answer, and there is no copy of it here", hint=hint
        )
    return DataError(f"could not read {source} from the hub ({reason})", hint=hint)


def _hub_answers() -> bool:
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=3):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (urllib.error.URLError, OSError):
        return False
