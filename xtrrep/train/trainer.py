"""The training loop: sentence-transformers' trainer with our losses, a log, checkpoints, resume and verdicts.

Runs inside a stage's partial folder. The same command finds `checkpoints/` again after a kill and goes on to the
weights of an unbroken run; they are deleted at the end. What stays:

    model/            the encoder; loads with plain sentence-transformers
    log.jsonl         a line a step, and one an evaluation
    loss.csv          step, loss, learning_rate, grad_norm, temperature
    eval.csv          step and every measure, where there was an evaluation
    tensorboard/      event files (machine.tensorboard)
    finished.json     the config and the facts, written when all else is

A run whose loss stops being a number ends there, and is a result: `diverged_at` in its facts, and the last good
checkpoint's weights in model/.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.artifacts import digest, write_json
from xtrrep.config import Distill, Loop, Machine, Precision, plain
from xtrrep.console import DataError, UsageError, progress, say
from xtrrep.model.encoder import check_length, resolve_precision
from xtrrep.train import memory, temperature

if TYPE_CHECKING:
    import torch
    from datasets import Dataset, IterableDataset
    from sentence_transformers import MultiVectorEncoder

Evaluate = Callable[["MultiVectorEncoder"], dict[str, float]]
Record = Callable[[int, dict[str, float]], None]

COLUMNS = ["step", "loss", "learning_rate", "grad_norm", "temperature"]
STATE = "xtrrep_state.json"  # a checkpoint's last file: with it the checkpoint is complete
LABELS = ("label", "labels", "score", "scores")  # columns that sentence-transformers reads as labels, not as texts

# How often something is written or looked at, and where the data lies, say nothing about the weights.
NOT_SEMANTIC = ("checkpoint_every", "eval_every", "eval_data", "data", "triples", "lists")


class Diverged(Exception):
    """The loss, its gradient or the temperature stopped being usable at a step (counted from 1)."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"{reason} at step {step}")
        self.step = step
        self.reason = reason


