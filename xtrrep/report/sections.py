"""What the report shows: a Section for each finished artifact, and for each result that the project recorded.

A table of a section is its CSV, read back: of the Markdown beside a CSV only the title, the marks of significance and
the notes are taken, and no note that gives a measured number of its own, so that nothing is shown that no linked CSV
holds. Verdicts are those of the CSV's column of that name.
"""

from __future__ import annotations

import csv
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep.console import DataError, say
from xtrrep.report.table import MISSING, Table

MAX_ROWS = 400  # a longer table is linked, not shown
FOLDED_ROWS = 30  # a longer one is shown on demand

GROUPS = (REPRODUCTIONS, CLAIMS, ANALYSES, RECORDED, EXPLANATIONS) = (
    "Reproductions",
    "Claims",
    "Analyses",
    "Recorded results",
    "Explanations",
)
GROUP_OF = {"reproduce": REPRODUCTIONS, "claims": CLAIMS, "analyze": ANALYSES, "explain": EXPLANATIONS}  # by stage
ONE_A_LABEL = ("reproduce", "claims")  # of these only the newest of a label

# Verdicts, each with a sign that does not depend on colour.
CELL_SIGNS = {"agrees": "=", "higher": "↑", "lower": "↓", "no record": "?", "not run": "–", "not compared": "·"}
CLAIM_SIGNS = {"supported": "✓", "contradicted": "✗", "inconclusive": "?", "not run": "–"}
SIGNS = CELL_SIGNS | CLAIM_SIGNS

# As Python writes them, so that a fingerprint such as 12345678e901 is none.
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[-+]\d+)?")
MEASURE = re.compile(r"[A-Za-z]+@\d+")
STATED = re.compile(r"(p <|within) \d+\.\d+( or \d+\.\d+)*")  # a threshold or a tolerance in a note
MEASURED = re.compile(r"\d\.\d")  # any other decimal fraction there: somebody's result, or a version
MARKED = re.compile(r".*<sup>(.*)</sup>")
SEEDS = re.compile(r"-seeds-(\d+(?:-\d+)*)")  # in the label of a reproduction and in the name of its record
UNITS = "units.csv"  # a row for each query or document, for claims to be tested on: no page's worth
GRID = "grid.csv"  # a table of runs in the study's shape


