"""Collections by their ir-datasets ids: BEIR, LoTTE, MS MARCO passages with its TREC tracks, and whatever else it has.

Ids are the library's own: a BEIR set with a single split has none in its id (`beir/arguana`, `beir/nq`), the
others do (`beir/nfcorpus/test`); LoTTE's read `lotte/TOPIC/test/search`.

BEIR and LoTTE come as one archive each, fetched from where the library lists it and verified. Their files are read from
the archive itself, and not through the library: it unpacks LoTTE into a shared folder and takes the folder's existence
for its completeness, so that a killed run left a short corpus to the next one.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from xtrrep import config as configs
from xtrrep.artifacts import digest, write_atomic
from xtrrep.artifacts.hashes import hash_outside
from xtrrep.config import Data
from xtrrep.console import DataError, machine_error, progress, say, suggest, typed
from xtrrep.data import BEIR_SPLITS, Collection, local_home_hint, sources
from xtrrep.data.download import download
from xtrrep.data.folder import content_of_some, read_folder, write_beir

HOME_VARIABLE = "IR_DATASETS_HOME"
# What reading a damaged zip or tar raises.
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, NotImplementedError,
)  # fmt: skip


def corpus_id(id: str) -> str:
    """The part of an id that names the corpus, which all splits share: `beir/nfcorpus`, `lotte/lifestyle/test`."""
    head, _, last = id.rpartition("/")
    if id.startswith("msmarco-passage/"):
        return "msmarco-passage"
    return head if head and (last in ("search", "forum") or (last in BEIR_SPLITS and head.startswith("beir/"))) else id


@dataclass(frozen=True)
class Archive:
    """The archive of a BEIR or LoTTE collection: where the library keeps it, its listed MD5 and size, and its members.

    `members` maps a file of the collection's folder (BEIR's or LoTTE's layout) to its name in the archive.
    """

    group: str
    entry: str
    path: Path
    md5: str
    bytes: int | None
    members: Mapping[str, str]

    @property
    def present(self) -> bool:
        return self.path.is_file()

    def checksum(self) -> str:
        """MD5 of the archive on this machine; of one that is not here yet, the MD5 that its download will have."""
        return hash_outside(self.path, configs.artifacts_root(), "md5") if self.present else self.md5


def archive_of(id: str, split: str) -> Archive | None:
    """The archive that holds a collection; None for an id that is neither BEIR's nor LoTTE's."""
    group, _, rest = id.partition("/")
    if group == "lotte" and rest.count("/") == 2:
        topic, part, kind = rest.split("/")
        names = ("collection.tsv", f"questions.{kind}.tsv", f"qas.{kind}.jsonl")
        return _archive(group, "source", {name: f"lotte/{topic}/{part}/{name}" for name in names})
    if group != "beir":
        return None
    name = corpus_id(id).removeprefix("beir/")
    entry = "cqadupstack" if name.startswith("cqadupstack/") else name
    inner = name if name.startswith("cqadupstack/") else name.partition("/")[0]
    names = ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")
    return _archive(group, entry, {name: f"{inner}/{name}" for name in names})


@cache
def _listed() -> dict[str, Any]:
    """What ir-datasets lists of every download. Read without importing the library, which takes a second."""
    spec = find_spec("ir_datasets")
    if spec is None or spec.origin is None:
        return {}
    return dict(json.loads((Path(spec.origin).parent / "etc" / "downloads.json").read_text(encoding="utf-8")))


def home() -> Path:
    """Where ir-datasets keeps its downloads."""
    return Path(os.environ.get(HOME_VARIABLE, "~/.ir_datasets")).expanduser()


def _archive(group: str, entry: str, members: Mapping[str, str]) -> Archive | None:
    listed = _listed().get(group, {}).get(entry)
    if listed is None or "cache_path" not in listed:
        return None
    path = home() / group / listed["cache_path"]
    return Archive(group, entry, path, listed.get("expected_md5", ""), listed.get("size_hint"), members)


def download_mb(cfg: Data) -> int | None:
    """Size of what ir-datasets would fetch, in MB (10^6 bytes), by its own list; None where it says nothing."""
    archive = archive_of(cfg.id, _split(cfg))
    if archive is not None:
        return None if archive.bytes is None else -(-int(archive.bytes) // 10**6)
    if corpus_id(cfg.id) == "msmarco-passage":
        size = _listed().get("msmarco-passage", {}).get("collectionandqueries", {}).get("size_hint")
        return None if size is None else -(-int(size) // 10**6)
    return None


def is_present(cfg: Data) -> bool:
    """Whether nothing must be fetched: the collection's archive, or of one without an own archive the folder that the
    library keeps its files in, is there."""
    archive = archive_of(cfg.id, _split(cfg))
    if archive is not None:
        return archive.present
    folder = home() / corpus_id(cfg.id)
    return folder.is_dir() and any(folder.iterdir())


def is_verified(cfg: Data) -> bool:
    """Whether the collection's archive is here and has the checksum that ir-datasets lists."""
    archive = archive_of(cfg.id, _split(cfg))
    return archive is not None and archive.present and archive.checksum() == archive.md5


