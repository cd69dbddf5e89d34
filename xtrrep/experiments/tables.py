"""A result of an experiment as tables: cell by cell, in the study's shape, differences, claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from xtrrep.experiments import pareto
from xtrrep.experiments.comparison import ALPHA, MATERIAL, SAME_PROCESSES
from xtrrep.experiments.result import DIFFERS, NO_DIFFERENCE, NOT_RUN, UNTRAINED, Effect, Result
from xtrrep.report.table import Table

MARK = "†"
QPS = "qps"


def tables(result: Result) -> dict[str, Table]:
    """The tables of a result by file name, the one to read first in front."""
    shown: dict[str, Table] = {}
    if result.figure == "pareto":
        shown["pareto"] = pareto.table(result)
    if result.columns:
        shown["grid"] = grid(result)
    if result.kind == "claims":
        shown["table"] = claims(result)
    elif result.expected:
        shown["table"] = expected(result)
    if result.kind in ("grid", "analysis") and any(effect.column for effect in result.effects):
        shown["differences"] = differences(result)
    if result.spread is not None:
        shown["spread"] = spread(result)
    if result.kind != "claims" and not all(effect.column for effect in result.effects):
        shown["comparisons"] = claims(result)
    return shown


# --- tables -----------------------------------------------------------------------------------------------------------


def expected(result: Result) -> Table:
    """One line a cell: what the paper printed, what was accepted, what came out now, and the verdict."""
    paper = "paper" if result.scale == "paper" else "paper (another setting)"
    sd = ["sd"] if result.seeds else []
    rows: list[list[object]] = []
    for cell in result.expected:
        difference = None if cell.now is None or cell.against is None else cell.now - cell.against
        spread = [cell.sd] if result.seeds else []
        rows.append([cell.row, cell.column, cell.paper, cell.recorded, cell.now, *spread, difference, cell.verdict])
    footer = [f"scale={result.scale}; {result.rule}. {_counts([cell.verdict for cell in result.expected])}."]
    if result.seeds:
        footer.append(f"Means over training seeds {listed(result.seeds)}; sd is their standard deviation.")
    # A title names the study's collection; an analysis elsewhere is made on another.
    here = f", here {result.data}" if result.data and result.scale != "paper" else ""
    return Table(
        f"{result.title}{here}, scale={result.scale}",
        ["row", "column", paper, "recorded", "now", *sd, "difference", "verdict"],
        rows,
        [*footer, *result.notes],
        digits=3 if result.data else 2,
    )


def grid(result: Result) -> Table:
    """What was run in the study's own shape: a row a model, a column a collection, the best bold, differences marked.

    Rows that are only quoted are left out. A mark stands on a value that differs from its row's baseline.
    """
    columns = [*(column.name for column in result.columns), *result.means]
    measures = {column.name: column.measure for column in result.columns}
    against = [effect for effect in result.effects if effect.column]
    places = {(row, column): (r, c) for r, row in enumerate(result.rows) for c, column in enumerate(columns, start=1)}
    several = len({(effect.row, effect.column) for effect in against}) < len(against)  # a mark is of one baseline
    marked = [(effect.row, effect.column) for effect in against if effect.verdict == DIFFERS]
    scored = [column.name for column in result.columns if column.is_measure or column.measure == QPS]
    unit = "queries a second" if set(measures.values()) == {QPS} else "in points"
    if result.kind == "analysis":
        unit = "measures in points"
    notes = ["; ".join([*_measures({name: measures[name] for name in scored}), unit]) + "."]
    if result.seeds:
        notes.append(f"Means over training seeds {listed(result.seeds)}.")
    tested = [effect for effect in against if effect.verdict != NOT_RUN]
    if tested:
        mark = "Differs from its baselines" if several else f"{MARK}: differs from {_baselines(result, against)}"
        notes.append(f"{mark}, p < {ALPHA} ({_test(result)}, Holm over {len(tested)} pairs). {len(marked)} of them do.")
    notes.append(f"scale={result.scale}. Bold, where there is any: the best of its column.")
    body = [[*_named(result, row), *(result.now(row, column) for column in columns)] for row in result.rows]
    for at, column in enumerate(columns, start=len(_head(result))):
        known = [line[at] for line in body if isinstance(line[at], float)]
        if column not in [*scored, *result.means] and all(value.is_integer() for value in known):
            for line in body:
                line[at] = None if line[at] is None else int(line[at])
    wide = len(_head(result)) - 1
    return Table(
        result.title,
        [*_head(result), *columns],
        body,
        [*notes, *result.remarks, *(result.notes if result.kind == "analysis" else ())],
        digits=2 if result.kind == "analysis" else 1,
        higher=[*scored, *result.means],
        marks={(places[key][0], places[key][1] + wide): MARK for key in marked if key in places and not several},
    )


def _head(result: Result) -> list[str]:
    """What rows are told apart by: of an analysis its axes, else a name."""
    return list(result.axes) if result.kind == "analysis" else [""]


def _named(result: Result, row: str) -> list[Any]:
    """A row's texts under `_head`; a row beside the axes has its name alone."""
    if result.kind != "analysis":
        return [row]
    return list(result.places.get(row, (row, *[None] * (len(result.axes) - 1))))


