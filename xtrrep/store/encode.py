"""Texts to an embedding store, and the store itself: encoded once, read by every engine and analysis.

    vectors/00000.npy           (tokens, dim) float16, the shard's documents laid end to end
    vectors/00000.doclens.npy   (documents,) int32, written last: its presence means the shard is complete
    tokens/00000.npy            (tokens,) int32 vocabulary ids
    tokens/00000.cut.json       how many of the texts were longer than the limit, and by how much
    ids.json                    document (or query) ids in order
    shards.json                 how many of them a shard holds, written before the first

`vectors/` holds what WARP's builder streams and nothing else.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from xtrrep.artifacts import check, write_json
from xtrrep.config import Encode, Precision
from xtrrep.console import DataError, progress, say, typed
from xtrrep.model.precision import describe, resolve_precision, timing_facts
from xtrrep.store.shards import Rows, begin_shards, check_texts, cut_facts, read_shards, write_shard

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder
    from torch import Tensor

    from xtrrep.model.forward import Tokens

# A store no larger than this in float32 is widened once and kept in memory.
RESIDENT_BYTES = 1 << 30
# Rows of a store looked at in one piece (32 MiB of float16 at dimension 128).
PIECE = 1 << 17

Item = TypeVar("Item")


def encode(
    model: MultiVectorEncoder,
    texts: Iterable[tuple[str, str]],
    count: int,
    out: Path,
    cfg: Encode,
    *,
    task: str,
    device: str,
    batch_tokens: int | None = None,
    together: bool = False,
) -> dict[str, Any]:
    """Encode (id, text) pairs as `task` ("document" or "query") into a store at `out`.

    A batch holds at most `batch_tokens` tokens, padding included (None: `forward.default_budget`). While the model is
    at work, one thread reads and tokenises the next shard and another writes the last. What goes into a batch is
    settled by its shard alone, so that shards which an interrupted run completed are kept, and the others come out
    the same. Returns facts for the manifest. Raises DataError when the model produces a vector that is not finite,
    naming the text.

    together: other processes do the same at `out`. Each takes the shards that are neither whole nor another's, and
    none finishes the store: a call without it does, and encodes what one that was killed has left.
    """
    begin_shards(out, cfg.shard_documents, together)
    precision = resolve_precision(cfg.precision, device)
    if cfg.precision is Precision.auto and device == "cpu":
        say(f"  precision: {describe('encode')}")
    pool_factor = cfg.pool_factor if task == "document" else 1.0
    ids: list[str] = []
    kept = 0
    shards = -(-count // cfg.shard_documents)
    with (
        ExitStack() as claims,  # left last, when no thread makes another
        progress(count, f"encode {task}", "text") as bar,
        ThreadPoolExecutor(1, "write") as writer,
        closing(
            _ahead(
                read_shards(
                    model, iter(texts), range(shards), out, cfg.shard_documents, task, claims if together else None
                )
            )
        ) as coming,
    ):
        writing: Future[None] | None = None
        for shard in coming:
            ids.extend(shard.ids)
            if shard.tokens is None:
                kept += 1
                bar.update(len(shard.ids))
                continue
            rows = _vectors(
                model, shard.ids, shard.tokens, task, precision, device, batch_tokens, pool_factor, bar.update
            )
            if writing is not None:
                writing.result()  # one shard at most waits to be written
            writing = writer.submit(write_shard, out, cfg.shard_documents, shard, rows)
        if writing is not None:
            writing.result()
    if len(ids) != count:
        raise DataError(
            f"the collection counts {count} {task} texts, and {len(ids)} were read",
            hint="its files changed during the run: the same command starts again",
        )
    if not together:
        write_json(out / "ids.json", ids)
    return {
        "units": {"texts": count},
        **cut_facts(out),
        "tokens": sum(int(np.load(path).sum()) for path in (out / "vectors").glob("*.doclens.npy")),
        "dim": int(model.get_embedding_dimension() or 0),
        "precision": precision.value,
        **timing_facts(cfg.precision, device, "encode"),
        "device": device,
        "shards_kept": kept,
    }


def _ahead(items: Iterator[Item]) -> Generator[Item]:
    """The same items, each made in a thread while the caller is at work on the one before."""
    end = object()
    with ThreadPoolExecutor(1, "read") as pool:
        coming: Future[Any] = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item


def _behind(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each handed on when the next one has been made: a GPU is then never without work."""
    last: list[Item] = []
    for item in items:
        yield from last
        last = [item]
    yield from last


