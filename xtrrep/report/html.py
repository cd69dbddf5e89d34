"""The static report: every finished analysis, and what the project recorded, on one page with files beside it.

    index.html   tables, figures, run ids, environment
    files/       the CSVs, LaTeX tables, Markdown and figures it links, named by their content

A table on the page is its CSV, read back: of the Markdown beside a CSV only the title and the notes are taken, and no
note that gives a measured number of its own, so that nothing is shown that no linked CSV holds. Files are named by
content and `index.html` is replaced last, so a reader sees the old report or the new one, never half of each.
"""

from __future__ import annotations

import csv
import hashlib
import html
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xtrrep import artifacts
from xtrrep.console import DataError, UsageError, say
from xtrrep.latency import processor
from xtrrep.report.page import page
from xtrrep.report.table import MISSING, Table

LIMIT_BYTES = 5_000_000  # of the whole folder; what does not fit is named and left out
FRAME_BYTES = 50_000  # kept back for what stands around the sections
MAX_ROWS = 200  # a longer table is linked, not shown
PACKAGES = (
    "xtrrep",
    "torch",
    "sentence-transformers",
    "transformers",
    "numpy",
    "scann",
    "fast-plaid",
    "xtr-warp-rs",
    "bm25s",
    "ir-measures",
)

# As Python writes them, so that a fingerprint such as 12345678e901 is none.
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[-+]\d+)?")
MEASURE = re.compile(r"[A-Za-z]+@\d+")
MEASURED = re.compile(r"\d\.\d")  # a decimal fraction in a note: somebody's result, or a version
OURS = re.compile(r"\.?.*-[0-9a-f]{8}\.(csv|md|tex|svg|png)(\.tmp)?")

STYLE = """
nav ul{padding-left:1.1rem}details{margin:.5rem 0}code{font-size:.875em}
section{border-top:1px solid var(--line)}
"""


@dataclass(frozen=True)
class Section:
    """One analysis, or one recorded result: what to say of it and the files it needs, by the name they get."""

    name: str
    origin: str  # where it was read, without the machine's own folders
    ids: Mapping[str, str]  # what was run: fingerprints by cell
    body: str
    files: Mapping[str, bytes]
    figures: Mapping[str, bytes] = field(default_factory=dict)

    def size(self, *, figures: bool) -> int:
        ids = sum(len(name) + len(value) + 40 for name, value in self.ids.items())
        shown = sum(map(len, self.figures.values())) if figures else 0
        return len(self.body.encode()) + ids + sum(map(len, self.files.values())) + shown


def write(results: Path, recorded: Path | None, out: Path) -> Path:
    """Make or renew the report folder `out` from the artifacts below `results` and from `recorded`. Returns its page.

    Raises DataError where no analysis is finished, and UsageError where `out` holds something else than a report.
    """
    _check_ours(out)
    sections = _analyses(results)
    if not sections:
        raise DataError(f"no analysis is finished under {results}", hint="xtrrep analyze")
    if recorded is not None and recorded.is_dir():
        sections += _recorded(recorded)
    files: dict[str, bytes] = {}
    shown: list[str] = []
    left_out: list[Section] = []
    room = LIMIT_BYTES - FRAME_BYTES
    for section in sections:
        figures = section.size(figures=True) <= room
        if not figures and section.size(figures=False) > room:
            left_out.append(section)
            continue
        room -= section.size(figures=figures)
        files |= {**section.files, **(section.figures if figures else {})}
        shown.append(_section_html(section, len(shown), figures=figures))
    text = _index(shown, [s for s in sections if s not in left_out], left_out)
    (out / "files").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _write(out / "files" / name, data)
    _write(out / "index.html", text.encode(errors="replace"))
    for path in (out / "files").iterdir():
        if path.name not in files and OURS.fullmatch(path.name):
            path.unlink()
    return out / "index.html"


def _write(path: Path, data: bytes) -> None:
    artifacts.write_atomic(path, lambda file: file.write(data))


def _check_ours(out: Path) -> None:
    """Refuse to write into a folder that somebody else filled."""
    if not out.exists():
        return
    hint = "--out FOLDER names one that is new, empty or a report"
    if not out.is_dir():
        raise UsageError(f"{out} is a file", hint=hint)
    other = sorted({path.name for path in out.iterdir()} - {"index.html", "files", ".index.html.tmp"})
    if other:
        raise UsageError(f"{out} holds something else than a report: {other[0]}", hint=hint)
    index = out / "index.html"
    if index.exists() and '<meta name="generator" content="xtrrep">' not in index.read_text(errors="replace"):
        raise UsageError(f"{index} is not one of our pages", hint=hint)


