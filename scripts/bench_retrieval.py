"""XTR retrieval on ScaNN beside PyLate's retriever and beside ScaNN's own search, in one run.

    .venv/bin/python scripts/bench_retrieval.py --pylate "$(scripts/pylate_env.sh)" \
        --documents artifacts/documents/FOLDER --queries artifacts/queries/FOLDER

One ScaNN index, built here with the study's parameters, is loaded by every contestant. Each has a process of its own;
in every round one contestant after the other (another one begins each round) ranks the same queries while all others
sleep. Ratios are taken within a round, and the median over the rounds is reported.

    limit             ScaNN's own search, 16 queries a call, its hits thrown away
    ours              the same search and everything after it: documents, min imputation, sums, the best 100 by name
    PyLate            pylate.retrieve.XTR, one query a call (its default) and 16; the faster one counts
    ... aggregation   the hits of one query each, already there, to its best 100

Rankings are compared too: how many of PyLate's best 100 are ours, and by how much their scores differ at most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contestant import ROOT, Contestant, rotated, started, tell

# A worker runs in PyLate's environment too: at the top nothing but the standard library.
K_PRIMES = (1000, 10000, 40000)
BATCH, TOP_K = 16, 100
LIMIT, OURS, PYLATE_1, PYLATE_16 = "limit", "ours", "PyLate, 1 a call", f"PyLate, {BATCH} a call"
OUR_AGGREGATION, PYLATE_AGGREGATION = "our aggregation", "PyLate aggregation"
CONTESTANTS = (LIMIT, OURS, PYLATE_1, PYLATE_16, OUR_AGGREGATION, PYLATE_AGGREGATION)
THEIRS = {PYLATE_1, PYLATE_16, PYLATE_AGGREGATION}

Ranking = list[tuple[str, float]]


# The worker: reads what is asked as JSON lines, answers with JSON lines marked by @.


def prepare(name: str, folder: Path) -> Callable[[int], Callable[[], list[Ranking]]]:
    """A function from k' to what one round does."""
    import numpy as np
    import scann

    spec = json.loads((folder / "bench.json").read_text())
    queries = [np.load(folder / f"query{i}.npy") for i in range(spec["queries"])]
    batches = [queries[i : i + BATCH] for i in range(0, len(queries), BATCH)]
    native = scann.scann_ops_pybind.load_searcher(str(folder / "scann"))

    def search(rows: Any, k_prime: int) -> Any:
        call = native.search_batched_parallel if len(rows) >= 256 else native.search_batched
        return call(rows, k_prime, k_prime, spec["leaves"])

    if name == LIMIT:

        def limit(k_prime: int) -> Callable[[], list[Ranking]]:
            def run() -> list[Ranking]:
                for batch in batches:
                    search(np.concatenate(batch), k_prime)
                return []

            return run

        return limit
    if name == OURS:
        from xtrrep.retrieval.engines import Place, engine_of
        from xtrrep.retrieval.retrieve import Setting, retrieve
        from xtrrep.store.encode import Store

        documents, asked = Store.open(Path(spec["documents"])), Store.open(Path(spec["asked"]))
        count = spec["queries"]
        asked = Store(asked.folder, asked.fingerprint, asked.ids[:count], asked.lengths[:count])
        searcher = engine_of(spec["engine"]).load(folder / "scann", documents, Place())

        def ours(k_prime: int) -> Callable[[], list[Ranking]]:
            setting = Setting("xtr", k_prime, top_k=TOP_K)
            return lambda: list(retrieve(searcher, documents, asked, [setting], BATCH)[setting].run.values())

        return ours
    if name == OUR_AGGREGATION:
        from xtrrep.retrieval.rank import xtr_rank

        document_of = np.load(folder / "document_of.npy")

        def our_aggregation(k_prime: int) -> Callable[[], list[Ranking]]:
            hits = [search(query, k_prime) for query in queries[:BATCH]]
            ready = [(document_of[tokens], scores) for tokens, scores in hits]

            def run() -> list[Ranking]:
                for documents, scores in ready:
                    xtr_rank(documents, scores, top_k=TOP_K)
                return []

            return run

        return our_aggregation
    names = np.array(spec["ids"], dtype=object)[np.load(folder / "document_of.npy")]
    if name == PYLATE_AGGREGATION:
        from pylate.rank import score_xtr

        def their_aggregation(k_prime: int) -> Callable[[], list[Ranking]]:
            hits = [search(query, k_prime) for query in queries[:BATCH]]
            ready = [(list(names[tokens]), list(np.nan_to_num(scores, nan=0.0))) for tokens, scores in hits]

            def run() -> list[Ranking]:
                for documents, scores in ready:
                    score_xtr(query_doc_ids=documents, query_scores=scores, k=TOP_K)
                return []

            return run

        return their_aggregation
    from pylate import indexes
    from pylate import retrieve as theirs

    index = indexes.ScaNN(index_name="bench", store_embeddings=False)
    index.searcher, index.position_to_doc_id, index._documents_added = native, names, True
    retriever = theirs.XTR(index=index)
    retriever._show_progress = lambda: False  # type: ignore[method-assign]
    size = 1 if name == PYLATE_1 else BATCH

    def pylate(k_prime: int) -> Callable[[], list[Ranking]]:
        def run() -> list[Ranking]:
            found = retriever.retrieve(queries, k=TOP_K, k_token=k_prime, batch_size=size, device="cpu")
            return [[(hit["id"], float(hit["score"])) for hit in ranking] for ranking in found]

        return run

    return pylate


