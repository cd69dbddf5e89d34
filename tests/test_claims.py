"""The claims: their families, nothing supported in shuffled labels, planted effects found, times over processes, the
baseline gate, and the power beside each primary claim."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import Bench
from scipy import stats

from xtrrep import pipeline
from xtrrep.config import compose
from xtrrep.console import UsageError
from xtrrep.experiments import effects as deciding
from xtrrep.experiments import planning, tables
from xtrrep.experiments import run as running
from xtrrep.experiments.cell import Cell
from xtrrep.experiments.compare import effect_of_times, judge_effects
from xtrrep.experiments.comparison import MATERIAL, SAME_PROCESSES, Comparison
from xtrrep.experiments.definition import Experiment, load, load_claims, parse
from xtrrep.experiments.result import INCONCLUSIVE, SUPPORTED, UNTRAINED, Effect, Result
from xtrrep.experiments.tasks import missing_tasks
from xtrrep.experiments.timings import Times
from xtrrep.measure.power import CrossedPower, StudentPower, power_of
from xtrrep.measure.significance import standard_errors, two_sided
from xtrrep.pipeline.stages.table import BY_NAME
from xtrrep.retrieval.engines.warp import _placement

PRIMARY = (
    "colbert_above_xtr", "xtr_training_flatter", "xtr_faster_plaid", "colbert_loses_under_warp", "xtr_widens_scores",
)  # fmt: skip
QUERIES, SD = 80, 0.1


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(running.configs, "recorded_root", lambda: tmp_path / "recorded")
    monkeypatch.setattr(deciding, "doubt_of_times", lambda groups: "")
    return Bench(tmp_path / "runs", monkeypatch)


def family(seeds: int) -> Experiment:
    """The primary claims alone, with few resamples."""
    claims = load_claims("demo", PRIMARY)
    trained = tuple(range(seeds)) if seeds > 1 else ()
    return dataclasses.replace(claims, seeds=trained, overrides={"analyze.resamples": "1000"})


# What each cell is below the others in nDCG@10, in standard deviations of a contrast of four cells or two; and the
# logarithm of its seconds.
LOWER = {
    **dict.fromkeys(("k64", "k128", "k256", "k512", "k128_small"), 1.0),
    "colbert_xtr_small": 1.5,
    "warp_colbert": 1.5,
}
SLOWER = {"plaid_colbert": 0.5}  # one standard deviation of the queries' times


def scores(experiment: Experiment, planted: float, seed: int = 0) -> dict[Any, Sequence[float]]:
    """Every cell under every seed: queries differ, and the cells as LOWER says times `planted`."""
    rng = np.random.default_rng(seed)
    queries = rng.uniform(0.3, 0.6, QUERIES)
    used = {cell for c in experiment.comparisons for cell in planning.cells_of(experiment, c) if c.analysis is None}
    used |= {cell for gate in experiment.gates for cell in (gate.cell, gate.like)}
    cells = {
        (row.name, "", number): queries
        + 1.5 * SD * (1 - planted * LOWER.get(row.name, 0.0))
        + rng.normal(0, 0.1 * SD)
        + rng.normal(0, SD, QUERIES)
        for row in experiment.rows
        if row.name in used
        for number in range(len(experiment.seeds) or 1)
    }
    for number in range(len(experiment.seeds) or 1):  # the gate is open
        like, gated = cells["colbert", "", number], cells["plaid_colbert", "", number]
        cells["plaid_colbert", "", number] = gated - gated.mean() + like.mean()
    return cells  # type: ignore[return-value]


def shuffled(cells: Mapping[Any, Sequence[float]], seed: int = 1) -> dict[Any, Sequence[float]]:
    """Every query's values dealt anew to the cells: no label means anything."""
    rng = np.random.default_rng(seed)
    grid = np.stack([np.asarray(values) for values in cells.values()])
    return dict(zip(cells, rng.permuted(grid, axis=0), strict=True))


