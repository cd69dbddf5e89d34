"""An index as files: built from a checked store, and opened again only if nothing about them changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xtrrep import artifacts
from xtrrep.artifacts import Spec
from xtrrep.console import DISK_FULL, DataError, UsageError
from xtrrep.retrieval.engines import Place, TextEngine, TokenEngine, check_store, engine_of, split_params
from xtrrep.retrieval.engines.accuracy import against_exact
from xtrrep.store.encode import Store


def index_spec(label: str, store: str, index: Mapping[str, Any]) -> Spec:
    """What an index over a store (its label and fingerprint) is: with what builds it. Raises as `engine_of`."""
    config, _ = split_params(index)
    return Spec("index", f"{config['engine']}--{label}", 2, config, {"documents": store})


def build_index(store: Store, index: Mapping[str, Any], out: Path, place: Place) -> dict[str, Any]:
    """Build `index` over a store into the folder `out`; facts for the manifest.

    For a token engine that approximates, they say how far it is from the exact one. Raises DataError for a store that
    holds nothing, or a vector that is zero or not finite, before any native code sees it, and for what the engine
    refuses.
    """
    engine = engine_of(index)
    if isinstance(engine, TextEngine):
        raise UsageError(f"{index['engine']} ranks words, not vectors", hint="--index exact")
    check_store(store)
    facts = engine.build(store, out, place)
    check_written(out)
    if isinstance(engine, TokenEngine) and not engine.exhaustive:
        found = against_exact(engine.load(out, store, place), store)
        facts["against_exact"] = {**found, **split_params(index)[1]}
    return facts


def check_written(folder: Path) -> None:
    """Raise DataError for an array that is shorter than its header says. Not every library notices a full disk, and
    what it leaves would be recorded as right."""
    for path in sorted(folder.rglob("*.npy")):
        try:
            np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{path} was not written whole ({error})", hint=DISK_FULL) from None


def open_index(
    folder: Path, store: Store, index: Mapping[str, Any], place: Place, fingerprint: str | None = None
) -> Any:
    """The searcher of a built index, every file's hash compared first: an engine would search a damaged one.

    Raises DataError when it was built from another store or with other parameters, or when a file is missing or not as
    it was written.
    """
    engine = engine_of(index)
    if isinstance(engine, TextEngine):
        raise UsageError(f"{index['engine']} ranks words, not vectors", hint="--index exact")
    manifest = artifacts.check(folder, fingerprint)
    if manifest["upstream"].get("documents") != store.fingerprint:
        raise DataError(f"{folder} was built from another store than {store.folder}", hint="build one for this store")
    if manifest["config"] != split_params(index)[0]:
        raise DataError(
            f"{folder} was built as {manifest['config']}, not as {split_params(index)[0]}",
            hint="build one with these parameters",
        )
    return engine.load(folder, store, place)
