"""One Table object for the terminal, Markdown, LaTeX, HTML and CSV, each with the conventions it was made under."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from xtrrep.artifacts import write_atomic, write_json
from xtrrep.console import DataError, machine_error, typed

WIDTH = 100  # characters of a line on a terminal
NARROWEST = 24  # characters of a column that is set in several lines
MISSING = "—"  # a cell that was not run; never 0.0
WORDS = 40  # characters: a longer text runs over several lines of HTML

# What LaTeX would take for a command, and the signs of our tables that its default fonts lack. A bracket after `\\`
# would be read as that command's argument, a star as its variant.
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",
        "]": "{]}",
        "*": "{*}",
        "\n": " ",
        MISSING: "---",
        "–": "--",
        "−": "$-$",
        "×": r"$\times$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "†": r"\textdagger{}",
        "‡": r"\textdaggerdbl{}",
    }
)


@dataclass(frozen=True)
class Table:
    """Rows of raw values (None where missing), formatted on the way out only.

    higher: columns in which more is better: LaTeX and HTML set the best of each in bold. marks: a sign of significance
    by (row, column) number, counted from 0, such as "†"; what it means stands in the footer. Raises ValueError for a
    column or a cell that the table does not have.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    footer: Sequence[str] = field(default_factory=list)
    digits: int = 4
    higher: Sequence[str] = ()
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in self.higher if name not in self.columns]
        outside = [at for at in self.marks if at[0] not in range(len(self.rows)) or at[1] not in self._numbers]
        if unknown or outside:
            raise ValueError(f"the table {self.title!r} has no {unknown or outside}")

    def _cell(self, value: object) -> str:
        if value is None:
            return MISSING
        if isinstance(value, float):
            return f"{value:.{self.digits}f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    def _text(self) -> list[list[str]]:
        return [[self._cell(value) for value in row] for row in self.rows]

    @property
    def _numbers(self) -> range:
        return range(len(self.columns))

    @property
    def _right(self) -> list[bool]:
        """Which columns hold no words, and so stand to the right."""
        return [all(not isinstance(row[i], str) for row in self.rows) for i in self._numbers]

    def _best(self) -> set[tuple[int, int]]:
        """The best cells of the columns in which more is better, as far as the digits shown tell them apart."""
        found = set()
        for i in self._numbers:
            if self.columns[i] not in self.higher:
                continue
            shown = {r: round(float(v), self.digits) for r, row in enumerate(self.rows) if _is_number(v := row[i])}
            if len(set(shown.values())) > 1:
                found |= {(r, i) for r, value in shown.items() if value == max(shown.values())}
        return found

    def _styled(
        self, escape: Callable[[str], str], bold: Callable[[str], str], superscript: Callable[[str], str]
    ) -> list[list[str]]:
        """Every cell escaped, the best bold, marks behind them."""
        best, body = self._best(), []
        for r, row in enumerate(self._text()):
            cells = []
            for i, text in enumerate(row):
                cell = bold(escape(text)) if (r, i) in best else escape(text)
                mark = self.marks.get((r, i))
                cells.append(cell + superscript(escape(mark)) if mark else cell)
            body.append(cells)
        return body

    def terminal(self) -> str:
        """Aligned plain text: words to the left, numbers to the right.

        It is no wider than WIDTH where that can be had by setting texts in several lines, between words.
        """
        body = self._styled(str, str, str)
        right = self._right
        widths = _narrowed([list(column) for column in zip(self.columns, *body, strict=True)], right)

        def lines(cells: Sequence[str]) -> list[str]:
            parts = [
                [c] if len(c) <= w else textwrap.wrap(c, w, break_on_hyphens=False)
                for c, w in zip(cells, widths, strict=True)
            ]
            rows = itertools.zip_longest(*parts, fillvalue="")
            aligned = (
                [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)] for row in rows
            )
            return ["  ".join(row).rstrip() for row in aligned]

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        rows = [line for row in body for line in lines(row)]
        footer = list(self.footer)
        if len(rule) > WIDTH:
            footer.append(
                f"This table is wider than {WIDTH} characters; `less -S` and the files of the result show all of it."
            )
        return "\n".join([self.title, "", *lines(self.columns), rule, *rows, "", *footer])

    def markdown(self) -> str:
        """A GitHub table with title and footer."""

        def escape(text: str) -> str:
            return text.replace("|", "\\|")

        body = self._styled(escape, str, lambda mark: f"<sup>{mark}</sup>")
        lines = ["| " + " | ".join(row) + " |" for row in [list(map(escape, self.columns)), *body]]
        lines.insert(1, "|" + " --- |" * len(self.columns))
        notes = [f"- {note}" for note in self.footer]
        return "\n".join([f"### {self.title}", "", *lines, "", *notes]).rstrip() + "\n"

    def latex(self) -> str:
        """A `table` of the package booktabs: the best bold, marks as superscripts, the footer below."""

        def escape(text: str) -> str:
            return text.translate(LATEX)

        body = self._styled(escape, lambda cell: f"\\textbf{{{cell}}}", lambda mark: f"\\textsuperscript{{{mark}}}")
        rows = [" & ".join(row) + r" \\" for row in body]
        notes = [f"{escape(note)}\\par" for note in self.footer]
        return "\n".join(
            [
                r"% \usepackage{booktabs}",
                r"\begin{table}",
                r"\centering",
                f"\\caption{{{escape(self.title)}}}",
                f"\\begin{{tabular}}{{{''.join('r' if right else 'l' for right in self._right)}}}",
                r"\toprule",
                " & ".join(map(escape, self.columns)) + r" \\",
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                *([r"\par\medskip\raggedright\footnotesize", *notes] if notes else []),
                r"\end{table}",
                "",
            ]
        )

    def html(self) -> str:
        """A `<figure>` that scrolls by itself: a table with caption and scopes, then the footer as a list.

        Numbers stand to the right, each a `<data>` whose `value` has CSV's full precision. Everything is escaped.
        """
        right = self._right
        styled = self._styled(html.escape, lambda cell: f"<strong>{cell}</strong>", lambda mark: f"<sup>{mark}</sup>")
        align = [' style="text-align:right"' if r else "" for r in right]
        head = "".join(
            f'<th scope="col"{a}>{html.escape(name)}</th>' for name, a in zip(self.columns, align, strict=True)
        )
        body = []
        for row, cells in zip(self.rows, styled, strict=True):
            line = []
            for i, (value, cell) in enumerate(zip(row, cells, strict=True)):
                text = f'<data value="{html.escape(str(value))}">{cell}</data>' if _is_number(value) else cell
                name = i == 0 and not right[0]  # a first column of words names its row
                words = ' class="words"' if isinstance(value, str) and len(value) > WORDS else ""
                line.append(f'<th scope="row"{words}>{text}</th>' if name else f"<td{words}{align[i]}>{text}</td>")
            body.append(f"<tr>{''.join(line)}</tr>")
        title = html.escape(self.title)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.footer)
        return "\n".join(
            [
                '<figure class="table">',
                f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">',
                f"<table><caption>{title}</caption>",
                f"<thead><tr>{head}</tr></thead>",
                "<tbody>",
                *body,
                "</tbody></table></div>",
                *([f'<figcaption><ul class="notes">{notes}</ul></figcaption>'] if notes else []),
                "</figure>",
            ]
        )

    def csv(self) -> str:
        """Full precision, empty where missing; neither bold nor marks."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if value is None else value for value in row] for row in self.rows])
        return out.getvalue()

    def save(self, stem: Path, *, json: bool = True) -> None:
        """Write `stem`.csv, .md and .txt, and .json, from which `read_table` makes the table again."""
        self.save_csv(stem.with_suffix(".csv"))
        if json:
            marks = [[*place, mark] for place, mark in self.marks.items()]
            write_json(stem.with_suffix(".json"), {**vars(self), "marks": marks})
        write_text(stem.with_suffix(".md"), self.markdown())
        write_text(stem.with_suffix(".txt"), self.terminal() + "\n")

    def save_csv(self, path: Path) -> None:
        """Write the CSV alone: what a figure was drawn from."""
        write_text(path, self.csv())


def read_table(path: Path) -> Table:
    """A table from the .json that `Table.save` wrote. Raises DataError where it is none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Table(**{**told, "marks": {(row, column): mark for row, column, mark in told["marks"]}})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise machine_error(error) or DataError(
            f"{path} is not a table of xtrrep ({error!r})", hint=f"make it again, or rm {typed(path)}"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _narrowed(columns: Sequence[Sequence[str]], right: Sequence[bool]) -> list[int]:
    """Widths of the columns, given their cells, that fit WIDTH as far as no word and no number is broken."""
    widths = [max(map(len, cells)) for cells in columns]
    least = [
        width if numbers else min(width, max(NARROWEST, *(len(word) for cell in cells for word in cell.split())))
        for cells, width, numbers in zip(columns, widths, right, strict=True)
    ]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        spare = [width if width > smallest else 0 for width, smallest in zip(widths, least, strict=True)]
        if not any(spare):
            break
        widths[spare.index(max(spare))] -= 1
    return widths
