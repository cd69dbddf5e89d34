"""Scores as mteb keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli

from xtrrep.pipeline import mteb


@pytest.mark.parametrize(
    ("id", "task", "split"),
    [
        ("beir/nfcorpus/test", "NFCorpus", "test"),
        ("beir/webis-touche2020/v2", "Touche2020", "test"),
        ("beir/msmarco/dev", "MSMARCO", "dev"),
        ("beir/cqadupstack/gis", "CQADupstackGisRetrieval", "test"),
        ("lotte/writing/test/search", "lotte-writing-test-search", "test"),
        ("hub:me/my set", "hub-me-my-set", "test"),
    ],
)
def test_a_collection_is_known_by_mteb_s_name(id: str, task: str, split: str) -> None:
    assert mteb.task_of(id) == (task, split)


def test_scores_in_mteb_s_json(cli: Cli, tmp_path: Path) -> None:
    """The fields that mteb 2.26's TaskResult requires, and its names of measures."""
    out = tmp_path / "NFCorpus.json"
    words = ("eval", "index=bm25", "data=beir/mini/test", "data.measures=[nDCG@10,Recall@100,RR@10]")
    done = cli(*words, "--mteb", str(out), "--json")
    measures = json.loads(done.stdout)["measures"]
    found = json.loads(out.read_text())
    assert set(found) == {
        "dataset_revision",
        "task_name",
        "mteb_version",
        "scores",
        "evaluation_time",
        "kg_co2_emissions",
    }
    (scores,) = found["scores"]["test"]
    assert scores["main_score"] == scores["ndcg_at_10"] == measures["nDCG@10"]
    assert scores["recall_at_100"] == measures["R@100"]
    assert scores["mrr_at_10"] == measures["RR@10"]
    assert (scores["hf_subset"], scores["languages"]) == ("default", ["eng-Latn"])
    assert found["dataset_revision"]


def test_mteb_s_own_loader_reads_it(tmp_path: Path) -> None:
    library = pytest.importorskip("mteb", reason="mteb is not installed: pip install mteb")
    path = tmp_path / "NFCorpus.json"
    path.write_text(json.dumps(mteb.result("beir/nfcorpus/test", "r", {"nDCG@10": 0.5, "R@100": 0.25})))
    loaded = library.results.TaskResult.from_disk(path)
    assert loaded.get_score() == 0.5
    assert loaded.task_name == "NFCorpus"


def test_the_score_that_mteb_ranks_by_must_be_measured(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "eval", "index=bm25", "data=beir/mini/test", "data.measures=[P@5]", "--mteb", str(tmp_path / "x"), code=2
    )
    assert "a result of mteb needs the measure nDCG@10" in done.stderr
    assert "hint: data.measures=[nDCG@10,P@5]" in done.stderr
