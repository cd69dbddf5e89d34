"""A sample of the fuzzing that `make test-fuzz` does in full, what shows that it sees, and the texts of all errors."""

import ast
import importlib
import os
import pkgutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import readers
from fuzz.broken import BROKEN
from fuzz.cover import targets
from fuzz.harness import FAILED, REFUSED, Fault, Reader, agree, check_message, run, run_apart, table
from hypothesis import strategies as st

import xtrrep
from xtrrep import cli
from xtrrep.console import LONGEST, DataError, UsageError, XtrrepError, fail

SAMPLE = {"overrides": 3, "texts encoded": 8, "folder to measures": 4, "imported vectors": 20, "evaluation": 20}
BY_STAGE = {reader.stage: reader for reader in readers()}
SEES = {  # the reader that should notice each break
    "last line lost": "triples",
    "line numbers from zero": "BEIR folder",
    "bad bytes replaced": "LoTTE folder",
    "NUL in ids let through": "BEIR folder",
    "run ids unchecked": "run file",
    "texts stripped": "BEIR folder",
}


def test_the_full_run_is_of_ten_thousand_inputs() -> None:
    assert sum(reader.inputs for reader in readers()) >= 10_000
    assert len(BY_STAGE) == len(readers())


@pytest.mark.parametrize("stage", BY_STAGE)
def test_a_sample_survives(stage: str) -> None:
    tally = run(BY_STAGE[stage], SAMPLE.get(stage, 30), seed=20261120, shrink=False)
    assert tally.failure is None, tally.failure
    assert tally.total(FAILED) == 0


@pytest.mark.parametrize("name", sorted(set(BROKEN) - {"nothing"}))
def test_a_reader_broken_on_purpose_is_seen(name: str) -> None:
    with BROKEN[name]():
        tally = run(BY_STAGE[SEES[name]], 500, seed=1, shrink=False)
    assert tally.total(FAILED) == 1
    assert tally.failure is not None
    assert " 1 " in table([tally])


class OddCase:
    kind = "odd"


def _killed(case: OddCase, folder: Path) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def _slow(case: OddCase, folder: Path) -> bool:
    signal.setitimer(signal.ITIMER_REAL, 0.01)  # as if the time were over
    signal.pause()
    return True


def _wrong_kind_of_error(case: OddCase, folder: Path) -> bool:
    return bool(agree(None, DataError(f"{folder}/a: no line", hint="x"), Fault("a", 3), folder))


@pytest.mark.parametrize("check", [_killed, _slow, _wrong_kind_of_error])
def test_a_dead_process_a_hang_and_a_missing_line_are_failures(check: object) -> None:
    reader = Reader("odd", 3, st.builds(OddCase), check)  # type: ignore[arg-type]
    tally = run_apart(reader, 3, seed=1)
    assert tally.total(FAILED) == 1
    assert tally.failure


def test_every_file_reader_is_searched_by_coverage_from_inputs_that_pass(tmp_path: Path) -> None:
    for number, (name, (check, inputs)) in enumerate(targets().items()):
        for at, raw in enumerate(inputs):
            folder = tmp_path / f"{number}-{at}"
            folder.mkdir()
            assert check(raw, folder), f"{name}: what the search starts from is refused"


def test_what_the_search_found_is_found_no_more(tmp_path: Path) -> None:
    """A type that numpy hands to Python's parser, a number that no float is equal to, a depth that is none."""
    found = [
        ("vectors.npy", b"'<f4'", b"',f4'", False),
        ("definition.yaml", b"mean: 2", b"mean: 2" + b"7" * 30, True),
        ("definition.yaml", b"nDCG@10", b"nDCG@0.1", False),
    ]
    for number, (name, good, bad, accepted) in enumerate(found):
        check, (raw, *_) = targets()[name]
        folder = tmp_path / str(number)
        folder.mkdir()
        assert good in raw
        assert check(raw.replace(good, bad), folder) is accepted


# --- the texts of errors ----------------------------------------------------------------------------------------------


def _subclasses(kind: type[XtrrepError]) -> Iterator[type[XtrrepError]]:
    for found in kind.__subclasses__():
        yield found
        yield from _subclasses(found)


