"""What the report shows: a Section for each finished artifact, and for each result that the project recorded.

An experiment's tables and verdicts come from its result.json. Any other table comes from the JSON that was written
beside its CSV; a CSV without one is shown as it is, under its own name.
"""

from __future__ import annotations

import csv
import hashlib
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep.console import DataError, say, typed
from xtrrep.experiments.result import Effect
from xtrrep.experiments.result import read as read_result
from xtrrep.experiments.tables import tables
from xtrrep.report.table import Table, read_table

MAX_ROWS = 400  # a longer table is linked, not shown
FINDINGS = 5  # sentences on a page's first screen
FOLDED_ROWS = 30  # a longer one is shown on demand

GROUPS = (REPRODUCTIONS, CLAIMS, GRIDS, ANALYSES, RECORDED, EXPLANATIONS) = (
    "Reproductions",
    "Claims",
    "Grids",
    "Analyses",
    "Recorded results",
    "Explanations",
)
GROUP_OF = {
    "reproduction": REPRODUCTIONS,
    "claims": CLAIMS,
    "grid": GRIDS,
    "analysis": ANALYSES,
}  # by kind of experiment

# Verdicts, each with a sign that does not depend on colour.
CELL_SIGNS = {"agrees": "=", "higher": "↑", "lower": "↓", "no record": "?", "not run": "–", "not compared": "·"}
CLAIM_SIGNS = {"supported": "✓", "contradicted": "✗", "inconclusive": "?", "baseline not trained": "⊘", "not run": "–"}
SIGNS = CELL_SIGNS | CLAIM_SIGNS

UNITS = "units.csv"  # a row for each query or document, for claims to be tested on: no page's worth


@dataclass(frozen=True)
class Section:
    """One result: what to say of it and the files it needs, by the name they get.

    verdicts: (verdict, what it is on) of each cell or claim. findings: a sentence for each of the first claims, with
    effect and interval. page: the file that the section is about, where it is a page of its own.
    """

    group: str
    name: str
    origin: str  # where it was read, without the machine's own folders
    ids: Mapping[str, str]  # what was run: fingerprints by cell
    body: str
    files: Mapping[str, bytes]
    figures: str = ""
    figure_files: Mapping[str, bytes] = field(default_factory=dict)
    verdicts: Sequence[tuple[str, str]] = ()
    findings: Sequence[str] = ()
    page: str | None = None


def collect(results: Path, recorded: Path | None) -> list[Section]:
    """Every section in the order of the report, from the artifacts below `results` and from `recorded`.

    An artifact whose files are not as they were written is named and left out. Raises DataError naming a record that
    cannot be read.
    """
    sections = list(_made(results))
    if recorded is not None and recorded.is_dir():
        sections += [*_recorded_experiments(recorded), *_recorded(recorded)]
    return sorted(sections, key=_rank)


def _rank(section: Section) -> tuple[int, int, str]:
    """Groups in their order; among the reproductions tables, figures and the rest by name; else as they were found."""
    group = GROUPS.index(section.group)
    if section.group != REPRODUCTIONS:
        return group, 0, ""
    kind = re.match(r"table|figure|", section.name)
    return group, ("table", "figure", "").index(kind[0] if kind else ""), section.name


# --- what there is -------------------------------------------------------------------------------------------------


def _made(results: Path) -> Iterator[Section]:
    """Finished artifacts, newest first; of the experiments only the newest of a label."""
    seen = set()
    for folder, manifest in reversed(artifacts.complete(results)):
        stage, label = manifest["stage"], manifest["label"]
        if stage not in ("experiment", "analyze", "explain") or (stage, label) in seen:
            continue
        try:
            artifacts.check(folder)
        except DataError as error:
            say(f"broken: {error}")
            continue
        origin = f"{stage}/{folder.name}, made {manifest['made']}"
        ids = {stage: manifest["fingerprint"], **manifest["upstream"]}
        if stage == "explain":
            yield _explanation(folder, manifest, origin, ids)
        elif stage == "analyze":
            yield _section(ANALYSES, label, origin, ids, folder, _tables_of(folder))
        else:
            seen.add((stage, label))
            yield _experiment(folder, origin, ids)