def judged_ids(group: str) -> list[str]:
    """The ids of a group (`beir`, `lotte`, `msmarco-passage`) that have documents, queries and judgements."""
    import ir_datasets

    ids = [id for id in ir_datasets.registry if id.partition("/")[0] == group]
    return [id for id in ids if _judged(ir_datasets.load(id))]


def _judged(dataset: Any) -> bool:
    return bool(dataset.has_docs() and dataset.has_queries() and dataset.has_qrels())


def _load(id: str) -> Any:
    import ir_datasets

    try:
        dataset = ir_datasets.load(id)
    except KeyError:
        raise DataError(f"ir-datasets knows no collection {id!r}", hint=suggest(id, ir_datasets.registry)) from None
    if not _judged(dataset):
        splits = [known for known in ir_datasets.registry if known.startswith(f"{id}/")]
        raise DataError(f"{id} alone has no judged queries", hint=suggest(f"{id}/test", splits))
    return dataset


# --- reading an archive -------------------------------------------------------------------------------------------


def _unpack(id: str, archive: Archive, out: Path) -> None:
    """Write the collection's files from its archive into `out`, each whole or not at all. Raises DataError."""
    hint = f"rm {typed(archive.path)}; the same command then fetches it again, or put a complete copy there"
    names = {member: name for name, member in archive.members.items()}
    try:
        unpack = _unpack_tar if archive.group == "lotte" else _unpack_zip
        found = set(unpack(archive, names, out))
    except DAMAGED as error:
        raise DataError(
            f"{archive.path} is damaged or incomplete ({error or type(error).__name__})", hint=hint
        ) from None
    missing = sorted(set(names) - found)
    if missing:
        raise DataError(f"{archive.path} has no {missing[0]}, which {id} needs", hint=hint)


def _unpack_zip(archive: Archive, names: Mapping[str, str], out: Path) -> Iterator[str]:
    with zipfile.ZipFile(archive.path) as file:
        for member in sorted(names.keys() & set(file.namelist())):
            with file.open(member) as source:
                _copy(source, out / names[member], file.getinfo(member).file_size)
            yield member


def _unpack_tar(archive: Archive, names: Mapping[str, str], out: Path) -> Iterator[str]:
    """In one pass, to the end of the file: only there does gzip check what was read."""
    with gzip.open(archive.path) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as file:
            for member in file:
                name = member.name.removeprefix("./")
                source = file.extractfile(member) if name in names else None
                if source is not None:
                    _copy(source, out / names[name], member.size)
                    yield name
        while stream.read(1 << 20):
            pass


