"""Comparisons: Holm by hand, every verdict on made-up scores, nothing found in noise, a planted difference found."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_results import Bench
from scipy import stats

from xtrrep import artifacts
from xtrrep.config import compose
from xtrrep.console import DataError
from xtrrep.experiments import effects as deciding
from xtrrep.experiments import run as running
from xtrrep.experiments import tables, values
from xtrrep.experiments.cell import parse_overrides
from xtrrep.experiments.compare import best_of, effect_of, judge_effects, judge_expected
from xtrrep.experiments.comparison import Best, Comparison
from xtrrep.experiments.definition import (
    Baseline,
    Column,
    Experiment,
    Reading,
    Row,
    load_analysis,
    narrowed,
)
from xtrrep.experiments.findings import findings
from xtrrep.experiments.planning import Plans
from xtrrep.experiments.result import CONTRADICTED, INCONCLUSIVE, NOT_RUN, SUPPORTED, Effect, Expected, Result, Value
from xtrrep.experiments.timings import doubt_of_times
from xtrrep.measure.significance import (
    Difference,
    holm,
    paired,
    paired_over_seeds,
    ratio_over_seeds,
    standard_errors,
    two_sided,
)

RESAMPLES = 1000


def made(name: str = "made", **fields: Any) -> Comparison:
    usual = {"says": "a is above b", "value": "nDCG@10", "plus": ("a",), "minus": ("b",)}
    return Comparison(id=name, **{**usual, **fields})


def above(name: str = "made", **fields: Any) -> Comparison:
    return made(name, direction="above", **fields)


def noise(*shape: int, seed: int = 0, scale: float = 0.2) -> np.ndarray:
    """Differences with mean 0 over each row."""
    values = np.random.default_rng(seed).normal(0, scale, shape)
    return np.asarray(values - values.mean(axis=-1, keepdims=True))


def judge(comparisons: list[Comparison], effects: Mapping[str, Difference], **more: Any) -> list[Effect]:
    usual: dict[str, Any] = {"reasons": {}, "runs": {}, "notes": {}, "doubts": {}}
    return judge_effects(comparisons, effects, **{**usual, **more})


def judged(comparison: Comparison, plus: np.ndarray, minus: np.ndarray) -> Effect:
    effect = effect_of(comparison.statistic, [plus], [minus], RESAMPLES)
    return judge([comparison], {comparison.id: effect})[0]


# --- statistics -----------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_one_seed_is_the_paired_test() -> None:
    a, b = noise(1, 80) + 0.6, noise(1, 80, seed=1) + 0.5
    assert paired_over_seeds(a, b, resamples=RESAMPLES) == paired(a[0], b[0], resamples=RESAMPLES)


def test_seeds_widen_the_interval_where_they_differ() -> None:
    queries = noise(60)
    same, spread = np.stack([queries + 0.1] * 3), np.stack([queries + at for at in (0.0, 0.1, 0.2)])
    zero = np.zeros_like(same)
    one, two = (paired_over_seeds(x, zero, resamples=RESAMPLES) for x in (same, spread))
    flat = paired(same[0], zero[0], resamples=RESAMPLES)
    assert one.mean == pytest.approx(two.mean)
    assert two.high - two.low > 1.5 * (flat.high - flat.low)
    # Seeds that do not differ add nothing: the same queries answer in each, so three seeds are not three times as many.
    assert one.high - one.low == pytest.approx(flat.high - flat.low, rel=0.1)
    assert two.p >= one.p
    assert paired_over_seeds(spread, zero, resamples=RESAMPLES) == two


def test_few_seeds_that_differ_support_nothing_by_chance() -> None:
    """No true difference, and retraining moves a model ten times as far as queries do: 95 % intervals hold 0 as often
    as they should. Resampling three seeds alone held it in 4 of 5 cases and rejected in 1 of 5."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        grid = rng.normal(0, 0.02, (3, 100)) + rng.normal(0, 0.02, (3, 1))
        found.append(paired_over_seeds(grid, np.zeros_like(grid), resamples=200))
    assert sum(one.p < 0.05 for one in found) <= 6
    assert sum(one.low <= 0 <= one.high for one in found) >= 54


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_where_only_seeds_or_only_queries_vary_it_is_students_test(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    by_seed = np.repeat(rng.normal(0.5, 1, (seeds, 1)), 200, axis=1)
    by_query = np.repeat(rng.normal(0.1, 1, (1, 200)), seeds, axis=0)
    for grid, sample in ((by_seed, by_seed[:, 0]), (by_query, by_query[0])):
        found, expected = paired_over_seeds(grid, np.zeros_like(grid)), stats.ttest_1samp(sample, 0)
        assert found.p == pytest.approx(expected.pvalue, rel=2e-3)
        assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-3)
    ratio = ratio_over_seeds(9 + by_query, np.full_like(by_query, 9.0))
    error = stats.sem(by_query[0]) / (9 + by_query.mean()) * stats.t.ppf(0.975, 199)
    assert math.log(ratio.high / ratio.mean) == pytest.approx(error, rel=2e-3)
    assert math.log(ratio.mean / ratio.low) == pytest.approx(error, rel=2e-3)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("mix", [(0.0, 1.0, 1.0), (0.2, 1.0, 1.0), (0.1, 1.0, 0.1)])
