"""Shared small things: a tiny collection, random stores, a way to run the command line as a user would."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtrrep import artifacts
from xtrrep.artifacts import Spec
from xtrrep.store.encode import Store

# Half the distance from 1 to the next float32: what one operation may be off. Processors add up in different orders,
# so a bound on rounding is a multiple of it.
ROUNDOFF = 2.0**-24
# What two orders may make of a score or gradient by inner products of up to 128 terms.
OF_PRODUCTS = 128 * ROUNDOFF
# The same of a unit vector's entries after MiniLM's six layers, whose longest sums have 1,536 terms of both signs.
OF_ENCODER = 6 * 1536**0.5 * ROUNDOFF

TOPICS = {
    "graph": ["node", "edge", "path", "cycle", "degree", "vertex", "tree", "shortest", "connected", "neighbour"],
    "array": ["axis", "shape", "stride", "dtype", "reshape", "broadcast", "element", "slice", "view", "buffer"],
    "stats": ["mean", "variance", "sample", "normal", "quantile", "median", "histogram", "density", "random", "seed"],
    "file": ["open", "close", "read", "write", "stream", "path", "buffer", "encoding", "line", "newline"],
}


def write_collection(folder: Path, documents: int = 40, seed: int = 0) -> Path:
    """A BEIR folder of made-up topical texts with train and test splits: small, and learnable."""
    rng = random.Random(seed)
    (folder / "qrels").mkdir(parents=True)
    names = list(TOPICS)
    corpus, queries = [], []
    for i in range(documents):
        words = TOPICS[names[i % len(names)]]
        marks = [f"w{i}a", f"w{i}b"]
        corpus.append(
            {"_id": f"d{i}", "title": names[i % len(names)], "text": " ".join(rng.choices(words, k=25) + marks)}
        )
        queries.append({"_id": f"q{i}", "text": " ".join([*rng.sample(words, 3), *marks])})
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, numbers in (("train", range(0, documents, 2)), ("test", range(1, documents, 2))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in numbers)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to point XTRREP_DATA at, holding the collection `mini`."""
    home = tmp_path_factory.mktemp("data with spaces ü")
    write_collection(home / "mini")
    return home


def write_store(
    folder: Path,
    vectors: Sequence[np.ndarray],
    shard: int = 7,
    stage: str = "documents",
    ids: Sequence[Sequence[int]] | None = None,
) -> Store:
    """A finished embedding store of the given (tokens, dim) arrays, `shard` documents a shard, vocabulary ids 0 or
    `ids`."""
    kept = [np.zeros(len(v), np.int32) for v in vectors] if ids is None else [np.array(i, np.int32) for i in ids]

    def fill(out: Path) -> dict[str, Any]:
        for name in ("vectors", "tokens"):
            (out / name).mkdir()
        for number, begin in enumerate(range(0, len(vectors), shard)):
            part = [v.astype(np.float16) for v in vectors[begin : begin + shard]]
            np.save(out / "vectors" / f"{number:05d}.npy", np.concatenate(part))
            np.save(out / "vectors" / f"{number:05d}.doclens.npy", np.array([len(v) for v in part], np.int32))
            np.save(out / "tokens" / f"{number:05d}.npy", np.concatenate(kept[begin : begin + shard]))
        (out / "ids.json").write_text(json.dumps([f"{stage[0]}{i}" for i in range(len(vectors))]))
        return {}

    content = {"vectors": hashlib.sha256(b"".join(v.astype(np.float16).tobytes() for v in vectors)).hexdigest()}
    spec = Spec(stage, "made", 1, {}, content=content)
    return Store.open(artifacts.make(spec, folder, fill), spec.fingerprint)


def unit_vectors(rng: np.random.Generator, count: int, dim: int, low: int = 1, high: int = 9) -> list[np.ndarray]:
    """`count` arrays of `low` to `high` - 1 random unit vectors, already rounded to float16 as a store holds them."""
    arrays = []
    for _ in range(count):
        raw = rng.normal(size=(int(rng.integers(low, high)), dim))
        arrays.append((raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16))
    return arrays


def pytest_configure(config: pytest.Config) -> None:
    """One of several workers takes a core for itself and all that it starts: where each used all of them, their threads
    would wait for one another at every barrier."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, with the reason, where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA GPU"))


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path, collections: Path) -> Cli:
    """Run `xtrrep WORDS` in a fresh process with its own home; `code` is the exit status it must end with."""

    def run(*words: str, code: int = 0, home: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        settings = os.environ | {"XTRREP_HOME": str(home or tmp_path / "home"), "XTRREP_DATA": str(collections)} | env
        done = subprocess.run(
            [sys.executable, "-m", "xtrrep", *words], capture_output=True, text=True, env=settings, timeout=600
        )
        assert done.returncode == code, f"exit {done.returncode}, wanted {code}\n{done.stdout}\n{done.stderr}"
        return done

    return run


# The smallest real run: one layer of MiniLM, two steps, forty documents.
TINY = (
    "data=beir/mini/test",
    "train.data=beir/mini/train",
    "model.layers=1",
    "train.steps=2",
    "train.batch_size=4",
    "train.n_doc=32",
    "model.n_doc=40",
    "model.n_query=16",
)


def tiny_engines() -> dict[str, tuple[str, ...]]:
    """Overrides that choose each registered engine at each of its tiny configurations, by `NAME` or `NAME/VARIANT`."""
    from xtrrep.retrieval.engines import engines

    return {
        f"{name}/{variant}".rstrip("/"): (f"index={name}", *(f"index.{key}={value}" for key, value in changes.items()))
        for name, entry in engines.entries().items()
        for variant, changes in entry.value.tiny.items()
    }


ENGINES = tiny_engines()


def index_choices(*kinds: type) -> list[str]:
    """Every choice of `index=`, presets included, whose engine is of one of these classes (none: of any)."""
    from xtrrep.config import options
    from xtrrep.retrieval.engines import engines

    return [c for c in options("index") if not kinds or issubclass(engines.get(c.split("/")[0]), kinds)]