# --- what there is -------------------------------------------------------------------------------------------------


def _analyses(results: Path) -> list[Section]:
    """Finished analyses, newest first; one whose files are not as they were written is named and left out."""
    sections = []
    for folder, manifest in reversed(artifacts.complete(results)):
        if manifest["stage"] != "analyze":
            continue
        try:
            artifacts.check(folder, contents=True)
        except DataError as error:
            say(f"broken: {error}")
            continue
        ids = {"analyze": manifest["fingerprint"], **manifest["upstream"]}
        sections.append(
            _section(
                manifest["label"],
                f"{manifest['stage']}/{folder.name}, made {manifest['made']}",
                ids,
                # units.csv, a row for each query or document, is for `xtrrep claims`, and no page's worth.
                sorted(path for path in folder.glob("*.csv") if path.name != "units.csv"),
                sorted(folder.glob("*.svg")) or sorted(folder.glob("*.png")),
                bold=True,
            )
        )
    return sections


def _recorded(recorded: Path) -> list[Section]:
    """What the project stands behind: a file of its own at the top, or a folder with its figures."""
    sections = []
    for path in sorted(recorded.glob("*.csv")):
        sections.append(_section(f"recorded: {path.stem}", f"results/recorded/{path.name}", {}, [path], [], bold=False))
    for folder in sorted(path for path in recorded.iterdir() if path.is_dir()):
        tables, figures = sorted(folder.glob("*.csv")), sorted(folder.glob("*.svg"))
        if tables:
            name, origin = f"recorded: {folder.name}", f"results/recorded/{folder.name}/"
            sections.append(_section(name, origin, {}, tables, figures, bold=False))
    for path in sorted(recorded.glob("*.md")):
        if not path.with_suffix(".csv").exists():  # words alone: linked, since no CSV vouches for its numbers
            sections.append(_section(f"recorded: {path.stem}", f"results/recorded/{path.name}", {}, [], [], path))
    return sections


def _section(
    name: str,
    origin: str,
    ids: Mapping[str, str],
    tables: Sequence[Path],
    figures: Sequence[Path],
    text: Path | None = None,
    *,
    bold: bool = False,
) -> Section:
    """`bold` sets the best of each measure in bold, which only means something where all rows share a collection."""
    body: list[str] = []
    files: dict[str, bytes] = {}
    for path in tables:
        table, words = read(path, bold=bold)
        linked = {"CSV, full precision": (path.name, path.read_bytes())}
        if len(table.rows) <= MAX_ROWS:
            linked["LaTeX"] = (f"{path.stem}.tex", table.latex().encode())
            body.append(table.html())
        else:
            body.append(f"<p>{html.escape(table.title)}: {len(table.rows):,} rows, in the CSV.</p>")
        if words is not None:
            linked["as it was written, with all its notes"] = (words.name, words.read_bytes())
        body.append(_links(name, linked, files))
    if text is not None:
        body.append(_links(name, {"as it was written": (text.name, text.read_bytes())}, files))
    drawn = {_named(name, path.name, data): data for path in figures for data in [path.read_bytes()]}
    return Section(name, origin, ids, "\n".join(body), files, drawn)


def _links(section: str, linked: Mapping[str, tuple[str, bytes]], files: dict[str, bytes]) -> str:
    links = []
    for words, (name, data) in linked.items():
        file = _named(section, name, data)
        files[file] = data
        links.append(f'<a href="files/{html.escape(file)}">{html.escape(name)}</a> ({html.escape(words)})')
    return f"<p>{'; '.join(links)}</p>"


def _named(section: str, name: str, data: bytes) -> str:
    """A file's name in the report: readable, and another one for other content."""
    stem, _, kind = f"{section}-{name}".rpartition(".")
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-.")
    return f"{slug}-{hashlib.sha256(data).hexdigest()[:8]}.{kind}"


