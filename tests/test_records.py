"""Results as files: written, recorded, accepted, drawn; and experiments as a user runs them."""

import csv
import dataclasses
import errno
import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Cli
from made_results import Bench

from xtrrep import artifacts
from xtrrep.console import DataError
from xtrrep.experiments import figures, record, tables
from xtrrep.experiments import result as results
from xtrrep.experiments import run as running
from xtrrep.experiments.cell import parse_overrides
from xtrrep.experiments.comparison import Comparison
from xtrrep.experiments.definition import (
    Baseline,
    Column,
    Experiment,
    Reading,
    Row,
    load,
    narrowed,
    parse,
    select,
)
from xtrrep.experiments.planning import Plans, plan
from xtrrep.experiments.result import Result, Value


@pytest.fixture(autouse=True)
def recorded_root(tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    monkeypatch.setattr("xtrrep.config.recorded_root", lambda: tmp_path / "recorded")
    return tmp_path / "recorded"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path / "runs", monkeypatch)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


FILE = """title: Made
tolerance: 0.5
columns:
  x: {data: beir/x/test, measure: nDCG@10}
  y: {data: beir/y/test, measure: nDCG@10}
means: {both: [x, y]}
rows:
  - {name: base, overrides: [config=colbert], paper: {x: 50}}
  - {name: better, overrides: [config=xtr_k64], baseline: base}
  - {name: quoted, paper: {x: 20}}
"""
BASE, BETTER = [0.5, 0.4] * 20, [0.6, 0.5] * 20


@pytest.fixture
def table(tmp_path: Path) -> Experiment:
    (tmp_path / "made.yaml").write_text(FILE)
    return parse(tmp_path / "made.yaml", "demo")


def both(*columns: str, seeds: int = 1) -> dict[Any, Any]:
    named = {"base": BASE, "better": BETTER}
    return {(row, column, seed): named[row] for row in named for column in columns for seed in range(seeds)}


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_result_is_read_back_as_it_was(bench: Bench, table: Experiment, tmp_path: Path) -> None:
    cells = {**both("x", "y", seeds=2), ("better", "y", 1): "no memory"}
    made = bench.result(dataclasses.replace(table, seeds=(42, 43)), cells, {"train.steps": "2"})
    quality = (("base", "x", "nDCG@10", 45.0, 0.5),)
    made = dataclasses.replace(made, quality=quality, figure="speed_and_quality")
    made.write(tmp_path)
    again = results.read(tmp_path)
    assert again == dataclasses.replace(made, per_unit={})
    assert [value.mean for value in again.values] == [pytest.approx(45), pytest.approx(45), pytest.approx(55), None]
    assert "no memory" in [value.reason for value in again.values]
    units = rows_of(tmp_path / "units.csv")
    assert len(units) == 3 * 2 * 40
    own = [
        float(unit["number"]) for unit in units if (unit["row"], unit["column"], unit["seed"]) == ("base", "x", "43")
    ]
    assert own == BASE
    assert [(unit["value"], unit["unit"]) for unit in units[:2]] == [("nDCG@10", "00"), ("nDCG@10", "01")]
    text = json.loads((tmp_path / "result.json").read_text())
    assert (text["schema"], text["seeds"], text["overrides"]) == (results.SCHEMA, [42, 43], ["train.steps=2"])
    assert {"date", "commit", "hardware", "libraries", "seconds"} <= text["provenance"].keys()
    assert text["provenance"]["libraries"]["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not the"), ("[]", "is not the"), ('{"schema": 0}', "another version"),
                        ('{"schema": 1}', "is not the"), ('{"schema": 1, "values": [{"x": 1}]}', "is not the")]
)  # fmt: skip
def test_a_damaged_record_is_named(recorded_root: Path, table: Experiment, text: str, words: str) -> None:
    empty = running.describe(table, {})
    folder = results.recorded_folder(empty)
    assert folder == recorded_root / "reproductions" / "made-demo"
    assert results.recorded(empty) is None
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        results.recorded(empty)
    assert f"{folder}" in str(caught.value)