def widths(tmp_path: Path, seeds: int, planted: float) -> dict[tuple[str, int], Path]:
    """The units.csv of `xtr_widens_scores`."""
    folders = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        folder = tmp_path / f"widths-{planted}-{seed}"
        folder.mkdir()
        lines = ["model,engine,unit,sd"]
        for model, more in (("colbert", 0.0), ("xtr_multi", planted)):
            lines += [
                f"{model},exact,q{i},{0.1 + 0.02 * (more + v)}" for i, v in enumerate(rng.normal(0, 0.7, QUERIES))
            ]
        (folder / "units.csv").write_text("\n".join(lines) + "\n")
        folders["xtr_widens_scores", seed] = folder
    return folders


def told(bench: Bench, tmp_path: Path, seeds: int, planted: float) -> Result:
    """The primary claims over made-up values, with shuffled labels where nothing is planted."""
    experiment = family(seeds)
    cells = scores(experiment, planted)
    log_times = dict(SLOWER) if planted else {}

    def time(row: str, seed: int, process: int, numbers: Sequence[float]) -> Sequence[float]:
        noise = np.random.default_rng([process, seed, len(row), ord(row[-1])]).normal(0, 0.01, 1)
        queries = np.random.default_rng(0).normal(0, 0.5, QUERIES)
        return np.exp(-5 + queries + log_times.get(row, 0.0) + noise).tolist()

    bench.time = time  # type: ignore[method-assign]
    if not planted:
        cells = shuffled(cells)
    made = widths(tmp_path, seeds, planted)
    return bench.result(experiment, cells, processes=5 if seeds == 1 else 1, analyses=made)


@pytest.mark.parametrize("seeds", [1, 5])
def test_shuffled_labels_support_no_primary_claim_and_planted_effects_all(
    bench: Bench, tmp_path: Path, seeds: int
) -> None:
    """One standard deviation over queries; for times, of the queries' times."""
    planted = {effect.id: effect for effect in told(bench, tmp_path, seeds, 1.0).effects}
    assert {name: planted[name].verdict for name in PRIMARY} == dict.fromkeys(PRIMARY, SUPPORTED)
    assert all(planted[name].power is not None and planted[name].detect for name in PRIMARY)
    result = told(bench, tmp_path, seeds, 0.0)
    by_chance = {effect.id: effect for effect in result.effects}
    assert {by_chance[name].verdict for name in PRIMARY} == {INCONCLUSIVE}
    for found in (planted, by_chance):
        assert found[SAME_PROCESSES].verdict == SUPPORTED
        assert (found[SAME_PROCESSES].family, found[SAME_PROCESSES].p) == ("A/A", None)


def test_the_table_has_family_power_and_the_processes(bench: Bench, tmp_path: Path) -> None:
    result = told(bench, tmp_path, 1, 1.0)
    shown = tables.claims(result)
    rows = {row[0]: dict(zip(shown.columns, row, strict=True)) for row in shown.rows}
    assert list(rows) == [*PRIMARY, SAME_PROCESSES]
    assert {rows[name]["family"] for name in PRIMARY} == {"primary"}
    assert rows["xtr_faster_plaid"]["for an effect of"] == 1.25
    assert rows["xtr_faster_plaid"]["power"] == pytest.approx(1.0, abs=0.01)
    assert rows["xtr_faster_plaid"]["note"] == "5 processes a cell"
    assert len(rows["xtr_faster_plaid"]["runs"].split()) == 10
    assert len(set(rows[SAME_PROCESSES]["runs"].split())) == 10  # two groups, no process in both
    text = shown.terminal()
    assert "5 tests (primary)" in text
    assert "times differ by more than 5%" in text
    (timed,) = (value for value in result.values if value.key == ("plaid_xtr", "", "seconds"))
    assert len(timed.by_process[0]) == 5
    assert timed.by_seed == pytest.approx([np.mean(timed.by_process[0])])
    assert result.per_unit[timed.key].ids == tuple("01234")


def test_five_claims_are_primary_and_each_family_is_corrected_alone() -> None:
    claims = load_claims("paper")
    by_family: dict[str, list[str]] = {}
    for comparison in claims.comparisons:
        by_family.setdefault(comparison.family, []).append(comparison.id)
    assert set(by_family) == {"primary", "exploratory", "A/A"}
    assert tuple(by_family["primary"]) == PRIMARY
    assert by_family["A/A"] == [SAME_PROCESSES]
    assert all(c.detect is not None for c in claims.comparisons if c.family == "primary")


