"""Explanations add up to what retrieval scores, and their page is safe, whole and readable without a mouse."""

import csv
import html
import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Cli, unit_vectors, write_collection, write_store

from xtrrep import pipeline
from xtrrep.config import compose
from xtrrep.console import DataError, UsageError
from xtrrep.pipeline import query as typed
from xtrrep.retrieval import explain, explain_page
from xtrrep.retrieval.engines import Hits
from xtrrep.retrieval.engines.exact import Searcher
from xtrrep.retrieval.explain import Contributions, Explanation, Token, contributions
from xtrrep.retrieval.imputation import imputations
from xtrrep.retrieval.retrieve import Setting, rank_query
from xtrrep.store.encode import Store

QUERY = "shortest path between vertex and tree"
SCRIPT = "<script>alert('x')</script> & node"
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """A page's tags, checked to be balanced, with every address it asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def has(self, tag: str) -> bool:
        return any(name == tag for name, _ in self.tags)

    def addresses(self) -> list[str]:
        return [v for _, attrs in self.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "action") and v]


@dataclass(frozen=True)
class HitsOnly:
    """The exact engine with only its token hits visible, some slots left empty."""

    inner: Searcher
    width: int | None = None

    def search(self, queries: np.ndarray, k_prime: int) -> Hits:
        found = self.inner.search(queries, k_prime)
        scores = found.scores.copy()
        if self.width is not None:
            scores[:, self.width :] = np.nan
        return Hits(found.tokens, scores)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, np.ndarray]:
    rng = np.random.default_rng(3)
    store = write_store(tmp_path_factory.mktemp("store"), unit_vectors(rng, 30, 16))
    return store, unit_vectors(rng, 1, 16, 6, 7)[0].astype(np.float32)


@pytest.mark.parametrize("imputation", list(imputations.entries()))
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("k_prime", [1, 8, 40, 100_000])
def test_sums_are_the_scores_of_retrieval(
    world: tuple[Store, np.ndarray], k_prime: int, zero: bool, imputation: str
) -> None:
    """On both paths of retrieve.py, with and without empty slots."""
    store, query = world
    setting = Setting("xtr", k_prime, imputation, top_k=1000, zero_missing=zero)
    for searcher in (Searcher(store), HitsOnly(Searcher(store)), HitsOnly(Searcher(store), 5)):
        scores = dict(rank_query(searcher, store, query, setting))
        for number, name in list(enumerate(store.ids))[::4]:
            found = contributions(searcher, store, query, number, setting)
            assert found.candidate == (name in scores)
            if found.candidate:
                assert found.xtr.sum() == pytest.approx(scores[name], abs=1e-4)
            for row, value, source in zip(found.hits, found.xtr, found.sources, strict=True):
                if source == "hit":
                    assert value == pytest.approx(np.nanmax(row), abs=1e-6)  # another product, another last bit
                else:
                    assert np.isnan(row).all() or source == "empty slot"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An untrained encoder's index over a collection in which one document is markup."""
    home = tmp_path_factory.mktemp("home with spaces ü")
    folder = write_collection(home / "data" / "mini")
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"_id": "d3", "title": "", "text": f"{SCRIPT} shortest path"})
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTRREP_HOME", str(home / "made"))
        patch.setenv("XTRREP_DATA", str(home / "data"))
        yield home


def explained(*words: str, query: str = QUERY, document: str = "d4") -> Explanation:
    plan = pipeline.plan(compose([*TINY, "model.source=untrained", *words]), "index")
    return typed.explain(plan, pipeline.run([plan]).folders[0], query, document)


def searched(*words: str) -> dict[str, float]:
    """The scores that `search` gives, best first."""
    plan = pipeline.plan(compose([*TINY, "model.source=untrained", "retrieve.top_k=40", *words]), "index")
    found = typed.search(plan, pipeline.run([plan]).folders[0], QUERY)
    return {name: score for name, score, _ in found}


@pytest.mark.parametrize(
    "words",
    [
        ("retrieve.k_prime=20",),
        ("retrieve.k_prime=60", "retrieve.imputation=mean"),
        ("retrieve.k_prime=200", "index=scann", "index.num_leaves=20", "index.num_leaves_to_search=10"),
    ],
)
def test_the_numbers_are_those_of_search(home: Path, words: tuple[str, ...]) -> None:
    scores = searched(*words)
    best, last = next(iter(scores)), list(scores)[-1]
    for name in (best, last):
        found = explained(*words, document=name)
        assert found.evidence.candidate
        assert found.xtr_sum == pytest.approx(scores[name], abs=1e-4)
        naive = 0.0
        for row in found.similarities:
            naive += max(float(value) for value in row)
        assert found.maxsim_sum == pytest.approx(naive, abs=1e-5)


