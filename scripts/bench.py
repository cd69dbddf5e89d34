"""All comparisons side by side in one run, and the limits of this machine: `make bench`.

    .venv/bin/python scripts/bench.py --pylate "$(scripts/pylate_env.sh)" --folder $XTRREP_DATA/nfcorpus

    bench_eval.py       NFCorpus from text to nDCG@10 beside PyLate; leaves the two stores the others read
    bench_encode.py     encoding beside sentence-transformers
    bench_retrieval.py  XTR retrieval on ScaNN beside PyLate and ScaNN's own search
    bench_train.py      the training objective beside sentence-transformers and PyLate

Each says at its top what it measures and how. Their tables and the limits stand together in
OUT/benchmarks/benchmarks.md, and beside it each with a CSV of every number. --record copies that folder to
results/recorded. Between two machines only ratios mean anything; the limits are there to judge them by.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from contestant import ROOT, environment, load_note

GB = 1e9
TABLES = ("limits", "eval", "encode", "retrieval/bench_retrieval", "train/bench_train")


def best(run: Callable[[], object], repeats: int = 7) -> float:
    """The fewest seconds of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def products() -> dict[str, float]:
    """10^9 operations a second of a product (2048, 384) by (384, 1536), by routine."""
    import torch

    from xtrrep.model.forward import _OneDNN

    values, weight = torch.randn(2048, 384), torch.randn(1536, 384)
    halves = values.bfloat16(), weight.bfloat16()
    operations = 2 * 2048 * 384 * 1536 / GB

    def onednn() -> Any:
        with _OneDNN():
            return torch.nn.functional.linear(values, weight)

    return {
        "matrix product, float32, torch's own, GFLOP/s": operations / best(lambda: values @ weight.T),
        "matrix product, float32, oneDNN, GFLOP/s": operations / best(onednn),
        "matrix product, bfloat16, GFLOP/s": operations / best(lambda: torch.nn.functional.linear(*halves)),
    }


def bandwidth() -> float:
    """GB a second read and written by copying 512 MB."""
    import torch

    source = torch.ones(1 << 27)
    target = torch.empty_like(source)
    return 2 * source.nbytes / GB / best(lambda: target.copy_(source))


def disk(folder: Path, size: int = 1 << 30) -> tuple[float, float]:
    """GB a second written (to the disk, not to the cache) and read back, cache dropped, in blocks of 16 MB."""
    block = os.urandom(1 << 24)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = size / GB / (time.perf_counter() - start)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        file.seek(0)
        while file.read(len(block)):
            pass
        return written, size / GB / (time.perf_counter() - start)


def limits(out: Path, threads: int) -> None:
    import torch

    from xtrrep.report.table import Table
    from xtrrep.retrieval.latency import hardware

    note = load_note()
    torch.set_num_threads(threads)
    rows: list[list[object]] = [[name, value] for name, value in products().items()]
    rows.append(["memory, copied, GB/s", bandwidth()])
    written, read = disk(out)
    rows += [["disk, written, GB/s", written], ["disk, read, GB/s", read]]
    table = Table("Limits of this machine", ["what", "best"], rows, [f"{hardware()}, {threads} threads.", *note], 2)
    table.save(out / "limits")
    print(table.terminal(), flush=True)


def gather(out: Path, commit: str) -> Path:
    """OUT/benchmarks: the tables that are there, each a CSV and Markdown, and all of them in benchmarks.md."""
    from xtrrep.artifacts import write_atomic

    folder = out / "benchmarks"
    folder.mkdir()
    text = f"## Benchmarks\n\nOne run of `make bench` at {commit}; seconds are compared within it only.\n"
    for name in TABLES:
        words = (out / name).with_suffix(".md")
        if not words.exists():
            text += f"\nNot run: {name}.\n"
            continue
        text += "\n" + words.read_text(encoding="utf-8")
        for path in (words, words.with_suffix(".csv")):
            shutil.copy(path, folder)
    write_atomic(folder / "benchmarks.md", lambda file: file.write(text.encode()))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pylate", required=True, help="Python of PyLate's environment")
    parser.add_argument("--folder", type=Path, required=True, help="a BEIR folder")
    parser.add_argument("--model", type=Path, help="an encoder that we trained; without it, an untrained one")
    parser.add_argument("--quick", action="store_true", help="100 documents, one round: to see that all of it runs")
    parser.add_argument("--rounds", type=int, default=3, help="of the evaluation beside PyLate, minutes each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", action="store_true", help="copy what comes out to results/recorded")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "runs" / "bench")
    words = parser.parse_args()
    if not (words.folder / "corpus.jsonl").is_file():
        parser.error(f"{words.folder} is no BEIR folder; hint: --folder names one, such as NFCorpus")
    out, threads = words.out.resolve(), ["--threads", str(words.threads)]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    limits(out, words.threads)
    peer, place = ["--pylate", words.pylate], ["--folder", str(words.folder)]
    few = ["--count", "100", "--k-prime", "1000"] if words.quick else ["--rounds", str(words.rounds)]
    model = ["--model", str(words.model)] if words.model else []
    run = partial(call, words.threads)
    run("eval", *peer, *place, *few, *model, *threads, "--out", str(out))
    encoding = ["--count", "40", "--rounds", "1"] if words.quick else []
    run("encode", *place, *encoding, *threads, "--out", str(out))
    stores = [f"--{stage}={next((out / 'home' / stage).glob('*-*'))}" for stage in ("documents", "queries")]
    searching = ["--leaves", "200", "--rounds", "1", "--count", "8", "--k-prime", "1000"] if words.quick else []
    run("retrieval", *peer, *stores, *searching, "--out", str(out / "retrieval"))
    training = (
        ["--quick", "--values", "random", "--masks", "no"]
        if words.quick
        else ["--length", "300", "--values", "clustered", "--batch", "32", "64"]
    )
    run("train", *peer, *stores, *training, *threads, "--out", str(out / "train"))
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    folder = gather(out, described.stdout.strip() or "an unknown commit")
    if words.record:
        recorded = ROOT / "results" / "recorded" / folder.name
        shutil.rmtree(recorded, ignore_errors=True)
        shutil.copytree(folder, recorded)
    print(folder / "benchmarks.md")
    return 0


def call(threads: int, name: str, *words: str) -> None:
    """Run a benchmark. Raises CalledProcessError where it fails: a table with a hole would pass for a whole one."""
    command = [sys.executable, str(Path(__file__).with_name(f"bench_{name}.py")), *words]
    subprocess.run(command, check=True, env=environment(threads))


if __name__ == "__main__":
    sys.exit(main())