def differences(result: Result) -> Table:
    """One line a row and column: the difference from the baseline, its interval and its p."""
    rows: list[list[object]] = [
        [*_named(result, e.row), e.column, e.baseline, result.now(e.row, e.column), e.effect, e.low, e.high, e.p,
         "" if e.verdict == NO_DIFFERENCE else e.verdict, e.note]
        for e in result.effects
        if e.column
    ]  # fmt: skip
    columns = [
        *(_head(result) if result.kind == "analysis" else ["row"]),
        "column",
        "baseline",
        "now",
        "difference",
        "95 % low",
        "95 % high",
        "p (Holm)",
        "verdict",
        "note",
    ]
    tests = sum(e.p is not None for e in result.effects if e.column)
    notes = [f"In points. {_test(result)}; p by Holm's method over {tests} tests.", *_too_few(result, tests)]
    return Table(f"{result.title}: differences, scale={result.scale}", columns, rows, [*notes, *result.notes], digits=3)


def spread(result: Result) -> Table:
    """How much a choice that should not matter does: over the choices of one axis, a line for the rest of each row."""
    reads = list(
        dict.fromkeys((value.column, value.reads) for value in result.values if not value.runs and value.by_seed)
    )
    known = {value.key: value.mean for value in result.values}
    groups = list(dict.fromkeys(value.row for value in result.values if not value.runs and value.by_seed))
    columns = [f"{column}, {how}" for column, how in reads]
    body: list[list[object]] = [[name, *(known.get((name, *key)) for key in reads)] for name in groups]
    notes = [f"Over different artifacts of the axis {result.spread}. sd: of a sample. pairs: mean over their pairs."]
    title = f"{result.title}: spread over {result.spread}, scale={result.scale}"
    return Table(title, ["", *columns], body, [*notes, *result.remarks], digits=3)


