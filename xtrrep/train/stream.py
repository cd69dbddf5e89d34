"""Batches of a streamed dataset, with a position that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset


class Stream:
    """Batches of a stream in its own order, from the start again where it ends; `position` is after the last one given.

    The library resumes a stream by reading and tokenising it again up to the step, and loses its place in a second
    pass. Here the dataset's own state is kept instead, which costs at most the rest of one shard.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        batch_size: int,
        collate: Callable[[list[Any]], Any],
        position: Any = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.collate = collate
        self.position = position
        share = batch_size // ranks
        self.share = slice(rank * share, (rank + 1) * share)  # every rank reads all rows, and keeps its own of a batch

    def __iter__(self) -> Iterator[Any]:
        begun = self.position
        while True:
            # Without this, `datasets` starts every later pass at the place it was once told.
            self.dataset.load_state_dict(begun)
            rows: list[Any] = []
            batches = 0
            for row in self.dataset:
                rows.append(row)
                if len(rows) == self.batch_size:
                    self.position = self.dataset.state_dict()
                    batches += 1
                    yield self.collate(rows[self.share])
                    rows = []
            if not batches and begun is None:
                raise DataError(
                    f"{len(rows)} streamed rows do not fill one batch of {self.batch_size}", hint="a smaller batch_size"
                )
            begun = None
