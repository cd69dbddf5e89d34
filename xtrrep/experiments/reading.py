"""Read a file of the grammar (schema.py) and check it as a whole: every fault at once, each with its line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from xtrrep.console import UsageError, machine_error, suggest
from xtrrep.experiments.analyses import analyses
from xtrrep.experiments.axes import EACH, K_PRIME, LARGEST, SMALLEST, SOURCES, STEP, crossed
from xtrrep.experiments.cell import Overrides, parse_overrides
from xtrrep.experiments.numbers import overlap_depth
from xtrrep.experiments.schema import (
    BaselinePart,
    BestPart,
    ColumnPart,
    ComparisonPart,
    File,
    GatePart,
    Part,
    ReadingPart,
    RowPart,
    StandIn,
)

MOST = 20  # faults of a file that are listed


def read_file(path: Path, scale: str) -> File:
    """Read and check a file. Raises UsageError that names every fault with its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise machine_error(error) or UsageError(
            f"{path} cannot be read: {error}", hint="the path of a YAML file"
        ) from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        repeated = list(_repeated(node))  # before merge keys are resolved in place
        content = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date or number
        raise UsageError(
            f"{path} is not YAML: {' '.join(str(error).split())}", hint="quote texts with a colon, a brace or a `#`"
        ) from None
    faults = [f"{path}:{line}: {key!r} is there twice" for line, key in repeated]
    try:
        file = File.model_validate(content)
        faults += [_fault(path, node, where, "", message) for where, message in _cross_check(file, scale)]
    except ValidationError as error:
        faults += [_fault(path, node, fault["loc"], fault["type"], fault["msg"]) for fault in error.errors()]
    if faults:
        faults = list(dict.fromkeys(faults))
        more = [f"{len(faults) - MOST} more faults"] if len(faults) > MOST else []
        raise UsageError([*faults[:MOST], *more], hint="the grammar is in xtrrep/experiments/schema.py")
    return file


def _repeated(node: Any) -> Iterator[tuple[int, str]]:
    """(line, key) of every key that a mapping of the file has for the second time: YAML would keep the last alone."""
    waiting, seen = [node], set()
    while waiting:
        at = waiting.pop()
        if id(at) in seen:  # an alias
            continue
        seen.add(id(at))
        if isinstance(at, yaml.SequenceNode):
            waiting += at.value
        elif isinstance(at, yaml.MappingNode):
            waiting += [part for pair in at.value for part in pair]
            keys = [(key.start_mark.line + 1, key.value) for key, _ in at.value if isinstance(key, yaml.ScalarNode)]
            names = [name for _, name in keys]
            yield from ((line, name) for place, (line, name) in enumerate(keys) if name in names[:place])


def _fault(path: Path, node: Any, where: Sequence[str | int], kind: str, message: str) -> str:
    """FILE:LINE: PLACE: what is wrong, with a suggestion for a misspelt key."""
    line, at, place = 1, node, []
    for part in where:
        if isinstance(at, yaml.MappingNode):
            entry = next((pair for pair in at.value if pair[0].value == str(part)), None)
            if entry is None:
                break
            line, at = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(at, yaml.SequenceNode) and isinstance(part, int) and part < len(at.value):
            at = at.value[part]
            line = at.start_mark.line + 1
        place.append(str(part))
    told = message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        told = f"unknown key {where[-1]!r}. {suggest(str(where[-1]), _keys_at(where[:-1]))}"
    elif kind == "missing":
        told = f"{where[-1]!r} is missing"
    return f"{path}:{line}: {'.'.join(map(str, where)) or 'the file'}: {told}"


def _keys_at(where: Sequence[str | int]) -> list[str]:
    """The keys that a place of the file may have."""
    parts: dict[str, type[Part]] = {
        "columns": ColumnPart,
        "rows": RowPart,
        "readings": ReadingPart,
        "comparisons": ComparisonPart,
        "best": BestPart,
        "gates": GatePart,
        "baselines": BaselinePart,
    }
    parts |= {"here": StandIn, "lab": StandIn}
    named = [parts[str(part)] for part in where if str(part) in parts]
    return list((named[-1] if named else File).model_fields)


