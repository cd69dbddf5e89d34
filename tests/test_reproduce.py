"""Reproductions: the paper's values cell by cell, faulty files, verdicts, and one made as a user would."""

import csv
import json
from functools import partial
from pathlib import Path

import pytest
from conftest import TINY, Cli

from xtrrep import reproduce
from xtrrep.config import compose
from xtrrep.console import DIFFER, MISSING, OK, DataError, UsageError
from xtrrep.reproduce import Cell, Column, Reproduction, Row, judge, load, names, parse_reproduction, status

PAPER = Path(__file__).parents[2] / "shared" / "paper"
SHORT = {"lotte/": "lotte-"}


def expected(name: str) -> dict[tuple[str, str], float]:
    """(row, column) to value of a CSV of the study, by the names our files use."""
    stages = {"contrastive": "contrastive", "distillation": "distillation"}
    models = {"colbert": "ColBERT", "xtr_multi": "XTR"}
    found = {}
    with (PAPER / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            data = row["dataset"].replace("lotte/", "lotte-")
            if name == "table1":
                source = "" if row["source"] == "this paper" else f", {row['source']}"
                key = f"{row['model']} as {row['scoring']}{source}", data
            elif name == "table2":
                key = row["imputation"], data
            elif name == "figure1":
                key = f"{row['model']} as {row['scoring']}", f"{data} {row['measure']} {row['k_prime']}"
            else:
                model = models.get(row["model"], row["model"])
                key = f"{row['index'].upper()}, {stages[row['stage']]}, {model}", data
            value = row["qps" if name == "figure2_qps" else "value"]
            if value:
                found[key] = float(value)
    return found


@pytest.mark.skipif(not PAPER.is_dir(), reason="the study's CSVs are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [("table1", "table1", 78), ("table2", "table2", 20), ("table3", "table3", 286), ("figure1", "figure1", 193),
     ("figure2", "figure2_qps", 254)],
)  # fmt: skip
def test_every_value_of_the_study_is_expected(name: str, file: str, count: int) -> None:
    ours = {(row.name, column): value for row in load(name, "paper").rows for column, value in row.paper.items()}
    assert ours == expected(file)
    assert len(ours) == count