@dataclass(frozen=True)
class Section:
    """One result: what to say of it and the files it needs, by the name they get.

    verdicts: (verdict, what it is on) of each cell or claim. page: the file that the section is about, where it is a
    page of its own.
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
    page: str | None = None


def collect(results: Path, recorded: Path | None) -> list[Section]:
    """Every section in the order of the report, from the artifacts below `results` and from `recorded`.

    An artifact whose files are not as they were written is named and left out. Raises DataError naming a record that
    cannot be read.
    """
    sections = list(_made(results))
    if recorded is not None and recorded.is_dir():
        sections += [*_reproductions(recorded), *_claims(recorded), *_recorded(recorded)]
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
    """Finished artifacts, newest first."""
    seen = set()
    for folder, manifest in reversed(artifacts.complete(results)):
        stage, label = manifest["stage"], manifest["label"]
        if stage not in GROUP_OF or (stage, label) in seen:
            continue
        try:
            artifacts.check(folder)
        except DataError as error:
            say(f"broken: {error}")
            continue
        if stage in ONE_A_LABEL:
            seen.add((stage, label))
        origin = f"{stage}/{folder.name}, made {manifest['made']}"
        ids = {stage: manifest["fingerprint"], **manifest["upstream"]}
        if stage == "explain":
            yield _explanation(folder, manifest, origin, ids)
        else:
            yield _section(GROUP_OF[stage], _named_result(label) if stage != "analyze" else label, origin, ids, folder)


def _named_result(label: str) -> str:
    """NAME-SCALE, and several training seeds said before or behind the scale, as the report says it."""
    seeds = SEEDS.search(label)
    name, _, scale = SEEDS.sub("", label).rpartition("-")
    trained = [f"seeds {', '.join(seeds[1].split('-'))}"] if seeds else []
    return ", ".join([name, f"scale={scale}", *trained])


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


def _reproductions(recorded: Path) -> Iterator[Section]:
    """What `reproduce --accept` left: a record, and beside it the folder of its table and figures."""
    for path in sorted((recorded / "reproductions").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            said = [f"accepted {record['accepted']} at commit {record['commit']}", str(record["hardware"])]
            ids = {"commit": str(record["commit"]), **record.get("runs", {})}  # records of before have no runs
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no record of a reproduction ({error!r})", hint=f"rm {path}") from None
        folder = path.with_suffix("")
        origin = ", ".join([f"results/recorded/reproductions/{folder.name}/", *said])
        name = f"{_named_result(folder.name)}, recorded"
        yield _section(REPRODUCTIONS, name, origin, ids, folder, texts=[path])


def _claims(recorded: Path) -> Iterator[Section]:
    for path in sorted((recorded / "claims").glob("*/table.csv")):
        folder = path.parent
        origin = f"results/recorded/claims/{folder.name}/"
        yield _section(CLAIMS, f"{_named_result(folder.name)}, recorded", origin, {}, folder)


def _recorded(recorded: Path) -> Iterator[Section]:
    """What else the project stands behind: a file of its own at the top, or a folder with its figures."""
    for path in sorted(recorded.glob("*.csv")):
        yield _section(RECORDED, path.stem, f"results/recorded/{path.name}", {}, tables=[path])
    for folder in sorted(path for path in recorded.iterdir() if path.is_dir()):
        if any(folder.glob("*.csv")):
            yield _section(RECORDED, folder.name, f"results/recorded/{folder.name}/", {}, folder)
    for path in sorted(recorded.glob("*.md")):
        if not path.with_suffix(".csv").exists():  # words alone: linked, since no CSV vouches for its numbers
            yield _section(RECORDED, path.stem, f"results/recorded/{path.name}", {}, texts=[path])


# --- one section ---------------------------------------------------------------------------------------------------


def _section(
    group: str,
    name: str,
    origin: str,
    ids: Mapping[str, str],
    folder: Path | None = None,
    *,
    tables: Sequence[Path] = (),
    texts: Sequence[Path] = (),
) -> Section:
    """From the CSVs and figures of a folder, or from `tables`; `texts` are linked as they are."""
    files: dict[str, bytes] = {}
    body: list[str] = []
    verdicts: list[tuple[str, str]] = []
    slug = f"{group}-{name}"
    if folder and not tables:
        tables = sorted(path for path in folder.glob("*.csv") if path.name != UNITS)
    # The best of each measure in bold, which only means something where all rows share a collection.
    bold = group == ANALYSES
    for path in tables:
        table, words = read(path, bold=bold)
        if path.name == GRID:
            table = replace(table, higher=table.columns[1:], digits=1)
        judged = group in (REPRODUCTIONS, CLAIMS) and "verdict" in table.columns
        if judged:
            verdicts += _verdicts(table, group)
            ids = {**ids, **_runs(table)}
            table = _arranged(table, group)
        linked = {path.name: ("CSV, full precision", path.read_bytes())}
        if len(table.rows) <= MAX_ROWS:
            linked[f"{path.stem}.tex"] = ("LaTeX", table.latex().encode())
            body.append(_shown(_signed(table) if judged else table))
        else:
            body.append(f"<p>{html.escape(table.title)}: {len(table.rows):,} rows, in the CSV.</p>")
        if words is not None:
            linked[words.name] = ("as it was written, with all its notes", words.read_bytes())
        body.append(_links(slug, linked, files))
    if texts:
        body.append(_links(slug, {path.name: ("as it was written", path.read_bytes()) for path in texts}, files))
    drawn: dict[str, bytes] = {}
    data = {path.name: _file_name(slug, path.name, path.read_bytes()) for path in tables}
    images = sorted(folder.glob("*.svg")) or sorted(folder.glob("*.png")) if folder else []
    figures = "\n".join(_figure(slug, path, data, drawn) for path in images)
    return Section(group, name, origin, ids, "\n".join(body), files, figures, drawn, verdicts)


def _shown(table: Table) -> str:
    """A table as HTML; a long one behind a line that opens it."""
    if len(table.rows) <= FOLDED_ROWS:
        return table.html()
    summary = f"{html.escape(table.title)}: {len(table.rows):,} rows"
    return f"<details><summary>{summary}</summary>\n{table.html()}\n</details>"


def _verdicts(table: Table, group: str) -> list[tuple[str, str]]:
    """Every row's verdict, and the row and column, or the claim, that it is on."""
    columns = ("statement", "claim") if group == CLAIMS else ("row", "column")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(
            f"the table {table.title!r} has verdicts, but no column {missing[0]!r}",
            hint="written by another version? Make it again",
        )
    at = [table.columns.index(name) for name in ("verdict", *columns)]
    return [(str(row[at[0]]), f"{row[at[1]]} ({row[at[2]]})") for row in table.rows]


