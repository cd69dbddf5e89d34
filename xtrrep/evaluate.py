"""Measures by their ir-measures names, per query first.

A judged query that returned nothing counts 0. Ties and self matches were settled in the run already (runfile.py,
retrieve.py), so every provider reads the same ranking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError, UsageError
from xtrrep.data import LARGEST_GRADE, RENAME, text_fault
from xtrrep.runfile import Run

if TYPE_CHECKING:
    import pandas


DEEPEST = 10**6  # documents that a measure may look at
EXAMPLES = "ir-measures names, for example nDCG@10, R@100, RR@10, Success@5"


def parse(names: Sequence[str]) -> dict[str, Any]:
    """ir-measures objects by the names given, e.g. `nDCG@10`. Raises UsageError for a name it does not know."""
    import ir_measures

    if not names:
        raise UsageError("data.measures names no measure", hint=EXAMPLES)
    parsed = {}
    for name in names:
        try:
            parsed[name] = measure = ir_measures.parse_measure(name)
        except Exception:  # it reads names with Python's own parser and calls what it finds: any kind
            raise UsageError(f"no measure is called {name!r}", hint=EXAMPLES) from None
        try:
            measure.validate_params()
        except AssertionError as error:  # its own way to say that a cut-off is no number of documents
            raise UsageError(f"measure {name!r} has an {error}", hint=EXAMPLES) from None
        cutoff = measure.params.get("cutoff", 1)
        if isinstance(cutoff, bool) or not 1 <= cutoff <= DEEPEST:
            raise UsageError(f"measure {name!r} looks at {cutoff!r} documents", hint=EXAMPLES)
        if not ir_measures.DefaultPipeline.supports(measure):
            raise UsageError(f"measure {name!r} cannot be computed by what is installed", hint=EXAMPLES)
        if type(measure.aggregator()).__name__ != "MeanAgg":
            raise UsageError(f"measure {name!r} is a count, not a mean over queries", hint=EXAMPLES)
    return parsed


def canonical(name: str) -> str:
    """The name ir-measures itself prints: `Recall@100` is `R@100`, `MRR@10` is `RR@10`."""
    return str(parse([name])[name])


def _check_names(names: Sequence[str], where: str) -> None:
    for name in names:
        if fault := "has a NUL character" if "\0" in name else text_fault(name):
            raise DataError(f"the id {name!r} in the {where} {fault}", hint=RENAME)


def evaluate(qrels: Mapping[str, Mapping[str, int]], run: Run, measures: Sequence[str]) -> pandas.DataFrame:
    """Per-query values: one row per judged query (in the order of `qrels`), one column per measure as named.

    Raises DataError when a run with results holds none of the judged queries: that is a mix-up, not a score of 0. Also
    for an id, a grade or a score that trec_eval would take for another or die of.
    """
    import ir_measures
    import pandas

    if run and not run.keys() & qrels.keys():
        raise DataError("the run holds none of the judged queries", hint="data=ID of the collection that the run is of")
    for query, ranking in run.items():
        _check_names([query, *(document for document, _ in ranking)], "run")
        if not all(math.isfinite(score) for _, score in ranking):
            raise DataError(
                f"the run gives query {query!r} a score that is not finite",
                hint="make the run again; a document without a score is left out",
            )
    for query, grades in qrels.items():
        _check_names([query, *grades], "judgements")
        if any(abs(grade) > LARGEST_GRADE for grade in grades.values()):
            raise DataError(f"query {query!r} has a grade beyond {LARGEST_GRADE:,}", hint="grades are small integers")
    parsed = parse(measures)
    # trec_eval writes outside its memory at a grade below 0. To every measure such a document is one that is not
    # relevant, as with 0.
    judged = [ir_measures.Qrel(q, d, max(0, grade)) for q, row in qrels.items() for d, grade in row.items()]
    scored = [ir_measures.ScoredDoc(q, d, s) for q, row in run.items() if q in qrels for d, s in row]
    values = {name: dict.fromkeys(qrels, 0.0) for name in parsed}
    names: dict[Any, list[str]] = {}
    for name, measure in parsed.items():
        names.setdefault(measure, []).append(name)
    try:
        for metric in ir_measures.iter_calc(list(names), judged, scored):
            for name in names[metric.measure]:
                values[name][metric.query_id] = float(metric.value)
    except Exception as error:  # each provider raises its own kinds, a missing interpreter among them
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"computing {', '.join(parsed)} failed: {reason}", hint=EXAMPLES) from error
    return pandas.DataFrame(values).rename_axis("query")


def read_by_query(path: Path) -> pandas.DataFrame:
    """A CSV with a row a query, such as per_query.csv, by query id: an id is a text, `NA` or `007` included."""
    import pandas

    columns = pandas.read_csv(path, nrows=0).columns
    empty = {name: [""] for name in columns if name != "query"}
    return pandas.read_csv(path, index_col="query", dtype={"query": str}, keep_default_na=False, na_values=empty)