def test_tokens_have_their_names_and_kinds(home: Path) -> None:
    found = explained("retrieve.k_prime=20")
    names = [(token.text, token.kind) for token in found.query_tokens]
    assert names[:3] == [("[CLS]", "special"), ("shortest", "word"), ("path", "word")]
    assert [kind for _, kind in names].count("special") == 2
    assert names[-1] == ("[MASK]", "expansion")
    assert len(names) == 16
    assert found.document_tokens[1].text == "graph"  # the title
    row = names.index(("path", "word"))
    places = [i for i, token in enumerate(found.document_tokens) if token.text == "path"]
    assert np.flatnonzero(found.lexical[row]).tolist() == places
    typed = explained("retrieve.k_prime=20", query="the [MASK] path")
    assert [token.kind for token in typed.query_tokens[:5]] == ["special", "word", "special", "word", "special"]
    pooled = explained("retrieve.k_prime=20", "encode.pool_factor=2")
    assert {token.kind for token in pooled.document_tokens} == {"pooled"}
    assert not pooled.lexical.any()


def test_colbert_is_told_as_what_search_ranks_by(home: Path) -> None:
    words = ("retrieve.scoring=colbert", "retrieve.k_prime=100000")
    found = explained(*words)
    assert found.maxsim_sum == pytest.approx(searched(*words)["d4"], abs=1e-4)
    assert found.xtr_sum == pytest.approx(found.maxsim_sum, abs=1e-4)  # everything is retrieved
    assert "search ranks by MaxSim" in "\n".join(explain.notes(found))


def made_up() -> Explanation:
    """Two query tokens, one imputed; a document whose tokens are markup."""
    tokens = [Token("<b>", 7, "word"), Token("[MASK]", 103, "expansion")]
    hits = np.array([[0.75, np.nan, np.nan], [np.nan] * 3], np.float32)
    return Explanation(
        query="<b>&",
        document='d"<1>',
        text=SCRIPT,
        engine="exact",
        setting=Setting("xtr", 20),
        query_tokens=tokens,
        document_tokens=[Token("<script>", 9, "word"), Token("<b>", 7, "word"), Token("[SEP]", 102, "special")],
        similarities=np.array([[0.75, 0.5, -0.25], [0.25, 0.125, 0.375]], np.float32),
        evidence=Contributions(hits, np.array([0.75, 0.5]), ["hit", "imputed"], True),
    )


def test_the_page_escapes_marks_and_balances() -> None:
    found = made_up()
    text = explain_page.as_html(found)
    page = Page(text)
    assert not page.has("script")
    assert SCRIPT in "".join(page.words)
    assert html.escape(SCRIPT) in text
    assert text.count("<b>") == text.count("<b>=</b>")  # marks of ours, none of the query's
    assert not any("//" in address for address in page.addresses())
    assert "url(" not in text
    assert "@import" not in text
    cells = [attrs["class"] or "" for tag, attrs in page.tags if tag == "td" and "cell" in (attrs.get("class") or "")]
    assert len(cells) == 6
    assert [name.split()[1] for name in cells] == ["c15", "c11", "c0", "c8", "c6", "c9"]
    assert ["retrieved" in name for name in cells] == [True, *[False] * 5]
    assert text.count("<b>=</b></td>") == 1
    assert "0.5000 imputed (min)" in text
    figure = text[text.index('<dl class="sums">') : text.index("</dl>")]
    assert figure.index("1.2500") < figure.index("1.1250")  # XTR, then MaxSim, beside each other
    regions = [attrs for _, attrs in page.tags if attrs.get("role") == "region"]
    assert len(regions) == 2
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)


def test_the_colour_scale_only_darkens_and_its_ink_is_readable() -> None:
    def luminance(colour: str) -> float:
        values = [int(part) / 255 for part in colour.split(",")]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    rules = [line.split("rgb(")[1].split(")") for line in explain_page.STYLE.split("}") if "rgb(" in line]
    grey = [luminance(colour) for colour, _ in rules]
    assert grey == sorted(grey, reverse=True)
    assert len(set(grey)) == explain_page.LEVELS
    for value, (_, rest) in zip(grey, rules, strict=True):
        contrast = (value + 0.05) / 0.05 if "#000" in rest else 1.05 / (value + 0.05)
        assert contrast >= 4.5


def test_expansion_tokens_are_one_row_and_the_next_document_is_named(home: Path) -> None:
    scores = searched("retrieve.k_prime=200")
    first, second = list(scores)[:2]
    found = explained("retrieve.k_prime=200", document=first)
    whole, grouped = explain.table(found), explain.table(found, grouped=True)
    count = len(found.expansion)
    assert count > 2
    assert len(grouped.rows) == len(whole.rows) - count + 1
    assert grouped.rows[-1][0] == f"{count} x [MASK] (expansion)"
    assert grouped.rows[-1][4] == pytest.approx(sum(float(row[4]) for row in whole.rows[-count:]))  # type: ignore[arg-type]
    assert sum(float(row[5]) for row in grouped.rows) == pytest.approx(100, abs=0.6)  # type: ignore[arg-type]
    assert found.rival is not None
    assert found.rival.document == second
    assert found.rival.difference.sum() == pytest.approx(scores[first] - scores[second], abs=1e-4)
    said = "\n".join(explain.in_words(found))
    assert f"ahead of the next document, {second}" in said
    text = explain_page.as_html(found)
    page = Page(text)
    assert page.has("details")
    assert f"{count} expansion tokens, {grouped.rows[-1][5]:.1f} % of XTR" in text
    cells = [attrs for tag, attrs in page.tags if tag == "td" and "cell" in (attrs.get("class") or "")]
    assert len(cells) == found.similarities.size  # each once, the expansion's behind a line that opens


