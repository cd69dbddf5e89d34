"""Measures by their ir-measures names, per query first.

A judged query without results counts 0. A measure sees positions instead of scores and numbers instead of ids, so every
implementation reads the same ranking, whatever the ids look like and however scores tie. What an implementation returns
is checked: one finite value for each query that it was given, and nothing else.

pytrec_eval computes most measures; ir-measures' own code computes `Compat` and `Judged`. `ERR`, `nDCG(dcg='exp-log2')`
and `RR@k` are computed here: ir-measures runs a Perl script for the first two, which reads only numbered queries, takes
"a-7" for "7" and rounds to five digits, and its code for the third fails where no document has the grade asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError, UsageError, machine_error
from xtrrep.data import LARGEST_GRADE, RENAME, text_fault, text_id
from xtrrep.measure.run_file import Run, ranked, real_number

if TYPE_CHECKING:
    import pandas

    # query number -> its judged grades by document number; query number -> document numbers, best first
    Grades = Mapping[str, Mapping[str, int]]
    Rankings = Mapping[str, Sequence[str]]

DEEPEST = 10**6  # documents that a measure may look at
EXAMPLES = "ir-measures names, for example nDCG@10, R@100, RR@10, Success@5"
PROVIDERS = ("pytrec_eval", "compat", "judged")  # of ir-measures; each is tested against a naive implementation
ERR_GRADES = 4  # the largest grade of gdeval.pl and of the Web track
EXP_GRADES = 50  # the largest grade whose gain 2^grade - 1 is exact


def parse(names: Sequence[Any] | str) -> dict[str, Any]:
    """ir-measures objects by the names given, e.g. `nDCG@10`. One name, or ir-measures' own objects, will do too.

    Raises UsageError for a name that is not known, and for a measure that cannot be computed here or has no mean over
    the judged queries.
    """
    names = _names(names)
    parsed = {}
    for name in names:
        parsed[name] = measure = _parse(name)
        if reason := _refusal(measure):
            raise UsageError(f"measure {name!r} {reason}", hint=EXAMPLES)
    return parsed


def _names(names: Any) -> list[str]:
    """Measures as a list of texts. Raises UsageError for anything else."""
    from ir_measures import Measure

    if isinstance(names, str | Measure):
        names = [names]
    if isinstance(names, Mapping) or not hasattr(names, "__iter__"):
        raise UsageError(f"measures is a {type(names).__name__}, not a list of names", hint=EXAMPLES)
    found = list(names)
    for name in found:
        if not isinstance(name, str | Measure):
            raise UsageError(f"measures holds {name!r}, which is not the name of a measure", hint=EXAMPLES)
    if not found:
        raise UsageError("data.measures names no measure", hint=EXAMPLES)
    return [str(name) for name in found]


def _parse(name: str) -> Any:
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
    except Exception:  # it reads names with Python's own parser and calls what it finds: any kind
        raise UsageError(f"no measure is called {name!r}", hint=EXAMPLES) from None
    try:
        measure.validate_params()
    except AssertionError as error:  # its own way to say that a cut-off is no number of documents
        raise UsageError(f"measure {name!r} has an {error}", hint=EXAMPLES) from None
    return measure


def _refusal(measure: Any) -> str | None:
    """Why a measure has no value here, to follow its name; None where it has one."""
    import ir_measures

    params = measure.params
    for name in ("cutoff", "rel"):
        if isinstance(params.get(name), bool):
            return f"has {name}={params[name]}, which is not a number"
    if not 1 <= params.get("cutoff", 1) <= DEEPEST:
        return f"looks at {params['cutoff']!r} documents"
    if not 1 <= params.get("rel", 1) <= LARGEST_GRADE:
        return f"counts documents of grade {params['rel']} as relevant, and rel must be 1 or more"
    if type(measure.aggregator()).__name__ != "MeanAgg":
        return "is a count, not a mean over queries"
    if measure.NAME == "Accuracy":
        return "has no value for a query whose ranking holds no relevant document, so no mean over all judged queries"
    if measure.NAME == "IPrec" and not (
        0 <= measure["recall"] <= 1 and round(measure["recall"], 2) == measure["recall"]
    ):
        return "needs a recall from 0 to 1 in steps of 0.01"
    if measure.NAME == "SetF" and not 0 < measure["beta"] <= 1000:
        return "needs a beta above 0, and 1000 at most"
    if measure.NAME == "Compat" and not 0 < measure["p"] < 1:
        return "needs a p between 0 and 1"
    if any(not _is_grade(value) for pair in params.get("gains", {}).items() for value in pair):
        return f"has gains that are not whole numbers from 0 to {LARGEST_GRADE:,}"
    if _computed_here(measure) or _provider(_of_all(measure)):
        return None
    others = [p for name, p in ir_measures.providers.registry.items() if name not in PROVIDERS and p.supports(measure)]
    if any(provider.NAME == "pyndeval" for provider in others):
        return "needs judgements of each subtopic of a query, and xtrrep reads judgements of whole documents only"
    if any(provider.NAME == "cwl_eval" for provider in others):
        return "cannot be computed: ir-measures leaves it to the package cwl_eval, and xtrrep does not use that package"
    return "cannot be computed here with these parameters"


def _is_grade(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_GRADE


def canonical(name: str) -> str:
    """The name ir-measures itself prints: `Recall@100` is `R@100`, `MRR@10` is `RR@10`."""
    return str(parse([name])[name])


def check_grades(measures: Sequence[str], qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Raise DataError for judgements with a grade that one of the measures cannot take."""
    largest = max((grade for row in qrels.values() for grade in row.values()), default=0)
    name, limit = largest_grade(measures)
    if largest > limit:
        raise _too_large_grade(name, largest, limit)


