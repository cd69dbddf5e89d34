"""Every measure that ir-measures offers agrees with a naive implementation on awkward data, or is refused by name."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ir_measures
import numpy as np
import pytest

from xtrrep.console import DataError, UsageError, XtrrepError
from xtrrep.measure.evaluate import PROVIDERS, evaluate, parse
from xtrrep.measure.run_file import Run

Grades = Mapping[str, int]
Qrels = dict[str, dict[str, int]]

# One way to spell an id a line: what a provider has been seen to strip, split, convert or die of.
SPELLINGS: dict[str, Callable[[int], str]] = {
    "numbers": str,
    "zeros before": lambda n: f"{n:05d}",
    "hyphens": lambda n: f"web-{n}-1",  # gdeval.pl keeps what follows the last hyphen: the same for all
    "hyphen and letters": lambda n: f"trec-b-{n}-x",
    "spaces": lambda n: f"page {n}",
    "dots": lambda n: f"{n}.0",
    "quotes": lambda n: f'"{n}\'s"',
    "unicode": lambda n: f"é東{n}",
    "commas and tabs": lambda n: f"a,{n}\tb",
    "comment": lambda n: f"#{n}",
    "float": lambda n: f"{n}e3",
    "long": lambda n: "x" * 300 + str(n),
}


def made_up(seed: int) -> tuple[Qrels, Run]:
    """Judgements and a run with awkward ids, ties, a query without results and one that only the run knows."""
    rng = random.Random(seed)
    spelling = list(SPELLINGS.values())[seed % len(SPELLINGS)]
    other = rng.choice(list(SPELLINGS.values()))
    documents = [other(n) for n in range(40)]
    qrels = {
        spelling(n): {d: rng.choice([-1, 0, 0, 1, 2, 4]) for d in rng.sample(documents, rng.randint(1, 15))}
        for n in range(6)
    }
    qrels[spelling(98)] = dict.fromkeys(documents[:4], 0)  # nothing relevant
    run: Run = {}
    for query in [*list(qrels)[:-2], list(qrels)[-1]]:  # one judged query is missing
        found = rng.sample(documents, rng.randint(1, 30))
        if seed % 3:
            run[query] = [(d, round(rng.uniform(-2, 2), 1)) for d in found]  # ties, in no order, below 0
        else:
            run[query] = [(d, -1e30 + rng.randint(0, 5)) for d in found]  # one score, as a float32 sees it
    run[next(iter(qrels))] = []
    run[spelling(99)] = [(documents[0], 1.0)]
    return qrels, run


# --- the naive implementations: grades of a query, its ranking, the measure's parameters ---------------------------


def relevant(grades: Grades, rel: int) -> set[str]:
    return {d for d, grade in grades.items() if grade >= rel}


def hits(grades: Grades, ranking: Sequence[str], rel: int) -> list[bool]:
    return [grades.get(d, 0) >= rel for d in ranking]


def precision(grades: Grades, ranking: Sequence[str], rel: int = 1, cutoff: int = 0) -> float:
    return sum(hits(grades, ranking[:cutoff], rel)) / cutoff


def recall(grades: Grades, ranking: Sequence[str], rel: int = 1, cutoff: int = 0) -> float:
    return sum(hits(grades, ranking[:cutoff], rel)) / max(1, len(relevant(grades, rel)))


def reciprocal(grades: Grades, ranking: Sequence[str], rel: int = 1, cutoff: int | None = None) -> float:
    return next((1 / (i + 1) for i, hit in enumerate(hits(grades, ranking[:cutoff], rel)) if hit), 0.0)


def r_precision(grades: Grades, ranking: Sequence[str], rel: int = 1) -> float:
    count = len(relevant(grades, rel))
    return sum(hits(grades, ranking[:count], rel)) / count if count else 0.0


def average(grades: Grades, ranking: Sequence[str], rel: int = 1, cutoff: int | None = None) -> float:
    found = hits(grades, ranking[:cutoff], rel)
    return sum(sum(found[: i + 1]) / (i + 1) for i, hit in enumerate(found) if hit) / max(1, len(relevant(grades, rel)))


def success(grades: Grades, ranking: Sequence[str], rel: int = 1, cutoff: int = 0) -> float:
    return float(any(hits(grades, ranking[:cutoff], rel)))


def ndcg(
    grades: Grades,
    ranking: Sequence[str],
    cutoff: int | None = None,
    dcg: str = "log2",
    gains: Mapping[int, int] | None = None,
) -> float:
    def gain(grade: int) -> float:
        mapped = (gains or {}).get(grade, grade)
        return float(2**mapped - 1 if dcg == "exp-log2" else mapped)

    def total(values: list[float]) -> float:
        return sum(value / math.log2(i + 2) for i, value in enumerate(values[:cutoff]))

    judged = {d: gain(grade) for d, grade in grades.items()}
    best = total(sorted(judged.values(), reverse=True))
    return total([judged.get(d, 0.0) for d in ranking]) / best if best else 0.0


def set_precision(grades: Grades, ranking: Sequence[str], rel: int = 1, relative: bool = False) -> float:
    most = min(len(ranking), len(relevant(grades, rel))) if relative else len(ranking)
    return sum(hits(grades, ranking, rel)) / most if most else 0.0


def set_recall(grades: Grades, ranking: Sequence[str], rel: int = 1) -> float:
    return sum(hits(grades, ranking, rel)) / max(1, len(relevant(grades, rel)))


def set_f(grades: Grades, ranking: Sequence[str], rel: int = 1, beta: float = 1.0) -> float:
    p, r = set_precision(grades, ranking, rel), set_recall(grades, ranking, rel)
    return (beta + 1) * p * r / (r + beta * p) if p + r else 0.0  # trec_eval's beta is not squared


def set_ap(grades: Grades, ranking: Sequence[str], rel: int = 1) -> float:
    return set_precision(grades, ranking, rel) * set_recall(grades, ranking, rel)


def interpolated(grades: Grades, ranking: Sequence[str], recall: float = 0.0, rel: int = 1) -> float:
    """The highest precision from the rank on at which int(recall x relevant + 0.9) relevant documents are found."""
    found, count = hits(grades, ranking, rel), len(relevant(grades, rel))
    wanted = int(recall * count + 0.9)
    best = [sum(found[: i + 1]) / (i + 1) for i in range(len(found)) if sum(found[: i + 1]) >= wanted]
    return max(best, default=0.0)


def bpref(grades: Grades, ranking: Sequence[str], rel: int = 1) -> float:
    good, bad, total = len(relevant(grades, rel)), len(grades) - len(relevant(grades, rel)), 0.0
    before = 0
    for document in ranking:
        if document not in grades:
            continue
        if grades[document] >= rel:
            total += 1 - min(before, good) / min(good, bad) if before else 1
        else:
            before += 1
    return total / good if good else 0.0


def inf_ap(grades: Grades, ranking: Sequence[str], rel: int = 1) -> float:
    total, good, bad, tiny = 0.0, 0, 0, 0.00001
    for i, document in enumerate(ranking):
        if document not in grades:
            continue
        if grades[document] < rel:
            bad += 1
            continue
        total += (
            1 / (i + 1)
            if i == 0
            else 1 / (i + 1) + (i / (i + 1)) * ((good + bad) / i) * ((good + tiny) / (good + bad + 2 * tiny))
        )
        good += 1
    return total / max(1, len(relevant(grades, rel)))


def judged(grades: Grades, ranking: Sequence[str], cutoff: int | None = None) -> float:
    cut = ranking[:cutoff]
    return sum(d in grades for d in cut) / len(cut) if cut else 0.0


def compat(grades: Grades, ranking: Sequence[str], p: float = 0.95, normalize: bool = True) -> float:
    def overlap(one: Sequence[str], other: Sequence[str], depth: int) -> float:
        weights = [p**i for i in range(depth)]
        shares = [len({*one[: i + 1]} & {*other[: i + 1]}) / (i + 1) for i in range(depth)]
        return sum(w * s for w, s in zip(weights, shares, strict=True)) / sum(weights)

    places = {d: i for i, d in enumerate(ranking)}
    ideal = sorted(relevant(grades, 1), key=lambda d: (-grades[d], places.get(d, math.inf)))
    depth = max(len(ranking), len(ideal))
    best = overlap(ideal, ideal, depth) if normalize else 0.0
    return overlap(ranking, ideal, depth) / (best or 1.0)


def err(grades: Grades, ranking: Sequence[str], cutoff: int | None = None) -> float:
    total = 0.0
    stops = [(2 ** grades.get(d, 0) - 1) / 16 for d in ranking[:cutoff]]
    for i, stop in enumerate(stops):
        total += stop * math.prod(1 - earlier for earlier in stops[:i]) / (i + 1)
    return total


NAIVE: dict[str, Callable[..., float]] = {
    "P": precision,
    "R": recall,
    "RR": reciprocal,
    "Rprec": r_precision,
    "AP": average,
    "Success": success,
    "nDCG": ndcg,
    "SetP": set_precision,
    "SetR": set_recall,
    "SetF": set_f,
    "SetAP": set_ap,
    "IPrec": interpolated,
    "Bpref": bpref,
    "infAP": inf_ap,
    "Judged": judged,
    "Compat": compat,
    "ERR": err,
}
VALUES: dict[str, list[Any]] = {
    "cutoff": [1, 3, 10, 1000],
    "rel": [2, 5],
    "judged_only": [True],
    "gains": [{1: 3, 2: 3}, {4: 10}],
    "dcg": ["exp-log2"],
    "beta": [0.5, 2.0],
    "recall": [0.0, 0.1, 0.35, 1.0],
    "relative": [True],
    "p": [0.5, 0.8],
    "normalize": [False],
    "T": [2.0],
    "alpha": [0.3],
    "min_rel": [1],
    "max_rel": [4],
}


def spelled(name: str, params: Mapping[str, Any]) -> str:
    inner = ",".join(f"{key}={value!r}" for key, value in params.items() if key not in ("cutoff", "recall"))
    at = [str(params[key]) for key in ("cutoff", "recall") if key in params]
    return name + (f"({inner})" if inner else "") + (f"@{at[0]}" if at else "")


def every_measure() -> Iterator[str]:
    """Each measure of ir-measures plain, with each of its parameters changed, and with two of them at once."""
    for name, measure in sorted({m.NAME: m for m in ir_measures.measures.registry.values()}.items()):
        assert measure.SUPPORTED_PARAMS.keys() <= VALUES.keys(), f"no values for a parameter of {name}"
        needed = {key: VALUES[key][-1] for key, info in measure.SUPPORTED_PARAMS.items() if info.required}
        if "cutoff" in needed:
            needed["cutoff"] = 10
        yield spelled(name, needed)
        for key in measure.SUPPORTED_PARAMS:
            for value in VALUES[key]:
                yield spelled(name, {**needed, key: value})
                yield spelled(name, {**{k: VALUES[k][0] for k in measure.SUPPORTED_PARAMS}, key: value})


EVERY = list(dict.fromkeys(every_measure()))


def is_accepted(name: str) -> bool:
    try:
        parse([name])
    except UsageError as error:
        if repr(name) not in str(error):
            raise
        return False
    return True


ACCEPTED = [name for name in EVERY if is_accepted(name)]
RUNS = [made_up(seed) for seed in range(50)]


def naive(name: str, grades: Grades, ranking: Sequence[str]) -> float:
    measure = ir_measures.parse_measure(name)
    params = dict(measure.params)
    clipped = {d: max(0, grade) for d, grade in grades.items()}
    if params.pop("judged_only", False):
        ranking = [d for d in ranking if d in grades]
    return NAIVE[measure.NAME](clipped, ranking, **params) if ranking else 0.0


def order(row: Sequence[tuple[str, float]]) -> list[str]:
    """Our rule: by score as float32, then by position."""
    return [d for d, _ in sorted(row, key=lambda pair: -np.float32(pair[1]))]


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_measure_is_what_its_definition_says(name: str) -> None:
    for qrels, run in RUNS:
        values = evaluate(qrels, run, [name])[name]
        assert list(values.index) == list(qrels)
        for query, grades in qrels.items():
            expected = naive(name, grades, order(run.get(query, [])))
            assert values[query] == pytest.approx(expected, abs=1e-9), (query, grades, run.get(query))


def test_which_measures_are_accepted() -> None:
    accepted = {ir_measures.parse_measure(name).NAME for name in ACCEPTED}
    assert accepted == NAIVE.keys()
    refused = {ir_measures.parse_measure(name).NAME for name in EVERY} - accepted
    assert {"Accuracy", "NumRet", "NumRel", "NumQ", "RBP", "alpha_nDCG"} <= refused


def test_measures_together_are_what_they_are_alone() -> None:
    """A provider calls nDCG with and without gains by one name, and one would take the other's value."""
    qrels, run = RUNS[1]
    together = evaluate(qrels, run, ACCEPTED)
    for name in ACCEPTED:
        alone = evaluate(qrels, run, [name])[name]
        assert together[name].tolist() == alone.tolist(), name


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_ids_of_any_spelling_score_alike(spelling: str) -> None:
    qrels, run = made_up(0)
    names = {name: n for n, name in enumerate(dict.fromkeys([*qrels, *run]))}
    documents = {d: n for n, d in enumerate(dict.fromkeys([d for row in qrels.values() for d in row]))}

    def q(name: str) -> str:
        return SPELLINGS[spelling](names[name])

    def d(name: str) -> str:
        return SPELLINGS[spelling](documents.setdefault(name, len(documents)))

    renamed = {q(name): {d(doc): grade for doc, grade in row.items()} for name, row in qrels.items()}
    rerun = {q(name): [(d(doc), score) for doc, score in row] for name, row in run.items()}
    assert evaluate(renamed, rerun, ACCEPTED).to_numpy().tolist() == evaluate(qrels, run, ACCEPTED).to_numpy().tolist()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ERR_IA@10", "subtopic"),
        ("RBP(rel=1)", "cwl_eval"),
        ("Accuracy@10", "no value for a query whose ranking holds no relevant document"),
        ("NumRet", "is a count"),
        ("nDCG(dcg='exp-log2',gains={1:2})@10", "cannot be computed here with these parameters"),
        ("P(rel=0)@5", "grade 0 as relevant"),
        ("P(rel=True)@5", "rel=True"),
        ("IPrec@0.333", "steps of 0.01"),
        ("IPrec@1.5", "steps of 0.01"),
        ("SetF(beta=0.0)", "beta above 0"),
        ("Compat(p=1.0)", "p between 0 and 1"),
        ("nDCG(gains={1:-3})@10", "gains"),
        ("nDCG(gains={1:1.5})@10", "gains"),
    ],
)
def test_a_refusal_says_why(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"measure .*{says}"):
        parse([name])


