"""Definitions: the study's values and cells, faults of a file with their lines, parts of an experiment, overrides."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from typer.testing import CliRunner

from xtrrep import cli as command_line
from xtrrep.config import compose
from xtrrep.console import MISSING, OK, DataError, UsageError
from xtrrep.experiments import planning, record
from xtrrep.experiments import run as running
from xtrrep.experiments.analyses import analyses
from xtrrep.experiments.analysis import plan_analysis
from xtrrep.experiments.cell import as_texts, compose_cell, parse_overrides, parse_seeds
from xtrrep.experiments.definition import (
    Experiment,
    Row,
    analyses_by_name,
    load,
    load_all,
    load_analysis,
    load_claims,
    load_own,
    names,
    parse,
    select,
)
from xtrrep.experiments.planning import cell_of, cell_overrides, check_overrides, columns_of
from xtrrep.experiments.result import Result

ROOT = Path(__file__).parents[1]
PAPER = Path(__file__).parents[2] / "shared" / "paper"

# --- the study's files ------------------------------------------------------------------------------------------------


def printed(name: str) -> dict[tuple[str, str], float]:
    """(row, column) to value of a CSV of the study, by the names our files use."""
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
                key = f"{row['index'].upper()}, {row['stage']}, {model}", data
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
    assert ours == printed(file)
    assert len(ours) == count


@pytest.mark.parametrize("scale", ["paper", "lab", "demo"])
@pytest.mark.parametrize("name", names())
def test_every_cell_composes(name: str, scale: str, collections: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row and each column is a config: known keys, a known model, a measure that exists."""
    for local in ("nfcorpus", "cranfield", "squad-dev"):
        (collections / local).mkdir(exist_ok=True)
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    experiment = load(name, scale)
    if experiment.analysis is not None:
        overrides = {"analyze.name": experiment.analysis, **experiment.overrides, "scale": scale}
        cfg = compose(as_texts(overrides))
        assert (cfg.scale, cfg.data.id) == (scale, experiment.data)
        assert scale != "paper" or cfg.data.id.startswith("beir/")
        made = analyses.get(experiment.analysis).cells(cfg)
        assert {reading.where["model"] for reading in experiment.readings} <= {cell.model for cell in made}
        return
    rows = [row for row in experiment.rows if row.overrides is not None]
    for i in range(max(len(rows), len(experiment.columns))):  # every row and every column, if not every pair
        row, column = rows[i % len(rows)], experiment.columns[i % len(experiment.columns)]
        cell = cell_of(experiment, row, column, {})
        assert cell.config.scale == scale
        assert cell.until == (("latency",) if column.measure == "qps" else ("evaluate",))
        assert scale != "paper" or cell.config.data.id.startswith(("beir/", "lotte/"))


@pytest.mark.parametrize("scale", ["paper", "lab", "demo"])
@pytest.mark.parametrize("name", analyses_by_name())
def test_every_analysis_of_runs_composes(name: str, scale: str) -> None:
    """On any collection: its first and last rows, with what each is tested against among the rows."""
    experiment = load_analysis(name, scale, {"data": "beir/nfcorpus/test"})
    assert experiment.kind == "analysis"
    rows = {row.name: row for row in experiment.rows}
    assert {baseline.row for row in experiment.rows for baseline in row.baselines} <= set(rows)
    assert any(row.baselines for row in experiment.rows)
    for row in [*experiment.rows[:3], *experiment.rows[-3:]]:
        cell = cell_of(experiment, row, experiment.columns[-1], {"data": "beir/nfcorpus/test"})
        assert (cell.config.scale, cell.config.data.id) == (scale, "beir/nfcorpus/test")
    for column in experiment.columns:
        assert any(row.holds(column) for row in experiment.rows)


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_every_cell_of_the_claims_composes(scale: str) -> None:
    family = load_claims(scale)
    used = {cell for comparison in family.comparisons for cell in planning.cells_of(family, comparison)}
    assert {row.name for row in family.rows} <= used, "a cell that no claim needs"
    assert family.measures == ("nDCG@10", "Recall@100")
    (column,) = columns_of(family)
    seen: set[tuple[str, str]] = set()
    for row in family.rows:
        own = set((row.overrides or {}).items())
        if own <= seen or (scale == "paper" and row.name not in ("k128", "plaid_xtr")):
            continue  # each override once, if not beside every other; at paper scale only numbers are others
        seen |= own
        cfg = cell_of(family, row, column, {}).with_seed(43).config
        assert (cfg.scale, cfg.train.seed, cfg.model.seed, cfg.distill.seed) == (scale, 43, 43, 43)
        assert "nDCG@10" in cfg.data.measures
    for comparison in family.comparisons:
        if comparison.analysis is not None:
            assert comparison.value in {"sd", "gold@mean", "lexical@mean", "mean cosine", "documents@8"}


