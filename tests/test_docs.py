"""Every `xtrrep` command on the README and on the pages of the site is carried out, as a dry run where it has one."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import unit_vectors, write_collection

import xtrrep
from xtrrep.cli import _run
from xtrrep.console import OK

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PARSED = ("calibrate", "doctor")  # what they do is to measure this machine


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of each command in a block of shell or of text, without what a shell does with its output."""
    for page in PAGES:
        if page.name == "LOG.md":  # of commands of the past
            continue
        for block in re.findall(r"```(?:sh|text)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                found = re.search(r"(?:^|\s)xtrrep ([a-z]+\b.*)", line)
                if found and not line.startswith(("#", " ")):
                    yield str(page.relative_to(ROOT)), shlex.split(found[1], comments=True)


def distinct() -> list[tuple[str, tuple[str, ...]]]:
    """Each command once, on the first page that has it, but two: an engine of one's own is tried in test_plugins.py,
    and a checkpoint in test_model_in.py."""
    found = {tuple(word for word in words if word != "--dry-run"): page for page, words in reversed([*commands()])}
    return [
        (page, words)
        for words, page in reversed(found.items())
        if not {"index=toy", "model.source=checkpoint"} & set(words)
    ]


EVERY = distinct()


def grid() -> str:
    """The grid of docs/extending.md."""
    return re.findall(r"```yaml\n(title: .*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands name: collections, triples, a run, a grid, parts of one's own."""
    home = tmp_path_factory.mktemp("docs")
    for name in ("data/nfcorpus", "data/cranfield", "data/NAME", "data/mine", "my-data/mine"):
        write_collection(home / name)
    (home / "FILE.jsonl").write_text('{"query": "a graph", "positive": "nodes and edges", "negative": "an array"}\n')
    (home / "bm25.trec").write_text("nx-0 Q0 d1 1 2.0 bm25\n")
    (home / "my-grid.yaml").write_text(grid())
    for part in ("examples/grid.yaml", "docs/h100_assumed.json"):
        (home / part).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / part, home / part)
    return home


@pytest.mark.parametrize(("page", "words"), EVERY, ids=[f"{page}: {' '.join(words)}" for page, words in EVERY])
def test_a_command_of_the_pages(
    page: str, words: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XTRREP_HOME", str(folder / "home"))
    monkeypatch.setenv("XTRREP_DATA", str(folder / "data"))
    if words[0] in PARSED:
        words = (words[0], "--help")
    elif not {"--list", "--show", "--help"} & set(words) and words[0] not in ("ls", "show", "report"):
        small = words[0] == "reproduce" and "--only" not in words  # a plan of all collections takes a minute
        part = ("--only", "nfcorpus") if small else ()
        words = (*(word for word in words if word != "--accept"), *part, "--dry-run")  # a plan records nothing
    code = _run(list(words))
    said = capsys.readouterr()
    assert code == OK, said.err
    assert said.out


def test_what_the_page_on_warp_says_of_bound(tmp_path: Path) -> None:
    """A larger bound lowers imputed scores until t' is reached, and leaves the documents that are found as they are."""
    rng = np.random.default_rng(0)
    store = xtrrep.store_vectors({f"d{i}": rng.normal(size=(20, 32)) for i in range(400)}, tmp_path, normalize=True)
    query = {"q": unit_vectors(rng, 1, 32, 4, 5)[0]}

    def ranking(bound: int, t_prime: int) -> dict[str, float]:
        words = {"num_partitions": 64, "nprobe": 4, "bound": bound, "t_prime": t_prime}
        return dict(xtrrep.search(xtrrep.build_index(store, "warp", tmp_path, **words), query, top_k=400)["q"])

    few, more, most = (ranking(bound, 10**6) for bound in (4, 16, 64))
    assert few.keys() == more.keys() == most.keys()
    assert sum(few.values()) > sum(more.values()) > sum(most.values())
    assert ranking(16, 200) == ranking(64, 200)


def test_the_pages_have_commands() -> None:
    assert len(EVERY) > 35
    assert {words[0] for _, words in EVERY} > {"train", "eval", "search", "explain", "analyze", "reproduce", "claims"}
