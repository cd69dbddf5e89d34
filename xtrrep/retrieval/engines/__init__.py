"""Engines: each is one small file here, with one YAML of the same name in `configs/index/`.

An engine is a frozen dataclass whose fields are its parameters. Its base class says what it answers. A `TokenEngine`
gives the best document tokens for a query token and leaves scoring to us (`exact`, `scann`, `voyager`). A
`DocumentEngine` scores and ranks documents itself (`plaid`, `warp`). A `TextEngine` ranks documents by their words
(`bm25`). Registering an engine enrols it in all conformance, fault and determinism tests, at its `tiny` configurations.

An engine outside this package is one file in a folder that `$XTRREP_PLUGINS` names (registry.py). It gives its
parameters their values in `defaults` and needs no YAML.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, get_args, get_type_hints, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from xtrrep.config import add_option, choice_values, options
from xtrrep.config.registry import Registry
from xtrrep.console import DataError, UsageError, suggest
from xtrrep.store.encode import PIECE, Store

if TYPE_CHECKING:
    from xtrrep.retrieval.engines.kmeans import Clustering


@dataclass(frozen=True)
class Place:
    """Where an engine works: a torch device, and how many threads a search may use (None: one a core; one for WARP, as
    in the study, since more of them add its scores up in an order of their own, to the last bit). Not part of an
    identity; manifests say on which device an index was built."""

    device: str = "cpu"
    threads: int | None = None

    @property
    def search_threads(self) -> int:
        return self.threads or os.cpu_count() or 1


@dataclass(frozen=True)
class Hits:
    """Token hits: (T, k') token positions in the store and similarities, each row descending; NaN fills empty slots."""

    tokens: NDArray[np.int64]
    scores: NDArray[np.float32]


class TokenSearcher(Protocol):
    def search(self, queries: NDArray[np.float32], k_prime: int) -> Hits:
        """The `k_prime` best tokens for each row of (T, H) queries."""


@dataclass(frozen=True)
class Maxima:
    """What an exhaustive search knows without sorting positions.

    documents: (T, N) best similarity of each query token in each document; best: (T, k') the k' largest token
    similarities, descending. A document token is retrieved iff it reaches the k'-th largest, so a document's best hit
    is its plain maximum if that reaches the threshold, and nothing otherwise. Ties at the threshold all count, where a
    token search keeps exactly k' of them.
    """

    documents: NDArray[np.float32]
    best: NDArray[np.float32]


@runtime_checkable
class ExhaustiveSearcher(TokenSearcher, Protocol):
    """A token engine that sees every similarity anyway."""

    def maxima(self, queries: NDArray[np.float32], k_prime: int) -> Maxima:
        """For each row of (T, H) queries."""


class DocumentSearcher(Protocol):
    def search(
        self, queries: Sequence[NDArray[np.float32]], top_k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, top_k) document numbers and scores for (T, H) queries, best first; -1 and NaN fill empty slots."""


class TextSearcher(Protocol):
    def search(self, queries: Sequence[str], top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, top_k) document numbers and scores, best first; number -1 and score NaN fill empty slots."""


@dataclass(frozen=True)
class BuildCost:
    """What building an index takes: multiplications and additions, bytes kept, and bytes more while it is built."""

    operations: float
    disk: float
    held: float = 0.0


class Engine:
    """What every engine states about itself."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    at_search: ClassVar[frozenset[str]] = frozenset()
    """Parameters that only a search reads. Another value of one builds nothing."""
    speed_only: ClassVar[frozenset[str]] = frozenset()
    """Parameters that change no ranking."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Values of the parameters, for an engine without `configs/index/NAME.yaml`."""
    tiny: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}
    """Changes to the parameters by which the tests run the engine on forty documents; one a way to write its files."""
    sweep: ClassVar[Mapping[str, Sequence[int]]] = {}
    """What trades quality for time: values, ascending, of a parameter that only a search reads, or of a key of the
    configuration such as `retrieve.rerank`. `analyze pareto` varies one at a time, the first most finely."""
    uses_gpu: ClassVar[bool] = False
    resumes: ClassVar[bool] = False
    """Whether an interrupted build goes on where it stopped, and does not begin again."""
    optional: ClassVar[bool] = False
    """Whether its library is an extra of the package, so that a machine without it is not at fault."""
    threads_keep_scores: ClassVar[bool] = True
    """False: several threads add scores in another order, so that the last bit of a score may differ."""
    scoring: ClassVar[str] = ""
    """What a document engine approximates, "colbert" or "xtr"; a text engine's own name; "" where scoring is ours."""

    def build_cost(self, documents: int, each: float, dim: int) -> BuildCost | None:
        """What an index of `documents` of `each` vectors of `dim` numbers takes. None where nothing is known."""
        return None