def test_a_grade_that_a_measure_cannot_take() -> None:
    run = {"q": [("d", 1.0)]}
    for name, grade in (("ERR@10", 5), ("nDCG(dcg='exp-log2')@10", 51)):
        with pytest.raises(DataError, match="takes grades from 0 to"):
            evaluate({"q": {"d": grade}}, run, [name])
        assert evaluate({"q": {"d": grade - 1}}, run, [name]).loc["q", name] > 0


class Broken:
    """A provider that returns what it likes."""

    def __init__(self, metrics: list[tuple[str, float]]) -> None:
        self.metrics = metrics

    def evaluator(self, measures: Any, qrels: Any) -> "Broken":
        self.measure = measures[0]
        return self

    def _iter_calc(self, run: Any) -> Iterator[Any]:
        for query, value in self.metrics:
            yield ir_measures.Metric(query, self.measure, value)

    def supports(self, measure: Any) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    NAME = "broken"


@pytest.mark.parametrize(
    "metrics",
    [
        [("1", 0.5)],  # one too few
        [("1", 0.5), ("2", 0.5), ("3", 0.5)],  # one of no query
        [("1", 0.5), ("1", 0.5), ("2", 0.5)],  # one twice
        [("1", 0.5), ("7-2", 0.5)],
        [("1", 0.5), ("2", math.nan)],
        [("1", 0.5), ("2", math.inf)],
    ],
)
def test_what_a_provider_returns_is_checked(metrics: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ir_measures.providers.registry, PROVIDERS[0], Broken(metrics))
    qrels, run = {"a-1": {"d": 1}, "b-1": {"d": 1}}, {"a-1": [("d", 1.0)], "b-1": [("d", 1.0)]}
    with pytest.raises(DataError, match="broken of ir-measures could not compute 'nDCG@10'"):
        evaluate(qrels, run, ["nDCG@10"])


def test_no_perl_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert evaluate({"a-7": {"d": 2}}, {"a-7": [("d", 1.0)]}, ["ERR@10"]).loc["a-7", "ERR@10"] == 3 / 16


@pytest.mark.parametrize("measures", [None, 7, {"nDCG@10": 1}, [7], [None], [], ["nDCG@10", b"P@5"]])
def test_measures_of_a_wrong_type(measures: Any) -> None:
    with pytest.raises(XtrrepError) as caught:
        parse(measures)
    assert "nDCG@10" in caught.value.hint


def test_one_name_and_an_object_will_do() -> None:
    assert list(parse("nDCG@10")) == list(parse([ir_measures.nDCG @ 10])) == ["nDCG@10"]
