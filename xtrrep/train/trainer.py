"""The training loop: sentence-transformers' trainer with our losses, a log, checkpoints, resume and verdicts.

Runs inside a stage's partial folder. The same command finds `checkpoints/` again after a kill and goes on to the
weights of an unbroken run; they are deleted at the end. What stays:

    model/            the encoder; loads with plain sentence-transformers
    kept/STEP/        the same as it was at a step of `keep` before the last
    log.jsonl         a line a step, and one an evaluation
    loss.csv          step, loss, learning_rate, grad_norm, temperature
    eval.csv          step and every measure, where there was an evaluation
    tensorboard/      event files (machine.tensorboard)
    finished.json     the config and the facts, written when all else is

A run whose loss stops being a number ends there, and is a result: `diverged_at` in its facts, and the last good
checkpoint's weights in model/.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.artifacts import write_json
from xtrrep.config import Distill, Loop, Machine, Precision, kept_steps
from xtrrep.console import DataError, UsageError, machine_error, progress, say
from xtrrep.data.streamed import Streamed
from xtrrep.model.encoder import check_length
from xtrrep.model.precision import describe, resolve_precision, timing_facts
from xtrrep.train import distributed, kept, memory, temperature
from xtrrep.train.checkpoint import STATE, identity_of, load_last_good, read_state, resume_from, same_config, weights_of
from xtrrep.train.log import COLUMNS, Diverged, Log, read_log, recorders, write_csv
from xtrrep.train.stream import Stream

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, IterableDataset
    from sentence_transformers import MultiVectorEncoder

Evaluate = Callable[["MultiVectorEncoder"], dict[str, float]]
LABELS = ("label", "labels", "score", "scores")  # columns that sentence-transformers reads as labels, not as texts


def fit(
    model: MultiVectorEncoder,
    dataset: Dataset | IterableDataset | Streamed,
    loop: Loop,
    out: Path,
    device: str,
    *,
    loss: torch.nn.Module,
    machine: Machine | None = None,
    evaluate: Evaluate | None = None,
) -> dict[str, Any]:
    """Train `model` by `loss`, which holds it, and save it to `out / "model"`.

    The first column of `dataset` is the query, the others are documents, but for the teacher's scores, `label`. A
    Dataset is shuffled by loop.seed, anew in every pass, and a Streamed by its own seed. An IterableDataset is read in
    its own order, and from the start again where it ends; its position is kept in the checkpoints, so it must be one
    that resumes exactly (no shuffle buffer). The last rows of a pass that fill no batch are left out.

    `evaluate` is called with the model every loop.eval_every steps; weights do not depend on it.

    Under several ranks each calls this; loop.batch_size is the whole batch, which they share evenly, and only the first
    writes, evaluates and returns facts.

    Returns facts for the manifest: units, triples, precision, device, torch_threads, loss_first and loss_last (means of
    the first and last tenth of the steps), ln_pool (contrastive loss of a guess among the batch's documents, None in
    distillation), temperature_first and temperature_last, model_step (the step of the weights saved), diverged_at (a
    step, or None).

    Raises DataError where the data do not fill a batch, memory runs out (naming what would fit), or the checkpoints in
    `out` are of another config, and UsageError for a length above the backbone's.
    """
    import torch

    if getattr(loss, "model", model) is not model:
        raise ValueError("the loss holds another model than the one to train")
    machine = machine or Machine()
    name = "distill" if isinstance(loop, Distill) else "train"
    first = distributed.rank() == 0
    if loop.batch_size % distributed.size():
        raise UsageError(
            f"{distributed.size()} processes cannot share a batch of {loop.batch_size} evenly",
            hint=f"{name}.batch_size={max(1, loop.batch_size // distributed.size()) * distributed.size()}",
        )
    if device not in ("cpu", "cuda", "cuda:0"):
        raise UsageError(
            f"training runs on the first GPU that it sees, not on {device}",
            hint=f"CUDA_VISIBLE_DEVICES={device.rpartition(':')[2]} and machine.device=cuda",
        )
    check_length(model, f"{name}.n_doc", loop.n_doc)
    size, documents = _check_dataset(dataset, loop, name)
    precision = distributed.from_first(lambda: resolve_precision(loop.precision, device, "train"))
    identity = identity_of(model, loop, loss, precision)
    finished = distributed.from_first(lambda: _finished(out, identity))
    if finished is not None:
        return finished
    resume = distributed.from_first(lambda: resume_from(out / "checkpoints", identity))
    if loop.precision is Precision.auto and device == "cpu" and first:
        say(f"  precision: {describe('train')}")
    first_temperature = temperature.value_of(loss)
    start = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    diverged = None
    try:
        with distributed.lost_explained(), memory.explained(loop, machine, documents):
            _train(model, dataset, loop, out, device, loss, machine, evaluate, precision, resume)
    except Diverged as error:
        diverged = error
    if not first:
        return {}
    if diverged:
        model_step = load_last_good(model, loss, out / "checkpoints", start, first_temperature)
        weights = (
            f"the weights of step {model_step}" if model_step else "the initial weights: there was no checkpoint yet"
        )
        say(f"  diverged: {diverged}; the model keeps {weights}")
    rows = read_log(out / "log.jsonl", "loss")
    write_csv(out / "loss.csv", COLUMNS, rows)
    evaluations = read_log(out / "log.jsonl", "eval")
    if evaluations:
        names = sorted({name for row in evaluations for name in row["eval"]})
        write_csv(out / "eval.csv", ["step", *names], [row["eval"] | {"step": row["step"]} for row in evaluations])
    kept.save(model, loss, kept.folder_of(out, None), card=True)
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    window = max(1, len(losses) // 10)
    facts = {
        "units": {"steps": diverged.step if diverged else loop.steps},
        "triples": size,
        "precision": precision.value,
        **timing_facts(loop.precision, device, "train"),
        "device": device,
        "torch_threads": torch.get_num_threads(),
        "loss_first": _mean(losses[:window]),
        "loss_last": _mean(losses[-window:]),
        "ln_pool": None if isinstance(loop, Distill) else round(math.log(loop.batch_size * documents), 4),
        "temperature_first": first_temperature,
        "temperature_last": temperature.value_of(loss),
        **({"bad_rows": dataset.bad} if isinstance(dataset, Streamed) else {}),
        "model_step": model_step if diverged else loop.steps,
        "diverged_at": diverged.step if diverged else None,
        "diverged_why": diverged.reason if diverged else None,
    }
    # Before the checkpoints go: killed here or later, the same command has nothing left to train.
    write_json(out / "finished.json", {"config": identity, "facts": facts})
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return facts


def _finished(out: Path, identity: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The facts of a training that was stopped after its end, before its folder got its name."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "finished.json").exists():
        return None
    facts = dict(same_config(out / "finished.json", identity)["facts"])
    say("  already trained")
    shutil.rmtree(out / "checkpoints", ignore_errors=True)  # killed while they were being deleted
    return facts


def _check_dataset(dataset: Dataset | IterableDataset | Streamed, loop: Loop, name: str) -> tuple[int | None, int]:
    """Rows (None of a stream) and documents a query. Raises DataError for too few rows or columns."""
    columns = list(dataset.column_names or [])
    documents = len([column for column in columns if column not in LABELS]) - 1
    found = f"(found: {', '.join(columns) or 'none'})"
    if isinstance(loop, Distill) and (documents < 2 or len(columns) != documents + 2):
        raise DataError(
            f"distillation needs the columns query, document_1 to document_N, and label {found}",
            hint="lists have a query, its documents and a score for each",
        )
    if documents < 1:
        raise DataError(
            f"training needs a query and at least one document {found}",
            hint="the columns are query, positive, negative",
        )
    size = len(dataset) if hasattr(dataset, "__len__") else None
    if size is not None and size < loop.batch_size:
        what = "queries" if isinstance(loop, Distill) else "triples"
        raise DataError(
            f"{size} training {what} do not fill one batch of {loop.batch_size}", hint=f"{name}.batch_size={size}"
        )
    return size, documents


def _train(
    model: MultiVectorEncoder,
    dataset: Dataset | IterableDataset | Streamed,
    loop: Loop,
    out: Path,
    device: str,
    loss: torch.nn.Module,
    machine: Machine,
    evaluate: Evaluate | None,
    precision: Precision,
    resume: Path | None,
) -> None:
    """Go from `resume` (or from the start) to the last step; the model then holds the weights of that step."""
    import torch
    from transformers.trainer_callback import PrinterCallback

    start: dict[str, Any] = read_state(resume) if resume else {"step": 0, "stream": None}
    if resume:
        say(f"  resuming from step {start['step']} of {loop.steps}")
        if temperature.is_learned(loss):
            temperature.restore(loss, start["temperature"])
    if resume and start["step"] >= loop.steps:
        # Killed between the last step and the saved model. The library would train one step more.
        model.load_state_dict(weights_of(resume))
        if isinstance(dataset, Streamed):
            dataset.go_to(start["stream"])
        return
    torch.manual_seed(loop.seed)
    # Without this, every save asks the hub about the names of local folders.
    model.model_card_data.local_files_only = True
    # An example of ours in the card keeps the library from picking some, with a bar of its own across ours.
    model.model_card_data.widget = [{"text": "shortest path between two nodes of a graph"}]
    with ExitStack() as stack:
        first = distributed.rank() == 0
        if first:
            kept.forget_after(out, start["step"] if resume else None)
        if first and not resume and 0 in kept_steps(loop):
            with _undisturbed(model):
                kept.save(model, loss, kept.folder_of(out, 0))
        _prepare(model, machine, stack)
        if getattr(loss, "settings", {}).get("vectors") == "raw":
            stack.enter_context(_raw_vectors(model))
        records = recorders(machine, out, loop, start["step"], stack) if first else []
        bar = stack.enter_context(progress(loop.steps, "train", "step"))
        trainer, stream = _trainer(model, dataset, loop, out, device, loss, precision, start["stream"])
        log = Log(out / "log.jsonl" if first else None, loss, precision, start["step"], loop.steps, records)
        trainer.add_callback(_callback(bar, log, loop, out, stream, evaluate))
        trainer.remove_callback(PrinterCallback)  # prints every log line to stdout, which is for data
        bar.update(start["step"])
        if stream:
            stack.callback(stream.close)
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except Exception as error:
            if machine.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = str(error).strip().partition("\n")[0]
                raise machine_error(error, "TORCHINDUCTOR_CACHE_DIR") or DataError(
                    f"torch.compile failed: {reason}", hint="machine.compile=false"
                ) from error
            raise


def _prepare(model: MultiVectorEncoder, machine: Machine, stack: ExitStack) -> None:
    """Gradient checkpointing and compilation, both of the backbone, in place, and undone when `stack` closes."""
    import torch

    backbone = model[0].model
    if machine.gradient_checkpointing:
        try:
            backbone.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise UsageError(
                f"machine.gradient_checkpointing: {error}", hint="machine.gradient_checkpointing=false"
            ) from None
        stack.callback(backbone.activation_checkpointing_disable)
    if machine.compile:
        # Not backbone.compile(), which replaces __call__: sentence-transformers calls forward itself.
        backbone.forward = torch.compile(backbone.forward, dynamic=True)  # batches differ in length
        stack.callback(delattr, backbone, "forward")


def _trainer(
    model: MultiVectorEncoder,
    dataset: Dataset | IterableDataset | Streamed,
    loop: Loop,
    out: Path,
    device: str,
    loss: torch.nn.Module,
    precision: Precision,
    position: Any,
) -> tuple[Any, Stream | None]:
    """sentence-transformers' trainer, and the stream it reads where `dataset` is one."""
    from datasets import Dataset, IterableDataset
    from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

    streamed = isinstance(dataset, IterableDataset | Streamed)
    own_rate = {r"^temperature$": loop.temperature_lr} if temperature.is_learned(loss) and loop.temperature_lr else {}
    arguments = MultiVectorEncoderTrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=loop.steps,
        per_device_train_batch_size=loop.batch_size // distributed.size(),
        learning_rate=loop.learning_rate,
        learning_rate_mapping=own_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(loop.warmup_ratio * loop.steps),
        weight_decay=loop.weight_decay,
        # Of the encoder's gradient: the library clips, and logs the norm of, the model's parameters only, not the
        # temperature's. So did the study's trainer, an earlier version of the same.
        max_grad_norm=loop.grad_norm,
        bf16=precision is Precision.bf16,
        fp16=precision is Precision.fp16,
        use_cpu=device == "cpu",
        max_length={"document": loop.n_doc},
        save_strategy="steps",
        save_steps=loop.checkpoint_every,
        save_total_limit=2,
        # Every step, so that divergence is seen before a checkpoint of it is written.
        logging_steps=1,
        logging_nan_inf_filter=False,
        seed=loop.seed,
        data_seed=loop.seed,
        dataloader_drop_last=True,
        ignore_data_skip=streamed,
        disable_tqdm=True,
        report_to="none",
    )

    if arguments.n_gpu > 1:
        # The library would split each batch over all of them, and the pool with it. Several GPUs: torchrun.
        arguments._n_gpu = 1

    class Trainer(MultiVectorEncoderTrainer):  # type: ignore[misc]  # the library is not followed, so its base is Any
        def get_train_dataloader(self) -> Any:
            return super().get_train_dataloader() if stream is None else stream

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            with stream.lock if stream else nullcontext():  # the tokenizer is saved as it is between two batches
                super()._save_checkpoint(model, trial)

        def get_decay_parameter_names(self, model: Any) -> list[str]:
            # Decay would pull the temperature to 0.
            return [name for name in super().get_decay_parameter_names(model) if name != "temperature"]

    stream = None
    # Of a stream of ours the trainer only asks for the columns.
    known = Dataset.from_dict({name: [] for name in dataset.column_names}) if isinstance(dataset, Streamed) else dataset
    trainer = Trainer(model=model, args=arguments, train_dataset=known, loss=loss)
    if streamed:
        stream = Stream(
            dataset, loop.batch_size, trainer.data_collator, position, distributed.rank(), distributed.size()
        )
    return trainer, stream