def test_what_a_claim_needs_is_said() -> None:
    def blocked(family: Experiment, overrides: dict[str, str]) -> dict[str, str]:
        reasons = {c.id: planning._blocked(family, c, overrides) for c in family.comparisons}
        return {name: reason for name, reason in reasons.items() if reason}

    reasons = blocked(load_claims("demo"), {})
    controls = {"z_needed", "flatter_by_objective", "flatter_by_mask"}
    assert set(reasons) == {"anisotropy_not_speed", "k128_alone_diverges", "self_match"} | controls
    assert "needs scale=desk or lab or paper" in reasons["z_needed"]
    assert not controls & set(blocked(load_claims("desk"), {}))
    assert not blocked(load_claims("paper"), {"data": "beir/arguana"})


def test_a_scale_can_add_to_what_stands_in() -> None:
    demo, lab, paper = (load("table3", scale) for scale in ("demo", "lab", "paper"))
    assert [c.name for c in lab.columns] == [*(c.name for c in demo.columns), "squad-dev"]
    assert demo.overrides["index.num_partitions"] == "1024"
    assert lab.overrides["index.num_partitions"] == "null"
    assert paper.overrides == {"setup": "II"}


# --- a file of the grammar --------------------------------------------------------------------------------------------

GRID = """title: Models by depth
overrides: [index=exact]
columns:
  pydoc: {data: pydoc/test, measure: nDCG@10}
axes:
  model: {colbert: [config=colbert], xtr: [config=xtr_k128]}
  depth: {100: [retrieve.k_prime=100], 1000: [retrieve.k_prime=1000]}
baseline: colbert, 100
"""
TABLE = """title: A table
tolerance: 0.5
columns:
  a: {data: pydoc/test, measure: nDCG@10}
rows:
  - {name: r, overrides: [config=colbert], paper: {a: 1}}
  - {name: s, overrides: [config=xtr_k64], baseline: r}
means: {all: [a]}
"""
READINGS = """title: An analysis
analysis: geometry
tolerance: 0.1
readings:
  - {name: r, where: {model: colbert}, column: mean cosine, paper: 0.5}
"""
CLAIMS = """title: Claims
numbers: {demo: {k: 1}, lab: {k: 3}, paper: {k: 2}}
cells: {a: ['retrieve.k_prime={k}'], b: []}
best: {g: {of: [a, b], chosen: same}}
comparisons:
  - {id: c, says: s, where: w, value: nDCG@10, plus: [a], minus: [g], direction: above}
"""


def written(folder: Path, text: str, old: str = "", new: str = "") -> Path:
    """A file of that text with one change."""
    assert old in text
    path = folder / "made.yaml"
    path.write_text(text.replace(old, new, 1) if old else text)
    return path