def test_a_saved_result_has_tables_of_the_same_numbers(bench: Bench, table: Experiment, tmp_path: Path) -> None:
    made = bench.result(table, both("x", "y"))
    picture = tmp_path / "figure9.svg"
    picture.write_text("<svg/>")
    folder = record.save(made, {picture.name: picture})
    assert (folder / "figure9.svg").read_text() == "<svg/>"
    for stem in ("grid", "table"):
        assert all((folder / f"{stem}.{kind}").stat().st_size > 60 for kind in ("csv", "md", "txt", "tex", "html"))
    shown = rows_of(folder / "table.csv")
    assert [row["row"] for row in shown] == [name for name in ("base", "better", "quoted") for _ in range(3)]
    numbers = {(row["row"], row["column"]): row["now"] for row in shown if row["now"]}
    shape = {(row[""], column): row[column] for row in rows_of(folder / "grid.csv") for column in ("x", "y", "both")}
    assert shape == numbers
    assert float(numbers["better", "both"]) == pytest.approx(55)
    assert {row["verdict"] for row in shown} == {"no record", "quoted"}
    assert "55.0<sup>†</sup>" in (folder / "grid.md").read_text()
    again = tables.tables(results.read(folder))  # nothing but the file
    for name, shown_again in again.items():
        assert (folder / f"{name}.txt").read_text().strip() == shown_again.terminal().strip()
    assert artifacts.read_manifest(folder)["upstream"]["base, x"] == made.values[0].runs[0]
    assert record.save(made, {picture.name: picture}) == folder  # the same result is the same artifact


def test_a_grid_says_measures_and_units_once() -> None:
    """Figure 1's columns name their measure themselves, Figure 2's unit is its measure."""
    for name, says in (
        ("figure1", "in points."),
        ("figure2", "queries a second."),
        ("table1", "nDCG@10 of pydoc, nfcorpus, cranfield; in points."),
    ):
        assert tables.grid(running.describe(load(name, "demo"), {})).footer[0] == says


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_an_accepted_result_is_what_the_next_is_judged_by(bench: Bench, table: Experiment, recorded_root: Path) -> None:
    cells = both("x", "y")
    made = bench.result(table, cells)
    assert {cell.verdict for cell in made.expected} == {"no record", "quoted"}
    folder = record.accept(table, made, {})
    assert folder == recorded_root / "reproductions" / "made-demo"
    kept = results.read(folder)
    assert {cell.verdict for cell in kept.expected} == {"agrees", "quoted"}
    assert kept.provenance["commit"] == made.provenance["commit"]
    assert not (folder / "units.csv").exists()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".csv"}
    again = bench.result(table, cells)
    assert [(cell.recorded, cell.verdict) for cell in again.expected if cell.row == "base"] == [
        (pytest.approx(45), "agrees")
    ] * 3
    moved = bench.result(table, {**cells, ("base", "x", 0): [0.6] * 40})
    assert next(cell for cell in moved.expected if cell.row == "base").verdict == "higher"
    assert tables.status(moved) == "differs"


def test_what_was_made_with_other_overrides_is_neither_compared_nor_replaced(bench: Bench, table: Experiment) -> None:
    cells = both("x", "y")
    record.accept(table, bench.result(table, cells), {})
    threads = {"machine.encode_tokens": "512"}  # how fast it runs is no other setting
    assert {cell.verdict for cell in bench.result(table, cells, threads).expected} == {"agrees", "quoted"}
    record.check_acceptable(table, threads)
    other = {"data.max_queries": "1"}
    made = bench.result(table, cells, other)
    assert {cell.verdict for cell in made.expected} == {"no record", "quoted"}
    assert "made with other overrides: not compared" in tables.expected(made).terminal()
    for refused in (
        lambda: record.check_acceptable(table, other),
        lambda: record.accept(table, made, {}),
    ):
        with pytest.raises(DataError, match="was accepted with no overrides") as caught:
            refused()
        assert "rm -r " in caught.value.hint
    several = dataclasses.replace(table, seeds=(1, 2))  # of other trainings is another record
    record.check_acceptable(several, other)
    assert results.recorded_folder(running.describe(several, {})).name == "made-demo-seeds-1-2"
    nothing = bench.result(table, dict.fromkeys(cells, "no memory"))
    with pytest.raises(DataError, match="has no value to accept"):
        record.accept(table, nothing, {})