def _every_kind() -> list[type[XtrrepError]]:
    for module in pkgutil.walk_packages(xtrrep.__path__, "xtrrep."):
        if "__main__" not in module.name and not module.name.endswith((".scann", ".plaid", ".warp", ".voyager")):
            importlib.import_module(module.name)
    return [XtrrepError, *_subclasses(XtrrepError)]


def test_every_kind_of_error_is_one_line_a_hint_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = _every_kind()
    assert {UsageError, DataError} <= set(kinds)
    for kind in kinds:

        def stand_in(words: list[str], kind: type[XtrrepError] = kind, **rest: bool) -> int:
            raise kind("what\nand where \x1b[31m", hint="do\nthat")

        monkeypatch.setattr(cli, "app", stand_in)
        monkeypatch.setattr("sys.argv", ["xtrrep"])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert left.value.code == kind.exit_code in (2, 3)
        assert said.out == ""
        assert said.err.splitlines() == [r"error: what\nand where \x1b[31m", r"hint: do\nthat"]
        with pytest.raises(TypeError, match="hint"):
            kind("what")  # type: ignore[call-arg]


def test_a_message_with_a_megabyte_of_data_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    error = DataError(f"corpus.jsonl:7: the id {'x' * 1_000_000!r} was used before", hint="another id")
    assert len(str(error)) < LONGEST + 20
    assert str(error).startswith("corpus.jsonl:7:")
    assert str(error).endswith("was used before")
    assert fail(error) == 3
    check_message(error, "corpus.jsonl:7:")


ROOT = Path(xtrrep.__file__).parent
EMPTY_WORDS = {"error", "failed", "invalid", "bad", "wrong", "oops", "unknown"}


def _raised() -> list[tuple[str, ast.expr | None, dict[str | None, ast.expr]]]:
    """(place, message, the other arguments by name) wherever the sources make an error for people."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.IfExp):
                names = {part.id for part in ast.walk(node.func) if isinstance(part, ast.Name)}
                if names & {"DataError", "UsageError", "XtrrepError"}:
                    message = node.args[0] if node.args else None
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    found.append((place, message, {word.arg: word.value for word in node.keywords}))
    return found


def _words(message: ast.expr | None) -> list[str] | None:
    """The words that a message has whatever is put into it; None where it is made elsewhere."""
    if isinstance(message, ast.Subscript):  # a text cut to a length
        message = message.value
    if isinstance(message, ast.Constant):
        return str(message.value).split()
    if isinstance(message, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in message.values]
        return "".join(parts).split()
    return None


def test_every_error_in_the_sources_says_what_where_and_what_to_do() -> None:
    raised = _raised()
    assert len(raised) > 300
    made_elsewhere = []
    for place, message, others in raised:
        words = _words(message)
        assert list(others) == ["hint"], f"{place}: say in a hint what to do"
        assert _words(others["hint"]) != [], f"{place}: an empty hint"
        if words is None:
            made_elsewhere.append(place.partition(":")[0])
            continue
        said = {word.strip(".,:!").lower() for word in words} - EMPTY_WORDS
        put_in = sum(word.count("…") for word in words)
        assert put_in >= 2 or (len(words) >= 2 and said - {"…"}), f"{place}: {' '.join(words)!r} says too little"
        assert not words[-1].endswith((".", "!")), f"{place}: a message is no sentence with a full stop"
    # What hashes.py found, Typer's, Hydra's and OmegaConf's messages, a definition's faults, why no setting ran, and
    # what a run lacks.
    places = ["artifacts/__init__.py", "cli/__init__.py", "config/checks.py", "experiments/reading.py"]
    assert sorted(made_elsewhere) == [*places, "experiments/recommend.py", "plan/preflight.py"]


def test_the_walk_over_errors_sees_a_bare_one() -> None:
    call = ast.parse('DataError("error")').body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert _words(call.value.args[0]) == ["error"]


def test_refused_is_counted_apart_from_accepted() -> None:
    tally = run(BY_STAGE["run file"], 30, seed=1, shrink=False)
    assert tally.total(REFUSED) > 0
