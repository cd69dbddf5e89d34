"""Overrides on the command line, and YAML files of reproductions and claims."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from xtrrep.claims import Family, parse_claims
from xtrrep.study import AnalysisReproduction, Reproduction, parse_reproduction

from fuzz.harness import Reader, check_message, outcome_of
from fuzz.strategies import BYTES, VALUES, Draw
from xtrrep import config as configs

# --- overrides --------------------------------------------------------------------------------------------------------

WHOLE = ("retrieve.top_k", "model.dim", "train.steps", "index.nprobe", "latency.threads", "claims.resamples")
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
READINGS = {
    "title": "Figure 9",
    "tolerance": None,
    "analysis": "geometry",
    "overrides": ["index=exact"],
    "cells": [{"name": "XTR", "where": {"model": "xtr", "k": 1}, "column": "mean", "paper": 0.5, "scale_by": 100}],
    "here": {"overrides": ["data=pydoc/test"]},
}
CLAIMS = {
    "numbers": {"demo": {"k": 100}},
    "cells": {"a": ["retrieve.k_prime={k}", "config=colbert"], "b": ["config=xtr_k64"]},
    "best": {"c": {"of": ["a", "b"], "chosen": "held_out"}},
    "claims": [
        {
            "id": "one",
            "says": "x",
            "where": "y",
            "value": "nDCG@10",
            "plus": ["a"],
            "minus": ["c"],
            "direction": "above",
        },
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
            "where": "y",
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


def _words(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(word, str) for word in value)


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def check_reproduction(case: YamlCase, folder: Path) -> bool:
    """What is accepted has the types it says, its rows and cells those of the file."""
    path = folder / "r.yaml"
    path.write_bytes(case.raw)
    for scale in ("paper", "demo", "lab"):
        found, error = outcome_of(lambda scale=scale: parse_reproduction(path, scale))
        if error is not None:
            check_message(error, str(path))
            return False
        text = yaml.safe_load(case.raw)
        assert isinstance(found.title, str)
        assert _words(found.overrides)
        if isinstance(found, AnalysisReproduction):
            assert [(cell.name, cell.column) for cell in found.cells] == [
                (str(c["name"]), str(c["column"])) for c in text["cells"]
            ]
            assert all(cell.paper is None or _finite(cell.paper) for cell in found.cells)
            assert all(_finite(cell.scale_by) for cell in found.cells)
            continue
        assert isinstance(found, Reproduction)
        kept = [row for row in text["rows"] if scale == "paper" or not row.get("paper_only")]
        assert [row.name for row in found.rows] == [str(row["name"]) for row in kept]
        for row, given in zip(found.rows, kept, strict=True):
            assert row.paper == {column: float(number) for column, number in given.get("paper", {}).items()}
            assert all(map(_finite, row.paper.values()))
            assert row.overrides is None or _words(row.overrides)
        for column in found.columns:
            assert isinstance(column.measure, str)
            assert _words(column.overrides)
        assert all(map(_words, found.means.values()))
    return True


def check_claims(case: YamlCase, folder: Path) -> bool:
    """What is accepted has the types it says, and every cell it stands on is there."""
    path = folder / "c.yaml"
    path.write_bytes(case.raw)
    found, error = outcome_of(lambda: parse_claims(path, "demo"))
    if error is not None:
        check_message(error, str(path))
        return False
    assert isinstance(found, Family)
    text = yaml.safe_load(case.raw)
    assert [claim.id for claim in found.claims] == [str(claim["id"]) for claim in text["claims"]]
    assert all(map(_words, found.cells.values()))
    for claim in found.claims:
        assert all(map(_words, (claim.plus, claim.minus, claim.overrides)))
        assert claim.within is None or claim.within[0] < claim.within[1]
        if claim.analysis is None and claim.plus:
            for name in (*claim.plus, *claim.minus):
                assert all(cell in found.cells for cell in found.members(name))
    return True


READERS = [
    Reader("overrides", 150, override_cases(), check_override),
    Reader("reproduction YAML", 600, yaml_cases(TABLE, READINGS), check_reproduction),
    Reader("claims YAML", 600, yaml_cases(CLAIMS), check_claims),
]


def check_reproduction_bytes(raw: bytes, folder: Path) -> bool:
    return check_reproduction(YamlCase("bytes", raw), folder)


def check_claims_bytes(raw: bytes, folder: Path) -> bool:
    return check_claims(YamlCase("bytes", raw), folder)


BYTE_READERS = {
    "reproduction.yaml": (
        check_reproduction_bytes,
        [yaml.safe_dump(TABLE).encode(), yaml.safe_dump(READINGS).encode()],
    ),
    "claims.yaml": (check_claims_bytes, [yaml.safe_dump(CLAIMS).encode()]),
}