def fit(
    model: MultiVectorEncoder,
    dataset: Dataset | IterableDataset,
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
    Dataset is shuffled by loop.seed, anew in every pass. An IterableDataset is read in its own order, as the study read
    its triples, and from the start again where it ends; its position is kept in the checkpoints, so it must be one that
    resumes exactly (no shuffle buffer). The last rows of a pass that fill no batch are left out.

    `evaluate` is called with the model every loop.eval_every steps; weights do not depend on it.

    Returns facts for the manifest: units, triples, precision, device, torch_threads, loss_first and loss_last (means of
    the first and last tenth of the steps), ln_pool (loss of a guess among the batch's documents), temperature_first and
    temperature_last, model_step (the step of the weights saved), diverged_at (a step, or None).

    Raises DataError where the data do not fill a batch, memory runs out (naming what would fit), or the checkpoints in
    `out` are of another config, and UsageError for a length above the backbone's.
    """
    import torch

    if getattr(loss, "model", model) is not model:
        raise ValueError("the loss holds another model than the one to train")
    machine = machine or Machine()
    name = "distill" if isinstance(loop, Distill) else "train"
    check_length(model, f"{name}.n_doc", loop.n_doc)
    size, documents = _check_dataset(dataset, loop, name)
    precision = resolve_precision(loop.precision, device)
    identity = _identity(model, loop, loss, precision)
    out.mkdir(parents=True, exist_ok=True)
    if (out / "finished.json").exists():
        finished = _same_config(out / "finished.json", identity)
        say("  already trained")
        return dict(finished["facts"])
    resume = _resume(out / "checkpoints", identity)
    first_temperature = temperature.value_of(loss)
    start = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    diverged = None
    try:
        with memory.explained(loop, machine, documents):
            _train(model, dataset, loop, out, device, loss, machine, evaluate, precision, resume)
    except Diverged as error:
        diverged = error
        model_step = _load_last_good(model, loss, out / "checkpoints", start, first_temperature)
        kept = f"the weights of step {model_step}" if model_step else "the initial weights: there was no checkpoint yet"
        say(f"  diverged: {error}; the model keeps {kept}")
    rows = read_log(out / "log.jsonl", "loss")
    _write_csv(out / "loss.csv", COLUMNS, rows)
    evaluations = read_log(out / "log.jsonl", "eval")
    if evaluations:
        names = sorted({name for row in evaluations for name in row["eval"]})
        _write_csv(out / "eval.csv", ["step", *names], [row["eval"] | {"step": row["step"]} for row in evaluations])
    shutil.rmtree(out / "model", ignore_errors=True)
    model.save_pretrained(str(out / "model"))
    temperature.save(loss, out / "model")
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    window = max(1, len(losses) // 10)
    facts = {
        "units": {"steps": diverged.step if diverged else loop.steps},
        "triples": size,
        "precision": precision.value,
        "device": device,
        "torch_threads": torch.get_num_threads(),
        "loss_first": _mean(losses[:window]),
        "loss_last": _mean(losses[-window:]),
        "ln_pool": round(math.log(loop.batch_size * documents), 4),
        "temperature_first": first_temperature,
        "temperature_last": temperature.value_of(loss),
        "model_step": model_step if diverged else loop.steps,
        "diverged_at": diverged.step if diverged else None,
        "diverged_why": diverged.reason if diverged else None,
    }
    # Before the checkpoints go: killed here or later, the same command has nothing left to train.
    write_json(out / "finished.json", {"config": identity, "facts": facts})
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return facts


def _check_dataset(dataset: Dataset | IterableDataset, loop: Loop, name: str) -> tuple[int | None, int]:
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
        raise DataError(f"training needs a query and at least one document {found}", hint="query, positive, negative")
    size = len(dataset) if hasattr(dataset, "__len__") else None
    if size is not None and size < loop.batch_size:
        what = "queries" if isinstance(loop, Distill) else "triples"
        raise DataError(
            f"{size} training {what} do not fill one batch of {loop.batch_size}", hint=f"{name}.batch_size={size}"
        )
    return size, documents


def _train(
    model: MultiVectorEncoder,
    dataset: Dataset | IterableDataset,
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

    start: dict[str, Any] = _read_state(resume) if resume else {"step": 0, "stream": None}
    if resume:
        say(f"  resuming from step {start['step']} of {loop.steps}")
        if temperature.is_learned(loss):
            temperature.restore(loss, start["temperature"])
    if resume and start["step"] >= loop.steps:
        # Killed between the last step and the saved model. The library would train one step more.
        model.load_state_dict(_weights(resume))
        return
    torch.manual_seed(loop.seed)
    # An example of ours in the card keeps the library from picking some, with a bar of its own across ours.
    model.model_card_data.widget = [{"text": "shortest path between two nodes of a graph"}]
    with ExitStack() as stack:
        _prepare(model, machine, stack)
        records = _recorders(machine, out, loop, start["step"], stack)
        bar = stack.enter_context(progress(loop.steps, "train", "step"))
        trainer, stream = _trainer(model, dataset, loop, out, device, loss, precision, start["stream"])
        log = _Log(out / "log.jsonl", loss, precision, start["step"], records)
        trainer.add_callback(_callback(bar, log, loop, stream, evaluate))
        trainer.remove_callback(PrinterCallback)  # prints every log line to stdout, which is for data
        bar.update(start["step"])
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except Exception as error:
            if machine.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = str(error).strip().partition("\n")[0]
                raise DataError(f"torch.compile failed: {reason}", hint="machine.compile=false") from error
            raise


def _prepare(model: MultiVectorEncoder, machine: Machine, stack: ExitStack) -> None:
    """Gradient checkpointing and compilation, both of the backbone, in place, and undone when `stack` closes."""
    import torch

    backbone = model[0].model
    if machine.gradient_checkpointing:
        try:
            backbone.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise UsageError(f"machine.gradient_checkpointing: {error}", hint="set it to false") from None
        stack.callback(backbone.activation_checkpointing_disable)
    if machine.compile:
        # Not backbone.compile(), which replaces __call__: sentence-transformers calls forward itself.
        backbone.forward = torch.compile(backbone.forward, dynamic=True)  # batches differ in length
        stack.callback(delattr, backbone, "forward")


def _trainer(
    model: MultiVectorEncoder,
    dataset: Dataset | IterableDataset,
    loop: Loop,
    out: Path,
    device: str,
    loss: torch.nn.Module,
    precision: Precision,
    position: Any,
) -> tuple[Any, Stream | None]:
    """sentence-transformers' trainer, and the stream it reads where `dataset` is one."""
    from datasets import IterableDataset
    from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

    streamed = isinstance(dataset, IterableDataset)
    own_rate = {r"^temperature$": loop.temperature_lr} if temperature.is_learned(loss) and loop.temperature_lr else {}
    arguments = MultiVectorEncoderTrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=loop.steps,
        per_device_train_batch_size=loop.batch_size,
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

    class Trainer(MultiVectorEncoderTrainer):  # type: ignore[misc]  # the library is not followed, so its base is Any
        def get_train_dataloader(self) -> Any:
            return super().get_train_dataloader() if stream is None else stream

        def get_decay_parameter_names(self, model: Any) -> list[str]:
            # Decay would pull the temperature to 0.
            return [name for name in super().get_decay_parameter_names(model) if name != "temperature"]

    stream = None
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, loss=loss)
    if streamed:
        stream = Stream(dataset, loop.batch_size, trainer.data_collator, position)
    return trainer, stream


class Stream:
    """Batches of a stream in its own order, from the start again where it ends; `position` is after the last one given.

    The library resumes a stream by reading and tokenising it again up to the step, and loses its place in a second
    pass. Here the dataset's own state is kept instead, which costs at most the rest of one shard.
    """

    def __init__(
        self, dataset: IterableDataset, batch_size: int, collate: Callable[[list[Any]], Any], position: Any = None
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.collate = collate
        self.position = position

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
                    yield self.collate(rows)
                    rows = []
            if not batches and begun is None:
                raise DataError(
                    f"{len(rows)} streamed rows do not fill one batch of {self.batch_size}", hint="a smaller batch_size"
                )
            begun = None


class _Log:
    """log.jsonl and what listens beside it; a resumed run drops the rows after its checkpoint."""

    def __init__(
        self, path: Path, loss: torch.nn.Module, precision: Precision, start: int, records: list[Record]
    ) -> None:
        self.path = path
        self.loss = loss
        # fp16's loss scale is found by overflowing: an infinite gradient skips that step, and is no divergence.
        self.checks_gradient = precision is not Precision.fp16
        self.records = records
        kept = [row for row in read_log(path) if row["step"] <= start]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def step(self, step: int, logs: dict[str, float]) -> None:
        """Write a step's row. Raises Diverged."""
        values = {key: float(logs[key]) for key in COLUMNS[1:4]} | {"temperature": temperature.value_of(self.loss)}
        reason = self._why(values)
        self._write(step, _finite(values) | ({"diverged": reason} if reason else {}))
        if reason:
            raise Diverged(step, reason)
        for record in self.records:
            record(step, {f"train/{key}": value for key, value in values.items() if value is not None})

    def evaluation(self, step: int, measures: dict[str, float]) -> None:
        self._write(step, {"eval": _finite(measures)})
        for record in self.records:
            record(step, {f"eval/{key}": value for key, value in measures.items()})

    def _why(self, values: dict[str, Any]) -> str | None:
        if not math.isfinite(values["loss"]):
            return f"the loss is {values['loss']}"
        if self.checks_gradient and not math.isfinite(values["grad_norm"]):
            return f"the gradient's norm is {values['grad_norm']}"
        if values["temperature"] is not None and not 0 < values["temperature"] < math.inf:
            return f"the temperature is {values['temperature']:.4g}"
        return None

    def _write(self, step: int, values: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | values) + "\n")


def _callback(bar: Any, log: _Log, loop: Loop, stream: Stream | None, evaluate: Evaluate | None) -> Any:
    """The trainer's callback: bar, log, evaluation, and the last file of each checkpoint.

    The trainer calls on_step_end, on_log and on_save in this order: what `log` refuses is never saved.
    """
    from transformers import TrainerCallback

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
            if evaluate and loop.eval_every and state.global_step % loop.eval_every == 0:
                with _undisturbed(kwargs["model"]), memory.explained_evaluation(state.global_step):
                    measures = evaluate(kwargs["model"])
                log.evaluation(state.global_step, measures)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            value = temperature.value_of(log.loss)
            position = stream.position if stream else None
            write_json(folder / STATE, {"step": state.global_step, "temperature": value, "stream": position})

    return Follow()


@contextmanager
def _undisturbed(model: MultiVectorEncoder) -> Iterator[None]:
    """Eval mode inside; afterwards random states, training mode and text lengths are what they were."""
    import numpy as np
    import torch

    transformer = model[0]
    lengths = {key: getattr(transformer, key) for key in ("query_length", "document_length", "query_expansion")}
    python, numpy, training = random.getstate(), np.random.get_state(), model.training
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            model.train(training)
            transformer.query_expansion = None  # under fixed expansion the library refuses another query_length
            for key, value in lengths.items():
                setattr(transformer, key, value)
            random.setstate(python)
            np.random.set_state(numpy)


def _recorders(machine: Machine, out: Path, loop: Loop, start: int, stack: ExitStack) -> list[Record]:
    """What else receives each row. Raises DataError for wandb that is not installed; tensorboard is then left out."""
    records: list[Record] = []
    if machine.tensorboard and importlib.util.find_spec("tensorboard") is None:
        say("  no event files: tensorboard is not installed (pip install tensorboard, or machine.tensorboard=false)")
    elif machine.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: what a killed run wrote after its checkpoint disappears from the curves.
        writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1 if start else None)
        stack.callback(writer.close)

        def to_tensorboard(step: int, values: dict[str, float]) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)

        records.append(to_tensorboard)
    if machine.wandb:
        if importlib.util.find_spec("wandb") is None:
            raise DataError(
                "machine.wandb=true, but wandb is not installed", hint="pip install wandb, or machine.wandb=false"
            )
        wandb = importlib.import_module("wandb")
        # The same id for the same folder: a resumed run goes on in its own curve.
        run = wandb.init(project="xtrrep", dir=str(out), id=digest(str(out)), resume="allow", config=plain(loop))
        stack.callback(run.finish)
        records.append(lambda step, values: run.log(values, step=step))
    return records