def test_sound_files_are_read(tmp_path: Path) -> None:
    for scale, depth in (("demo", "1"), ("lab", "3"), ("paper", "2")):
        family = parse(written(tmp_path, CLAIMS), scale)
        assert [row.overrides for row in family.rows] == [{"retrieve.k_prime": depth}, {}]
        assert family.members("g") == ("a", "b")
    grid = parse(written(tmp_path, GRID), "demo")
    assert {row.name: next((b.row for b in row.baselines), None) for row in grid.rows} == {
        "colbert, 100": None, "colbert, 1000": "colbert, 100", "xtr, 100": "colbert, 100", "xtr, 1000": "colbert, 100",
    }  # fmt: skip
    assert grid.rows[3].overrides == {"config": "xtr_k128", "retrieve.k_prime": "1000"}
    assert [c.id for c in grid.comparisons] == ["colbert, 1000, pydoc", "xtr, 100, pydoc", "xtr, 1000, pydoc"]
    deep = parse(written(tmp_path, GRID, "nDCG@10}", "nDCG@10, overrides: [retrieve.k_prime=null]}"), "demo")
    assert [column.k_prime for column in deep.columns] == [None]
    assert (grid.figure, grid.path) == ("bars", tmp_path / "made.yaml")
    merged = TABLE.replace("{data: pydoc/test, measure: nDCG@10}", "&a {data: pydoc/test, measure: nDCG@10}").replace(
        "rows:", "  b: {<<: *a, measure: R@5}\nrows:"
    )
    assert [column.measure for column in parse(written(tmp_path, merged), "demo").columns] == ["nDCG@10", "R@5"]
    assert parse(written(tmp_path, READINGS), "demo").readings[0].tolerance == 0.1
    assert parse(written(tmp_path, TABLE), "demo").means == {"all": ("a",)}