def test_the_crossed_test_keeps_its_size(seeds: int, mix: tuple[float, float, float]) -> None:
    """2,000 experiments without a difference, whatever varies: below 5.5 % are rejected at 5 %. Effects of six standard
    errors are found. The larger p of two tests rejected up to 10 % of the former."""
    rng = np.random.default_rng(seeds)
    of_seed, of_query, rest = mix
    error = (of_seed**2 / seeds + of_query**2 / 80 + rest**2 / (seeds * 80)) ** 0.5
    nulls, effects = [], []
    for _ in range(2000):
        grid = (
            of_seed * rng.normal(size=(seeds, 1)) + of_query * rng.normal(size=80) + rest * rng.normal(size=(seeds, 80))
        )
        nulls.append(two_sided(float(grid.mean()), *standard_errors(grid)))
        effects.append(two_sided(float(grid.mean()) + 6 * error, *standard_errors(grid)))
    assert np.mean(np.array(nulls) < 0.05) < 0.055
    assert np.mean(np.array(effects) < 0.05) > (0.75 if seeds == 3 else 0.97)


def test_times_of_another_hour_or_of_a_busy_machine_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made_of = {
        "a": ("2026-01-01T10:00:00Z", 0.99),
        "b": ("2026-01-01T10:50:00Z", 0.98),
        "late": ("2026-01-01T12:00:00Z", 0.99),
        "starved": ("2026-01-01T10:10:00Z", 0.55),
    }

    def manifest(folder: Path) -> dict[str, Any]:
        when, share = made_of[str(folder)]
        return {"made": when, "facts": {"threads": 1, "cpu_per_wall": share}}

    monkeypatch.setattr(artifacts, "read_manifest", manifest)
    assert doubt_of_times([[Path("a")], [Path("b")]]) == ""
    assert "2.0 hours apart" in doubt_of_times([[Path("a")], [Path("late")]])
    assert doubt_of_times([[Path("a"), Path("late")], [Path("b"), Path("late")]]) == ""  # measured side by side
    assert "had 0.55 of a processor's time" in doubt_of_times([[Path("a")], [Path("starved")]])
    faster = made("speed", value="seconds", direction="below")
    effects, doubt = {"speed": Difference(-1.0, -1.1, -0.9, 0.0002, 50)}, "measured 2.0 hours apart"
    (sure,), (unsure,) = judge([faster], effects), judge([faster], effects, doubts={"speed": doubt})
    assert (sure.verdict, unsure.verdict, unsure.note) == (SUPPORTED, INCONCLUSIVE, doubt)


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_query_says_nothing_under_however_many_seeds(seeds: int) -> None:
    plus, minus = np.full((seeds, 1), 0.9), np.full((seeds, 1), 0.1)
    alone = paired_over_seeds(plus, minus, resamples=RESAMPLES)
    assert (alone.mean, alone.p, alone.queries) == (pytest.approx(0.8), 1.0, 1)
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    assert ratio_over_seeds(plus, minus, resamples=RESAMPLES).mean == pytest.approx(9)
    for comparison in (above(), made(within=(-1.0, 1.0)), made(statistic="ratio", within=(0.99, math.inf))):
        assert judged(comparison, plus, minus).verdict == INCONCLUSIVE
    effect = judged(above(), plus, minus)
    assert (effect.effect, effect.low, effect.high) == (pytest.approx(0.8), None, None)  # JSON has no infinity


def test_ratio_of_means() -> None:
    b = noise(2, 50) + 1.0
    found = ratio_over_seeds(0.9 * b, b, resamples=RESAMPLES)
    assert (found.mean, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))
    with pytest.raises(DataError, match="ratio"):
        ratio_over_seeds(b, 0 * b, resamples=RESAMPLES)
    with pytest.raises(DataError, match="cannot pair"):
        ratio_over_seeds(b, b[:, :-1])


def test_log_ratios_print_as_ratios() -> None:
    minus = np.exp(noise(1, 60))
    found = effect_of("log_ratio", [2 * minus], [minus], RESAMPLES)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2, 2))
    assert found.p < 0.01
    with pytest.raises(DataError, match="positive"):
        effect_of("log_ratio", [minus], [0 * minus], RESAMPLES)


def test_a_difference_is_of_sums() -> None:
    a, b, c, d = (noise(2, 40, seed=seed) + seed for seed in range(4))
    found = effect_of("difference", [a, d], [b, c], RESAMPLES)
    assert found == paired_over_seeds(a + d, b + c, resamples=RESAMPLES)


def test_the_best_is_chosen_on_the_other_half() -> None:
    one, two = np.array([[1.0, 0.0, 1.0, 0.0]]), np.array([[0.0, 0.9, 0.0, 0.9]])
    # On queries 1 and 3 `two` is better, so it answers 0 and 2, and the other way round: chance is not rewarded.
    assert best_of([one, two], "held_out").tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert best_of([one, two], "same").tolist() == one.tolist()
    assert best_of([one, one + 1], "held_out").tolist() == (one + 1).tolist()
    with pytest.raises(DataError, match="only one query"):
        best_of([one[:, :1], two[:, :1]], "held_out")


