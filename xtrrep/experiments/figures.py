"""A result of an experiment as figures, and all of its files in a folder."""

from __future__ import annotations

from pathlib import Path

from xtrrep.experiments import tables
from xtrrep.experiments.result import Result, ShownColumn
from xtrrep.experiments.tables import listed
from xtrrep.report.figure import Timed, bars, k_prime_sweep, speed_and_quality
from xtrrep.report.table import Table, write_text


def draw(result: Result, out: Path) -> None:
    """Every table of the result as NAME.csv, .md, .txt, .tex and .html, and its figures."""
    for name, table in tables.tables(result).items():
        table.save(out / name, json=False)
        write_text(out / f"{name}.tex", table.latex())
        write_text(out / f"{name}.html", table.html())
    if result.figure == "k_prime_sweep":
        draw_sweep(result, out)
    elif result.figure == "speed_and_quality":
        draw_speed(result, out)
    elif result.figure == "bars":
        draw_bars(result, out)


def _stem(result: Result, column: ShownColumn, out: Path) -> Path:
    return out / f"{result.name}-{str(column.data).replace('/', '-')}"


def _title(result: Result, data: str | None) -> str:
    """Of a figure; under it what its points are means of, where they are."""
    seeds = f"\nmeans over training seeds {listed(result.seeds)}, with their standard deviation"
    return f"{result.title}: {data}, scale={result.scale}" + (seeds if result.seeds else "")


def draw_sweep(result: Result, out: Path) -> None:
    """Quality against k', a figure a collection, shaded by the spread over training seeds."""
    for data in dict.fromkeys(column.data for column in result.columns):
        columns = sorted((c for c in result.columns if c.data == data), key=lambda column: column.k_prime or 0)
        panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
        bands: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for column in columns:
            for row in result.rows:
                value = result.value(row, column.name)
                if value is None or value.mean is None:
                    continue
                k_prime = float(column.k_prime or 0)
                panels.setdefault(column.measure, {}).setdefault(row, []).append((k_prime, value.mean))
                if value.sd is not None:
                    bands.setdefault(column.measure, {}).setdefault(row, []).append((k_prime, value.sd))
        if panels:
            k_prime_sweep(panels, {}, _title(result, data), _stem(result, columns[0], out), bands=bands)


def draw_speed(result: Result, out: Path) -> None:
    """Queries a second against quality, a figure a collection, and speed_and_quality.csv, of the cells with both."""
    quality = {(row, column): (measure, value, sd) for row, column, measure, value, sd in result.quality}
    rows: list[list[object]] = []
    for column in result.columns:
        points, measure = [], ""
        for row in result.rows:
            value = result.value(row, column.name)
            if value is None or value.mean is None or (row, column.name) not in quality:
                continue
            measure, found, sd = quality[row, column.name]
            engine, stage, model = [*row.split(", ", 2), "", ""][:3]
            points.append(Timed(value.mean, found, engine, stage, model, value.sd or 0.0, sd))
            spread = [value.sd or 0.0, sd] if result.seeds else []
            rows.append([row, column.name, value.mean, measure, found, *spread])
        if points:
            title = _title(result, column.data)
            speed_and_quality(points, measure, title, _stem(result, column, out), base="ColBERT")
    if rows:
        columns = ["row", "column", "queries/s", "measure", "value"]
        columns += ["sd of queries/s", "sd of value"] if result.seeds else []
        Table("", columns, rows).save_csv(out / "speed_and_quality.csv")


def draw_bars(result: Result, out: Path) -> None:
    """A grid of your own: a panel a column, a bar a row."""
    panels = {}
    for column in result.columns:
        values = {row: result.now(row, column.name) for row in result.rows}
        if known := {row: value for row, value in values.items() if value is not None}:
            panels[column.name] = known
    measures = " / ".join(dict.fromkeys(column.measure for column in result.columns))
    if panels:
        bars(panels, measures, f"{result.title}, scale={result.scale}", out / result.name, digits=1)