class VectorEngine(Engine, ABC):
    """An engine over the vectors of an embedding store."""

    @abstractmethod
    def build(self, store: Store, out: Path, place: Place) -> dict[str, Any]:
        """Build an index into the folder `out`. Returns facts for the manifest."""

    @abstractmethod
    def load(self, folder: Path, store: Store, place: Place) -> Any:
        """The searcher of an index that `build` left in `folder`."""

    def clustering(self, lengths: NDArray[np.int64]) -> Clustering | None:
        """The k-means that an index of documents of these lengths needs. None where there is none."""
        return None


class TokenEngine(VectorEngine):
    """Answers a query token with its best document tokens. XTR or ColBERT scoring follows, as the model wants it."""

    sweep: ClassVar = {"retrieve.k_prime": (20, 100, 1000, 4000, 20000, 40000)}
    exhaustive: ClassVar[bool] = False
    """Whether it compares every token: nothing is built, since the store is the index."""

    @property
    def prefix(self) -> bool:
        """Whether the k' best tokens are the first k' of a deeper search, so that one search serves a sweep."""
        return True

    @abstractmethod
    def load(self, folder: Path, store: Store, place: Place) -> TokenSearcher: ...


class DocumentEngine(VectorEngine):
    """Scores and ranks documents itself."""

    sweep: ClassVar = {"retrieve.rerank": (10, 30, 100, 300, 1000)}

    @abstractmethod
    def load(self, folder: Path, store: Store, place: Place) -> DocumentSearcher: ...


class TextEngine(Engine, ABC):
    """Ranks documents by their words, without a model."""

    sweep: ClassVar = {"retrieve.rerank": (10, 30, 100, 300, 1000)}

    @abstractmethod
    def build(self, texts: Sequence[str], out: Path, place: Place) -> dict[str, Any]:
        """Build an index of the texts into the folder `out`. Returns facts for the manifest."""

    @abstractmethod
    def load(self, folder: Path, place: Place) -> TextSearcher:
        """The searcher of an index that `build` left in `folder`."""


KINDS = (TokenEngine, DocumentEngine, TextEngine)
AnyEngine = TokenEngine | DocumentEngine | TextEngine


def _check_engine(name: str, engine: Any) -> None:
    """Refuse an engine whose class does not hold together: called when it is registered. Raises UsageError."""
    if not (isinstance(engine, type) and issubclass(engine, KINDS) and hasattr(engine, "__dataclass_fields__")):
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise UsageError(
            f"engine {name!r} is not a frozen dataclass of an engine class", hint=f"derive it from {kinds}"
        )
    params = [f.name for f in fields(engine)]
    known = {key for kind in KINDS if issubclass(engine, kind) for key in dir(kind) if not key.startswith("_")}
    for key in set(vars(engine)) - known - set(params):
        if not key.startswith("_") and (close := get_close_matches(key, known, n=1, cutoff=0.75)):
            raise UsageError(f"engine {name!r} defines {key!r}, which nothing reads", hint=f"did you mean {close[0]}?")
    if missing := sorted(engine.__abstractmethods__):
        raise UsageError(f"engine {name!r} lacks {' and '.join(missing)}", hint="the class it derives from says what")
    scorings = {DocumentEngine: ("colbert", "xtr"), TokenEngine: ("",), TextEngine: (engine.scoring or name,)}
    fitting = next(names for kind, names in scorings.items() if issubclass(engine, kind))
    if engine.scoring not in fitting:
        raise UsageError(f"engine {name!r} has scoring={engine.scoring!r}", hint=suggest(engine.scoring, fitting))
    named = {"at_search": engine.at_search, "speed_only": engine.speed_only, "defaults": engine.defaults}
    for place, keys in (named | {f"tiny[{key!r}]": changes for key, changes in engine.tiny.items()}).items():
        for key in keys:
            if key not in params:
                raise UsageError(f"{place} of engine {name!r} names {key!r}", hint=suggest(key, params))
    for key, values in engine.sweep.items():
        if "." not in key and key not in engine.at_search:
            raise UsageError(f"sweep of engine {name!r} names {key!r}", hint=suggest(key, engine.at_search))
        if list(values) != sorted(set(values)):
            raise UsageError(f"sweep of engine {name!r}: the values of {key!r} do not ascend", hint=str(sorted(values)))
    if engine.defaults or name not in options("index"):
        add_option("index", name, {"engine": name, **engine.defaults})


engines: Registry[type[AnyEngine]] = Registry("engine", "xtrrep.retrieval.engines", _check_engine)