def test_a_smaller_k_prime_is_what_search_would_give(home: Path) -> None:
    best = next(iter(searched("retrieve.k_prime=100000")))
    found = explained("retrieve.k_prime=100000", document=best)
    assert found.evidence.sources.count("imputed") == 0
    assert found.smaller
    for other in found.smaller:
        again = explained(f"retrieve.k_prime={other.k_prime}", document=best)
        assert again.evidence.sources.count("imputed") == other.imputed > 0
        assert again.xtr_sum == pytest.approx(other.xtr, abs=1e-4)
    assert "query tokens would be imputed" in explain.table(found).terminal()


def test_maxsim_decides_where_search_ranks_by_it(home: Path) -> None:
    words = ("retrieve.scoring=colbert", "retrieve.k_prime=100000")
    scores = searched(*words)
    first, second = list(scores)[:2]
    found = explained(*words, document=first)
    assert found.rival is not None
    assert found.rival.difference.sum() == pytest.approx(scores[first] - scores[second], abs=1e-4)
    assert explained(*words, document=list(scores)[-1]).rival is None


def test_a_document_without_a_hit_is_no_candidate() -> None:
    found = made_up()
    nothing = replace(found, evidence=Contributions(found.evidence.hits * np.nan, np.ones(2), ["imputed"] * 2, False))
    assert "no search returns it" in explain.table(nothing).terminal()
    assert "No candidate" in explain_page.as_html(nothing)
    assert explain.as_json(nothing)["candidate"] is False


def test_what_cannot_be_explained(home: Path) -> None:
    with pytest.raises(DataError, match="no document 'nowhere'; its ids look like 'd0'"):
        explained("retrieve.k_prime=20", document="nowhere")
    for engine in ("plaid", "warp", "bm25"):
        with pytest.raises(UsageError, match=f"{engine} ranks documents by itself") as caught:
            typed.check_explainable(compose([*TINY, f"index={engine}"]))
        assert "--index exact" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no words"):
        typed.check_query("  ")


def test_the_command(cli: Cli, home: Path, tmp_path: Path) -> None:
    """One page and one JSON of a document that is markup; what is wrong is one line before anything runs."""
    out, folders = tmp_path / "why ü.html", {"home": home / "made", "XTRREP_DATA": str(home / "data")}
    words = (*TINY, "model.source=untrained", "retrieve.k_prime=300")
    done = cli("explain", QUERY, "--doc", "d3", *words, "--out", str(out), "--json", **folders)  # type: ignore[arg-type]
    found = json.loads(done.stdout)
    assert found["text"].startswith("<script>")
    assert len(found["similarities"]) == len(found["query_tokens"]) == 16
    assert found["xtr"] == pytest.approx(sum(token["xtr"] for token in found["query_tokens"]))
    assert found["maxsim"] == pytest.approx(np.max(found["similarities"], axis=1).sum(), abs=1e-4)
    text = out.read_text()
    page = Page(text)
    assert not page.has("script")
    assert SCRIPT in "".join(page.words)
    assert f"{found['xtr']:.4f}" in text
    assert f"{found['maxsim']:.4f}" in text
    (kept,) = (home / "made" / "results" / "runs" / "explain").glob("[!.]*")
    assert (kept / "page.html").read_text() == text
    rows = list(csv.reader((kept / "similarities.csv").read_text().splitlines()))
    assert [[float(value) for value in row[1:]] for row in rows[1:]] == found["similarities"]
    rows = list(csv.DictReader((kept / "table.csv").read_text().splitlines()))
    assert [float(row["XTR contribution"]) for row in rows] == [token["xtr"] for token in found["query_tokens"]]
    empty = {"home": tmp_path / "empty", "XTRREP_DATA": str(home / "data")}
    refused = cli("explain", QUERY, "--doc", "nowhere", *TINY, code=3, **empty)  # type: ignore[arg-type]
    assert "no document 'nowhere'" in refused.stderr
    assert not {"train", "documents"} & {path.name for path in (tmp_path / "empty").iterdir()}


@pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None or shutil.which("chromium") is None,
    reason="playwright or chromium is not installed",
)
def test_a_phone_scrolls_the_figure_not_the_page(home: Path, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]

    path = tmp_path / "why.html"
    path.write_text(explain_page.as_html(explained("retrieve.k_prime=60")))
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        page = browser.new_page(viewport={"width": 400, "height": 800})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide[0] <= wide[1]
        assert page.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('.scroll'))")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
        assert not said
        browser.close()
