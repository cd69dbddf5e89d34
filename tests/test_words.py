"""Two rankings made one, against the two formulas written out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrrep.retrieval.retrieve import Setting
from xtrrep.retrieval.words import fused

ranking = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.floats(-5, 5, width=16)), max_size=8, unique_by=lambda pair: pair[0]
).map(lambda pairs: sorted(pairs, key=lambda pair: -pair[1]))


def by_definition(how: str, one: list[tuple[str, float]], two: list[tuple[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in (one, two):
        for place, (document, score) in enumerate(part):
            if how == "rank":
                gain = 1 / (61 + place)
            else:
                low, high = min(s for _, s in part), max(s for _, s in part)
                gain = 1.0 if high == low else (score - low) / (high - low)
            total[document] = total.get(document, 0.0) + gain
    return total


@pytest.mark.parametrize("how", ["rank", "score"])
@settings(max_examples=100, deadline=None)
@given(one=ranking, two=ranking, top_k=st.integers(1, 10))
def test_fusion_is_its_definition(
    how: str, one: list[tuple[str, float]], two: list[tuple[str, float]], top_k: int
) -> None:
    found = fused(one, two, Setting("colbert", None, "none", top_k, fuse=how))
    expected = by_definition(how, one, two)
    assert [score for _, score in found] == pytest.approx(sorted(expected.values(), reverse=True)[:top_k], abs=1e-5)
    assert all(score == pytest.approx(expected[document], abs=1e-5) for document, score in found)
    assert all(a[1] > b[1] for a, b in pairwise(found))  # without ties


def test_equal_sums_stand_as_in_the_first_ranking() -> None:
    setting = Setting("colbert", None, "none", 10, fuse="rank")
    assert [d for d, _ in fused([("b", 2.0), ("a", 1.0)], [("a", 2.0), ("b", 1.0)], setting)] == ["b", "a"]
