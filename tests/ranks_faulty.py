"""`xtrrep` with a wrong gather: the documents of other ranks arrive without gradients. For tests/test_ranks.py."""

import torch
from torch import Tensor
from torch.distributed.nn import functional

from xtrrep.cli import main


def all_gather_without_gradients(value: Tensor) -> tuple[Tensor, ...]:
    """The parts of all ranks; only this rank's own part carries gradients."""
    parts = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, value.detach())
    parts[torch.distributed.get_rank()] = value
    return tuple(parts)


if __name__ == "__main__":
    functional.all_gather = all_gather_without_gradients
    main()