def _vectors(
    model: MultiVectorEncoder,
    names: Sequence[str],
    tokens: Tokens,
    task: str,
    precision: Precision,
    device: str,
    batch_tokens: int | None,
    pool_factor: float,
    done: Callable[[int], object],
) -> Rows:
    import torch

    from xtrrep.model.forward import batches, default_budget, inference, launch

    found: Rows = [(np.empty((0, 0), np.float16), np.empty(0, np.int32))] * len(names)
    dtype = torch.float32 if pool_factor > 1 else torch.float16
    with inference(model, precision, device):
        parts = batches(tokens.widths, batch_tokens or default_budget(device))
        for batch in _behind(launch(model, tokens, rows, task, dtype) for rows in parts):
            for row, units, ids in batch.fetch():
                if pool_factor > 1 and len(units) > 1:
                    units = _pooled(units, pool_factor)
                    ids = np.full(len(units), -1, np.int32)
                vectors = units.numpy().astype(np.float16, copy=False)
                if not len(vectors) or not np.isfinite(vectors).all():
                    what = "vectors that are not finite" if len(vectors) else "no vector"
                    raise DataError(
                        f"the model gives {what} for {task} {names[row]!r}",
                        hint="another model, or encode.precision=fp32",
                    )
                found[row] = vectors, ids
            done(len(batch.rows))
    return found


def cut_note(facts: Mapping[str, Any], task: str, key: str) -> str | None:
    """What a store's facts say of texts that were cut at the length `key`, in words; None where none was."""
    cut = facts.get("cut")
    if not cut or not cut["texts"]:
        return None
    kind = {"document": "documents", "query": "queries"}[task]
    return (
        f"{cut['texts']:,} of {facts['units']['texts']:,} {kind} are longer than {key}={cut['limit']} and were cut: "
        f"{cut['share_of_tokens']:.1%} of all their tokens are not read"
    )


def encode_batch(
    model: MultiVectorEncoder,
    texts: Sequence[tuple[str, str]],
    *,
    task: str,
    precision: Precision,
    device: str,
    pool_factor: float = 1.0,
) -> Rows:
    """Unit vectors (tokens, dim) and vocabulary ids (tokens,) of each (id, text), as a store keeps them.

    A `pool_factor` above 1 clusters a text's vectors into that many times fewer, its first one kept as it is; the ids
    are then all -1, since a pooled vector stands for several tokens (Clavié et al. 2024, by sentence-transformers).
    Raises DataError where a text has no vector at all or one that is not finite.
    """
    from xtrrep.model.forward import tokenise

    check_texts(texts, task)
    names, tokens = [name for name, _ in texts], tokenise(model, [text for _, text in texts], task)
    return _vectors(model, names, tokens, task, precision, device, None, pool_factor, lambda count: None)


def _pooled(vectors: Tensor, pool_factor: float) -> Tensor:
    import torch
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    with torch.autocast("cpu", enabled=False):  # the model's, which is still open, would cluster in bf16
        pooled: Tensor = HierarchicalTokenPooling(pool_factor=pool_factor, normalize_embeddings=True).pool_one(vectors)
    return pooled


