"""The documentation site: it builds without a warning, covers all that there is, and needs nothing from elsewhere."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import xtrrep
from xtrrep import config
from xtrrep.retrieval.engines import engines

ROOT = Path(__file__).parents[1]


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load("site_reference")
PAGES: dict[str, str] = reference.pages()


def test_every_verb_and_option_is_covered() -> None:
    for name, verb in reference.verbs().items():
        part = PAGES["commands"].partition(f"\n## xtrrep {name}\n")[2].partition("\n## ")[0]
        assert verb.help.split()[0] in part
        for item in verb.params:
            assert reference.usage(item) in part
            assert item.name == "overrides" or item.help, f"xtrrep {name}: {item.name} has no help"
    assert len(reference.verbs()) > 15


def test_every_key_is_covered_with_its_meaning() -> None:
    rows = {row.split("|")[1].strip(" `"): row for row in PAGES["config"].splitlines() if row.startswith("| `")}
    for key, value in config.flat(config.compose(["index=exact"])).items():
        if key == "index.engine":
            continue
        columns = re.split(r"(?<!\\)\|", rows[key])
        assert json.dumps(value, ensure_ascii=False) in columns[5].strip(" `"), key
        assert columns[2].strip(), f"{key} has no comment in xtrrep/config/schema.py"
    for group in config.GROUPS:
        for choice in config.options(group):
            assert f"`{choice}`" in rows[f"{group}="]


def test_every_parameter_of_an_engine_is_covered() -> None:
    for name, entry in engines.entries().items():
        if entry.value.__module__.startswith("xtrrep_plugin_"):
            continue
        part = PAGES["engines"].partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert reference.words(entry.summary) in part
        for item in fields(entry.value):
            assert f"`index.{item.name}`" in part
            assert reference.comments(entry.value)[item.name][1], f"{name}: {item.name} has no comment"


def test_every_public_function_is_covered() -> None:
    for name in xtrrep._API:
        assert f"\n::: xtrrep.api.{name}\n" in PAGES["python"]
    for name in reference.PUBLIC:
        module, _, member = name.rpartition(".")
        assert getattr(__import__(module, fromlist=[member]), member).__doc__


def test_every_error_is_covered() -> None:
    """As many as the sources make, but for the few that pass another message on."""
    found = [row for rows in reference.raised().values() for row in rows]
    calls = re.findall(r"\b(?:UsageError|DataError)\(", "".join(p.read_text() for p in reference.PACKAGE.rglob("*.py")))
    assert 0.9 * len(calls) < len(found) <= len(calls)
    assert ["2", "`model is a {__name__}, not a model`", '`load_model("my-xtr") gives one`'] in found


def test_comments_are_read_with_their_unit() -> None:
    from xtrrep.config.schema import Distill

    said = reference.comments(Distill)
    assert said["n_ways"] == ("documents", "candidates of a query")
    assert said["steps"] == ("steps", "length of the training")  # of the base class
    assert reference.words("a|b <c> `d|e`") == r"a\|b \<c\> `d|e`"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; skipped where mkdocs is not installed."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    settings = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's own notice of its end
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, env=settings)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_the_site_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]*)\"", text)
        loaded += re.findall(r"<link\b[^>]*\brel=\"(?:stylesheet|preconnect|preload|icon)\"[^>]*", text)
        assert not [address for address in loaded if "//" in address], page
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    for word in ("train.k_train", "xtrrep gc", "index.bound"):
        assert word in index


@pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None or shutil.which("chromium") is None,
    reason="playwright or chromium is not installed",
)
@pytest.mark.parametrize("width", [1280, 390])
def test_the_site_works_from_the_file_system(site: Path, width: int) -> None:
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]

    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        if width < 1000:
            page.locator("label[for=__search]").first.click()
        page.locator("input.md-search__input").click()
        page.keyboard.type("imputation")
        result = page.locator(".md-search-result__link").first
        result.wait_for()
        address = result.get_attribute("href")
        page.goto((site / "reference" / "config.html").as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert address
    assert not said
    assert asked
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert wide <= width
