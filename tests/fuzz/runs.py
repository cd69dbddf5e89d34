"""Run files, read and written, and what is measured on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz import reference
from fuzz.harness import Reader, agree, check_message, expectation, outcome_of, write_files
from fuzz.strategies import BYTES, GZ, IDS, Draw, FilesCase, gz_kinds
from xtrrep.console import DataError
from xtrrep.measure import run_file
from xtrrep.measure.evaluate import evaluate

SCORES: dict[str, list[str]] = {
    "score that is not finite": ["nan", "NaN", "inf", "-inf", "1e999", "Infinity"],
    "huge score": ["1e38", "-1e38", "1.1e38", "-3.5e38", "9" * 400],
    "odd number": ["1_0", "٣", "0x10", "1,5", "+1", ".5", "1e-400", "-0", "5e-324", "1d3", "--1"],
}
LINES = {
    "wrong number of fields": ["q0 Q0 d9 1 0.5", "q0 Q0 d9 1 0.5 tag more", "q0", "q0 d9", "q0 Q0 d 9 1 0.5 tag"],
    "odd field": [
        "q0 Q0 d9 one 0.5 t",
        "q0 0 d9 -1 0.5 t",
        "q0\tQ0\td9\t1\t0.5\tt",
        "  q0  Q0 d9 1 0.5 t ",
        "q0 \0 d9 1 1 t",
    ],
    "document twice": ["q0 Q0 d0 9 0.1 t", "q0 Q1 d0 1 1 u"],
}


@st.composite
def read_cases(draw: Draw) -> FilesCase:
    kind = draw(st.sampled_from([*SCORES, *LINES, *IDS, *BYTES, *GZ, "plain"]))
    rows = []
    for query in range(draw(st.integers(1, 3))):
        for rank in range(draw(st.integers(1, 3))):
            rows.append([f"q{query}", "Q0", f"d{rank}", str(rank + 1), repr(draw(st.floats(-1e3, 1e3))), "tag"])
    at = draw(st.integers(0, len(rows) - 1))
    if kind in SCORES:
        rows[at][4] = draw(st.sampled_from(SCORES[kind]))
    elif kind in IDS:
        rows[at][draw(st.sampled_from([0, 2]))] = str(draw(IDS[kind]))
    lines = [" ".join(row) for row in rows]
    if kind in LINES:
        lines.insert(at + 1, draw(st.sampled_from(LINES[kind])))
    raw = "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")
    if kind in BYTES:
        raw = BYTES[kind](draw, raw)
    return FilesCase(kind, {"run.gz": gz_kinds(draw, raw)[kind]} if kind in GZ else {"run.trec": raw})


def check_read(case: FilesCase, folder: Path) -> bool:
    write_files(folder, case.files)
    ((name, raw),) = case.files.items()
    got, error = outcome_of(lambda: run_file.read(folder / name))
    expected = expectation(lambda: reference.run(name, raw))
    accepted = agree(got, error, expected, folder)
    if accepted:
        assert list(got) == list(expected), "the queries came in another order"
    return accepted


@dataclass(frozen=True)
class RankedCase:
    """Judgements, and a run of float32 scores in descending order."""

    kind: str
    qrels: dict[str, dict[str, int]]
    run: dict[str, list[tuple[str, float]]]


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
RUNS = ("plain", "ties", "tiny and large scores", "query without results")


@st.composite
def written_cases(draw: Draw) -> RankedCase:
    kind = draw(st.sampled_from([*IDS, *RUNS]))
    run = {}
    for query in range(draw(st.integers(1, 3))):
        size = draw(st.integers(0 if kind == "query without results" else 1, 5))
        number = st.sampled_from([0.0, -0.0, 0.5, 1.0]) if kind == "ties" else FLOATS
        scores = np.sort(np.array([draw(number) for _ in range(size)], np.float32))[::-1]
        run[f"q{query}"] = [(f"d{at}", float(score)) for at, score in enumerate(run_file.separate(scores))]
    if kind in IDS:
        name = str(draw(IDS[kind]))
        if draw(st.booleans()):
            run[name] = run.pop("q0")
        else:
            run["q0"][0] = (name, run["q0"][0][1])
    return RankedCase(kind, {}, run)


def check_written(case: RankedCase, folder: Path) -> bool:
    """What we write we read, ids as they were and scores to the last bit of a float32."""
    path = folder / "run.trec"
    _, error = outcome_of(lambda: run_file.write(path, case.run, "tag"))
    names = [name for query, ranking in case.run.items() for name in (query, *(document for document, _ in ranking))]
    if any(reference.NO_ID.search(name) for name in names):
        assert error is not None, "an id that no run file can hold was written"
        check_message(error)
        assert not path.exists(), "half a file is left"
        return False
    if error is not None:
        raise error
    wanted = {query: ranking for query, ranking in case.run.items() if ranking}
    back = run_file.read(path)
    assert list(back) == list(wanted)
    for query, ranking in wanted.items():
        assert [document for document, _ in back[query]] == [document for document, _ in ranking]
        ours, theirs = (np.array([score for _, score in row], np.float32) for row in (back[query], ranking))
        assert (ours == theirs).all()
        assert (np.diff(ours) < 0).all(), "ties are left"
    return True


JUDGEMENTS = ("negative grades", "large grades", "huge grade", "nothing relevant", "unknown documents", "NaN score")
MEASURES = ["nDCG@10", "R@100", "RR@10", "Success@5"]


@st.composite
def evaluated_cases(draw: Draw) -> RankedCase:
    kind = draw(st.sampled_from([*IDS, *RUNS, *JUDGEMENTS]))
    grades = {
        "negative grades": st.integers(-1000, 2),
        "large grades": st.integers(0, 1_000_000),
        "huge grade": st.sampled_from([0, 1, 1_000_001, 2**31, 2**63, -(2**63) - 1, 10**30]),
        "nothing relevant": st.integers(-2, 0),
    }.get(kind, st.integers(0, 3))
    names = [f"d{n}" for n in range(12)]
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, list[tuple[str, float]]] = {}
    for query in range(draw(st.integers(1, 3))):
        judged = draw(st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True))
        qrels[f"q{query}"] = {document: draw(grades) for document in judged}
        found = draw(st.permutations(names))[: draw(st.integers(0 if kind == "query without results" else 1, 12))]
        if kind == "unknown documents":
            found = [f"elsewhere{name}" if draw(st.booleans()) else name for name in found]
        number = st.sampled_from([0.0, 1.0]) if kind == "ties" else FLOATS
        scores = np.sort(np.array([draw(number) for _ in found], np.float32))[::-1]
        run[f"q{query}"] = [(d, float(s)) for d, s in zip(found, run_file.separate(scores), strict=True)]
    run["not judged"] = [("d0", 1.0)]
    if kind in IDS:  # the same odd id in judgements and run
        name = str(draw(IDS[kind]))
        if draw(st.booleans()):
            qrels[name], run[name] = qrels.pop("q0"), run.pop("q0")
        else:
            old = run["q0"][0][0]
            run["q0"][0] = (name, run["q0"][0][1])
            qrels["q0"] = {name if document == old else document: grade for document, grade in qrels["q0"].items()}
    if kind == "NaN score":
        at = draw(st.integers(0, len(run["q0"]) - 1))
        run["q0"][at] = (run["q0"][at][0], draw(st.sampled_from([float("nan"), float("inf")])))
    return RankedCase(kind, qrels, run)


def check_evaluated(case: RankedCase, folder: Path) -> bool:
    """Four measures of every judged query, as their definitions give them."""
    got, error = outcome_of(lambda: evaluate(case.qrels, case.run, MEASURES))
    names = [
        name for rows in (case.qrels, case.run) for query, row in rows.items() for name in (query, *_documents(row))
    ]
    if (
        any("\0" in name or reference.HALF.search(name) for name in names)
        or any(abs(grade) > reference.LARGEST_GRADE for row in case.qrels.values() for grade in row.values())
        or case.kind == "NaN score"
    ):
        assert isinstance(error, DataError), "trec_eval was handed what it dies of"
        check_message(error)
        return False
    if error is not None:
        raise error
    assert list(got.index) == list(case.qrels)
    for query, grades in case.qrels.items():
        for name, value in reference.measures(grades, case.run.get(query, [])).items():
            assert abs(got.loc[query, name] - value) < 1e-6, f"{name} of {query!r}: {got.loc[query, name]}, not {value}"
    return True


def _documents(row: Any) -> list[str]:
    return list(row) if isinstance(row, dict) else [document for document, _ in row]


READERS = [
    Reader("run file", 1500, read_cases(), check_read),
    Reader("run file written", 500, written_cases(), check_written),
    Reader("evaluation", 600, evaluated_cases(), check_evaluated),
]


def check_run_bytes(raw: bytes, folder: Path) -> bool:
    return check_read(FilesCase("bytes", {"run.trec": raw}), folder)


BYTE_READERS = {"run.trec": (check_run_bytes, [b"q0 Q0 d0 1 0.5 tag\nq0 Q0 d1 2 -1e-3 tag\n"])}