@pytest.mark.parametrize("scale", ["paper", "demo"])
@pytest.mark.parametrize("name", names())
def test_every_cell_composes(name: str, scale: str, collections: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row and each column is a config: known keys, a known model, a measure that exists."""
    for local in ("nfcorpus", "cranfield"):
        (collections / local).mkdir(exist_ok=True)
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    what = load(name, scale)
    rows = [row for row in what.rows if row.overrides is not None]
    for i in range(max(len(rows), len(what.columns))):  # every row and every column, if not every pair
        row, column = rows[i % len(rows)], what.columns[i % len(what.columns)]
        cfg = compose(reproduce.words_of(what, row, column, []))
        assert cfg.scale == scale
        assert scale == "demo" or cfg.data.id.startswith(("beir/", "lotte/"))


FAULTY = {
    "rows: [": "not YAML",
    "title: x\ntolerance: 1\ncolumns: {}\nrows: []\ncolums: {}": "unknown key 'colums'",
    "title: x\ntolerance: 1\nrows: []": "no 'columns'",
    "title: x\ntolerance: 1\ncolumns: {a: {data: pydoc/test, measure: nDCGG@10}}\nrows: []": "nDCGG@10",
    "title: x\ntolerance: 1\ncolumns: {a: {measure: nDCG@10}}\nrows: []": "no 'data'",
    "title: x\ntolerance: 1\ncolumns: {}\nrows: [{name: r, paper: {b: 1}}]": "quotes 'b'",
    "title: x\ntolerance: 1\ncolumns: {}\nrows: [{name: r}, {name: r}]": "one row twice",
    "title: x\ntolerance: 1\ncolumns: {}\nmeans: {m: [z]}\nrows: []": "over 'z'",
}


@pytest.mark.parametrize("text", FAULTY)
def test_a_faulty_file_is_named_with_its_fault(tmp_path: Path, text: str) -> None:
    path = tmp_path / "made.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"made\.yaml") as caught:
        parse_reproduction(path, "paper")
    assert FAULTY[text] in str(caught.value)


def made(scale: str, tolerance: float | None = 0.5) -> Reproduction:
    columns = tuple(Column(name, "nDCG@10", (f"data={name}",)) for name in ("a", "b"))
    rows = (Row("ours", ("config=xtr_k128",), {"a": 30.0, "b": 40.0, "mean": 35.0}), Row("theirs", None, {"a": 31.0}))
    return Reproduction("made", "Made", scale, tolerance, (), columns, {"mean": ("a", "b")}, rows)


def test_verdicts_are_two_sided_and_a_missing_cell_blanks_its_mean() -> None:
    def verdicts(values: dict[str, float]) -> dict[str, str]:
        cells = judge(made("paper"), {("ours", name): value for name, value in values.items()}, {})
        return {cell.column: cell.verdict for cell in cells if cell.row == "ours"}

    assert verdicts({"a": 30.5, "b": 39.5}) == {"a": "agrees", "b": "agrees", "mean": "agrees"}
    assert verdicts({"a": 30.6, "b": 39.4}) == {"a": "higher", "b": "lower", "mean": "agrees"}
    cells = judge(made("paper"), {("ours", "a"): 30.0}, {})
    assert [(c.column, c.now, c.verdict) for c in cells if c.row == "ours"] == [
        ("a", 30.0, "agrees"), ("b", None, "not run"), ("mean", None, "not run"),
    ]  # fmt: skip
    assert {c.verdict for c in cells if c.row == "theirs"} == {"quoted"}
    assert "—" in reproduce.table(made("paper"), cells, []).terminal()


def test_below_paper_scale_the_paper_carries_no_verdict() -> None:
    values = {("ours", "a"): 65.0, ("ours", "b"): 70.0}
    fresh = judge(made("demo"), values, {})
    assert {c.verdict for c in fresh if c.row == "ours"} == {"no record"}
    assert status(fresh) == OK
    kept = judge(made("demo"), values, {"ours": {"a": 65.04, "b": 69.0}})
    assert [c.verdict for c in kept if c.row == "ours"] == ["agrees", "higher", "no record"]
    assert status(kept) == DIFFER
    assert "another setting" in reproduce.table(made("demo"), kept, []).terminal()
    speeds = judge(made("paper", None), values, {})
    assert {c.verdict for c in speeds if c.row == "ours"} == {"not compared"}


def test_exit_codes() -> None:
    def cell(verdict: str) -> Cell:
        return Cell("r", "c", 1.0, None, None, verdict)

    assert status([cell("agrees"), cell("quoted"), cell("no record")]) == OK
    assert status([cell("agrees"), cell("not run")]) == MISSING
    assert status([cell("lower"), cell("not run")]) == DIFFER


def test_unknown_names() -> None:
    with pytest.raises(DataError, match="table9") as caught:
        load("table9", "demo")
    assert "table" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"no column .nowhere"):
        reproduce.select(load("table1", "paper"), "nowhere")
    assert [c.name for c in reproduce.select(load("table1", "paper"), "nq").columns] == ["nq"]
    assert [c.name for c in reproduce.select(load("table1", "paper"), "beir/nq").columns] == ["nq"]


def test_a_damaged_record_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "recorded_path", lambda name, scale: tmp_path / f"{name}.json")
    assert reproduce.recorded("table1", "demo") == {"cells": {}}
    (tmp_path / "table1.json").write_text("{")
    with pytest.raises(DataError, match=r"table1\.json"):
        reproduce.recorded("table1", "demo")


def test_a_table_made_as_a_user_would(cli: Cli, collections: Path, tmp_path: Path) -> None:
    """Table 2 over the tiny collection: five runs from one search, no record, and again from what is there."""
    (tmp_path / "data").mkdir()
    for name in ("mini", "nfcorpus"):  # the second stands for the collection of that name
        (tmp_path / "data" / name).symlink_to(collections / "mini")
    settings = ("index.num_leaves=20", "index.num_leaves_to_search=10")
    words = ("reproduce", "table2", *TINY[1:], *settings, "--only", "nfcorpus")
    cli = partial(cli, XTRREP_DATA=str(tmp_path / "data"))
    plan = json.loads(cli(*words, "--dry-run", "--json").stdout)
    assert plan["run"] > 0
    assert not (tmp_path / "home").exists() or not list((tmp_path / "home").rglob("manifest.json"))
    done = cli(*words, "--json")
    assert "5 settings, one search" in done.stderr
    made = json.loads(done.stdout)
    with (Path(made["folder"]) / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["BM25", "mean", "percentile", "min", "power_law", "zero"]
    assert all(0 < float(row["now"]) <= 100 for row in rows)
    assert {cell["verdict"] for cell in made["cells"]} == {"no record"}
    assert "say that themselves" in cli(*words, "index=exact", code=2).stderr
    listing = cli("reproduce", "--list").stdout
    assert [line.split()[0] for line in listing.splitlines()] == names()
    shown = cli("reproduce", "table3", "scale=paper", "--show").stdout
    assert "Nothing was run" in shown
    assert "32.40" in shown  # ColBERT under WARP on MS MARCO
    assert "one of: " in cli("reproduce", code=2).stderr
