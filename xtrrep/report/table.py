"""One Table object for the terminal, Markdown and CSV, each with the conventions it was made under."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xtrrep.artifacts import write_atomic

MISSING = "—"  # a cell that was not run; never 0.0


@dataclass(frozen=True)
class Table:
    """Rows of raw values (None where missing), formatted on the way out only."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    footer: Sequence[str] = field(default_factory=list)
    digits: int = 4

    def _cell(self, value: object) -> str:
        if value is None:
            return MISSING
        if isinstance(value, float):
            return f"{value:.{self.digits}f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    def _text(self) -> list[list[str]]:
        return [[self._cell(value) for value in row] for row in self.rows]

    def terminal(self) -> str:
        """Aligned plain text: words to the left, numbers to the right."""
        body = self._text()
        widths = [max(map(len, column)) for column in zip(self.columns, *body, strict=True)]
        right = [all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]

        def line(cells: Sequence[str]) -> str:
            aligned = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
            return "  ".join(aligned).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([self.title, "", line(self.columns), rule, *map(line, body), "", *self.footer])

    def markdown(self) -> str:
        """A GitHub table with title and footer."""
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in [list(self.columns), *self._text()]]
        lines = ["| " + " | ".join(row) + " |" for row in escaped]
        lines.insert(1, "|" + " --- |" * len(self.columns))
        notes = [f"- {note}" for note in self.footer]
        return "\n".join([f"### {self.title}", "", *lines, "", *notes]).rstrip() + "\n"

    def csv(self) -> str:
        """Full precision, empty where missing."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if value is None else value for value in row] for row in self.rows])
        return out.getvalue()

    def save(self, stem: Path) -> None:
        """Write `stem`.csv, .md and .txt."""
        self.save_csv(stem.with_suffix(".csv"))
        _write(stem.with_suffix(".md"), self.markdown())
        _write(stem.with_suffix(".txt"), self.terminal() + "\n")

    def save_csv(self, path: Path) -> None:
        """Write the CSV alone: what a figure was drawn from."""
        _write(path, self.csv())


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))
