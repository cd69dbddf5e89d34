"""Scores over several collections at once: BEIR reports CQADupStack as the mean of its twelve forums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from xtrrep import config as configs
from xtrrep.cli.output import print_json
from xtrrep.console import UsageError, say
from xtrrep.measure.evaluate import canonical
from xtrrep.pipeline import identity
from xtrrep.report.table import Table

if TYPE_CHECKING:
    from xtrrep.api import Result

MEAN = "mean"


def parts_named(overrides: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each collection that `data=` stands for, by id; nothing where it is a single one."""
    names = [text.removeprefix("data=") for text in overrides if text.startswith("data=")]
    others = [text for text in overrides if not text.startswith("data=")]
    return {id: [*others, f"data={id}"] for id in (configs.parts_of(names[-1]) if names else [])}


def refuse(options: dict[str, object]) -> None:
    """Raise UsageError for an option that is of one collection alone."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{name} is for one collection, and data= names several", hint=f"leave {name} out")


def evaluate(parts: dict[str, list[str]], run: Callable[[list[str]], Result], json: bool) -> None:
    """Evaluate each collection with `run`, and print a row for each and their mean."""
    results = {id: run(overrides) for id, overrides in parts.items()}
    first = next(iter(results.values())).plan.cfg
    names = [canonical(name) for name in first.data.measures]
    rows: list[list[object]] = [
        [id, *(float(result.facts["measures"][name]) for name in names)] for id, result in results.items()
    ]
    means = {name: fmean(float(result.facts["measures"][name]) for result in results.values()) for name in names}
    if json:
        each = {id: {"folder": str(result.folder), **result.facts["measures"]} for id, result in results.items()}
        print_json({"measures": means, "collections": each})
        return
    made = sum(len(result.ran) for result in results.values())
    say(f"{made} stages run, {sum(len(result.reused) for result in results.values())} re-used")
    model = identity.model_label(first) if identity.needs_model(first) else identity.engine_label(first)
    footer = [f"scale={first.scale}, protocol={first.protocol.name}; the mean has one value a collection"]
    title = f"{next(iter(parts)).rpartition('/')[0]}, {model}, index={identity.engine_label(first)}"
    print(Table(title, ["collection", *names], [*rows, [MEAN, *means.values()]], footer).terminal())