# (file, old, new): the line of the fault and its words.
FAULTS: dict[tuple[str, str, str], tuple[int, str]] = {
    # what pydantic finds
    (GRID, "overrides:", "overides:"): (2, "overides: unknown key 'overides'. did you mean overrides"),
    (TABLE, "data: pydoc/test, ", ""): (4, "columns.a: 'data' is missing"),
    (GRID, "columns:", "columns:\n  own: {measure: nDCG@10}"): (4, "columns.own: 'data' is missing"),
    (GRID, "[config=colbert]", "models"): (6, "axes.model.colbert: `each` and a source go together"),
    (GRID, "colbert: [config=colbert]", "each: model"): (6, "no source of choices is called 'model'. did you mean mod"),
    (GRID, "nDCG@10", "overlap@10"): (4, "columns.pydoc: an overlap is with another row: against: {axis: choice}"),
    (GRID, "nDCG@10", "nDCG@10, without: {dept: 100}"): (4, "columns.pydoc: 'dept' is no axis. did you mean depth?"),
    (GRID, "baseline: colbert, 100", "baselines: [{at: {modle: colbert}}]"): (8, "'modle' is no axis"),
    (GRID, "nDCG@10", "nDCG@10, without: {depth: 10}"): (4, "columns.pydoc: depth has no choice '10'"),
    (GRID, "baseline:", "figure: k_prime_sweep\nbaseline:"): (8, "figure: \"k'\" is no axis"),
    (GRID, "baseline:", "spread: seed\nbaseline:"): (8, "spread: 'seed' is no axis. one of: depth, model"),
    (GRID, "measure:", "mesure:"): (4, "columns.pydoc.mesure: unknown key 'mesure'. did you mean measure"),
    (GRID, "nDCG@10", "nDCGG@10"): (4, "columns.pydoc.measure: no measure is called 'nDCGG@10' ("),
    (GRID, "nDCG@10", "seconds"): (4, "no measure is called 'seconds'"),
    (GRID, "[config=colbert]", "[config]"): (6, "'config' is not a KEY=VALUE override (for example"),
    (GRID, "[config=colbert]", "config=colbert"): (6, "axes.model.colbert: Input should be a valid tuple"),
    (GRID, "Models by depth", "[1]"): (1, "title: Input should be a valid string"),
    (TABLE, "0.5", "many"): (2, "tolerance: Input should be a valid number"),
    (TABLE, "0.5", "yes"): (2, "tolerance: a number, not true"),
    (TABLE, "0.5", ".inf"): (2, "tolerance: Input should be a finite number"),
    (TABLE, "{a: 1}", "{a: 2 %}"): (6, "rows.0.paper.a: Input should be a valid number"),
    (TABLE, "baseline:", "baselin:"): (7, "rows.1.baselin: unknown key 'baselin'. did you mean baseline?"),
    (TABLE, "means:", "figure: pie\nmeans:"): (8, "figure: Input should be 'k_prime_sweep', 'speed_and_quality',"),
    (TABLE, "means:", "here: {rows: []}\nmeans:"): (8, "here.rows: unknown key 'rows'. one of: columns, overrides"),
    (READINGS, "where: {model: colbert}", "where: {}"): (5, "readings.0.where: Dictionary should have at least 1"),
    (READINGS, "where: {model: colbert}, ", ""): (5, "readings.0.where: 'where' is missing"),
    (READINGS, "column:", "colum:"): (5, "readings.0.colum: unknown key 'colum'. did you mean column?"),
    (READINGS, "paper: 0.5", "scale_by: null"): (5, "readings.0.scale_by: Input should be a valid number"),
    (CLAIMS, "chosen: same", "chosen: later"): (4, "best.g.chosen: Input should be 'held_out' or 'same'"),
    (CLAIMS, "direction:", "directoin:"): (6, "unknown key 'directoin'. did you mean direction"),
    (CLAIMS, "above", "up"): (6, "comparisons.0.direction: Input should be 'above' or 'below'"),
    (CLAIMS, "above", "above, statistic: median"): (6, "comparisons.0.statistic: Input should be 'difference', "),
    (CLAIMS, ", direction: above", ""): (6, "comparisons.0: it needs either a direction or an interval"),
    (CLAIMS, "above", "above, within: [0, 1]"): (6, "it needs either a direction or an interval"),
    (CLAIMS, "direction: above", "within: [1, 0]"): (6, "comparisons.0.within: [1.0, 0.0] holds everything or nothing"),
    (CLAIMS, "direction: above", "within: [null, null]"): (6, "holds everything or nothing"),
    (CLAIMS, "direction: above", "within: 3"): (6, "comparisons.0.within: Input should be a valid tuple"),
    (CLAIMS, "nDCG@10", "nDCGG@10"): (6, "comparisons.0: no measure is called 'nDCGG@10'"),
    (CLAIMS, "nDCG@10", "qps"): (6, "comparisons.0: qps is one number a run"),
    (CLAIMS, "minus: [g], ", ""): (6, "a difference needs plus and minus"),
    (CLAIMS, "minus: [g]", "minus: [a, b], statistic: ratio"): (6, "a ratio one cell in each"),
    (CLAIMS, "plus: [a], minus: [g], ", ""): (6, "it has no plus, and no `needs`"),
    (CLAIMS, "above", "above, needs: {scale: paper}"): (6, "`needs` and `why` go together"),
    (CLAIMS, "above", "above, needs: {scal: paper}, why: x"): (6, "comparisons.0.needs.scal"),
    (CLAIMS, "above", "above, analysis: plaid_codes"): (6, "no analysis 'plaid_codes' with values by unit. one of:"),
    # what one part says of another
    (GRID, "axes:", "rows: [{name: r}]\naxes:"): (5, "rows.0: a row beside `axes` needs overrides"),
    (GRID, "axes:", "cells: {r: []}\naxes:"): (1, "it needs one of rows, axes, cells or readings, and has axes and ce"),
    (GRID, "  model: {colbert: [config=colbert], xtr: [config=xtr_k128]}\n"
           "  depth: {100: [retrieve.k_prime=100], 1000: [retrieve.k_prime=1000]}", "  {}"): (1, "and has none"),
    (GRID, "columns:\n  pydoc: {data: pydoc/test, measure: nDCG@10}\n", ""): (3, "axes: rows need columns: NAME: {"),
    (GRID, "colbert, 100\n", "colbert, 10\n"): (8, "baseline: 'colbert, 10' is no row. did you mean colbert, 100"),
    (TABLE, "name: s", "name: r"): (7, "rows.1: row 'r' is there twice"),
    (TABLE, "baseline: r", "baseline: q"): (7, "rows.1.baseline: 'q' is no row. one of: r, s"),
    (TABLE, "{a: 1}", "{b: 1}"): (6, "rows.0.paper.b: 'b' is no column. one of: a, all"),
    (TABLE, "[a]", "[z]"): (8, "means.all: 'z' is no column. one of: a"),
    (TABLE, "means:", "quality: table3\nmeans:"): (1, "`figure: speed_and_quality` and `quality` go together, except"),
    (TABLE, "means:", "figure: k_prime_sweep\nmeans:"): (4, "columns.a: figure k_prime_sweep needs overrides: ["),
    (TABLE, "means:", "figure: k_prime_sweep\nlab:\n  columns: {b: {data: d, measure: qps}}\nmeans:"):
        (10, "lab.columns.b: figure k_prime_sweep needs overrides: ["),
    (READINGS, "geometry", "geometri"): (2, "analysis: no analysis named 'geometri'. did you mean geometry?"),
    (READINGS, "analysis: geometry\n", ""): (1, "`analysis` and `readings` go together"),
    (READINGS, "paper: 0.5}", "paper: 0.5}\n  - {name: r, where: {model: b}, column: mean cosine}"):
        (5, "readings.0: 'r, mean cosine' is read twice"),
    (CLAIMS, "demo: {k: 1}, ", ""): (2, "numbers: it has no numbers for scale=demo"),
    (CLAIMS, "{k}", "{depth}"): (3, "cells.a: it uses 'depth', which `numbers` does not give (it gives: k)"),
    (CLAIMS, "{k}", "{k.x}"): (3, "cells.a: it uses 'str' object has no attribute 'x'"),
    (CLAIMS, "of: [a, b]", "of: [y]"): (4, "best.g: 'y' is no cell. one of: a, b"),
    (CLAIMS, "plus: [a]", "plus: [z]"): (6, "comparisons.0: 'z' is no cell. one of: a, b, g"),
    (CLAIMS, "direction: above}", "direction: above}\n  - {id: c, says: s, value: R@5, plus: [a], minus: [b], "
             "direction: above}"): (7, "comparisons.1: comparison 'c' is there twice"),
    (CLAIMS, "comparisons:\n  - {id: c, says: s, where: w, value: nDCG@10, plus: [a], minus: [g], direction: above}\n",
     ""): (3, "cells: nothing reads the cells: they need comparisons"),
    # what YAML alone would pass over
    (GRID, "xtr: [", "colbert: ["): (6, "'colbert' is there twice"),
    (GRID, "baseline:", "title: Another\nbaseline:"): (8, "'title' is there twice"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "old", "new"), FAULTS, ids=lambda value: " ".join(value.split())[:30])
