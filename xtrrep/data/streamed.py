"""Training rows of a hub data set: shuffled in bounded memory, resumed exactly, counted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError, machine_error, request_reason, say

if TYPE_CHECKING:
    from datasets import IterableDataset

BLOCK = 65_536  # rows among which a stream is shuffled: about 70 MB of triples


@dataclass(frozen=True)
class Order:
    """In which order a stream is read, how many rows of it, and how many may be bad. `key` is its config section."""

    seed: int
    limit: int | None = None
    key: str = "train"
    max_bad: int = 0
    block: int = BLOCK


@dataclass
class Streamed:
    """The rows of a hub data set, shuffled by a seed in bounded memory, with a position that resumes exactly.

    A pass takes the shards in an order drawn for it (one for all passes where a `limit` says how many rows there are),
    and its rows in an order drawn within blocks, of which memory holds one. `convert` makes a training row of one
    as it is stored; None leaves it out, and a DataError counts it as bad. `position` is that after the last row given,
    and `bad` the number of bad rows of its pass. Over all passes, `given` rows were given, `same` of them with their
    positive as their negative, and `skipped` were bad. Columns that are not read are `unread`.
    """

    source: str
    dataset: IterableDataset
    column_names: list[str]
    convert: Callable[[str, dict[str, Any]], dict[str, Any] | None]
    order: Order
    unread: list[str] = field(default_factory=list)
    position: dict[str, Any] = field(default_factory=dict)
    bad: int = 0
    given: int = 0
    same: int = 0
    skipped: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass, from the start."""
        return self.rows(None)

    def rows(self, position: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        """What is left of the pass that `position` is in (None: all of the first).

        Raises DataError where the hub is lost on the way, or where more rows are bad than are allowed.
        """
        start = {"pass": 0, "shard": 0, "inner": None, "row": 0, "read": 0, "offset": 0} | (position or {})
        self.go_to(position)
        while True:
            block, after = self._block(start)
            if not block:
                return
            numbers = list(range(len(block)))
            random.Random(f"{self.order.seed}/{start['pass']}/{start['read']}").shuffle(numbers)
            for at in range(start["offset"], len(block)):
                row = self._converted(*block[numbers[at]])
                if row is not None:
                    self.given += 1
                    self.same += "negative" in row and row["positive"] == row["negative"]
                self.position = {**start, "offset": at + 1, **self._counts()}
                if row is not None:
                    yield row
            start = after

    def _counts(self) -> dict[str, int]:
        return {"bad": self.bad, "given": self.given, "same": self.same, "skipped": self.skipped}

    def go_to(self, position: dict[str, Any] | None) -> None:
        """Count as at a position (None: the start)."""
        self.bad, self.given, self.same, self.skipped = ((position or {}).get(name, 0) for name in self._counts())

    def next_pass(self, position: dict[str, Any] | None) -> dict[str, Any]:
        """The position at which the pass after the one of `position` starts, which has been read to its end."""
        return {"pass": (position or {}).get("pass", 0) + 1, **self._counts(), "bad": 0}

    def what_was_odd(self) -> list[str]:
        """What of the rows read so far was skipped, or teaches little, in words."""
        read, odd = self.given + self.skipped, []
        if self.skipped:
            odd.append(
                f"{self.skipped:,} of {read:,} rows read of {self.source} were skipped, since they cannot be used"
            )
        if self.same:
            odd.append(
                f"{self.same:,} of {read:,} rows read of {self.source} have their positive as their negative too"
            )
        return odd

    def _shards(self, number: int) -> list[int]:
        shards = list(range(self.dataset.num_shards))
        random.Random(f"{self.order.seed}/{0 if self.order.limit else number}").shuffle(shards)
        return shards

    def _block(self, start: dict[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
        """Stored rows with where each stands, and the position of the block after it."""
        shards, at = self._shards(start["pass"]), dict(start)
        wanted = self.order.block
        if self.order.limit is not None:
            wanted = min(wanted, self.order.limit - start["read"])
        block: list[tuple[str, dict[str, Any]]] = []
        try:
            while len(block) < wanted and at["shard"] < len(shards):
                part = self.dataset.shard(num_shards=len(shards), index=shards[at["shard"]])
                if at["inner"] is not None:
                    part.load_state_dict(at["inner"])
                where = f"{self.source}: shard {shards[at['shard']] + 1}, row"
                before = len(block)
                rows = enumerate(islice(part, wanted - before), at["row"] + 1)
                block += [(f"{where} {number}", row) for number, row in rows]
                if len(block) == wanted:
                    at |= {"inner": part.state_dict(), "row": at["row"] + len(block) - before}
                else:
                    at |= {"shard": at["shard"] + 1, "inner": None, "row": 0}
        except DataError:
            raise
        except Exception as error:  # datasets, huggingface_hub and the HTTP client each raise their own kinds
            hint = f"the same command goes on from its last checkpoint; {self.order.key} can also read a local copy"
            raise machine_error(error, "HF_HOME") or DataError(
                f"the hub was lost while reading {self.source} ({request_reason(error)})", hint=hint
            ) from error
        return block, at | {"read": start["read"] + len(block), "offset": 0}

    def _converted(self, where: str, row: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self.convert(where, row)
        except DataError as error:
            self.bad += 1
            self.skipped += 1
            if self.bad > self.order.max_bad:
                key = f"{self.order.key}.max_bad_rows"
                raise DataError(
                    f"{error} ({self.bad} bad rows, and {key}={self.order.max_bad})",
                    hint=f"{key}={10 * self.bad} skips them",
                ) from None
            if self.bad == 1:
                say(f"  note: {error}; rows like it are skipped and counted")
            return None
