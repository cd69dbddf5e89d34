"""Tables as LaTeX and HTML; the static report shows what its CSVs hold and nothing else."""

import csv
import importlib.util
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli

from xtrrep import artifacts
from xtrrep.artifacts import Spec
from xtrrep.config import recorded_root
from xtrrep.console import DataError, UsageError
from xtrrep.experiments import compare, definition
from xtrrep.experiments import result as outcome
from xtrrep.experiments.record import write_files
from xtrrep.experiments.result import Expected, Result, Value
from xtrrep.experiments.run import describe
from xtrrep.measure.significance import Difference
from xtrrep.report import html, sections
from xtrrep.report.figure import k_prime_sweep
from xtrrep.report.table import Table
from xtrrep.retrieval import explain_page
from xtrrep.retrieval.explain import Contributions, Explanation, Token
from xtrrep.retrieval.retrieve import Setting

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
    """A table and a figure of an analysis, from made-up numbers."""
    rng = np.random.default_rng(0)
    rows = [[model, "XTR", k_prime, rng.random()] for model in ("colbert", "untrained") for k_prime in (10, 1000)]
    Table("k' sweep", ["model", "scoring", "k'", "nDCG@10"], [*rows, ["bm25", "BM25", None, 0.25]]).save(out / "table")
    lines = {f"{model} as XTR": [(k_prime, value)] for model, _, k_prime, value in rows}
    k_prime_sweep({"nDCG@10": lines}, {}, "k' sweep", out / "figure1")
    return {"cells": len(rows)}


Key = tuple[str, str]


def made_up(name: str, values: Mapping[Key, float], accepted: Mapping[Key, float]) -> Result:
    """A reproduction's result with made-up values, judged against a made-up record."""
    experiment = definition.load(name, "demo")
    base = describe(experiment, {})
    read = tuple(Value(*key, "x").over([value], ["0123456789ab"], None) for key, value in values.items())
    quality = tuple((*key, "nDCG@10", 30 + value / 40, 0.0) for key, value in values.items())
    result = replace(
        base, values=read, quality=quality if experiment.quality else (), notes=("not run: a <b>reason</b>",)
    )
    cells = tuple(Expected(*key, None, None, value, "agrees") for key, value in accepted.items())
    expected = compare.judge_expected(experiment, result, replace(result, expected=cells))
    return replace(result, expected=tuple(expected))


def finished(results: Path, result: Result, made: str = "2026-01-02T03:04:05Z") -> Path:
    """A finished artifact of an experiment, as if it had been made at that time."""

    def make(out: Path) -> dict[str, Any]:
        write_files(result, {}, out)
        return {}

    upstream = {", ".join(value.key): "0123456789ab" for value in result.values}
    label = f"{result.name}-{result.data.replace('/', '-')}-demo"
    return dated(artifacts.make(Spec("experiment", label, 1, {"made": made}, upstream), results, make), made)


def reproduced(
    results: Path,
    name: str,
    values: Mapping[Key, float],
    accepted: Mapping[Key, float],
    made: str = "2026-01-02T03:04:05Z",
) -> Path:
    return finished(results, made_up(name, values, accepted), made)


def dated(folder: Path, made: str) -> Path:
    """An artifact as if it had been made at another time."""
    manifest = artifacts.read_manifest(folder)
    del manifest["checksum"]
    artifacts.write_json(folder / artifacts.MANIFEST, manifest | {"made": made})
    return folder


def cells_of(name: str, level: float) -> dict[Key, float]:
    """A value for each of a reproduction's cells but the last; of a figure's on one collection, to draw only one."""
    keys = [(cell.row, cell.column) for cell in made_up(name, {}, {}).expected if cell.verdict == "not run"]
    keys = [key for key in keys if "figure" not in name or key[1].startswith("pydoc")]
    return {key: level * (1 + (7 * i) % 11 / 30) for i, key in enumerate(keys[:-1])}