# --- verdicts on differences and margins ----------------------------------------------------------------------------


def test_a_direction_is_tested_two_sided() -> None:
    b = noise(1, 100) + 0.5
    better = b + 0.1 + noise(1, 100, seed=1)
    assert judged(above(), better, b).verdict == SUPPORTED
    assert judged(made(direction="below"), better, b).verdict == CONTRADICTED
    assert judged(above(), b, better).verdict == CONTRADICTED
    assert judged(made(direction="below"), b, better).verdict == SUPPORTED
    level = judged(above(), b + noise(1, 100, seed=2), b)
    assert (level.verdict, level.p) == (INCONCLUSIVE, pytest.approx(1.0, abs=0.05))
    assert judged(above(), b, b).verdict == INCONCLUSIVE
    fast = above(statistic="log_ratio", value="seconds")
    assert judged(fast, 3 * np.exp(b), np.exp(b)).verdict == SUPPORTED
    assert judged(fast, np.exp(b), 3 * np.exp(b)).verdict == CONTRADICTED


@pytest.mark.parametrize(
    ("shift", "scale", "within", "verdict"),
    [
        (0.001, 0.01, (-0.005, 0.005), SUPPORTED),
        (0.02, 0.01, (-0.005, 0.005), CONTRADICTED),
        (-0.02, 0.01, (-0.005, 0.005), CONTRADICTED),
        (0.001, 0.2, (-0.005, 0.005), INCONCLUSIVE),
        (0.005, 0.01, (-0.005, 0.005), INCONCLUSIVE),
        (-0.5, 0.01, (-math.inf, 0.005), SUPPORTED),
        (0.02, 0.01, (-math.inf, 0.005), CONTRADICTED),
    ],
)
def test_a_margin_is_judged_by_the_interval(
    shift: float, scale: float, within: tuple[float, float], verdict: str
) -> None:
    b = noise(1, 100) + 0.5
    found = judged(made(within=within), b + shift + noise(1, 100, seed=1, scale=scale), b)
    assert (found.verdict, found.p) == (verdict, None)


@pytest.mark.parametrize(("kept", "verdict"), [(0.998, SUPPORTED), (0.95, CONTRADICTED), (0.99, INCONCLUSIVE)])
def test_at_least_99_percent(kept: float, verdict: str) -> None:
    b = noise(1, 400) + 1.0
    comparison = made(statistic="ratio", within=(0.99, math.inf))
    assert judged(comparison, kept * b + noise(1, 400, seed=1, scale=0.01), b).verdict == verdict
    assert comparison.expected == "≥ 0.99"


def test_the_correction_is_over_the_tests_of_a_family_that_were_made() -> None:
    """Margins, what did not run and other families are no part of it."""
    family = [above("a"), above("b"), made("c", within=(-1.0, 1.0)), above("d"), above("e", family="other")]
    effects = {name: Difference(0.1, 0.05, 0.15, 0.03, 100) for name in "abce"}
    found = judge(family, effects, reasons={"d": "no teacher"})
    assert [effect.p for effect in found] == [0.06, 0.06, None, None, 0.03]
    assert [effect.verdict for effect in found] == [INCONCLUSIVE, INCONCLUSIVE, SUPPORTED, NOT_RUN, SUPPORTED]
    assert found[3].note == "no teacher"
    assert judge(family[:1], effects)[0].p == 0.03


def test_nothing_is_found_in_shuffled_labels() -> None:
    """Twenty comparisons of differences whose signs are chance."""
    family, effects = [], {}
    for number in range(20):
        rng = np.random.default_rng(number)
        delta = np.abs(rng.normal(0, 0.2, (1, 150))) * rng.choice([-1, 1], (1, 150))
        family.append(made(f"c{number}", direction="above" if number % 2 else "below"))
        effects[f"c{number}"] = effect_of("difference", [delta], [0 * delta], RESAMPLES)
    assert {effect.verdict for effect in judge(family, effects)} == {INCONCLUSIVE}


# --- differences from a baseline ------------------------------------------------------------------------------------


def table_of(columns: tuple[str, ...], **fields: Any) -> Experiment:
    """Two rows tested against `base`, and one that is only quoted."""
    rows = (
        Row("base", {}),
        Row("better", {}, baselines=(Baseline("base"),)),
        Row("alike", {}, baselines=(Baseline("base"),)),
        Row("old", None),
    )
    shown = [Column(name, f"beir/{name}/test", "nDCG@10") for name in columns]
    usual: dict[str, Any] = {"name": "made", "title": "Made", "scale": "demo", "tolerance": 0.5, "overrides": {}}
    experiment = Experiment(**{**usual, **fields}, rows=rows)
    return narrowed(experiment, shown)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(running.configs, "recorded_root", lambda: tmp_path / "recorded")
    return Bench(tmp_path / "runs", monkeypatch)


