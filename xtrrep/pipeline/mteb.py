"""Scores as a result of mteb (the Massive Text Embedding Benchmark), to lie beside those of its leaderboard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from xtrrep.console import UsageError
from xtrrep.measure.evaluate import canonical

MAIN = "nDCG@10"  # the score that mteb ranks retrieval by
# mteb's names of BEIR's sets, where they are not the same word. Touché is BEIR's second version there.
TASKS = {
    "arguana": "ArguAna",
    "climate-fever": "ClimateFEVER",
    "dbpedia-entity": "DBPedia",
    "fever": "FEVER",
    "fiqa": "FiQA2018",
    "hotpotqa": "HotpotQA",
    "msmarco": "MSMARCO",
    "nfcorpus": "NFCorpus",
    "nq": "NQ",
    "quora": "QuoraRetrieval",
    "scidocs": "SCIDOCS",
    "scifact": "SciFact",
    "trec-covid": "TRECCOVID",
    "webis-touche2020/v2": "Touche2020",
}
KEYS = {
    "nDCG": "ndcg_at",
    "R": "recall_at",
    "P": "precision_at",
    "AP": "map_at",
    "RR": "mrr_at",
    "Success": "hit_rate_at",
}


def check(measures: list[str]) -> None:
    """Raise UsageError where the score that mteb ranks by is not among the measures."""
    if MAIN not in [canonical(name) for name in measures]:
        listed = ",".join([MAIN, *measures])
        raise UsageError(f"a result of mteb needs the measure {MAIN}", hint=f"data.measures=[{listed}]")


def task_of(id: str) -> tuple[str, str]:
    """mteb's task and split for a collection; one that mteb does not have keeps its own id as the task."""
    name = id.removeprefix("beir/")
    name, _, split = name.rpartition("/") if name.endswith(("/test", "/dev", "/train")) else (name, "", "test")
    if id.startswith("beir/cqadupstack/"):
        return f"CQADupstack{name.rpartition('/')[2].capitalize()}Retrieval", split
    task = TASKS.get(name) if id.startswith("beir/") else None
    return task or re.sub(r"[^\w.-]+", "-", id), split


def result(id: str, revision: str, measures: Mapping[str, float]) -> dict[str, Any]:
    """The JSON that mteb keeps a task in: `measures` by canonical names, `revision` of the judgements."""
    task, split = task_of(id)
    scores: dict[str, Any] = {_key(name): value for name, value in measures.items()}
    scores |= {"main_score": measures[MAIN], "hf_subset": "default", "languages": ["eng-Latn"]}
    return {
        "dataset_revision": revision,
        "task_name": task,
        "mteb_version": None,
        "scores": {split: [scores]},
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }


def _key(name: str) -> str:
    """mteb's name of a measure; a measure that it does not have keeps its own."""
    kind, _, depth = name.partition("@")
    return f"{KEYS[kind]}_{depth}" if kind in KEYS and depth.isdecimal() else name