def read(path: Path, *, bold: bool = False) -> tuple[Table, Path | None]:
    """A table from its CSV, and the Markdown file beside it if there is one.

    Title and notes are the Markdown's where its columns are the CSV's; a note with a number of its own stays there.
    Raises DataError naming file and line where the CSV is empty or a row has another length than its header.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    if not lines:
        raise DataError(f"{path} is empty")
    columns, texts = lines[0], lines[1:]
    for number, row in enumerate(texts, start=2):
        if len(row) != len(columns):
            raise DataError(f"{path}:{number}: {len(row)} values under {len(columns)} columns")
    parsed = [_values(name, [row[i] for row in texts]) for i, name in enumerate(columns)]
    rows: list[list[object]] = [[column[r] for column in parsed] for r in range(len(texts))]
    words = path.with_suffix(".md")
    said = _conventions(words.read_text(encoding="utf-8"), columns) if words.exists() else None
    title, notes = said or (path.stem, [])
    higher = [name for name in columns if MEASURE.fullmatch(name)] if bold else []
    return Table(title, columns, rows, notes, higher=higher), words if words.exists() else None


def _values(name: str, texts: Sequence[str]) -> list[object]:
    """A column's values: numbers where all of it is numbers and it does not name runs, None where nothing stands."""
    given = [text for text in texts if text not in ("", MISSING)]
    if name == "run" or not all(map(NUMBER.fullmatch, given)):
        return [None if text in ("", MISSING) else text for text in texts]
    return [
        None if text in ("", MISSING) else int(text) if text.lstrip("-").isdigit() else float(text) for text in texts
    ]


def _conventions(markdown: str, columns: Sequence[str]) -> tuple[str, list[str]] | None:
    """Title and notes of the first table, if that has these columns, as Table.markdown() writes them."""
    first = re.match(r"### (?P<title>.*)\n\n(?P<head>\|.*\|)\n(\|.*\n)*(?P<notes>(\n?- .*\n)*)", markdown)
    if first is None:
        return None
    head = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", first["head"])[1:-1]]
    if head != list(columns):
        return None
    notes = [line[2:] for line in first["notes"].splitlines() if line]
    return first["title"], [note for note in notes if not MEASURED.search(note)]


# --- the page ------------------------------------------------------------------------------------------------------


def _section_html(section: Section, number: int, *, figures: bool) -> str:
    lines = [
        f'<section id="s{number}" aria-labelledby="h{number}">',
        f'<h2 id="h{number}">{html.escape(section.name)}</h2>',
        f'<p class="soft">{html.escape(section.origin)}</p>',
        section.body,
    ]
    for file in section.figures if figures else ():
        alt = f"{section.name}: a figure of the table above"
        lines.append(f'<figure><img src="files/{html.escape(file)}" alt="{html.escape(alt)}" loading="lazy"></figure>')
    if section.figures and not figures:
        lines.append('<p class="soft">Its figures are left out, for the size of this report.</p>')
    if section.ids:
        ids = "".join(f"<li>{html.escape(k)}: <code>{html.escape(v)}</code></li>" for k, v in section.ids.items())
        lines.append(f"<details><summary>Run ids</summary><ul>{ids}</ul></details>")
    return "\n".join([*lines, "</section>"])


def _index(shown: Sequence[str], sections: Sequence[Section], left_out: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#s{i}">{html.escape(s.name)}</a></li>' for i, s in enumerate(sections))
    absent = "".join(f"<li>{html.escape(s.name)}: {html.escape(s.origin)}</li>" for s in left_out)
    body = [
        "<p>Every result below is in the CSV that stands linked under its table, rounded here. Bold: the best of its "
        "column, which by itself says nothing about significance.</p>",
        f'<nav aria-label="Contents"><ul>{links}<li><a href="#environment">Environment</a></li></ul></nav>',
        *shown,
        f"<section><h2>Left out, for the size of this report</h2><ul>{absent}</ul></section>" if absent else "",
        '<section id="environment"><h2>Environment</h2>',
        _environment().html(),
        "</section>",
    ]
    return page("xtrrep report", "\n".join(body), STYLE)


def _environment() -> Table:
    """Where the page was made; a manifest says what an analysis was made on."""
    rows: list[list[object]] = [["processor", processor()], ["system", platform.platform()]]
    rows.append(["python", platform.python_version()])
    for name in PACKAGES:
        try:
            rows.append([name, version(name)])
        except PackageNotFoundError:
            rows.append([name, None])
    return Table("Where this page was made", ["what", "version"], rows)
