"""Engines, each one small file here with one YAML of the same name in `configs/index/`.

`kind` says what an engine answers. A *token* engine gives, for a query token, the best document tokens and leaves
scoring to us (`exact`, `scann`, `voyager`). A *document* engine scores and ranks documents itself (`plaid`, `warp`). A
*text* engine ranks documents from the words alone (`bm25`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, get_args, get_type_hints, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from xtrrep.config import config_dir, options
from xtrrep.console import DataError, UsageError, suggest
from xtrrep.encode import PIECE, Store
from xtrrep.registry import Registry


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
class Engine:
    """What an engine module registers.

    kind: "token", "document" or "text". params: a dataclass of the engine's parameters, each of which its YAML gives a
    value; one with a default there came later, and at that default it is no part of an index' identity. `at_search`
    names those that only a search reads, so that changing one builds nothing.
    build(source, params, out, place): build into `out` from a Store (token, document) or the texts (text); facts for
    the manifest. load(folder, source, params, place): a searcher over what `build` left. scoring: what the scores of a
    document engine approximate, "colbert" or "xtr". speed_only: parameters that change no ranking. prefix(params):
    whether the k' best tokens are the first k' of a deeper search, so that one search serves a sweep.
    """

    kind: str
    params: type[Any]
    build: Callable[[Any, Any, Path, Place], dict[str, Any]]
    load: Callable[[Path, Any, Any, Place], Any]
    at_search: frozenset[str] = field(default_factory=frozenset)
    scoring: str = ""
    speed_only: frozenset[str] = field(default_factory=frozenset)
    prefix: Callable[[Any], bool] = lambda params: True


engines: Registry[Engine] = Registry("engine", "xtrrep.index")


def engine_of(index: Mapping[str, Any]) -> tuple[Engine, Any]:
    """The engine that `index.engine` names and its checked parameters.

    Raises DataError for an unknown engine and UsageError for a parameter it does not have.
    """
    engine = engines.get(str(index.get("engine")))
    known = [f.name for f in fields(engine.params)]
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
    kinds = get_type_hints(engine.params)
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
    return engine, engine.params(**given)


def split_params(index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides an index, with `engine`, and what decides a search of it; what changes no ranking is in neither."""
    engine, _ = engine_of(index)
    later = {f.name: f.default for f in fields(engine.params) if f.default is not MISSING}
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
            said = OmegaConf.to_container(OmegaConf.load(config_dir() / "index" / f"{choice}.yaml"))
            if isinstance(said, dict) and all(index[key] == said.get(key) for key in index if key != "searched_to"):
                return choice
    return f"{engine}*"


def positive(params: Any, *names: str) -> None:
    """Refuse a parameter below 1, None excepted. Raises UsageError."""
    for name in names:
        value = getattr(params, name)
        if value is not None and value < 1:
            raise UsageError(f"index.{name} must be at least 1, got {value}", hint=f"index.{name}=1 is the least")


def check_queries(queries: NDArray[np.float32], store: Store, depth: int) -> None:
    """Refuse, before any engine sees them, queries of another dimension, that are zero or not finite, and a depth
    (k' or top_k) below 1. Raises DataError and UsageError."""
    if depth < 1:
        raise UsageError(f"the best {depth} cannot be searched for", hint="k_prime and top_k are at least 1")
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