def test_a_fault_is_named_with_its_line(tmp_path: Path, text: str, old: str, new: str) -> None:
    path = written(tmp_path, text, old, new)
    line, words = FAULTS[text, old, new]
    with pytest.raises(UsageError) as caught:
        parse(path, "demo")
    own = [fault for fault in str(caught.value).splitlines() if fault.startswith(f"{path}:{line}: ")]
    assert any(words in fault for fault in own), str(caught.value)
    assert "grammar" in caught.value.hint


def test_all_faults_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    text = (
        TABLE.replace("tolerance: 0.5", "tolerance: much").replace("config=colbert", "config").replace("means", "mean")
    )
    with pytest.raises(UsageError) as caught:
        parse(written(tmp_path, text.replace("nDCG@10", "nDCGG@10")), "demo")
    lines = [int(fault.split(":")[1]) for fault in str(caught.value).splitlines()]
    assert sorted(lines) == [2, 4, 6, 8]
    with pytest.raises(UsageError) as caught:
        parse(written(tmp_path, CLAIMS.replace("[a], minus: [g]", "[x], minus: [y]").replace("{k}", "{z}")), "demo")
    assert [int(fault.split(":")[1]) for fault in str(caught.value).splitlines()] == [6, 6, 3]
    many = "title: x\n" + "".join(f"key{number}: 1\n" for number in range(50))
    with pytest.raises(UsageError) as caught:
        parse(written(tmp_path, many), "demo")
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("30 more faults")


