"""Claims: Holm by hand, every verdict on made-up scores, nothing found in noise, faulty files, one run as a user."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, Cli
from scipy import stats
from xtrrep.claims import (
    CONTRADICTED,
    HELD_OUT,
    INCONCLUSIVE,
    NOT_RUN,
    SAME,
    SUPPORTED,
    Claim,
    Plans,
    best_of,
    effect_of,
    judge,
    parse_claims,
)

from xtrrep import artifacts, claims
from xtrrep.artifacts import Spec
from xtrrep.config import compose
from xtrrep.console import MISSING, OK, DataError, UsageError
from xtrrep.measure.significance import Difference, holm, paired, paired_over_seeds, ratio_over_seeds

RESAMPLES = 1000


def made(name: str = "made", **fields: object) -> Claim:
    usual = {"says": "a is above b", "where": "nowhere", "value": "nDCG@10", "plus": ("a",), "minus": ("b",)}
    return Claim(id=name, **{**usual, **fields})  # type: ignore[arg-type]


def above(**fields: object) -> Claim:
    return made(direction="above", **fields)


def noise(*shape: int, seed: int = 0, scale: float = 0.2) -> np.ndarray:
    """Differences with mean 0 over each row."""
    values = np.random.default_rng(seed).normal(0, scale, shape)
    return np.asarray(values - values.mean(axis=-1, keepdims=True))


def judged(claim: Claim, plus: np.ndarray, minus: np.ndarray) -> claims.Result:
    effect = effect_of(claim.statistic, [plus], [minus], RESAMPLES)
    return judge([claim], {claim.id: effect}, {}, {claim.id: ("run",)})[0]


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
    as they say. Drawing three seeds from themselves alone held it in 4 of 5 cases and rejected in 1 of 5."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        grid = rng.normal(0, 0.02, (3, 100)) + rng.normal(0, 0.02, (3, 1))
        found.append(paired_over_seeds(grid, np.zeros_like(grid), resamples=200))
    assert sum(one.p < 0.05 for one in found) <= 6
    assert sum(one.low <= 0 <= one.high for one in found) >= 54


def test_over_seeds_p_is_at_least_that_of_a_t_test_of_their_means() -> None:
    rng = np.random.default_rng(1)
    grid = rng.normal(0.01, 1e-4, (4, 200)) + rng.normal(0, 0.005, (4, 1))
    found = paired_over_seeds(grid, np.zeros_like(grid), resamples=RESAMPLES)
    expected = stats.ttest_1samp(grid.mean(axis=1), 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    ratio = ratio_over_seeds(1 + grid, np.ones_like(grid), resamples=RESAMPLES)
    logs = stats.ttest_1samp(np.log((1 + grid).mean(axis=1)), 0).confidence_interval(0.95)
    assert (ratio.low, ratio.high) == pytest.approx(tuple(np.exp(logs)), rel=1e-6)


def test_times_of_another_hour_or_of_a_busy_machine_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made_of = {
        "a": ("2026-01-01T10:00:00Z", 0.99),
        "b": ("2026-01-01T10:50:00Z", 0.98),
        "late": ("2026-01-01T12:00:00Z", 0.99),
        "starved": ("2026-01-01T10:10:00Z", 0.55),
    }
    monkeypatch.setattr(
        claims.artifacts,
        "read_manifest",
        lambda folder: {
            "made": made_of[str(folder)][0],
            "facts": {"threads": 1, "cpu_per_wall": made_of[str(folder)][1]},
        },
    )
    assert claims.doubt_of_times([Path("a"), Path("b")]) == ""
    assert "2.0 hours apart" in claims.doubt_of_times([Path("a"), Path("late")])
    assert "had 0.55 of a processor's time" in claims.doubt_of_times([Path("a"), Path("starved")])
    faster = made("speed", value="seconds", direction="below")
    effect = Difference(-1.0, -1.1, -0.9, 0.0002, 50)
    (sure,) = claims.judge([faster], {"speed": effect}, {}, {"speed": ()})
    (unsure,) = claims.judge([faster], {"speed": effect}, {}, {"speed": ()}, {"speed": "measured 2.0 hours apart"})
    assert (sure.verdict, unsure.verdict, unsure.note) == (SUPPORTED, INCONCLUSIVE, "measured 2.0 hours apart")


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_query_says_nothing_under_however_many_seeds(seeds: int) -> None:
    plus, minus = np.full((seeds, 1), 0.9), np.full((seeds, 1), 0.1)
    alone = paired_over_seeds(plus, minus, resamples=RESAMPLES)
    assert (alone.mean, alone.p, alone.queries) == (pytest.approx(0.8), 1.0, 1)
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    assert ratio_over_seeds(plus, minus, resamples=RESAMPLES).mean == pytest.approx(9)
    for claim in (above(), made(within=(-1.0, 1.0)), made(statistic="ratio", within=(0.99, math.inf))):
        assert judged(claim, plus, minus).verdict == INCONCLUSIVE
    shown = claims.table(compose([]), [judged(above(), plus, minus)], []).rows[0]
    assert shown[4:7] == [pytest.approx(0.8), None, None]


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


def test_the_best_is_chosen_on_the_other_half() -> None:
    one, two = np.array([[1.0, 0.0, 1.0, 0.0]]), np.array([[0.0, 0.9, 0.0, 0.9]])
    # On queries 1 and 3 `two` is better, so it answers 0 and 2, and the other way round: chance is not rewarded.
    assert best_of([one, two], HELD_OUT).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert best_of([one, two], SAME).tolist() == one.tolist()
    assert best_of([one, one + 1], HELD_OUT).tolist() == (one + 1).tolist()
    with pytest.raises(DataError, match="only one query"):
        best_of([one[:, :1], two[:, :1]], HELD_OUT)


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_superiority_is_two_sided() -> None:
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
def test_equivalence_is_judged_by_the_interval(
    shift: float, scale: float, within: tuple[float, float], verdict: str
) -> None:
    b = noise(1, 100) + 0.5
    found = judged(made(within=within), b + shift + noise(1, 100, seed=1, scale=scale), b)
    assert (found.verdict, found.p) == (verdict, None)


@pytest.mark.parametrize(("kept", "verdict"), [(0.998, SUPPORTED), (0.95, CONTRADICTED), (0.99, INCONCLUSIVE)])
def test_at_least_99_percent(kept: float, verdict: str) -> None:
    b = noise(1, 400) + 1.0
    claim = made(statistic="ratio", within=(0.99, math.inf))
    assert judged(claim, kept * b + noise(1, 400, seed=1, scale=0.01), b).verdict == verdict
    assert claim.expected == "≥ 0.99"


def test_the_correction_is_over_the_tests_that_were_made() -> None:
    """Equivalence and what did not run are no part of the family."""
    family = [above(name="a"), above(name="b"), made("c", within=(-1.0, 1.0)), above(name="d")]
    effects = {name: Difference(0.1, 0.05, 0.15, 0.03, 100) for name in "abc"}
    found = judge(family, effects, {"d": "no teacher"}, dict.fromkeys("abc", ("run",)))
    assert [r.p for r in found] == [0.06, 0.06, None, None]
    assert [r.verdict for r in found] == [INCONCLUSIVE, INCONCLUSIVE, SUPPORTED, NOT_RUN]
    assert found[-1].note == "no teacher"
    alone = judge(family[:1], effects, {}, {"a": ("run",)})
    assert (alone[0].p, alone[0].verdict) == (0.03, SUPPORTED)
    assert claims.status(found) == OK
    assert claims.status(found[-1:]) == MISSING


def test_nothing_is_found_in_shuffled_labels() -> None:
    """Twenty claims about differences whose signs are chance."""
    family, effects = [], {}
    for number in range(20):
        rng = np.random.default_rng(number)
        delta = np.abs(rng.normal(0, 0.2, (1, 150))) * rng.choice([-1, 1], (1, 150))
        family.append(made(f"c{number}", direction="above" if number % 2 else "below"))
        effects[f"c{number}"] = effect_of("difference", [delta], [0 * delta], RESAMPLES)
    verdicts = {r.verdict for r in judge(family, effects, {}, dict.fromkeys(effects, ()))}
    assert verdicts == {INCONCLUSIVE}


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_every_cell_composes(scale: str) -> None:
    family = claims.load(scale)
    used = {cell for claim in family.claims for name in (*claim.plus, *claim.minus) for cell in family.members(name)}
    read = {claim.id for claim in family.claims if claim.analysis}
    assert family.cells.keys() <= used, "a cell that no claim needs"
    assert len(family.claims) == 37
    seen: set[str] = set()
    for cell, own in family.cells.items():
        if set(own) <= seen or (scale == "paper" and cell not in ("k128", "plaid_xtr")):
            continue  # each word once, if not in every company; at paper scale only numbers are others
        seen |= set(own)
        cfg = compose(claims.words_of(family, cell, 43, []))
        assert (cfg.scale, cfg.train.seed, cfg.model.seed, cfg.distill.seed) == (scale, 43, 43, 43)
        assert "nDCG@10" in cfg.data.measures
    words = {tuple(claims.analysis_words(family, c, 42, [])) for c in family.claims if c.id in read}
    for own in sorted(words):
        assert compose(own).analyze.name in ("distribution", "geometry", "tokens")


def test_what_a_claim_needs_is_said() -> None:
    family, base = claims.load("demo"), compose([])
    reasons = {claim.id: claims.blocked(claim, base) for claim in family.claims}
    assert {name for name, reason in reasons.items() if reason} == {
        "anisotropy_not_speed", "k128_alone_diverges", "z_needed", "self_match",
    }  # fmt: skip
    assert "scale=paper" in str(reasons["z_needed"])
    paper = compose(["scale=paper", "data=beir/arguana"])
    at_paper = {claim.id: claims.blocked(claim, paper) for claim in claims.load("paper").claims}
    assert {name for name, reason in at_paper.items() if reason} == {"z_needed"}


def test_what_the_cells_say_cannot_be_overridden() -> None:
    family = claims.load("demo", ["colbert_keeps_quality"])
    for word in ("config=xtr_k64", "index=warp", "index.nprobe=3", "retrieve.k_prime=3", "data.measures=[R@1]"):
        with pytest.raises(UsageError, match="cannot be given"):
            claims.base_config(family, [word])
    with pytest.raises(UsageError, match="under which seeds") as caught:
        claims.base_config(family, ["train.seed=3"])
    assert "claims.seeds" in str(caught.value.hint)
    with pytest.raises(UsageError, match="not trained here"):
        claims.base_config(family, ["model.source=untrained", "claims.seeds=[1,2]"])
    with pytest.raises(UsageError, match=r"claims\.seeds"):
        compose(["claims.seeds=[1,1]"])
    with pytest.raises(UsageError, match="too few"):
        compose(["claims.resamples=5"])
    with pytest.raises(UsageError, match=r"no claim .colbert_keeps") as caught:
        claims.load("demo", ["colbert_keeps"])
    assert "colbert_keeps_quality" in str(caught.value.hint)


HEAD = "numbers: {demo: {k: 1}, paper: {k: 2}}\ncells: {a: ['retrieve.k_prime={k}'], b: []}\n"
SOUND = "{id: c, says: s, where: w, value: nDCG@10, plus: [a], minus: [b], direction: above}"
FAULTY = {
    "claims: [": "not YAML",
    "cells: {}\nclaims: []": "no 'numbers'",
    f"{HEAD}claims: []\nclames: []": "unknown key 'clames'",
    f"{HEAD}claims: [{SOUND}, {SOUND}]": "claim 'c' stands there twice",
    HEAD.replace("{k}", "{depth}") + "claims: []": "cell a uses 'depth'",
    HEAD.replace("{demo: {k: 1}, ", "{") + "claims: []": "no 'demo'",
    "numbers: {demo: {}, paper: {}}\ncells: []\nclaims: []": "cells is not a mapping",
    f"{HEAD}claims: [{SOUND.replace('plus: [a]', 'plus: [z]')}]": "'z' is no cell",
    f"{HEAD}best: {{g: {{of: [y], chosen: same}}}}\nclaims: []": "'y' is no cell",
    f"{HEAD}best: {{g: {{of: [a], chosen: later}}}}\nclaims: []": "chosen by 'later'",
    f"{HEAD}claims: [{SOUND.replace('direction', 'directoin')}]": "unknown key 'directoin'",
    f"{HEAD}claims: [{SOUND.replace('above', 'up')}]": "no direction 'up'",
    f"{HEAD}claims: [{SOUND.replace(', direction: above', '')}]": "either a direction or an interval",
    f"{HEAD}claims: [{SOUND.replace('above', 'above, within: [0, 1]')}]": "either a direction or an interval",
    f"{HEAD}claims: [{SOUND.replace('direction: above', 'within: [1, 0]')}]": "everything or nothing",
    f"{HEAD}claims: [{SOUND.replace('direction: above', 'within: 3')}]": "not two bounds",
    f"{HEAD}claims: [{SOUND.replace('nDCG@10', 'nDCGG@10')}]": "nDCGG@10",
    f"{HEAD}claims: [{SOUND.replace('minus: [b], ', '')}]": "plus and minus",
    f"{HEAD}claims: [{SOUND.replace('plus: [a], minus: [b], ', '')}]": "has no plus",
    f"{HEAD}claims: [{SOUND.replace('above', 'above, statistic: median')}]": "no statistic 'median'",
    f"{HEAD}claims: [{SOUND.replace('above', 'above, needs: {scale: paper}')}]": "needs and why",
    f"{HEAD}claims: [{SOUND.replace('above', 'above, analysis: candidates')}]": "'candidates' with values by unit",
}


@pytest.mark.parametrize("text", FAULTY)
def test_a_faulty_file_is_named_with_its_fault(tmp_path: Path, text: str) -> None:
    path = tmp_path / "made.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"made\.yaml") as caught:
        parse_claims(path, "demo")
    assert FAULTY[text] in str(caught.value)


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "made.yaml"
    path.write_text(HEAD.replace("paper", "lab: {k: 3}, paper") + f"claims: [{SOUND}]")
    for scale, depth in (("demo", 1), ("lab", 3), ("paper", 2)):
        assert parse_claims(path, scale).cells["a"] == (f"retrieve.k_prime={depth}",)


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_claim_that_cannot_run_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds, made-up runs: one claim by nDCG@10, one by seconds, one of other queries, one that lacks a run."""
    cells: dict[str, tuple[str, ...]] = dict.fromkeys(("a", "b", "short", "lost"), ())
    family = claims.Family(
        "demo",
        cells,
        {},
        ("nDCG@10",),
        (
            above(name="quality"),
            made("speed", value="seconds", statistic="log_ratio", direction="below"),
            above(name="uneven", minus=("short",)),
            above(name="lacking", minus=("lost",)),
        ),
    )
    base = compose(["claims.seeds=[1,2,3]", f"claims.resamples={RESAMPLES}"])
    rng = np.random.default_rng(0)
    monkeypatch.setattr(claims, "doubt_of_times", lambda made: "")

    def folders(cell: str, seed: int) -> Mapping[str, Path]:
        folder = tmp_path / f"{cell}{seed}"
        folder.mkdir()
        level = {"a": 0.7, "b": 0.5, "short": 0.5}[cell]
        names = [f"0{i}" for i in range(30 if cell == "short" else 40)]
        values = rng.normal(level, 0.05, len(names))
        for name, column in (("per_query", "nDCG@10"), ("latency", "wall")):
            lines = [f"query,{column}", *(f"{q},{v}" for q, v in zip(names, values, strict=True))]
            (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        return dict.fromkeys(("evaluate", "latency"), folder)

    def planned(*args: object, **options: object) -> Plans:
        keys = {key for claim in family.claims for key in claims.keys_of(family, claim, base.claims.seeds)}
        made_of = {
            key: SimpleNamespace(fingerprint="-".join(map(str, key))) for key in sorted(keys) if key[1] != "lost"
        }
        ready = {key: SimpleNamespace(specs={key[0]: spec}) for key, spec in made_of.items()}
        return Plans(ready, {}, {key: "no teacher here" for key in keys if key[1] == "lost"}, {})  # type: ignore[arg-type]

    written: dict[tuple[str, int], Mapping[str, Path]] = {}

    def carried(ready: Mapping[claims.Key, object], reasons: object) -> dict[claims.Key, Mapping[str, Path]]:
        for cell, seed in sorted({key[1:] for key in ready}):
            written[cell, seed] = folders(cell, seed)
        return {key: written[key[1], key[2]] for key in ready}

    monkeypatch.setattr(claims, "plan", planned)
    monkeypatch.setattr(claims, "carry_out", carried)
    found = {r.claim.id: r for r in claims.measure(family, base, [])}
    assert {name: r.verdict for name, r in found.items()} == {
        "quality": SUPPORTED, "speed": CONTRADICTED, "uneven": NOT_RUN, "lacking": NOT_RUN,
    }  # fmt: skip
    assert found["quality"].effect is not None
    assert found["quality"].effect.mean == pytest.approx(0.2, abs=0.03)
    assert found["quality"].runs == tuple(f"evaluate-{cell}-{seed}" for cell in "ab" for seed in (1, 2, 3))
    assert "not over the same queries" in found["uneven"].note
    assert found["lacking"].note == "lost: no teacher here"
    shown = claims.table(base, list(found.values()), [])
    text = shown.terminal()
    assert "speak of retraining too" in text
    assert "not of retraining" not in text
    assert "—" in text


# --- claims on analyses ---------------------------------------------------------------------------------------------

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
    claim = above(analysis="tokens", value="gold@mean")
    values = {seed: {name: noise(120, seed=10 * seed + at) for at, name in enumerate("abc")} for seed in (1, 2)}
    folders = [write_units(tmp_path / str(seed), "gold@mean", values[seed], order=seed) for seed in (1, 2)]
    grids = claims._read_analysis(claim, folders)
    assert set(grids) == {"a", "b"}
    lines = (folders[0] / "units.csv").read_text().splitlines()
    order = [UNITS.index(line.split(",")[2]) for line in lines if line.startswith("a,")]
    for name, grid in grids.items():
        np.testing.assert_array_equal(grid, [values[seed][name][order] for seed in (1, 2)])
    lines = (folders[1] / "units.csv").read_text().splitlines()
    for text, fault in (
        ("\n".join(lines[:-1]), "not over the same"),
        ("\n".join([*lines, lines[-1]]), "once for every unit"),
        ("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ","]), "once for every unit"),
        ("\n".join(lines).replace("gold@mean", "gold@1", 1), "no column 'gold@mean'"),
    ):
        (folders[1] / "units.csv").write_text(text)
        with pytest.raises(DataError, match=fault):
            claims._read_analysis(claim, folders)


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_analyses_are_tested_over_units_and_shuffled_labels_find_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: tuple[int, ...]
) -> None:
    """Model a is above b in every analysis. With the two names swapped by chance, unit by unit, no claim is left."""
    sound = [above(name=f"{at}", analysis=name, value=VALUES[name]) for at, name in enumerate([*VALUES] * 4)]
    family = claims.Family("demo", {}, {}, (), tuple(sound))
    base = compose([f"claims.seeds=[{','.join(map(str, seeds))}]", f"claims.resamples={RESAMPLES}"])

    def verdicts(where: str, swap: float) -> list[claims.Result]:
        made_of = {}
        for claim in sound:
            difficulty = noise(120, seed=int(claim.id))
            for seed in seeds:
                rng = np.random.default_rng([int(claim.id), seed])
                a, b = difficulty + 0.55 + rng.normal(0, 0.05, 120), difficulty + 0.5 + rng.normal(0, 0.05, 120)
                other = rng.random(120) < swap
                models = {"a": np.where(other, b, a), "b": np.where(other, a, b)}
                folder = write_units(tmp_path / where / f"{claim.id}-{seed}", claim.value, models)
                made_of[claim.id, seed] = SimpleNamespace(folder=folder, spec=SimpleNamespace(fingerprint=folder.name))
        monkeypatch.setattr(claims, "plan", lambda *args, **options: Plans({}, made_of, {}, {}))
        monkeypatch.setattr(claims.pipeline, "run_analysis", lambda whole: (whole.folder, None))
        return claims.measure(family, base, [])

    true = verdicts("true", 0.0)
    assert {r.verdict for r in true} == {SUPPORTED}
    assert [r.note for r in true[:3]] == ["over documents", "over queries", "over queries"]
    assert true[1].runs == tuple(f"1-{seed}" for seed in seeds)
    assert true[0].effect is not None
    assert true[0].effect.mean == pytest.approx(0.05, abs=0.02)
    assert true[0].effect.queries == 120
    assert {r.verdict for r in verdicts("shuffled", 0.5)} == {INCONCLUSIVE}
    assert "the effect is of the mean over them" in claims.table(base, true, []).terminal()


def read(path: Path) -> Sequence[Mapping[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_claims_as_a_user_would(cli: Cli) -> None:
    """Two models trained small, a claim of each kind, and one that needs another collection."""
    names = ("colbert_keeps_quality", "xtr_fewer_candidates", "xtr_less_anisotropic", "self_match")
    only = [f"--only={name}" for name in names]
    done = cli("claims", *TINY, "claims.resamples=200", *only, "--json")
    made = json.loads(done.stdout)
    rows = {row["claim"]: row for row in made["claims"]}
    kept, fewer, narrow, needy = (rows[name] for name in names)
    assert kept["95 % low"] <= kept["effect"] <= kept["95 % high"]
    assert kept["p (Holm)"] is None
    assert 0 < fewer["p (Holm)"] <= 1
    assert {row["verdict"] for row in (kept, fewer, narrow)} <= {SUPPORTED, CONTRADICTED, INCONCLUSIVE}
    assert len(fewer["runs"].split()) == 2
    assert narrow["note"] == "over documents"
    assert narrow["95 % low"] < narrow["effect"] < narrow["95 % high"]
    (analysis,) = Path(made["folder"]).parents[1].glob(f"analyze/*{narrow['runs']}/table.csv")
    cosine = {row["model"]: float(row["mean cosine"]) for row in read(analysis)}
    assert narrow["effect"] == pytest.approx(cosine["xtr_k128"] - cosine["colbert"])
    assert (needy["verdict"], needy["effect"]) == (NOT_RUN, None)
    assert "beir/arguana" in needy["note"]
    assert any("not of retraining" in note for note in made["notes"])
    folder = Path(made["folder"])
    assert [row["claim"] for row in read(folder / "table.csv")] == list(rows)
    for suffix in ("csv", "md", "txt", "html", "tex"):
        assert (folder / f"table.{suffix}").stat().st_size > 500


def test_what_is_recorded_of_accepted_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "recorded_root", lambda: tmp_path / "recorded")
    monkeypatch.setenv("XTRREP_COMMIT", "abc")
    spec = Spec("claims", "mini-demo", 1, {})
    folder = artifacts.make(spec, tmp_path, lambda out: {"written": (out / "table.csv").write_text("claim\n")})
    family = claims.Family("demo", {}, {}, (), ())
    out = claims.accept(folder, family, ["claims.seeds=[1,2]"])
    assert out == tmp_path / "recorded" / "claims" / "mini-demo"
    assert (out / "table.csv").read_text() == "claim\n"
    record = json.loads((out / "record.json").read_text())
    assert (record["commit"], record["seeds"], record["overrides"]) == ("abc", [1, 2], ["claims.seeds=[1,2]"])
    assert (record["scale"], record["seconds"]) == ("demo", 0)  # nothing was run for no claim


def test_claims_made_otherwise_are_not_recorded_over(
    tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setattr(claims, "recorded_root", lambda: tmp_path)
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    family = claims.Family("demo", {}, {}, (), ())
    mini = "data=beir/mini/test"
    claims.check_accept(family, [mini])  # nothing is recorded
    folder = tmp_path / "claims" / "beir-mini-test-demo"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"overrides": [mini, "claims.seeds=[1,2]"]}))
    claims.check_accept(family, [mini, "claims.seeds=[1,2]"])
    claims.check_accept(family, [mini, "claims.seeds=[1,2]", "machine.threads=1"])  # how fast is no other claim
    with pytest.raises(DataError, match=r"was accepted with data=beir/mini/test claims.seeds=\[1,2\], not with these"):
        claims.check_accept(family, [mini])
    assert "whose tests are corrected together" in cli("claims", "--accept", "--only=self_match", code=2).stderr
    assert "nothing is" in cli("claims", "--accept", "--dry-run", code=2).stderr
