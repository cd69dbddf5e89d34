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

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.artifacts import Spec, digest
from xtrrep.config import Encode, Precision, Source
from xtrrep.console import DataError, UsageError, say
from xtrrep.data import text_id
from xtrrep.measure.run_file import Run
from xtrrep.model.encoder import device_of
from xtrrep.pipeline.identity import look_again
from xtrrep.pipeline.notes import notes_of
from xtrrep.pipeline.stages.collection import missing_note
from xtrrep.retrieval.engines import DocumentEngine, Place, TextEngine, TokenEngine, engine_of, files
from xtrrep.retrieval.imputation import imputations
from xtrrep.retrieval.retrieve import Setting, rank_query, retrieve, retrieve_documents
from xtrrep.store import imported
from xtrrep.store.encode import Store, cut_note
from xtrrep.store.imported import change as change_documents
from xtrrep.store.imported import store as store_vectors

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

    @property
    def notes(self) -> list[str]:
        """What was counted beside the scores, a sentence each: see `notes_of`."""
        return [text for texts in notes_of(self.plan, self.folders).values() for text in texts]

    @property
    def unsaid(self) -> list[str]:
        """The notes that no stage of this run has printed already."""
        ran = {name for name in ("data", "train") if self.folders.get(name) in self.ran}
        found = notes_of(self.plan, self.folders)
        told = {missing_note(self._facts("data"))} if "data" in ran else set()
        told |= set(self._facts("train").get("odd", [])) if "train" in ran else set()
        return [text for texts in found.values() for text in texts if text not in told]

    def _facts(self, name: str) -> dict[str, Any]:
        facts: dict[str, Any] = artifacts.read_manifest(self.folders[name])["facts"]
        return facts


def run_config(*overrides: str, until: str = "evaluate") -> Result:
    """Carry a config out up to a stage, as `xtrrep evaluate KEY=VALUE ...` does; what is there already is re-used.

    overrides: KEY=VALUE texts. until: a stage's name, such as "train", "index" or "evaluate". torch and every BLAS have
    `machine.threads` threads meanwhile, and as many as before afterwards. Raises UsageError for an override or a stage
    that is not known, and DataError for data, a model or an engine that is missing or broken, and for a stage at
    scale=paper that this machine's memory cannot hold.

    Example: `run_config("config=xtr_k128", "index=warp").facts["measures"]`.
    """
    from xtrrep.pipeline.stages.table import BY_NAME
    from xtrrep.plan import cost, preflight

    for text in overrides:
        if not isinstance(text, str):
            raise UsageError(
                f"an override is a {type(text).__name__}, not a text", hint='run_config("config=colbert", "index=warp")'
            )
    if not isinstance(until, str) or until not in BY_NAME:
        raise UsageError(f"until={until!r} is not a stage", hint=f"one of: {', '.join(BY_NAME)}")
    look_again()  # files may have changed since this process planned a run before
    plan = pipeline.plan(configs.compose(overrides), until)
    preflight.require([plan])
    cost.require_memory([plan])
    with _threads(plan.cfg.machine.threads):
        done = pipeline.run([plan])
    folders = done.folders[0]
    facts = artifacts.read_manifest(folders[plan.steps[-1].stage.name])["facts"]
    return Result(plan, folders, facts, done.ran, done.reused)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """torch's threads and those of every BLAS for the length of a block; None leaves them."""
    if count is None:
        yield
        return
    import torch
    from threadpoolctl import threadpool_limits

    before, variable = torch.get_num_threads(), os.environ.get(BLAS_THREADS)
    with threadpool_limits(None, user_api="blas"):  # remembers how many there are
        set_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            if variable is None:
                del os.environ[BLAS_THREADS]
            else:
                os.environ[BLAS_THREADS] = variable


BLAS_THREADS = "OPENBLAS_NUM_THREADS"  # scipy brings a BLAS of its own, and is loaded later


def set_threads(count: int | None) -> None:
    """torch's threads and those of every BLAS, loaded or still to be; None leaves them."""
    if count is not None:
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(count)
        os.environ[BLAS_THREADS] = str(count)
        threadpool_limits(count, user_api="blas")


def load_model(name: str | Path, *, revision: str | None = None, device: str = "auto") -> MultiVectorEncoder:
    """A multi-vector model: a folder or hub id of sentence-transformers, PyLate, Stanford ColBERT or XTR's T5.

    revision: of a model on the hub. device: "auto", "cpu", "cuda" or "cuda:1". Raises UsageError for an argument of
    another type and a device that is none, and DataError where there is no such model, or it cannot be used.
    """
    from xtrrep.model.encoder import get, quietly

    if not isinstance(name, str | Path) or not str(name):
        raise UsageError(f"name is {name!r}, not a model", hint='load_model("my-xtr"), a folder or a hub id')
    if revision is not None and not isinstance(revision, str):
        raise UsageError(f"revision is {revision!r}, not a text", hint="a branch, a tag or a commit of the hub")
    if not isinstance(device, str):
        raise UsageError(f"device is {device!r}, not a text", hint='"auto", "cpu", "cuda" or "cuda:1"')
    wanted = replace(configs.compose().model, source=Source.checkpoint, checkpoint=str(name), revision=revision)
    with quietly():
        return get(wanted, None, device_of(device))


