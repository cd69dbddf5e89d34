"""The local page: what it offers, one search behind every k', addresses that restore it, and a browser that uses it."""

import importlib.util
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import TINY, Cli, write_collection
from starlette.testclient import TestClient

from xtrrep import pipeline
from xtrrep.config import compose
from xtrrep.console import UsageError
from xtrrep.explore import server
from xtrrep.explore.answers import Session, token_places
from xtrrep.explore.indexes import Indexed, indexed
from xtrrep.explore.page import marked
from xtrrep.explore.state import K_PRIMES, Column, first_state, read_state
from xtrrep.pipeline import query as typed

QUERY = "shortest path between vertex and tree"
SCRIPT = "<script>alert('x')</script> & node"
UNTRAINED = (*TINY, "model.source=untrained")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with an exact, a PLAID and a BM25 index of the untrained encoder; one document holds markup."""
    home = tmp_path_factory.mktemp("explore")
    folder = write_collection(home / "data" / "mini")
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    document = json.loads(lines[3])
    lines[3] = json.dumps(document | {"text": f"{document['text']} {SCRIPT}"})
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTRREP_HOME", str(home))
        patch.setenv("XTRREP_DATA", str(home / "data"))
        pipeline.run([pipeline.plan(compose([*UNTRAINED, f"index={name}"]), "index") for name in ("exact", "bm25")])
        pipeline.run([pipeline.plan(compose([*UNTRAINED, "index=plaid", "index.num_partitions=4"]), "index")])
        yield home


@pytest.fixture(scope="module")
def found(home: Path) -> dict[str, Indexed]:
    return indexed([*UNTRAINED, "index.num_partitions=4", "index=plaid"])


@pytest.fixture(scope="module")
def client(found: dict[str, Indexed]) -> TestClient:
    return TestClient(server.application(found), base_url="http://127.0.0.1")


def test_it_offers_what_is_complete_and_nothing_else(found: dict[str, Indexed]) -> None:
    assert list(found) == ["untrained plaid (as typed)", "bm25", "untrained exact"]
    assert all(one.folders["index"].is_dir() for one in found.values())


def test_runs_and_imported_vectors_have_nothing_to_type_into(home: Path) -> None:
    with pytest.raises(UsageError, match="from_run"):
        indexed(["retrieve.from_run=run.trec"])


@pytest.mark.parametrize("scoring", ["xtr", "colbert"])
@pytest.mark.parametrize("depth", range(len(K_PRIMES)))
def test_one_deep_search_ranks_as_a_search_at_each_k_prime(found: dict[str, Indexed], scoring: str, depth: int) -> None:
    session = Session(found)
    column = Column("untrained exact", scoring, depth)
    answer = session.answer(QUERY, column)
    cfg = compose(
        [*UNTRAINED, f"retrieve.k_prime={column.k_prime}", f"retrieve.scoring={scoring}", "retrieve.top_k=10"]
    )
    plan = pipeline.plan(cfg, "index")
    own = typed.search(plan, found[column.index].folders, QUERY)
    assert [passage.id for passage in answer.passages] == [name for name, _, _ in own]
    assert [p.score for p in answer.passages] == pytest.approx([score for _, score, _ in own], abs=1e-5)
    assert [p.text for p in answer.passages] == [text for _, _, text in own]


def test_other_k_primes_search_nothing_again(found: dict[str, Indexed], monkeypatch: pytest.MonkeyPatch) -> None:
    from xtrrep.explore import answers

    searched = []
    real = answers.host_search
    monkeypatch.setattr(answers, "host_search", lambda *given: searched.append(given) or real(*given))
    session = Session(found)
    rankings = {
        tuple(p.id for p in session.answer(QUERY, Column("untrained exact", "xtr", depth, imputation)).passages)
        for depth in range(len(K_PRIMES))
        for imputation in ("min", "zero", "mean")
    }
    assert len(searched) == 1
    assert len(rankings) > 1


def test_an_explanation_adds_up_to_the_score_of_the_list(found: dict[str, Indexed]) -> None:
    session = Session(found)
    column = Column("untrained exact", "xtr", 2)
    first = session.answer(QUERY, column).passages[0]
    told = session.explain(QUERY, Column("untrained exact", "xtr", 2, doc=first.id))
    assert told.xtr_sum == pytest.approx(first.score, abs=1e-4)
    assert "imputed" in told.evidence.sources or np.isfinite(told.evidence.hits).any()
    plaid = session.explain(QUERY, Column("untrained plaid (as typed)", doc=first.id))
    assert plaid.engine == "exact, in place of untrained plaid (as typed)"
    assert plaid.similarities == pytest.approx(told.similarities)


def test_marks_are_the_retrieved_tokens(found: dict[str, Indexed]) -> None:
    """All of a text where everything is retrieved; with few hits those that an explanation names."""
    session = Session(found)
    whole = session.answer(QUERY, Column("untrained exact", "xtr")).passages[0]
    marks = {whole.text[span.start : span.end].lower() for span in whole.spans}
    assert {word for word in whole.text.lower().split() if word.isalpha()} <= marks
    few = Column("untrained exact", "xtr", 2)
    for passage in session.answer(QUERY, few).passages:
        told = session.explain(QUERY, replace(few, doc=passage.id))
        words = [t for t, token in enumerate(told.query_tokens) if token.kind == "word"]
        hit = ~np.isnan(told.evidence.hits[words]).all(axis=0)
        named = [token.text for token, own in zip(told.document_tokens, hit, strict=True) if own and token.id > 1000]
        assert [passage.text[span.start : span.end].lower() for span in passage.spans] == [
            text.removeprefix("##") for text in named
        ]
        assert marked(passage).count("<mark") == len(passage.spans)


def test_places_skip_what_the_store_has_not() -> None:
    class Fast:
        is_fast = True

        def __call__(self, text: str, **_: object) -> dict[str, list[object]]:
            return {"input_ids": [5, 9, 6], "offset_mapping": [(0, 2), (2, 3), (4, 6)]}

    class Slow:
        is_fast = False

    ids = np.array([101, 5, 6, 102], np.int32)
    assert token_places(Fast(), "ab. cd", ids) == [None, (0, 2), (4, 6), None]
    assert token_places(Slow(), "ab. cd", ids) == [None] * 4


def test_an_address_restores_the_page(found: dict[str, Indexed]) -> None:
    start = first_state(found)
    given = {"q": QUERY, "left.index": "untrained exact", "left.depth": "3", "left.imputation": "mean"}
    state = read_state(given, found)
    assert (state.columns[0].k_prime, state.columns[0].imputation) == (K_PRIMES[3], "mean")
    assert state.columns[1] == start.columns[1]
    pairs = [pair.split("=") for pair in urlsplit(state.address(0, "d3")).query.split("&")]
    from urllib.parse import unquote_plus

    again = read_state({key: unquote_plus(value) for key, value in pairs}, found)
    assert again.columns[0] == Column("untrained exact", state.columns[0].scoring, 3, "mean", "d3")
    wrong = {"left.index": "nowhere", "left.depth": "99", "left.imputation": "<b>", "left.scoring": "x"}
    assert read_state(wrong, found) == start


def test_markup_of_documents_and_queries_is_text(client: TestClient) -> None:
    page = client.get("/", params={"q": SCRIPT, "left.index": "untrained exact", "left.doc": "d3"})
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert" in page.text
    assert "script-src 'self'" in page.text


def test_a_stranger_host_name_is_refused(found: dict[str, Indexed], client: TestClient) -> None:
    assert client.get("/", headers={"host": "example.org"}).status_code == 400
    anywhere = TestClient(server.application(found, ("*",)), base_url="http://example.org")
    assert anywhere.get("/").status_code == 200


def test_what_cannot_be_shown_is_said_on_the_page(client: TestClient) -> None:
    absent = client.get("/", params={"q": QUERY, "left.index": "untrained exact", "left.doc": "d999"})
    assert "no document &#x27;d999&#x27;" in absent.text
    words = client.get("/", params={"q": QUERY, "left.index": "bm25", "left.doc": "d1"})
    assert "ranks words" in words.text
    assert client.get("/column", params={"q": QUERY, "side": "up"}).status_code == 400
    assert client.get("/column", params={"q": " ", "side": "left"}).text == ""


def test_the_verb_lists_and_says_what_to_install(home: Path, cli: Cli) -> None:
    own = {"XTRREP_DATA": str(home / "data")}
    listed = cli("explore", *UNTRAINED, "--list", home=home, **own)
    assert listed.stdout.splitlines() == ["untrained exact", "bm25"]
    planned = cli("explore", *UNTRAINED, "--dry-run", home=home, **own)
    assert "reuse" in planned.stdout
    blocked = home / "blocked"
    blocked.mkdir(exist_ok=True)
    code = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'uvicorn' else f(n, *a)"
    )
    (blocked / "sitecustomize.py").write_text(code)
    without = cli("explore", *UNTRAINED, code=3, home=home, PYTHONPATH=f"{blocked}:{Path(__file__).parents[1]}", **own)
    assert "the page needs uvicorn" in without.stderr
    assert "hint: pip install 'xtrrep[explore]'" in without.stderr


def test_a_taken_port_is_said(found: dict[str, Indexed]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}"):
            server.serve(found, "127.0.0.1", port)


@pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None or shutil.which("chromium") is None,
    reason="playwright or chromium is not installed",
)
def test_a_browser_asks_slides_and_opens(found: dict[str, Indexed]) -> None:
    """No console error, no request but loopback, markup inert, usable by keyboard and at phone width."""
    import uvicorn
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(server.application(found), log_level="error"))
    thread = threading.Thread(target=lambda: running.run(sockets=[listening]), daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{base}/?left.index=untrained+exact&right.index=untrained+exact")
        page.keyboard.type("vertex alert script")  # the field has the focus
        page.keyboard.press("Enter")
        page.wait_for_selector("#left ol")
        assert page.input_value("input[name=q]") == "vertex alert script"
        before = page.inner_text("#left")
        slider = page.locator("input[name='left.depth']")
        slider.focus()
        page.keyboard.press("Home")
        page.wait_for_function("before => document.getElementById('left').innerText !== before", arg=before)
        assert slider.get_attribute("aria-valuetext") == "10 tokens"
        assert "left.depth=0" in page.url
        kept = page.inner_text("#left ol")
        page.goto(page.url)
        assert page.inner_text("#left ol") == kept  # the address restores it
        page.click("#left ol a >> nth=0")
        page.wait_for_selector("#why table")
        wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide[0] <= wide[1]
        fields = "[...document.querySelectorAll('input, select, button')]"
        assert page.evaluate(f"{fields}.every(e => e.labels?.length || e.ariaLabel || e.innerText)")
        assert not said
        assert asked
        assert all(url.startswith(base) or url.startswith("data:") for url in asked)
        browser.close()
    running.should_exit = True
    thread.join(timeout=10)
    assert not thread.is_alive()
