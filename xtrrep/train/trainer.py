"""The training loop: sentence-transformers' trainer with our loss, progress, checkpoints and resume.

Runs inside a stage's partial folder: `checkpoints/` is found again by the same command after a kill, and deleted at
the end. What stays is `model/` (loads with plain sentence-transformers), `log.jsonl` and `loss.csv`.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.config import Precision, Train
from xtrrep.console import DataError, progress, say
from xtrrep.model.encoder import check_length, resolve_precision
from xtrrep.train.losses import contrastive

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from sentence_transformers import MultiVectorEncoder


def fit(
    model: MultiVectorEncoder, triples: Dataset | IterableDataset, cfg: Train, out: Path, device: str
) -> dict[str, Any]:
    """Train `model` on (query, positive, negative) and save it to `out / "model"`.

    Returns facts for the manifest: steps, pairs, first and last loss. Raises DataError when there are fewer triples
    than one batch, or when the loss stops being a number.
    """
    import torch
    from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

    check_length(model, "train.n_doc", cfg.n_doc)
    size = len(triples) if hasattr(triples, "__len__") else None
    if size is not None and size < cfg.batch_size:
        raise DataError(f"{size} training triples do not fill one batch of {cfg.batch_size}", hint="train.batch_size=")
    precision = resolve_precision(cfg.precision, device)
    checkpoints = out / "checkpoints"
    arguments = MultiVectorEncoderTrainingArguments(
        output_dir=str(checkpoints),
        max_steps=cfg.steps,
        per_device_train_batch_size=cfg.batch_size,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(cfg.warmup_ratio * cfg.steps),
        weight_decay=cfg.weight_decay,
        max_grad_norm=cfg.grad_norm,
        bf16=precision is Precision.bf16,
        fp16=precision is Precision.fp16,
        use_cpu=device == "cpu",
        max_length={"document": cfg.n_doc},
        save_strategy="steps",
        save_steps=cfg.checkpoint_every,
        save_total_limit=2,
        logging_steps=1 if cfg.steps <= 1000 else 10,
        logging_nan_inf_filter=False,
        seed=cfg.seed,
        data_seed=cfg.seed,
        dataloader_drop_last=True,
        disable_tqdm=True,
        report_to="none",
    )
    torch.manual_seed(cfg.seed)
    out.mkdir(parents=True, exist_ok=True)
    # An example of ours in the card keeps the library from picking some, with a bar of its own across ours.
    model.model_card_data.widget = [{"text": "shortest path between two nodes of a graph"}]
    resume = _last_checkpoint(checkpoints)
    if resume is not None:
        say(f"  resuming from {resume.name} of {cfg.steps}")
    with progress(cfg.steps, "train", "step") as bar:
        trainer = MultiVectorEncoderTrainer(
            model=model,
            args=arguments,
            train_dataset=triples,
            loss=contrastive(model, cfg),
            callbacks=[_follow(bar, out / "log.jsonl", resume)],
        )
        _drop_default_printer(trainer)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    losses = read_log(out / "log.jsonl")
    with (out / "loss.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "loss", "learning_rate", "grad_norm"])
        writer.writerows([row["step"], row["loss"], row["learning_rate"], row["grad_norm"]] for row in losses)
    model.save_pretrained(str(out / "model"))
    shutil.rmtree(checkpoints, ignore_errors=True)
    window = max(1, len(losses) // 10)
    return {
        "units": {"steps": cfg.steps},
        "triples": size,
        "precision": precision.value,
        "device": device,
        "torch_threads": torch.get_num_threads(),
        "loss_first": round(sum(row["loss"] for row in losses[:window]) / window, 4),
        "loss_last": round(sum(row["loss"] for row in losses[-window:]) / window, 4),
        "ln_pool": round(math.log(2 * cfg.batch_size), 4),
    }


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end (the trainer state is its last file)."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _drop_default_printer(trainer: Any) -> None:
    """The stock callback prints every log line to stdout, which is for data."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _follow(bar: Any, log: Path, resume: Path | None) -> Any:
    """A trainer callback that moves the bar, appends to the log and stops at a loss that is no number."""
    from transformers import TrainerCallback

    start = int(resume.name.rsplit("-", 1)[1]) if resume else 0
    kept = [row for row in read_log(log) if row["step"] <= start]
    log.write_text("".join(json.dumps(row) + "\n" for row in kept))
    bar.update(start)

    class Follow(TrainerCallback):  # type: ignore[misc]  # the library is not followed, so its base is Any
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.update(1)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            row = {"step": state.global_step, "time": round(time.time(), 3)}
            row |= {key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm")}
            if not math.isfinite(row["loss"]):
                raise DataError(
                    f"the loss is {row['loss']} at step {state.global_step}",
                    hint="a lower train.learning_rate or a higher train.temperature; the last checkpoint is kept",
                )
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix_str(f"loss {row['loss']:.3f}", refresh=False)

    return Follow()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a training log; a last line cut short by a kill is dropped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
