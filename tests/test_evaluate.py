"""Measures from a run file: three independent readers agree, on ties, missing queries and all."""

import gzip
import math
import random
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from xtrrep.console import DataError, UsageError
from xtrrep.measure import run_file
from xtrrep.measure.evaluate import canonical, evaluate, read_by_query
from xtrrep.measure.significance import paired

Qrels = dict[str, dict[str, int]]
MEASURES = ["nDCG@10", "Recall@100", "MRR@10", "Success@5"]


def reference(qrels: Qrels, path: Path) -> dict[str, dict[str, float]]:
    """The four measures from a run file, by their definitions."""
    run: dict[str, list[tuple[float, str]]] = {}
    for line in path.read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        run.setdefault(query, []).append((float(score), document))
    out = {}
    for query, grades in qrels.items():
        ranked = [d for _, d in sorted(run.get(query, []), key=lambda pair: -pair[0])]
        gains = [max(0, grades.get(d, 0)) for d in ranked]
        ideal = sorted((g for g in grades.values() if g > 0), reverse=True)
        dcg = sum(g / math.log2(i + 2) for i, g in enumerate(gains[:10]))
        best = sum(g / math.log2(i + 2) for i, g in enumerate(ideal[:10]))
        relevant = {d for d, g in grades.items() if g > 0}
        first = next((i for i, d in enumerate(ranked) if d in relevant), None)
        out[query] = {
            "nDCG@10": dcg / best if best else 0.0,
            "Recall@100": len(relevant & set(ranked[:100])) / len(relevant) if relevant else 0.0,
            "MRR@10": 1 / (first + 1) if first is not None and first < 10 else 0.0,
            "Success@5": float(first is not None and first < 5),
        }
    return out


def made_up(seed: int) -> tuple[Qrels, run_file.Run]:
    """Graded judgements and a run full of ties, with a query that returned nothing and one that is missing."""
    rng = random.Random(seed)
    documents = [f"d{i}" for i in range(150)]
    qrels = {f"q{i}": {d: rng.choice([0, 1, 2]) for d in rng.sample(documents, 12)} for i in range(25)}
    qrels["q0"] = {"d1": 1}
    run: run_file.Run = {}
    for query in list(qrels)[:-1]:
        scores = np.sort([round(rng.random() * 8) / 4 for _ in range(100)])[::-1].astype(np.float32)
        ranked = rng.sample(documents, 100)
        run[query] = [(d, float(s)) for d, s in zip(ranked, run_file.separate(scores), strict=True)]
    run["q3"] = []
    return qrels, run


@pytest.mark.parametrize("seed", range(5))
def test_four_readers_agree(seed: int, tmp_path: Path) -> None:
    qrels, run = made_up(seed)
    path = tmp_path / "run.trec"
    run_file.write(path, run, "tag")
    ours = evaluate(qrels, run_file.read(path), MEASURES)
    expected = reference(qrels, path)
    for query in qrels:
        for measure in MEASURES:
            assert ours.loc[query, measure] == pytest.approx(expected[query][measure], abs=1e-6)
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "recall_100", "success_5"})
    loaded = {q: dict(ranking) for q, ranking in run_file.read(path).items()}
    for query, row in evaluator.evaluate(loaded).items():
        for theirs, name in (("ndcg_cut_10", "nDCG@10"), ("recall_100", "Recall@100"), ("success_5", "Success@5")):
            assert ours.loc[query, name] == pytest.approx(row[theirs], abs=1e-6)
    parsed = {name: ir_measures.parse_measure(name) for name in MEASURES}
    judged = [ir_measures.Qrel(q, d, g) for q, row in qrels.items() for d, g in row.items()]
    means = ir_measures.calc_aggregate(list(parsed.values()), judged, ir_measures.read_trec_run(str(path)))
    for name, measure in parsed.items():
        assert ours[name].mean() == pytest.approx(means[measure], abs=1e-6)


def test_a_query_with_no_result_counts_zero() -> None:
    scores = evaluate({"a": {"x": 1}, "b": {"y": 1}}, {"a": [("x", 1.0)]}, ["nDCG@10", "MRR@10"])
    assert scores.loc["b"].tolist() == [0.0, 0.0]
    assert scores["nDCG@10"].mean() == 0.5


def test_run_files_round_trip(tmp_path: Path) -> None:
    values = np.float32([31.415926, 31.415924, 1e-8, -2.5])
    run = {"q": [(f"d{i}", float(v)) for i, v in enumerate(values)]}
    run_file.write(tmp_path / "r", run, "t")
    assert [np.float32(s) for _, s in run_file.read(tmp_path / "r")["q"]] == values.tolist()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="white space"):
        run_file.write(tmp_path / "r", {"q": [("a b", 1.0)]}, "t")
    assert not (tmp_path / "r").exists()
    (tmp_path / "bad").write_text("q Q0 d 1 0.5 t\nq Q0 d 2\n")
    with pytest.raises(DataError, match="bad:2"):
        run_file.read(tmp_path / "bad")
    with pytest.raises(DataError, match="no run file"):
        run_file.read(tmp_path / "none")
    with pytest.raises(UsageError, match="nDCGG@10"):
        evaluate({"q": {"d": 1}}, {"q": []}, ["nDCGG@10"])
    with pytest.raises(DataError, match="none of the judged"):
        evaluate({"q": {"d": 1}}, {"other": [("d", 1.0)]}, ["nDCG@10"])