def test_a_grid_marks_what_differs_from_its_baseline(bench: Bench) -> None:
    """20 queries: one model is above on all of them, one is above and below in turn; the quoted row has no cell."""
    experiment = table_of(("x", "y"), means={"both": ("x", "y")})
    scores = {"base": [0.5] * 20, "better": [0.6] * 20, "alike": [0.4, 0.6] * 10}
    cells: dict[Any, Any] = {(name, "x", 0): numbers for name, numbers in scores.items()}
    cells |= {("base", "y", 0): [0.7] * 20, ("better", "y", 0): "no memory", ("alike", "y", 0): "no memory"}
    result = bench.result(experiment, cells)
    shown = tables.grid(result)
    assert shown.columns == ["", "x", "y", "both"]
    assert [row[0] for row in shown.rows] == ["base", "better", "alike"]
    assert shown.rows[0][1:] == pytest.approx([50, 70, 60])
    assert shown.rows[1][1:] == [pytest.approx(60), None, None]
    assert shown.marks == {(1, 1): "†"}
    assert shown.footer[0] == "nDCG@10 of x, y; in points."
    assert "60.0†" in shown.terminal()
    assert "Holm over 2 pairs). 1 of them do." in shown.terminal()
    assert r"\textbf{60.0}\textsuperscript{\textdagger{}}" in shown.latex()
    assert "not run: better, y; alike, y: no memory" in result.notes
    difference = {effect.id: effect for effect in result.effects}["better, x"]
    assert (difference.effect, difference.low, difference.high) == pytest.approx((10, 10, 10))  # in points, as the grid
    assert tables.status(result) == "missing"
    assert "†" not in tables.grid(dataclasses.replace(result, effects=())).terminal()


def test_a_planted_difference_is_found_and_shuffled_labels_find_none(bench: Bench) -> None:
    experiment = table_of(("x", "y"))
    rng = np.random.default_rng(0)
    base = {column: rng.uniform(0.2, 0.6, 80) for column in "xy"}
    cells: dict[Any, Any] = {}
    for column, numbers in base.items():
        cells["base", column, 0] = numbers
        cells["better", column, 0] = numbers + rng.normal(0.05 if column == "x" else 0.0, 0.1, 80)
        cells["alike", column, 0] = numbers + rng.normal(0, 0.1, 80)
    effects = {effect.id: effect for effect in bench.result(experiment, cells).effects}
    assert [name for name, effect in effects.items() if effect.verdict == "differs"] == ["better, x"]
    assert effects["better, x"].effect == pytest.approx(5, abs=3)
    shuffled = dict(cells)
    for name, column in (("better", "x"), ("alike", "x"), ("better", "y"), ("alike", "y")):
        other = rng.random(80) < 0.5
        pair = np.stack([cells["base", column, 0], cells[name, column, 0]])
        shuffled[name, column, 0] = np.where(other, *pair)
    again = bench.result(experiment, shuffled)
    assert {effect.verdict for effect in again.effects} == {"no clear difference"}


def test_a_grid_of_several_trainings_is_tested_over_them_too(bench: Bench) -> None:
    """One model is above under each of three seeds; another only on the mean of them, one seed being below."""
    by_seed = {"base": (0.5, 0.5, 0.5), "better": (0.6, 0.61, 0.6), "alike": (0.9, 0.95, 0.4)}
    cells = {(name, "x", i): [value] * 40 for name, means in by_seed.items() for i, value in enumerate(means)}
    result = bench.result(table_of(("x",), seeds=(1, 2, 3)), cells)
    shown = tables.grid(result)
    assert shown.marks == {(1, 1): "†"}
    assert "Means over training seeds 1, 2, 3." in shown.terminal()
    assert "over queries and training seeds" in shown.terminal()
    better = result.value("better", "x")
    assert better is not None
    assert (better.mean, better.sd) == pytest.approx((180.1 / 3, np.std([60, 61, 60], ddof=1)), rel=1e-2)
    assert better.by_seed == pytest.approx((60, 61, 60))
    alone = bench.result(table_of(("x",)), {key: numbers for key, numbers in cells.items() if key[2] == 0})
    assert tables.grid(alone).marks == {(1, 1): "†", (2, 1): "†"}


