"""Collections: documents, judged queries and grades, from a folder, ir-datasets, or the installed packages.

A source is one small module with `@sources.register(...)`. Whatever it reads, it hands out the same thing, a
`Collection`, and it can name the content of that collection without building it, because identity comes first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Protocol

from xtrrep.config import Data
from xtrrep.config.registry import Registry
from xtrrep.console import DataError, UsageError

HOME_VARIABLE = "XTRREP_DATA"
RENAME = "a TREC run file cannot hold such an id: rename it, in the judgements too"
BEIR_SPLITS = ("train", "dev", "test")
LARGEST_GRADE = 10**6  # either way; trec_eval keeps a table as long as the largest grade, and dies of a huge one


@dataclass(frozen=True)
class Collection:
    """One collection and split."""

    id: str
    documents: Callable[
        [], Iterator[tuple[str, str]]
    ]  # (document id, text) in corpus order; streams, any number of times
    queries: dict[str, str]  # the judged queries of the split, in file order
    qrels: dict[str, dict[str, int]]  # query id -> document id -> grade, for those queries


class Source(Protocol):
    """Where collections come from."""

    def content(self, cfg: Data) -> dict[str, str]:
        """What `corpus`, `queries` and `qrels` hold, as a text that changes when they do. Cheap: builds nothing."""

    def prepare(self, cfg: Data, out: Path) -> None:
        """Build or download into `out`, as a BEIR folder. Nothing to do where a folder is read in place."""

    def open(self, cfg: Data, out: Path) -> Collection:
        """Read what `prepare` left in `out`. Raises DataError naming the file and line at fault."""


sources: Registry[Source] = Registry("collection source", "xtrrep.data")


def open_collection(cfg: Data, folder: Path) -> Collection:
    """The collection that a `data` or `train_data` stage checked. Raises DataError naming file and line at fault."""
    cfg = resolve(cfg)
    return sources.get(cfg.loader).open(cfg, folder)


def resolve(cfg: Data) -> Data:
    """The same collection read from `$XTRREP_DATA` where its files lie there, otherwise `cfg` unchanged.

    `$XTRREP_DATA/NAME` with `qrels/SPLIT.tsv` serves `beir/NAME/SPLIT`; `$XTRREP_DATA/lotte/TOPIC/test`, or
    `$XTRREP_DATA/lotte/TOPIC`, with LoTTE's files serves `lotte/TOPIC/test/search`. `$XTRREP_DATA/pydoc/SPLIT` serves
    `pydoc/SPLIT`, so that machines with other versions of the packages can be compared.
    """
    home = os.environ.get(HOME_VARIABLE)
    if cfg.loader not in ("ir_datasets", "pydoc") or not home:
        return cfg
    for folder, split, needed in _local_places(cfg.id):
        path = Path(home).expanduser() / folder
        if (path / needed).is_file() or (path / f"{needed}.gz").is_file():
            return replace(cfg, loader="folder", path=str(path), split=split)
    return cfg


def local_home_hint(id: str) -> str:
    """Where a local copy of a collection is looked for, for people without a network."""
    places = _local_places(id)
    if not places:
        return "name a local folder: data.path=FOLDER data.split=SPLIT"
    folder, _, needed = places[0]
    return f"set {HOME_VARIABLE} to a folder holding {folder}/{needed} and the files beside it"


def _local_places(id: str) -> list[tuple[str, str, str]]:
    """(folder below `$XTRREP_DATA`, split, a file that must be there) for an ir-datasets id, in order of preference."""
    match id.split("/"):
        case ["beir", "webis-touche2020", "v2"]:
            # BEIR's own archive of that name has held v2 since 2022, and only ir-datasets still keeps v1.
            return [("webis-touche2020", "test", "qrels/test.tsv")]
        case ["beir", "webis-touche2020"]:
            return []
        case ["beir", *name, split] if name and split in BEIR_SPLITS:
            return [("/".join(name), split, f"qrels/{split}.tsv")]
        case ["beir", *name] if name:
            return [("/".join(name), "test", "qrels/test.tsv")]
        case ["pydoc", split]:
            return [(f"pydoc/{split}", split, f"qrels/{split}.tsv")]
        case ["lotte", topic, part, kind]:
            folders = [f"lotte/{topic}/{part}"] + ([f"lotte/{topic}"] if part == "test" else [])
            return [(folder, kind, f"qas.{kind}.jsonl") for folder in folders]
    return []


def id_fault(name: str) -> str | None:
    """What keeps an id from standing in a TREC run file and in trec_eval's tables, in words; None where nothing does.

    trec_eval, written in C, ends an id at a NUL and takes two such ids for one, and dies of one that is no UTF-8.
    """
    if name.split() != [name]:
        return "has white space" if name else "is empty"
    if "\0" in name:
        return "has a NUL character"
    if name.startswith("\ufeff"):
        return "begins with a byte order mark"
    return text_fault(name)


def text_id(value: object, where: str) -> str:
    """An id as a text: a text as it is, a whole number (NumPy's too) in digits. Raises UsageError for anything else."""
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, bool) and isinstance(value, Integral):
        return str(int(value))
    raise UsageError(
        f"an id in {where} is {_shown(value)} of type {type(value).__name__}", hint="ids are texts or whole numbers"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def text_fault(text: str) -> str | None:
    """What keeps a text from being written as UTF-8, in words; None where nothing does. JSON can write one half of a
    surrogate pair alone."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has half of a surrogate pair, {text[error.start]!r}, which is no character"
    return None


def _check_id(collection: Collection, kind: str, name: str) -> None:
    """Refuse what a TREC run file cannot hold, before anything is encoded."""
    if fault := id_fault(name):
        raise DataError(f"the {kind} id {name!r} of {collection.id} {fault}", hint=RENAME)


def check(collection: Collection) -> dict[str, int]:
    """Count a collection in one pass over its documents.

    Returns `documents`, `queries`, `judgements` and `judged_missing`, the judgements that name a document the corpus
    does not have. Raises DataError for an empty corpus, a document id used twice, an id with white space, a split
    without judged queries, and one that judges nothing relevant.
    """
    if not collection.queries:
        raise DataError(
            f"{collection.id} has no judged query", hint="another data=ID, or another data.split beside data.path"
        )
    seen: set[str] = set()
    for document_id, _ in collection.documents():
        if document_id in seen:
            raise DataError(
                f"{collection.id} has two documents with the id {document_id!r}",
                hint="ids are unique: rename or drop one of the two",
            )
        seen.add(document_id)
        _check_id(collection, "document", document_id)
    if not seen:
        raise DataError(f"{collection.id} has an empty corpus", hint="is its download or its folder complete?")
    for query_id in collection.queries:
        _check_id(collection, "query", query_id)
    if not any(grade > 0 and d in seen for grades in collection.qrels.values() for d, grade in grades.items()):
        raise DataError(
            f"{collection.id} judges no document of its corpus relevant, so every score would be 0",
            hint="do the ids in the judgements match the corpus, and are grades above 0?",
        )
    judged = [document_id for grades in collection.qrels.values() for document_id in grades]
    return {
        "documents": len(seen),
        "queries": len(collection.queries),
        "judgements": len(judged),
        "judged_missing": sum(document_id not in seen for document_id in judged),
    }