def claims(result: Result) -> Table:
    """One line a claim, or a comparison of a file of your own. The footer says what the verdicts mean."""
    effects = [effect for effect in result.effects if not effect.column]
    columns: dict[str, list[object]] = {
        "claim": [e.id for e in effects],
        "family": [e.family for e in effects],
        "statement": [e.says for e in effects],
        "effect of": [e.of for e in effects],
        "expected": [e.expected for e in effects],
        "effect": [e.effect for e in effects],
        "95 % low": [e.low for e in effects],
        "95 % high": [e.high for e in effects],
        "p (Holm)": [e.p for e in effects],
        "power": [e.power for e in effects],
        "for an effect of": [e.detect for e in effects],
        "verdict": [e.verdict for e in effects],
        "note": [e.note for e in effects],
        "runs": [" ".join(e.runs) for e in effects],
    }
    for name in ("family", "power", "for an effect of"):
        if not any(columns[name]):  # a file names none, or a record is older
            del columns[name]
    families = Counter(effect.family for effect in effects if effect.p is not None)
    tests = (
        ", ".join(f"{count} tests" + (f" ({name})" if name else "") for name, count in families.items()) or "no test"
    )
    setting = "" if result.scale == "paper" else ", in another setting than the study's"
    if len(result.seeds) > 1:
        seeds = f"Training seeds {listed(result.seeds)}: intervals and p include the variation between trainings"
        seeds += "." if result.test else ", by Student's t of the seeds' means where that is the wider and the larger."
    else:
        seeds = "One training seed: intervals and p speak of queries, not of retraining."
    drawn = "" if result.test else f"percentile bootstrap, {result.resamples:,} resamples. "
    footer = [
        f"{_counts([e.verdict for e in effects])}. scale={result.scale}, {result.data}: a verdict is on these "
        f"runs{setting}.",
        f"> and <: two-sided {f'p {result.test}' if result.test else 'sign-flip p over queries'}, corrected by Holm's "
        f"method over {tests}. A claim is supported or contradicted, by the sign, where p < {ALPHA:g}, and "
        "inconclusive elsewhere.",
        "A stated interval: supported where the 95 % interval lies within it, contradicted where it lies outside, "
        "inconclusive elsewhere. Intervals are not corrected for their number.",
        f"Intervals: {drawn}{seeds}",
        "A ratio of nDCG@10 is of the means. A ratio of seconds or candidates is the geometric mean over queries.",
    ]
    if any(effect.power is not None for effect in effects):
        footer.append(
            "power: how often the test would find a true effect of the size beside it, with what varies as it varied "
            "here, at the first step of Holm's method."
        )
    timed = [effect for effect in effects if effect.of.startswith("seconds") and effect.effect is not None]
    if any(value.by_process for value in result.values) and timed:
        over = "trainings, each the mean of its processes" if len(result.seeds) > 1 else "processes"
        footer.append(
            f"Times: several processes a cell, in random order over the cells. Student's t over {over}; p asks whether "
            f"times differ by more than {MATERIAL - 1:.0%}. {SAME_PROCESSES} is the same cell, measured twice."
        )
    if any(effect.verdict == UNTRAINED for effect in effects):
        footer.append(f"{UNTRAINED}: it is too far below the same model in the other setup; the note has both.")
    if any(effect.note.startswith("over ") for effect in effects):
        footer.append(
            "For an analysis the note names the units, and the effect is the mean over them. The analysis' own table "
            "may weigh them by tokens, or pool all scores."
        )
    footer += _too_few(result, max(families.values(), default=0))
    title = (
        f"{'Claims of the study' if result.kind == 'claims' else result.title} on {result.data}, scale={result.scale}"
    )
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Table(title, list(columns), rows, [*footer, *result.notes])


def _too_few(result: Result, tests: int) -> list[str]:
    """A line where the resamples are so few that no p can be significant after correction."""
    least = 2 / (result.resamples + 1) * tests
    if least < ALPHA or result.test:  # the test of several seeds draws nothing
        return []
    return [
        f"With {result.resamples:,} resamples no p after correction over {tests} tests is below {least:.2g}: "
        f"analyze.resamples={round(2 * tests / ALPHA)} or more could support or contradict one."
    ]


def _counts(verdicts: Sequence[str]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in Counter(verdicts).items())


def listed(seeds: Sequence[int]) -> str:
    """Seeds in a line."""
    return ", ".join(map(str, seeds))


def _test(result: Result) -> str:
    """The test behind a p, in words."""
    if result.test:
        return f"two-sided {result.test}"
    seeds = ", and Student's t over the seeds' means, the larger p" if len(result.seeds) > 1 else ""
    return f"{result.resamples:,} sign flips over queries, two-sided{seeds}"


def _measures(measures: dict[str, str]) -> list[str]:
    """Which measure is which columns', where neither their names nor the unit say it."""
    said: dict[str, list[str]] = {}
    for column, measure in measures.items():
        if measure not in column and measure != QPS:
            said.setdefault(measure, []).append(column)
    return [f"{measure} of {', '.join(columns)}" for measure, columns in said.items()]


def _baselines(result: Result, effects: Sequence[Effect]) -> str:
    """In words, what the rows are tested against."""
    names = list(dict.fromkeys(effect.baseline for effect in effects))
    if result.kind == "analysis":
        pairs = [(result.places[effect.row], result.places[effect.baseline]) for effect in effects]
        moves = {at: base for one, two in pairs for at, base in enumerate(two) if base != one[at]}
        return "the row with " + ", ".join(f"{result.axes[at]} {moves[at]}" for at in sorted(moves))
    return names[0] if len(names) == 1 else "the row of its kind that is one of " + "; ".join(names)


def status(result: Result) -> str:
    """The verdict on a whole result: differs, missing or ok."""
    verdicts = {cell.verdict for cell in result.expected}
    if verdicts & {"higher", "lower"}:
        return "differs"
    if result.kind == "claims":
        return "ok" if any(effect.verdict != NOT_RUN for effect in result.effects) else "missing"
    empty = any(value.reason for value in result.values)
    return "missing" if NOT_RUN in verdicts or empty else "ok"
