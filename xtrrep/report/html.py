"""The static report: everything finished, and what the project recorded, on one page with files beside it.

    index.html   findings, agreement with earlier values, then tables, figures, run ids, environment
    files/       the CSVs, LaTeX tables, Markdown, figures and explanations it links, named by their content

Files are named by content and `index.html` is replaced last, so a reader sees the old report or the new one, never half
of each.
"""

from __future__ import annotations

import html
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xtrrep import artifacts
from xtrrep.console import DataError, UsageError
from xtrrep.report.page import page
from xtrrep.report.sections import (
    CELL_SIGNS,
    CLAIM_SIGNS,
    CLAIMS,
    EXPLANATIONS,
    GROUPS,
    REPRODUCTIONS,
    Section,
    collect,
)
from xtrrep.report.table import Table
from xtrrep.retrieval.latency import processor

LIMIT_BYTES = 5_000_000  # of the whole folder; what does not fit is named and left out
FRAME_BYTES = 50_000  # kept back for what stands around the sections
NAMED = 50  # of what is left out
FIGURES = 3  # in the overview
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

OURS = re.compile(r"\.?.*-[0-9a-f]{8}\.(csv|md|tex|json|svg|png|pdf|html)(\.tmp)?")

STYLE = """
nav>ul{columns:18rem;padding-left:1.1rem}nav ul ul,.kinds ul{padding-left:1.1rem;margin:.25rem 0}
nav li li{break-inside:avoid}
details{margin:.5rem 0}summary{cursor:pointer;padding:.15rem 0}code{font-size:.875em}
h3{font-size:1.05rem;margin:2rem 0 .25rem}section section+section{border-top:1px solid var(--line);margin-top:2rem}
.overview th,.overview td{white-space:normal;overflow-wrap:normal;vertical-align:top}
.overview td,.overview th.count{text-align:right}.overview td.word{text-align:left}
@media(max-width:44rem){.drawn img{min-width:44rem}}
@media(max-width:30rem){.overview{font-size:.8rem}.overview th,.overview td{padding:.2rem .25rem}
 .overview thead th{vertical-align:bottom}.overview th.count{writing-mode:vertical-rl}}
"""


@dataclass(frozen=True)
class Shown:
    """A section as the page holds it, its lines in contents and overview included."""

    section: Section
    anchor: str
    html: str
    files: Mapping[str, bytes]

    @property
    def bytes(self) -> int:
        around = (
            self.link()
            + "".join(self.section.findings)
            + _claims_line(self)
            + _reproduction_line(self)
            + _explanation_line(self)
        )
        return len((self.html + around).encode(errors="replace")) + sum(map(len, self.files.values()))

    def link(self) -> str:
        return f'<a href="#{self.anchor}">{html.escape(self.section.name)}</a>'


def write(results: Path, recorded: Path | None, out: Path) -> Path:
    """Make or renew the report folder `out` from the artifacts below `results` and from `recorded`. Returns its page.

    Raises DataError where there is nothing to show, and UsageError where `out` holds something else than a report.
    """
    _check_ours(out)
    sections = collect(results, recorded)
    if not sections:
        raise DataError(
            f"there is nothing to report: no finished result under {results}", hint="make one first: xtrrep analyze"
        )
    shown, left_out = _fitting(sections)
    text = _index(shown, left_out)
    files = {name: data for part in shown for name, data in part.files.items()}
    (out / "files").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _write(out / "files" / name, data)
    _write(out / "index.html", text.encode(errors="replace"))
    for path in (out / "files").iterdir():
        if path.name not in files and OURS.fullmatch(path.name):
            path.unlink()
    return out / "index.html"


def _fitting(sections: Sequence[Section]) -> tuple[list[Shown], list[Section]]:
    """What fits into the limit, in order, without its figures where only that fits; and what does not."""
    shown: list[Shown] = []
    left_out: list[Section] = []
    room = LIMIT_BYTES - FRAME_BYTES
    for section in sections:
        for figures in (True, False):
            part = _part(section, f"s{len(shown)}", figures=figures)
            if part.bytes <= room:
                room -= part.bytes
                shown.append(part)
                break
        else:
            left_out.append(section)
    return shown, left_out


def _part(section: Section, anchor: str, *, figures: bool) -> Shown:
    files = {**section.files, **(section.figure_files if figures else {})}
    return Shown(section, anchor, _section_html(section, anchor, figures=figures), files)


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
    if index.exists() and '<meta name="generator" content="xtrrep">' not in index.read_text(
        encoding="utf-8", errors="replace"
    ):
        raise UsageError(f"{index} is not one of our pages", hint=hint)


# --- the page ------------------------------------------------------------------------------------------------------


def _section_html(section: Section, anchor: str, *, figures: bool) -> str:
    lines = [
        f'<section id="{anchor}" aria-labelledby="{anchor}-name">',
        f'<h3 id="{anchor}-name">{html.escape(section.name)}</h3>',
        f'<p class="soft origin">{html.escape(section.origin)}</p>',
        section.body,
        section.figures if figures else "",
    ]
    if section.figures and not figures:
        lines.append('<p class="soft">Its figures are left out, for the size of this report.</p>')
    if section.ids:
        ids = "".join(f"<li>{html.escape(k)}: <code>{html.escape(v)}</code></li>" for k, v in section.ids.items())
        lines.append(f"<details><summary>Run ids of {html.escape(section.name)}</summary><ul>{ids}</ul></details>")
    return "\n".join([*filter(None, lines), "</section>"])


