"""Vectors made elsewhere, by another encoder or of another modality, as an embedding store.

FOLDER/documents/NAME.npy           (tokens, dim) floats, the documents laid end to end; as many files as you like
FOLDER/documents/NAME.doclens.npy   (documents,) how many vectors each has; 0 keeps the document's place
FOLDER/documents/ids.json           document ids in order, over all files by name
FOLDER/queries/...                  the same for queries
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep import config as configs
from xtrrep.artifacts import Spec, digest, make, write_atomic, write_json
from xtrrep.artifacts.hashes import hash_outside
from xtrrep.console import DataError, UsageError, machine_error, progress
from xtrrep.data import RENAME, text_fault, text_id
from xtrrep.store.encode import Store

UNIT = 1e-2  # a vector whose length is further from 1 was never normalised
LAYOUT = "NAME.npy, NAME.doclens.npy and ids.json; see xtrrep/store/imported.py"
IDS = "a JSON list of different texts, one a document, in the order of the .npy files"
ROWS = "an array of floats, one row a token: (tokens, dim)"
TORCH_AS_NUMPY = {f"torch.{name}" for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64")}
LENGTHS = "an array of whole numbers, one a document: how many of the rows are its own"


def files_of(folder: Path) -> list[Path]:
    """The vector files of an import folder, in order. Raises DataError where something is missing."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", hint=f"it should hold {LAYOUT}")
    found = sorted(path for path in folder.glob("*.npy") if not path.name.endswith(".doclens.npy"))
    if not found:
        raise DataError(f"{folder} holds no .npy file", hint=f"it should hold {LAYOUT}")
    for path in (folder / "ids.json", *(path.with_suffix(".doclens.npy") for path in found)):
        if not path.is_file():
            raise DataError(f"{path} is missing", hint=f"{folder} should hold {LAYOUT}")
    return found


def identity(folder: Path) -> str:
    """A hash of everything an import reads."""
    files = files_of(folder)
    every = [folder / "ids.json", *files, *(path.with_suffix(".doclens.npy") for path in files)]
    return digest([[path.name, hash_outside(path, configs.artifacts_root())] for path in every])


