"""Tables say what is missing, figures repeat byte for byte, and the sweep's table is what the scores say."""

import csv
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from xtrrep.experiments.definition import load_analysis
from xtrrep.report import figure
from xtrrep.report.figure import Timed, k_prime_sweep, loss_curve, speed_and_quality
from xtrrep.report.table import Table

TABLE = Table("A title", ["model", "nDCG@10", "k'"], [["a|b", 0.123456, 40000], ["c", None, None]], ["a note"])


def test_table_renders_missing_as_a_dash_never_zero() -> None:
    assert "0.1235" in TABLE.terminal()
    assert "40,000" in TABLE.terminal()
    assert TABLE.terminal().splitlines()[5].split() == ["c", "—", "—"]
    assert "| a\\|b | 0.1235 | 40,000 |" in TABLE.markdown()
    assert "- a note" in TABLE.markdown()
    rows = list(csv.reader(TABLE.csv().splitlines()))
    assert rows[1:] == [["a|b", "0.123456", "40000"], ["c", "", ""]]


def test_figures_are_repeatable(tmp_path: Path) -> None:
    panels = {"nDCG@10": {"x as XTR": [(10.0, 0.3), (100.0, 0.4)], "x as ColBERT": [(10.0, 0.5), (100.0, 0.4)]}}
    for name in ("one", "two"):
        made = k_prime_sweep(panels, {"nDCG@10": {"BM25": 0.35}}, "title", tmp_path / name)
        assert [path.name for path in made] == [f"{name}.png", f"{name}.svg", f"{name}.pdf"]
        loss_curve([1, 2, 3], [3.0, 2.0, 1.0], 3.2, "title", tmp_path / f"{name}-loss")
    for suffix in (f"{name}.{kind}" for name in ("", "-loss") for kind in ("png", "svg", "pdf")):
        first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
        assert first == second
        assert len(first) > 4000


