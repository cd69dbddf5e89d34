"""Tables as LaTeX and HTML; the static report shows what its CSVs hold and nothing else."""

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from conftest import TINY, Cli

from xtrrep import artifacts
from xtrrep.analyze import k_prime
from xtrrep.artifacts import Spec
from xtrrep.config import compose, recorded_root
from xtrrep.console import DataError, UsageError
from xtrrep.report import html
from xtrrep.report.table import Table

VOID = {"meta", "link", "img"}
HARD = "\\ { } $ & # % _ ^ ~ < > | [ ] * \" ' — × ≤ <script>alert(1)</script>"


class Page(HTMLParser):
    """A page's tags, checked to be balanced; its addresses, and its tables as cells of text and of data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.data: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
            self.data.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "data":
            self.data[-1].append(str(dict(attrs)["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def addresses(self) -> list[str]:
        return [v for _, attrs in self.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "action") and v]


TABLE = Table(
    "A & B",
    [HARD, "nDCG@10", "k'", "ms"],
    [[HARD, 0.123456, 40000, 3.0], ["c", 0.25, None, 1.0], ["d", 0.250001, 10, None]],
    ["100 % of <it>"],
    higher=["nDCG@10"],
    marks={(1, 1): "†"},
)


def test_latex_escapes_bolds_and_marks() -> None:
    text = TABLE.latex()
    lines = text.splitlines()
    row = next(line for line in lines if "0.1235" in line)
    first = row[: row.index(" & 0.1235")]
    for sign in ("\\textbackslash{}", "\\{", "\\}", "\\$", "\\&", "\\#", "\\%", "\\_", "\\textasciicircum{}",
                 "\\textasciitilde{}", "\\textless{}", "\\textgreater{}", "\\textbar{}", "{[}", "{]}", "{*}", "---",
                 "$\\times$", "$\\leq$"):  # fmt: skip
        assert sign in first
    assert not re.search(r"(?<!\\)[&#%_]", first)
    assert "\\textbf{0.2500}\\textsuperscript{\\textdagger{}}" in text
    assert text.count("\\textbf") == 2  # the digits shown do not tell the two apart
    assert next(line for line in lines if line.startswith("c &")).split(" & ")[2] == "---"
    assert "\\begin{tabular}{lrrr}" in lines
    assert [line for line in lines if "rule" in line] == ["\\toprule", "\\midrule", "\\bottomrule"]
    assert "100 \\% of \\textless{}it\\textgreater{}\\par" in lines
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")


def test_html_is_escaped_and_holds_the_csvs_numbers() -> None:
    text = TABLE.html()
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert "script" not in names
    assert names.count("caption") == 1
    assert page.rows[0] == [HARD, "nDCG@10", "k'", "ms"]
    assert page.rows[1] == [HARD, "0.1235", "40,000", "3.0000"]
    assert page.rows[2] == ["c", "0.2500†", "—", "1.0000"]
    assert text.count("<strong>") == 2
    assert "<strong>0.2500</strong></data><sup>†</sup>" in text.replace("<sup>†</sup></data>", "</data><sup>†</sup>")
    scopes = [attrs.get("scope") for tag, attrs in page.tags if tag == "th"]
    assert scopes == ["col"] * 4 + ["row"] * 3
    cells = [attrs for tag, attrs in page.tags if tag == "td"]
    assert all(attrs.get("style") == "text-align:right" for attrs in cells)
    assert "100 % of &lt;it&gt;" in text
    numbers = [[cell for cell in row if cell] for row in csv.reader(TABLE.csv().splitlines())]
    assert [row[1:] for row in numbers[1:]] == page.data[1:]


def test_bold_needs_a_difference_and_a_column() -> None:
    assert "<strong>" not in Table("t", ["a"], [[0.5], [0.5]], higher=["a"]).html()
    assert "<strong>" not in Table("t", ["a"], [[0.5], [0.6]]).html()
    with pytest.raises(ValueError, match="nDCG"):
        Table("t", ["a"], [[1.0]], higher=["nDCG@10"])
    with pytest.raises(ValueError, match="has no"):
        Table("t", ["a"], [[1.0]], marks={(1, 0): "†"})


def test_marks_reach_the_terminal_and_markdown() -> None:
    assert "0.2500†" in TABLE.terminal()
    assert "0.2500<sup>†</sup>" in TABLE.markdown()
    assert "†" not in TABLE.csv()


def finish(
    results: Path, make: Callable[[Path], dict[str, Any]], label: str = "k_prime--mini-demo-exact", seed: int = 0
) -> Path:
    """A finished `analyze` artifact of whatever `make` writes."""
    upstream = {"colbert/xtr/10/evaluate": "0123456789ab", "bm25/evaluate": "ba9876543210"}
    return artifacts.make(Spec("analyze", label, 1, {"seed": seed}, upstream), results, make)


def sweep(out: Path) -> dict[str, Any]:
    """The k' sweep's own files, from made-up scores."""
    cfg = compose([*TINY[2:], "analyze.models=[colbert]", "analyze.k_primes=[10,1000]", "analyze.resamples=100"])
    rng = np.random.default_rng(0)
    index = pandas.Index([f"q{i}" for i in range(30)], name="query")
    scores = {
        cell: pandas.DataFrame({name: rng.random(30) for name in cfg.data.measures}, index=index)
        for cell in k_prime.cells(cfg)
    }
    return k_prime.analyses.get("k_prime").make(
        cfg, scores, out, dict.fromkeys(scores, "r1"), {cell: {} for cell in scores}
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home ü") / "results" / "runs"
    finish(root, sweep)
    return root


def decimals(text: str) -> set[str]:
    return set(re.findall(r"-?\d+\.\d+(?:e[-+]\d+)?", text))


def check_page(path: Path) -> Page:
    """Balanced, of this folder alone, below 5 MB, and every result shown is one of a linked CSV, rounded."""
    text = path.read_text()
    page = Page(text)
    assert not any("//" in address for address in page.addresses())
    assert not any(tag == "script" for tag, _ in page.tags)
    for address in page.addresses():
        if not address.startswith(("#", "data:")):
            assert (path.parent / address).is_file(), address
    assert sum(p.stat().st_size for p in path.parent.rglob("*") if p.is_file()) < 5_000_000
    known: set[str] = set()
    linked = {address for address in page.addresses() if address.endswith(".csv")}
    assert linked
    for address in linked:
        for row in csv.reader((path.parent / address).read_text().splitlines()):
            for cell in row:
                known |= decimals(cell)
    exact = {float(number) for number in known}
    rounded = {f"{number:.4f}" for number in exact}
    shown = text[text.index("<section") : text.index('<section id="environment"')]
    for value in re.findall(r'<data value="([^"]*)"', shown):
        assert float(value) in exact or re.fullmatch(r"-?\d+", value)
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", shown, flags=re.DOTALL)
    assert decimals(words) <= known | rounded
    return page


def test_a_report_from_artifacts_and_records(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report ü"
    path = html.write(results, recorded_root(), folder)
    check_page(path)
    text = path.read_text()
    assert "recorded: baselines" in text
    assert "recorded: demo" in text
    assert "0123456789ab" in text
    assert "What it says" not in text  # statements whose numbers no CSV holds
    assert "sd 0.0066" not in text
    assert "rows, in the CSV" in text  # the raw rounds of bench_train
    assert text.count("<img ") == 1 + len(list(recorded_root().rglob("*.png")))
    assert "<strong>" in text
    for name in ("processor", "torch", "python"):
        assert name in text[text.index('id="environment"') :]
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    html.write(results, recorded_root(), folder)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_tables_numbers_are_the_csvs(results: Path, tmp_path: Path) -> None:
    page = Page(html.write(results, None, tmp_path / "report").read_text())
    source = next(results.glob("analyze/k_prime*/table.csv"))
    rows = list(csv.reader(source.read_text().splitlines()))
    start = page.rows.index(rows[0])
    for offset, row in enumerate(rows[1:], start=1):
        given = [cell for i, cell in enumerate(row) if cell and i not in (0, 1, 7, 9)]  # but for words and intervals
        assert page.data[start + offset] == given
        assert page.rows[start + offset][0] == row[0]
        assert (row[2] == "") == (page.rows[start + offset][2] == "—")


def test_what_an_analysis_writes_stays_text(tmp_path: Path) -> None:
    def make(out: Path) -> dict[str, Any]:
        table = Table("<script>t</script>", ["<b>", "run"], [[HARD, "12345678e901"], ["x", "123456789012"]], ["1 note"])
        (out / "table.csv").write_text(table.csv())
        (out / "table.md").write_text(table.markdown())
        (out / "f.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
        return {}

    finish(tmp_path / "runs", make, "<i>odd name")
    page = check_page(html.write(tmp_path / "runs", None, tmp_path / "report"))
    assert [HARD, "12345678e901"] in page.rows
    assert ["x", "123456789012"] in page.rows
    assert not {"i", "b", "svg"} & {tag for tag, _ in page.tags}


def test_what_is_not_finished_or_damaged_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(value: float) -> Callable[[Path], dict[str, Any]]:
        def write(out: Path) -> dict[str, Any]:
            (out / "table.csv").write_text(f"model,nDCG@10\na,{value}\n")
            return {}

        return write

    runs = tmp_path / "runs"
    with pytest.raises(DataError, match="no analysis is finished") as caught:
        html.write(runs, recorded_root(), tmp_path / "report")
    assert caught.value.hint == "xtrrep analyze"
    assert not (tmp_path / "report").exists()
    damaged = finish(runs, make(0.125), "damaged", 1)
    (damaged / "table.csv").write_text("model,nDCG@10\na,0.999\n")
    partial = runs / "analyze" / ".partial-x-0123456789ab"
    partial.mkdir()
    (partial / "table.csv").write_text("model,nDCG@10\na,0.777\n")
    with pytest.raises(DataError, match="no analysis is finished"):
        html.write(runs, None, tmp_path / "report")
    finish(runs, make(0.5), "whole", 2)
    text = html.write(runs, None, tmp_path / "report").read_text()
    assert "0.5000" in text
    assert "0.999" not in text
    assert "0.777" not in text
    assert "not as it was written" in capsys.readouterr().err


def test_a_large_report_names_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(seed: int, size: int) -> Callable[[Path], dict[str, Any]]:
        def write(out: Path) -> dict[str, Any]:
            (out / "table.csv").write_text(f"model,nDCG@10\na{seed},0.5\n")
            (out / "raw.csv").write_text("x\n" + "1\n" * size)
            (out / "units.csv").write_text("unit\n" + "1\n" * 60_000)
            (out / "f.svg").write_text(f"<svg>{seed}{' ' * 30_000}</svg>")
            return {}

        return write

    runs = tmp_path / "runs"
    finish(runs, make(1, 300), "drawn", 1)
    finish(runs, make(2, 60_000), "large", 2)
    monkeypatch.setattr(html, "LIMIT_BYTES", html.FRAME_BYTES + 20_000)
    path = html.write(runs, None, tmp_path / "report")
    text = path.read_text()
    assert "Its figures are left out" in text
    assert "large: analyze/large" in text[text.index("Left out") :]
    assert "a2" not in text[: text.index("Left out")]
    assert "units.csv" not in text
    assert sum(p.stat().st_size for p in path.parent.rglob("*") if p.is_file()) < html.LIMIT_BYTES


def test_other_peoples_folders_are_refused(results: Path, tmp_path: Path) -> None:
    for name, text in (("notes.txt", "mine"), ("index.html", "<html>mine</html>")):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(UsageError, match=r"report|our pages"):
            html.write(results, None, folder)
        assert (folder / name).read_text() == text
    folder = tmp_path / "report"
    html.write(results, None, folder)
    own, stale = folder / "files" / "mine.txt", folder / "files" / "old-table-01234567.csv"
    own.write_text("mine")
    stale.write_text("a\n1\n")
    html.write(results, None, folder)
    assert own.exists()
    assert not stale.exists()


def test_a_crash_leaves_the_old_report(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    path = html.write(results, None, folder)
    before = path.read_bytes()
    monkeypatch.setattr(html, "_environment", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        html.write(results, recorded_root(), folder)
    monkeypatch.undo()
    write = html._write

    def fail(path: Path, data: bytes) -> None:
        if path.name == "index.html":
            raise OSError("no space")
        write(path, data)

    monkeypatch.setattr(html, "_write", fail)
    with pytest.raises(OSError, match="no space"):
        html.write(results, recorded_root(), folder)
    assert path.read_bytes() == before
    check_page(path)
    monkeypatch.undo()
    html.write(results, recorded_root(), folder)
    check_page(path)


def test_a_ragged_csv_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(DataError, match=r"t\.csv:3: 1 values under 2 columns"):
        html.read(path)


def test_the_command(cli: Cli, results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my report"
    home = str(results.parents[1])
    found = json.loads(cli("report", "--out", str(folder), "--json", XTRREP_HOME=home).stdout)
    assert Path(found["page"]) == folder / "index.html"
    check_page(folder / "index.html")
    empty = cli("report", "--out", str(tmp_path / "none"), code=3)
    assert "no analysis is finished" in empty.stderr
    assert "hint: xtrrep analyze" in empty.stderr
