"""Imports go one way, and the README names every folder with what its docstring says it is."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xtrrep"

# A folder imports only from what stands before it. `report` draws tables, figures and pages for everyone. Two of its
# modules put a whole report together: they read experiments, and so stand behind them.
ORDER = [
    "console",
    "config",
    "artifacts",
    "report",
    "data",
    "model",
    "train",
    "store",
    "measure",
    "retrieval",
    "pipeline",
    "plan",
    "api",
    "experiments",
    "report.sections",
    "report.html",
    "explore",
    "cli",
]


def place(module: str) -> str:
    """The entry of ORDER that a module below `xtrrep` belongs to, such as "report.html" or "retrieval"."""
    parts = module.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in ORDER else parts[0]


def imported_modules(path: Path) -> set[str]:
    """Modules below `xtrrep` that a file imports anywhere, functions included, by their place."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("xtrrep.") for alias in node.names if alias.name.startswith("xtrrep.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = node.module.removeprefix("xtrrep").removeprefix(".")
            if node.module == "xtrrep" or node.module.startswith("xtrrep."):
                found |= {f"{inside}.{alias.name}".removeprefix(".") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative imports hide the layer; write xtrrep.…")
    return {place(module) for module in found}


def modules() -> list[tuple[str, Path]]:
    """(place, file) of every module but the package's own __init__ and __main__."""
    files = sorted(PACKAGE.rglob("*.py"))
    dotted = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in files]
    named = zip(dotted, files, strict=True)
    return [(place(name), path) for name, path in named if name not in ("__init__", "__main__")]


def test_every_module_has_a_place() -> None:
    assert {name for name, _ in modules()} == set(ORDER)
    assert len(modules()) > 25


def test_imports_go_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for name, path in modules()
        for other in imported_modules(path)
        if other != name and ORDER.index(other) >= ORDER.index(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_layer_check_sees_a_wrong_import(tmp_path: Path) -> None:
    path = tmp_path / "encode.py"
    path.write_text("def f():\n    from xtrrep.pipeline import plan\n    from xtrrep.report import html\n")
    assert imported_modules(path) == {"pipeline", "report.html"}


def test_the_readme_names_every_folder_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"```text\nxtrrep/\n(.*?)```", text, re.DOTALL)
    assert block, "the README has no file tree"
    listed = {line.split()[0].rstrip("/") for line in block.group(1).splitlines()}
    on_disk = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert listed == on_disk
    assert len(on_disk) <= 16


def test_every_folder_says_what_it_is() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_readme_names_every_top_level_place() -> None:
    text = (ROOT / "README.md").read_text()
    for name in ("configs/", "scripts/", "results/", "tests/", "docs/", "examples/"):
        assert name in text
