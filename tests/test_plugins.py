"""An engine and an imputation, each one file in a folder of the user's: typed, tested and refused as our own are."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, Cli

TESTS = Path(__file__).parent

# The examples of the documentation.
PAGE = (TESTS.parent / "docs" / "API.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"```py\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
ENGINE = PARTS["toy.py"]


@pytest.fixture
def plugins(tmp_path: Path) -> str:
    folder = tmp_path / "plugins ü"
    folder.mkdir()
    for name, text in PARTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


def test_the_commands_know_a_file_of_the_users(cli: Cli, plugins: str, tmp_path: Path) -> None:
    def measured(*words: str) -> dict[str, float]:
        done = cli("eval", *TINY, "model.source=untrained", *words, "--json", XTRREP_PLUGINS=plugins)
        measures: dict[str, float] = json.loads(done.stdout)["measures"]
        return measures

    assert measured("--index", "toy") == pytest.approx(measured("--index", "exact"))
    assert measured("index=toy", "retrieve.imputation=median", "retrieve.k_prime=30", "index.half=true")
    listing = json.loads(cli("ls", "--json", XTRREP_PLUGINS=plugins).stdout)
    assert "toy" in [engine["name"] for engine in listing["engine"]]
    made = [path.name for path in (tmp_path / "home" / "index").glob("toy--*")]
    assert len(made) == 2  # index.half is part of the identity
    assert measured("index=toy", "index.most=50")
    assert [path.name for path in (tmp_path / "home" / "index").glob("toy--*")] == made


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["--index", "toi"], 3, "toy"),
        (["--index", "toy", "index.hal=true"], 2, "index.half"),
        (["--index", "toy", "index.most=0"], 2, "index.most=1"),
        (["--index", "toy", "retrieve.imputation=medain"], 3, "median"),
    ],
)
def test_a_misspelt_word_is_refused_with_a_suggestion(
    cli: Cli, plugins: str, words: list[str], code: int, hint: str
) -> None:
    done = cli("eval", *TINY, "model.source=untrained", *words, code=code, XTRREP_PLUGINS=plugins)
    assert hint in done.stderr.partition("hint:")[2]


@pytest.mark.parametrize(
    ("right", "wrong", "says", "hint"),
    [
        ("import Hits, TokenEngine", "import Hits, TokenEngin", "TokenEngin", "TokenEngine"),
        ('frozenset({"most"})', 'frozenset({"msot"})', "at_search of engine 'toy' names 'msot'", "most"),
        ('{"half": False', '{"hafl": False', "defaults of engine 'toy' names 'hafl'", "half"),
        ("at_search =", "uses_gpo = True\n    at_search =", "'uses_gpo', which nothing reads", "uses_gpu"),
        ("def build(", "def biuld(", "'biuld', which nothing reads", "build"),
        ("def load(", "def open_searcher(", "lacks load", "class"),
        ("at_search =", 'scoring = "xtr"\n    at_search =', "has scoring='xtr'", ""),
        ("class Toy(TokenEngine)", "class Toy", "is not a frozen dataclass of an engine class", "TokenEngine"),
    ],
)
def test_a_faulty_engine_is_refused_when_it_is_registered(
    cli: Cli, plugins: str, right: str, wrong: str, says: str, hint: str
) -> None:
    assert right in ENGINE
    (Path(plugins) / "toy.py").write_text(ENGINE.replace(right, wrong), encoding="utf-8")
    done = cli("show", XTRREP_PLUGINS=plugins, code=3 if "import" in right else 2)
    assert "toy.py" in done.stderr
    assert says in done.stderr
    assert hint in done.stderr.partition("hint:")[2]


def test_a_plugin_folder_that_is_not_there_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert "which is not a folder" in cli("show", XTRREP_PLUGINS=str(tmp_path / "nowhere"), code=3).stderr


def test_they_are_enrolled_in_every_conformance_test(plugins: str) -> None:
    """Without an edit anywhere: the engine's, the imputation's, and the crash matrix."""
    environment = os.environ | {"XTRREP_PLUGINS": plugins}
    names = ("test_engines.py", "test_imputation.py", "test_explain.py")
    files = [str(TESTS / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-k", "toy or median or bounds", *files],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    passed = [line.split("::")[1] for line in done.stdout.splitlines() if line.startswith("PASSED")]
    assert sum("[toy" in name or "-toy]" in name for name in passed) >= 10, passed
    assert "test_a_row_without_hits_imputes_nothing[median]" in passed
    assert any(name.startswith("test_sums_are_the_scores_of_retrieval") and "median" in name for name in passed)
    # ENGINES is what the tests of the commands, of determinism and of corruption run through.
    code = (
        "import pathlib; from conftest import ENGINES; from faults.stages import cases\n"
        "print([case.name for case in cases(pathlib.Path())], ENGINES['toy'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS, capture_output=True, text=True, env=environment, timeout=60
    )
    assert "'index toy', 'retrieve toy', 'evaluate toy'" in done.stdout, done.stderr
    assert "('index=toy',)" in done.stdout
