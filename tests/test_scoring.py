"""Evidence, its ranking and imputation against naive loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrrep.retrieval import evidence
from xtrrep.retrieval.device import DeviceEvidence
from xtrrep.retrieval.evidence import Evidence, Grid, Rows, from_hits, from_maxima, top
from xtrrep.retrieval.imputation import imputations
from xtrrep.retrieval.rank import Setting, rank, with_empty_slots, xtr_rank
from xtrrep.train.maxsim import document_maxima


def naive_xtr(documents: np.ndarray, scores: np.ndarray) -> dict[int, float]:
    """XTR with min imputation, word for word: dictionaries and loops."""
    total: dict[int, float] = {}
    best: list[dict[int, float]] = []
    lowest = []
    for row, row_scores in zip(documents, scores, strict=True):
        found: dict[int, float] = {}
        for d, s in zip(row.tolist(), row_scores.tolist(), strict=True):
            if not np.isnan(s):
                found[d] = max(s, found.get(d, -np.inf))
        best.append(found)
        hits = [s for s in row_scores.tolist() if not np.isnan(s)]
        lowest.append(min(hits) if hits else 0.0)
    for document in {d for found in best for d in found}:
        total[document] = sum(found.get(document, low) for found, low in zip(best, lowest, strict=True))
    return total


@st.composite
def hits(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows, width, size = draw(st.integers(1, 5)), draw(st.integers(1, 12)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    grid = draw(st.sampled_from([0.25, 1e-3]))  # a coarse grid makes ties
    scores = np.sort(np.round(rng.normal(size=(rows, width)) / grid) * grid, axis=1)[:, ::-1].astype(np.float32)
    documents = rng.integers(0, size, (rows, width))
    for i in range(rows):
        empty = int(rng.integers(0, width + 1)) if draw(st.booleans()) else 0
        scores[i, width - empty :] = np.nan
        documents[i, width - empty :] = draw(st.sampled_from([0, -1, 10**9]))  # whatever stands in an empty slot
    return documents, scores


@settings(max_examples=300, deadline=None)
@given(hits())
def test_xtr_rank_is_the_naive_loop(pair: tuple[np.ndarray, np.ndarray]) -> None:
    documents, scores = pair
    expected = naive_xtr(documents, scores)
    found, values = xtr_rank(documents, scores, top_k=10**6)
    assert set(found.tolist()) == set(expected)
    for document, value in zip(found.tolist(), values.tolist(), strict=True):
        assert value == pytest.approx(expected[document], abs=1e-5)
    order = sorted(zip((-values).tolist(), found.tolist(), strict=True))
    assert [d for _, d in order] == found.tolist()  # best first, ties by document number


def test_by_hand() -> None:
    """Two query tokens, three documents: 0 hit by both, 1 by the first, 2 by the second."""
    documents = np.array([[0, 1, 0], [2, 0, 2]])
    scores = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]], np.float32)
    found, values = xtr_rank(documents, scores)
    assert found.tolist() == [0, 2, 1]
    np.testing.assert_allclose(values, [0.9 + 0.5, 0.7 + 0.6, 0.8 + 0.4], atol=1e-6)


def test_nothing_retrieved() -> None:
    found, values = xtr_rank(np.zeros((2, 3), int), np.full((2, 3), np.nan, np.float32))
    assert len(found) == len(values) == 0


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=30), st.integers(1, 35))
def test_top_is_a_sort(values: list[float], k: int) -> None:
    numbers = np.arange(len(values)) * 3
    scores = np.array(values, np.float32)
    found, best = top(numbers, scores, k)
    expected = sorted(zip(-scores, numbers, strict=True))[:k]
    assert found.tolist() == [n for _, n in expected]
    assert best.tolist() == [-s for s, _ in expected]


def naive_ranking(
    documents: np.ndarray, scores: np.ndarray, setting: Setting, maxsim: np.ndarray
) -> tuple[list[tuple[int, float]], tuple[int, int, int]]:
    """The ranking, and how many candidates, unfilled cells and empty slots there are: dictionaries and loops."""
    k_prime = setting.k_prime or 0
    width = k_prime if setting.zero_missing else scores.shape[1]  # what an imputation sees
    rows = []
    empty = 0
    for row, row_scores in zip(documents.tolist(), scores.tolist(), strict=True):
        hits = [(d, s) for d, s in zip(row, row_scores, strict=True) if not np.isnan(s)]
        empty += k_prime - len(hits)
        if setting.zero_missing:
            hits += [(0, 0.0)] * (k_prime - len(hits))
        rows.append(sorted(hits, key=lambda hit: -hit[1]))
    candidates = sorted({d for row in rows for d, _ in row})
    total, unfilled = {}, 0
    for document in candidates:
        sums = []
        for row in rows:
            own = [s for d, s in row if d == document]
            unfilled += not own
            padded = np.array([[s for _, s in row] + [np.nan] * (width - len(row))], np.float32)
            sums.append(max(own) if own else float(imputations[setting.imputation](padded)[0]))
        total[document] = sum(sums) if setting.scoring == "xtr" else float(maxsim[document])
    ranked = sorted(total.items(), key=lambda pair: (-np.float32(pair[1]), pair[0]))
    return ranked[: setting.depth], (len(candidates), unfilled, empty)


def ranked(
    evidence: Evidence, setting: Setting, maxsim: np.ndarray
) -> tuple[list[tuple[int, float]], tuple[int, int, int]]:
    def exact(known: Evidence) -> object:
        whole = torch.from_numpy(maxsim)
        return whole if isinstance(known, DeviceEvidence) else maxsim[known.candidates]

    (numbers, scores), counts = rank(evidence, setting, exact)
    candidates = with_empty_slots(evidence, setting).candidates
    assert counts.returned == counts.candidates == len(candidates)
    assert (np.diff(candidates) > 0).all()
    found = list(zip(numbers.tolist(), scores.tolist(), strict=True))
    return found, (counts.candidates or 0, counts.imputed_cells or 0, counts.missing_slots or 0)


SETTINGS = [
    Setting(scoring, None, imputation, zero_missing=zero)
    for zero in (False, True)
    for scoring, imputation in (("colbert", "min"), *(("xtr", name) for name in imputations.entries()))
]


@settings(max_examples=150, deadline=None)
@given(hits(), st.sampled_from(SETTINGS), st.integers(0, 2), st.integers(1, 12))
def test_every_producer_ranks_as_the_naive_loop(
    pair: tuple[np.ndarray, np.ndarray], setting: Setting, wider: int, top_k: int
) -> None:
    """Hits on a grid, row by row and renumbered, on a device; ties, empty slots, k' beyond the width, any imputation.

    Scores are multiples of 2^-10, so that every sum is exact, whatever its order.
    """
    documents, scores = pair
    scores = (np.round(scores * 1024) / 1024).astype(np.float32)
    setting = replace(setting, k_prime=scores.shape[1] + wider, top_k=top_k)
    k_prime, size = setting.k_prime or 0, 10
    maxsim = np.round(np.random.default_rng(0).normal(size=size) * 4).astype(np.float32) / 4
    expected, counts = naive_ranking(documents, scores, setting, maxsim)
    found = {"grid": from_hits(documents, scores, k_prime)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "GRID_CELLS", 0)
        patch.setattr(evidence, "GRID_CELLS_A_HIT", 0)
        found["rows"] = from_hits(documents, scores, k_prime)
        patch.setattr(evidence, "LARGEST_DENSE", 0)
        patch.setattr(evidence, "NUMBERS_A_HIT", 0)
        found["renumbered"] = from_hits(documents, scores, k_prime)
    if not np.isnan(scores).all():
        assert [type(known) for known in found.values()] == [Grid, Rows, Rows]
    cells = np.full((len(scores), size), -np.inf, np.float32)
    for t, d in np.ndindex(*cells.shape):
        cells[t, d] = np.nanmax(np.where(documents[t] == d, scores[t], -np.inf), initial=-np.inf)
    best = torch.from_numpy(scores.copy())
    found["device"] = DeviceEvidence(torch.from_numpy(cells), best, k_prime - (~np.isnan(scores)).sum(axis=1))
    for name, known in found.items():
        ours, our_counts = ranked(known, setting, maxsim)
        assert our_counts == counts, name
        assert [d for d, _ in ours] == [d for d, _ in expected], name
        np.testing.assert_allclose([s for _, s in ours], [s for _, s in expected], atol=1e-6, err_msg=name)
        for document in range(size):
            own = np.where(np.isneginf(cells[:, document]), np.nan, cells[:, document])
            np.testing.assert_array_equal(known.best_of(document), own)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    setting=st.sampled_from(SETTINGS),
    k_prime=st.integers(1, 40),
    tokens=st.integers(1, 4),
    device=st.booleans(),
)
def test_maxima_rank_as_the_naive_loop(seed: int, setting: Setting, k_prime: int, tokens: int, device: bool) -> None:
    """Exhaustive maxima, here and on a device: documents without tokens, and k' beyond the collection."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, 8)
    lengths[3] = 4
    owner = np.repeat(np.arange(8), lengths)
    # No two similarities of a query token are equal: at the k'-th score maxima keep every tie, and hits do not.
    similarities = np.stack([rng.permutation(len(owner)) - 7 for _ in range(tokens)]).astype(np.float32) / 8
    maxima = document_maxima(similarities, np.cumsum([0, *lengths[:-1]]), lengths)
    order = np.argsort(-similarities, axis=1)[:, :k_prime]
    scores = np.take_along_axis(similarities, order, axis=1)
    setting = replace(setting, k_prime=k_prime, top_k=20)
    expected = naive_ranking(owner[order], scores, setting, maxsim := maxima.sum(axis=0))
    if device:
        cells = np.where(maxima >= scores[:, -1:], maxima, -np.inf)
        short = np.full(tokens, max(0, k_prime - len(owner)))
        known: Evidence = DeviceEvidence(torch.from_numpy(cells), torch.from_numpy(scores.copy()), short)
    else:
        known = from_maxima(maxima, scores[:, : k_prime if k_prime < len(owner) else 1], k_prime, len(owner))
    ours, counts = ranked(known, setting, maxsim)
    assert counts == expected[1]
    assert [d for d, _ in ours] == [d for d, _ in expected[0]]
    np.testing.assert_allclose([s for _, s in ours], [s for _, s in expected[0]], atol=1e-6)