def _index(shown: Sequence[Shown], left_out: Sequence[Section]) -> str:
    absent = "".join(f"<li>{html.escape(s.name)}: {html.escape(s.origin)}</li>" for s in left_out[:NAMED])
    if len(left_out) > NAMED:
        absent += f"<li>and {len(left_out) - NAMED} more</li>"
    groups = {group: [part for part in shown if part.section.group == group] for group in GROUPS}
    contents = [
        f'<li><a href="#{_slug(group)}">{group}</a><ul>{"".join(f"<li>{part.link()}</li>" for part in parts)}</ul></li>'
        for group, parts in groups.items()
        if parts
    ]
    contents.append('<li><a href="#environment">Environment</a></li>')
    body = [
        "<p>Every result below is in the CSV that stands linked under its table, rounded here. Bold: the best of its "
        "column, which by itself says nothing about significance.</p>",
        _overview(groups),
        f'<nav aria-labelledby="contents"><h2 id="contents">Contents</h2><ul>{"".join(contents)}</ul></nav>',
    ]
    body += _agreement(groups[REPRODUCTIONS])
    for group, parts in groups.items():
        if parts:
            inner = "\n".join(part.html for part in parts)
            body.append(f'<section id="{_slug(group)}"><h2>{group}</h2>\n{inner}\n</section>')
    if absent:
        body.append(f"<section><h2>Left out, for the size of this report</h2><ul>{absent}</ul></section>")
    body += ['<section id="environment"><h2>Environment</h2>', _environment().html(), "</section>"]
    return page("xtrrep report", "\n".join(body), STYLE)


def _slug(group: str) -> str:
    return group.lower().replace(" ", "-")


# --- the overview --------------------------------------------------------------------------------------------------


def _overview(groups: Mapping[str, Sequence[Shown]]) -> str:
    """What was found: claims one collection at a time, three figures, and the explanations."""
    lines = ['<section id="overview"><h2>Overview</h2>']
    for number, part in enumerate(groups[CLAIMS]):
        found = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in part.section.findings)
        lines += [
            f'<details name="collection"{"" if number else " open"}>',
            f"<summary>Claims: {html.escape(part.section.name)}</summary>",
            f'<ul class="findings">{found}</ul>' if found else "<p>No claim was tested here.</p>",
            _claims_line(part),
            "</details>",
        ]
    drawn = [figure for part in groups[REPRODUCTIONS] if (figure := _first_figure(part))]
    lines += drawn[:FIGURES]
    if groups[EXPLANATIONS]:
        pages = "".join(map(_explanation_line, groups[EXPLANATIONS]))
        lines += ["<h3>Explanations, token by token</h3>", f"<ul>{pages}</ul>"]
    if len(lines) == 1:
        lines.append("<p>No claim, figure or explanation is finished yet.</p>")
    return "\n".join([*filter(None, lines), "</section>"])


def _first_figure(part: Shown) -> str:
    """The first figure of a section, where the report holds it, under a link to the section."""
    if not part.section.figures or not part.section.figure_files.keys() <= part.files.keys():
        return ""
    figure = part.section.figures.partition("</figure>")[0]
    return f"<h3>{part.link()}</h3>\n{figure}</figure>"


def _agreement(parts: Sequence[Shown]) -> list[str]:
    """A line a reproduction: how many of its cells agree with the paper or with what was recorded."""
    rows = [line for part in parts if (line := _reproduction_line(part))]
    if not rows:
        return []
    head = "".join(f'<th scope="col" class="count">{sign} {verdict}</th>' for verdict, sign in CELL_SIGNS.items())
    return [
        '<section id="agreement"><h2>Agreement with the paper and with records</h2>',
        '<div class="scroll" role="region" tabindex="0" aria-label="Reproductions, cells by verdict">',
        '<table class="overview"><caption>Reproductions: cells by verdict</caption>',
        f'<thead><tr><th scope="col">made again</th><th scope="col">in all</th>{head}</tr></thead>',
        "<tbody>",
        *rows,
        "</tbody></table></div>",
        '<p class="soft">A cell is compared with the paper at scale=paper, anywhere else with what was accepted '
        "there last, within the tolerance that its table's notes state; no record: nothing was accepted before. In "
        "all: ≠ differs where a cell is higher or lower, else … incomplete where one did not run.</p>",
        "</section>",
    ]


def _reproduction_line(part: Shown) -> str:
    if part.section.group != REPRODUCTIONS:
        return ""
    counts = Counter(verdict for verdict, _ in part.section.verdicts)
    cells = "".join(f"<td>{counts[verdict]}</td>" for verdict in CELL_SIGNS)
    return f'<tr><th scope="row">{part.link()}</th><td class="word">{_in_all(counts)}</td>{cells}</tr>'


def _in_all(counts: Counter[str]) -> str:
    """The verdict on a whole reproduction, by the rule of its exit code, with a sign."""
    if counts["higher"] or counts["lower"]:
        return "≠ differs"
    if counts["not run"]:
        return "… incomplete"
    return "= agrees" if counts["agrees"] else "? nothing to compare"


def _claims_line(part: Shown) -> str:
    """A line a kind of verdict, each opening to its claims."""
    if part.section.group != CLAIMS:
        return ""
    kinds = []
    for verdict, sign in CLAIM_SIGNS.items():
        claims = [what for found, what in part.section.verdicts if found == verdict]
        if claims:
            each = "".join(f"<li>{sign} {verdict}: {html.escape(claim)}</li>" for claim in claims)
            kinds.append(f"<details><summary>{sign} {verdict}: {len(claims)}</summary><ul>{each}</ul></details>")
    return f'<p>All claims, by verdict ({part.link()}):</p><div class="kinds">{"".join(kinds)}</div>'


def _explanation_line(part: Shown) -> str:
    if part.section.page is None:
        return ""
    return f'<li><a href="files/{html.escape(part.section.page)}">{html.escape(part.section.name)}</a></li>'


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