def test_the_k_prime_sweep_says_what_its_scores_say(bench: Bench) -> None:
    """Made-up scores in which colbert beats xtr_k128 and loses with fewer tokens, as xtr_k128 does not; then the two
    models exchanged, and every comparison between them turns round."""
    given = parse_overrides(["analyze.models=[colbert,xtr_k128]", "analyze.k_primes=[10,1000]"])
    experiment = load_analysis("k_prime", "demo", given)
    assert len(experiment.rows) == 3 * 2 * 2 + 1
    rng = np.random.default_rng(0)
    base = rng.random(80) * 0.3

    def verdicts(better: str, other: str) -> tuple[Result, dict[str, str]]:
        cells: dict[Any, Any] = {}
        for row in experiment.rows:
            level = {"untrained": 0.0, better: 0.5, other: 0.4}.get(row.place.get("model", ""), 0.2)
            loss = 0.2 if row.name == f"{better}, XTR, 10" else 0.0
            cells[row.name, "nDCG@10", 0] = base + level - loss + rng.normal(0, 0.01, 80)
        result = bench.result(experiment, cells, given)
        tested = [effect for effect in result.effects if effect.effect is not None]
        signs = {e.id: e.verdict if e.verdict != "differs" else "above" if e.effect > 0 else "below" for e in tested}
        return result, signs

    result, signs = verdicts("colbert", "xtr_k128")
    shown = tables.grid(result)
    assert shown.columns[:4] == ["model", "scoring", "k'", "nDCG@10"]
    assert shown.rows[-1][:3] == ["BM25", None, None]
    assert shown.rows[-1][3] == pytest.approx(100 * (base.mean() + 0.2), abs=1)
    assert not shown.marks, "with two baselines a mark would not say which"
    at = "xtr_k128, XTR, 1000, nDCG@10, against"
    assert signs[f"{at} untrained, XTR, 1000"] == "above"
    assert signs[f"{at} colbert, ColBERT, 1000"] == "below"
    since = "xtr_k128, XTR, 10, nDCG@10, against colbert, XTR, 10 since colbert, XTR, 1000"
    assert signs[since] == "above"
    assert signs[since.replace("XTR", "ColBERT")] == "no clear difference"
    assert {effect.id: effect for effect in result.effects}[since].effect == pytest.approx(20, abs=1)
    assert len(signs) == 10 + 8 + 4  # colbert as ColBERT; untrained; the change since the largest k'
    best, differences, changes = findings(result)
    assert re.match(r"nDCG@10 is highest for colbert, \w+, \d+, at [\d.]+, and lowest for ", best)
    assert differences.startswith("Of 18 differences tested, ")
    assert changes.startswith("Of 4 changes tested, 2 are significant. The largest: nDCG@10 of ")
    assert " against colbert, XTR, 10 since colbert, XTR, 1000, +" in changes
    assert not findings(dataclasses.replace(result, effects=()))
    _, turned = verdicts("xtr_k128", "colbert")
    assert turned[f"{at} colbert, ColBERT, 1000"] == "above"
    assert turned[since] == "below"


# --- claims ---------------------------------------------------------------------------------------------------------


def family_of(*comparisons: Comparison, rows: str = "", **fields: Any) -> Experiment:
    return Experiment(
        name="claims",
        title="Claims",
        scale="demo",
        tolerance=None,
        overrides={"analyze.resamples": str(RESAMPLES)},
        rows=tuple(Row(name, {}) for name in rows.split()),
        comparisons=comparisons,
        **fields,
    )


def test_a_claim_that_cannot_run_stops_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds: one claim by nDCG@10, one by seconds, one of the best of two, one of other queries, one that lacks a
    run."""
    family = family_of(
        above("quality"),
        made("speed", value="seconds", statistic="log_ratio", direction="below"),
        above("best", minus=("most",)),
        above("uneven", minus=("short",)),
        above("lacking", minus=("lost",)),
        rows="a b short lost",
        seeds=(1, 2, 3),
        best={"most": Best(("b", "a"), "same")},
    )
    monkeypatch.setattr(deciding, "doubt_of_times", lambda groups: "")
    rng = np.random.default_rng(0)
    cells: dict[Any, Any] = {}
    for seed in range(3):
        for name, level in (("a", 0.7), ("b", 0.5), ("short", 0.5)):
            cells[name, "", seed] = rng.normal(level, 0.05, 30 if name == "short" else 40)
        cells["lost", "", seed] = "no teacher here"
    result = bench.result(family, cells)
    found = {effect.id: effect for effect in result.effects}
    assert {name: effect.verdict for name, effect in found.items()} == {
        "quality": SUPPORTED, "speed": CONTRADICTED, "best": INCONCLUSIVE, "uneven": NOT_RUN, "lacking": NOT_RUN,
    }  # fmt: skip
    assert found["quality"].effect == pytest.approx(0.2, abs=0.03)
    assert len(found["quality"].runs) == 6
    assert found["best"].effect == 0  # the best of the two is `a` itself
    assert "not over the same queries" in found["uneven"].note
    assert found["lacking"].note == "lost: no teacher here"
    assert result.resamples == RESAMPLES  # as the file's own overrides say
    assert tables.status(result) == "ok"
    assert tables.status(dataclasses.replace(result, effects=(found["lacking"],))) == "missing"
    text = tables.claims(result).terminal()
    assert "include the variation between trainings" in text
    assert "not of retraining" not in text
    assert "—" in text


def test_a_run_that_does_not_hold_a_value_stops_no_other(bench: Bench) -> None:
    """An evaluation by other measures than the table's, as one that was left by hand."""
    experiment = table_of(("x",))
    recall = dataclasses.replace(experiment, columns=(dataclasses.replace(experiment.columns[0], measure="R@5"),))
    result = bench.result(recall, {("base", "x", 0): [0.5] * 3, ("better", "x", 0): [0.5] * 3})
    reasons = {value.row: value.reason for value in result.values}
    assert all("does not give R@5 for every query" in reason for reason in reasons.values())
    assert tables.status(result) == "missing"