def _cross_check(file: File, scale: str) -> Iterable[tuple[tuple[str | int, ...], str]]:
    """What one part of a file says of another. Yields (place, fault)."""
    forms = [name for name in ("rows", "axes", "cells", "readings") if getattr(file, name)]
    if len(forms) != 1 and forms != ["rows", "axes"]:
        listed = " and ".join(forms) or "none"
        yield (), f"it needs one of rows, axes, cells or readings, and has {listed}"
        return
    if (file.analysis is None) != (not file.readings):
        yield ("analysis",), "`analysis` and `readings` go together"
    elif file.analysis is not None and file.analysis not in analyses.entries():
        yield ("analysis",), f"no analysis named {file.analysis!r}. {suggest(file.analysis, analyses.entries())}"
    if (file.rows or file.axes) and not file.columns:
        yield (forms[0],), "rows need columns: NAME: {data: ID, measure: nDCG@10}"
    if (file.figure == "speed_and_quality" and not file.axes) != (file.quality is not None):
        yield ("figure",), "`figure: speed_and_quality` and `quality` go together, except beside `axes`"
    yield from _cross_check_axes(file)
    placed = {key for key, column in file.columns.items() if column.data is not None}
    expected = file.tolerance is not None or any(row.paper for row in file.rows)
    for key in set(file.columns) - placed if placed or expected else ():
        yield ("columns", key), "'data' is missing"
    if file.numbers and scale not in file.numbers:
        yield ("numbers",), f"it has no numbers for scale={scale}"
    if file.cells and not file.comparisons:
        yield ("cells",), "nothing reads the cells: they need comparisons"
    parts = ((("columns",), file.columns), (("here", "columns"), file.here.columns),
             (("lab", "columns"), file.lab.columns))  # fmt: skip
    for place, columns in parts if file.figure == "k_prime_sweep" and not file.axes else ():
        for name, column in columns.items():
            if not parse_overrides(column.overrides).get("retrieve.k_prime", "").isdigit():
                yield (*place, name), "figure k_prime_sweep needs overrides: [retrieve.k_prime=N]"
    quoted = {*file.columns, *file.means}
    rows = [row.name for row in file.rows]
    for number, row in enumerate(file.rows):
        if rows.count(row.name) > 1:
            yield ("rows", number), f"row {row.name!r} is there twice"
        if row.baseline is not None and row.baseline not in rows:
            yield ("rows", number, "baseline"), f"{row.baseline!r} is no row. {suggest(row.baseline, rows)}"
        for quote in row.paper:
            if quote not in quoted:
                yield ("rows", number, "paper", quote), f"{quote!r} is no column. {suggest(quote, quoted)}"
    for name, group in file.means.items():
        for member in group:
            if member not in file.columns:
                yield ("means", name), f"{member!r} is no column. {suggest(member, file.columns)}"
    keys = [f"{reading.name}, {reading.column}" for reading in file.readings]
    for number, key in enumerate(keys):
        if keys.count(key) > 1:
            yield ("readings", number), f"{key!r} is read twice"
    ids = [comparison.id for comparison in file.comparisons]
    cells = {*file.cells, *file.best}
    for name, best in file.best.items():
        for cell in set(best.of) - set(file.cells):
            yield ("best", name), f"{cell!r} is no cell. {suggest(cell, file.cells)}"
    for number, comparison in enumerate(file.comparisons):
        if ids.count(comparison.id) > 1:
            yield ("comparisons", number), f"comparison {comparison.id!r} is there twice"
        for cell in (*comparison.plus, *comparison.minus) if comparison.analysis is None else ():
            if cell not in cells:
                yield ("comparisons", number), f"{cell!r} is no cell. {suggest(cell, cells)}"
        if comparison.value == "seconds" and (both := {*comparison.plus, *comparison.minus} & set(file.best)):
            yield ("comparisons", number), f"the best of several cells has no seconds: {', '.join(sorted(both))}"
    for number, gate in enumerate(file.gates):
        for cell in {gate.cell, gate.like} - set(file.cells):
            yield ("gates", number), f"{cell!r} is no cell. {suggest(cell, file.cells)}"
    own: dict[tuple[str | int, ...], Sequence[str]] = {("cells", name): texts for name, texts in file.cells.items()}
    own |= {("comparisons", number): comparison.overrides for number, comparison in enumerate(file.comparisons)}
    for where, texts in own.items():
        try:
            filled(texts, file.numbers.get(scale, {}))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            known = ", ".join(file.numbers.get(scale, {})) or "none"
            yield where, f"it uses {error}, which `numbers` does not give (it gives: {known})"


def _cross_check_axes(file: File) -> Iterable[tuple[tuple[str | int, ...], str]]:
    """Axes, and what names them."""
    drawn = False
    for number, row in enumerate(file.rows if file.axes else ()):
        if row.overrides is None:
            yield ("rows", number), "a row beside `axes` needs overrides"
    for name, choices in file.axes.items():
        for choice, texts in choices.items():
            drawn |= choice == EACH
            if (choice == EACH) != any(text in SOURCES for text in texts) or (choice == EACH and len(texts) > 1):
                yield ("axes", name, choice), f"`each` and a source go together: each: {' or '.join(SOURCES)}"
                return
    if file.baseline is not None and not drawn and file.baseline not in (names := list(crossed(file.axes))):
        yield ("baseline",), f"{file.baseline!r} is no row. {suggest(file.baseline, names)}"
    named: list[tuple[tuple[str | int, ...], str, str]] = []
    for number, baseline in enumerate(file.baselines):
        named += [(("baselines", number), *pair) for pair in (*baseline.at.items(), *baseline.since.items())]
    for key, column in file.columns.items():
        try:
            filled(column.overrides, {SMALLEST: "", LARGEST: ""})
        except (KeyError, IndexError, ValueError) as error:
            yield ("columns", key), f"it uses {error}, and there are {{{SMALLEST}}} and {{{LARGEST}}}"
        named += [(("columns", key), *pair) for pair in (*column.against.items(), *column.without.items())]
        if overlap_depth(column.measure) and not column.against:
            yield ("columns", key), "an overlap is with another row: against: {axis: choice}"
    named += [(("spread",), file.spread, LARGEST)] if file.spread is not None else []
    named += [(("figure",), STEP, LARGEST)] if file.figure == "steps" else []
    named += [(("figure",), K_PRIME, LARGEST)] if file.figure == "k_prime_sweep" and file.axes else []
    for place, axis, choice in named:
        known = [*file.axes.get(axis, ()), SMALLEST, LARGEST]
        if axis not in file.axes:
            yield place, f"{axis!r} is no axis. {suggest(axis, file.axes)}"
        elif choice not in known and EACH not in known:
            yield place, f"{axis} has no choice {choice!r}. {suggest(choice, known)}"


def filled(texts: Iterable[str], numbers: Mapping[str, str]) -> Overrides:
    return parse_overrides(text.format(**numbers) if "{" in text else text for text in texts)