def accepted_of(values: Mapping[Key, float]) -> dict[Key, float]:
    """A record by which the values agree, are higher, are lower or have none, in turn."""
    return {key: value + (0, -1, 1)[i % 4] for i, (key, value) in enumerate(values.items()) if i % 4 != 3}


def claims_result(p: float = 0.0001) -> Result:
    """Made-up effects for all claims, one in four of which did not run."""
    experiment = definition.load_claims("demo")
    effects, reasons = {}, {}
    for i, claim in enumerate(experiment.comparisons):
        mean = (0.0123, -0.0321, 0.0004)[i % 4] if i % 4 < 3 else None
        if mean is None or not claim.plus:
            reasons[claim.id] = "needs <i>more</i>"
        else:
            effects[claim.id] = Difference(mean, mean - 0.003, mean + 0.003, p if i % 4 < 2 else 0.9, 100)
    runs = dict.fromkeys(effects, ("123456789012", "abcdef012345"))
    judged = compare.judge_effects(experiment.comparisons, effects, reasons, runs, {}, {})
    return replace(describe(experiment, {}), effects=tuple(judged))


def claimed(results: Path, made: str = "2026-01-02T03:04:05Z", p: float = 0.0001) -> Path:
    return finished(results, claims_result(p), made)


def explained(results: Path, query: str = "a <script>alert(1)</script> graph", length: int = 40) -> Path:
    """A finished `explain` artifact of a made-up document."""
    rng = np.random.default_rng(0)
    tokens = [Token(text, i, "word") for i, text in enumerate(["<b>", "graph", "node"])]
    document = [Token(f"w{i}", i, "word") for i in range(length)]
    similarities = rng.uniform(-0.2, 1, (3, length)).astype(np.float32)
    hits = np.where(similarities > 0.8, similarities, np.float32(np.nan))
    found = Explanation(query, 'd"<1>', "the text", "exact", Setting("xtr", 20), tokens, document, similarities,
                        Contributions(hits, np.array([0.75, 0.5, 0.25]), ["hit", "hit", "imputed"], True))  # fmt: skip
    return explain_page.save(found, Spec("index", "mini-exact", 1, {}), results)


def record(recorded: Path) -> None:
    """What `--accept` leaves for table2, figure1 and the claims."""
    said = {"date": "2026-01-03", "commit": "abc1234", "hardware": "a processor @ 2.10GHz"}
    made = [made_up(name, cells_of(name, 40.0), accepted_of(cells_of(name, 40.0))) for name in ("table2", "figure1")]
    for place, result in zip(("reproductions/table2-demo", "reproductions/figure1-demo"), made, strict=True):
        keep(replace(result, provenance=said), recorded / place)
    keep(replace(claims_result(), provenance=said), recorded / "claims" / "pydoc-test-demo")