VALUES = {"geometry": "mean cosine", "tokens": "gold@mean", "distribution": "sd"}  # as configs/claims.yaml reads them
UNITS = [f"u{number}" for number in range(119)] + ["NA"]


def write_units(folder: Path, value: str, models: Mapping[str, np.ndarray], order: int = 0) -> Path:
    """A finished analysis' units.csv, its rows in any order."""
    folder.mkdir(parents=True)
    rows = [(name, unit, v) for name, values in models.items() for unit, v in zip(UNITS, values.tolist(), strict=True)]
    np.random.default_rng(order).shuffle(rows)
    (folder / "units.csv").write_text("".join(f"{a},exact,{b},{c}\n" for a, b, c in [("model", "unit", value), *rows]))
    return folder


def test_units_become_grids_of_seeds_and_units(tmp_path: Path) -> None:
    own = {seed: {name: noise(120, seed=10 * seed + at) for at, name in enumerate("abc")} for seed in (1, 2)}
    folders = [write_units(tmp_path / str(seed), "gold@mean", own[seed], order=seed) for seed in (1, 2)]
    grids = values.analysis_units("gold@mean", ["a", "b"], folders)
    assert set(grids) == {"a", "b"}
    for name, grid in grids.items():
        order = [UNITS.index(unit) for unit in grid.ids]
        np.testing.assert_array_equal(grid.values, [own[seed][name][order] for seed in (1, 2)])
    lines = (folders[1] / "units.csv").read_text().splitlines()
    for text, fault in (
        ("\n".join(lines[:-1]), "not over the same"),
        ("\n".join([*lines, lines[-1]]), "once for every unit"),
        ("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ","]), "once for every unit"),
        ("\n".join(lines).replace("gold@mean", "gold@1", 1), "no column 'gold@mean'"),
    ):
        (folders[1] / "units.csv").write_text(text)
        with pytest.raises(DataError, match=fault):
            values.analysis_units("gold@mean", ["a", "b", "c"], folders)


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_analyses_are_tested_over_units_and_shuffled_labels_find_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: tuple[int, ...]
) -> None:
    """Model a is above b in every analysis. With the two names swapped by chance, unit by unit, no claim is left."""
    sound = [above(f"{at}", analysis=name, value=VALUES[name]) for at, name in enumerate([*VALUES] * 4)]
    family = family_of(*sound, seeds=seeds)

    def verdicts(where: str, swap: float) -> Result:
        plans = Plans()
        for comparison in sound:
            difficulty = noise(120, seed=int(comparison.id))
            for number, seed in enumerate(seeds):
                rng = np.random.default_rng([int(comparison.id), seed])
                a, b = difficulty + 0.55 + rng.normal(0, 0.05, 120), difficulty + 0.5 + rng.normal(0, 0.05, 120)
                other = rng.random(120) < swap
                models = {"a": np.where(other, b, a), "b": np.where(other, a, b)}
                folder = write_units(tmp_path / where / f"{comparison.id}-{seed}", comparison.value, models)
                plans.analyses[comparison.id, number] = SimpleNamespace(  # type: ignore[assignment]
                    folder=folder, plans=(), units="queries", spec=SimpleNamespace(fingerprint=folder.name)
                )
        monkeypatch.setattr(running, "plan", lambda *args, **options: plans)
        monkeypatch.setattr(running, "run_analysis", lambda whole: whole.folder)
        return running.run(family, {})[0]

    result = verdicts("true", 0.0)
    first = result.effects[0]
    assert {effect.verdict for effect in result.effects} == {SUPPORTED}
    assert (first.note, first.units) == ("over queries", 120)
    assert result.effects[1].runs == tuple(f"1-{seed}" for seed in seeds)
    assert first.effect == pytest.approx(0.05, abs=0.02)
    assert {effect.verdict for effect in verdicts("shuffled", 0.5).effects} == {INCONCLUSIVE}
    assert "the effect is the mean over them" in tables.claims(result).terminal()


# --- verdicts on expected values ------------------------------------------------------------------------------------


def judged_expected(
    experiment: Experiment, bench: Bench, cells: Any, record: Any = None, **more: Any
) -> list[Expected]:
    """Beside a record of {row: {column: (value, weights)}}."""
    result = bench.result(experiment, cells, **more)
    kept = None
    if record is not None:
        expected = [
            Expected(row, column, None, None, value, "agrees", weights=weights)
            for row, columns in record.items()
            for column, (value, weights) in columns.items()
        ]
        kept = dataclasses.replace(result, expected=tuple(expected))
    return judge_expected(experiment, result, kept)


def two_columns(scale: str, tolerance: float | None = 0.5) -> Experiment:
    rows = (Row("ours", {}, {"a": 30.0, "b": 40.0, "mean": 35.0}), Row("theirs", None, {"a": 31.0}))
    columns = tuple(Column(name, f"beir/{name}/test", "nDCG@10") for name in ("a", "b"))
    return Experiment("made", "Made", scale, tolerance, {}, columns, {"mean": ("a", "b")}, rows)


