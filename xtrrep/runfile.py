"""Runs: ranked documents per query, and TREC run files that every tool reads alike.

trec_eval keeps scores as float32 and orders equal ones by document id, other tools by position or in reverse. So the
file holds no equal scores: documents are ranked by score (as float32), then by position in the collection, and a score
that does not fall is set to the next float32 below. Nine significant digits carry a float32 exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xtrrep.artifacts import write_atomic
from xtrrep.console import DataError
from xtrrep.data import RENAME, id_fault
from xtrrep.data.folder import read_lines

# query id -> [(document id, score)], best first
Run = dict[str, list[tuple[str, float]]]

LARGEST_SCORE = 1e38  # either way: a float32 holds it, with room below for ties


def separate(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores (C,) in descending order, made strictly descending by the smallest float32 steps."""
    out = scores.astype(np.float32).copy()
    for i in range(1, len(out)):
        if not out[i] < out[i - 1]:
            out[i] = np.nextafter(out[i - 1], np.float32(-np.inf))
    return out


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
    """Read a TREC run file, or one in a `.gz`.

    Raises DataError with file and line for a malformed one, a score that is not finite or that no float32 holds, an id
    as `data.id_fault` says, or a document ranked twice.
    """
    run: Run = {}
    seen: set[tuple[str, str]] = set()
    if not path.is_file():
        raise DataError(f"no run file {path}", hint="a TREC run: xtrrep retrieve --out FILE leaves one")
    for number, line in read_lines(path):
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
                f"{path}:{number}: the score {score} is no number to rank by",
                hint=f"scores lie between -{LARGEST_SCORE:g} and {LARGEST_SCORE:g}",
            )
        for name in (query, document):
            if fault := id_fault(name):
                raise DataError(f"{path}:{number}: the id {name!r} {fault}", hint=RENAME)
        if (query, document) in seen:
            raise DataError(
                f"{path}:{number}: query {query!r} ranks document {document!r} twice", hint="drop one of the two lines"
            )
        seen.add((query, document))
        run.setdefault(query, []).append((document, value))
    return run
