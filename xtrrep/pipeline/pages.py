"""Scores that a model's own page on the hub states, beside those of a run: expected values that cost nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from xtrrep.config import Config
from xtrrep.console import request_reason, say
from xtrrep.measure.evaluate import canonical
from xtrrep.model import weights
from xtrrep.model.released import resolve
from xtrrep.pipeline.mteb import task_of

# What pages call a measure: MaxSim_ndcg@10, ndcg_at_10, MaxSim_accuracy@5.
_METRIC = re.compile(r"(?:\w+_)?(ndcg|mrr|map|recall|precision|accuracy|hit_rate)(?:@|_at_)(\d+)")
_NAMES = {"ndcg": "nDCG", "mrr": "RR", "map": "AP", "recall": "R", "precision": "P"}


@dataclass(frozen=True)
class Stated:
    """One score of a page. measure: by its canonical name. value: from 0 to 1."""

    dataset: str
    measure: str
    value: float


def stated(page: str) -> list[Stated]:
    """The scores in the `model-index` of a page's front matter. What is not understood there is left out."""
    parts = page.split("---\n", 2)
    if page[:4] != "---\n" or len(parts) < 3:
        return []
    try:
        matter = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return []
    return list(_scores(matter.get("model-index") if isinstance(matter, dict) else None))


def _scores(index: Any) -> Iterator[Stated]:
    for result in _dicts([r for model in _dicts(index) for r in _dicts(model.get("results"))]):
        dataset = result.get("dataset")
        name = str(dataset.get("name", "")) if isinstance(dataset, dict) else ""
        for metric in _dicts(result.get("metrics")):
            known, value = _METRIC.fullmatch(str(metric.get("type", "")).lower()), metric.get("value")
            if known and name and isinstance(value, int | float) and 0 <= value <= 1:
                yield Stated(name, canonical(f"{_NAMES.get(known[1], 'Success')}@{known[2]}"), float(value))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def is_same(dataset: str, id: str) -> bool:
    """Whether a page's name of a data set (NanoFiQA2018, NFCorpus) is that of a collection here."""
    bare = re.sub(r"[^a-z0-9]", "", dataset.lower()).removesuffix("test")
    if id.startswith("nanobeir/"):
        return bare == "nano" + id.partition("/")[2]
    task = task_of(id)[0]
    names = {task, id.removeprefix("beir/").partition("/")[0]} if id.startswith("beir/") else {id}
    return bare in {re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}


@cache
def page_of(name: str, revision: str | None) -> str:
    """The README of a model of the hub, or of the client's cache; empty where neither has one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if weights.locate(name) is not None:
        return ""
    try:
        path = hf_hub_download(name, "README.md", revision=revision, local_files_only=not weights.hub_reachable())
        with open(path, encoding="utf-8") as file:
            return file.read()
    except EntryNotFoundError:  # none on the hub, or none in the cache
        return ""
    except Exception as error:  # whatever the HTTP library under the client raises: no run needs a page
        say(f"  note: the page of {name} could not be read ({request_reason(error)})")
        return ""


def page_note(cfg: Config, measures: Mapping[str, float]) -> str | None:
    """What the model's page says of the collection, beside the scores of a run; None where it says nothing."""
    name = resolve(str(cfg.model.checkpoint))
    said = [
        f"{one.measure} {one.value:.4f} ({measures[one.measure]:.4f} here)"
        for one in stated(page_of(name, cfg.model.revision))
        if one.measure in measures and is_same(one.dataset, cfg.data.id)
    ]
    return f"the page of {name} states {', '.join(dict.fromkeys(said))}" if said else None
