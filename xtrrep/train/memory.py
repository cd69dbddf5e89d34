"""Running out of memory in training: recognised, and answered with the settings that would fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xtrrep.config import ContrastiveLoss, Distill, Loop, Machine, Train
from xtrrep.console import DataError, is_out_of_memory


@contextmanager
def explained(loop: Loop, machine: Machine, documents: int) -> Iterator[None]:
    """Turn an out-of-memory error inside into a DataError that names the batch and what to set instead."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(loop, machine, documents, error) from error


@contextmanager
def explained_evaluation(step: int, name: str = "train") -> Iterator[None]:
    """The same for an evaluation during training, whose memory is another matter."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DataError(
            f"out of memory in the evaluation after step {step}: {_first_line(error)}",
            hint=f"a smaller machine.encode_tokens, another eval_data, or {name}.eval_data=null {name}.eval_every=null",
        ) from error


def out_of_memory(loop: Loop, machine: Machine, documents: int, error: BaseException) -> DataError:
    """The error for a training step of `documents` documents a query that did not fit.

    A step's memory beyond weights and optimizer grows with batch_size x documents x n_doc, so half of any of them
    needs about half of it. First in the hint stands what leaves the objective as it is.
    """
    name = "distill" if isinstance(loop, Distill) else "train"
    fits = []
    if isinstance(loop, Train):
        cached = loop.loss is ContrastiveLoss.cached
        mini_batch = max(1, min(32, loop.batch_size // 4))
        mini_batch = max(1, loop.mini_batch // 2) if cached else mini_batch
        if not cached or mini_batch < loop.mini_batch:
            fits.append(f"train.loss=cached train.mini_batch={mini_batch} (same gradients, one more forward pass)")
    if not machine.gradient_checkpointing:
        fits.append("machine.gradient_checkpointing=true (same gradients, one more forward pass)")
    if loop.batch_size > 1:
        fits.append(f"{name}.batch_size={loop.batch_size // 2} (about half)")
    if isinstance(loop, Distill) and loop.n_ways > 2:
        fits.append(f"distill.n_ways={max(2, loop.n_ways // 2)} (about half)")
    if loop.n_doc > 32:
        fits.append(f"{name}.n_doc={max(32, loop.n_doc // 2)} (about half)")
    tokens = loop.batch_size * documents * loop.n_doc
    return DataError(
        f"out of memory in a training step of {name}.batch_size={loop.batch_size} x {documents} documents of up to "
        f"{name}.n_doc={loop.n_doc} tokens ({tokens:,} document tokens): {_first_line(error)}",
        hint="any of " + "; ".join(fits) if fits else "a machine with more memory",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
