"""How sparse a k_train is: shares against naive counting, and each scale's mapping against what was recorded."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xtrrep import artifacts
from xtrrep.config import compose, k_trains, options, sparse_as
from xtrrep.model.encoder import build
from xtrrep.pipeline.notes import notes_of
from xtrrep.train.density import Batch, embed, shares
from xtrrep.train.xtr import xtr_scores

RECORDED = Path(__file__).parent.parent / "results" / "recorded" / "density.csv"
STUDYS = {"xtr_k64": 64, "xtr_k128": 128, "xtr_k256": 256, "xtr_k512": 512}


def made(seed: int = 0) -> Batch:
    """Three queries of four tokens, five documents of one to five, with scores that tie."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([1, 5, 2, 4, 3])
    numbers = [torch.randint(-2, 3, shape, generator=draw).float() for shape in ((3, 4, 6), (int(lengths.sum()), 6))]
    return Batch(numbers[0], numbers[1], torch.repeat_interleave(lengths))


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_those_of_naive_counting(seed: int) -> None:
    batch, ks = made(seed), (1, 2, 7, 15, 99)
    for k, share in shares(batch, ks).items():
        retrieved, pairs = 0, 0
        for token in batch.queries.reshape(-1, 6):
            scores = (batch.tokens @ token).tolist()
            threshold = sorted(scores, reverse=True)[min(k, len(scores)) - 1]
            for document in range(batch.documents):
                own = [score for score, owner in zip(scores, batch.owners.tolist(), strict=True) if owner == document]
                retrieved, pairs = retrieved + (max(own) >= threshold), pairs + 1
        assert share == pytest.approx(retrieved / pairs)
    assert shares(batch, ks)[99] == 1


def test_a_pair_is_retrieved_where_the_objective_says_so() -> None:
    """A document that no query token retrieves scores 0; with one query token that is one pair."""
    draw = torch.Generator().manual_seed(1)
    queries, documents = torch.rand((6, 1, 8), generator=draw), torch.rand((6, 1, 3, 8), generator=draw)
    batch = Batch(queries, documents.reshape(-1, 8), torch.arange(6).repeat_interleave(3))
    for k in (1, 4, 9):
        assert shares(batch, [k])[k] == pytest.approx(
            float((xtr_scores(queries, documents, k_train=k) != 0).float().mean())
        )


def test_a_batch_is_embedded_as_it_is_trained() -> None:
    cfg = compose(["scale=demo", "model.layers=1"]).model
    model = build(cfg, "cpu")
    rows = [
        {"query": "a path", "positive": "word " * 50, "negative": "of, (edges)."},
        {"query": "b", "positive": "c", "negative": "d e"},
    ]
    batch = embed(model, rows, 20)
    assert batch.queries.shape == (2, cfg.n_query, cfg.dim)  # [MASK] expansion scores too
    assert torch.bincount(batch.owners).tolist() == [20, 4, 3, 4]  # cut, and without punctuation
    assert torch.linalg.vector_norm(batch.tokens, dim=1) == pytest.approx(torch.ones(31), abs=1e-5)


def recorded() -> dict[tuple[str, int], dict[str, str]]:
    with RECORDED.open(newline="", encoding="utf-8") as file:
        return {
            (row["setting"].removeprefix("scale="), int(row["k_train of the study"])): row
            for row in csv.DictReader(file)
        }


@pytest.mark.parametrize("scale", options("scale"))
def test_each_scale_names_the_studys_models_by_the_recorded_share(scale: str) -> None:
    rows = recorded()
    for name, study in STUDYS.items():
        row, train = rows[scale, study], compose([f"scale={scale}", f"config={name}"]).train
        assert k_trains(train) == (int(row["nearest k_train here"]),)
        assert (train.batch_size * 2, sparse_as(train)) == (
            int(row["documents"]),
            "" if scale == "paper" else str(study),
        )
        assert float(row["its share"]) == pytest.approx(float(row["share in the study's batch"]), abs=0.005)
    assert k_trains(compose(["scale=paper", "setup=II", "config=xtr_multi"]).train) == (128, 256, 512)
    multi = compose([f"scale={scale}", "setup=II", "config=xtr_multi"]).train
    assert len(k_trains(multi)) == 3
    assert sparse_as(multi) == ("" if scale == "paper" else "128, 256, 512")


def test_a_number_is_a_number() -> None:
    train = compose(["scale=demo", "config=xtr_k128", "train.k_train=128"]).train
    assert (k_trains(train), sparse_as(train)) == ((128,), "")
    assert sparse_as(compose(["config=colbert"]).train) == ""


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (["scale=demo"], ["xtr_k128 has k_train=14 at scale=demo, as sparse as the study's 128"]),
        (["scale=paper"], []),
        (["train.k_train=128"], []),
        (["config=colbert"], []),
    ],
)
def test_results_show_both_numbers(words: list[str], notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "read_manifest", lambda folder: {"facts": {}})
    plan: Any = SimpleNamespace(cfg=compose(words), steps=[SimpleNamespace(stage=SimpleNamespace(name="train"))])
    assert notes_of(plan, {"train": Path("train")}).get("train", []) == notes
