"""What a hint says can be typed: the keys, groups, options and commands in the hints of the sources exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from xtrrep import config, console
from xtrrep.cli import app

PACKAGE = Path(config.__file__).parents[1]
COMMAND = typer.main.get_command(app)
VERBS = COMMAND.commands  # type: ignore[attr-defined]
OPTIONS = {name for verb in VERBS.values() for item in verb.params for name in item.opts} | {"--help"}
KEYS = {key for engine in config.options("index") for key in config.flat(config.compose([f"index={engine}"]))}
KEYS |= {"data.parts", "index.engine"}
OF_OTHER_PROGRAMS = {"--force-reinstall", "--no-deps", "--head", "--repo-type"}  # of pip, ray and hf
# What stands in a key's place in an f-string, and what it stands for. A new one needs a line here.
STANDS_FOR = {
    ("checks.py", "name"): ["train", "distill"],
    ("checks.py", "key"): ["train.steps", "data.measures", "retrieve.top_k"],
    ("composition.py", "key"): [],  # groups
    ("streamed.py", "key"): ["train.max_bad_rows", "distill.max_bad_rows"],
    ("hub.py", "key"): ["model.revision", "train.revision"],
    ("identity.py", "key"): ["train.data", "distill.data"],
    ("encoder.py", "name"): ["model.n_doc", "model.n_query", "data.n_doc", "data.n_query", "train.n_doc"],
    ("trainer.py", "name"): ["train", "distill"],
    ("memory.py", "name"): ["train", "distill"],
    ("console.py", "variable"): [],  # of the environment
    ("environment.py", "name"): [],
    ("api.py", "name"): [],  # parameters of Python functions
    ("imported.py", "argument"): [],
}
# Names before an equals sign that are parameters of the Python API or of other programs' code.
PYTHON = {"task", "normalize", "delete", "scoring", "imputation", "device", "root", "threads", "top_k"}


def _placed(piece: ast.expr) -> str:
    return "{" + ast.unparse(piece.value) + "}" if isinstance(piece, ast.FormattedValue) else ""


def rendered(node: ast.expr) -> Iterator[str]:
    """The texts within an expression, `{EXPRESSION}` where an f-string puts a value in."""
    inner: set[int] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            inner |= {id(piece) for piece in ast.walk(part)} - {id(part)}
            yield "".join(
                str(piece.value) if isinstance(piece, ast.Constant) else _placed(piece) for piece in part.values
            )
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in inner:
            yield part.value


def hints() -> Iterator[tuple[str, str]]:
    """(file:line, text) of everything that is given as a hint, named constants and variables included."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        given = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg in HINTS]
        names = {node.id for value in given for node in ast.walk(value) if isinstance(node, ast.Name)} | {"hint"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in names for t in node.targets):
                given.append(node.value)
        for value in given:
            for text in rendered(value):
                yield f"{path.relative_to(PACKAGE)}:{value.lineno}", text


HINTS = ("hint", "listing", "install")
EVERY = list(dict.fromkeys(hints()))


COMMANDS = re.compile(r"(?:^|(?<=[\s(])|(`))xtrrep ([a-z]+)([^`;,|)]*)")
PROSE = re.compile(r" (?:leaves|makes|uses|alone|--out FILE \w+ one)\b")  # a sentence goes on after the command


def faults(where: str, text: str) -> Iterator[str]:
    """What of a hint cannot be typed as it is printed."""
    file = Path(where.partition(":")[0]).name
    for found in re.finditer(r"(?<![\w.{}])\{(\w+)\}(\.\w+)?=", text):
        if (file, found[1]) not in STANDS_FOR:
            yield f"{found[0]} has a key that this test does not know"
        for name in STANDS_FOR.get((file, found[1]), []):
            if name + (found[2] or "") not in KEYS:
                yield f"{name}{found[2] or ''} is no key"
    for found in re.finditer(r"(?<![\w.{}/-])([a-z_]+(?:\.\w+)*)=(?!=)", text):
        name = found[1]
        if name not in KEYS and name not in config.GROUPS and name not in PYTHON:
            yield f"{name} is no key"
    for found in re.finditer(r"(?<![\w-])(--[a-z][\w-]*)", text):
        if found[1] not in OPTIONS | OF_OTHER_PROGRAMS:
            yield f"{found[1]} is no option"
    for found in COMMANDS.finditer(text):
        verb, rest, alone = found[2], found[3], found[1] == "`" or text.startswith(found[0])
        if verb not in VERBS:
            yield f"{verb} is no command"
        elif alone and not PROSE.match(rest):
            yield from unparsed(verb, re.sub(r"\{[^}]*\}", "X", rest))
    for found in re.finditer(r"(?:rm -r|rm|mkdir -p) \{([^}]*)\}", text):
        if not found[1].startswith("typed("):
            yield f"{found[0]} breaks at a space in the path"


def unparsed(verb: str, rest: str) -> Iterator[str]:
    """Why the words after a command's name cannot be parsed by it."""
    try:
        VERBS[verb].make_context(verb, shlex.split(rest), resilient_parsing=False)
    except Exception as error:
        if "Missing " not in str(error):
            yield f"xtrrep {verb}{rest}: {error}"


@pytest.mark.parametrize(("where", "text"), EVERY, ids=[where for where, _ in EVERY])
def test_a_hint_can_be_typed(where: str, text: str) -> None:
    assert not list(faults(where, text)), text


def test_the_check_sees_hints_and_faults() -> None:
    assert len(EVERY) > 250
    assert len(VERBS) > 15
    for text in (
        "n_doc=128 is the most",
        "model.n_docs=128",
        "{name}.n_doc=3",
        "--indx exact",
        "xtrrep evl",
        "`xtrrep eval --runn x`",
        "rm -r {folder} and run again",
        "a smaller eval_data, or eval_data=null",
    ):
        assert list(faults("x.py:1", text)), text
    for text in ("`xtrrep eval --run x`", "retrieve.k_prime=1000", "--index exact", "data=ID of a collection"):
        assert not list(faults("x.py:1", text)), text


def test_a_path_in_a_hint_is_one_word_of_a_shell() -> None:
    for path in ("/a b/c", "/it's", "/$HOME", "/plain", "/ü/x;y"):
        assert shlex.split(f"rm -r {console.typed(path)}") == ["rm", "-r", path]
    assert console.typed(Path("/plain/x-1.y")) == "/plain/x-1.y"
