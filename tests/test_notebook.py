"""examples/quickstart.ipynb is carried out from top to bottom, at the smallest settings."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from conftest import TINY

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def cells() -> list[dict[str, Any]]:
    return list(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"])


def test_the_notebook_runs(
    tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names: dict[str, Any] = {}
    for cell in cells():
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= {"SETTINGS": TINY, "STORES": str(tmp_path / "stores")}
    assert len(names["texts"]) == 50
    assert all(set(grades) <= set(names["texts"]) for grades in names["relevant"].values())
    assert names["heat"].shape == (len(names["words"]), len(names["columns"]))
    assert names["scores"].keys() == {"exact, XTR", "exact, ColBERT", "plaid", "warp"}
    assert all(0 <= value <= 1 for scores in names["scores"].values() for value in scores.values())
    assert names["scores"]["exact, ColBERT"]["RR@10"] > 0.1  # one layer of MiniLM knows the words
    printed = capsys.readouterr().out
    assert "50 texts" in printed
    assert printed.count("nDCG@10") == 6 + 4


def test_the_notebook_shows_what_it_printed() -> None:
    """It was carried out before it was kept, without an error, and its picture is there."""
    outputs = [output for cell in cells() for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert NOTEBOOK.stat().st_size < 150_000