def test_a_partial_accept_keeps_the_values_marks_means_and_pictures_of_the_rest(
    bench: Bench, table: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = record.accept(table, bench.result(table, both("x", "y")), {})
    picture = folder / "made-beir-y-test.svg"
    picture.write_text("<svg/>")
    (folder / "old.csv").write_text("of an earlier version")
    monkeypatch.setattr("xtrrep.experiments.definition.at_hand", lambda data: True)
    part = select(table, ["x"])
    raised = {**both("x"), ("better", "x", 0): [0.7, 0.6] * 20}
    made = bench.result(part, raised)
    assert {cell.column for cell in made.expected} == {"x"}
    record.accept(part, made, {})
    kept = results.read(folder)
    grid = {row[0]: row[1:] for row in tables.grid(kept).rows}
    assert grid["base"] == pytest.approx([45, 45, 45])
    assert grid["better"] == pytest.approx([65, 55, 60])
    assert tables.grid(kept).columns == ["", "x", "y", "both"]
    assert tables.grid(kept).marks == {(1, 1): "†", (1, 2): "†"}
    assert {(cell.row, cell.column): cell.verdict for cell in kept.expected}["better", "both"] == "agrees"
    assert picture.exists()
    assert not (folder / "old.csv").exists()
    again = bench.result(table, {**both("x", "y"), ("better", "x", 0): [0.7, 0.6] * 20})
    assert {cell.verdict for cell in again.expected} == {"agrees", "quoted"}
    record.accept(table, again, {})
    assert not picture.exists()  # all was made, and this was not
    failed = bench.result(table, {**both("x"), ("base", "y", 0): BASE, ("better", "y", 0): "no memory"})
    picture.write_text("<svg/>")
    record.accept(table, failed, {})
    assert results.read(folder).now("better", "y") == pytest.approx(55)  # a cell that failed keeps its value
    assert picture.exists()


def test_a_grid_of_ones_own_is_accepted_too(bench: Bench, recorded_root: Path) -> None:
    rows = (Row("base", {}), Row("better", {}, baselines=(Baseline("base"),)))
    columns = [Column("x", "beir/x/test", "nDCG@10")]
    grid = narrowed(Experiment("mine", "Mine", "demo", None, {}, rows=rows, figure="bars"), columns)
    folder = record.accept(grid, bench.result(grid, both("x")), {})
    assert folder == recorded_root / "grids" / "mine-demo"
    assert {"grid.md", "differences.md", "mine.svg", "result.json"} <= {path.name for path in folder.iterdir()}


def test_accepted_claims_are_the_whole_family(bench: Bench, recorded_root: Path, tmp_path: Path) -> None:
    comparisons = (Comparison("one", "base is below better", "nDCG@10", ("base",), ("better",), direction="below"),)
    rows = (Row("base", {}), Row("better", {}))
    overrides = {"data": "beir/mini/test", "analyze.resamples": "200"}
    family = Experiment("claims", "Claims", "demo", None, {}, rows=rows, comparisons=comparisons, seeds=(1, 2))
    made = bench.result(family, both("", seeds=2), overrides)
    assert [effect.verdict for effect in made.effects] == ["supported"]
    record.check_acceptable(family, overrides)
    folder = record.accept(family, made, {})
    assert folder == recorded_root / "claims" / "beir-mini-test-demo-seeds-1-2"
    (row,) = rows_of(folder / "table.csv")
    assert (row["claim"], row["verdict"], float(row["effect"])) == ("one", "supported", pytest.approx(-0.1))
    assert len(row["runs"].split()) == 4
    record.check_acceptable(family, {**overrides, "machine.threads": "1"})
    with pytest.raises(DataError, match=r"was accepted with data=beir/mini/test analyze\.resamples=200, not with"):
        record.check_acceptable(family, {"data": "beir/mini/test"})


def test_a_record_survives_a_failure_on_the_way(
    bench: Bench, table: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted last is never gone before its successor is there."""
    cells = both("x", "y")
    folder = record.accept(table, bench.result(table, cells), {})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    own, moved = artifacts.write_atomic, bench.result(table, {**cells, ("base", "x", 0): [0.6] * 40})

    def fails_at_the_table(path: Path, write: Callable[[Any], None]) -> None:
        if path == folder / "table.csv":
            raise OSError(errno.ENOSPC, "", str(path))
        own(path, write)

    monkeypatch.setattr(artifacts, "write_atomic", fails_at_the_table)
    with pytest.raises(OSError, match=r"table\.csv"):
        record.accept(table, moved, {})
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"grid.csv", "grid.md", "result.json"}  # each whole; the rest is as it was
    monkeypatch.setattr(artifacts, "write_atomic", own)
    record.accept(table, moved, {})
    assert "60" in (folder / "table.csv").read_text()


def test_the_commit_of_a_record_says_whether_sources_were_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        named = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *named, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout

    monkeypatch.delenv(results.COMMIT_VARIABLE, raising=False)
    monkeypatch.setattr("xtrrep.config.checkout", lambda: tmp_path)
    (tmp_path / "xtrrep").mkdir()
    source, prose = tmp_path / "xtrrep" / "scoring.py", tmp_path / "README.md"
    source.write_text("one\n")
    prose.write_text("one\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "--short", "HEAD").strip()
    prose.write_text("two\n")  # makes no result
    assert results.commit() == commit
    source.write_text("two\n")
    assert results.commit() == f"{commit}-dirty"
    monkeypatch.setattr("xtrrep.config.checkout", lambda: tmp_path / "nowhere")
    assert results.commit() == "unknown"
    monkeypatch.setenv(results.COMMIT_VARIABLE, "abc")
    assert results.commit() == "abc"


# --- figures ----------------------------------------------------------------------------------------------------------


def with_values(name: str, seeds: tuple[int, ...] = (), **values: tuple[float, float | None]) -> Result:
    """A study's figure on pydoc, its first row with values by column (mean, sd)."""
    empty = running.describe(dataclasses.replace(load(name, "demo"), seeds=seeds), {})
    made = tuple(Value(empty.rows[0], column, "any", mean, sd) for column, (mean, sd) in values.items())
    return dataclasses.replace(empty, values=made)


def test_figure_1_is_drawn_a_collection_at_a_time(tmp_path: Path) -> None:
    empty = with_values("figure1")
    assert (empty.figure, load("figure2", "demo").quality) == ("k_prime_sweep", "table3")
    figures.draw_sweep(empty, tmp_path)
    assert not list(tmp_path.iterdir())
    columns = [column for column in empty.columns if column.data == "pydoc/test"][:5]
    values = [Value(row, column.name, "any", 50.0 + i) for i, row in enumerate(empty.rows) for column in columns]
    figures.draw_sweep(dataclasses.replace(empty, values=tuple(values)), tmp_path)
    drawn = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(drawn) == {f"figure1-pydoc-test.{kind}" for kind in ("png", "svg", "pdf")}
    assert min(drawn.values()) > 4000


def test_figures_over_seeds_show_the_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figure 1 gets bands where a cell has a standard deviation, Figure 2 bars and their CSV; both name the seeds."""
    drawn: list[Any] = []
    monkeypatch.setattr(
        figures, "k_prime_sweep", lambda lines, _, title, stem, *, bands: drawn.append((lines, bands, title))
    )
    monkeypatch.setattr(
        figures,
        "speed_and_quality",
        lambda points, measure, title, stem, *, base: drawn.append((points, measure, title)),
    )
    seeds = "\nmeans over training seeds 42, 43, with their standard deviation"
    empty = with_values("figure1", (42, 43))
    first, second = (c for c in empty.columns if (c.data, c.measure) == ("pydoc/test", "nDCG@10")
                     and c.k_prime in (100, 40_000))  # fmt: skip
    row = empty.rows[0]
    figures.draw_sweep(with_values("figure1", (42, 43), **{first.name: (60, 0.5), second.name: (50, None)}), tmp_path)
    lines, bands, title = drawn.pop()
    assert lines == {"nDCG@10": {row: sorted([(first.k_prime, 60), (second.k_prime, 50)])}}
    assert bands == {"nDCG@10": {row: [(first.k_prime, 0.5)]}}
    assert title.endswith(seeds)

    empty = with_values("figure2", (42, 43))
    column = empty.columns[0].name
    timed = with_values("figure2", (42, 43), **{column: (12.5, 0.25)})
    figures.draw_speed(timed, tmp_path)
    assert not drawn  # a speed without a quality is no point
    quality = ((empty.rows[0], column, "nDCG@10", 60.0, 0.5),)
    figures.draw_speed(dataclasses.replace(timed, quality=quality), tmp_path)
    (point,), measure, title = drawn.pop()
    assert (point.speed, point.value, point.speed_sd, point.value_sd) == (12.5, 60.0, 0.25, 0.5)
    assert (point.name, point.model, measure) == (empty.rows[0], "ColBERT", "nDCG@10")
    assert title.endswith(seeds)
    (row_of_csv,) = rows_of(tmp_path / "speed_and_quality.csv")
    assert (row_of_csv["sd of queries/s"], row_of_csv["sd of value"]) == ("0.25", "0.5")


def test_figure_2_needs_what_was_evaluated_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its qualities are of another experiment, and nothing is run for them."""
    rows = (Row("BM25", {"index": "bm25"}), Row("quoted", None))

    def of(measure: str, **more: Any) -> Experiment:
        columns = (Column("mini", "beir/mini/test", measure),)
        return Experiment("made", "Made", "demo", None, {}, columns, rows=rows, **more)

    monkeypatch.setattr(running, "load", lambda name, scale: of("nDCG@10"))
    timed = of("qps", figure="speed_and_quality", quality="other")
    assert running._quality(timed, {}) == ()
    assert not list((tmp_path / "home").rglob(artifacts.MANIFEST))
    made, _ = running.run(of("nDCG@10"), {})
    (evaluated,) = (tmp_path / "home").glob("results/runs/evaluate/[!.]*")
    assert made.values[0].runs == (artifacts.read_manifest(evaluated)["fingerprint"],)
    assert running._quality(timed, {}) == (("BM25", "mini", "nDCG@10", made.values[0].mean, 0.0),)


def test_a_study_drawn_from_its_record_is_the_recorded_table() -> None:
    """Every number and mark of results/recorded/ comes from its result.json."""
    root = Path(__file__).parents[1] / "results" / "recorded"
    folders = [path.parent for path in sorted(root.rglob("result.json"))]
    assert len(folders) >= 20
    for folder in folders:
        recorded = results.read(folder)
        for name, shown in tables.tables(recorded).items():
            path = folder / f"{name}.csv"
            if path.exists():
                assert (
                    list(csv.reader(path.open(encoding="utf-8")))[1:] == list(csv.reader(shown.csv().splitlines()))[1:]
                ), path


# --- run for real -----------------------------------------------------------------------------------------------------


def test_values_under_several_seeds(recorded_root: Path) -> None:
    """An untrained head differs by seed: the cell is the mean of what each gives alone, and is recorded apart."""
    own = parse_overrides(
        ["index=exact", "config=colbert", "model.source=untrained", "model.layers=1", "model.n_doc=40"]
    )
    columns = (Column("mini", "beir/mini/test", "nDCG@10"),)
    rows = (Row("untrained", own), Row("BM25", {"index": "bm25"}))
    one = Experiment("made", "Made", "demo", 0.5, {}, columns, rows=rows)
    several = dataclasses.replace(one, seeds=(1, 2))
    assert len(plan(several, {}).cells) == 4
    made, _ = running.run(several, {})
    untrained, bm25 = made.values
    assert untrained.by_seed[0] != untrained.by_seed[1]
    assert untrained.mean == pytest.approx(np.mean(untrained.by_seed))
    assert untrained.sd == pytest.approx(np.std(untrained.by_seed, ddof=1))
    assert bm25.sd == 0
    alone, _ = running.run(one, {"train.seed": "2", "model.seed": "2", "distill.seed": "2"})
    assert [value.mean for value in alone.values] == [untrained.by_seed[1], bm25.by_seed[1]]
    assert "training seeds 1, 2" in tables.expected(made).markdown()
    folder = record.accept(several, made, {})
    assert folder.name == "made-demo-seeds-1-2"
    again, _ = running.run(several, {})
    assert [cell.verdict for cell in again.expected] == ["agrees", "agrees"]
    assert [cell.verdict for cell in running.run(one, {})[0].expected] == ["no record", "no record"]


MADE = """title: Made
analysis: geometry
tolerance: 0.01
overrides: [{overrides}, "analyze.models=[untrained]"]
readings:
  - {{name: untrained, where: {{model: untrained}}, column: mean cosine, paper: 0.5}}
  - {{name: untrained, where: {{model: untrained, tokens: {tokens}}}, column: dimension}}
  - {{name: absent, where: {{model: colbert}}, column: dimension}}
"""


def test_an_analysis_made_judged_and_accepted(tmp_path: Path) -> None:
    path = tmp_path / "made.yaml"
    path.write_text(MADE.format(overrides=", ".join(TINY), tokens=0))
    experiment = select(parse(path, "demo"))
    planned = plan(experiment, {})
    assert (len(planned.all()), planned.reasons()) == (1, [])
    made, _ = running.run(experiment, {})
    assert [cell.verdict for cell in made.expected] == ["no record", "not run", "not run"]
    assert tables.status(made) == "missing"
    (folder,) = (tmp_path / "home" / "results" / "runs" / "analyze").glob("geometry*")
    (row,) = rows_of(folder / "table.csv")
    assert made.values[0].mean == float(row["mean cosine"])

    path.write_text(MADE.format(overrides=", ".join(TINY), tokens=row["tokens"]))  # now the second finds its row
    experiment = parse(path, "demo")
    made, _ = running.run(experiment, {})
    assert made.values[1].mean == float(row["dimension"])
    assert "no rows of its table match model=colbert" in made.values[2].reason
    assert "paper (another setting)" in tables.expected(made).terminal()
    assert made.values[0].runs == (artifacts.read_manifest(folder)["fingerprint"],)
    record.accept(experiment, made, {})
    again, _ = running.run(experiment, {})
    assert [cell.verdict for cell in again.expected] == ["agrees", "agrees", "not run"]
    broken = dataclasses.replace(experiment, overrides={**experiment.overrides, "index": "nothing"})
    failed, _ = running.run(broken, {})
    assert all("nothing" in value.reason for value in failed.values)
    assert "nothing" in plan(broken, {}).reasons()[0]
    with pytest.raises(DataError, match="has no value to accept"):
        record.accept(broken, failed, {})


def test_what_an_analysis_drew_is_kept_under_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        folder = tmp_path / f"analysis {seed}"
        folder.mkdir()
        (folder / "table.csv").write_text(f"model,share\ncolbert,0.{seed}\n")
        (folder / "figure4.svg").write_text(f"<svg>{seed}</svg>")
    made = {
        ("", number): SimpleNamespace(
            folder=tmp_path / f"analysis {seed}", plans=(), spec=SimpleNamespace(fingerprint="")
        )
        for number, seed in enumerate((1, 2))
    }
    monkeypatch.setattr(running, "plan", lambda *args, **options: Plans(analyses=made))  # type: ignore[arg-type]
    monkeypatch.setattr(running, "run_analysis", lambda whole: whole.folder)
    readings = (Reading("a", {"model": "colbert"}, "share", None, 100.0, 0.5),)
    experiment = Experiment("made", "Made", "demo", None, {}, analysis="candidates", readings=readings, seeds=(1, 2))
    result, pictures = running.run(experiment, {})
    assert (result.values[0].mean, result.values[0].by_seed) == (pytest.approx(15), pytest.approx((10, 20)))
    folder = record.save(result, pictures)
    assert (folder / "seed-2-figure4.svg").read_text() == "<svg>2</svg>"


# --- as a user runs them ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the commands, so that models are trained once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def user(cli: Cli, home: Path, tmp_path: Path, collections: Path) -> Cli:
    """The command line with three collections, all the same."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("mini", "nfcorpus", "second"):
        (data / name).symlink_to(collections / "mini")
    return partial(cli, home=home, XTRREP_DATA=str(data))


def test_a_table_as_a_user_would(user: Cli) -> None:
    """Table 2 over the tiny collection: five runs from one search, without a record."""
    leaves = ("index.num_leaves=20", "index.num_leaves_to_search=10")
    done = user("reproduce", "table2", *TINY[1:], *leaves, "--only", "nfcorpus", "--json")
    assert "5 settings, one search" in done.stderr
    made = json.loads(done.stdout)
    rows = rows_of(Path(made["folder"]) / "table.csv")
    assert [row["row"] for row in rows] == ["BM25", "mean", "percentile", "min", "power_law", "zero"]
    assert all(0 < float(row["now"]) <= 100 for row in rows)
    assert {cell["verdict"] for cell in made["expected"]} == {"no record"}
    shape = {row[""]: row["nfcorpus"] for row in rows_of(Path(made["folder"]) / "grid.csv")}
    assert shape == {row["row"]: row["now"] for row in rows}
    assert "Holm over 4 pairs" in (Path(made["folder"]) / "grid.md").read_text()


def test_claims_as_a_user_would(user: Cli) -> None:
    """Three models trained small, a claim of each kind, and one that needs another collection."""
    names = ("colbert_keeps_quality", "xtr_less_anisotropic", "self_match")
    only = [f"--only={name}" for name in names]
    made = json.loads(user("claims", *TINY, "analyze.resamples=200", *only, "--json").stdout)
    effects = {effect["id"]: effect for effect in made["effects"]}
    kept, narrow, needy = (effects[name] for name in names)
    assert kept["low"] <= kept["effect"] <= kept["high"]
    assert kept["p"] is None
    assert 0 < narrow["p"] <= 1
    judged = {"supported", "contradicted", "inconclusive"}
    assert kept["verdict"] in judged
    assert narrow["verdict"] in judged | {"baseline not trained"}  # of setup (II): its ColBERT is set beside (I)'s
    assert [effect["family"] for effect in made["effects"]] == ["exploratory"] * 3
    assert narrow["units"] > 0
    assert narrow["low"] < narrow["effect"] < narrow["high"]
    folder = Path(made["folder"])
    (analysis,) = folder.parents[1].glob(f"analyze/*{narrow['runs'][0]}/table.csv")
    cosine = {row["model"]: float(row["mean cosine"]) for row in rows_of(analysis)}
    assert narrow["effect"] == pytest.approx(cosine["xtr_multi"] - cosine["colbert"])
    assert (needy["verdict"], needy["effect"]) == ("not run", None)
    assert "beir/arguana" in needy["note"]
    assert "not of retraining" in (folder / "table.md").read_text()
    assert [row["claim"] for row in rows_of(folder / "table.csv")] == list(effects)
    for suffix in ("csv", "md", "txt", "html", "tex"):
        assert (folder / f"table.{suffix}").stat().st_size > 500


OWN_GRID = """title: Mine
overrides: [{overrides}, index=exact, analyze.resamples=200]
columns:
  mini: {{data: beir/mini/test, measure: nDCG@10}}
  second: {{data: beir/second/test, measure: R@5}}
axes:
  model: {{colbert: [config=colbert], xtr: [config=xtr_k128]}}
  depth: {{20: [retrieve.k_prime=20], 200: [retrieve.k_prime=200]}}
baseline: colbert, 20
figure: bars
"""


def test_a_grid_of_ones_own_as_a_user_would(user: Cli, tmp_path: Path) -> None:
    """Two models by two k' by two collections, in ten lines."""
    path = tmp_path / "my grid.yaml"
    path.write_text(OWN_GRID.format(overrides=", ".join(TINY[1:])))
    assert len(path.read_text().splitlines()) == 10
    done = user("analyze", str(path))
    (folder,) = {(path.parent / line).resolve().parent for line in done.stdout.splitlines() if line.endswith(".svg")}
    grid = rows_of(folder / "grid.csv")
    assert [row[""] for row in grid] == ["colbert, 20", "colbert, 200", "xtr, 20", "xtr, 200"]
    differences = rows_of(folder / "differences.csv")
    assert [(row["row"], row["column"]) for row in differences] == [
        (name, column) for name in ("colbert, 200", "xtr, 20", "xtr, 200") for column in ("mini", "second")
    ]
    numbers = {row[""]: row for row in grid}
    for row in differences:
        own, base = (float(numbers[name][row["column"]]) for name in (row["row"], "colbert, 20"))
        assert float(row["difference"]) == pytest.approx(own - base, abs=1e-6)
        assert float(row["95 % low"]) <= own - base + 1e-9
        assert float(row["95 % high"]) >= own - base - 1e-9
        assert 0 < float(row["p (Holm)"]) <= 1
    assert (folder / "my grid.svg").stat().st_size > 4000
    assert "Mine" in done.stdout


TOY_CLAIM = """title: Words against vectors that were never trained
overrides: [model.source=untrained, model.layers=1, model.n_doc=40, analyze.resamples=200]
cells:
  words: [index=bm25]
  vectors: [index=exact]
comparisons:
  - {id: words_win, says: BM25 is above an untrained model, value: nDCG@10, plus: [words], minus: [vectors],
     direction: above}
"""
TOY_ANALYSIS = '''"""How long rankings are."""

from xtrrep.experiments.analyses import Analysis, Cell, analyses
from xtrrep.report.table import Table


def cells(cfg):
    return [Cell("words", "bm25", 0, ("index=bm25", "retrieve.top_k=7"))]


def make(cfg, scores, out, runs, folders):
    (cell,) = scores
    lines = (folders[cell]["retrieve"] / "run.trec").read_text().splitlines()
    rows = [[cell.model, len(lines) / len(scores[cell])]]
    Table("Length of rankings", ["model", "documents a query"], rows).save(out / "table")
    return {"cells": 1}


analyses.register("ranking_length", "documents in a ranking")(Analysis(cells, make))
'''


def test_a_claim_and_an_analysis_are_one_file_each(user: Cli, tmp_path: Path) -> None:
    """Each in a folder of its own; nothing else is edited."""
    (tmp_path / "words.yaml").write_text(TOY_CLAIM)
    done = user("analyze", str(tmp_path / "words.yaml"), "data=beir/mini/test", "--only", "words_win", "--json")
    made = json.loads(done.stdout)
    (effect,) = made["effects"]
    assert (effect["id"], effect["verdict"]) == ("words_win", "supported")
    (row,) = rows_of(Path(made["folder"]) / "comparisons.csv")
    assert (row["claim"], row["verdict"]) == ("words_win", "supported")
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "ranking_length.py").write_text(TOY_ANALYSIS)
    with_plugins = partial(user, XTRREP_PLUGINS=str(plugins))
    done = with_plugins("analyze", "ranking_length", "data=beir/mini/test", "--json")
    (row,) = rows_of(Path(json.loads(done.stdout)["folder"]) / "table.csv")
    assert (row["model"], float(row["documents a query"])) == ("words", 7)
    assert "did you mean ranking_length" in with_plugins("analyze", "ranking_lenght", code=3).stderr