@pytest.mark.parametrize(
    ("text", "words"),
    [("rows: [", "not YAML"), ("- a list", "made.yaml:1: the file: Input should be"), ("", ":1: the f")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "made.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"made\.yaml") as caught:
        parse(path, "demo")
    assert words in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        parse(tmp_path / "nowhere.yaml", "demo")


# --- part of an experiment --------------------------------------------------------------------------------------------


def test_parts_by_name() -> None:
    with pytest.raises(UsageError, match="table9") as caught:
        load("table9", "demo")
    assert "table" in caught.value.hint
    table = load("table1", "paper")
    with pytest.raises(UsageError, match=r"no column .nowhere"):
        select(table, ["nq", "nowhere"])
    assert [c.name for c in select(table, ["nq"]).columns] == ["nq"]
    assert [c.name for c in select(table, ["beir/nq"]).columns] == ["nq"]
    several = select(table, ["nq", "beir/fiqa/test"])
    assert (several.only, {c.name for c in several.columns}) == (("nq", "beir/fiqa/test"), {"nq", "fiqa"})
    assert {c.column for c in several.comparisons} == {"nq", "fiqa"}
    assert several.means == {}
    one = load_claims("demo", ["colbert_keeps_quality"])
    assert [comparison.id for comparison in one.comparisons] == ["colbert_keeps_quality"]
    with pytest.raises(UsageError, match=r"no comparison .colbert_keeps") as caught:
        load_claims("demo", ["colbert_keeps"])
    assert "colbert_keeps_quality" in caught.value.hint


def test_readings_by_name_column_or_model() -> None:
    experiment = load("candidates", "paper")
    for only, count in (("ColBERT", 2), ("xtr_multi", 2), ("share", 2), ("beir/fiqa/test", 4)):
        assert len(select(experiment, [only]).readings) == count
    assert len(select(experiment, ["ColBERT", "share"]).readings) == 3
    with pytest.raises(UsageError, match="no cell 'Colbert'") as caught:
        select(experiment, ["Colbert"])
    assert "ColBERT" in caught.value.hint
    with pytest.raises(DataError, match="not on this machine"):
        select(dataclasses.replace(experiment, scale="demo", overrides={"data": "beir/fiqa/test"}))
    for override in ("data=pydoc/test", "analyze.models=[colbert]", "scale=demo"):
        with pytest.raises(UsageError, match="cannot be given"):
            check_overrides(experiment, parse_overrides([override]))
    check_overrides(experiment, {"index.nprobe": "4"})


def test_below_paper_scale_only_collections_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XTRREP_DATA", raising=False)
    assert [c.name for c in select(load("table1", "demo")).columns] == ["pydoc"]
    lost = written(tmp_path, GRID, "pydoc/test", "beir/nowhere/test")
    with pytest.raises(DataError, match="none of its collections is on this machine: beir/nowhere/test"):
        load_own(lost, "demo")
    assert [experiment.name for experiment in load_all("all", "demo", ["pydoc"])][:2] == ["table1", "table2"]
    with pytest.raises(DataError, match="no reproduction has a column nowhere on this machine"):
        load_all("all", "demo", ["nowhere"])


def test_a_file_of_ones_own_is_not_recorded_as_the_studys(tmp_path: Path) -> None:
    for name, verb in (("table1", "xtrrep reproduce table1"), ("claims", "xtrrep claims")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(GRID)
        with pytest.raises(UsageError, match="has a name of the study's") as caught:
            load_own(path, "demo")
        assert verb in caught.value.hint
    family = load_own(written(tmp_path, CLAIMS), "demo", ["c"])  # cells without columns, on any collection
    assert [comparison.id for comparison in family.comparisons] == ["c"]


# --- overrides and seeds ----------------------------------------------------------------------------------------------


def test_what_the_cells_set_cannot_be_overridden(tmp_path: Path) -> None:
    family = load_claims("demo", ["colbert_keeps_quality"])
    for override in ("config=xtr_k64", "index=warp", "index.nprobe=3", "retrieve.k_prime=3", "data.measures=[R@1]"):
        with pytest.raises(UsageError, match="cannot be given"):
            check_overrides(family, parse_overrides([override]))
    check_overrides(family, {"data": "beir/mini/test", "train.seed": "3", "analyze.resamples": "200"})
    seeded = dataclasses.replace(family, seeds=(1, 2))
    with pytest.raises(UsageError, match="--seeds says under which seeds"):
        check_overrides(seeded, {"train.seed": "3"})
    with pytest.raises(UsageError, match="not trained here"):
        check_overrides(seeded, {"model.source": "untrained"})
    grid = parse(written(tmp_path, GRID, "[config=colbert]", "[config=colbert, train.seed=1]"), "demo")
    check_overrides(grid, {})
    with pytest.raises(UsageError, match=r"train\.seed=1: --seeds says under which seeds"):
        check_overrides(dataclasses.replace(grid, seeds=(1, 2)), {})  # every seed would be the same model
    with pytest.raises(UsageError, match="sets it for each cell"):
        check_overrides(load("table1", "paper"), {"train.k_train": "32"})  # what tells one row from another


def test_seeds_that_are_none_are_refused() -> None:
    assert parse_seeds("42,43") == (42, 43)
    for wrong in ("", "42,", "a", "42,42", "-1", "4.5"):
        with pytest.raises(UsageError):
            parse_seeds(wrong)


def test_released_models_stand_in_for_ours_and_for_no_model_that_a_row_names() -> None:
    """As README types it. One row of Table 1 is another model's, which it stays."""
    table, released = load("table1", "paper"), {"model.source": "released"}
    check_overrides(table, released)
    sources = {
        row.name: cell_overrides(table, row, table.columns[0], released)["model.source"]
        for row in table.rows
        if row.overrides is not None
    }
    assert {name: source for name, source in sources.items() if source != "released"} == {
        "xtr-base-en as XTR": "checkpoint"
    }
    with pytest.raises(UsageError, match="not trained here"):
        check_overrides(dataclasses.replace(table, seeds=(1, 2)), released)


def test_parameters_of_other_engines_are_left_out_and_misspelt_ones_refused() -> None:
    shared = {"index.nprobe": "3", "index.num_leaves": "20", "retrieve.k_prime": "50"}
    warp = compose_cell("", {"index": "warp", **shared}).config
    assert (warp.index["nprobe"], warp.retrieve.k_prime) == (3, 50)
    assert "num_leaves" not in warp.index
    assert compose_cell("", {"index": "bm25", **shared}).config.retrieve.k_prime is None
    with pytest.raises(UsageError, match=r"index\.nprob") as caught:
        compose_cell("", {"index": "warp", "index.nprob": "3"})
    assert "index.nprobe" in caught.value.hint


def test_parameters_of_another_engine_are_left_out_of_an_analysis(collections: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    overrides = {"analyze.name": "geometry", "analyze.models": "[untrained]", "index": "warp", "index.nprobe": "3"}
    made = plan_analysis(overrides)
    assert [plan.cfg.index["engine"] for plan in made.plans] == ["exact"]


def test_a_comparison_of_an_analysis_has_the_overrides_of_its_file(
    tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    tested = "analysis: geometry, value: mean cosine, plus: [untrained]"
    text = CLAIMS.replace("value: nDCG@10, plus: [a], minus: [g]", f"{tested}, minus: [untrained]")
    text = text.replace("title: Claims", "title: Claims\noverrides: [data=beir/mini/test, model.layers=1, index=warp, "
                        "index.nprobe=3]")  # fmt: skip
    (made,) = planning.plan(parse(written(tmp_path, text), "demo"), {}).analyses.values()
    assert made.cfg.index["engine"] == "exact"  # as an analysis of vectors needs it
    assert [(plan.cfg.data.id, plan.cfg.model.layers) for plan in made.plans] == [("beir/mini/test", 1)]


# --- the verbs --------------------------------------------------------------------------------------------------------

Verb = Callable[..., tuple[str, str]]


@pytest.fixture
def verb(tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Verb:
    """Run a verb in this process, where nothing is trained; its stdout and stderr."""
    (tmp_path / "data").mkdir()
    for name in ("mini", "nfcorpus", "second"):  # the second stands for the collection of that name
        (tmp_path / "data" / name).symlink_to(collections / "mini")
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(tmp_path / "data"))

    def run(*texts: str, code: int = OK) -> tuple[str, str]:
        capsys.readouterr()
        assert command_line._run(list(texts)) == code
        return capsys.readouterr()

    return run


def test_lists_plans_and_refusals(verb: Verb, tmp_path: Path) -> None:
    listing, _ = verb("reproduce", "--list")
    assert [line.split()[0] for line in listing.splitlines()] == names()
    listing, _ = verb("claims", "--list")
    assert [line.split()[0] for line in listing.splitlines()] == [c.id for c in load_claims("demo").comparisons]
    shown, _ = verb("reproduce", "table3", "scale=paper", "--show")
    assert "Nothing was run" in shown
    assert "32.40" in shown  # ColBERT under WARP on MS MARCO
    shown, _ = verb("reproduce", "candidates", "scale=paper", "--show", "--only", "ColBERT")
    assert "15172.000" in shown
    assert "17.900" not in shown  # XTR's
    table = ("reproduce", "table2", *TINY[1:], "--only", "nfcorpus")
    plan = json.loads(verb(*table, "--dry-run", "--json")[0])
    assert plan["run"] > 0
    many = ("reproduce", "table1", *TINY[1:], "--only", "nfcorpus", "--dry-run")
    plan = json.loads(verb(*many, "--json")[0])
    assert plan["run"] > 20
    grouped, listed = (verb(*many, *more)[0].splitlines() for more in ((), ("-v",)))
    counts = [line.split()[:2] for line in grouped if line.startswith("run ")]
    assert sum(int(count) for _, count in counts) == plan["run"]
    assert len(counts) == len({step["stage"] for step in plan["steps"]})
    assert len([line for line in listed if line.startswith("run ")]) == plan["run"]
    assert any(line.endswith("-v lists every step") for line in grouped)
    plan = json.loads(verb("claims", *TINY, "--only", "self_match", "--dry-run", "--json")[0])
    assert plan["run"] == 0
    assert "self_match: needs data=beir/arguana" in verb("claims", *TINY, "--only", "self_match", "--dry-run")[1]
    grid = str(written(tmp_path, GRID).rename(tmp_path / "grid.yaml"))
    for texts, says in (
        ((*table, "index=exact"), "cannot be given"),
        (("reproduce",), "one of: "),
        (("reproduce", "table2", "--accept", "--dry-run"), "nothing is"),
        (("reproduce", "table2", "--accept", "--show"), "nothing is"),
        (("claims", "--accept", "--dry-run"), "nothing is"),
        (("claims", "--accept", "--only=self_match"), "whose tests are corrected together"),
        (("claims", "--seeds", "1,1"), "names a seed twice"),
        (("analyze", "geometry", "--accept"), "geometry reads vectors"),
        (("analyze", grid, "retrieve.k_prime=3"), "grid sets it for each cell"),
        (("analyze", grid, "--only", "nowhere"), "grid has no column 'nowhere'"),
        (("analyze", str(written(tmp_path, TABLE, "rows", "row"))), "made.yaml:5: row: unknown key 'row'"),
    ):
        _, said = verb(*texts, code=2)
        assert says in said, said
        assert "hint: " in said
        assert "Traceback" not in said
    assert not (tmp_path / "home").exists() or not list((tmp_path / "home").rglob("manifest.json"))


def test_the_example_is_a_plan(verb: Verb) -> None:
    path = ROOT / "examples" / "grid.yaml"
    experiment = load_own(path, "demo")
    assert all(row.baselines for row in experiment.rows[1:])
    plan = json.loads(verb("analyze", str(path), "--dry-run", "--json")[0])
    assert plan["run"] > 0
    trained = {step["folder"] for step in plan["steps"] if "/train/" in step["folder"]}
    assert len(trained) == 2


def test_all_are_accepted_after_one_that_has_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accepted = []

    def accept(experiment: Experiment, made: Result, pictures: object) -> Path:
        if experiment.name == "second":
            raise DataError("second has no value to accept", hint="see its table")
        accepted.append(experiment.name)
        return tmp_path

    def experiment(name: str) -> Experiment:
        return Experiment(name, name, "demo", None, {}, rows=(Row("r", {}),))

    result = Result("reproduction", "made", "Made", "demo", ())
    monkeypatch.setattr(command_line.studies, "_print_files", lambda folder: None)
    monkeypatch.setattr("xtrrep.experiments.definition.load_all", lambda *_: list(map(experiment, loaded)))
    monkeypatch.setattr(record, "check_acceptable", lambda *_: None)
    monkeypatch.setattr(running, "run", lambda *_, **__: (result, {}))
    monkeypatch.setattr(record, "save", lambda *_: tmp_path)
    monkeypatch.setattr(record, "accept", accept)
    loaded = ["first", "second", "third"]
    done = CliRunner().invoke(command_line.app, ["reproduce", "all", "--accept"])
    assert accepted == ["first", "third"]
    assert done.exit_code == MISSING
    assert "second has no value to accept" in done.output
    loaded = ["first"]
    assert CliRunner().invoke(command_line.app, ["reproduce", "all", "--accept"]).exit_code == OK