def read(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """(id, (tokens, dim) vectors) in order, memory-mapped. Raises DataError naming the file at fault."""
    try:
        ids = json.loads((folder / "ids.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / 'ids.json'} is not JSON ({error})", hint=IDS) from None
    if not isinstance(ids, list) or not all(isinstance(name, str) and name for name in ids):
        raise DataError(f"{folder / 'ids.json'} is not a list of ids", hint=IDS)
    if len(set(ids)) < len(ids):
        raise DataError(f"{folder / 'ids.json'} names one id twice", hint=IDS)
    names = iter(ids)
    for path in files_of(folder):
        rows, lengths = _load(path), _load(path.with_suffix(".doclens.npy"))
        if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
            raise DataError(f"{path} holds {rows.dtype} of shape {rows.shape}, not floats (tokens, dim)", hint=ROWS)
        if lengths.ndim != 1 or not np.issubdtype(lengths.dtype, np.integer) or (lengths < 0).any():
            raise DataError(f"{path.with_suffix('.doclens.npy')} does not hold one length a document", hint=LENGTHS)
        total = sum(map(int, lengths))  # not in the file's type, where it may wrap around
        if total != len(rows):
            raise DataError(f"{path} holds {len(rows)} vectors, its lengths add up to {total}", hint=LENGTHS)
        start = 0
        for length in lengths:
            name = next(names, None)
            if name is None:
                raise DataError(f"{folder / 'ids.json'} names {len(ids)} ids, fewer than there are lengths", hint=IDS)
            yield name, rows[start : start + int(length)]
            start += int(length)
    if next(names, None) is not None:
        raise DataError(f"{folder / 'ids.json'} names {len(ids)} ids, more than there are lengths", hint=IDS)


def _load(path: Path) -> NDArray[Any]:
    # np.load would also open a zip of arrays or a pickle by its first bytes.
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy gives parts of the header to Python's own parser, and anything may come of that
        raise machine_error(error) or DataError(
            f"{path} is not an array: {error}", hint="numpy.save writes one"
        ) from None
    return array


def rows_of(name: str, value: Any, argument: str = "vectors") -> NDArray[Any]:
    """A (tokens, dim) array of numbers from NumPy's arrays, torch's tensors or nested lists.

    A tensor is taken from its device and its gradient; bfloat16, which NumPy lacks, becomes float32. Raises UsageError,
    naming the argument and the id, for anything that is not a full array of real numbers.
    """
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = value.numpy() if str(value.dtype) in TORCH_AS_NUMPY else value.float().numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{argument}[{name!r}] is no array of numbers: {reason}", hint=ROWS) from None
    if np.ma.is_masked(value):
        raise UsageError(f"{argument}[{name!r}] has masked values", hint="leave those rows out")
    if array.dtype.kind not in "fiu":
        raise UsageError(f"{argument}[{name!r}] holds {type(value).__name__} of {array.dtype}, not numbers", hint=ROWS)
    if array.ndim != 2:
        raise UsageError(f"{argument}[{name!r}] has an array of shape {array.shape}, not (tokens, dim)", hint=ROWS)
    return array


def arrays_of(vectors: Any, argument: str = "vectors") -> dict[str, NDArray[Any]]:
    """{id: (tokens, dim) array} from a dict with texts or whole numbers as ids. Raises as `rows_of`, and DataError for
    two ids that are one text."""
    if not isinstance(vectors, Mapping):
        raise UsageError(
            f"{argument} is a {type(vectors).__name__}, not a dict of vectors", hint='{"d1": array}, each (tokens, dim)'
        )
    found: dict[str, NDArray[Any]] = {}
    for key, value in vectors.items():
        name = text_id(key, argument)
        if name in found:
            raise DataError(f"{argument} holds {name!r} twice, under ids of two types", hint="ids are texts")
        found[name] = rows_of(name, value, argument)
    return found


def folder_of(value: Any, argument: str) -> Path:
    """A folder given as a text or a path. Raises UsageError for anything else."""
    if not isinstance(value, str | Path) or not str(value):
        raise UsageError(f"{argument} is {value!r}, not a folder", hint=f'{argument}="stores"')
    return Path(value)


def unit(name: str, rows: NDArray[Any], *, normalize: bool) -> NDArray[np.float16]:
    """Unit vectors in float16. Raises DataError for one that is zero, not finite, or, unless `normalize`, not unit."""
    try:
        wide = np.asarray(rows, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name!r} has no array of numbers: {error}", hint=ROWS) from None
    if wide.ndim != 2:
        raise DataError(f"{name!r} has an array of shape {wide.shape}, not (tokens, dim)", hint=ROWS)
    if not np.isfinite(wide).all():
        raise DataError(
            f"{name!r} has a vector that is not finite", hint="make its vectors again, or leave that one out"
        )
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise DataError(
            f"{name!r} has a vector that is zero: it has no direction to compare", hint="leave that vector out"
        )
    if normalize:
        wide = wide / lengths
    elif len(wide) and np.abs(lengths - 1).max() > UNIT:
        worst = float(lengths.ravel()[np.abs(lengths - 1).argmax()])
        raise DataError(
            f"{name!r} has a vector of length {worst:.3g}: the engines compare unit vectors",
            hint="model.normalize=true divides each by its length",
        )
    return wide.astype(np.float16)


def write(
    out: Path,
    rows: Iterable[tuple[str, NDArray[Any]]],
    count: int,
    *,
    normalize: bool = False,
    shard_documents: int = 8192,
    what: str = "document",
) -> dict[str, Any]:
    """Write (id, (tokens, dim) vectors) into the partial folder of a store; facts for the manifest.

    Raises DataError for vectors of two dimensions, and as `unit`.
    """
    for part in ("vectors", "tokens"):
        shutil.rmtree(out / part, ignore_errors=True)  # of an interrupted import, perhaps with other shards
        (out / part).mkdir()
    ids: list[str] = []
    chunk: list[NDArray[np.float16]] = []
    tokens, number, dim = 0, 0, 0

    def flush() -> None:
        nonlocal number, chunk
        name = f"{number:05d}"
        vectors = np.concatenate(chunk)
        write_atomic(out / "vectors" / f"{name}.npy", lambda file: np.save(file, vectors))
        write_atomic(out / "tokens" / f"{name}.npy", lambda file: np.save(file, np.full(len(vectors), -1, np.int32)))
        lengths = np.array([len(v) for v in chunk], np.int32)
        write_atomic(out / "vectors" / f"{name}.doclens.npy", lambda file: np.save(file, lengths))
        number, chunk = number + 1, []

    with progress(count, f"import {what}s", what) as bar:
        for name, vectors in rows:
            if fault := text_fault(name):
                raise DataError(f"the {what} id {name!r} {fault}", hint=RENAME)
            rounded = unit(name, vectors, normalize=normalize)
            dim = dim or rounded.shape[1]
            if rounded.shape[1] != dim:
                raise DataError(
                    f"{name!r} has vectors of shape {rounded.shape}, the ones before have dimension {dim}",
                    hint="all of them by one model",
                )
            chunk.append(rounded)
            ids.append(name)
            tokens += len(vectors)
            if len(chunk) == shard_documents:
                flush()
            bar.update(1)
        if chunk:
            flush()
    if not tokens:
        raise DataError(f"there is no vector among {len(ids)} {what}s", hint=f"it should hold {LAYOUT}")
    write_json(out / "ids.json", ids)
    return {"units": {"texts": len(ids)}, "tokens": tokens, "dim": dim, "imported": True}


def select(
    rows: Iterable[tuple[str, NDArray[Any]]], wanted: Sequence[str], where: Path
) -> list[tuple[str, NDArray[Any]]]:
    """The rows of the ids asked for, in that order. Raises DataError for one that is not there."""
    found = dict(rows)
    for name in wanted:
        if name not in found:
            raise DataError(f"{where} has no vectors for {name!r}", hint="add them; without tokens its length is 0")
    return [(name, found[name]) for name in wanted]


def same_ids(folder: Path, wanted: Iterable[str]) -> int:
    """How many ids a folder of documents names. Raises DataError where they are not the collection's."""
    have, need = {name for name, _ in read(folder)}, set(wanted)
    for name in sorted(need - have)[:1]:
        raise DataError(
            f"{folder} has no vectors for document {name!r}, one of {len(need - have)} missing",
            hint="add them (without tokens its length is 0), or data=ID of the collection they are of",
        )
    for name in sorted(have - need)[:1]:
        raise DataError(
            f"{folder} has vectors for {name!r}, which the collection does not hold",
            hint="drop them, or data=ID of the collection they are of",
        )
    return len(have)


def store(vectors: Mapping[Any, Any], root: str | Path, *, normalize: bool = False, task: str = "document") -> Store:
    """An embedding store under `root` of {id: (tokens, dim) vectors}; re-used where the same was stored before.

    Ids are texts or whole numbers. Vectors are arrays, tensors (any device, with or without a gradient) or nested lists
    of numbers, kept as float16; task is "document" or "query". Raises UsageError for an argument of another type, and
    DataError for vectors that are not finite, zero, of two dimensions, or, unless `normalize`, not of unit length.
    """
    root, arrays = folder_of(root, "root"), arrays_of(vectors)
    stages = {"document": "documents", "query": "queries"}
    if not isinstance(task, str) or task not in stages:
        raise UsageError(f"task={task!r} is not a task", hint='task="document" or task="query"')
    _check_flag(normalize)
    hashes = [[name, _hash(rows)] for name, rows in arrays.items()]
    config = {"imported": True, "normalize": normalize}
    spec = Spec(stages[task], "imported", 2, config, content={"vectors": digest(hashes)})

    def run(out: Path) -> dict[str, Any]:
        return write(out, arrays.items(), len(arrays), normalize=normalize, what=task)

    return Store.open(make(spec, root, run), spec.fingerprint)


def _check_flag(normalize: Any) -> None:
    if not isinstance(normalize, bool):
        raise UsageError(f"normalize is {normalize!r}, not True or False", hint="normalize=True")


def change(
    parent: Store,
    root: str | Path,
    *,
    add: Mapping[Any, Any] | None = None,
    delete: Iterable[Any] = (),
    normalize: bool = False,
) -> Store:
    """A new store under `root`: the parent's documents without the ids in `delete`, then those of `add`.

    The parent stays as it is. The fingerprint covers it and the change, and so does that of every index built over it.
    `add` is as in `store`. Raises UsageError for an argument of another type, and DataError for an id to delete that is
    not there, an id to add that is, and as `store`.
    """
    if not isinstance(parent, Store):
        raise UsageError(f"parent is a {type(parent).__name__}, not a store", hint="store_vectors(...) makes one")
    root, added = folder_of(root, "root"), arrays_of({} if add is None else add, "add")
    if isinstance(delete, str | bytes | Mapping) or hasattr(delete, "columns") or not hasattr(delete, "__iter__"):
        raise UsageError(f"delete is a {type(delete).__name__}, not a list of ids", hint='delete=["d1"]')
    _check_flag(normalize)
    gone = {text_id(name, "delete") for name in delete}
    for name in sorted(gone - set(parent.ids)):
        raise DataError(
            f"{parent.folder} holds no document {name!r} to delete", hint="its `ids` lists what can be deleted"
        )
    for name in sorted(added.keys() & (set(parent.ids) - gone)):
        raise DataError(f"{parent.folder} holds a document {name!r} already", hint="delete it in the same change")
    for name, rows in added.items():
        if rows.shape[1] != parent.dim:
            raise DataError(
                f"{name!r} has an array of shape {rows.shape}, {parent.folder} is of dimension {parent.dim}",
                hint="(tokens, dim), by the model that made the others",
            )
    changes = {"add": [[name, _hash(rows)] for name, rows in added.items()], "delete": sorted(gone)}
    config = {"changed": True, "normalize": normalize}
    spec = Spec("documents", "changed", 2, config, {"parent": parent.fingerprint}, {"change": digest(changes)})
    kept = [number for number, name in enumerate(parent.ids) if name not in gone]

    def run(out: Path) -> dict[str, Any]:
        old = ((parent.ids[number], parent.vectors(number)) for number in kept)
        rows = chain(old, ((name, unit(name, v, normalize=normalize)) for name, v in added.items()))
        return write(out, rows, len(kept) + len(added)) | {"added": len(added), "deleted": len(gone)}

    return Store.open(make(spec, root, run), spec.fingerprint)


def _hash(rows: NDArray[Any]) -> str:
    import hashlib

    array = np.ascontiguousarray(rows)
    return digest([list(array.shape), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()])