def test_what_explains_is_compared_in_the_setup_of_the_study() -> None:
    """Score width, cosine, rates and candidates are of setup (II) there."""
    claims = load_claims("demo")
    explaining = [comparison for comparison in claims.comparisons if comparison.analysis is not None]
    assert {comparison.overrides["setup"] for comparison in explaining} == {"II"}
    (candidates,) = (c for c in claims.comparisons if c.id == "xtr_fewer_candidates")
    assert candidates.overrides["index"] == "plaid"
    assert candidates.overrides["index.num_partitions"] == "1024"  # as every cell under PLAID has at this scale
    ids = {comparison.id for comparison in claims.comparisons}
    assert {"distillation_lexical_colbert", "distillation_narrows_colbert", "distillation_widens_xtr"} <= ids


@pytest.mark.parametrize(("scale", "memory"), [("demo", "mmap"), ("desk", "mmap"), ("lab", "vram"), ("paper", "vram")])
def test_where_there_is_a_gpu_warp_is_timed_on_it_as_plaid_is(scale: str, memory: str) -> None:
    """PLAID searches on machine.device. `mmap` would have WARP search on the CPU beside it."""
    assert [_placement(memory, device)[0] for device in ("cuda:0", "cpu")[: 1 if memory == "vram" else 2]] == (
        ["cuda:0"] if memory == "vram" else ["cpu", "cpu"]
    )
    claims, figure = load_claims(scale), load("figure2", scale)
    cells = {row.name: row.overrides or {} for row in claims.rows}
    searched = [cell for cell in cells.values() if cell.get("index") == "warp"]
    assert len(searched) == 4
    assert {cell["index.memory"] for cell in searched} == {memory}
    column = figure.columns[0]
    rows = [row for row in figure.rows if row.overrides is not None]
    for engine in ("warp", "plaid"):
        row = next(row for row in rows if (row.overrides or {})["index"] == engine)
        index = planning.cell_of(figure, row, column, {}).config.index
        assert index.get("memory") == (memory if engine == "warp" else None)


# --- times ------------------------------------------------------------------------------------------------------------


def timed(**fields: Any) -> Comparison:
    usual = {"says": "a is faster", "value": "seconds", "plus": ("a",), "minus": ("b",), "statistic": "log_ratio"}
    return Comparison(id="speed", **{**usual, "direction": "above", **fields})


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("spread", [0.005, 0.02, 0.1])
def test_of_twenty_identical_pairs_at_most_one_is_rejected(seeds: int, spread: float) -> None:
    """Processes differ by half a percent, by two or by ten. A test over the queries of one process each, as before,
    rejects more than half of the pairs at the smallest of these."""
    rng = np.random.default_rng(0)
    rejected, verdicts = 0, []
    for _ in range(20):
        trained = rng.normal(0, 0.05, (seeds, 1))
        one, two = (np.exp(-5 + trained + rng.normal(0, spread, (seeds, 5 if seeds == 1 else 1))) for _ in range(2))
        effect, power = effect_of_times("log_ratio", [one], [two])
        rejected += effect.p < 0.05
        (judged,) = judge_effects([timed()], {"speed": effect}, {}, {}, {}, {}, powers={"speed": power})
        verdicts.append(judged.verdict)
    assert rejected <= 1
    assert sum(verdict != INCONCLUSIVE for verdict in verdicts) <= 1


def test_the_test_over_processes_is_welchs_beyond_the_margin() -> None:
    rng = np.random.default_rng(0)
    one, two = np.exp(rng.normal(0.4, 0.1, (1, 5))), np.exp(rng.normal(0.0, 0.02, (1, 7)))
    found, power = effect_of_times("log_ratio", [one], [two])
    logs = np.log(one[0]), np.log(two[0])
    interval = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert found.p == pytest.approx(stats.ttest_ind(logs[0] - math.log(MATERIAL), logs[1], equal_var=False).pvalue)
    assert found.mean == pytest.approx(math.exp(logs[0].mean() - logs[1].mean()))
    assert 0.05 < power.of(math.log(1.2), 0.05) < power.of(math.log(1.5), 0.05)
    near, _ = effect_of_times("log_ratio", [two], [1.04 * two])
    assert near.p == 1.0  # within the margin, however clear
    alone, blind = effect_of_times("log_ratio", [one[:, :1]], [two[:, :1]])
    assert (alone.p, alone.low, alone.high) == (1.0, 0.0, math.inf)
    assert blind.of(1.0, 0.05) < 0.05


