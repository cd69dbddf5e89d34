"""Engines, each one small file here with one YAML of the same name in `configs/index/`.

`kind` says what an engine answers. A *token* engine gives, for a query token, the best document tokens and leaves
scoring to us (`exact`, `scann`). A *text* engine ranks documents from the words alone (`bm25`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from xtrrep.console import DataError, UsageError, suggest
from xtrrep.encode import Store
from xtrrep.registry import Registry


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


class TextSearcher(Protocol):
    def search(self, queries: Sequence[str], top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(Q, top_k) document numbers and scores, best first; number -1 and score NaN fill empty slots."""


@dataclass(frozen=True)
class Engine:
    """What an engine module registers.

    kind: "token" or "text". params: a dataclass of the engine's parameters, each of which its YAML gives a value.
    build(source, params, out): build into `out` from a Store (token) or the texts (text); facts for the manifest.
    load(folder, source, params): a TokenSearcher or TextSearcher over what `build` left.
    """

    kind: str
    params: type[Any]
    build: Callable[[Any, Any, Path], dict[str, Any]]
    load: Callable[[Path, Any, Any], Any]


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
            raise UsageError(f"engine {index['engine']}: index.{key} has no value", hint="its YAML must give one")
    return engine, engine.params(**given)


def check_queries(queries: NDArray[np.float32], store: Store) -> None:
    """Refuse queries of another dimension or with values that are not finite before any engine sees them."""
    if queries.ndim != 2 or queries.shape[1] != store.dim:
        raise DataError(f"queries have shape {queries.shape}, the index holds vectors of dimension {store.dim}")
    if not np.isfinite(queries).all():
        raise DataError("the queries hold values that are not finite")