def engine_of(index: Mapping[str, Any]) -> AnyEngine:
    """The engine that `index.engine` names, with its parameters checked.

    Raises DataError for an unknown engine and UsageError for a parameter it does not have.
    """
    engine = engines.get(str(index.get("engine")))
    known = [f.name for f in fields(engine)]
    given = {key: value for key, value in index.items() if key != "engine"}
    for key in given:
        if key not in known:
            raise UsageError(f"engine {index['engine']} has no parameter {key!r}", hint=suggest(key, known))
    for key in known:
        if key not in given:
            raise UsageError(
                f"engine {index['engine']}: index.{key} has no value",
                hint=f"index.{key}=VALUE, or a line in configs/index/{index['engine']}.yaml",
            )
    kinds = _parameter_types(engine)
    for key, value in given.items():
        allowed = get_args(kinds[key]) or (kinds[key],)
        if type(value) is int and float in allowed and int not in allowed:
            given[key] = float(value)
        elif type(value) not in allowed:
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise UsageError(
                f"index.{key}={value!r} is not of type {names}",
                hint=f"configs/index/{index['engine']}.yaml gives every value",
            )
    return engine(**given)


@cache
def _parameter_types(engine: type[AnyEngine]) -> dict[str, Any]:
    return get_type_hints(engine)


def split_params(index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides an index, with `engine`, and what decides a search of it. What changes no ranking is in neither.

    A parameter with a default came after the first indexes; at that default it is no part of an identity.
    """
    engine = engine_of(index)
    later = {f.name: f.default for f in fields(engine) if f.default is not MISSING}
    rest = {
        key: value
        for key, value in index.items()
        if key not in engine.speed_only and not (key in later and value == later[key])
    }
    return (
        {key: value for key, value in rest.items() if key not in engine.at_search},
        {key: value for key, value in rest.items() if key in engine.at_search},
    )


def choice_of(index: Mapping[str, Any]) -> str:
    """The choice of `index=` that says these parameters (but for speed), or the engine's name and `*`."""
    engine = str(index["engine"])
    for choice in options("index"):
        if choice.split("/")[0] == engine:
            said = choice_values("index", choice)
            if all(index[key] == said.get(key) for key in index if key != "searched_to"):
                return choice
    return f"{engine}*"


def positive(params: Any, *names: str) -> None:
    """Refuse a parameter below 1, None excepted. Raises UsageError."""
    for name in names:
        value = getattr(params, name)
        if value is not None and value < 1:
            raise UsageError(f"index.{name} must be at least 1, got {value}", hint=f"index.{name}=1, or more")


def check_queries(queries: NDArray[np.float32], store: Store, depth: int) -> None:
    """Refuse, before any engine sees them, queries of another dimension, that are zero or not finite, and a depth
    (k' or top_k) below 1. Raises DataError and UsageError."""
    if depth < 1:
        raise UsageError(f"a search for the best {depth} finds nothing", hint="k_prime and top_k are at least 1")
    if queries.ndim != 2 or queries.shape[1] != store.dim:
        raise DataError(
            f"queries have shape {queries.shape}, the index holds vectors of dimension {store.dim}",
            hint="queries and documents are encoded by one model",
        )
    if not np.isfinite(queries).all():
        raise DataError("the queries hold values that are not finite", hint="another model, or encode.precision=fp32")
    if not queries.any(axis=1).all():
        raise DataError(
            "the queries hold a vector that is zero: it has no direction to compare", hint="leave that vector out"
        )


def rectangle(
    rankings: Sequence[Sequence[tuple[int, float]]], top_k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(Q, top_k) document numbers and scores of an engine's (document, score) rankings; -1 and NaN fill empty slots."""
    numbers = np.full((len(rankings), top_k), -1, np.int64)
    scores = np.full((len(rankings), top_k), np.nan, np.float32)
    for i, ranking in enumerate(rankings):
        for rank, (document, score) in enumerate(ranking[:top_k]):
            numbers[i, rank], scores[i, rank] = document, score
    return numbers, scores


def check_store(store: Store) -> None:
    """Refuse, before native code sees it, a store that is empty or holds a vector that is zero or not finite.

    One pass over the vectors, a piece at a time. Raises DataError naming the document at fault.
    """
    if not store.tokens:
        raise DataError(f"{store.folder} holds no vectors at all", hint="is the collection empty?")
    for start, rows in store.pieces(PIECE):
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        fine = finite & rows.any(axis=1)
        if not fine.all():
            at = int(np.flatnonzero(~fine)[0])
            what = "that is zero" if finite[at] else "that is not finite"
            name = store.ids[int(np.searchsorted(store.offsets, start + at, side="right")) - 1]
            raise DataError(
                f"document {name!r} in {store.folder} holds a vector {what}", hint="encode or import it again"
            )