def _experiment(folder: Path, origin: str, ids: Mapping[str, str], suffix: str = "") -> Section:
    """An experiment from its result.json, with the figures beside it."""
    result = read_result(folder)
    group = GROUP_OF[result.kind]
    seeds = f"seeds {', '.join(map(str, result.seeds))}" if result.seeds else ""
    named = {"claims": result.data, "analysis": f"{result.name}, {result.data}"}.get(result.kind, result.name)
    name = ", ".join(filter(None, [named, f"scale={result.scale}", seeds])) + suffix
    if result.kind == "claims":
        verdicts = [(effect.verdict, f"{effect.says} ({effect.id})") for effect in result.effects]
        ids = {**ids, **{effect.id: " ".join(effect.runs) for effect in result.effects if effect.runs}}
    else:
        verdicts = [(cell.verdict, f"{cell.row} ({cell.column})") for cell in result.expected]
    shown = [(folder / f"{key}.csv", _arranged(table, group)) for key, table in tables(result).items()]
    section = _section(group, name, origin, ids, folder, shown, verdicts=verdicts)
    return replace(section, findings=_findings(result.effects)) if group == CLAIMS else section


def _findings(effects: Sequence[Effect]) -> list[str]:
    """The first claims of the file that were tested, a sentence each, whatever their verdict."""
    tested = [effect for effect in effects if effect.verdict != "not run"]
    return [
        f"{CLAIM_SIGNS[e.verdict]} {e.verdict}: {e.says}. {e.of}: {e.effect:.3f}"
        + (f" [{e.low:.3f}, {e.high:.3f}]" if e.low is not None and e.high is not None else "")
        for e in tested[:FINDINGS]
        if e.effect is not None
    ]


def _explanation(folder: Path, manifest: Mapping[str, Any], origin: str, ids: Mapping[str, str]) -> Section:
    """One page of `xtrrep explain`, with a way back, and the CSVs beside it."""
    config = manifest["config"]
    name = f"{config['document']} for {config['query']!r}"
    home = b'<main>\n<p><a href="../index.html">The whole report</a></p>'
    page = (folder / "page.html").read_bytes().replace(b"<main>", home, 1)
    files: dict[str, bytes] = {}
    linked = {"page.html": ("the heat map, token by token", page)}
    linked |= {path.name: ("CSV, full precision", path.read_bytes()) for path in sorted(folder.glob("*.csv"))}
    body = _links(EXPLANATIONS, linked, files)
    return Section(EXPLANATIONS, name, origin, ids, body, files, page=_file_name(EXPLANATIONS, "page.html", page))


def _recorded_experiments(recorded: Path) -> Iterator[Section]:
    """What `--accept` left: a folder with result.json, tables and figures."""
    for path in sorted(recorded.glob("*/*/result.json")):
        folder = path.parent
        result = read_result(folder)
        made = result.provenance
        origin = f"results/recorded/{folder.parent.name}/{folder.name}/"
        if "date" in made:
            origin += f", accepted {made['date']} at commit {made['commit']}, {made['hardware']}"
        ids = {"commit": str(made["commit"])} if "commit" in made else {}
        ids |= {f"{value.row}, {value.column}": " ".join(value.runs) for value in result.values if value.runs}
        yield _experiment(folder, origin, ids, ", recorded")


def _recorded(recorded: Path) -> Iterator[Section]:
    """What else the project stands behind: a file of its own at the top, or a folder with its figures."""
    for path in sorted(recorded.glob("*.csv")):
        yield _section(RECORDED, path.stem, f"results/recorded/{path.name}", {}, None, [(path, _table(path))])
    for folder in sorted(path for path in recorded.iterdir() if path.is_dir()):
        if any(folder.glob("*.csv")):
            yield _section(RECORDED, folder.name, f"results/recorded/{folder.name}/", {}, folder, _tables_of(folder))
    for path in sorted(recorded.glob("*.md")):
        # Words alone are linked, since no CSV vouches for their numbers. README.md describes the folder itself.
        if path.name != "README.md" and not path.with_suffix(".csv").exists():
            yield _section(RECORDED, path.stem, f"results/recorded/{path.name}", {}, None, [], texts=[path])


def _tables_of(folder: Path) -> list[tuple[Path, Table]]:
    return [(path, _table(path)) for path in sorted(folder.glob("*.csv")) if path.name != UNITS]


def _table(path: Path) -> Table:
    """The table of a CSV: from the JSON beside it, or else its texts under its own name.

    Raises DataError naming file and line where the CSV is empty or a row has another length than its header.
    """
    if path.with_suffix(".json").exists():
        return read_table(path.with_suffix(".json"))
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    if not lines:
        raise DataError(f"{path} is empty", hint=f"make it again, or rm {typed(path)}")
    for number, row in enumerate(lines[1:], start=2):
        if len(row) != len(lines[0]):
            raise DataError(
                f"{path}:{number}: {len(row)} values under {len(lines[0])} columns",
                hint=f"make it again, or rm {typed(path)}",
            )
    return Table(path.stem, lines[0], [[value or None for value in row] for row in lines[1:]])


# --- one section ---------------------------------------------------------------------------------------------------