def encode_texts(
    model: MultiVectorEncoder,
    texts: Mapping[Any, str],
    root: str | Path,
    *,
    task: str = "document",
    precision: str = "auto",
    pool_factor: float = 1.0,
    batch_tokens: int | None = None,
) -> Store:
    """Token vectors of {id: text} as an embedding store under `root`. task: "document" or "query".

    Ids are texts or whole numbers. precision: "auto", "fp32", "bf16" or "fp16". pool_factor: keep about 1 / pool_factor
    of a document's vectors, clustered. A forward pass holds at most `batch_tokens` tokens, padding included; None: what
    suits the device. Raises UsageError for an argument of another type or out of range, and DataError for no texts, a
    query without words, or a text without a finite vector.
    """
    from sentence_transformers import MultiVectorEncoder

    from xtrrep.model.precision import resolve_precision
    from xtrrep.store.encode import encode

    if not isinstance(model, MultiVectorEncoder):
        raise UsageError(f"model is a {type(model).__name__}, not a model", hint='load_model("my-xtr") gives one')
    root = imported.folder_of(root, "root")
    if not isinstance(task, str) or task not in ("document", "query"):
        raise UsageError(f"task={task!r} is not a task", hint='"document" or "query"')
    if not isinstance(precision, str) or precision not in Precision.__members__:
        raise UsageError(
            f"precision={precision!r} is not a precision", hint=f"one of: {', '.join(Precision.__members__)}"
        )
    _check_number("pool_factor", pool_factor, 1.0)
    batch_tokens = _whole("batch_tokens", batch_tokens)
    texts = _texts(texts, task)
    device = str(model.device)
    cfg = Encode(precision=resolve_precision(Precision(precision), device), pool_factor=float(pool_factor))
    config = {"precision": cfg.precision.value, "pool_factor": float(pool_factor), "model": _state(model)}
    stage = "documents" if task == "document" else "queries"
    spec = Spec(stage, "python", 2, config, content={"texts": digest(list(texts.items()))})

    def make(out: Path) -> dict[str, Any]:
        return encode(model, texts.items(), len(texts), out, cfg, task=task, device=device, batch_tokens=batch_tokens)

    store = Store.open(artifacts.make(spec, root, make), spec.fingerprint)
    facts = artifacts.read_manifest(store.folder)["facts"]
    if note := cut_note(facts, task, f"model[0].{task}_length"):
        say(f"  note: {note}")
    return store


def _texts(texts: Any, task: str) -> dict[str, str]:
    """{id: text} with text ids. Raises UsageError for another type and DataError for none, or a query without words."""
    hint = 'texts is {id: text}, with one text at least: {"d1": "a path between two nodes"}'
    if not isinstance(texts, Mapping):
        raise UsageError(f"texts is a {type(texts).__name__}, not a dict of texts", hint=hint)
    if not texts:
        raise DataError("there are no texts to encode", hint=hint)
    found: dict[str, str] = {}
    for key, text in texts.items():
        name = text_id(key, "texts")
        if name in found:
            raise DataError(f"texts holds {name!r} twice, under ids of two types", hint="ids are texts")
        if not isinstance(text, str):
            raise UsageError(f"texts[{name!r}] is a {type(text).__name__}, not a text", hint=hint)
        if task == "query" and not text.strip():
            raise DataError(f"the query {name!r} has no words to search for", hint="leave it out, or give it words")
        found[name] = text
    return found


def _whole(name: str, value: Any, least: int = 1) -> int | None:
    """A whole number (NumPy's too) or None. Raises UsageError for another type, and for one below `least`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} is {value!r} of type {type(value).__name__}", hint=f"{name}={least}, a whole number")
    if value < least:
        raise UsageError(
            f"{name} must be at least {least}, got {value}",
            hint=f"{name}={least} or more; left out, it has its default",
        )
    return int(value)


def _check_number(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name} is {value!r} of type {type(value).__name__}", hint=f"{name}={least}, a number")
    if not least <= float(value) < math.inf:
        raise UsageError(f"{name} must be at least {least}, got {value}", hint=f"{name}={least}")


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

    engine: a name of configs/index, such as "warp" or "warp/library"; `params` change what it says. threads: of the
    engine; None: one a core. Raises UsageError for an argument of another type and a parameter the engine does not
    have, and DataError for an engine that is not known and a store that it cannot index.
    """
    if not isinstance(store, Store):
        raise UsageError(
            f"store is a {type(store).__name__}, not a store", hint="store_vectors(...) or encode_texts(...) makes one"
        )
    for name, value in (("engine", engine), ("device", device)):
        if not isinstance(value, str) or not value:
            raise UsageError(f"{name} is {value!r}, not a text", hint='build_index(store, "exact", device="cpu")')
    root, threads = imported.folder_of(root, "root"), _whole("threads", threads)
    overrides = [f"index={engine}", *(f"index.{key}={'null' if v is None else v}" for key, v in params.items())]
    index, place = configs.compose(overrides).index, Place(device_of(device), threads)
    chosen = engine_of(index)
    if isinstance(chosen, TextEngine):
        raise UsageError(f"{engine} ranks words, not vectors", hint="xtrrep.run_config('index=bm25')")
    spec = files.index_spec(store.folder.name.rpartition("-")[0], store.fingerprint, index)
    folder = artifacts.make(spec, root, lambda out: files.build_index(store, index, out, place))
    facts = artifacts.read_manifest(folder)["facts"]
    searcher = files.open_index(folder, store, index, place, spec.fingerprint)
    return Index(store, folder, chosen, searcher, facts)