def _callback(bar: Any, log: Log, loop: Loop, out: Path, stream: Stream | None, evaluate: Evaluate | None) -> Any:
    """The trainer's callback: bar, log, kept models, evaluation, and the last file of each checkpoint.

    The trainer calls on_step_end, on_log and on_save in this order: what `log` refuses is never saved.
    """
    from transformers import TrainerCallback

    steps = kept_steps(loop) if distributed.rank() == 0 else ()

    class Follow(TrainerCallback):  # type: ignore[misc]  # the library is not followed, so its base is Any
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            state.save_steps = args.save_steps  # a resumed state would keep the interval of its first run

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.update(1)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            # Both would grow by a row a step, into every checkpoint and into the model's card.
            state.log_history.clear()
            kwargs["model"].model_card_data.training_logs.clear()
            log.step(state.global_step, logs)
            bar.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)
            waiting = stream.lock if stream else nullcontext()  # each of the next two uses the tokenizer
            if state.global_step in steps:
                with waiting, _undisturbed(kwargs["model"]):
                    kept.save(kwargs["model"], log.loss, kept.folder_of(out, state.global_step))
            if evaluate and loop.eval_every and distributed.rank() == 0 and state.global_step % loop.eval_every == 0:
                name = "distill" if isinstance(loop, Distill) else "train"
                with waiting, _undisturbed(kwargs["model"]), memory.explained_evaluation(state.global_step, name):
                    measures = evaluate(kwargs["model"])
                log.evaluation(state.global_step, measures)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if distributed.rank() > 0:
                return
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            value = temperature.value_of(log.loss)
            position = stream.position if stream else None
            write_json(folder / STATE, {"step": state.global_step, "temperature": value, "stream": position})

    return Follow()


