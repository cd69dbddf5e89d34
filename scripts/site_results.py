"""The page of recorded results, made from each `result.json` while mkdocs builds the site, and the recorded figures.

Pages link to figures below `results/recorded/`, so that they are seen in the repository too. The site gets the files
that are linked, and the links lead to them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from xtrrep.experiments.result import FILE, Result, read
from xtrrep.experiments.tables import tables

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "results" / "recorded"
PAGE = "recorded.md"
LINK = re.compile(r"\]\((?:\.\./)+results/recorded/([^)\s]+\.svg)\)")


def on_files(files: Any, config: Any) -> Any:
    """mkdocs' hook: adds the page, and every recorded figure that a page shows."""
    from mkdocs.structure.files import File

    shown = {name for file in files.documentation_pages() for name in LINK.findall(file.content_string)}
    for name in sorted(shown):
        files.append(File.generated(config, f"recorded/{name}", abs_src_path=str(RECORDED / name)))
    files.append(File.generated(config, PAGE, content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs' hook: links to recorded figures lead to those of the site."""
    up = "../" * page.file.src_uri.count("/")
    return LINK.sub(rf"]({up}recorded/\1)", markdown)


def page() -> str:
    """Every recorded table cell or claim with its verdict and runs, under the command that makes it."""
    lines = [
        "# Every recorded value",
        "",
        "This page is made from the files `result.json` below `results/recorded/`. Each table stands under the command "
        "that makes it again. [What the recorded runs say](results.md) explains what can be concluded.",
    ]
    for path in sorted(RECORDED.glob(f"*/*/{FILE}")):
        result = read(path.parent)
        lines += ["", f"## {path.parent.name}", "", "```text", command(result), "```", "", made(result), ""]
        for table in tables(result).values():
            lines += [table.markdown(), ""]
    return "\n".join(lines) + "\n"


def command(result: Result) -> str:
    """What was typed: the verb, the name, and whatever is not a default."""
    words = ["xtrrep", "claims"] if result.kind == "claims" else ["xtrrep", "reproduce", result.name]
    words += [f"data={result.data}"] if result.data else []
    words += [text for text in result.overrides if text != f"data={result.data}"]
    words += [f"scale={result.scale}"] if result.scale != "demo" else []
    words += [part for name in result.only for part in ("--only", name)]
    words += ["--seeds", ",".join(map(str, result.seeds))] if result.seeds else []
    return " ".join(words)


def made(result: Result) -> str:
    known = result.provenance
    parts = [f"commit {known['commit']}" if "commit" in known else "", known.get("date", ""), known.get("hardware", "")]
    return f"Made with {', '.join(str(part) for part in parts if part)}." if any(parts) else ""