def test_several_trainings_are_the_units_of_a_test_of_times() -> None:
    rng = np.random.default_rng(0)
    one, two = (np.exp(rng.normal(level, 0.1, (5, 2))) for level in (0.5, 0.0))
    found, _ = effect_of_times("log_ratio", [one], [two])
    by_seed = np.log(one).mean(axis=1) - np.log(two).mean(axis=1)
    assert found.p == pytest.approx(stats.ttest_1samp(by_seed, math.log(MATERIAL)).pvalue)


def test_each_process_is_an_artifact_and_the_first_keeps_its_identity(
    collections: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five processes over two seeds each training has three; a cell set against itself has twice as many. All run
    after everything else, in an order that has nothing to do with the cells."""
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    claims = load_claims("demo", ["warp_faster_xtr"])
    overrides = {"data": "beir/mini/test", "model.layers": "1", "train.steps": "1"}
    plans = planning.plan(dataclasses.replace(claims, seeds=(1, 2)), overrides)
    assert plans.processes == 3
    assert not plans.missing
    counts = {row: sum(key[0] == row for key in plans.timings) for row in ("plaid_xtr", "warp_xtr")}
    assert counts == {"plaid_xtr": 12, "warp_xtr": 6}
    first, second = (plans.timings["warp_xtr", 0, process].specs["latency"] for process in (0, 1))
    assert first.config["repeats"] == 3
    assert not {"process", "processes"} & first.config.keys()  # as when there was only one
    assert second.config == {**first.config, "process": 1}
    tasks = missing_tasks(plans.all())
    order = [task.stage == "latency" for task in tasks]
    assert order == sorted(order)
    cells = [task.targets[0].cfg.index["engine"] for task in tasks if task.stage == "latency"]
    assert sum(one != two for one, two in pairwise(cells)) >= 4  # not one after the other


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_a_baseline_that_was_not_trained_gives_no_verdict(bench: Bench, tmp_path: Path) -> None:
    """ColBERT of setup (II) three points below that of (I): what compares with it has no verdict, the rest has."""
    experiment = family(1)
    cells = scores(experiment, 1.0)
    level = float(np.mean(cells["colbert", "", 0]))

    def verdicts(below: float) -> dict[str, Effect]:
        own = np.asarray(cells["plaid_colbert", "", 0])
        moved = {**cells, ("plaid_colbert", "", 0): own - own.mean() + level - below}
        made = bench.result(experiment, moved, processes=5, analyses=widths(tmp_path / str(below), 1, 1.0))
        return {effect.id: effect for effect in made.effects}

    for name in ("0.03", "0.01"):
        (tmp_path / name).mkdir()
    gated, trained = verdicts(0.03), verdicts(0.01)
    behind = {"xtr_faster_plaid", "colbert_loses_under_warp", "xtr_widens_scores", SAME_PROCESSES}
    assert {name for name, effect in gated.items() if effect.verdict == UNTRAINED} == behind
    assert "0.030 below, and the margin is 0.02" in gated["colbert_loses_under_warp"].note
    assert gated["colbert_loses_under_warp"].effect is not None
    assert not [name for name, effect in trained.items() if effect.verdict == UNTRAINED]


def test_a_gate_that_could_not_be_read_leaves_no_verdict(bench: Bench, tmp_path: Path) -> None:
    experiment = family(1)
    cells: dict[Any, Any] = {**scores(experiment, 1.0), ("colbert", "", 0): "no memory"}
    result = bench.result(experiment, cells, processes=5, analyses=widths(tmp_path, 1, 1.0))
    (widens,) = (effect for effect in result.effects if effect.id == "xtr_widens_scores")
    assert (widens.verdict, widens.effect) == ("not run", None)
    assert "says whether the baseline is trained" in widens.note


def test_any_definition_can_have_families_and_gates(tmp_path: Path) -> None:
    text = """title: Mine
cells: {a: [setup=I, config=colbert], b: [setup=II, config=colbert], c: [setup=II, config=xtr_k128]}
gates: [{cell: b, like: a, of: [setup=II, config=colbert], measure: nDCG@10, margin: 0.05}]
comparisons:
  - {id: one, says: s, value: nDCG@10, plus: [b], minus: [c], direction: above, family: primary, detect: 0.1}
  - {id: two, says: s, value: nDCG@10, plus: [c], minus: [a], direction: above}
"""
    (path := tmp_path / "mine.yaml").write_text(text)
    mine = parse(path, "demo")
    assert [comparison.family for comparison in mine.comparisons] == ["primary", "exploratory"]
    assert [len(mine.gates_of(comparison)) for comparison in mine.comparisons] == [1, 0]
    for old, new, words in (
        ("cell: b,", "cell: x,", "'x' is no cell"),
        ("margin", "margn", "did you mean margin"),
        ("detect: 0.1", "detect: 0, statistic: log_ratio", "`detect` is of a direction"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UsageError, match=words):
            parse(path, "demo")


# --- power ------------------------------------------------------------------------------------------------------------


def test_the_power_of_students_test_is_the_noncentral_t() -> None:
    power = StudentPower(0.5, 9).of(1.0, 0.05)
    reach = stats.t.isf(0.025, 9)
    assert power == pytest.approx(stats.nct.sf(reach, 9, 2.0) + stats.nct.cdf(-reach, 9, 2.0), abs=0.005)
    rng = np.random.default_rng(0)
    one = rng.normal(0, 0.3, (1, 60))
    assert power_of(one) == StudentPower(pytest.approx(stats.sem(one[0])), 59)
    assert power_of(one[:, :1]) is None


def test_the_power_over_seeds_and_queries_is_that_of_simulated_experiments() -> None:
    """400 experiments of 5 seeds and 60 queries, drawn value by value."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        grid = 0.25 + 0.1 * rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=60) + 0.5 * rng.normal(size=(5, 60))
        found.append(two_sided(float(grid.mean()), *standard_errors(grid)) < 0.05)
    squares = (60 * 0.01 + 0.25, 5 * 0.25 + 0.25, 0.25)
    power = CrossedPower(squares, 5, 60).of(0.25, 0.05)
    assert power == pytest.approx(np.mean(found), abs=0.07)
    assert CrossedPower(squares, 5, 60).of(0.0, 0.05) < 0.06
    assert CrossedPower(squares, 5, 60).of(0.25, 0.01) < power


def test_latency_is_the_last_stage() -> None:
    """Randomised times come after all work of the same plans."""
    assert list(BY_NAME)[-1] == "latency"
    with pytest.raises(UsageError, match=r"latency\.processes must be positive"):
        compose(["latency.processes=0"])


@pytest.mark.slow
def test_twenty_identical_pairs_of_measured_processes(
    collections: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty processes over one small index, parted by chance into two groups of five, twenty times."""
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    words = ("data=beir/mini/test", "model.source=untrained", "model.layers=1", "index=exact", "latency.max_queries=20")
    cell = Cell("", compose(list(words)), ("latency",))
    plans = {("a", 0, process): cell.with_process(process).plan() for process in range(20)}
    done = pipeline.run(list(plans.values()))
    assert len({folders["latency"] for folders in done.folders}) == 20
    folders = {key: own["latency"] for key, own in zip(plans, done.folders, strict=True)}
    taken = Times(folders, 1).per_process("a", 20).values
    rng, rejected = np.random.default_rng(0), 0
    for _ in range(20):
        chosen = rng.permutation(20)
        effect, _ = effect_of_times("log_ratio", [taken[:, chosen[:5]]], [taken[:, chosen[5:10]]])
        rejected += effect.p < 0.05
    spread = np.log(taken).std(ddof=1)
    print(f"{rejected} of 20 pairs rejected; processes differ by {spread:.1%}")
    assert rejected <= 1
