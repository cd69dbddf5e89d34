"""MUVERA's encodings against its paper's definition in plain loops, and what they promise of MaxSim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import unit_vectors, write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrrep.retrieval.engines import Place, engine_of
from xtrrep.retrieval.engines.muvera import Encoder, encoder
from xtrrep.train.maxsim import document_maxima

DIM = 12


def cell_of(token: np.ndarray, planes: np.ndarray) -> tuple[int, ...]:
    return tuple(int(float(token @ planes[:, bit]) > 0) for bit in range(planes.shape[1]))


def by_definition(made: Encoder, tokens: np.ndarray, query: bool) -> np.ndarray:
    """One set's encoding, a token and a cell at a time."""
    blocks = []
    for repetition in range(len(made.hyperplanes)):
        planes = made.hyperplanes[repetition]
        projected = [token if made.signs is None else token @ made.signs[repetition] for token in tokens]
        for number in range(made.cells):
            cell = tuple(number >> bit & 1 for bit in range(planes.shape[1]))
            own = [value for token, value in zip(tokens, projected, strict=True) if cell_of(token, planes) == cell]
            if query:
                blocks.append(sum(own, np.zeros_like(projected[0])) / len(made.hyperplanes))
            elif own:
                blocks.append(sum(own) / len(own))
            elif made.fill:
                bits = [sum(a != b for a, b in zip(cell_of(token, planes), cell, strict=True)) for token in tokens]
                blocks.append(projected[int(np.argmin(bits))])
            else:
                blocks.append(np.zeros_like(projected[0]))
    return np.concatenate(blocks)


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize(("bits", "inner"), [(0, None), (1, 4), (3, None), (4, 5)])
def test_encodings_are_the_papers_definition(bits: int, inner: int | None, fill: bool) -> None:
    rng = np.random.default_rng(3)
    made = encoder(DIM, 3, bits, inner, fill, 7)
    documents = [v.astype(np.float32) for v in unit_vectors(rng, 9, DIM, 1, 14)]
    lengths = np.array([len(v) for v in documents])
    ours = made.documents(np.concatenate(documents), lengths)
    assert ours.shape == (9, made.width())
    for document, encoding in zip(documents, ours, strict=True):
        np.testing.assert_allclose(encoding, by_definition(made, document, query=False), atol=1e-5)
        np.testing.assert_allclose(made.query(document), by_definition(made, document, query=True), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(0, 5), repetitions=st.integers(1, 4))
def test_without_projection_a_product_never_exceeds_maxsim(seed: int, bits: int, repetitions: int) -> None:
    """A query token meets the mean of document tokens, or one of them, and none of these is above its best."""
    rng = np.random.default_rng(seed)
    query, document = (unit_vectors(rng, 1, DIM, 1, 12)[0].astype(np.float32) for _ in range(2))
    made = encoder(DIM, repetitions, bits, None, True, seed)
    product = float(made.query(query) @ made.documents(document, np.array([len(document)]))[0])
    starts = np.array([0])
    best = float(document_maxima(query @ document.T, starts, np.array([len(document)])).sum())
    assert product <= best + 1e-4
    if len(document) == 1:
        assert product == pytest.approx(best, abs=1e-4)  # nothing is averaged


def test_more_cells_and_repetitions_come_closer() -> None:
    rng = np.random.default_rng(0)
    query = unit_vectors(rng, 1, DIM, 8, 9)[0].astype(np.float32)
    documents = [v.astype(np.float32) for v in unit_vectors(rng, 40, DIM, 10, 20)]
    lengths = np.array([len(v) for v in documents])
    every = np.concatenate(documents)
    truth = document_maxima(query @ every.T, np.cumsum(lengths) - lengths, lengths).sum(axis=0)

    def error(bits: int, repetitions: int) -> float:
        made = encoder(DIM, repetitions, bits, None, True, 5)
        return float(np.abs(made.documents(every, lengths) @ made.query(query) - truth).mean())

    assert error(0, 1) > error(3, 8) > error(6, 32)


def test_all_candidates_ranked_by_maxsim_are_the_exact_ranking(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts = unit_vectors(rng, 50, DIM, 0, 9)
    store = write_store(tmp_path, texts, 20)
    index = {"engine": "muvera", "repetitions": 2, "bits": 2, "inner_dim": 4, "fill": True, "seed": 1}
    engine = engine_of({**index, "candidates": 50})
    (tmp_path / "index").mkdir()
    engine.build(store, tmp_path / "index", Place("cpu", 1))  # type: ignore[union-attr, call-arg]
    query = unit_vectors(rng, 1, DIM, 5, 6)[0].astype(np.float32)
    searcher = engine.load(tmp_path / "index", store, Place("cpu", 1))  # type: ignore[union-attr, call-arg]
    numbers, scores = searcher.search([query], 60)
    truth = {i: float((query @ v.astype(np.float32).T).max(axis=1).sum()) for i, v in enumerate(texts) if len(v)}
    assert numbers[0, : len(truth)].tolist() == sorted(truth, key=lambda i: -truth[i])
    assert (numbers[0, len(truth) :] == -1).all()  # a document without a token is never found
    np.testing.assert_allclose(scores[0, : len(truth)], sorted(truth.values(), reverse=True), atol=1e-5)
    few = engine_of({**index, "candidates": 5}).load(tmp_path / "index", store, Place("cpu", 1))  # type: ignore[union-attr, call-arg]
    some, _ = few.search([query], 60)
    assert set(some[0].tolist()) == set(numbers[0].tolist())
    assert few.search([query], 3)[0].tolist() == some[:, :3].tolist()
