"""Overrides on the command line, and YAML definitions of experiments."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fuzz.harness import Reader, check_message, outcome_of
from fuzz.strategies import BYTES, VALUES, Draw
from xtrrep import config as configs
from xtrrep.console import UsageError
from xtrrep.experiments.definition import Experiment, parse

# --- overrides --------------------------------------------------------------------------------------------------------

WHOLE = ("retrieve.top_k", "model.dim", "train.steps", "index.nprobe", "latency.threads", "analyze.resamples")
REAL = ("train.learning_rate", "train.temperature", "encode.pool_factor", "distill.temperature", "train.weight_decay")
TEXT = ("model.checkpoint", "retrieve.from_run", "train.triples", "machine.device", "retrieve.imputation")
OTHER = ("train.k_train", "analyze.k_primes", "data.measures", "stage", "train.scorer", "machine.wandb", "data.size")
FINE = ("1", "3", "200", "0.5", "1e-4", "null", "[1,2]", "xtr")
RAW = (
    *(
        "",
        " ",
        "null",
        "0",
        "-1",
        "1",
        "3",
        "1.5",
        "1e3",
        "010",
        "1_0",
        "nan",
        "-inf",
        "1e400",
        "9" * 30,
        "true",
        "no",
        "0x1",
    ),
    *(
        "a,b",
        "[1,2]",
        "[",
        "]",
        "{",
        "{a: 1}",
        "[[1]]",
        "[a]",
        "'",
        '"',
        "''",
        "\\",
        "a'b",
        "a=b",
        "=",
        "a b",
        "\t",
        "\n",
        "\0",
    ),
    *(
        "${",
        "${x}",
        "${data.id}",
        "a${oc.env:HOME}",
        "$",
        "%",
        "#",
        "!!python/object:os.system",
        "&a *a",
        ": :",
        "2001-99-99",
        "---",
        "😀",
    ),
    *("שלום", "\ud800", "\x1b[31m", "../../x", "/", "x" * 5000, "a: b", "- a", "@", "`", "*", "xtr", "nDCG@10"),
)
KEYS = (
    "",
    "=",
    "train",
    "train.",
    ".steps",
    "train.stepz",
    "index",
    "data",
    "config",
    "scale",
    "hydra",
    "hydra.run.dir",
)


@dataclass(frozen=True)
class WordsCase:
    kind: str
    key: str
    raw: str

    @property
    def words(self) -> list[str]:
        return ["index=warp", f"{self.key}={self.raw}"]


@st.composite
def override_cases(draw: Draw) -> WordsCase:
    kinds = {"whole number": WHOLE, "number": REAL, "text": TEXT, "another type": OTHER, "odd key": KEYS}
    kind = draw(st.sampled_from(sorted(kinds)))
    key = draw(st.sampled_from(kinds[kind]))
    if kind == "odd key":
        key = draw(st.sampled_from(["", "+", "~", "++", " "])) + key
    return WordsCase(kind, key, draw(st.one_of(st.sampled_from(FINE), st.sampled_from(RAW), st.text(max_size=6))))


def check_override(case: WordsCase, folder: Path) -> bool:
    """A config whose value is what was typed, by a second reading of the word; or a refusal that names key or value."""
    cfg, error = outcome_of(lambda: configs.compose(case.words))
    if error is not None:
        check_message(error)
        return False
    assert "${" not in case.raw, "a reference was accepted"
    if case.kind == "odd key":
        return True
    got, raw = configs.flat(cfg).get(case.key), case.raw
    if raw == "null":
        assert got is None
    elif case.kind == "whole number":
        assert type(got) is int
        assert got == int(float(raw.strip("'\" "))), f"{case.key}={raw!r} became {got!r}"
    elif case.kind == "number":
        assert type(got) is float
        assert got == float(raw.strip("'\" ")), f"{case.key}={raw!r} became {got!r}"
    elif case.kind == "text" and not any(sign in raw for sign in "'\"\\[{$") and raw == raw.strip():
        assert got == raw, f"{case.key}={raw!r} became {got!r}"
    assert all(math.isfinite(value) for value in configs.flat(cfg).values() if isinstance(value, float))
    return True


# --- YAML -------------------------------------------------------------------------------------------------------------

TABLE = {
    "title": "Table 9",
    "tolerance": 0.5,
    "overrides": ["index=exact"],
    "columns": {"NF": {"data": "beir/nfcorpus/test", "measure": "nDCG@10"}, "SF": {"data": "x", "measure": "qps"}},
    "means": {"mean": ["NF", "SF"]},
    "rows": [
        {"name": "XTR", "overrides": ["config=xtr_k128"], "paper": {"NF": 34.0, "mean": 2}},
        {"name": "quoted", "paper": {"SF": 1}, "paper_only": True},
    ],
    "here": {"columns": {"demo": {"data": "pydoc/test", "measure": "R@5", "overrides": ["a=1"]}}, "overrides": ["b=2"]},
    "lab": {"columns": {}, "overrides": []},
}
AXES = {
    "title": "A grid",
    "columns": {"NF": {"data": "beir/nfcorpus/test", "measure": "nDCG@10"}},
    "axes": {"model": {"a": ["config=colbert"], "b": ["config=xtr_k64"]}, "then": {20: ["retrieve.k_prime=20"]}},
    "baseline": "a, 20",
    "figure": "bars",
}
READINGS = {
    "title": "Figure 9",
    "tolerance": None,
    "analysis": "geometry",
    "overrides": ["index=exact"],
    "readings": [{"name": "XTR", "where": {"model": "xtr", "k": 1}, "column": "mean", "paper": 0.5, "scale_by": 100}],
    "here": {"overrides": ["data=pydoc/test"]},
}
CLAIMS = {
    "title": "Claims",
    "numbers": {scale: {"k": "100"} for scale in ("demo", "lab", "paper")},
    "cells": {"a": ["retrieve.k_prime={k}", "config=colbert"], "b": ["config=xtr_k64"]},
    "best": {"c": {"of": ["a", "b"], "chosen": "held_out"}},
    "comparisons": [
        {"id": "one", "says": "x", "value": "nDCG@10", "plus": ["a"], "minus": ["c"], "direction": "above"},
        {
            "id": "two",
            "says": "x",
            "where": "y",
            "value": "seconds",
            "plus": ["a"],
            "minus": ["b"],
            "within": [-1, None],
            "statistic": "ratio",
            "overrides": ["a=b"],
        },
        {
            "id": "three",
            "says": "x",
            "value": "mean",
            "analysis": "geometry",
            "needs": {"scale": "paper"},
            "why": "large",
        },
    ],
}
YAML_WORDS = (
    *(
        "1: [",
        "- a\n- b",
        "{}",
        "null",
        "a: *b",
        "!!python/object/apply:os.system [ls]",
        "2001-99-99",
        "? [a]\n: b",
        "\t- a",
    ),
    *(
        "9" * 5000,
        "[" * 2000,
        "a: &a [*a]",
        "!!binary x",
        "!!set {a}",
        "0o9",
        "%YAML 9.9\n---",
        "a: 1\na: 2",
        "{[]: 1}",
        "\0",
    ),
)


@dataclass(frozen=True)
class YamlCase:
    kind: str
    raw: bytes


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in _places(part, (*at, key)))]


def _changed(draw: Draw, base: Any) -> tuple[str, Any]:
    """A deep copy with one value replaced, gone, renamed, or repeated."""
    out = copy.deepcopy(base)
    *above, last = draw(st.sampled_from(_places(base)[1:]))
    parent = out
    for key in above:
        parent = parent[key]
    kind = draw(st.sampled_from(["value of another type", "value gone", "key renamed", "plain"]))
    if kind == "value of another type":
        parent[last] = draw(VALUES)
    elif kind == "value gone":
        del parent[last]
    elif kind == "key renamed" and isinstance(parent, dict):
        parent[draw(st.sampled_from(["x", "", 1, None, str(last) + "s"]))] = parent.pop(last)
    elif kind == "key renamed":
        parent.append(parent[last])
    return kind, out


def yaml_cases(*bases: Any) -> st.SearchStrategy[YamlCase]:
    @st.composite
    def cases(draw: Draw) -> YamlCase:
        base = draw(st.sampled_from(bases))
        if draw(st.integers(0, 3)):
            kind, value = _changed(draw, base)
            if draw(st.booleans()):
                again, value = _changed(draw, value) if isinstance(value, dict) and value else ("plain", value)
                kind = kind if again == "plain" else again
            return YamlCase(kind, yaml.safe_dump(value, allow_unicode=draw(st.booleans())).encode())
        raw = yaml.safe_dump(base).encode()
        kind = draw(st.sampled_from([*BYTES, "odd YAML"]))
        if kind == "odd YAML":
            word = draw(st.sampled_from(YAML_WORDS)).encode()
            return YamlCase(
                kind, draw(st.sampled_from([word, raw + word, word + b"\n" + raw, raw.replace(b"index=exact", word)]))
            )
        return YamlCase(kind, BYTES[kind](draw, raw))

    return cases()


def _overrides(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def check_definition(case: YamlCase, folder: Path) -> bool:
    """A file is refused by a UsageError whose every line names it, or is accepted: then what it holds has the types it
    should have, and names nothing that is not there."""
    path = folder / "made.yaml"
    path.write_bytes(case.raw)
    for scale in ("paper", "demo", "lab"):
        found, error = outcome_of(lambda scale=scale: parse(path, scale))
        if error is not None:
            assert isinstance(error, UsageError)
            check_message(error, str(path), several=True)
            return False
        _check_types(found)
        _check_names(found)
        text = yaml.safe_load(case.raw)
        kept = [row for row in text.get("rows") or () if scale == "paper" or not row.get("paper_only")]
        if kept:
            assert [row.name for row in found.rows] == [str(row["name"]) for row in kept]
        for row, given in zip(found.rows, kept, strict=False):
            assert row.paper == {str(column): float(number) for column, number in given.get("paper", {}).items()}
        readings = [(str(reading["name"]), str(reading["column"])) for reading in text.get("readings") or ()]
        assert [(reading.name, reading.column) for reading in found.readings] == readings
        stated = [str(comparison["id"]) for comparison in text.get("comparisons") or ()]
        assert [comparison.id for comparison in found.comparisons if not comparison.column] == stated
    return True


def _check_types(found: Experiment) -> None:
    assert isinstance(found.title, str)
    assert found.tolerance is None or _finite(found.tolerance)
    assert _overrides(found.overrides)
    for row in found.rows:
        assert row.overrides is None or _overrides(row.overrides)
        assert all(map(_finite, row.paper.values()))
    for column in found.columns:
        assert column.data is None or isinstance(column.data, str)
        assert isinstance(column.measure, str)
        assert _overrides(column.overrides)
        assert column.k_prime is None or column.k_prime >= 0
    for reading in found.readings:
        assert reading.paper is None or _finite(reading.paper)
        assert _finite(reading.scale_by)
    for comparison in found.comparisons:
        assert comparison.within is None or comparison.within[0] < comparison.within[1]
        assert _overrides(comparison.overrides)
        assert isinstance(comparison.expected, str)


def _check_names(found: Experiment) -> None:
    rows = {row.name for row in found.rows}
    assert {baseline.row for row in found.rows for baseline in row.baselines} <= rows
    assert {column for group in found.means.values() for column in group} <= {column.name for column in found.columns}
    for comparison in found.comparisons:
        for name in (*comparison.plus, *comparison.minus) if comparison.analysis is None else ():
            assert set(found.members(name)) <= rows


READERS = [
    Reader("overrides", 150, override_cases(), check_override),
    Reader("tables in YAML", 600, yaml_cases(TABLE, AXES, READINGS), check_definition),
    Reader("claims in YAML", 600, yaml_cases(CLAIMS), check_definition),
]


def check_definition_bytes(raw: bytes, folder: Path) -> bool:
    return check_definition(YamlCase("bytes", raw), folder)


BYTE_READERS = {
    "definition.yaml": (
        check_definition_bytes,
        [yaml.safe_dump(base).encode() for base in (TABLE, AXES, READINGS, CLAIMS)],
    ),
}