def largest_grade(measures: Sequence[str]) -> tuple[str, int]:
    """The measure among `measures` with the lowest limit on grades, and that limit."""
    limits = {name: _largest_grade(measure) for name, measure in parse(measures).items()}
    name = min(limits, key=lambda name: limits[name])
    return name, limits[name]


def _largest_grade(measure: Any) -> int:
    if measure.NAME == "ERR":
        return ERR_GRADES
    return EXP_GRADES if measure.NAME == "nDCG" and measure["dcg"] == "exp-log2" else LARGEST_GRADE


def _of_all(measure: Any) -> Any:
    """The measure without `judged_only`, which is applied here: pytrec_eval reads outside its memory for an `IPrec` of
    no judged result."""
    return measure(judged_only=False) if measure.params.get("judged_only") else measure


# --- measures computed here ----------------------------------------------------------------------------------------


def _computed_here(measure: Any) -> Callable[[Any, Mapping[str, int], Sequence[str]], float] | None:
    """A function of (measure, grades, ranking) for a measure that no provider is used for; None for all others."""
    params = measure.params
    if measure.NAME == "ERR":
        return _err
    if measure.NAME == "RR" and "cutoff" in params:
        return _reciprocal_rank
    if measure.NAME == "nDCG" and measure["dcg"] == "exp-log2" and "gains" not in params:
        return _exp_ndcg
    return None


def _err(measure: Any, grades: Mapping[str, int], ranking: Sequence[str]) -> float:
    """Expected reciprocal rank (Chapelle et al. 2009), with grades from 0 to 4 as in gdeval.pl."""
    score, unsatisfied = 0.0, 1.0
    for rank, document in enumerate(ranking[: measure.params.get("cutoff")], start=1):
        satisfied = (2.0 ** grades.get(document, 0) - 1) / 2**ERR_GRADES
        score += unsatisfied * satisfied / rank
        unsatisfied *= 1 - satisfied
    return score


def _reciprocal_rank(measure: Any, grades: Mapping[str, int], ranking: Sequence[str]) -> float:
    for rank, document in enumerate(ranking[: measure["cutoff"]], start=1):
        if grades.get(document, 0) >= measure["rel"]:
            return 1.0 / rank
    return 0.0


