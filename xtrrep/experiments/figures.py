"""A result of an experiment as figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xtrrep.experiments import pareto
from xtrrep.experiments.axes import K_PRIME, STEP, is_depth
from xtrrep.experiments.result import Result, ShownColumn
from xtrrep.experiments.tables import listed
from xtrrep.report.figure import Timed, bars, k_prime_sweep, speed_and_quality
from xtrrep.report.multiples import small_multiples
from xtrrep.report.table import Table


def draw(result: Result, out: Path) -> None:
    """The figure that its definition names."""
    if result.figure == "k_prime_sweep" and result.axes:
        draw_own_sweep(result, out)
    elif result.figure == "k_prime_sweep":
        draw_sweep(result, out)
    elif result.figure == "speed_and_quality" and result.axes:
        draw_own_speed(result, out)
    elif result.figure == "speed_and_quality":
        draw_speed(result, out)
    elif result.figure == "pareto":
        pareto.draw(result, _title(result, None), _stem(result, result.columns[0], out))
    elif result.figure == "steps":
        draw_steps(result, out)
    elif result.figure == "bars":
        draw_bars(result, out)


def _stem(result: Result, column: ShownColumn, out: Path) -> Path:
    return out / f"{result.name}-{(column.data or result.data).replace('/', '-')}"


def _title(result: Result, data: str | None) -> str:
    """Of a figure; under it what its points are means of, where they are."""
    seeds = f"\nmeans over training seeds {listed(result.seeds)}, with their standard deviation"
    title, _, on = result.title.rpartition(" (") if result.kind == "analysis" else (result.title, "", "")
    of = f"{title}\n{on[:-1]}" if on else f"{title}: {data}" if data else title
    return f"{of}, scale={result.scale}" + (seeds if result.seeds else "")


def _depth(place: Mapping[str, str]) -> float | None:
    """A row's choice on the axis k'; None where there is no such axis, or its choices are no numbers."""
    choice = place.get(K_PRIME, "")
    return float(choice) if is_depth(choice) else None


def _at(result: Result, row: str) -> dict[str, str]:
    """A row's choices by axis; none for a row beside the axes."""
    return dict(zip(result.axes, result.places.get(row, ()), strict=False))


def _shown(result: Result) -> list[ShownColumn]:
    """The columns of measures that a figure of an analysis has room for."""
    measures = [column for column in result.columns if column.is_measure]
    usual = [column for column in measures if column.name in ("nDCG@10", "Recall@100", "MRR@10", "Success@5")]
    return (usual or measures)[:2]


def draw_own_sweep(result: Result, out: Path) -> None:
    """Quality against the axis k', a line a combination of the others, a level for each row beside the axes."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    levels: dict[str, dict[str, float]] = {}
    for column in _shown(result):
        for row in result.rows:
            value, place = result.now(row, column.name), _at(result, row)
            if value is None:
                continue
            depth = _depth(place)
            if depth is None:
                levels.setdefault(column.name, {})[row] = value
                continue
            name = " as ".join(choice for axis, choice in place.items() if axis != K_PRIME)
            panels.setdefault(column.name, {}).setdefault(name, []).append((depth, value))
    sorted_panels = {key: {name: sorted(line) for name, line in lines.items()} for key, lines in panels.items()}
    if panels:
        k_prime_sweep(sorted_panels, levels, _title(result, None), _stem(result, result.columns[0], out))


def draw_own_speed(result: Result, out: Path) -> None:
    """The column of queries a second against the first measure of the same table."""
    speed = next((column.name for column in result.columns if column.measure == "qps"), None)
    measures = _shown(result)
    points = []
    for row in result.rows if speed is not None and measures else ():
        value, quality, place = result.now(row, str(speed)), result.now(row, measures[0].name), _at(result, row)
        if value is not None and quality is not None:
            engine, scoring, model = (place.get(axis, "") for axis in ("engine", "scoring", "model"))
            points.append(Timed(value, quality, engine, scoring, model))
    if points:
        stem = _stem(result, result.columns[0], out)
        speed_and_quality(points, measures[0].name, _title(result, None), stem, base="colbert")


def draw_steps(result: Result, out: Path) -> None:
    """Every column against the axis of steps, a panel each, a line a combination of the other axes."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    bands: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for column in result.columns:
        for row in result.rows:
            value, place = result.value(row, column.name), _at(result, row)
            if value is None or value.mean is None or not is_depth(place.get(STEP, "")):
                continue
            name, step = ", ".join(choice for axis, choice in place.items() if axis != STEP), float(place[STEP])
            panels.setdefault(column.name, {}).setdefault(name, []).append((step, value.mean))
            if value.sd is not None:
                bands.setdefault(column.name, {}).setdefault(name, []).append((step, value.sd))
    if panels:
        panels = {key: {name: sorted(line) for name, line in lines.items()} for key, lines in panels.items()}
        small_multiples(panels, "step", _title(result, None), out / result.name, bands=bands)


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
    """A panel a column, a bar a row. Of an analysis a panel for each choice on all axes but the last, whose choices are
    the bars; over several k' those at the smallest, where most is imputed."""
    panels: dict[str, dict[str, float]] = {}
    columns = _shown(result) if result.kind == "analysis" else result.columns
    places = {row: _at(result, row) for row in result.rows}
    depths = {row: _depth(place) for row, place in places.items()}
    least = min((depth for depth in depths.values() if depth is not None), default=0.0)
    for column in columns:
        for row, place in places.items():
            value, panel, bar = result.now(row, column.name), column.name, row
            if value is None or (depths[row] or 0.0) > least:
                continue
            if result.kind == "analysis" and place:
                *others, bar = (choice for axis, choice in place.items() if axis != K_PRIME)
                panel = ", ".join([*others, column.name])
            panels.setdefault(panel, {})[bar] = value
    if panels:
        measures = " / ".join(dict.fromkeys(column.measure for column in columns))
        bars(panels, measures, _title(result, None), out / result.name, digits=1)
