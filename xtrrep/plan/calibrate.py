"""A short run on this machine that tells a plan (xtrrep/plan/cost.py) how fast it works.

Four rates, in operations a second as the plan counts them: whole training steps by the trainer itself, documents
through the encoder into a store, products with the search for the nearest centroid as k-means makes them, and exact
search. Texts and vectors are made up; lengths are those that the plan assumes. On a processor everything is smaller.
"""

from __future__ import annotations

import datetime
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from xtrrep import config as configs
from xtrrep.artifacts import write_json
from xtrrep.config import Config
from xtrrep.console import DataError, UsageError, say
from xtrrep.pipeline.identity import device_named, lengths_of, place_of
from xtrrep.plan.cost import CALIBRATION
from xtrrep.plan.operations import FILE, figures, forward_operations, training_operations
from xtrrep.retrieval.engines.exact import Exact
from xtrrep.retrieval.latency import hardware
from xtrrep.retrieval.retrieve import Setting, retrieve
from xtrrep.store.encode import Store, encode

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

SEED = 1
QUERIES, PASSAGE_TOKENS, K_PRIME = 16, 64, 1000  # of the search
PRODUCT_SECONDS = 1.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    batch: int | None  # of a training step; None: the config's
    steps: int
    documents: int
    rows: int  # of a product
    passages: int


GPU = Size(None, 24, 4096, 1 << 16, 20_000)
PROCESSOR = Size(8, 4, 48, 1 << 12, 1000)


def calibrate(cfg: Config) -> tuple[Path, dict[str, Any]]:
    """Measure with the encoder of `cfg`; returns the file written and what stands in it.

    Raises DataError for an encoder without figures in `configs/costs.yaml` or whose weights are missing, and UsageError
    for one whose layers are cut.
    """
    from xtrrep.model.encoder import build

    name, device = cfg.model.backbone, device_named(cfg.machine.device)
    if name not in figures()["models"]:
        raise DataError(
            f"configs/{FILE} has no figures for model.backbone={name}", hint=f"one of: {', '.join(figures()['models'])}"
        )
    if cfg.model.layers is not None:
        raise UsageError(
            "a calibration measures a whole encoder, and model.layers cuts it", hint="leave model.layers out"
        )
    size = GPU if device.startswith("cuda") else PROCESSOR
    model = build(cfg.model, device)
    rates: dict[str, float] = {}
    said: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        work: dict[str, Callable[[], tuple[float, str]]] = {
            "train": lambda: _train(cfg, model, size, out / "train", device),
            "encode": lambda: _encode(cfg, model, size, out / "encode", device),
            "product": lambda: _product(cfg, size, device),
            "search": lambda: _search(cfg, size, out),
        }
        for kind, measure in work.items():
            say(f"measure {kind}")
            rates[kind], said[kind] = measure()
    found = {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "device": device,
        "backbone": name,
        "rates": rates,
        "measured": said,
    }
    path = configs.artifacts_root() / CALIBRATION
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return path, found


def texts_of(model: MultiVectorEncoder, lengths: Sequence[int]) -> list[str]:
    """Texts of so many tokens each, special ones included, of words that are one token."""
    words = sorted(word for word in model.tokenizer.get_vocab() if word.isalpha() and word.isascii() and len(word) > 2)
    rng = random.Random(SEED)
    return [" ".join(rng.choices(words, k=max(1, length - 2))) for length in lengths]