def worker(name: str, folder: Path) -> int:
    prepared = prepare(name, folder)
    ready: dict[int, Callable[[], list[Ranking]]] = {}
    tell("ready")
    for line in sys.stdin:
        k_prime = int(line)
        if k_prime not in ready:
            ready.clear()  # the hits of the last k' are large
            ready[k_prime] = prepared(k_prime)
            found = ready[k_prime]()  # warm
            tell(found)
        start = time.perf_counter()
        ready[k_prime]()
        tell(time.perf_counter() - start)
    return 0


# The conductor


def seconds(contestant: Contestant, k_prime: int, rankings: dict[str, dict[int, list[Ranking]]]) -> float:
    """A round of one contestant; what it ranked the first time is kept."""
    if k_prime not in rankings.setdefault(contestant.name, {}):
        rankings[contestant.name][k_prime] = contestant.ask(str(k_prime))
        return float(contestant.answer())
    return float(contestant.ask(str(k_prime)))


def agreement(ours: list[Ranking], theirs: list[Ranking]) -> tuple[float, float]:
    """Share of their best 100 that are ours, and the largest difference of a shared document's scores."""
    shares, worst = [], 0.0
    for our, their in zip(ours, theirs, strict=True):
        known = dict(our)
        shares.append(sum(document in known for document, _ in their) / max(1, len(their)))
        worst = max([worst, *(abs(known[d] - s) for d, s in their if d in known)])
    return statistics.mean(shares), worst


