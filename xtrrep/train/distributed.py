"""Several processes that train one model: `torchrun --nproc-per-node=N -m xtrrep train ...`.

The first rank plans, writes and speaks. The others wait for its word, and join it where a model is trained. With one
process everything here does nothing.

What the losses need of each other's batches is here too. A rank scores its own queries against the documents of all
ranks, so the in-batch pool, and the top k_train of it, is that of one process with the whole batch; the documents carry
gradients back to the rank they came from. DDP then averages over ranks, so a rank's loss must be its share of the
whole's mean times the number of ranks, which for batches of one size is the mean over its own queries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xtrrep.console import DataError, machine_error

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait while the first rank mines, scores or evaluates
LOST = re.compile(r"connection (was )?(closed|reset)|broken pipe|socket|timed out|NCCL|gloo", re.IGNORECASE)


def asked() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """This one's number, as torchrun gave it."""
    return int(os.environ.get("RANK", "0"))


def begin(device: str) -> None:
    """Meet the other processes, over gloo on CPU and NCCL on GPUs. Nothing to do for one process."""
    if asked() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu", timeout=PATIENCE)


def size() -> int:
    """How many ranks have met."""
    if asked() == 1:
        return 1
    import torch

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """This one's number among those that have met."""
    if size() == 1:
        return 0
    import torch

    return torch.distributed.get_rank()


def lead(work: Callable[[Callable[[Path], None]], Path]) -> Path:
    """On the first rank: do `work`, which calls what it is given before it begins what all ranks do together."""
    folder = work(lambda out: _tell("join", out))
    _tell("done", folder)
    return folder


def follow(join: Callable[[Path], object]) -> Path:
    """On another rank: wait for the word, `join` where that is it, and return the finished folder."""
    while True:
        word, folder = _hear()
        if word == "done":
            return folder
        join(folder)


def _tell(word: str, folder: Path) -> None:
    if size() > 1:
        import torch

        torch.distributed.broadcast_object_list([word, str(folder)], src=0)


def _hear() -> tuple[str, Path]:
    import torch

    heard = ["", ""]
    torch.distributed.broadcast_object_list(heard, src=0)
    return heard[0], Path(heard[1])


def from_first(work: Callable[[], T]) -> T:
    """What `work` returns on the first rank, on every rank; only the first one calls it. It may read and write files.

    Raises what `work` raises on the first rank, and a DataError on the others.
    """
    if size() == 1:
        return work()
    import torch

    if rank() == 0:
        try:
            result = work()
        except BaseException:
            torch.distributed.broadcast_object_list([False, None], src=0)
            raise
        torch.distributed.broadcast_object_list([True, result], src=0)
        return result
    heard: list[Any] = [False, None]
    torch.distributed.broadcast_object_list(heard, src=0)
    if not heard[0]:
        raise DataError("the first process of this training stopped", hint="its error is printed above")
    return heard[1]  # type: ignore[no-any-return]


@contextmanager
def lost_explained() -> Iterator[None]:
    """Turn the loss of another rank into a DataError."""
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or machine_error(error) or not LOST.search(str(error)):
            raise
        raise DataError(
            f"another process of this training ended ({str(error).strip().partition(chr(10))[0][:120]})",
            hint="its error is printed above; the same command continues from the last checkpoint",
        ) from error


# --- batches --------------------------------------------------------------------------------------------------------


def everyones(documents: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Documents (D, N, S, H) and mask (D, N, S) of all ranks, in rank order: (R * D, N, S', H) with the longest S.

    Gradients of every rank's loss reach the documents of every other.
    """
    if size() == 1:
        return documents, mask
    import torch
    from torch.distributed.nn.functional import all_gather

    longest = torch.tensor(documents.shape[2], device=documents.device)
    torch.distributed.all_reduce(longest, op=torch.distributed.ReduceOp.MAX)
    missing = int(longest) - documents.shape[2]
    documents = torch.nn.functional.pad(documents, (0, 0, 0, missing)).contiguous()
    masks = [torch.empty_like(documents[..., 0], dtype=torch.uint8) for _ in range(size())]
    torch.distributed.all_gather(masks, torch.nn.functional.pad(mask, (0, missing)).to(torch.uint8).contiguous())
    gathered: tuple[Tensor, ...] = all_gather(documents)  # type: ignore[no-untyped-call]
    return torch.cat(gathered), torch.cat(masks).bool()


def mean(value: Tensor) -> Tensor:
    """The mean over ranks of a tensor, without gradients."""
    if size() == 1:
        return value
    import torch

    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total / size()