def _train(cfg: Config, model: MultiVectorEncoder, size: Size, out: Path, device: str) -> tuple[float, str]:
    """Operations a second of whole steps; the first third is not counted."""
    from datasets import Dataset

    from xtrrep.train.log import read_log
    from xtrrep.train.losses import contrastive
    from xtrrep.train.trainer import fit

    batch = size.batch or cfg.train.batch_size
    length = min(int(figures()["text"]["padded_in_training"]), cfg.train.n_doc)
    train = replace(
        cfg.train, batch_size=batch, steps=size.steps, keep=[], checkpoint_every=10**9, eval_every=None, eval_data=None
    )
    rows = batch * size.steps
    columns = {"query": texts_of(model, [cfg.model.n_query] * rows)}
    columns |= {name: texts_of(model, [length] * rows) for name in ("positive", "negative")}
    machine = replace(cfg.machine, tensorboard=False, wandb=False)
    fit(model, Dataset.from_dict(columns), train, out, device, loss=contrastive(model, train), machine=machine)
    times = [row["time"] for row in read_log(out / "log.jsonl", "loss")]
    each = median(np.diff(times)[size.steps // 3 :])
    work = training_operations(replace(cfg, train=train), distil=False, padded=length)
    return _rate(work, each), f"{1000 * each:,.1f} ms a step of {batch}, documents of {length} tokens"


def _encode(cfg: Config, model: MultiVectorEncoder, size: Size, out: Path, device: str) -> tuple[float, str]:
    """Operations a second of documents of 20 to 236 tokens, from text to a store; a few go first, unmeasured."""
    from xtrrep.model.encoder import set_lengths

    set_lengths(model, *lengths_of(cfg), model[0].query_expansion)  # the trainer left its own
    longest = min(236, lengths_of(cfg)[1])
    lengths = np.random.default_rng(SEED).integers(20, longest + 1, size.documents).tolist()
    texts = [(f"d{i}", text) for i, text in enumerate(texts_of(model, lengths))]
    taken = 0.0
    for name, part in (("first", texts[:32]), ("all", texts)):
        (out / name).mkdir(parents=True)
        start = time.perf_counter()
        encode(
            model,
            part,
            len(part),
            out / name,
            cfg.encode,
            task="document",
            device=device,
            batch_tokens=cfg.machine.encode_tokens,
        )
        taken = time.perf_counter() - start
    work = sum(forward_operations(cfg.model.backbone, length, length) or 0.0 for length in lengths)
    return _rate(work, taken), f"{len(texts) / taken:,.1f} documents a second of {np.mean(lengths):.0f} tokens"


def _product(cfg: Config, size: Size, device: str) -> tuple[float, str]:
    """Operations a second of a float32 product and its maxima: the best of a second's worth."""
    import torch

    rows, columns = torch.rand(size.rows, cfg.model.dim, device=device), torch.rand(cfg.model.dim, 2048, device=device)
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < PRODUCT_SECONDS:
        start = time.perf_counter()
        float((rows @ columns).amax(dim=1).sum())  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return _rate(2.0 * size.rows * cfg.model.dim * 2048, best), f"{size.rows} x {cfg.model.dim} by 2048, float32"


def _search(cfg: Config, size: Size, folder: Path) -> tuple[float, str]:
    """Operations a second of exact search with XTR's ranking; one pass goes first, unmeasured."""
    rng, n_query = np.random.default_rng(SEED), cfg.model.n_query
    stores = []
    for name, count, tokens in (("d", size.passages, PASSAGE_TOKENS), ("q", QUERIES, n_query)):
        (folder / name / "vectors").mkdir(parents=True)
        vectors = rng.standard_normal((count * tokens, cfg.model.dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(folder / name / "vectors" / "00000.npy", vectors.astype(np.float16))
        ids = [f"{name}{i}" for i in range(count)]
        stores.append(Store(folder / name, "made up", ids, np.full(count, tokens, np.int64)))
    documents, queries = stores
    searcher = Exact().load(folder, documents, place_of(cfg))
    taken = 0.0
    for _ in range(2):
        start = time.perf_counter()
        retrieve(searcher, documents, queries, [Setting("xtr", K_PRIME)], cfg.machine.query_batch)
        taken = time.perf_counter() - start
    work = 2.0 * cfg.model.dim * QUERIES * n_query * documents.tokens
    return _rate(work, taken), f"{1000 * taken / QUERIES:,.1f} ms a query of {documents.tokens:,} vectors, k'={K_PRIME}"


def _rate(work: float | None, seconds: float) -> float:
    if work is None or seconds <= 0:
        raise DataError("nothing could be measured: no time passed", hint="run it again with nothing else running")
    return work / float(seconds)