def _copy(source: IO[bytes], path: Path, size: int) -> None:
    """Copy one member of `size` bytes. Raises EOFError where the archive ends before it does."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: Any) -> None:
        left = size
        with progress(size, f"unpack {path.name}", "B") as bar:
            while block := source.read(1 << 20):
                file.write(block)
                left -= len(block)
                bar.update(len(block))
        if left:
            raise EOFError(f"{path.name} ends {left} bytes early")

    write_atomic(path, write)


def _fetch(id: str, archive: Archive) -> None:
    """Download an archive, its MD5 compared with what the library lists. Raises DataError."""
    url = str(_listed()[archive.group][archive.entry]["url"])
    archive.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        download(url, archive.path, archive.md5, archive.bytes, local_home_hint(id))
    except OSError as error:
        if known := machine_error(error, HOME_VARIABLE):
            raise known from error
        raise


@contextmanager
def _explained(id: str) -> Iterator[None]:
    """Turn whatever ir-datasets raises into a DataError of one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # requests', zipfile's, tarfile's, an assertion: the library hands on what it meets
        if known := machine_error(error, HOME_VARIABLE):
            raise known from error
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"could not download {id} ({text})", hint=local_home_hint(id)) from error


# --- the source ---------------------------------------------------------------------------------------------------


def _documents(dataset: Any, total: int) -> Iterator[tuple[str, str, str]]:
    with progress(total, "read corpus", "documents") as bar:
        for document in dataset.docs_iter():
            text = document.text if hasattr(document, "text") else document.default_text()
            yield document.doc_id, getattr(document, "title", ""), text
            bar.update(1)


def _query_text(query: Any) -> str:
    return str(query.text if hasattr(query, "text") else query.default_text())


@sources.register(
    "ir_datasets",
    "BEIR, LoTTE, MS MARCO and others by ir-datasets ids, downloaded and verified, or read from $XTRREP_DATA",
    paper="MacAvaney et al., 2021, arXiv 2103.02280",
    install="pip install ir-datasets",
)
class IrDatasets:
    """Downloads `cfg.id` and keeps it as a folder in BEIR or LoTTE layout."""

    @staticmethod
    def content(cfg: Data) -> dict[str, str]:
        """Ids with the checksum of the archive, or of all that the library lists for MS MARCO's passages."""
        archive = archive_of(cfg.id, _split(cfg))
        if archive is not None:
            checked = f"md5={archive.checksum()}"
        else:
            listed = _listed().get(cfg.id.partition("/")[0], {})
            sums = {name: entry.get("expected_md5") for name, entry in listed.items() if isinstance(entry, dict)}
            checked = f"ir_datasets={version('ir_datasets')},{digest(sums)}"
        return {
            "corpus": f"{corpus_id(cfg.id)}:{checked}",
            "queries": content_of_some(f"{cfg.id}:{checked}", cfg.max_queries),
            "qrels": f"{cfg.id}:{checked}",
        }

    @staticmethod
    def prepare(cfg: Data, out: Path) -> None:
        archive = archive_of(cfg.id, _split(cfg))
        dataset = _load(cfg.id)
        if archive is not None:
            if not archive.present:
                _fetch(cfg.id, archive)
            if archive.checksum() != archive.md5:
                say(f"  note: {archive.path} is not the archive that ir-datasets lists; its own checksum identifies it")
            _unpack(cfg.id, archive, out)
            return
        with _explained(cfg.id):
            # Judgements come first: where the network is missing, this fails before anything is written.
            qrels = [(row.query_id, row.doc_id, row.relevance) for row in dataset.qrels_iter()]
            write_beir(
                out,
                _split(cfg),
                documents=_documents(dataset, dataset.metadata().get("docs", {}).get("count", 0)),
                queries=((query.query_id, _query_text(query)) for query in dataset.queries_iter()),
                qrels=qrels,
            )

    @staticmethod
    def open(cfg: Data, out: Path) -> Collection:
        return read_folder(cfg.id, out, _split(cfg), cfg.max_queries)


def _split(cfg: Data) -> str:
    """The split as the collection's folder names it: of LoTTE, the kind of question."""
    last = cfg.id.rpartition("/")[2]
    return cfg.split or (last if last in (*BEIR_SPLITS, "search", "forum") else "test")