def _exp_ndcg(measure: Any, grades: Mapping[str, int], ranking: Sequence[str]) -> float:
    """nDCG with gains 2^grade - 1 (Burges et al. 2005)."""

    def dcg(found: Sequence[int]) -> float:
        cut = found[: measure.params.get("cutoff")]
        return sum((2.0**grade - 1) / math.log2(rank + 1) for rank, grade in enumerate(cut, start=1))

    ideal = dcg(sorted(grades.values(), reverse=True))
    return dcg([grades.get(document, 0) for document in ranking]) / ideal if ideal else 0.0


# --- measures of ir-measures' providers ----------------------------------------------------------------------------


def _provider(measure: Any) -> Any:
    """The provider of ir-measures that computes a measure here; None where there is none."""
    import ir_measures

    found = (ir_measures.providers.registry[name] for name in PROVIDERS)
    return next((provider for provider in found if provider.supports(measure) and provider.is_available()), None)


def _from_provider(name: str, measure: Any, grades: Grades, rankings: Rankings) -> dict[str, float]:
    """A provider's values by query number, checked. Raises DataError for a provider that fails or returns others."""
    provider = _provider(measure)
    answered = {query: grades[query] for query in rankings}
    scored = {
        query: {document: float(len(ranking) - rank) for rank, document in enumerate(ranking)}
        for query, ranking in rankings.items()
    }
    try:
        # `iter_calc` would fill in 0 for a query that the provider forgot. One measure at a time: two of them that
        # a provider calls by one name, such as nDCG with and without gains, would take each other's values.
        metrics = list(provider.evaluator([measure], answered)._iter_calc(scored))
    except Exception as error:  # each provider raises its own kinds
        raise machine_error(error) or _provider_fault(name, provider, _reason(error)) from error
    values = {str(metric.query_id): float(metric.value) for metric in metrics}
    if len(metrics) != len(values) or values.keys() != answered.keys():
        fault = (
            f"it gave {len(metrics)} values for {len(answered)} queries, {len(values.keys() & answered.keys())} known"
        )
        raise _provider_fault(name, provider, fault)
    if not all(map(math.isfinite, values.values())):
        raise _provider_fault(name, provider, "a value is not finite")
    return values


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _provider_fault(name: str, provider: Any, reason: str) -> DataError:
    return DataError(
        f"{provider.NAME} of ir-measures could not compute {name!r}: {reason}",
        hint="leave this measure out of data.measures",
    )


# --- a run and its judgements --------------------------------------------------------------------------------------


def grades_of(qrels: Any) -> dict[str, dict[str, int]]:
    """Judgements as {query id: {document id: grade}} with text ids and int grades.

    Accepts whole numbers as ids and grades of any number type (NumPy's and torch's too). Raises UsageError for another
    type and DataError for a grade that is not whole or too large, an id twice, and no judgement at all.
    """
    hint = '{"q1": {"d1": 1}}: query id, document id, grade'
    if not isinstance(qrels, Mapping):
        raise UsageError(f"qrels is a {type(qrels).__name__}, not a dict of judgements", hint=hint)
    found: dict[str, dict[str, int]] = {}
    for key, row in qrels.items():
        query = text_id(key, "qrels")
        if query in found:
            raise DataError(f"qrels judges query {query!r} twice, under ids of two types", hint="ids are texts")
        if not isinstance(row, Mapping):
            raise UsageError(f"qrels[{query!r}] is a {type(row).__name__}, not a dict of grades", hint=hint)
        found[query] = {}
        for name, grade in row.items():
            document = text_id(name, f"qrels[{query!r}]")
            if document in found[query]:
                raise DataError(f"qrels[{query!r}] judges document {document!r} twice", hint="ids are texts")
            found[query][document] = _grade(grade, query, document)
    if not found:
        raise DataError("qrels judges no query, so there is nothing to average over", hint=hint)
    return found


