"""Runs: ranked documents per query, and TREC run files that every tool reads alike.

trec_eval keeps scores as float32 and orders equal ones by document id, other tools by position or in reverse. So the
file holds no equal scores: documents are ranked by score (as float32), then by position in the collection, and a score
that does not fall is set to the next float32 below. Nine significant digits carry a float32 exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.artifacts import write_atomic
from xtrrep.console import DataError, UsageError
from xtrrep.data import RENAME, id_fault, text_id
from xtrrep.data.folder import read_lines

# query id -> [(document id, score)], best first
Run = dict[str, list[tuple[str, float]]]

RANKINGS = '{"q1": [("d1", 2.0), ("d2", 1.5)]}: query id, then (document id, score) pairs'
FRAME = '{q: list(zip(rows.doc_id, rows.score)) for q, rows in frame.groupby("query_id")} makes a dict of it'
META_START, META_END = "# ir_metadata.start", "# ir_metadata.end"  # what describes a run stands between, as comments
LARGEST_SCORE = 1e38  # either way: a float32 holds it, with room below for ties


def separate(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores (C,) in descending order, made strictly descending by the smallest float32 steps."""
    out = scores.astype(np.float32).copy()
    for i in range(1, len(out)):
        if not out[i] < out[i - 1]:
            out[i] = np.nextafter(out[i - 1], np.float32(-np.inf))
    return out


def ranked(run: Any, name: str = "run") -> Run:
    """Rankings from outside as {query id: [(document id, score), ...]}, best first, without ties.

    Accepts, for each query, a list of (document id, score) pairs or a dict {document id: score}; ids are texts or whole
    numbers, scores any real number (NumPy's and torch's too). Documents are ordered by score as float32, then by their
    position. Raises UsageError, naming the argument `name`, for another type, and DataError for a document ranked twice
    or a score that is not finite.
    """
    if not isinstance(run, Mapping):
        raise UsageError(
            f"{name} is a {type(run).__name__}, not a dict of rankings",
            hint=FRAME if hasattr(run, "columns") else RANKINGS,
        )
    found: Run = {}
    for key, row in run.items():
        query = text_id(key, name)
        if query in found:
            raise DataError(f"{name} holds query {query!r} twice, under ids of two types", hint="ids are texts")
        found[query] = _ranking(row, query, name)
    return found


def _ranking(row: Any, query: str, name: str) -> list[tuple[str, float]]:
    pairs = row.items() if isinstance(row, Mapping) else row
    if isinstance(row, str | bytes) or not hasattr(pairs, "__iter__") or hasattr(row, "to_numpy"):
        raise UsageError(f"{name}[{query!r}] is a {type(row).__name__}, not a ranking", hint=RANKINGS)
    scores: dict[str, np.float32] = {}
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UsageError(
                f"{name}[{query!r}] holds a {type(pair).__name__}, not a pair of document id and score", hint=RANKINGS
            )
        document = text_id(pair[0], f"{name}[{query!r}]")
        if document in scores:
            raise DataError(
                f"the ranking of query {query!r} has document {document!r} twice",
                hint="keep one of the two, the one ranked higher",
            )
        scores[document] = _score(pair[1], query, name)
    documents, values = list(scores), np.array(list(scores.values()), np.float32)
    order = np.argsort(-values, kind="stable")
    return [(documents[i], float(s)) for i, s in zip(order, separate(values[order]), strict=True)]


def real_number(value: Any) -> float | None:
    """A number of any type (NumPy's and torch's too) as a float; None for anything else, such as the text "1.0"."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _score(value: Any, query: str, name: str) -> np.float32:
    number = real_number(value)
    if number is None:
        raise UsageError(f"{name}[{query!r}] has a {type(value).__name__} for a score", hint=RANKINGS)
    if not math.isfinite(number) or abs(number) > LARGEST_SCORE:
        raise DataError(
            f"the run gives query {query!r} a score that is not finite",
            hint="make the run again; a document without a score is left out",
        )
    return np.float32(number)


def write(path: Path, run: Mapping[str, Sequence[tuple[str, float]]], tag: str) -> None:
    """Write a TREC run file atomically. Raises DataError for an id that the format cannot hold."""
    lines = []
    for query, ranking in run.items():
        for rank, (document, score) in enumerate(ranking, start=1):
            lines.append(f"{query} Q0 {document} {rank} {score:.9g} {tag}\n")
        for name in (query, *(document for document, _ in ranking)):
            if fault := id_fault(name):
                raise DataError(f"the id {name!r} cannot stand in a TREC run file: it {fault}", hint=RENAME)
    write_atomic(path, lambda file: file.write("".join(lines).encode()))


def read(path: Path) -> Run:
    """Read a TREC run file, or one in a `.gz`. A header of ir_metadata above its first line is skipped.

    Raises DataError with file and line for a malformed one, a score that is not finite or that no float32 holds, an id
    as `data.id_fault` says, or a document ranked twice.
    """
    run: Run = {}
    seen: set[tuple[str, str]] = set()
    header = False
    if not path.is_file():
        raise DataError(f"no run file {path}", hint="a TREC run: xtrrep retrieve --out FILE leaves one")
    for number, line in read_lines(path):
        header = header or (number == 1 and line == META_START)
        if header:
            header = line != META_END
            continue
        parts = line.split()
        try:
            query, _, document, _, score, _ = parts
            value = float(score)
        except ValueError:
            raise DataError(
                f"{path}:{number}: not a TREC run line: {line[:80]!r}",
                hint="a line has six fields: QUERY Q0 DOCUMENT RANK SCORE TAG",
            ) from None
        # Python alone reads 1_000 as a number.
        if not math.isfinite(value) or abs(value) > LARGEST_SCORE or "_" in score:
            raise DataError(
                f"{path}:{number}: the score {score} is not a number to rank by",
                hint=f"scores lie between -{LARGEST_SCORE:g} and {LARGEST_SCORE:g}",
            )
        for name in (query, document):
            if fault := id_fault(name):
                raise DataError(f"{path}:{number}: the id {name!r} {fault}", hint=RENAME)
        if (query, document) in seen:
            raise DataError(
                f"{path}:{number}: the ranking of query {query!r} has document {document!r} twice",
                hint="drop one of the two lines",
            )
        seen.add((query, document))
        run.setdefault(query, []).append((document, value))
    if header:
        raise DataError(
            f"{path}: its header does not end", hint=f"the line {META_END!r} stands above the first ranking"
        )
    return run
