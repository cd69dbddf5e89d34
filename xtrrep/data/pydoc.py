"""`pydoc`, the embedded collection: docstrings of installed scientific packages, parsed with `ast`, nothing imported.

The query is a docstring's summary, the relevant passage is its body. The held-out packages come first wherever
duplicates are dropped, so that training never sees a summary or a body of the test set.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from xtrrep.artifacts import digest
from xtrrep.config import Data
from xtrrep.console import DataError, machine_error, progress, suggest
from xtrrep.data import Collection, sources
from xtrrep.data.folder import content_of_some, read_folder, write_beir

SCHEMA = 1  # raise when the same sources would give other pairs
HELD_OUT = {"networkx": "networkx", "numpy": "numpy"}  # distribution -> the package folder it installs
TRAINING = {
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sympy": "sympy",
    "torch": "torch",
}
PACKAGES = {
    "test": HELD_OUT,
    "hard": HELD_OUT | TRAINING,
    "train": HELD_OUT | TRAINING,  # the held-out ones are parsed to drop what repeats them
}
SUMMARY_WORDS = range(5, 26)
BODY_WORDS = 40
TEST_FOLDERS = {"tests", "test", "testing", "_testing"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Pair:
    """A summary and the body it belongs to."""

    id: str
    held_out: bool
    summary: str
    body: str


def pairs(split: str) -> list[Pair]:
    """All pairs of the packages a split needs, without later duplicates of a summary or a body, in a fixed order."""
    found: list[Pair] = []
    ids: dict[str, int] = {}
    summaries: set[str] = set()
    bodies: set[str] = set()
    packages = _packages(split)
    with progress(len(packages), "read docstrings", "package") as bar:
        for name in packages:
            for id, summary, body in _package_docstrings(name):
                folded = summary.casefold()
                if folded in summaries or body in bodies:
                    continue
                summaries.add(folded)
                bodies.add(body)
                ids[id] = ids.get(id, 0) + 1
                unique = id if ids[id] == 1 else f"{id}#{ids[id]}"
                found.append(Pair(unique, name in HELD_OUT, summary, body))
            bar.update(1)
    return found


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """Summary (whitespace collapsed) and body, or None where either has too few or too many words."""
    summary, *rest = re.split(r"\n[ \t]*\n", docstring, maxsplit=1)
    words = summary.split()
    body = "".join(rest)
    if len(words) not in SUMMARY_WORDS or len(body.split()) < BODY_WORDS:
        return None
    return " ".join(words), body.strip("\n")


def _packages(split: str | None) -> dict[str, str]:
    if split not in PACKAGES:
        raise DataError(f"pydoc has no split {split!r}", hint=suggest(str(split), PACKAGES))
    return PACKAGES[split]


def _distribution(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise DataError(f"pydoc reads {name}, which is not installed", hint=f"pip install {name}") from None


def _sources(name: str) -> list[tuple[PurePosixPath, str]]:
    """(path, recorded hash) of the modules of an installed package, sorted, tests left out."""
    package = (HELD_OUT | TRAINING)[name]
    files = _distribution(name).files or []
    modules = sorted(
        (PurePosixPath(file), file.hash.value if file.hash else "")
        for file in files
        if file.suffix == ".py"
        and file.parts[0] == package
        and file.name != "conftest.py"
        and not TEST_FOLDERS & set(file.parts[:-1])
    )
    if not modules:
        raise DataError(
            f"{name} is installed without a list of its files", hint=f"pip install --force-reinstall {name}"
        )
    return modules


def _package_docstrings(name: str) -> Iterator[tuple[str, str, str]]:
    """(id, summary, body) in file order, then source order."""
    installed = _distribution(name)
    for path, _ in _sources(name):
        tree = _parse(Path(str(installed.locate_file(path))))
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for qualified, node in _public(tree.body if tree else [], ""):
            parts = split_docstring(ast.get_docstring(node) or "")
            if parts:
                yield f"{module}:{qualified}", *parts


def _parse(path: Path) -> ast.Module | None:
    """The syntax tree, or None for a file that this Python cannot parse (templates, newer syntax)."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise machine_error(error) or DataError(
            f"{path} is listed as installed but cannot be read ({error})",
            hint="install its package again: pip install --force-reinstall NAME",
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return None


def _public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
    """Public functions and classes, and the methods of public classes, with their qualified names."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _public(node.body, prefix)
        elif isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}{node.name}.")


def _content(split: str | None, roles: str) -> str:
    listing = [
        [name, _distribution(name).version, [[str(p), h] for p, h in _sources(name)]] for name in _packages(split)
    ]
    return f"pydoc:{roles}:{digest([SCHEMA, listing])}"


@sources.register("pydoc", "docstring summaries and bodies of installed packages: no download, about 9,000 pairs")
class Pydoc:
    """`test`: networkx and numpy. `hard`: the same queries among all packages. `train`: the other packages."""

    @staticmethod
    def content(cfg: Data) -> dict[str, str]:
        queries = _content("train" if cfg.split == "train" else "test", "queries")
        return {
            "corpus": _content(cfg.split, f"{cfg.split}-corpus"),
            "queries": content_of_some(queries, cfg.max_queries),
            "qrels": queries.replace("queries", "qrels"),
        }

    @staticmethod
    def prepare(cfg: Data, out: Path) -> None:
        split = cfg.split or ""
        found = pairs(split)
        asked = [pair for pair in found if pair.held_out is (split != "train")]
        corpus = found if split == "hard" else asked
        write_beir(
            out,
            split,
            documents=((pair.id, "", pair.body) for pair in corpus),
            queries=((f"q:{pair.id}", pair.summary) for pair in asked),
            qrels=((f"q:{pair.id}", pair.id, 1) for pair in asked),
        )

    @staticmethod
    def open(cfg: Data, out: Path) -> Collection:
        return read_folder(cfg.id, out, cfg.split, cfg.max_queries)
