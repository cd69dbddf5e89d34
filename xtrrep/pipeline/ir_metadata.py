"""A run as others read it: the header of ir_metadata in its TREC file, and its measures as trec_eval prints them.

ir_metadata (Breuer et al. 2022) describes a run by platform, research goal, implementation, method, actor and data, as
YAML in comments above its first line. `measure.run_file.read` skips such a header, and so do repro_eval's tools.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas
import yaml

from xtrrep.config import Config, plain
from xtrrep.measure.evaluate import canonical
from xtrrep.measure.run_file import META_END, META_START
from xtrrep.model.precision import processor_name
from xtrrep.pipeline.identity import engine_label, model_label, needs_model, setting_of

LIBRARIES = ("xtrrep", "torch", "sentence-transformers", "transformers", "numpy", "ir-measures")


def describe(cfg: Config, tag: str, command: str) -> dict[str, Any]:
    """What ir_metadata asks of a run. The actor's name and the goal are for a person to fill in."""
    setting = setting_of(cfg)
    method: dict[str, Any] = {
        "automatic": True,
        "score ties": "none: equal scores differ by the smallest float32 steps",
    }
    if needs_model(cfg):
        method["model"] = {"name": model_label(cfg), **plain(cfg.model)}
    method["indexing"] = dict(cfg.index)
    method["retrieval"] = [{"name": engine_label(cfg), **vars(setting)}]
    return {
        "tag": tag,
        "actor": {"name": None, "team": None, "fields": ["information retrieval"]},
        "platform": {
            "hardware": {
                "cpu": {
                    "model": processor_name(),
                    "architecture": platform.machine(),
                    "number of cores": os.cpu_count(),
                },
                "ram": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.2f} GB",
            },
            "operating system": {"platform": platform.system(), "kernel": platform.release()},
            "software": {"libraries": {"python": [f"{name}=={version(name)}" for name in LIBRARIES]}},
        },
        "research goal": {"evaluation": {"reported measures": [canonical(name) for name in cfg.data.measures]}},
        "implementation": {"executable": {"cmd": command}, "source": {"lang": "python", "package": "xtrrep"}},
        "data": {
            "test collection": {"name": cfg.data.id, "source": cfg.data.loader, "split": cfg.data.split},
            **({"training data": _trained_on(cfg)} if needs_model(cfg) else {}),
        },
        "method": method,
    }


def _trained_on(cfg: Config) -> list[dict[str, Any]]:
    names = [
        cfg.train.data or cfg.train.triples,
        *([cfg.distill.data or cfg.distill.lists] if cfg.stage.value == "kd" else []),
    ]
    return [{"name": name} for name in names if name] if cfg.model.source.value == "trained" else []


def annotated(run: bytes, metadata: Mapping[str, Any]) -> bytes:
    """A TREC run file with the header above it."""
    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=4096)
    lines = [META_START, *(f"# {line}" for line in text.splitlines()), META_END]
    return "".join(f"{line}\n" for line in lines).encode() + run


def metadata_of(path: Path) -> dict[str, Any]:
    """The metadata in a run file's header; empty where there is none."""
    text = path.read_text(encoding="utf-8")
    found = re.match(rf"{META_START}\n(.*?){META_END}\n", text, re.DOTALL)
    lines = found[1].splitlines() if found else []
    return yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines)) or {}


def trec_measures(per_query: Path, tag: str) -> str:
    """Scores as `trec_eval -q` prints them, a line each: measure, query or `all`, value."""
    scores = pandas.read_csv(per_query, index_col=0, dtype={0: str})
    lines = [f"{'runid':<22}\tall\t{tag}\n"]
    for name in scores.columns:
        lines += [f"{canonical(name):<22}\t{query}\t{value:.4f}\n" for query, value in scores[name].items()]
        lines.append(f"{canonical(name):<22}\tall\t{scores[name].mean():.4f}\n")
    return "".join(lines)
