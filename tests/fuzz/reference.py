"""Naive readers: bytes to rows, or a Fault with the line. Written from the formats' descriptions, sharing no code with
the readers they judge."""

from __future__ import annotations

import ast
import gzip
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from fuzz.harness import Fault

NO_ID = re.compile("[\\s\0\ud800-\udfff]|^\ufeff|^$")
HALF = re.compile("[\ud800-\udfff]")
LARGEST_GRADE = 1_000_000
LARGEST_SCORE = 1e38

Rows = list[tuple[str, str]]
Qrels = dict[str, dict[str, int]]


def lines(name: str, raw: bytes) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    if name.endswith(".gz"):
        try:
            raw = gzip.decompress(raw)
        except Exception:
            raise Fault(name) from None
    for number, line in enumerate(raw.split(b"\n"), 1):
        if number == 1 and line.startswith(b"\xef\xbb\xbf"):
            line = line[3:]
        try:
            text = line.decode("utf-8", "strict").rstrip("\r\n")
        except UnicodeDecodeError:
            raise Fault(name, number) from None
        if text and not text.isspace():
            yield number, text


def objects(name: str, raw: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in lines(name, raw):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise Fault(name, number) from None
        if type(value) is not dict:
            raise Fault(name, number)
        yield number, value


def an_id(value: Any, fault: Fault) -> str:
    if type(value) not in (str, int) or value == "" or HALF.search(str(value)):
        raise fault
    return str(value)


def a_text(value: Any, fault: Fault) -> str:
    if type(value) is not str or HALF.search(value):
        raise fault
    return value


def unique(rows: Iterator[tuple[int, str, str]], name: str, wanted: Qrels | None) -> Rows:
    found: dict[str, str] = {}
    for number, id, text in rows:
        if id in found or ((wanted is None or id in wanted) and NO_ID.search(id)):
            raise Fault(name, number)
        found[id] = text
    return list(found.items())


def json_texts(name: str, raw: bytes, wanted: Qrels | None = None) -> Rows:
    def rows() -> Iterator[tuple[int, str, str]]:
        for number, row in objects(name, raw):
            fault = Fault(name, number)
            title = "" if row.get("title") is None else a_text(row["title"], fault)
            body = a_text(row.get("text"), fault)
            both = title + "\n\n" + body
            if not title.strip() or not body.strip():
                both = (title if title.strip() else "") + (body if body.strip() else "")
            yield number, an_id(row.get("_id"), fault), both

    return unique(rows(), name, wanted)


def tsv_texts(name: str, raw: bytes, wanted: Qrels | None = None) -> Rows:
    def rows() -> Iterator[tuple[int, str, str]]:
        for number, text in lines(name, raw):
            match = re.match("([^\t]+)\t(.*)", text, re.DOTALL)
            if not match:
                raise Fault(name, number)
            yield number, match[1], match[2]

    return unique(rows(), name, wanted)


def beir_qrels(name: str, raw: bytes) -> Qrels:
    qrels: Qrels = {}
    for place, (number, text) in enumerate(lines(name, raw)):
        fields = text.split("\t")
        graded = re.fullmatch(" *([+-]?[0-9]{1,20}) *", fields[-1])
        if place == 0 and fields[0].strip().lower() in ("query-id", "query_id", "qid", "query") and not graded:
            continue
        if len(fields) != 3 or "" in fields[:2] or not graded or "\0" in fields[1]:
            raise Fault(name, number)
        grade = int(graded[1])
        if not -LARGEST_GRADE <= grade <= LARGEST_GRADE:
            raise Fault(name, number)
        qrels.setdefault(fields[0], {})[fields[1]] = grade
    return qrels


def lotte_qas(name: str, raw: bytes) -> Qrels:
    qrels: Qrels = {}
    for number, row in objects(name, raw):
        fault = Fault(name, number)
        if type(row.get("answer_pids")) is not list:
            raise fault
        ids = [an_id(value, fault) for value in row["answer_pids"]]
        if any("\0" in id for id in ids):
            raise fault
        qrels.setdefault(an_id(row.get("qid"), fault), {}).update(dict.fromkeys(ids, 1))
    return qrels


def collection(corpus: Any, queries: Any, qrels_name: str, qrels: Qrels) -> tuple[Rows, Rows, Qrels]:
    """Put together as the study's harness does: judged queries in file order. `corpus()` and `queries(qrels)` read."""
    texts = [(id, text) for id, text in queries(qrels) if text.strip()]
    known = {id for id, _ in texts}
    if any(id not in known for id in qrels):
        raise Fault(qrels_name)
    judged = [(id, text) for id, text in texts if id in qrels]
    if not judged:
        raise Fault("")
    documents = corpus()
    ids = {id for id, _ in documents}
    if not any(grade > 0 and id in ids for row in qrels.values() for id, grade in row.items()):
        raise Fault("")
    return documents, judged, {id: qrels[id] for id, _ in judged}


def words(value: Any, fault: Fault) -> str:
    text = a_text(value, fault)
    if not text.strip():
        raise fault
    return text


def triples(name: str, raw: bytes) -> list[dict[str, str]]:
    keys = ("query", "positive", "negative")
    found = []
    for number, row in objects(name, raw):
        found.append({key: words(row.get(key), Fault(name, number)) for key in keys})
    if not found:
        raise Fault(name)
    return found


def a_list(value: Any, fault: Fault) -> list[Any]:
    if type(value) is str:
        try:
            value = ast.literal_eval(value)
        except Exception:
            raise fault from None
    if type(value) not in (list, tuple) or not value:
        raise fault
    return list(value)


def a_score(value: Any, fault: Fault) -> float:
    if type(value) not in (int, float):
        raise fault
    try:
        number = float(value)
    except OverflowError:
        raise fault from None
    if not math.isfinite(number):
        raise fault
    return number


def scored(name: str, raw: bytes, n_ways: int) -> list[list[Any]]:
    """Rows of query, documents and scores."""
    kept = []
    for number, row in objects(name, raw):
        fault = Fault(name, number)
        if not {"query", "documents", "scores"} <= row.keys():
            raise fault
        documents, scores = a_list(row["documents"], fault), a_list(row["scores"], fault)
        if len(documents) != len(scores):
            raise fault
        if len(documents) < n_ways:
            continue
        texts = [words(text, fault) for text in documents[:n_ways]]
        kept.append([words(row["query"], fault), *texts, [a_score(score, fault) for score in scores[:n_ways]]])
    if not kept:
        raise Fault(name)
    return kept


def run(name: str, raw: bytes) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for number, text in lines(name, raw):
        fields = text.split()
        if len(fields) != 6 or any(NO_ID.search(fields[at]) for at in (0, 2)) or "_" in fields[4]:
            raise Fault(name, number)
        try:
            score = float(fields[4])
        except ValueError:
            raise Fault(name, number) from None
        if not abs(score) <= LARGEST_SCORE or fields[2] in dict(found.get(fields[0], [])):
            raise Fault(name, number)
        found.setdefault(fields[0], []).append((fields[2], score))
    return found


def measures(grades: dict[str, int], ranked: list[tuple[str, float]]) -> dict[str, float]:
    """Four measures of one query, by their definitions."""
    gains = [max(0, grades.get(document, 0)) for document, _ in sorted(ranked, key=lambda pair: -pair[1])]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    dcg, best = (sum(g / math.log2(at + 2) for at, g in enumerate(row[:10])) for row in (gains, ideal))
    first = next((at for at, gain in enumerate(gains) if gain > 0), math.inf)
    return {
        "nDCG@10": dcg / best if best else 0.0,
        "R@100": sum(gain > 0 for gain in gains[:100]) / len(ideal) if ideal else 0.0,
        "RR@10": 1 / (first + 1) if first < 10 else 0.0,
        "Success@5": float(first < 5),
    }