def test_bands_and_bars_show_one_standard_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(figure, "save_figure", lambda drawn, stem: kept.append(drawn) or [])
    lines = {"x as XTR": [(10.0, 0.3), (100.0, 0.4)], "y as XTR": [(10.0, 0.5), (100.0, 0.6)]}
    bands = {"nDCG@10": {"x as XTR": [(10.0, 0.01), (100.0, 0.02)]}}
    k_prime_sweep({"nDCG@10": lines}, {}, "title", tmp_path / "one", bands=bands)
    (axis,) = kept.pop().axes
    assert [text.get_text() for text in axis.texts] == list(lines)  # each line by its name, no legend
    assert axis.get_legend() is None
    (band,) = axis.collections  # y has none
    corners = {(round(x), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(10, 0.29), (10, 0.31), (100, 0.38), (100, 0.42)}

    speed_and_quality([Timed(10.0, 0.5, "WARP"), Timed(20.0, 0.6, "PLAID", speed_sd=2.0, value_sd=0.01)], "nDCG@10",
                      "title", tmp_path / "two")  # fmt: skip
    bars = [segment for bars in kept.pop().axes[0].collections for segment in bars.get_segments()]
    assert [bar.round(6).tolist() for bar in bars] == [[[18.0, 0.6], [22.0, 0.6]], [[20.0, 0.59], [20.0, 0.61]]]


def test_no_two_engines_of_the_comparison_share_a_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(figure, "save_figure", lambda drawn, stem: kept.append(drawn) or [])
    compared = list(
        dict.fromkeys(row.place.get("engine", row.name) for row in load_analysis("engines", "demo", {}).rows)
    )
    assert len(compared) > 7
    speed_and_quality([Timed(10.0 + i, 0.5, name) for i, name in enumerate(compared)], "nDCG@10", "", tmp_path / "one")
    assert len({line.get_marker() for line in kept[0].axes[0].lines}) == len(compared)


def points(count: int) -> list[Timed]:
    """Every second by PLAID, in stages and models as the study's Figure 2 has them, all as good as each other."""
    models = ("ColBERT", "xtr_k512", "xtr_k256", "XTR")
    return [
        Timed(10.0 + i, 0.5, ("WARP", "PLAID")[i % 2], ("contrastive", "distillation")[i // 2 % 2], models[i // 4 % 4])
        for i in range(count)
    ]


def test_labels_of_speed_and_quality_stand_apart_and_lines_start_at_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen points of one height: the slower are named on the left of all points, the faster on the right, no two
    labels overlap, none leaves the picture, and each engine's and stage's ColBERT is joined with its three
    counterparts."""
    kept = []
    monkeypatch.setattr(figure, "save_figure", lambda drawn, stem: kept.append(drawn) or [])
    speed_and_quality(points(16), "nDCG@10", "title", tmp_path / "one", base="ColBERT")
    (axis,) = kept[0].axes
    kept[0].draw_without_rendering()
    left, right = (axis.transData.transform((speed, 0.5))[0] for speed in (10.0, 25.0))
    boxes = sorted((Text.get_window_extent(text) for text in axis.texts), key=lambda box: box.y0)
    slower, faster = [box for box in boxes if box.x1 < left], [box for box in boxes if box.x0 > right]
    assert (len(slower), len(faster)) == (6, 10)  # the middle of a log axis from 10 to 25 is 15.8
    assert all(low.y1 <= high.y0 for side in (slower, faster) for low, high in pairwise(side))
    assert all(box.y0 >= 0 and box.y1 <= kept[0].bbox.height for box in boxes)
    assert all(box.x0 >= 0 and box.x1 <= kept[0].bbox.width for box in boxes)
    assert len({text.get_text() for text in axis.texts}) == 16
    joined = [line.get_xdata() for line in axis.lines if line.get_marker() == "None"]
    assert len(joined) == 4 * 3
    assert {start for start, _ in joined} == {10.0, 11.0, 12.0, 13.0}
    told = {(line.get_marker(), line.get_fillstyle()) for line in axis.lines if line.get_marker() != "None"}
    assert len(told) == 4  # engine by marker, stage by fill: told apart in grey


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.floats(-2, 3), max_size=12))
def test_labels_keep_their_order_and_distance(wanted: dict[str, float]) -> None:
    heights = figure._apart(wanted, (0.0, 1.0), 0.08)
    names = sorted(wanted, key=lambda name: wanted[name])
    placed = [heights[name] for name in names]
    assert all(b - a >= 0.08 - 1e-9 for a, b in pairwise(placed))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path: Path) -> None:
    """A table with every sign that LaTeX could take for a command, in its title, a cell, a note and a mark."""
    odd = "a_b & 50 % of $x$ #1 {y} ~z^2 \\end <tag> | [1] * k' ≤ 5 ≥ 4 × 3 − 2 – — † ‡"
    table = Table(odd, ["model", "nDCG@10"], [[odd, 0.5], ["[x]", None], ["*", 0.75]], [odd], higher=["nDCG@10"],
                  marks={(0, 1): "†"})  # fmt: skip
    page = ["\\documentclass{article}", "\\usepackage{booktabs}", "\\begin{document}", table.latex(), "\\end{document}"]
    (tmp_path / "page.tex").write_text("\n".join(page))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 10_000


def test_long_texts_are_set_in_several_lines_and_nothing_is_broken() -> None:
    statement = "from large to small k', a high k_train loses more than a low one " * 2
    name = "an_identifier_that_is_rather_long"
    shown = Table("", ["claim", "statement", "effect"], [[name, statement, 0.25], ["b", "short", None]])
    lines = shown.terminal().splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith(name) and line.endswith("0.2500") for line in lines)
    first = lines[4 : next(i for i, line in enumerate(lines) if line.startswith("b "))]
    assert [word for line in first for word in line[len(name) + 2 :].replace("0.2500", "").split()] == statement.split()
    wide = Table("", ["n" * 90, "text"], [[1.0, "a word or two of text that cannot be narrowed"]]).terminal()
    assert len(wide.splitlines()[3]) == 90 + 2 + 24
    assert wide.endswith(
        "This table is wider than 100 characters; `less -S` and the files of the result show all of it."
    )
    assert "wider" not in shown.terminal()