def _runs(table: Table) -> dict[str, str]:
    """Fingerprints by claim."""
    if "runs" not in table.columns:
        return {}
    at = table.columns.index("runs")
    return {str(row[0]): str(row[at]) for row in table.rows if row[at] is not None}


def _arranged(table: Table, group: str) -> Table:
    """Without the fingerprints, which stand under it; of claims the verdict right beside its claim."""
    kept = [i for i, name in enumerate(table.columns) if name != "runs"]
    if group == CLAIMS:
        at = table.columns.index("verdict")
        kept.remove(at)
        kept.insert(1, at)
    rows = [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=[table.columns[i] for i in kept], rows=rows, digits=3)


def _signed(table: Table) -> Table:
    """With a sign before each verdict."""
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


# --- a CSV, read back ----------------------------------------------------------------------------------------------


def read(path: Path, *, bold: bool = False) -> tuple[Table, Path | None]:
    """A table from its CSV, and the Markdown file beside it if there is one.

    Title, notes and marks are the Markdown's where its columns are the CSV's; a note with a number of its own stays
    there.
    Raises DataError naming file and line where the CSV is empty or a row has another length than its header.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    if not lines:
        raise DataError(f"{path} is empty", hint=f"make it again, or rm {path}")
    columns, texts = lines[0], lines[1:]
    for number, row in enumerate(texts, start=2):
        if len(row) != len(columns):
            raise DataError(
                f"{path}:{number}: {len(row)} values under {len(columns)} columns", hint=f"make it again, or rm {path}"
            )
    parsed = [_values(name, [row[i] for row in texts]) for i, name in enumerate(columns)]
    rows: list[list[object]] = [[column[r] for column in parsed] for r in range(len(texts))]
    words = path.with_suffix(".md")
    said = _conventions(words.read_text(encoding="utf-8"), columns) if words.exists() else None
    title, notes, marks = said or (path.stem, [], {})
    marks = {(r, c): mark for (r, c), mark in marks.items() if r < len(rows) and isinstance(rows[r][c], float)}
    higher = [name for name in columns if MEASURE.fullmatch(name)] if bold else []
    return Table(title, columns, rows, notes, higher=higher, marks=marks), words if words.exists() else None


def _values(name: str, texts: Sequence[str]) -> list[object]:
    """A column's values: numbers where all of it is numbers and it does not name runs, None where nothing stands."""
    given = [text for text in texts if text not in ("", MISSING)]
    if name in ("run", "runs") or not all(map(NUMBER.fullmatch, given)):
        return [None if text in ("", MISSING) else text for text in texts]
    return [
        None if text in ("", MISSING) else int(text) if text.lstrip("-").isdigit() else float(text) for text in texts
    ]


def _conventions(markdown: str, columns: Sequence[str]) -> tuple[str, list[str], dict[tuple[int, int], str]] | None:
    """Title, notes and marks of the first table, if that has these columns, as Table.markdown() writes them."""
    first = re.match(
        r"### (?P<title>.*)\n\n(?P<head>\|.*\|)\n\|.*\n(?P<body>(\|.*\n)*)(?P<notes>(\n?- .*\n)*)", markdown
    )
    if first is None or _cells(first["head"]) != list(columns):
        return None
    marks = {}
    for r, line in enumerate(first["body"].splitlines()):
        for c, cell in enumerate(_cells(line)[: len(columns)]):
            if marked := MARKED.fullmatch(cell):
                marks[r, c] = marked[1]
    notes = [line[2:] for line in first["notes"].splitlines() if line]
    return first["title"], [note for note in notes if not MEASURED.search(STATED.sub("", note))], marks


def _cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