def ours(cells: list[Expected]) -> dict[str, str]:
    return {cell.column: cell.verdict for cell in cells if cell.row == "ours"}


def test_verdicts_are_two_sided_and_a_missing_cell_blanks_its_mean(bench: Bench) -> None:
    def verdicts(a: float, b: float | str) -> list[Expected]:
        cells = {("ours", "a", 0): [a / 100] * 2, ("ours", "b", 0): b if isinstance(b, str) else [b / 100] * 2}
        return judged_expected(two_columns("paper"), bench, cells)

    assert ours(verdicts(30.5, 39.5)) == {"a": "agrees", "b": "agrees", "mean": "agrees"}
    assert ours(verdicts(30.6, 39.4)) == {"a": "higher", "b": "lower", "mean": "agrees"}
    cells = verdicts(30.0, "no memory")
    assert ours(cells) == {"a": "agrees", "b": "not run", "mean": "not run"}
    assert [cell.now for cell in cells if cell.row == "ours"] == [pytest.approx(30.0), None, None]
    assert {cell.verdict for cell in cells if cell.row == "theirs"} == {"quoted"}


def test_below_paper_scale_the_paper_carries_no_verdict(bench: Bench) -> None:
    cells = {("ours", "a", 0): [0.65] * 2, ("ours", "b", 0): [0.7] * 2}
    demo = two_columns("demo")
    assert set(ours(judged_expected(demo, bench, cells)).values()) == {"no record"}
    record = {"ours": {"a": (65.04, None), "b": (69.0, None)}}
    assert list(ours(judged_expected(demo, bench, cells, record)).values()) == ["agrees", "higher", "no record"]
    speeds = judged_expected(two_columns("paper", None), bench, cells)
    assert set(ours(speeds).values()) == {"not compared"}
    shown = tables.expected(dataclasses.replace(bench.result(demo, cells), expected=tuple(speeds))).terminal()
    assert "another setting" in shown
    assert "0.05 (same weights) / 2 (trained anew) points" in shown


def test_other_weights_from_the_same_commands_may_move_a_value_further(bench: Bench) -> None:
    cells = {("ours", "a", 0): [0.65] * 2, ("ours", "b", 0): [0.7] * 2}
    one = bench.result(two_columns("demo"), cells, weights="one").values[0].weights

    def verdicts(a: tuple[float, str | None], b: tuple[float, str | None]) -> list[str]:
        record = {"ours": {"a": a, "b": b, "mean": (68.5, None)}}
        return list(ours(judged_expected(two_columns("demo"), bench, cells, record, weights="one")).values())

    assert verdicts((66.9, one), (70.04, one)) == ["lower", "agrees", "lower"]
    assert verdicts((66.9, "other"), (70.04, one)) == ["agrees", "agrees", "agrees"]
    assert verdicts((66.9, None), (70.04, None)) == ["agrees", "agrees", "agrees"]  # a record that knew no weights
    assert verdicts((67.1, "other"), (70.04, one))[0] == "lower"  # further than training moves
    at_paper = judged_expected(two_columns("paper"), bench, {**cells, ("ours", "a", 0): [0.31] * 2}, weights="one")
    assert at_paper[0].verdict == "higher"  # the paper's tolerance is one


def test_the_weights_behind_a_value_are_told_apart(bench: Bench) -> None:
    experiment, cells = two_columns("demo"), {("ours", "a", 0): [0.5] * 2}

    def weights(name: str) -> str | None:
        return bench.result(experiment, cells, weights=name).values[0].weights

    assert weights("one") == weights("one") != weights("two")
    assert weights("") is None


def reading(paper: float | None = None, tolerance: float | None = 0.5, **where: str | float) -> Reading:
    return Reading("a", where or {"model": "colbert"}, "share", paper, 100.0, tolerance)