@contextmanager
def _raw_vectors(model: MultiVectorEncoder) -> Iterator[None]:
    """The model without its normalisation inside: a loss then sees the projected vectors. What is saved has it."""
    from sentence_transformers.base.modules import Normalize

    last = model[-1]
    if not isinstance(last, Normalize):
        raise UsageError(f"the model ends with {type(last).__name__}", hint="train.objective=authors")
    last.forward = lambda features, **_: features
    try:
        yield
    finally:
        vars(last).pop("forward", None)


@contextmanager
def _undisturbed(model: MultiVectorEncoder) -> Iterator[None]:
    """Eval mode inside; afterwards random states, training mode and text lengths are what they were."""
    import numpy as np
    import torch

    transformer, raw = model[0], vars(model[-1]).pop("forward", None)  # an evaluation is of unit vectors
    lengths = {key: getattr(transformer, key) for key in ("query_length", "document_length", "query_expansion")}
    python, numpy, training = random.getstate(), np.random.get_state(), model.training
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            model.train(training)
            if raw is not None:
                model[-1].forward = raw
            transformer.query_expansion = None  # under fixed expansion the library refuses another query_length
            for key, value in lengths.items():
                setattr(transformer, key, value)
            random.setstate(python)
            np.random.set_state(numpy)


def _mean(losses: list[float]) -> float | None:
    return round(sum(losses) / len(losses), 4) if losses else None