def search(
    index: Index,
    queries: Store | Mapping[Any, Any],
    *,
    scoring: str = "xtr",
    k_prime: int | None = None,
    imputation: str = "min",
    top_k: int = 100,
    rerank: int | None = None,
    batch: int = 16,
) -> Run:
    """Rankings {query id: [(document id, score), ...]}, best first, for a store of queries or {id: (T, H) vectors}.

    Vectors are as in `store_vectors`. scoring, `k_prime` (40,000 under "xtr", 4,000 under "colbert" where None) and
    `imputation` are for token engines; PLAID and WARP score by themselves. rerank: so many of the best once more, by
    exact MaxSim. batch: queries of a store searched at once. Raises UsageError for an argument of another type and a
    setting that does not fit, and DataError for vectors that are not finite, zero, or of another dimension.
    """
    if not isinstance(index, Index):
        raise UsageError(f"index is a {type(index).__name__}, not an index", hint="build_index(store) makes one")
    k_prime, rerank = _whole("k_prime", k_prime), _whole("rerank", rerank)
    top_k, batch = _needed("top_k", top_k), _needed("batch", batch)
    for name, value in (("scoring", scoring), ("imputation", imputation)):
        if not isinstance(value, str):
            raise UsageError(f"{name} is {value!r}, not a text", hint='scoring="xtr", imputation="min"')
    if isinstance(index.engine, TokenEngine):
        if scoring not in ("xtr", "colbert"):
            raise UsageError(f"scoring={scoring!r} is not a way to score", hint='"xtr" or "colbert"')
        imputations.get(imputation)
        k_prime = k_prime or (40000 if scoring == "xtr" else 4000)
        setting = Setting(scoring, k_prime, imputation if scoring == "xtr" else "none", top_k, rerank=rerank)
    else:
        if k_prime is not None or imputation != "min":
            raise UsageError(
                "this engine ranks documents by itself and takes no k_prime and no imputation",
                hint="leave both out, or build_index(store, 'exact')",
            )
        setting = Setting(index.engine.scoring, None, "none", top_k, rerank=rerank)
    if isinstance(queries, Store):
        if setting.k_prime is None:
            return retrieve_documents(index.searcher, index.store, queries, setting, batch).run
        return retrieve(index.searcher, index.store, queries, [setting], batch)[setting].run
    arrays = imported.arrays_of(queries, "queries")
    for name, rows in arrays.items():
        if len(rows) and rows.shape[1] != index.store.dim:
            raise DataError(
                f"queries[{name!r}] has shape {rows.shape}, the index holds vectors of dimension {index.store.dim}",
                hint="(tokens, dim), by the model that made the documents' vectors",
            )
    return {
        name: rank_query(index.searcher, index.store, rows.astype(np.float32), setting) for name, rows in arrays.items()
    }


def _needed(name: str, value: Any) -> int:
    number = _whole(name, value)
    if number is None:
        raise UsageError(f"{name} is None", hint=f"{name}=1 or more; left out, it has its default")
    return number


def evaluate_run(
    qrels: Mapping[Any, Mapping[Any, Any]],
    run: Mapping[Any, Any],
    measures: Sequence[Any] | str = ("nDCG@10", "R@100"),
) -> dict[str, float]:
    """Means over the judged queries, by ir-measures names; a judged query that the run does not answer counts 0.

    qrels: {query id: {document id: grade}} with whole numbers as grades. run: {query id: ranking}, a ranking being
    (document id, score) pairs or {document id: score}. Ids are texts or whole numbers; numbers may be NumPy's or
    torch's. Documents are ordered by score, then by their position, and a measure sees no ties. measures: names, or
    ir-measures' own objects. Raises UsageError for an argument of another type and a measure that is not known or
    cannot be computed here, and DataError for a document ranked twice, a score that is not finite, a grade that is no
    whole number, and a run of other queries.
    """
    from xtrrep.measure.evaluate import evaluate, grades_of
    from xtrrep.measure.run_file import ranked

    scores = evaluate(grades_of(qrels), ranked(run, "run"), measures)
    return {name: float(scores[name].mean()) for name in scores.columns}