def keep(result: Result, out: Path) -> None:
    out.mkdir(parents=True)
    write_files(result, {}, out)
    for path in out.iterdir():
        if path.suffix in (".pdf", ".png", ".txt", ".tex", ".html"):
            path.unlink()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home ü") / "results" / "runs"
    finish(root, sweep)
    return root


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Results of every kind, old and new, and a folder of recorded ones."""
    root = tmp_path_factory.mktemp("everything")
    runs, recorded = root / "runs", root / "recorded"
    finish(runs, sweep)
    for made, level in (("2026-01-02T03:04:05Z", 40.0), ("2026-01-01T03:04:05Z", 13.25)):
        for name in ("figure1", "table2") if level == 40 else ("table2",):
            reproduced(runs, name, cells_of(name, level), accepted_of(cells_of(name, level)), made)
    reproduced(runs, "figure2", cells_of("figure2", 100.0), {})
    reproduced(runs, "anisotropy", cells_of("anisotropy", 0.5), {})
    claimed(runs)
    claimed(runs, "2026-01-01T03:04:05Z", p=0.9)
    explained(runs)
    record(recorded)
    (recorded / "other.csv").write_text("model,nDCG@10\na,0.25\n")
    return runs, recorded


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
    rounded = {f"{number:.{digits}f}" for number in exact for digits in (1, 2, 3, 4)}
    shown = text[text.index("<section") : text.index('<section id="environment"')]
    for value in re.findall(r'<data value="([^"]*)"', shown):
        assert float(value) in exact or re.fullmatch(r"-?\d+", value)
    shown = re.sub(r'<p class="soft origin">.*?</p>', " ", shown)  # where it was made, and on what
    shown = re.sub(r'<ul class="notes">.*?</ul>', " ", shown, flags=re.DOTALL)  # conventions, not results
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", shown, flags=re.DOTALL)
    assert decimals(unescape(words)) <= known | rounded
    return page


def test_a_report_from_artifacts_and_records(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report ü"
    path = html.write(results, recorded_root(), folder)
    check_page(path)
    text = path.read_text()
    assert re.search(r"<h3 [^>]*>baselines<", text)
    assert "k_prime, pydoc/test, scale=demo, recorded" in text
    assert "0123456789ab" in text
    assert "table1, scale=demo, seeds 42, 43, 44, recorded" in text
    assert "scale=44" not in text
    assert "rows, in the CSV" in text  # the raw rounds of bench_train
    below = text[text.index("<nav") :]  # the overview shows some of them first
    assert below.count("<img ") == 1 + len(list(recorded_root().rglob("*.svg")))
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
        given = [cell for cell in row[2:] if cell]  # but for words
        assert page.data[start + offset] == given
        assert page.rows[start + offset][0] == row[0]
        assert (row[2] == "") == (page.rows[start + offset][2] == "—")


def test_what_an_analysis_writes_stays_text(tmp_path: Path) -> None:
    def make(out: Path) -> dict[str, Any]:
        table = Table("<script>t</script>", ["<b>", "run"], [[HARD, "12345678e901"], ["x", "123456789012"]], ["1 note"])
        table.save(out / "table")
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
            Table("t", ["model", "nDCG@10"], [["a", value]]).save(out / "table")
            return {}

        return write

    runs = tmp_path / "runs"
    with pytest.raises(DataError, match="nothing to report") as caught:
        html.write(runs, None, tmp_path / "report")
    assert caught.value.hint == "make one first: xtrrep analyze"
    assert not (tmp_path / "report").exists()
    damaged = finish(runs, make(0.125), "damaged", 1)
    (damaged / "table.csv").write_text("model,nDCG@10\na,0.999\n")
    partial = runs / "analyze" / ".partial-x-0123456789ab"
    partial.mkdir()
    (partial / "table.csv").write_text("model,nDCG@10\na,0.777\n")
    with pytest.raises(DataError, match="nothing to report"):
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
    finish(runs, make(1, 500), "drawn", 1)
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
        sections._table(path)


def test_the_command(cli: Cli, results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my report"
    home = str(results.parents[1])
    found = json.loads(cli("report", "--out", str(folder), "--json", XTRREP_HOME=home).stdout)
    assert Path(found["page"]) == folder / "index.html"
    check_page(folder / "index.html")
    cli("report", "--out", str(tmp_path / "recorded only"))
    check_page(tmp_path / "recorded only" / "index.html")


# --- the overview, and what is more than an analysis ----------------------------------------------------------------


def test_the_overview_counts_the_csvs_verdicts(everything: tuple[Path, Path], tmp_path: Path) -> None:
    runs, recorded = everything
    path = html.write(runs, recorded, tmp_path / "report")
    page, text = check_page(path), path.read_text()
    lines = {row[0]: row[1:] for row in page.rows if row[0].endswith(("=demo", "recorded"))}
    assert list(lines) == [  # tables, figures, the rest
        "table2, scale=demo",
        "table2, scale=demo, recorded",
        "figure1, scale=demo",
        "figure1, scale=demo, recorded",
        "figure2, scale=demo",
        "anisotropy, scale=demo",
    ]
    head = next(row for row in page.rows if row[0] == "made again")[2:]
    for name in ("table2", "figure1", "figure2", "anisotropy"):
        source = max(runs.glob(f"experiment/{name}-*/table.csv"), key=made_at)
        counts = Counter(row["verdict"] for row in csv.DictReader(source.read_text().splitlines()))
        assert dict(
            zip([cell.split(" ", 1)[1] for cell in head], map(int, lines[f"{name}, scale=demo"][1:]), strict=True)
        ) == {verdict: counts[verdict] for verdict in sections.CELL_SIGNS}
    assert lines["table2, scale=demo"][0] == "≠ differs"
    assert lines["table2, scale=demo"][1:] == lines["table2, scale=demo, recorded"][1:]
    assert lines["anisotropy, scale=demo"][0] == "… incomplete"
    assert "13.25" not in text  # of the older table2
    for anchor in re.findall(r'href="#([^"]*)"', text):
        assert text.count(f'id="{anchor}"') == 1
    groups = [name for name in sections.GROUPS if name != sections.GRIDS]
    order = [text.index(f"<h2>{name}</h2>") for name in ("Overview", *groups, "Environment")]
    assert order == sorted(order)
    assert "accepted 2026-01-03 at commit abc1234, a processor @ 2.10GHz" in text


def made_at(table: Path) -> str:
    return str(artifacts.read_manifest(table.parent)["made"])


def test_every_claim_stands_under_its_verdict_with_a_sign(everything: tuple[Path, Path], tmp_path: Path) -> None:
    runs, recorded = everything
    text = html.write(runs, recorded, tmp_path / "report").read_text()
    overview = text[text.index('id="overview"') : text.index("<nav")]
    (newest,) = (p for p in runs.glob("experiment/claims-*/table.csv") if made_at(p) > "2026-01-02")
    rows = list(csv.DictReader(newest.read_text().splitlines()))
    counts = Counter(row["verdict"] for row in rows)
    assert len(counts) == 4
    for verdict in counts:
        sign = sections.CLAIM_SIGNS[verdict]
        assert overview.count(f"<summary>{sign} {verdict}: {counts[verdict]}</summary>") == 2  # own and recorded
    words = unescape(re.sub("<[^>]*>", "\n", overview))
    for row in rows:
        said = f"{sections.CLAIM_SIGNS[row['verdict']]} {row['verdict']}: {row['statement']} ({row['claim']})"
        assert words.splitlines().count(said) == 2
    section = text[text.index("<h2>Claims</h2>") : text.index("<h2>Analyses</h2>")]
    assert "✓ supported</td>" in section
    assert "<code>123456789012 abcdef012345</code>" in section
    assert ">runs</th>" not in section


def test_the_first_screen_is_what_was_found(everything: tuple[Path, Path], tmp_path: Path) -> None:
    """Sentences with effect and interval for each collection, three figures at most; agreement comes behind them."""
    text = html.write(*everything, tmp_path / "report").read_text()
    overview = text[text.index('id="overview"') : text.index("<nav")]
    assert 'name="collection" open' in overview
    assert overview.count('name="collection"') == 2  # own and recorded
    assert overview.count(" open>") == 1
    sentences = [unescape(line) for line in re.findall(r"<li>([^<]*\[[^<]*\])</li>", overview)]
    assert sentences
    for line in sentences:
        assert re.fullmatch(
            r"[✓✗?] (supported|contradicted|inconclusive): .+: -?\d+\.\d{3} \[-?[\d.]+, -?[\d.]+\]", line
        )
    assert 1 <= overview.count("<figure>") <= html.FIGURES
    assert text.index('id="agreement"') > text.index("<nav")


def test_signs_are_of_the_verdicts_there_are() -> None:
    judged = {outcome.SUPPORTED, outcome.CONTRADICTED, outcome.INCONCLUSIVE}
    claims = judged | {outcome.UNTRAINED, outcome.NOT_RUN}
    cells = {outcome.AGREES, outcome.HIGHER, outcome.LOWER, outcome.NO_RECORD, outcome.NOT_RUN, outcome.NOT_COMPARED}
    assert (set(sections.CLAIM_SIGNS), set(sections.CELL_SIGNS)) == (claims, cells)
    assert len(set(sections.CELL_SIGNS.values())) == len(cells)
    assert len(set(sections.CLAIM_SIGNS.values())) == len(claims)


def test_recorded_results_are_enough(everything: tuple[Path, Path], tmp_path: Path) -> None:
    runs, recorded = everything
    path = html.write(tmp_path / "nothing", recorded, tmp_path / "report")
    page, text = check_page(path), path.read_text()
    assert ["table2, scale=demo, recorded", "≠ differs"] in [row[:2] for row in page.rows]
    assert "<h2>Analyses" not in text
    assert "results/recorded/claims/pydoc-test-demo/" in text
    assert "<code>0123456789ab</code>" in text
    record = recorded / "reproductions" / "table2-demo" / "result.json"
    kept = record.read_text()
    record.write_text("{}")
    try:
        with pytest.raises(DataError, match=r"result\.json is not the result of an experiment"):
            html.write(runs, recorded, tmp_path / "report")
    finally:
        record.write_text(kept)
    assert path.read_text() == text


def test_the_studys_shape_comes_with_its_marks_and_what_they_mean(tmp_path: Path) -> None:
    result = made_up("table2", {("BM25", "pydoc"): 50.25, ("min", "pydoc"): 40.0, ("zero", "pydoc"): 60.5}, {})
    marked = outcome.Effect("zero", "", "", "", "", outcome.DIFFERS, 20.5, row="zero", column="pydoc", baseline="min")
    finished(tmp_path / "runs", replace(result, effects=(marked,), resamples=10_000))
    path = html.write(tmp_path / "runs", None, tmp_path / "report")
    page, text = check_page(path), path.read_text()
    assert [row[:2] for row in page.rows if row[0] in ("BM25", "zero")][:2] == [["BM25", "50.2"], ["zero", "60.5†"]]
    assert "<strong>60.5</strong></data><sup>†</sup>" in text.replace("<sup>†</sup></data>", "</data><sup>†</sup>")
    assert "p &lt; 0.05 (10,000 sign flips" in text


def test_an_older_result_stands_in_for_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for made, level in (("2026-01-02T03:04:05Z", 0.625), ("2026-01-01T03:04:05Z", 0.375)):
        folder = reproduced(tmp_path / "runs", "anisotropy", cells_of("anisotropy", level), {}, made)
        text = html.write(tmp_path / "runs", None, tmp_path / "report").read_text()
        assert ("0.625" in text, "0.375" in text) == (True, False)
    (newest,) = (p for p in (tmp_path / "runs").glob("experiment/*/table.csv") if p.parent != folder)
    newest.write_text(newest.read_text().replace("0.625", "0.999"))
    text = html.write(tmp_path / "runs", None, tmp_path / "report").read_text()
    assert ("0.999" in text, "0.625" in text, "0.375" in text) == (False, False, True)
    assert "not as it was written" in capsys.readouterr().err


def test_figures_come_with_their_pdf_and_their_numbers(everything: tuple[Path, Path], tmp_path: Path) -> None:
    runs, recorded = everything
    path = html.write(runs, recorded, tmp_path / "report")
    text = path.read_text()
    figures = re.findall(r"<figure><div .*?</figure>", text[text.index("<nav") :])
    assert len(figures) == 1 + len(list(runs.glob("experiment/*/*.svg"))) + len(list(recorded.rglob("*.svg")))
    for figure in figures:
        data = re.findall(r'href="([^"]*\.csv)"', figure)
        assert data
        assert all((path.parent / name).is_file() for name in data)
        (image,) = re.findall(r'src="([^"]*)"', figure)
        assert image.endswith(".svg")
        (pdf,) = re.findall(r'href="([^"]*\.pdf)"', figure) or [None]
        assert (pdf is None) == ("recorded" in image)
        assert pdf is None or (path.parent / pdf).read_bytes().startswith(b"%PDF")


def test_an_explanation_is_a_page_of_the_report(everything: tuple[Path, Path], tmp_path: Path) -> None:
    runs, recorded = everything
    path = html.write(runs, recorded, tmp_path / "report")
    text = path.read_text()
    overview = text[text.index('id="overview"') : text.index("<nav")]
    (address,) = re.findall(r'href="(files/[^"]*\.html)"', overview)
    linked = path.parent / address
    page = Page(linked.read_text())
    assert not any(tag == "script" for tag, _ in page.tags)
    assert page.addresses() == ["data:,", "../index.html"]
    (source,) = runs.glob("explain/[!.]*")
    rows = list(csv.reader((source / "similarities.csv").read_text().splitlines()))
    assert [len(row) for row in rows] == [41] * 4
    heat = [row for row in page.rows if len(row) == 43]
    assert [cell.rstrip("=") for cell in heat[1][3:]] == [f"{100 * float(value):.0f}" for value in rows[1][1:]]
    table = list(csv.DictReader((source / "table.csv").read_text().splitlines()))
    shown = [value for row in page.data for value in row]
    assert shown == [row[name] for row in table for name in ("similarity", "XTR contribution", "share, %")]


def test_explanations_give_way_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reproduced(tmp_path / "runs", "anisotropy", cells_of("anisotropy", 0.5), {})
    for number in range(4):
        explained(tmp_path / "runs", f"question {number}", length=300)
    monkeypatch.setattr(html, "LIMIT_BYTES", html.FRAME_BYTES + 170_000)
    monkeypatch.setattr(html, "NAMED", 1)
    path = html.write(tmp_path / "runs", None, tmp_path / "report")
    text = path.read_text()
    absent = 4 - len(list(path.parent.glob("files/*.html")))
    assert 1 < absent < 4
    left = text[text.index("Left out") : text.index('id="environment"')]
    assert left.count("<li>d&quot;") == 1
    assert f"<li>and {absent - 1} more</li>" in left
    assert "anisotropy" in text[: text.index("Left out")]
    assert sum(p.stat().st_size for p in path.parent.rglob("*") if p.is_file()) < html.LIMIT_BYTES


@pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None or shutil.which("chromium") is None,
    reason="playwright or chromium is not installed",
)
def test_a_browser_finds_no_fault(everything: tuple[Path, Path], tmp_path: Path) -> None:
    """No message on the console, no address outside the folder, no page wider than a phone; Tab reaches every link,
    every table and every line that opens, and what has the focus is outlined."""
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]

    folder = tmp_path / "report"
    path = html.write(*everything, folder)
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        for file in (path, *folder.glob("files/*.html")):
            for opened in (False, True):
                page.goto(file.as_uri())
                if opened:
                    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
                wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
                assert wide[0] <= wide[1]
        page.goto(path.as_uri())
        # The page forbids scripts, and with them a predicate that the browser would poll: each picture is awaited.
        page.evaluate("document.querySelectorAll('img').forEach(e => e.loading = 'eager')")
        page.evaluate("Promise.all([...document.images].map(e => e.decode()))")  # fails where one cannot be shown
        reachable = page.evaluate(
            "[...document.querySelectorAll('a[href],summary,[tabindex]')].filter(e => e.checkVisibility()).length"
        )
        page.evaluate(
            "window.seen = []; addEventListener('focusin', e => window.seen.push([e.target.tagName,"
            "[...document.querySelectorAll('*')].indexOf(e.target), getComputedStyle(e.target).outlineWidth]))"
        )
        for _ in range(reachable):
            page.keyboard.press("Tab")
        seen = page.evaluate("window.seen")
        assert len({place for _, place, _ in seen}) == reachable
        assert {name for name, _, _ in seen} == {"A", "SUMMARY", "DIV"}
        assert {outline for _, _, outline in seen} == {"3px"}
        page.goto(path.as_uri())
        page.focus("#overview summary")
        first = "document.querySelector('#overview details').open"
        assert page.evaluate(first)  # the first collection is open, and the others open in its place
        page.keyboard.press("Enter")
        assert not page.evaluate(first)
        page.keyboard.press("Enter")
        assert page.evaluate(first)
        assert not said
        assert all(address.startswith((folder.as_uri(), "data:")) for address in asked)
        browser.close()
