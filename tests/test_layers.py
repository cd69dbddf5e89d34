"""Imports go one way, and the README's file tree is what is on disk."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xtrrep"

# DESIGN: a module imports only from what stands to its left. The leading `console` is below the two it shares a place
# with there, since both raise its errors; `vectors` (stores of vectors made elsewhere) follows `encode`; `explain`
# (one query and document, drawn with what `report` has) follows `report`; `export`, `preflight` (plans and checks for
# the command line) and `api` (what the command line is written on) stand before `cli`. `hashes` and `locks` carry
# `artifacts`; `verify` and `gc`, over all artifacts, need no more than the folders that `config` names.
ORDER = [
    "console",
    "registry",
    "hashes",
    "locks",
    "yamlfile",
    "artifacts",
    "ranks",
    "config",
    "verify",
    "gc",
    "scoring",
    "data",
    "model",
    "train",
    "encode",
    "vectors",
    "index",
    "runfile",
    "retrieve",
    "latency",
    "evaluate",
    "significance",
    "report",
    "explain",
    "analyze",
    "meaning",
    "stages",
    "pipeline",
    "query",
    "export",
    "preflight",
    "api",
    "study",
    "grid",
    "cost",
    "calibrate",
    "experiments",
    "reproduce",
    "claims",
    "sweep",
    "cli",
]


def imported_modules(path: Path) -> set[str]:
    """First-level names below `xtrrep` that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("xtrrep.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "xtrrep":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("xtrrep."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative imports hide the layer; write xtrrep.…")
    return found


def modules() -> list[tuple[str, Path]]:
    files = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__"):
            files.append((parts[0], path))
    return files


def test_every_module_has_a_place() -> None:
    assert {name for name, _ in modules()} <= set(ORDER)
    assert len(modules()) > 25


def test_imports_go_left() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for name, path in modules()
        for other in imported_modules(path)
        if other != name and ORDER.index(other) >= ORDER.index(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_layer_check_sees_a_wrong_import(tmp_path: Path) -> None:
    path = tmp_path / "encode.py"
    path.write_text("def f():\n    from xtrrep.pipeline import plan\n")
    assert imported_modules(path) == {"pipeline"}


def readme_tree() -> set[str]:
    """Paths of the README's file tree: two spaces a level, a folder ends in `/`, then a phrase."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"```text\nxtrrep/\n(.*?)```", text, re.DOTALL)
    assert block, "the README has no file tree"
    paths, stack = set(), ["xtrrep"]
    for line in ("xtrrep/\n" + block.group(1)).splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        stack = [*stack[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            paths.add("/".join(stack))
    return paths


def test_readme_tree_is_the_disk() -> None:
    listed = {path for path in readme_tree() if path.endswith(".py")}
    on_disk = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    packages = {name for name in on_disk if name.endswith("__init__.py")}
    assert listed - on_disk == set(), "in the README but not on disk"
    assert on_disk - listed - packages == set(), "on disk but not in the README"


def test_readme_names_every_top_level_place() -> None:
    text = (ROOT / "README.md").read_text()
    for name in ("configs/", "scripts/", "results/", "tests/", "docs/"):
        assert (ROOT / name).is_dir()
        assert name in text