def test_a_reading_is_the_one_row_that_matches(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("model,nprobe,share\ncolbert,8,0.263\ncolbert,16,0.4\nxtr,8.0,\nxtr,9,nan\n")
    assert values.read_analysis(reading(model="colbert", nprobe=8), tmp_path) == pytest.approx(26.3)
    assert values.read_analysis(reading(model="colbert", nprobe="16"), tmp_path) == pytest.approx(40)
    for where, fault in (
        ({"model": "colbert"}, "2 rows .* match model=colbert"),
        ({"model": "colbert", "nprobe": 7}, "no rows .* match model=colbert, nprobe=7"),
        ({"model": "xtr", "nprobe": 8}, "is not a number: ''"),
        ({"model": "xtr", "nprobe": 9}, "is not a number: 'nan'"),
        ({"modle": "colbert"}, "no column 'modle'"),
    ):
        with pytest.raises(DataError, match=fault):
            values.read_analysis(reading(**where), tmp_path)
    (tmp_path / "table.csv").write_text("model,share\n")
    with pytest.raises(DataError, match="no rows"):
        values.read_analysis(reading(), tmp_path)


@pytest.mark.parametrize(
    ("scale", "now", "paper", "record", "verdict"),
    [
        ("paper", 26.7, 26.3, None, "agrees"),
        ("paper", 26.9, 26.3, 26.9, "higher"),
        ("paper", 26.7, None, None, "no record"),
        ("paper", 26.7, None, 26.72, "agrees"),
        ("paper", 26.7, None, 26.8, "lower"),  # a tenth of the tolerance
        ("demo", 26.7, 26.7, None, "no record"),
        ("demo", 26.7, 99.0, 26.7, "agrees"),
        ("demo", None, 26.3, 26.3, "not run"),
    ],
)
def test_a_reading_without_a_printed_value_is_judged_by_its_record(
    scale: str, now: float | None, paper: float | None, record: float | None, verdict: str
) -> None:
    experiment = Experiment("made", "M", scale, None, {}, analysis="candidates", readings=(reading(paper=paper),))
    result = Result("reproduction", "made", "M", scale, (Value("a", "share", "share", now),), data="pydoc/test")
    kept = () if record is None else (Expected("a", "share", None, None, record, "agrees"),)
    (cell,) = judge_expected(experiment, result, dataclasses.replace(result, expected=kept))
    assert cell.verdict == verdict
    shown = tables.expected(dataclasses.replace(result, expected=(cell,))).terminal()
    assert (f"here pydoc/test, scale={scale}" in shown) == (scale == "demo")  # not where the study made it
    loose = dataclasses.replace(experiment, readings=(reading(paper=1.0, tolerance=None),))
    assert judge_expected(loose, result, None)[0].verdict in ("not compared", "not run")


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        (("agrees", "quoted", "no record"), "ok"),
        (("agrees", "not run"), "missing"),
        (("lower", "not run"), "differs"),
    ],
)
def test_the_status_of_a_result(verdicts: tuple[str, ...], status: str) -> None:
    cells = tuple(Expected("r", "c", 1.0, None, None, verdict) for verdict in verdicts)
    assert tables.status(Result("reproduction", "made", "Made", "demo", (), expected=cells)) == status


# --- doubts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(1.021, INCONCLUSIVE), (0.975, INCONCLUSIVE), (1.2, SUPPORTED), (0.8, CONTRADICTED), (-1.0, SUPPORTED)],
)
def test_times_that_differ_by_less_than_five_percent_decide_nothing(ratio: float, verdict: str) -> None:
    """Of identical processes too: their ratios were 1.014 and 1.021 with p that survived Holm's correction."""
    logged = made("speed", value="seconds", direction="above", statistic="difference" if ratio < 0 else "log_ratio")
    effect = Difference(0.001, 0.0, 0.002, 0.0002, 50) if ratio < 0 else Difference(ratio, ratio, ratio, 0.0002, 50)
    (found,) = judge([logged], {"speed": effect})
    assert found.verdict == verdict
    assert ("less than 5%" in found.note) == (verdict == INCONCLUSIVE)


def test_of_twenty_pairs_of_identical_processes_at_most_one_gets_a_verdict() -> None:
    """Processes over one index differ by about 1 % each, all their queries alike, which a test over queries takes for
    an effect."""
    rng = np.random.default_rng(0)
    speed, clear, verdicts = above("speed", value="seconds", statistic="log_ratio"), 0, []
    for _ in range(20):
        queries = rng.lognormal(-5, 0.5, (1, 64))
        one, two = (queries * np.exp(rng.normal(0, 0.01) + rng.normal(0, 0.02, (1, 64))) for _ in range(2))
        effect = effect_of("log_ratio", [one], [two], RESAMPLES)
        clear += effect.p < 0.05
        verdicts += [found.verdict for found in judge([speed], {"speed": effect})]
    assert clear > 5
    assert sum(verdict != INCONCLUSIVE for verdict in verdicts) <= 1


@pytest.mark.parametrize(
    ("words", "candidates", "imputed", "says"),
    [
        (["retrieve.scoring=xtr"], 95.0, 2000.0, "95% of the documents are candidates of a"),
        (["retrieve.scoring=xtr"], 50.0, 100.0, "hits fill 94% of the scores of a"),
        (["retrieve.scoring=xtr"], 50.0, 1000.0, ""),
        (["retrieve.scoring=colbert"], 100.0, None, ""),  # exact MaxSim of all documents is what it should be
        (["index=plaid", "config=colbert"], 100.0, None, "100% of the documents are candidates of a"),
        (["index=plaid", "config=colbert"], 20.0, None, ""),
        (["index=bm25"], None, None, ""),
    ],
)
def test_a_run_that_prunes_nothing_decides_nothing(
    words: list[str], candidates: float | None, imputed: float | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {
        "retrieve": {"mean_candidates": candidates, "mean_imputed_cells": imputed},
        "data": {"documents": 100},
    }
    monkeypatch.setattr(artifacts, "read_manifest", lambda folder: {"facts": facts[folder.name]})
    plan: Any = SimpleNamespace(cfg=compose([*words, "model.n_query=32"]))
    found = values.doubt_of_candidates("a", plan, {name: Path(name) for name in facts})
    assert says in found
    assert bool(found) == bool(says)
    assert values.doubt_of_candidates("a", plan, {"latency": Path("latency")}) == ""
