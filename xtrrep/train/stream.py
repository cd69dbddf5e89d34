"""Batches of a streamed dataset, tokenised ahead by a thread, with a position that a checkpoint keeps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError
from xtrrep.data.streamed import Streamed

if TYPE_CHECKING:
    from datasets import IterableDataset

AHEAD = 16  # batches that may wait for the training loop


class _InOrder:
    """An IterableDataset as a stream: its own order, and its own state as the position."""

    def __init__(self, dataset: IterableDataset) -> None:
        self.dataset = dataset

    def rows(self, position: Any) -> Iterator[Any]:
        # Also without a position: `datasets` starts every later pass at the place it was once given.
        self.dataset.load_state_dict(position)
        return iter(self.dataset)

    @property
    def position(self) -> Any:
        return self.dataset.state_dict()

    def next_pass(self, position: Any) -> Any:
        return None


class Stream:
    """Batches of a stream, from the start again where it ends; `position` is after the last one given.

    The library resumes a stream by reading and tokenising it again up to the step, and loses its place in a second
    pass. Here the stream's own position is kept instead, which costs at most the rest of one shard. A thread collates
    up to AHEAD batches in advance, since tokenising takes as long as a step on a fast GPU; `lock` is held while it uses
    the tokenizer.
    """

    def __init__(
        self,
        dataset: IterableDataset | Streamed,
        batch_size: int,
        collate: Callable[[list[Any]], Any],
        position: Any = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.source = dataset if isinstance(dataset, Streamed) else _InOrder(dataset)
        self.batch_size = batch_size
        self.collate = collate
        self.position = position
        self.lock = threading.Lock()
        share = batch_size // ranks
        self.share = slice(rank * share, (rank + 1) * share)  # every rank reads all rows, and keeps its own of a batch

    def __iter__(self) -> Iterator[Any]:
        ready: queue.Queue[tuple[Any, Any]] = queue.Queue(AHEAD)
        stop = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, stop), name="batches", daemon=True)
        thread.start()
        try:
            while True:
                batch, position = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                self.position = position
                yield batch
        finally:
            stop.set()
            while thread.is_alive():  # it may be waiting for room
                try:
                    ready.get_nowait()
                except queue.Empty:
                    thread.join(0.01)

    def close(self) -> None:
        """Leave the source as it was after the last batch given: the thread has read further."""
        if isinstance(self.source, Streamed):
            self.source.go_to(self.position)

    def _fill(self, ready: queue.Queue[tuple[Any, Any]], stop: threading.Event) -> None:
        try:
            for rows, position in self._batches():
                if stop.is_set():
                    return
                with self.lock:
                    batch = self.collate(rows)
                ready.put((batch, position))
                if stop.is_set():
                    return
        except BaseException as error:  # raised again where the batches are taken
            ready.put((error, None))

    def _batches(self) -> Iterator[tuple[list[Any], Any]]:
        """This rank's rows of each batch, and the position after it."""
        begun = self.position
        fresh = begun is None
        while True:
            rows: list[Any] = []
            batches = 0
            for row in self.source.rows(begun):
                rows.append(row)
                if len(rows) == self.batch_size:
                    batches += 1
                    yield rows[self.share], self.source.position
                    rows = []
            if not batches and fresh:
                raise DataError(
                    f"{len(rows)} streamed rows do not fill one batch of {self.batch_size}", hint="a smaller batch_size"
                )
            begun = self.source.next_pass(begun)
            fresh = True
