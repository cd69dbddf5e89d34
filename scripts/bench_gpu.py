"""The training objective, and encoding, on a GPU: seconds, memory, and how far from the processor's numbers.

    .venv/bin/python scripts/bench_gpu.py objective --out results/runs/bench_gpu/objective
    .venv/bin/python scripts/bench_gpu.py encode --out results/runs/bench_gpu/encode

objective: forward and backward of the XTR loss on random unit vectors in float32, 32 tokens a query, 2 documents a
query, beside sentence-transformers' XTRScores; seconds are the median of the rounds, one more goes first; memory is the
largest allocation less what inputs and their gradients hold. Loss and gradients are compared with the peer's.

encode: MiniLM, made-up documents from text to a store, in passages a second, by device and precision; vectors are
compared with those of the processor in fp32 by their cosine.

Exit 1 where something is further off than it may be.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xtrrep.config import Encode, Precision, compose
from xtrrep.model.encoder import build
from xtrrep.plan.calibrate import texts_of
from xtrrep.report.table import Table
from xtrrep.retrieval.latency import hardware
from xtrrep.store.encode import encode
from xtrrep.train.xtr import xtr_scores

ROOT = Path(__file__).resolve().parent.parent
QUERY_TOKENS, WAYS, DIM, K_TRAIN, TEMPERATURE = 32, 2, 128, 128, 0.05
GRADIENT = 1e-4  # of the largest gradient; both add in float32, in orders of their own
COSINE = {Precision.fp32: 0.9999, Precision.bf16: 0.98, Precision.fp16: 0.999}  # the least, of any token


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def contestants() -> dict[str, Callable[..., torch.Tensor]]:
    from sentence_transformers.multi_vector_encoder.scoring import XTRScores

    peer = XTRScores(K_TRAIN)
    return {
        "ours": lambda queries, documents: xtr_scores(queries, documents, k_train=K_TRAIN),
        "sentence-transformers": lambda queries, documents: peer(queries, documents, None, None),
    }


def objective(args: argparse.Namespace) -> tuple[Table, bool]:
    rows: list[list[object]] = []
    fine = True
    for batch in args.batch:
        generator = torch.Generator().manual_seed(batch)
        made = [torch.randn(shape, generator=generator) for shape in
                ((batch, QUERY_TOKENS, DIM), (batch, WAYS, args.length, DIM))]  # fmt: skip
        inputs = [torch.nn.functional.normalize(x, dim=-1).to(args.device).requires_grad_() for x in made]
        found: dict[str, tuple[float, list[torch.Tensor]]] = {}
        for name, scores in contestants().items():
            try:
                seconds, memory, loss = timed(scores, inputs, args)
            except torch.cuda.OutOfMemoryError:
                rows.append([batch, args.length, name, None, None, "out of memory"])
                continue
            gradients = [x.grad for x in inputs if x.grad is not None]
            found[name] = (loss, gradients)
            rows.append([batch, args.length, name, 1000 * seconds, memory, None])
        if len(found) == 2:
            (loss, ours), (other, theirs) = found.values()
            far = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
            fine = fine and far <= GRADIENT and abs(loss - other) <= 1e-4 * abs(other)
            rows[-2][-1] = f"loss by {abs(loss - other) / abs(other):.0e}, gradients by {far:.0e}"
    columns = ["batch", "document tokens", "by", "ms", "extra memory, GB", "differs from the peer"]
    notes = [about(), "memory is not measured on a processor"]
    return Table("XTR's training objective, forward and backward", columns, rows, notes, digits=2), fine


def timed(scores: Callable[..., torch.Tensor], inputs: list[torch.Tensor], args: argparse.Namespace) -> Any:
    """Median seconds, extra memory in GB (None on a processor) and the loss; the gradients stay in `inputs`."""
    queries, documents = inputs
    labels = torch.arange(len(queries), device=args.device) * WAYS
    gpu, taken, memory, loss = args.device.startswith("cuda"), [], None, torch.zeros(())
    for _ in range(args.rounds + 1):
        queries.grad = documents.grad = None
        wait(args.device)
        if gpu:
            before = torch.cuda.memory_allocated(args.device)
            torch.cuda.reset_peak_memory_stats(args.device)
        start = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(scores(queries, documents) / TEMPERATURE, labels)
        loss.backward()
        wait(args.device)
        taken.append(time.perf_counter() - start)
        if gpu:
            gradients = sum(x.numel() * x.element_size() for x in inputs)
            memory = (torch.cuda.max_memory_allocated(args.device) - before - gradients) / 1e9
    return statistics.median(taken[1:]), memory, float(loss.detach())


def encoding(args: argparse.Namespace) -> tuple[Table, bool]:
    rows: list[list[object]] = []
    cfg = compose([])
    fine, reference = True, np.empty(0)
    kinds = [("cpu", Precision.fp32, args.processor_documents)]
    kinds += [(args.device, precision, args.documents) for precision in Precision if precision is not Precision.auto]
    base = 0.0
    for device, precision, count in kinds:
        if device == "cpu" and precision is Precision.fp16:
            continue  # fp32 there
        model = build(cfg.model, device)
        lengths = np.random.default_rng(1).integers(8, args.tokens + 1, count).tolist()
        texts = [(f"d{i}", text) for i, text in enumerate(texts_of(model, lengths))]
        with tempfile.TemporaryDirectory() as folder:
            for name, part in (("first", texts[:32]), ("all", texts)):
                (Path(folder) / name).mkdir()
                start = time.perf_counter()
                encode(
                    model,
                    part,
                    len(part),
                    Path(folder) / name,
                    Encode(precision=precision),
                    task="document",
                    device=device,
                    batch_tokens=args.batch_tokens,
                )
                rate = len(part) / (time.perf_counter() - start)
            found = np.load(Path(folder) / "all" / "vectors" / "00000.npy").astype(np.float32)
            found /= np.linalg.norm(found, axis=1, keepdims=True)  # float16 rounds a length by as much as a cosine
        if not len(reference):
            reference, base = found, rate
        cosines = (reference * found[: len(reference)]).sum(axis=1)
        fine = fine and bool(cosines.min() >= COSINE[precision])
        rows.append([device, precision.value, count, rate, rate / base, float(cosines.min()), float(cosines.mean())])
    columns = [
        "device",
        "precision",
        "documents",
        "a second",
        "times fp32 of the processor",
        "least cosine",
        "mean cosine",
    ]
    notes = [
        about(),
        f"documents of 8 to {args.tokens} tokens, both sides encode the same ones first",
    ]
    return Table("Encoding, MiniLM", columns, rows, notes, digits=4), fine


def about() -> str:
    return f"{hardware()}; torch {torch.__version__}, {torch.get_num_threads()} threads"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    first, second = verbs.add_parser("objective"), verbs.add_parser("encode")
    for verb in (first, second):
        verb.add_argument("--device", default="cuda")
        verb.add_argument("--out", type=Path, required=True)
    first.add_argument("--batch", type=int, nargs="+", default=[32, 64, 196])
    first.add_argument("--length", type=int, default=300)
    first.add_argument("--rounds", type=int, default=5)
    second.add_argument("--documents", type=int, default=4096)
    second.add_argument("--processor-documents", type=int, default=128)
    second.add_argument("--batch-tokens", type=int, help="of a batch, padding included (the machine's default)")
    second.add_argument("--tokens", type=int, default=236)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table, fine = objective(args) if args.verb == "objective" else encoding(args)
    table.save(args.out / "table")
    print(table.terminal())
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
