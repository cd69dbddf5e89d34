"""The toolkit from Python: `import xtrrep`, then encode, build, search and evaluate, or run a whole config.

    model = xtrrep.load_model("my-xtr")
    documents = xtrrep.encode_texts(model, {"d1": "a path between two nodes", ...}, "stores")
    index = xtrrep.build_index(documents, "warp", "stores", nprobe=16)
    queries = xtrrep.encode_texts(model, {"q1": "shortest path"}, "stores", task="query")
    run = xtrrep.search(index, queries, top_k=10)
    xtrrep.evaluate_run({"q1": {"d1": 1}}, run, ["nDCG@10"])

What is built lies under the folder named last, by content, and is re-used when asked for again. docs/API.md tells more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.artifacts import Spec, digest
from xtrrep.config import Encode, Model, Precision, Source
from xtrrep.console import DataError, UsageError
from xtrrep.encode import Store
from xtrrep.index import DocumentEngine, Place, TextEngine, TokenEngine, engine_of, files
from xtrrep.retrieve import Setting, rank_query, retrieve, retrieve_documents
from xtrrep.runfile import Run
from xtrrep.scoring.imputation import imputations
from xtrrep.vectors import change as change_documents
from xtrrep.vectors import store as store_vectors

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

__all__ = [
    "Index",
    "Result",
    "build_index",
    "change_documents",
    "encode_texts",
    "evaluate_run",
    "load_model",
    "run_config",
    "search",
    "store_vectors",
]


@dataclass(frozen=True)
class Result:
    """What a config came to: each stage's folder by name, the final stage's facts, and which folders were made."""

    plan: pipeline.Plan
    folders: Mapping[str, Path]
    facts: Mapping[str, Any]
    ran: Sequence[Path]
    reused: Sequence[Path]

    @property
    def folder(self) -> Path:
        return self.folders[self.final]

    @property
    def final(self) -> str:
        """The last stage's name; `train` ends with `distill` for a distilled model."""
        return self.plan.steps[-1].stage.name


def run_config(*overrides: str, until: str = "evaluate") -> Result:
    """Carry a config out up to a stage, as `xtrrep evaluate KEY=VALUE ...` does; what is there already is re-used.

    Example: `run_config("config=xtr_k128", "index=warp").facts["measures"]`. Raises UsageError and DataError.
    """
    from xtrrep import preflight

    plan = pipeline.plan(configs.compose(overrides), until)
    preflight.require([plan])
    set_threads(plan.cfg.machine.threads)
    done = pipeline.run([plan])
    folders = done.folders[0]
    facts = artifacts.read_manifest(folders[plan.steps[-1].stage.name])["facts"]
    return Result(plan, folders, facts, done.ran, done.reused)


def set_threads(count: int | None) -> None:
    """torch's threads and those of every BLAS, loaded or still to be; None leaves them."""
    if count is not None:
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(count)
        os.environ["OPENBLAS_NUM_THREADS"] = str(count)  # scipy brings a BLAS of its own, and is loaded later
        threadpool_limits(count, user_api="blas")


def load_model(name: str, *, revision: str | None = None, device: str = "auto") -> MultiVectorEncoder:
    """A multi-vector model: a folder or hub id of sentence-transformers, PyLate, Stanford ColBERT or XTR's T5.

    Raises DataError where there is none.
    """
    from xtrrep.model.encoder import device_of, get

    defaults = configs.compose().model
    wanted: dict[str, Any] = {**vars(defaults), "source": Source.checkpoint, "checkpoint": name, "revision": revision}
    return get(Model(**wanted), None, device_of(device))


def encode_texts(
    model: MultiVectorEncoder,
    texts: Mapping[str, str],
    root: str | Path,
    *,
    task: str = "document",
    precision: str = "auto",
    pool_factor: float = 1.0,
    batch_tokens: int | None = None,
) -> Store:
    """Token vectors of {id: text} as an embedding store under `root`. task: "document" or "query".

    A forward pass holds at most `batch_tokens` tokens, padding included; None: what suits the device.
    Raises DataError for no texts, or a text without a finite vector.
    """
    from xtrrep.encode import encode
    from xtrrep.model.encoder import resolve_precision

    if task not in ("document", "query"):
        raise UsageError(f"task={task!r} is no task", hint='"document" or "query"')
    if not texts:
        raise DataError("there are no texts to encode", hint="texts is {id: text}, with one text at least")
    device = str(model.device)
    cfg = Encode(precision=resolve_precision(Precision(precision), device), pool_factor=pool_factor)
    config = {"precision": cfg.precision.value, "pool_factor": pool_factor, "model": _state(model)}
    stage = "documents" if task == "document" else "queries"
    spec = Spec(stage, "python", 2, config, content={"texts": digest(list(texts.items()))})

    def make(out: Path) -> dict[str, Any]:
        return encode(model, texts.items(), len(texts), out, cfg, task=task, device=device, batch_tokens=batch_tokens)

    return Store.open(artifacts.make(spec, Path(root), make), spec.fingerprint)


