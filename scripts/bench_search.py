"""Exact search with XTR's and MaxSim's ranking: the numpy path beside the same on a device, in one run.

    .venv/bin/python scripts/bench_search.py --passages 100000 --device cuda --out results/runs/bench_search

Passages of 64 and queries of 32 random unit vectors, dimension 128, float16, written as an embedding store. Both paths
go through `retrieve` with the machine's default of 16 queries a call and rank the best 100 documents. The device is
measured twice: with the store in its memory, and copying it from the memory map in every pass, as a store that does not
fit must be; one pass over it serves as many queries as there is room for. A path's seconds a query are the median of
its rounds; on the device one more goes first, unmeasured, in which the store is put there.

Rankings are compared: exit 1 where a score differs by more than 1e-5 of itself at any rank, or where one ranking holds
a document that the other does not and that is not within that of the last one's score.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from xtrrep.measure.run_file import Run
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import exact_device
from xtrrep.retrieval.engines.exact import Searcher
from xtrrep.retrieval.latency import hardware
from xtrrep.retrieval.retrieve import Setting, retrieve
from xtrrep.store.encode import Store

ROOT = Path(__file__).resolve().parent.parent
QUERY_TOKENS, BATCH, SHARD = 32, 16, 8192
CLOSE = 1e-5  # of a score


def write_store(folder: Path, count: int, tokens: int, dim: int, seed: int, letter: str) -> Store:
    """`count` texts of `tokens` random unit vectors each."""
    (folder / "vectors").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number, begin in enumerate(range(0, count, SHARD)):
        rows = rng.standard_normal((min(SHARD, count - begin) * tokens, dim), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.save(folder / "vectors" / f"{number:05d}.npy", rows.astype(np.float16))
    return Store(folder, "synthetic", [f"{letter}{i}" for i in range(count)], np.full(count, tokens, np.int64))


def head(queries: Store, count: int) -> Store:
    """The first `count` queries."""
    return Store(queries.folder, queries.fingerprint, queries.ids[:count], queries.lengths[:count])


def seconds_a_query(run: Callable[[], object], queries: int, rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append((time.perf_counter() - start) / queries)
    return statistics.median(taken)


def differences(ours: Run, theirs: Run) -> tuple[float, float]:
    """The largest relative difference of scores at a rank, and of a document that only one side has from its last."""
    at_rank, alone = 0.0, 0.0
    for name, ranking in theirs.items():
        mine = ours[name]
        if len(mine) != len(ranking):
            return float("inf"), float("inf")
        for (_, a), (_, b) in zip(mine, ranking, strict=True):
            at_rank = max(at_rank, abs(a - b) / abs(b))
        for one, other in ((mine, ranking), (ranking, mine)):
            known = {document for document, _ in other}
            for document, score in one:
                if document not in known:
                    alone = max(alone, abs(score - one[-1][1]) / abs(score))
    return at_rank, alone


def measure(args: argparse.Namespace, folder: Path) -> tuple[Table, bool]:
    documents = write_store(folder / "documents", args.passages, args.tokens, args.dim, 1, "d")
    queries = write_store(folder / "queries", args.queries, QUERY_TOKENS, args.dim, 2, "q")
    few = head(queries, args.cpu_queries)
    rows: list[list[object]] = []
    fine = True
    for scoring, k_prime in [("xtr", k) for k in args.k_prime] + [("colbert", min(args.k_prime))]:
        setting = Setting(scoring, k_prime)
        found: dict[str, Run] = {}

        def on_numpy(setting: Setting = setting, found: dict[str, Run] = found) -> None:
            found["numpy"] = retrieve(Searcher(documents), documents, few, [setting], BATCH)[setting].run

        base = seconds_a_query(on_numpy, len(few), 1)
        rows.append([scoring, k_prime, "numpy", "processor", len(few), 1000 * base, 1.0, None, None])
        for kept in (True, False):
            searcher = exact_device.Searcher(documents, args.device)
            if not kept:
                with mock.patch.object(exact_device, "room", return_value=0):
                    assert searcher._resident is None  # looked at once, and so for good

            def on_device(
                searcher: exact_device.Searcher = searcher, setting: Setting = setting, found: dict[str, Run] = found
            ) -> None:
                found["device"] = retrieve(searcher, documents, queries, [setting], BATCH)[setting].run

            on_device()
            each = seconds_a_query(on_device, len(queries), args.rounds)
            at_rank, alone = differences({name: found["device"][name] for name in few.ids}, found["numpy"])
            fine = fine and max(at_rank, alone) <= CLOSE
            where = "store on the device" if kept else "store copied in every pass"
            row = [scoring, k_prime, args.device, where, len(queries), 1000 * each, base / each]
            rows.append([*row, f"{at_rank:.0e}", f"{alone:.0e}"])
    columns = ["scoring", "k'", "path", "vectors", "queries", "ms a query", "times numpy"]
    columns += ["scores differ by", "documents of one side by"]
    tokens = args.passages * args.tokens
    notes = [
        f"{hardware()}; torch {torch.__version__}, {torch.get_num_threads()} threads",
        f"{args.passages:,} passages, {tokens:,} vectors of {args.dim} float16: {tokens * args.dim * 2 / 1e9:.2f} GB",
        f"rankings {'agree' if fine else 'DO NOT AGREE'} to {CLOSE:g} of a score",
    ]
    if torch.cuda.is_available():
        notes.append(f"largest memory of the device {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    return Table("Exact search on a device", columns, rows, notes, digits=1), fine


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=64, help="of a passage")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=64, help="on the device")
    parser.add_argument("--cpu-queries", type=int, default=4, help="on numpy, the first of them")
    parser.add_argument("--k-prime", type=int, nargs="+", default=[1000, 40_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "runs" / "bench_search")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        table, fine = measure(args, Path(folder))
    table.save(args.out / "table")
    print(table.terminal())
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