def _section(
    group: str,
    name: str,
    origin: str,
    ids: Mapping[str, str],
    folder: Path | None,
    shown: Sequence[tuple[Path, Table]],
    *,
    texts: Sequence[Path] = (),
    verdicts: Sequence[tuple[str, str]] = (),
) -> Section:
    """From tables with their CSVs, and the figures of a folder; `texts` are linked as they are."""
    files: dict[str, bytes] = {}
    body: list[str] = []
    slug = f"{group}-{name}"
    for path, table in shown:
        linked = {path.name: ("CSV, full precision", path.read_bytes())}
        if len(table.rows) <= MAX_ROWS:
            linked[f"{path.stem}.tex"] = ("LaTeX", table.latex().encode())
            body.append(_shown(_signed(table)))
        else:
            body.append(f"<p>{html.escape(table.title)}: {len(table.rows):,} rows, in the CSV.</p>")
        if path.with_suffix(".md").exists():
            linked[f"{path.stem}.md"] = ("Markdown", path.with_suffix(".md").read_bytes())
        body.append(_links(slug, linked, files))
    if texts:
        body.append(_links(slug, {path.name: ("as it was written", path.read_bytes()) for path in texts}, files))
    drawn: dict[str, bytes] = {}
    data = {path.name: _file_name(slug, path.name, path.read_bytes()) for path, _ in shown}
    images = sorted(folder.glob("*.svg")) or sorted(folder.glob("*.png")) if folder else []
    figures = "\n".join(_figure(slug, path, data, drawn) for path in images)
    return Section(group, name, origin, ids, "\n".join(body), files, figures, drawn, verdicts)


def _shown(table: Table) -> str:
    """A table as HTML; a long one behind a line that opens it."""
    if len(table.rows) <= FOLDED_ROWS:
        return table.html()
    summary = f"{html.escape(table.title)}: {len(table.rows):,} rows"
    return f"<details><summary>{summary}</summary>\n{table.html()}\n</details>"


def _arranged(table: Table, group: str) -> Table:
    """Without the fingerprints, which stand under it; of claims the verdict right beside its claim."""
    if "verdict" not in table.columns:
        return table
    kept = [i for i, name in enumerate(table.columns) if name != "runs"]
    if group == CLAIMS:
        at = table.columns.index("verdict")
        kept.remove(at)
        kept.insert(1, at)
    rows = [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=[table.columns[i] for i in kept], rows=rows, digits=3)


def _signed(table: Table) -> Table:
    """With a sign before each verdict, where it has any."""
    if "verdict" not in table.columns:
        return table
    at = table.columns.index("verdict")
    rows = [[f"{SIGNS.get(str(v), '')} {v}".strip() if i == at else v for i, v in enumerate(r)] for r in table.rows]
    return replace(table, rows=rows)


def _figure(slug: str, path: Path, data: Mapping[str, str], drawn: dict[str, bytes]) -> str:
    """An image that scrolls by itself, with links to its PDF, where there is one, and to what it was drawn from."""
    image = _file_name(slug, path.name, path.read_bytes())
    drawn[image] = path.read_bytes()
    links = [f'<a href="files/{html.escape(image)}">{html.escape(path.name)}</a>']
    pdf = path.with_suffix(".pdf")
    if pdf.exists():
        name = _file_name(slug, pdf.name, pdf.read_bytes())
        drawn[name] = pdf.read_bytes()
        links.append(f'<a href="files/{html.escape(name)}">{html.escape(pdf.name)}</a>')
    numbers = ", ".join(f'<a href="files/{html.escape(file)}">{html.escape(name)}</a>' for name, file in data.items())
    caption = f"{', '.join(links)}; its numbers: {numbers}" if numbers else ", ".join(links)
    alt = html.escape(f"{path.stem}, drawn from {', '.join(data)}" if data else path.stem)
    return (
        f'<figure><div class="scroll drawn" role="region" tabindex="0" aria-label="{alt}">'
        f'<img src="files/{html.escape(image)}" alt="{alt}" loading="lazy"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _links(slug: str, linked: Mapping[str, tuple[str, bytes]], files: dict[str, bytes]) -> str:
    """Links to files by their own name, each with what it is; the files go into `files`."""
    links = []
    for name, (words, data) in linked.items():
        file = _file_name(slug, name, data)
        files[file] = data
        links.append(f'<a href="files/{html.escape(file)}">{html.escape(name)}</a> ({html.escape(words)})')
    return f"<p>{'; '.join(links)}</p>"


def _file_name(slug: str, name: str, data: bytes) -> str:
    """A file's name in the report: readable, and another one for other content."""
    stem, _, kind = f"{slug}-{name}".rpartition(".")
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-.")
    return f"{readable}-{hashlib.sha256(data).hexdigest()[:8]}.{kind}"
