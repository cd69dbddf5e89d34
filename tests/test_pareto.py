"""Settings of engines: what is varied in which order, what a budget leaves out, what is dominated, what is advised."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrrep.console import UsageError
from xtrrep.experiments import pareto, rounds
from xtrrep.experiments.axes import round_of
from xtrrep.experiments.definition import Row, load_analysis
from xtrrep.experiments.execute import HERE, Outcome
from xtrrep.experiments.planning import Plans
from xtrrep.experiments.recommend import Setting, Wish, choose, parse_wish
from xtrrep.report.tradeoff import Curve, Traded, tradeoff
from xtrrep.retrieval.engines import TextEngine, engines

WORDS = {"model.source": "untrained"}


def test_every_engine_brings_its_own_settings_and_the_ends_come_first() -> None:
    experiment = load_analysis("pareto", "demo", WORDS)
    by_engine: dict[str, list[Row]] = {}
    for row in experiment.rows:
        by_engine.setdefault(row.place["engine"], []).append(row)
    assert [row.place["setting"] for row in by_engine.pop("oracle")] == ["preset", "preset"]
    assert by_engine.keys() >= {name for name, e in engines.entries().items() if not e.requires}
    for name, rows in by_engine.items():
        swept = {row.place["setting"] for row in rows}
        assert len(swept) >= 5 or "/" in name  # a preset of an engine has no other settings
        assert "preset" in {row.place["setting"] for row in rows if row.round == 0} or name == "fused"
    plaid = {row.place["setting"]: row for row in by_engine["plaid"]}
    assert "nprobe=8" not in plaid  # the preset
    assert [plaid[f"nprobe={n}"].round for n in (1, 32, 4, 2, 16)] == [0, 0, 1, 2, 3]
    assert plaid["n_full_scores=128"].round == 1
    assert all("index.nprobe" not in (row.overrides or {}) for row in by_engine["warp/library"])
    assert {row.place["scoring"] for row in by_engine["bm25"]} == {"ColBERT"}


def test_halving_reaches_every_value() -> None:
    for name, entry in engines.entries().items():
        for key, values in entry.value.sweep.items():
            found = [round_of({"index": name}, f"{key.rpartition('.')[2]}={value}") for value in values]
            first = key == next(iter(entry.value.sweep))
            assert found[0] == found[-1] == (0 if first else 1)
            assert all(depth > found[0] for depth in found[1:-1])
        assert entry.value.sweep or not issubclass(entry.value, TextEngine)


def test_analyze_sweep_names_engines() -> None:
    few = load_analysis("pareto", "demo", {**WORDS, "analyze.sweep": "[warp]"})
    assert {row.place["engine"] for row in few.rows} == {"oracle", "bm25", "fused", "warp"}
    with pytest.raises(UsageError, match="no engine"):
        load_analysis("pareto", "demo", {**WORDS, "analyze.sweep": "[wrap]"})


def test_what_does_not_fit_into_the_minutes_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load_analysis("pareto", "demo", {**WORDS, "analyze.sweep": "[warp]"})
    clock, ran = [0.0], []

    def run_plans(cells: dict[Any, Any], where: Any) -> Outcome[Any]:
        ran.extend(key[0] for key in cells)
        clock[0] += 100 * len(cells)
        return Outcome({key: {"retrieve": Path(), "latency": Path()} for key in cells})

    def made(name: str, reuse: bool) -> Any:
        cfg = SimpleNamespace(analyze=SimpleNamespace(minutes=30.0))
        return SimpleNamespace(
            cfg=cfg, steps=[SimpleNamespace(reuse=reuse)], specs={"retrieve": SimpleNamespace(fingerprint=name)}
        )

    monkeypatch.setattr(rounds, "run_plans", run_plans)
    monkeypatch.setattr(rounds.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(rounds.artifacts, "read_manifest", lambda folder: {"seconds": 50.0, "facts": {}})
    late = [row.name for row in experiment.rows if row.round == 3]
    plans = Plans(cells={(row.name, "", 0): made(row.name, row.name == late[0]) for row in experiment.rows})
    outcome = rounds.in_rounds(experiment, plans, HERE)
    assert ran[: len([r for r in experiment.rows if not r.round])] == [r.name for r in experiment.rows if not r.round]
    assert plans.left_out
    assert set(plans.left_out).isdisjoint(ran)
    assert set(plans.left_out) | set(ran) == {row.name for row in experiment.rows}
    assert clock[0] <= 60 * 30 + 100 * 10  # round 0 runs whatever it takes
    assert f"{len(plans.left_out)} settings were left out" in capsys.readouterr().err
    assert len(outcome.folders) == len(ran) == len(plans.cells)


point = st.tuples(st.sampled_from([1.0, 2.0, 5.0, 9.0]), st.sampled_from([0.1, 0.5, 0.9]))


@settings(max_examples=100, deadline=None)
@given(st.lists(point, min_size=1, max_size=8))
def test_a_setting_is_pointless_where_another_is_as_fast_and_as_good(pairs: list[tuple[float, float]]) -> None:
    points = [pareto.Point("m", ("e", "s", str(i)), t, {"v": v}) for i, (t, v) in enumerate(pairs)]
    for one, (time, value) in zip(points, pairs, strict=True):
        beaten = any(t <= time and v >= value and (t, v) != (time, value) for t, v in pairs)
        best = pareto.best_of(points, one, "v")
        assert (best is not None) == beaten
        assert best is None or pareto.best_of(points, best, "v") is None or best.time <= time
    assert any(pareto.best_of(points, one, "v") is None for one in points)


def test_the_figure_is_the_same_twice_and_fits_a_phone(tmp_path: Path) -> None:
    points = [
        Traded(3.0, 0.7, "study"),
        Traded(1.0, 0.5),
        Traded(9.0, 0.6, dominated=True),
        Traded(4.0, 0.8, "library"),
    ]
    curves = [Curve("plaid", "plaid", points), Curve("scann", "scann as XTR", points[:2], dashed=True)]
    first = [path.read_bytes() for path in tradeoff({"a": curves, "b": curves}, "t", tmp_path / "one")]
    again = [path.read_bytes() for path in tradeoff({"a": curves, "b": curves}, "t", tmp_path / "two")]
    assert first == again
    width, height = (int.from_bytes(first[0][at : at + 4], "big") for at in (16, 20))  # of the PNG
    assert width < height
    assert width <= 800


# --- advice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("overlap@10>=0.95", ("overlap@10", True, 0.95)),
        ("p95<=20ms", ("p95", False, 20.0)),
        ("p50 <= 2 s", ("p50", False, 2000.0)),
        ("memory<=2GB", ("memory", False, 2000.0)),
        ("nDCG@10>=0.3", ("nDCG@10", True, 0.3)),
    ],
)
def test_wishes_are_read(text: str, expected: tuple[str, bool, float]) -> None:
    wish = parse_wish(text)
    assert (wish.quantity, wish.at_least, wish.bound) == expected


@pytest.mark.parametrize("text", ["fast", "p99<=3ms", "p95<=20MB", "memory<=2", "overlap@10>0.9", "speed>=3"])
def test_what_is_no_wish_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_wish(text)


def made_setting(name: str, time: float, overlap: float, memory: float = 100.0, spread: float = 0.0) -> Setting:
    rng = np.random.default_rng(len(name))
    ids = [f"q{i}" for i in range(60)]
    values = {query: float(np.clip(overlap + spread * rng.normal(), 0, 1)) for query in ids}
    row = Row(f"m, {name}", {"index": name})
    return Setting(row, {"time": dict.fromkeys(ids[:20], time), "overlap@10": values}, {"memory": memory})


SETTINGS = [
    made_setting("slow", 90.0, 0.99, 50.0),
    made_setting("middle", 20.0, 0.93),
    made_setting("quick", 2.0, 0.6),
    made_setting("chancy", 5.0, 0.905, spread=0.2),
]


@pytest.mark.parametrize(
    ("wishes", "chosen", "met"),
    [
        (["overlap@10>=0.9"], "middle", True),  # `chancy` is faster, and met only if the queries are lucky
        (["overlap@10>=0.5", "p95<=3ms"], "quick", True),
        (["p95<=30ms"], "middle", True),  # only speed is asked for: the most faithful that has it
        (["memory<=60MB"], "slow", True),
        (["overlap@10>=0.95", "p95<=25ms"], "middle", False),  # misses by least
    ],
)
def test_the_fastest_that_meets_the_wishes_or_the_nearest(wishes: list[str], chosen: str, met: bool) -> None:
    advice = choose(SETTINGS, [parse_wish(text) for text in wishes])
    assert advice.chosen.words == [f"index={chosen}"]
    assert (advice.met, advice.held) == (met, met)
    assert ("nothing meets it" in advice.table.title) == (not met)
    assert len(advice.table.rows) == len(wishes)


def test_a_wish_that_was_not_measured_is_not_met() -> None:
    setting = Setting(Row("m", {}), {"time": {}, "overlap@10": {"a": 1.0, "b": 1.0}}, {})
    advice = choose([setting], [Wish("p95<=9ms", "p95", False, 9.0)])
    assert (advice.met, advice.held) == (False, False)
