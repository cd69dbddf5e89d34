"""Reproductions: the paper's values cell by cell, faulty files, verdicts, and one made as a user would."""

import csv
import dataclasses
import json
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY, Cli
from typer.testing import CliRunner
from xtrrep.grid import grid
from xtrrep.reproduce import Cell, judge, status
from xtrrep.study import AnalysisReproduction, Column, Reading, Reproduction, Row, load, names, parse_reproduction

from xtrrep import artifacts, reproduce, study
from xtrrep.cli import app
from xtrrep.config import compose
from xtrrep.console import DIFFER, MISSING, OK, DataError, UsageError
from xtrrep.experiments.analyses import analyses

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


@pytest.mark.parametrize("scale", ["paper", "lab", "demo"])
@pytest.mark.parametrize("name", names())
def test_every_cell_composes(name: str, scale: str, collections: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row and each column is a config: known keys, a known model, a measure that exists."""
    for local in ("nfcorpus", "cranfield", "squad-dev"):
        (collections / local).mkdir(exist_ok=True)
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    what = load(name, scale)
    if isinstance(what, AnalysisReproduction):
        cfg = compose(reproduce.words_of_analysis(what, []))
        assert (cfg.scale, cfg.data.id) == (scale, what.data)
        assert scale != "paper" or cfg.data.id.startswith("beir/")
        made = analyses.get(what.analysis).cells(cfg)
        assert {cell.where["model"] for cell in what.cells} <= {cell.model for cell in made}
        return
    rows = [row for row in what.rows if row.overrides is not None]
    for i in range(max(len(rows), len(what.columns))):  # every row and every column, if not every pair
        row, column = rows[i % len(rows)], what.columns[i % len(what.columns)]
        cfg = compose(reproduce.words_of(what, row, column, []))
        assert cfg.scale == scale
        assert scale != "paper" or cfg.data.id.startswith(("beir/", "lotte/"))


def test_a_scale_can_add_to_what_stands_in() -> None:
    demo, lab, paper = (load("table3", scale) for scale in ("demo", "lab", "paper"))
    assert isinstance(demo, Reproduction)
    assert isinstance(lab, Reproduction)
    assert [c.name for c in lab.columns] == [*(c.name for c in demo.columns), "squad-dev"]
    assert (demo.overrides[1], lab.overrides[-1]) == ("index.num_partitions=1024", "index.num_partitions=null")
    assert paper.overrides == ("setup=II",)


OF_ANALYSIS = "analysis: geometry\ntitle: x\ntolerance: 1\n"
CELL = "{name: a, where: {model: b}, column: c}"
FAULTY = {
    "rows: [": "not YAML",
    "title: x\ntolerance: 1\ncolumns: {}\nrows: []\ncolums: {}": "unknown key 'colums'",
    "title: x\ntolerance: 1\nrows: []": "no 'columns'",
    "title: x\ntolerance: 1\ncolumns: {a: {data: pydoc/test, measure: nDCGG@10}}\nrows: []": "nDCGG@10",
    "title: x\ntolerance: 1\ncolumns: {a: {measure: nDCG@10}}\nrows: []": "no 'data'",
    "title: x\ntolerance: 1\ncolumns: {}\nrows: [{name: r, paper: {b: 1}}]": "quotes 'b'",
    "title: x\ntolerance: 1\ncolumns: {}\nrows: [{name: r}, {name: r}]": "row 'r' stands there twice",
    "title: x\ntolerance: 1\ncolumns: {}\nmeans: {m: [z]}\nrows: []": "over 'z'",
    "title: x\ntolerance: 1\ncolumns: {}\nrows: []\nfigure: pie": "no figure 'pie'",
    "title: x\ntolerance: 1\ncolumns: {}\nrows: []\nquality: table3": "go together",
    "title: x\ntolerance: 1\nrows: []\nfigure: k_prime_sweep\ncolumns: {a: {data: d, measure: qps}}": "no retrieve.k",
    "- a list": "not a mapping",
    f"{OF_ANALYSIS}cells: []": "has no cells",
    f"{OF_ANALYSIS}cells: {{a: 1}}": "cells is not a list",
    f"{OF_ANALYSIS}rows: []\ncells: [{CELL}]": "unknown key 'rows'",
    "title: x\ntolerance: 1\ncolumns: {}\nrows: [{name: a, baseline: b}]": "the baseline of 'a', 'b', is no row",
    f"{OF_ANALYSIS}cells: [{CELL}]\nhere: {{columns: {{}}}}": "here has an unknown key 'columns'",
    OF_ANALYSIS: "no 'cells'",
    f"analysis: geometri\ntitle: x\ntolerance: 1\ncells: [{CELL}]": "no analysis named 'geometri'",
    f"{OF_ANALYSIS}cells: [{{name: a, where: {{model: b}}}}]": "a cell has no 'column'",
    f"{OF_ANALYSIS}cells: [{{name: a, where: {{model: b}}, colum: c, column: c}}]": "unknown key 'colum'",
    f"{OF_ANALYSIS}cells: [{{name: a, where: b, column: c}}]": "cell a: where is not a mapping",
    f"{OF_ANALYSIS}cells: [{{name: a, where: {{b: c}}, column: c, paper: 2 %}}]": "paper is not a number: '2 %'",
    f"{OF_ANALYSIS}cells: [{{name: a, where: {{model: b}}, column: c, scale_by: null}}]": "scale_by is not a number",
    f"{OF_ANALYSIS}cells: [{CELL}, {CELL}]": "cell 'a, c' stands there twice",
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


def test_other_weights_from_the_same_commands_may_move_a_value_further() -> None:
    a, b = ("ours", "a"), ("ours", "b")
    values, accepted = {a: 65.0, b: 70.0}, {"ours": {"a": 66.9, "b": 70.04, "mean": 68.5}}

    def verdicts(weights: dict[tuple[str, str], str], before: dict[str, str]) -> list[str]:
        cells = judge(made("demo"), values, accepted, None, weights, {"ours": before})
        return [cell.verdict for cell in cells if cell.row == "ours"]

    assert verdicts({a: "one", b: "two"}, {"a": "one", "b": "two"}) == ["lower", "agrees", "lower"]
    assert verdicts({a: "other", b: "two"}, {"a": "one", "b": "two"}) == ["agrees", "agrees", "agrees"]
    assert verdicts({a: "other", b: "two"}, {}) == ["agrees", "agrees", "agrees"]  # a record of before knew no weights
    accepted["ours"]["a"] = 67.1  # further than training moves
    assert verdicts({a: "other"}, {"a": "one"})[0] == "lower"
    at_paper = judge(made("paper"), {a: 31.0}, {}, None, {a: "other"}, {})
    assert at_paper[0].verdict == "higher"  # the paper's tolerance is one
    assert "0.05 / 2 points" in reproduce.table(made("demo"), [], []).terminal()
    found = reproduce._judged(of_analysis("demo", reading()), reading(), 1.0, {}, True, None, "one")
    assert found.weights == "one"


def test_the_weights_behind_a_value_are_told_apart(tmp_path: Path) -> None:
    def plan(trained: str, content: str) -> SimpleNamespace:
        spec = artifacts.Spec("train", trained, 1, {"content": content})
        folder = artifacts.make(spec, tmp_path, partial(leave, content))
        return SimpleNamespace(
            steps=[SimpleNamespace(folder=folder, stage=SimpleNamespace(name=name)) for name in ("train", "evaluate")]
        )

    def leave(content: str, out: Path) -> dict[str, str]:
        (out / "model.safetensors").write_text(content)
        (out / "loss.csv").write_text(f"a time {content}")
        return {}

    first, same, other = (reproduce.weights_of([plan(*words)]) for words in (("a", "1"), ("b", "1"), ("c", "2")))
    assert len(first) == 1
    assert first == same != other
    untrained = SimpleNamespace(steps=[SimpleNamespace(folder=tmp_path, stage=SimpleNamespace(name="index"))])
    assert reproduce.weights_of([untrained]) == []
    digests = reproduce._weights(
        {("r", "c", 0): plan("a", "1"), ("r", "c", 1): plan("c", "2"), ("s", "c", 0): untrained}
    )
    assert list(digests) == [("r", "c")]


def test_exit_codes() -> None:
    def cell(verdict: str) -> Cell:
        return Cell("r", "c", 1.0, None, None, verdict)

    assert status([cell("agrees"), cell("quoted"), cell("no record")]) == OK
    assert status([cell("agrees"), cell("not run")]) == MISSING
    assert status([cell("lower"), cell("not run")]) == DIFFER


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="table9") as caught:
        load("table9", "demo")
    assert "table" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"no column .nowhere"):
        study.select(load("table1", "paper"), ["nowhere"])
    assert [c.name for c in study.select(load("table1", "paper"), ["nq"]).columns] == ["nq"]
    assert [c.name for c in study.select(load("table1", "paper"), ["beir/nq"]).columns] == ["nq"]
    several = study.select(load("table1", "paper"), ["nq", "beir/fiqa/test"])
    assert (several.only, {c.name for c in several.columns}) == (("nq", "beir/fiqa/test"), {"nq", "fiqa"})
    with pytest.raises(UsageError, match="no column 'nowhere'"):
        study.select(load("table1", "paper"), ["nq", "nowhere"])


def test_a_damaged_record_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "recorded_path", lambda what: tmp_path / f"{what.name}.json")
    assert reproduce.recorded(load("table1", "demo")) == {"cells": {}, "overrides": []}
    (tmp_path / "table1.json").write_text("{")
    with pytest.raises(DataError, match=r"table1\.json"):
        reproduce.recorded(load("table1", "demo"))


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
    with (Path(made["folder"]) / "grid.csv").open() as file:
        shape = {row[""]: row["nfcorpus"] for row in csv.DictReader(file)}
    assert shape == {row["row"]: row["now"] for row in rows}
    assert "baseline" not in (Path(made["folder"]) / "grid.md").read_text()
    assert "Holm over 4 pairs" in (Path(made["folder"]) / "grid.md").read_text()
    assert "cannot be given" in cli(*words, "index=exact", code=2).stderr
    listing = cli("reproduce", "--list").stdout
    assert [line.split()[0] for line in listing.splitlines()] == names()
    shown = cli("reproduce", "table3", "scale=paper", "--show").stdout
    assert "Nothing was run" in shown
    assert "32.40" in shown  # ColBERT under WARP on MS MARCO
    shown = cli("reproduce", "candidates", "scale=paper", "--show", "--only", "ColBERT").stdout
    assert "15172.000" in shown
    assert "17.900" not in shown  # XTR's
    assert "one of: " in cli("reproduce", code=2).stderr
    assert "nothing is" in cli("reproduce", "table2", "--accept", "--dry-run", code=2).stderr
    assert "nothing is" in cli("claims", "--accept", "--dry-run", code=2).stderr


# --- the study's shape ---------------------------------------------------------------------------------------------


def evaluated(folder: Path, values: list[float]) -> dict[str, Path]:
    folder.mkdir(parents=True)
    rows = ["query,nDCG@10", *(f"q{i},{value}" for i, value in enumerate(values))]
    (folder / "per_query.csv").write_text("\n".join(rows) + "\n")
    return {"evaluate": folder}


def test_a_grid_marks_what_differs_from_its_baseline(tmp_path: Path) -> None:
    """20 queries: one model is above on all of them, one is above and below in turn; the quoted row has no cell."""
    base = Row("base", ("config=colbert",), {})
    rows = (
        base,
        Row("better", ("config=a",), {}, "base"),
        Row("alike", ("config=b",), {}, "base"),
        Row("old", None, {}),
    )
    columns = tuple(Column(name, "nDCG@10", (f"data={name}",)) for name in ("x", "y"))
    what = Reproduction("made", "Made", "demo", 0.5, (), columns, {"both": ("x", "y")}, rows)
    scores = {"base": [0.5] * 20, "better": [0.6] * 20, "alike": [0.4, 0.6] * 10}
    folders = {(name, "x"): [evaluated(tmp_path / name, values)] for name, values in scores.items()}
    values = {(name, "x"): 100 * sum(s) / 20 for name, s in scores.items()} | {
        ("base", "y"): 70.0,
        ("base", "both"): 60.0,
    }
    shown = grid(what, values, folders)
    assert shown.columns == ["", "x", "y", "both"]
    assert [row[0] for row in shown.rows] == ["base", "better", "alike"]
    assert shown.rows[0][1:] == pytest.approx([50, 70, 60])
    assert shown.rows[1][1:] == [pytest.approx(60), None, None]
    assert shown.marks == {(1, 1): "†"}
    assert "60.0†" in shown.terminal()
    assert shown.footer[0] == "nDCG@10 of x, y; in points."
    assert "Holm over 2 pairs). 1 do." in shown.terminal()
    assert r"\textbf{60.0}\textsuperscript{\textdagger{}}" in shown.latex()
    assert "†" not in grid(what, values, {}).terminal()


def test_a_grid_says_measures_and_units_once() -> None:
    """Figure 1's columns name their measure themselves, Figure 2's unit is its measure."""
    assert grid(load("figure1", "demo"), {}, {}).footer[0] == "in points."
    assert grid(load("figure2", "demo"), {}, {}).footer[0] == "queries a second."
    assert grid(load("table1", "demo"), {}, {}).footer[0] == "nDCG@10 of pydoc, nfcorpus, cranfield; in points."


def test_a_grid_of_several_trainings_is_tested_over_them_too(tmp_path: Path) -> None:
    """One model is above under each of three seeds; another only on the mean of them, one seed being below."""
    rows = (Row("base", ("config=colbert",), {}), Row("up", ("config=a",), {}, "base"), Row("moody", (), {}, "base"))
    columns = (Column("x", "nDCG@10", ("data=x",)),)
    what = Reproduction("made", "Made", "demo", 0.5, (), columns, {}, rows, seeds=(1, 2, 3))
    by_seed = {"base": (0.5, 0.5, 0.5), "up": (0.6, 0.61, 0.6), "moody": (0.9, 0.95, 0.4)}
    folders = {
        (name, "x"): [evaluated(tmp_path / f"{name}{i}", [value] * 40) for i, value in enumerate(values)]
        for name, values in by_seed.items()
    }
    shown = grid(what, dict.fromkeys(folders, 50.0), folders)
    assert shown.marks == {(1, 1): "†"}
    assert "Means over training seeds 1, 2, 3." in shown.terminal()
    assert "Student's t over the seeds' means" in shown.terminal()
    alone = grid(what, dict.fromkeys(folders, 50.0), {key: made[:1] for key, made in folders.items()})
    assert alone.marks == {(1, 1): "†", (2, 1): "†"}


def test_seeds_that_are_none_are_refused() -> None:
    assert study.parse_seeds("42,43") == (42, 43)
    for wrong in ("", "42,", "a", "42,42", "-1", "4.5"):
        with pytest.raises(UsageError):
            study.parse_seeds(wrong)
    what = dataclasses.replace(load("table1", "demo"), seeds=(42, 43))
    with pytest.raises(UsageError, match="--seeds says under which seeds"):
        reproduce.check_extra(what, ["train.seed=44"])


def test_released_models_stand_in_for_ours_and_for_no_model_that_a_row_names() -> None:
    """As README types it. One row of Table 1 is another model's, which it stays."""
    what, word = load("table1", "paper"), "model.source=released"
    reproduce.check_extra(what, [word])
    assert isinstance(what, Reproduction)
    sources = {
        row.name: [found for found in reproduce.words_of(what, row, what.columns[0], [word]) if "model.source" in found]
        for row in what.rows
        if row.overrides is not None
    }
    own = {name: found for name, found in sources.items() if found != [word]}
    assert own == {"xtr-base-en as XTR": ["model.source=checkpoint"]}
    with pytest.raises(UsageError, match="not trained here"):
        reproduce.check_extra(dataclasses.replace(what, seeds=(1, 2)), [word])
    with pytest.raises(UsageError, match="sets it for each cell"):
        reproduce.check_extra(what, ["train.k_train=32"])  # what tells one row from another


def test_a_run_without_memory_costs_its_cell_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they fail; then each goes alone. What nobody can explain is no reason and goes on up."""

    def made(cfg: str, until: str = "evaluate") -> SimpleNamespace:
        return SimpleNamespace(cfg=cfg, steps=[SimpleNamespace(stage=SimpleNamespace(name=until))])

    def run(plans: list[SimpleNamespace]) -> SimpleNamespace:
        for plan in plans:
            if plan.cfg == "large":
                raise MemoryError("Unable to allocate 9 TiB")
            if plan.cfg == "odd":
                raise ZeroDivisionError
        return SimpleNamespace(folders=[{"evaluate": Path(plan.cfg)} for plan in plans])

    monkeypatch.setattr(reproduce.pipeline, "run", run)
    monkeypatch.setattr(reproduce.pipeline, "plan", made)
    reasons: dict[str, str] = {}
    ready = {name: made(name) for name in ("small", "large")}
    found = reproduce.carry_out(ready, reasons)  # type: ignore[arg-type]
    assert found == {"small": {"evaluate": Path("small")}}
    assert "9 TiB" in reasons["large"]
    with pytest.raises(ZeroDivisionError):
        reproduce.carry_out({"odd": made("odd")}, reasons)  # type: ignore[dict-item]


def test_values_under_several_seeds(tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained head differs by seed: the cell is the mean of what each gives alone, and is recorded apart."""
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    monkeypatch.setattr(reproduce, "recorded_root", lambda: tmp_path / "records")
    words = ("index=exact", "config=colbert", "model.source=untrained", "model.layers=1", "model.n_doc=40")
    columns = (Column("mini", "nDCG@10", ("data=beir/mini/test",)),)
    rows = (Row("untrained", words, {}), Row("BM25", ("index=bm25",), {}))
    what = Reproduction("made", "Made", "demo", 0.5, (), columns, {}, rows)
    alone = [reproduce.measure(what, study.seed_words(seed)).values for seed in (1, 2)]
    several = dataclasses.replace(what, seeds=(1, 2))
    folder, cells, _ = reproduce.reproduce(several, [])
    ours, bm25 = ([found[name, "mini"] for found in alone] for name in ("untrained", "BM25"))
    assert ours[0] != ours[1]
    assert cells[0].now == pytest.approx(sum(ours) / 2)
    assert cells[0].spread == pytest.approx(abs(ours[0] - ours[1]) / 2**0.5)
    assert (cells[1].now, cells[1].spread) == (pytest.approx(bm25[0]), 0)
    assert "training seeds 1, 2" in (folder / "table.md").read_text()
    assert len(reproduce.plans(several, [])[0]) == 4
    path = reproduce.accept(several, cells, [])
    record = json.loads(path.read_text())
    assert path.name == "made-demo-seeds-1-2.json"
    assert (record["seeds"], record["missing"], record["of"]) == ([1, 2], 0, 2)
    assert record["spread"]["untrained"]["mini"] == round(cells[0].spread or 0, 4)
    assert {name.rpartition(", ")[2] for name in record["runs"]} == {"seed 1", "seed 2"}
    assert [cell.verdict for cell in reproduce.reproduce(several, [])[1]] == ["agrees", "agrees"]
    assert [cell.verdict for cell in reproduce.reproduce(what, [])[1]] == ["no record", "no record"]


# --- numbers of an analysis ----------------------------------------------------------------------------------------


def reading(paper: float | None = None, tolerance: float | None = 0.5, **where: str | float) -> Reading:
    return Reading("a", where or {"model": "colbert"}, "share", paper, 100.0, tolerance)


ROWS = [
    {"model": "colbert", "nprobe": "8", "share": "0.263"},
    {"model": "colbert", "nprobe": "16", "share": "0.4"},
    {"model": "xtr", "nprobe": "8.0", "share": ""},
]


def test_a_reading_is_the_one_row_that_matches() -> None:
    assert reading(model="colbert", nprobe=8).value(ROWS) == pytest.approx(26.3)
    assert reading(model="colbert", nprobe="16").value(ROWS) == pytest.approx(40)
    for where, fault in (
        ({"model": "colbert"}, "2 rows .* match model=colbert"),
        ({"model": "colbert", "nprobe": 7}, "no rows .* match model=colbert, nprobe=7"),
        ({"model": "xtr", "nprobe": 8}, "is no number: ''"),
        ({"modle": "colbert"}, "no column 'modle'"),
    ):
        with pytest.raises(DataError, match=fault):
            reading(**where).value(ROWS)
    with pytest.raises(DataError, match="no rows"):
        reading().value([])


def of_analysis(scale: str, *cells: Reading) -> AnalysisReproduction:
    return AnalysisReproduction("made", "Made", scale, (), "candidates", cells)


def test_an_analysis_cell_without_a_printed_value_is_judged_by_its_record() -> None:
    def verdicts(scale: str, now: float | None, paper: float | None, record: float | None) -> str:
        key = ("a", "share")
        accepted = {} if record is None else {"a": {"share": record}}
        (cell,) = judge(of_analysis(scale, reading(paper=paper)), {} if now is None else {key: now}, accepted)
        return cell.verdict

    assert verdicts("paper", 26.7, 26.3, None) == "agrees"
    assert verdicts("paper", 26.9, 26.3, 26.9) == "higher"
    assert verdicts("paper", 26.7, None, None) == "no record"
    assert verdicts("paper", 26.7, None, 26.72) == "agrees"
    assert verdicts("paper", 26.7, None, 26.8) == "lower"  # a tenth of the tolerance
    assert verdicts("demo", 26.7, 26.7, None) == "no record"
    assert verdicts("demo", 26.7, 99.0, 26.7) == "agrees"
    assert verdicts("demo", None, 26.3, 26.3) == "not run"
    (cell,) = judge(of_analysis("paper", reading(paper=1.0, tolerance=None)), {("a", "share"): 9.0}, {})
    assert cell.verdict == "not compared"
    text = reproduce.table(of_analysis("paper", reading(paper=1.0)), [cell], []).terminal()
    assert "8.000" in text  # the difference
    assert "within 0.5" in text
    shown = reproduce.table(of_analysis("demo", reading()), [cell], []).terminal()
    assert "within 0.05" in shown
    assert "here pydoc/test, scale=demo" in shown  # not where the study made it


def test_select_and_extra_of_an_analysis() -> None:
    what = load("candidates", "paper")
    for only, count in (("ColBERT", 2), ("xtr_multi", 2), ("share", 2), ("beir/fiqa/test", 4)):
        assert len(study.select(what, [only]).cells) == count
    assert len(study.select(what, ["ColBERT", "share"]).cells) == 3
    with pytest.raises(UsageError, match="no cell 'Colbert'") as caught:
        study.select(what, ["Colbert"])
    assert "ColBERT" in str(caught.value.hint)
    with pytest.raises(DataError, match="not at hand"):
        study.select(AnalysisReproduction("m", "M", "demo", ("data=beir/fiqa/test",), "geometry", ()))
    for word in ("data=pydoc/test", "analyze.models=[colbert]", "scale=demo"):
        with pytest.raises(UsageError, match="cannot be given"):
            reproduce.check_extra(what, [word])
    assert "index.nprobe=4" in reproduce.words_of_analysis(what, ["index.nprobe=4"])


MADE = """
title: Made
analysis: geometry
tolerance: 0.01
overrides: [{words}, "analyze.models=[untrained]"]
cells:
  - {{name: untrained, where: {{model: untrained}}, column: mean cosine, paper: 0.5}}
  - {{name: untrained, where: {{model: untrained, tokens: {tokens}}}, column: dimension}}
  - {{name: absent, where: {{model: colbert}}, column: dimension}}
"""


def test_an_analysis_made_judged_and_accepted(
    tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    monkeypatch.setattr(reproduce, "recorded_root", lambda: tmp_path / "records")
    path = tmp_path / "made.yaml"
    path.write_text(MADE.format(words=", ".join(TINY), tokens=0))
    what = study.select(parse_reproduction(path, "demo"))
    plans, lacking = reproduce.plans(what, [])
    assert (len(plans), lacking) == (1, [])
    _, cells, _ = reproduce.reproduce(what, [])
    assert [cell.verdict for cell in cells] == ["no record", "not run", "not run"]
    assert status(cells) == MISSING
    (table,) = (tmp_path / "home").rglob("analyze/geometry*/table.csv")
    with table.open() as file:
        (row,) = csv.DictReader(file)
    assert cells[0].now == float(row["mean cosine"])

    path.write_text(MADE.format(words=", ".join(TINY), tokens=row["tokens"]))  # now the second cell finds its row
    what = parse_reproduction(path, "demo")
    folder, cells, _ = reproduce.reproduce(what, [])
    assert cells[1].now == float(row["dimension"])
    text = (folder / "table.txt").read_text()
    assert "not run: absent, dimension: no rows of its table match model=colbert" in text
    assert "paper (another setting)" in text
    record = json.loads(reproduce.accept(what, cells, []).read_text())
    assert record["runs"] == {"analyze": artifacts.read_manifest(table.parent)["fingerprint"]}
    assert record["cells"]["untrained"] == {"mean cosine": round(cells[0].now, 4), "dimension": cells[1].now}
    assert "absent" not in record["cells"]
    picture = tmp_path / "records" / "reproductions" / "made-demo" / "of-another.svg"
    picture.write_text("<svg/>")
    reproduce.accept(what, cells[:1], [])  # not all that is recorded: what was drawn of the rest stays, as its cells do
    assert picture.exists()
    reproduce.accept(what, cells, [])
    assert not picture.exists()
    _, cells, _ = reproduce.reproduce(what, [])
    assert [cell.verdict for cell in cells] == ["agrees", "agrees", "not run"]
    _, cells, _ = reproduce.reproduce(what, ["machine.encode_tokens=512"])  # how fast it runs is no other setting
    assert [cell.verdict for cell in cells] == ["agrees", "agrees", "not run"]
    folder, others, _ = reproduce.reproduce(what, ["data.max_queries=1"])
    assert [cell.verdict for cell in others] == ["no record", "no record", "not run"]
    assert "made with other overrides: not compared" in (folder / "table.txt").read_text()
    with pytest.raises(DataError, match="was accepted with no overrides"):
        reproduce.accept(what, others, ["data.max_queries=1"])
    broken = AnalysisReproduction("made", "Made", "demo", (*what.overrides, "index=nothing"), "geometry", what.cells)
    found = reproduce.measure(broken, [])
    assert found.values == found.runs == {}
    assert all("nothing" in reason for reason in found.reasons.values())
    assert reproduce.plans(broken, [])[1][0].startswith("analysis geometry: ")
    with pytest.raises(DataError, match="has no value to accept"):
        reproduce.accept(broken, judge(broken, {}, {}), [])


def test_all_are_accepted_after_one_that_has_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accepted = []

    def accept(what: SimpleNamespace, cells: object, extra: object) -> Path:
        if what.name == "second":
            raise DataError("second has no value to accept", hint="see its table")
        accepted.append(what.name)
        return tmp_path / f"{what.name}.json"

    @dataclasses.dataclass(frozen=True)
    class Named:
        name: str
        seeds: tuple[int, ...] = ()

    cell = Cell("row", "column", None, None, 1.0, "agrees")
    shown = SimpleNamespace(terminal=lambda: "a table")
    monkeypatch.setattr(study, "load_all", lambda *_: [Named("first"), Named("second"), Named("third")])
    monkeypatch.setattr(reproduce, "check_accept", lambda *_: None)
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: (tmp_path, [cell], shown))
    monkeypatch.setattr(reproduce, "accept", accept)
    done = CliRunner().invoke(app, ["reproduce", "all", "--accept"])
    assert accepted == ["first", "third"]
    assert done.exit_code == MISSING
    assert "second has no value to accept" in done.output
    monkeypatch.setattr(study, "load_all", lambda *_: [Named("first")])
    assert CliRunner().invoke(app, ["reproduce", "all", "--accept"]).exit_code == OK


def test_the_commit_of_a_record_says_whether_sources_were_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        named = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *named, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.delenv(reproduce.COMMIT_VARIABLE, raising=False)
    monkeypatch.setattr(reproduce.configs, "checkout", lambda: tmp_path)
    (tmp_path / "xtrrep").mkdir()
    source, words = tmp_path / "xtrrep" / "scoring.py", tmp_path / "README.md"
    source.write_text("one\n")
    words.write_text("one\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "--short", "HEAD").strip()
    words.write_text("two\n")  # makes no result
    assert reproduce._commit() == commit
    source.write_text("two\n")
    assert reproduce._commit() == f"{commit}-dirty"
    monkeypatch.setattr(reproduce.configs, "checkout", lambda: tmp_path / "nowhere")
    assert reproduce._commit() == "unknown"


# --- figures -------------------------------------------------------------------------------------------------------


def test_figure_1_is_drawn_a_collection_at_a_time(tmp_path: Path) -> None:
    what = load("figure1", "demo")
    assert (what.figure, load("figure2", "demo").quality) == ("k_prime_sweep", "table3")
    values = {
        (row.name, column.name): 50 + i for i, row in enumerate(what.rows) for column in what.columns[:5]
    }  # all of Recall@100 on pydoc, and one k' of nDCG@10
    made = reproduce.draw_sweep(what, values, tmp_path)
    assert [path.name for path in made] == [f"figure1-pydoc-test.{kind}" for kind in ("png", "svg", "pdf")]
    assert all(path.stat().st_size > 4000 for path in made)
    assert reproduce.draw_sweep(what, {}, tmp_path) == []


def test_figure_2_needs_what_was_evaluated_before(
    tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(collections))

    def of(measure: str, figure: str | None = None, quality: str | None = None) -> Reproduction:
        columns = (Column("mini", measure, ("data=beir/mini/test",)),)
        rows = (Row("BM25", ("index=bm25",), {}), Row("quoted", None, {}))
        return Reproduction("made", "Made", "demo", None, (), columns, {}, rows, figure, quality)

    other = of("nDCG@10")
    monkeypatch.setattr(reproduce, "load", lambda name, scale: other)
    what = of("qps", "speed_and_quality", "other")
    assert reproduce.quality_at_hand(what, []) == {}
    assert not list((tmp_path / "home").rglob(artifacts.MANIFEST))
    assert reproduce.draw_speed(what, {("BM25", "mini"): 12.5}, {}, tmp_path) == []
    measured = reproduce.measure(other, [])
    values = measured.values
    (evaluated,) = (tmp_path / "home").glob("results/runs/evaluate/[!.]*")
    assert measured.runs == {"BM25, mini": artifacts.read_manifest(evaluated)["fingerprint"]}
    quality = reproduce.quality_at_hand(what, [])
    assert quality == {("BM25", "mini"): ("nDCG@10", values["BM25", "mini"], 0.0)}
    made = reproduce.draw_speed(what, {("BM25", "mini"): 12.5}, quality, tmp_path)
    stem = "made-beir-mini-test"
    drawn = [f"{stem}.{kind}" for kind in ("png", "svg", "pdf")]
    assert [path.name for path in made] == [*drawn, "speed_and_quality.csv"]
    (row,) = csv.DictReader(made[-1].read_text().splitlines())
    assert (row["row"], float(row["queries/s"]), float(row["value"])) == ("BM25", 12.5, values["BM25", "mini"])


def test_figures_over_seeds_show_the_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figure 1 gets bands where a cell has a standard deviation, Figure 2 bars and their CSV; both name the seeds."""
    drawn: list[Any] = []
    bands = lambda lines, levels, title, stem, *, bands: drawn.append((lines, bands, title)) or []  # noqa: E731
    bars = lambda points, measure, title, stem, *, base: drawn.append((points, measure, title)) or []  # noqa: E731
    monkeypatch.setattr(reproduce, "k_prime_sweep", bands)
    monkeypatch.setattr(reproduce, "speed_and_quality", bars)
    seeds = "\nmeans over training seeds 42, 43, with their standard deviation"

    what = dataclasses.replace(load("figure1", "demo"), seeds=(42, 43))
    first, second = (column for column in what.columns if column.data == "pydoc/test" and column.measure == "nDCG@10"
                     and column.k_prime in (100, 40_000))  # fmt: skip
    row = what.rows[0].name
    values = {(row, first.name): 60.0, (row, second.name): 50.0}
    reproduce.draw_sweep(what, values, tmp_path, {(row, first.name): 0.5})
    lines, shade, title = drawn.pop()
    assert lines == {"nDCG@10": {row: sorted((c.k_prime, values[row, c.name]) for c in (first, second))}}
    assert shade == {"nDCG@10": {row: [(first.k_prime, 0.5)]}}
    assert title.endswith(seeds)

    what = dataclasses.replace(load("figure2", "demo"), seeds=(42, 43))
    key = what.rows[0].name, what.columns[0].name
    reproduce.draw_speed(what, {key: 12.5}, {key: ("nDCG@10", 60.0, 0.5)}, tmp_path, {key: 0.25})
    (point,), _, title = drawn.pop()
    assert (point.name, point.speed, point.value, point.speed_sd, point.value_sd) == (key[0], 12.5, 60.0, 0.25, 0.5)
    assert title.endswith(seeds)
    (written,) = csv.DictReader((tmp_path / "speed_and_quality.csv").read_text().splitlines())
    assert (written["sd of queries/s"], written["sd of value"]) == ("0.25", "0.5")


def test_what_an_analysis_drew_lies_beside_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    picture = tmp_path / "figure4.svg"
    picture.write_text("<svg/>")
    what = of_analysis("demo", reading())
    values = {cell.key: 1.0 for cell in what.cells}
    measured = reproduce.Measured(values, {}, {}, {"analyze": "0123456789ab"}, {}, {picture.name: picture}, {})
    monkeypatch.setattr(reproduce, "measure", lambda *_: measured)
    folder, cells, _ = reproduce.reproduce(what, [])
    assert (folder / "figure4.svg").read_text() == "<svg/>"
    assert [cell.now for cell in cells] == [1.0]