@pytest.mark.parametrize("id", ["a\0b", "\ud800"])
def test_ids_that_trec_eval_ends_early_or_dies_of_never_reach_it(id: str, tmp_path: Path) -> None:
    """pytrec_eval takes "a\\0x" and "a\\0y" for one document, and aborts the process at two such queries."""
    for qrels, run in (
        ({"q": {id: 1}}, {"q": [("d", 1.0)]}),
        ({"q": {"d": 1}}, {"q": [(id, 1.0)]}),
        ({id: {"d": 1}, "q": {"d": 1}}, {"q": [("d", 1.0)]}),
    ):
        with pytest.raises(DataError, match=r"NUL|surrogate"):
            evaluate(qrels, run, MEASURES)
    with pytest.raises(DataError, match="cannot stand in a TREC run file"):
        run_file.write(tmp_path / "r", {"q": [(id, 1.0)]}, "t")


def test_grades_below_zero_count_as_zero_and_huge_ones_are_refused() -> None:
    """pytrec_eval writes outside its memory at a negative grade, and needs eight bytes for each step of the largest."""
    run = {f"q{n}": [(f"d{m}", float(-m)) for m in range(12)] for n in range(3)}
    for seed in range(200):
        rng = random.Random(seed)
        qrels = {q: {f"d{rng.randrange(12)}": rng.randint(-9, 1) for _ in range(5)} for q in run}
        clipped = {q: {d: max(0, grade) for d, grade in row.items()} for q, row in qrels.items()}
        assert evaluate(qrels, run, MEASURES).equals(evaluate(clipped, run, MEASURES))
    with pytest.raises(DataError, match="'q0' has a grade beyond 1,000,000"):
        evaluate({"q0": {"d": 2**31}}, run, MEASURES)


@pytest.mark.parametrize("score", ["1e39", "-1e39", "nan", "1_0"])
def test_a_score_that_no_float32_holds_is_refused_with_its_line(score: str, tmp_path: Path) -> None:
    (tmp_path / "r").write_text(f"q Q0 d 1 0.5 t\n\nq Q0 e 2 {score} t\n")
    with pytest.raises(DataError, match="r:3: the score"):
        run_file.read(tmp_path / "r")


def test_a_run_file_with_bom_crlf_and_in_gzip(tmp_path: Path) -> None:
    raw = b"\xef\xbb\xbfq Q0 d 1 0.5 t\r\nq Q0 \xc3\xa9 2 0.25 t"
    (tmp_path / "r").write_bytes(raw)
    (tmp_path / "r.gz").write_bytes(gzip.compress(raw))
    assert run_file.read(tmp_path / "r") == run_file.read(tmp_path / "r.gz") == {"q": [("d", 0.5), ("é", 0.25)]}
    (tmp_path / "r").write_bytes(b"q Q0 d 1 0.5 t\nq Q0 \xe9 2 0.25 t\n")
    with pytest.raises(DataError, match="r:2: not UTF-8"):
        run_file.read(tmp_path / "r")


def test_canonical_names() -> None:
    assert [canonical(m) for m in MEASURES] == ["nDCG@10", "R@100", "RR@10", "Success@5"]


@pytest.mark.parametrize("name", ["nDCG@0.1", "nDCG@1e400", "nDCG@0", "P@True", "RR@99999999999", "nDCG(dcg='x')@10"])
def test_a_measure_of_no_depth_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="measure") as caught:
        canonical(name)
    assert repr(name) in str(caught.value)


def test_paired_difference() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(200)
    clear = paired(base + 0.05 + rng.normal(0, 0.1, 200), base, resamples=2000)
    assert clear.low < clear.mean < clear.high
    assert clear.low > 0
    assert clear.p < 0.01
    assert paired(base, base).p == 1.0
    noise = [paired(rng.random(60), rng.random(60), resamples=500, seed=i).p < 0.05 for i in range(60)]
    assert sum(noise) <= 9  # about 3 of 60 expected when nothing differs
    with pytest.raises(DataError, match="pair"):
        paired([1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="finite"):
        paired([1.0, float("nan")], [1.0, 2.0])


def test_a_query_id_is_a_text_whatever_it_says(tmp_path: Path) -> None:
    (tmp_path / "per_query.csv").write_text("query,nDCG@10,other\nNA,0.5,\nnan,1.0,2\n007,0.25,3\n")
    found = read_by_query(tmp_path / "per_query.csv")
    assert list(found.index) == ["NA", "nan", "007"]
    assert list(found["nDCG@10"]) == [0.5, 1.0, 0.25]
    assert found["other"].isna().tolist() == [True, False, False]


@pytest.mark.parametrize("queries", [2, 5, 14, 300, 2000])
def test_interval_and_p_are_scipys(queries: int) -> None:
    """With the same draws: exactly, where scipy counts every flip as where it draws them."""
    from scipy.stats import bootstrap, permutation_test

    from xtrrep.measure import significance

    delta = np.round(np.random.default_rng(queries).normal(0.1, 1, queries), 2)
    mean = {"resamples": 1000, "seed": 3}
    theirs = bootstrap((delta,), np.mean, n_resamples=1000, method="percentile", batch=256, rng=3)
    ours = significance._bootstrap_means(delta, **mean)
    assert ours == pytest.approx(theirs.bootstrap_distribution, abs=1e-12)
    flips = permutation_test(
        (delta,), np.mean, permutation_type="samples", n_resamples=1000, vectorized=True, batch=256, rng=3
    )
    assert significance._permutation_p(delta, **mean) == pytest.approx(flips.pvalue, abs=1e-12)