def _give_back(shard: NDArray[Any]) -> None:
    """Unmap the pages of a memory-mapped array that were read; what they held stays in the file."""
    base: Any = shard.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Store:
    """An embedding store, memory-mapped."""

    folder: Path
    fingerprint: str
    ids: list[str]
    lengths: NDArray[np.int64]  # (N,) tokens of each document

    @classmethod
    def open(cls, folder: Path, fingerprint: str | None = None) -> Store:
        """Open a finished store. Raises DataError when a shard is missing, cut short, or of another store."""
        manifest = check(folder, fingerprint)
        lengths = [np.load(path) for path in sorted((folder / "vectors").glob("*.doclens.npy"))]
        ids = json.loads((folder / "ids.json").read_bytes())
        flat = np.concatenate(lengths).astype(np.int64) if lengths else np.empty(0, np.int64)
        if len(ids) != len(flat):
            raise DataError(
                f"{folder} has {len(ids)} ids and {len(flat)} lengths", hint=f"rm -r {typed(folder)} and run again"
            )
        return cls(folder, manifest["fingerprint"], ids, flat)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(N + 1,) first token of each document."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    def numbers(self, names: Container[str]) -> dict[str, int]:
        """The numbers of those documents that `names` holds, by id; ids of no document are left out."""
        return {name: number for number, name in enumerate(self.ids) if name in names}

    @cached_property
    def document_of(self) -> NDArray[np.int32]:
        """(tokens,) the document each token belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.lengths)

    @property
    def paths(self) -> list[Path]:
        """The shards' vector files, in order."""
        return sorted(p for p in (self.folder / "vectors").glob("*.npy") if not p.name.endswith(".doclens.npy"))

    @cached_property
    def shards(self) -> list[NDArray[np.float16]]:
        """Memory-mapped (tokens, dim) arrays, in order."""
        return [np.load(path, mmap_mode="r") for path in self.paths]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum([len(s) for s in self.shards])]).astype(np.int64)

    @cached_property
    def _id_shards(self) -> list[NDArray[np.int32]]:
        return [np.load(self.folder / "tokens" / path.name, mmap_mode="r") for path in self.paths]

    @property
    def dim(self) -> int:
        return int(self.shards[0].shape[1]) if self.shards else 0

    @cached_property
    def _resident(self) -> NDArray[np.float32] | None:
        """All vectors in float32, where they fit RESIDENT_BYTES: widening float16 anew costs more than the product."""
        if self.tokens * self.dim * 4 > RESIDENT_BYTES:
            return None
        return self.widened()

    def pieces(self, size: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """(first token, at most `size` rows as stored) over the whole store, to be used before the next is asked for.

        What was read does not stay resident: a pass over the store holds one shard at most.
        """
        for first, shard in zip(self._starts.tolist(), self.shards, strict=False):
            for begin in range(0, len(shard), size):
                yield first + begin, shard[begin : begin + size]
            _give_back(shard)

    def blocks(self, size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first token, at most `size` rows in float32) over the whole store."""
        if self._resident is not None:
            for begin in range(0, len(self._resident), size):
                yield begin, self._resident[begin : begin + size]
        else:
            for start, rows in self.pieces(size):
                yield start, rows.astype(np.float32)

    def widened(self) -> NDArray[np.float32]:
        """All vectors in float32, (tokens, dim), with no second copy on the way: for what cannot do with less."""
        out = np.empty((self.tokens, self.dim), np.float32)
        for start, rows in self.pieces(PIECE):
            out[start : start + len(rows)] = rows
        return out

    def release(self) -> None:
        """Give back the pages that looks at single documents and tokens have mapped. They are read again when asked
        for, from the system's own cache as a rule; without this a long run ends with the whole store resident."""
        for name in ("shards", "_id_shards"):
            for shard in self.__dict__.get(name, ()):
                _give_back(shard)

    def document_blocks(self, size: int) -> Iterator[tuple[int, int]]:
        """(first, one past the last) document of runs that hold about `size` tokens, at least one document each."""
        begin = 0
        while begin < len(self):
            stop = int(np.searchsorted(self.offsets, self.offsets[begin] + size, side="right")) - 1
            stop = min(max(stop, begin + 1), len(self))
            yield begin, stop
            begin = stop

    def rows(self, start: int, stop: int) -> NDArray[np.float16]:
        """The vectors of tokens `start` to `stop`, (stop - start, dim)."""
        if start >= stop:
            return np.empty((0, self.dim), np.float16)
        begin, end = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        parts = [
            self.shards[i][max(0, start - self._starts[i]) : stop - self._starts[i]] for i in range(begin, end + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _by_shard(self, tokens: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(shard, positions in (n,) `tokens` of those that lie in it) for each shard that holds any."""
        owner = np.searchsorted(self._starts, tokens, side="right") - 1
        order = np.argsort(owner, kind="stable")
        shards, begins = np.unique(owner[order], return_index=True)
        yield from zip(shards.tolist(), np.split(order, begins[1:]), strict=False)

    def take(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of any tokens, in the order given, (len(tokens), dim)."""
        out = np.empty((len(tokens), self.dim), np.float32)
        for shard, inside in self._by_shard(tokens):
            out[inside] = self.shards[shard][tokens[inside] - self._starts[shard]]
        return out

    def vocabulary_ids(self, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
        """The vocabulary ids of any tokens, of the shape given; -1 where vectors were imported or pooled."""
        flat = tokens.ravel()
        out = np.empty(len(flat), np.int32)
        for shard, inside in self._by_shard(flat):
            out[inside] = self._id_shards[shard][flat[inside] - self._starts[shard]]
        return out.reshape(tokens.shape)

    def vectors(self, document: int) -> NDArray[np.float16]:
        """One document's vectors, (tokens, dim)."""
        return self.rows(int(self.offsets[document]), int(self.offsets[document + 1]))

    def gather(self, documents: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Several documents' vectors (ascending) end to end in float32, and the offset at which each starts."""
        lengths = self.lengths[documents]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        first, last = int(self.offsets[documents[0]]), int(self.offsets[documents[-1] + 1])
        neighbours = last - first == offsets[-1]
        if self._resident is None:
            if neighbours:
                return self.rows(first, last).astype(np.float32), offsets[:-1]
            out = np.empty((int(offsets[-1]), self.dim), np.float32)
            for document, start, stop in zip(documents, offsets[:-1], offsets[1:], strict=True):
                out[start:stop] = self.vectors(int(document))
            return out, offsets[:-1]
        if neighbours:  # nothing to copy
            return self._resident[first:last], offsets[:-1]
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[documents] - offsets[:-1], lengths)
        return self._resident[rows], offsets[:-1]