def _grade(value: Any, query: str, document: str) -> int:
    hint = "grades are small integers"
    number = real_number(value)
    if number is None or not number.is_integer():
        raise DataError(f"query {query!r} grades document {document!r} {value!r}, not a whole number", hint=hint)
    if abs(number) > LARGEST_GRADE:
        raise DataError(f"query {query!r} has a grade beyond {LARGEST_GRADE:,}", hint=hint)
    return int(number)


def _check_names(names: Sequence[str], where: str) -> None:
    for name in names:
        if fault := "has a NUL character" if "\0" in name else text_fault(name):
            raise DataError(f"the id {name!r} in the {where} {fault}", hint=RENAME)


def evaluate(qrels: Mapping[str, Mapping[str, int]], run: Run, measures: Sequence[Any] | str) -> pandas.DataFrame:
    """Per-query values: one row per judged query (in the order of `qrels`), one column per measure as named.

    `qrels` is as `grades_of` takes it and `run` as `runfile.ranked` does. Raises DataError when a run with results
    holds none of the judged queries: that is a mix-up, not a score of 0. Also for a document ranked twice, and for an
    id, a grade or a score that cannot be used.
    """
    import pandas

    parsed = parse(measures)
    qrels, run = grades_of(qrels), ranked(run)
    if run and not run.keys() & qrels.keys():
        raise DataError("the run holds none of the judged queries", hint="data=ID of the collection that the run is of")
    for query, ranking in run.items():
        _check_names([query, *(document for document, _ in ranking)], "run")
    for query, row in qrels.items():
        _check_names([query, *row], "judgements")
    grades, rankings, numbers = _numbered(qrels, run)
    check_grades(list(parsed), qrels)
    values = {}
    for name, measure in parsed.items():
        seen = rankings
        if measure.params.get("judged_only"):
            kept = {query: [d for d in ranking if d in grades[query]] for query, ranking in rankings.items()}
            seen = {query: ranking for query, ranking in kept.items() if ranking}
        if (one := _computed_here(measure)) is not None:
            found = {query: one(measure, grades[query], ranking) for query, ranking in seen.items()}
        else:
            found = _from_provider(name, _of_all(measure), grades, seen)
        values[name] = {query: found.get(number, 0.0) for query, number in numbers.items()}
    return pandas.DataFrame(values).rename_axis("query")


def _too_large_grade(name: str, grade: int, limit: int) -> DataError:
    return DataError(
        f"measure {name!r} takes grades from 0 to {limit}, and the judgements hold {grade}",
        hint="leave the measure out of data.measures; nDCG@10 takes any grade",
    )


def _numbered(qrels: Mapping[str, Mapping[str, int]], run: Run) -> tuple[Grades, Rankings, dict[str, str]]:
    """(grades, rankings, query id -> number) with numbers in place of ids; only queries with results have a ranking.

    A grade below 0 becomes 0. trec_eval writes outside its memory at one, and to every measure such a document is one
    that is not relevant.
    """
    queries = {query: str(number) for number, query in enumerate(qrels, start=1)}
    documents: dict[str, str] = {}

    def number_of(document: str) -> str:
        return documents.setdefault(document, f"d{len(documents) + 1}")

    grades = {queries[q]: {number_of(d): max(0, grade) for d, grade in row.items()} for q, row in qrels.items()}
    rankings = {queries[q]: [number_of(d) for d, _ in row] for q, row in run.items() if row and q in queries}
    return grades, rankings, queries


def read_by_query(path: Path) -> pandas.DataFrame:
    """A CSV with a row a query, such as per_query.csv, by query id: an id is a text, `NA` or `007` included."""
    import pandas

    columns = pandas.read_csv(path, nrows=0).columns
    empty = {name: [""] for name in columns if name != "query"}
    return pandas.read_csv(path, index_col="query", dtype={"query": str}, keep_default_na=False, na_values=empty)