def build(documents: Path, queries: Path, count: int, leaves: int, folder: Path) -> int:
    """Inputs and the one index in `folder`; how many queries there are."""
    import numpy as np
    import scann

    from xtrrep.config import compose
    from xtrrep.store.encode import Store

    store, asked = Store.open(documents), Store.open(queries)
    index = dict(compose(["index=scann", f"index.num_leaves={leaves}"]).index)
    count = min(count, len(asked))
    for i in range(count):
        np.save(folder / f"query{i}.npy", asked.vectors(i).astype(np.float32))
    np.save(folder / "document_of.npy", store.document_of)
    vectors = store.rows(0, store.tokens).astype(np.float32)
    tree = (
        scann.scann_ops_pybind.builder(vectors, 10, "dot_product")
        .tree(
            num_leaves=leaves,
            num_leaves_to_search=index["num_leaves_to_search"],  # PyLate's searches take the index's own
            training_sample_size=min(index["training_sample_size"], store.tokens),
            spherical=True,
            random_init=False,
        )
        .score_ah(1, anisotropic_quantization_threshold=index["anisotropic_quantization_threshold"])
    )
    (folder / "scann").mkdir()
    tree.build().serialize(str(folder / "scann"), relative_path=True)
    spec = {
        "queries": count,
        "leaves": index["num_leaves_to_search"],
        "engine": index,
        "documents": str(documents.resolve()),
        "asked": str(queries.resolve()),
        "ids": store.ids,
        "tokens": store.tokens,
    }
    (folder / "bench.json").write_text(json.dumps(spec))
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pylate", help="Python of PyLate's environment")
    parser.add_argument("--documents", type=Path, help="a finished `documents` embedding store")
    parser.add_argument("--queries", type=Path, help="a finished `queries` embedding store")
    parser.add_argument("--count", type=int, default=48, help="queries")
    parser.add_argument("--leaves", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--k-prime", type=int, nargs="+", default=list(K_PRIMES))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "runs" / "bench-retrieval")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.worker:
        return worker(words.worker, words.folder)
    if not words.documents or not words.queries:
        parser.error(
            "--documents and --queries name two embedding stores, e.g. of `xtrrep eval data=beir/nfcorpus/test`"
        )
    if not words.pylate:
        print("note: without --pylate only the limit and ours are measured", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        count = build(words.documents, words.queries, words.count, words.leaves, folder)
        names = [name for name in CONTESTANTS if words.pylate or name not in THEIRS]
        commands = {
            name: [words.pylate if name in THEIRS else sys.executable, __file__, "--worker", name, "--folder", folder]
            for name in names
        }
        with started(commands, os.cpu_count() or 1) as contestants:
            for contestant in contestants.values():
                contestant.answer()
            report(contestants, words, count, json.loads((folder / "bench.json").read_text()))
    return 0


def report(contestants: dict[str, Contestant], words: argparse.Namespace, count: int, spec: dict[str, Any]) -> None:
    from xtrrep.artifacts import write_atomic
    from xtrrep.console import progress
    from xtrrep.report.table import Table
    from xtrrep.retrieval.latency import processor

    rows: list[list[object]] = []
    rankings: dict[str, dict[int, list[Ranking]]] = {}
    with progress(len(words.k_prime) * words.rounds, "bench-retrieval", "round") as bar:
        for k_prime in words.k_prime:
            rounds = []
            for turn in range(words.rounds):
                order = rotated(list(contestants), turn)
                rounds.append({name: seconds(contestants[name], k_prime, rankings) for name in order})
                bar.update(1)
            found = {name: by_k_prime[k_prime] for name, by_k_prime in rankings.items()}
            rows.append(_row(k_prime, rounds, found, count))
    columns = ["k'", "limit, ms/query", "ours / limit", "PyLate / ours", "PyLate a / our a", "our a, ms/query"]
    columns += ["same top 100", "score difference"]
    table = Table(
        "XTR retrieval on ScaNN",
        columns,
        rows,
        [
            f"{count} queries over {spec['tokens']:,} tokens; ScaNN, {words.leaves} leaves, {spec['leaves']} searched, "
            f"the study's quantisation; {processor()}.",
            f"limit: ScaNN's own search, {BATCH} queries a call. PyLate 1.6.0: the faster of 1 and {BATCH} queries a "
            f"call. a: aggregation alone, {min(BATCH, count)} queries.",
            f"Median over {words.rounds} interleaved rounds of ratios within a round; how, scripts/bench_retrieval.py.",
        ],
        digits=3,
    )
    words.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("md", table.markdown()), ("csv", table.csv())):
        write_atomic(words.out / f"bench_retrieval.{suffix}", lambda file, text=text: file.write(text.encode()))
    print(table.terminal())


def _row(k_prime: int, rounds: list[dict[str, float]], rankings: dict[str, list[Ranking]], count: int) -> list[object]:
    def ratio(above: Callable[[dict[str, float]], float], below: str) -> float:
        return statistics.median(above(one) / one[below] for one in rounds)

    own = 1000 / min(BATCH, count)
    row: list[object] = [k_prime, statistics.median(one[LIMIT] for one in rounds) * 1000 / count]
    row.append(ratio(lambda one: one[OURS], LIMIT))
    if PYLATE_1 not in rankings:
        return [*row, None, None, statistics.median(one[OUR_AGGREGATION] for one in rounds) * own, None, None]
    row.append(ratio(lambda one: min(one[PYLATE_1], one[PYLATE_16]), OURS))
    row.append(ratio(lambda one: one[PYLATE_AGGREGATION], OUR_AGGREGATION))
    row.append(statistics.median(one[OUR_AGGREGATION] for one in rounds) * own)
    return [*row, *agreement(rankings[OURS], rankings[PYLATE_1])]


if __name__ == "__main__":
    sys.exit(main())