def _identity(
    model: MultiVectorEncoder, loop: Loop, loss: torch.nn.Module, precision: Precision
) -> dict[str, dict[str, Any]]:
    """What a checkpoint was made with, in JSON's types."""
    settings = {key: value for key, value in plain(loop).items() if key not in NOT_SEMANTIC}
    settings["precision"] = precision.value
    describe = getattr(loss, "get_config_dict", dict)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = {type(loop).__name__.lower(): settings, "loss": describe(), "model": {"parameters": parameters}}
    return dict(json.loads(json.dumps(found, default=str)))


def _same_config(path: Path, identity: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of a JSON file with a `config`. Raises DataError where that is another, naming what differs."""
    hint = f"rm -r {path.parent} to start again, or go on with the config that it was begun with"
    try:
        content = json.loads(path.read_text())
        there = {f"{part}.{key}": value for part, values in content["config"].items() for key, value in values.items()}
    except FileNotFoundError:
        raise DataError(f"{path.parent} holds checkpoints but no {path.name}", hint=hint) from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is damaged", hint=hint) from None
    here = {f"{part}.{key}": value for part, values in identity.items() for key, value in values.items()}
    differing = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    if differing:
        shown = "; ".join(f"{key}: {there.get(key)} there, {here.get(key)} now" for key in differing[:4])
        raise DataError(f"{path.parent} is of another config ({shown})", hint=hint)
    return dict(content)


def _resume(checkpoints: Path, identity: dict[str, dict[str, Any]]) -> Path | None:
    """The newest complete checkpoint, of this config; a folder without one is begun anew."""
    found = _complete_checkpoints(checkpoints)
    if found:
        _same_config(checkpoints / "config.json", identity)
        return found[0]
    shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.mkdir(parents=True)
    write_json(checkpoints / "config.json", {"config": identity})
    return None


def _complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / STATE).exists()]
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)


def _read_state(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / STATE).read_text()))


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from sentence_transformers import MultiVectorEncoder

    return dict(MultiVectorEncoder(str(checkpoint), device="cpu").state_dict())


def _load_last_good(
    model: MultiVectorEncoder,
    loss: torch.nn.Module,
    checkpoints: Path,
    initial: dict[str, torch.Tensor],
    initial_temperature: float | None,
) -> int:
    """Load the newest checkpoint whose weights are all finite, else the initial weights. Returns its step, or 0."""
    step, weights, value = 0, initial, initial_temperature
    for checkpoint in _complete_checkpoints(checkpoints):
        candidate = _weights(checkpoint)
        if all(bool(tensor.isfinite().all()) for tensor in candidate.values()):
            state = _read_state(checkpoint)
            step, weights, value = state["step"], candidate, state["temperature"]
            break
    model.load_state_dict(weights)
    if temperature.is_learned(loss) and value is not None:
        temperature.restore(loss, value)
    return step


def read_log(path: Path, key: str | None = None) -> list[dict[str, Any]]:
    """The rows of a training log, those that have `key` (`loss` or `eval`); a line cut short by a kill ends it."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [row for row in rows if key is None or key in row]


def _write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Empty where a row has no number."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(column) for column in columns] for row in rows)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}


def _mean(losses: list[float]) -> float | None:
    return round(sum(losses) / len(losses), 4) if losses else None