def test_ragged_lists_and_holes() -> None:
    """Rows of different length, and a NaN before a hit, mean what a padded rectangle means."""
    ragged = xtr_rank([[0, 1, 0], [2]], [[0.9, 0.8, 0.7], [0.6]])
    assert ragged[0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(ragged[1], [0.9 + 0.6, 0.8 + 0.6, 0.7 + 0.6], atol=1e-6)
    padded = xtr_rank(np.array([[0, 1, 0], [2, -5, 99]]), np.array([[0.9, 0.8, 0.7], [0.6, np.nan, np.nan]]))
    holes = xtr_rank(
        np.array([[7, 0, 1, 0], [-1, 2, 4, 4]]),
        np.array([[np.nan, 0.9, 0.8, 0.7], [np.nan, 0.6, np.nan, np.nan]]),
    )
    for other in (padded, holes):
        np.testing.assert_array_equal(other[0], ragged[0])
        np.testing.assert_array_equal(other[1], ragged[1])
    assert xtr_rank([], [])[0].tolist() == []
    assert xtr_rank([[]], [[]])[0].tolist() == []
    big = xtr_rank(np.array([[10**12, 5]]), np.array([[0.9, 0.1]]))  # memory follows the hits, not the numbers
    assert big[0].tolist() == [10**12, 5]


@pytest.mark.parametrize(
    ("documents", "scores", "words", "says"),
    [
        ([[0, 1]], [[0.5]], {}, "same number"),
        (np.zeros((2, 3), int), np.zeros((2, 2)), {}, "must both be"),
        (np.array([[-1]]), np.array([[0.5]]), {}, "document -1"),
        (np.array([[0.5]]), np.array([[0.5]]), {}, "integers"),
        (np.array([[0]]), np.array([[0.5]]), {"top_k": 0}, "top_k"),
    ],
)
def test_hits_that_do_not_fit(documents: object, scores: object, words: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        xtr_rank(documents, scores, **words)  # type: ignore[arg-type]


def test_document_maxima_is_the_naive_loop() -> None:
    rng = np.random.default_rng(0)
    query = rng.normal(size=(5, 8)).astype(np.float32)
    documents = [rng.normal(size=(n, 8)).astype(np.float32) for n in (3, 1, 7, 2)]
    maxima = document_maxima(query @ np.concatenate(documents).T, np.cumsum([0, 3, 1, 7]))
    expected = [[max(float(q @ t) for t in d) for d in documents] for q in query]
    np.testing.assert_allclose(maxima, expected, rtol=1e-5)
