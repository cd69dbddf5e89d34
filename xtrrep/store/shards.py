"""The shards of a store that is being encoded: begun, claimed by one process each, written whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xtrrep.artifacts import TEMPORARY, write_atomic, write_json
from xtrrep.artifacts.locks import alone
from xtrrep.console import DataError
from xtrrep.data import text_fault

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from xtrrep.model.forward import Tokens

SHARDS = "shards.json"

Rows = list[tuple[NDArray[np.float16], NDArray[np.int32]]]  # (tokens, dim) vectors and (tokens,) ids of each text


def begin_shards(out: Path, size: int, together: bool) -> None:
    """The folders of shards of `size` texts. Shards of another size hold other texts under the same numbers: they are
    removed. Raises DataError where another process may be at work on them."""
    said = out / SHARDS
    begun = any((out / "vectors").glob("*.npy"))
    if begun and not (said.exists() and _texts_a_shard(out) == size):
        if together:
            raise _other_size(out, size)
        said.unlink(missing_ok=True)  # first: a kill from here on leaves shards of no known size
        for name in ("tokens", "vectors"):  # the vectors last: while one of them is there, this is done again
            if (out / name).exists():
                shutil.rmtree(out / name)
    for name in ("vectors", "tokens"):
        (out / name).mkdir(exist_ok=True)


def _mark_shards(out: Path, size: int) -> None:
    """Say how many texts a shard holds, before the first one is there. Raises DataError as `begin_shards`."""
    if not (out / SHARDS).exists():
        write_json(out / SHARDS, {"texts": size})
    elif _texts_a_shard(out) != size:
        raise _other_size(out, size)


def _texts_a_shard(out: Path) -> int:
    return int(json.loads((out / SHARDS).read_bytes())["texts"])


def _other_size(out: Path, size: int) -> DataError:
    return DataError(
        f"{out} is being encoded in shards of another size than {size} texts",
        hint="the same encode.shard_documents everywhere; `xtrrep encode` alone starts over",
    )


class Shard(NamedTuple):
    """Texts of one shard; `tokens` is None where an interrupted run has encoded them, or another process does.
    claim: what keeps other processes from it, until it is written."""

    number: int
    ids: list[str]
    tokens: Tokens | None
    claim: ExitStack


def read_shards(
    model: MultiVectorEncoder,
    texts: Iterator[tuple[str, str]],
    numbers: Iterable[int],
    out: Path,
    size: int,
    task: str,
    claims: ExitStack | None,
) -> Iterator[Shard]:
    """The shards in order; with `claims`, each that is encoded is claimed there first."""
    from xtrrep.model.forward import tokenise

    for number in numbers:
        chunk = list(islice(texts, size))
        if not chunk:
            return  # fewer came than were announced
        ids = [name for name, _ in chunk]
        lengths = out / "vectors" / f"{number:05d}.doclens.npy"
        claim = ExitStack() if claims is None else claims.enter_context(ExitStack())
        # A name that `artifacts.make` removes: when it holds the folder alone, nobody claims a shard any more.
        ours = claims is None or claim.enter_context(alone(out / TEMPORARY.format(f"{number:05d}")))
        if not ours or (lengths.exists() and len(np.load(lengths)) == len(chunk)):
            claim.close()
            yield Shard(number, ids, None, claim)
        else:
            check_texts(chunk, task)
            yield Shard(number, ids, tokenise(model, [text for _, text in chunk], task), claim)


def check_texts(texts: Sequence[tuple[str, str]], task: str) -> None:
    for name, text in texts:
        if fault := text_fault(name) or text_fault(text):
            raise DataError(f"{task} {name!r} {fault}", hint="write its id and text again as UTF-8")


def write_shard(out: Path, size: int, shard: Shard, rows: Rows) -> None:
    name = f"{shard.number:05d}"
    with shard.claim:
        _mark_shards(out, size)
        write_atomic(out / "vectors" / f"{name}.npy", lambda file: save_parts([vectors for vectors, _ in rows], file))
        write_atomic(out / "tokens" / f"{name}.npy", lambda file: save_parts([ids for _, ids in rows], file))
        if shard.tokens is not None:
            write_json(out / "tokens" / f"{name}.cut.json", vars(shard.tokens.cut))
        lengths = np.array([len(vectors) for vectors, _ in rows], np.int32)
        write_atomic(out / "vectors" / f"{name}.doclens.npy", lambda file: np.save(file, lengths))


def cut_facts(out: Path) -> dict[str, Any]:
    """How many texts were cut and what share of all tokens that is, as `cut`; nothing where a shard does not say so."""
    shards = [path.name.removesuffix(".doclens.npy") for path in (out / "vectors").glob("*.doclens.npy")]
    files = [out / "tokens" / f"{name}.cut.json" for name in shards]
    if not files or not all(path.exists() for path in files):
        return {}
    found = [json.loads(path.read_bytes()) for path in files]
    if any(row["limit"] is None for row in found):
        return {}
    lost, tokens = (sum(row[key] for row in found) for key in ("lost", "tokens"))
    share = round(lost / tokens, 4) if tokens else 0.0
    return {"cut": {"limit": found[0]["limit"], "texts": sum(row["texts"] for row in found), "share_of_tokens": share}}


def save_parts(parts: Sequence[NDArray[Any]], file: Any) -> None:
    """np.save of the parts end to end, which need not lie in memory a second time."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.writelines(np.ascontiguousarray(part) for part in parts)