def _state(model: MultiVectorEncoder) -> str:
    """A hash of what decides a model's vectors: weights, modules' settings, prompts, tokenizer."""
    import hashlib

    import torch

    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(sorted(model.tokenizer.get_vocab().items()))
    sha.update(repr((model.prompts, words)).encode())
    for module in model:
        sha.update(repr((type(module).__name__, getattr(module, "query_expansion", None))).encode())
        keys = getattr(module, "config_keys", [])
        sha.update(repr([(key, getattr(module, key, None)) for key in keys]).encode())
    return sha.hexdigest()


@dataclass(frozen=True)
class Index:
    """An opened index over a store."""

    store: Store
    folder: Path
    engine: TokenEngine | DocumentEngine
    searcher: Any
    facts: Mapping[str, Any]


def build_index(
    store: Store,
    engine: str = "exact",
    root: str | Path = "stores",
    *,
    device: str = "cpu",
    threads: int | None = None,
    **params: Any,
) -> Index:
    """Build an index over a store, or open the one built before, every file's hash compared.

    engine: a name of configs/index, such as "warp" or "warp/library"; `params` change what it says. Raises UsageError
    for a parameter the engine does not have and DataError for what it cannot index.
    """
    words = [f"index={engine}", *(f"index.{key}={'null' if v is None else v}" for key, v in params.items())]
    index, place = configs.compose(words).index, Place(device, threads)
    chosen = engine_of(index)
    if isinstance(chosen, TextEngine):
        raise UsageError(f"{engine} ranks words, not vectors", hint="xtrrep.run_config('index=bm25')")
    spec = files.index_spec(store.folder.name.rpartition("-")[0], store.fingerprint, index)
    folder = artifacts.make(spec, Path(root), lambda out: files.build_index(store, index, out, place))
    facts = artifacts.read_manifest(folder)["facts"]
    searcher = files.open_index(folder, store, index, place, spec.fingerprint)
    return Index(store, folder, chosen, searcher, facts)


def search(
    index: Index,
    queries: Store | Mapping[str, NDArray[Any]],
    *,
    scoring: str = "xtr",
    k_prime: int | None = None,
    imputation: str = "min",
    top_k: int = 100,
    rerank: int | None = None,
    batch: int = 16,
) -> Run:
    """Rankings {query id: [(document id, score), ...]}, best first, for a store of queries or {id: (T, H) vectors}.

    scoring, `k_prime` (40,000 under "xtr", 4,000 under "colbert" where None) and `imputation` are for token engines;
    PLAID and WARP score by themselves. rerank: so many of the best once more, by exact MaxSim. Raises UsageError for a
    setting that does not fit and DataError for vectors that are not finite, zero, or of another dimension.
    """
    for name, value in (("top_k", top_k), ("k_prime", k_prime), ("rerank", rerank), ("batch", batch)):
        if value is not None and value < 1:
            raise UsageError(
                f"{name} must be at least 1, got {value}", hint=f"{name}=1 or more; left out, it has its default"
            )
    if isinstance(index.engine, TokenEngine):
        if scoring not in ("xtr", "colbert"):
            raise UsageError(f"scoring={scoring!r} is no way to score", hint='"xtr" or "colbert"')
        imputations.get(imputation)
        k_prime = k_prime or (40000 if scoring == "xtr" else 4000)
        setting = Setting(scoring, k_prime, imputation if scoring == "xtr" else "none", top_k, rerank=rerank)
    else:
        if k_prime is not None or imputation != "min":
            raise UsageError(
                "this engine ranks documents by itself: k_prime and imputation mean nothing to it",
                hint="leave both out, or build_index(store, 'exact')",
            )
        setting = Setting(index.engine.scoring, None, "none", top_k, rerank=rerank)
    if isinstance(queries, Store):
        if setting.k_prime is None:
            return retrieve_documents(index.searcher, index.store, queries, setting, batch).run
        return retrieve(index.searcher, index.store, queries, [setting], batch)[setting].run
    return {
        name: rank_query(index.searcher, index.store, np.asarray(vectors, np.float32), setting)
        for name, vectors in queries.items()
    }


def evaluate_run(
    qrels: Mapping[str, Mapping[str, int]], found: Run, measures: Sequence[str] = ("nDCG@10", "R@100")
) -> dict[str, float]:
    """Means over the judged queries, by ir-measures names. Raises UsageError for a measure it does not know."""
    from xtrrep.evaluate import evaluate

    scores = evaluate(qrels, found, list(measures))
    return {name: float(scores[name].mean()) for name in scores.columns}
