"""Every `xtrrep` command on the README and on the pages of the site is carried out, as a dry run where it has one."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_collection

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
    """Each command once, on the first page that has it. An engine of one's own is test_plugins.py's."""
    found = {tuple(word for word in words if word != "--dry-run"): page for page, words in reversed([*commands()])}
    return [(page, words) for words, page in reversed(found.items()) if "index=toy" not in words]


EVERY = distinct()


def grid() -> str:
    """The grid of docs/extending.md."""
    return re.findall(r"```yaml\n(title: .*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands name: collections, triples, a run, a grid, parts of one's own."""
    home = tmp_path_factory.mktemp("docs")
    for name in ("nfcorpus", "cranfield", "NAME"):
        write_collection(home / "data" / name)
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
        words = (*words, "--dry-run")
    code = _run(list(words))
    said = capsys.readouterr()
    assert code == OK, said.err
    assert said.out


def test_the_pages_have_commands() -> None:
    assert len(EVERY) > 35
    assert {words[0] for _, words in EVERY} > {"train", "eval", "search", "explain", "analyze", "reproduce", "claims"}
