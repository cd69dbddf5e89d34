"""What the page shows, and its address: the query and two columns, each with its index and how that is searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from xtrrep.explore.indexes import Indexed
from xtrrep.retrieval.imputation import imputations

SIDES = ("left", "right")
SCORINGS = ("xtr", "colbert")
K_PRIMES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 40000)  # the slider's stops


@dataclass(frozen=True)
class Column:
    """index: the name of an `Indexed`. depth: the slider's stop, a place in K_PRIMES. doc: the document explained."""

    index: str
    scoring: str = "xtr"
    depth: int = len(K_PRIMES) - 1
    imputation: str = "min"
    doc: str = ""

    @property
    def k_prime(self) -> int:
        return K_PRIMES[self.depth]


@dataclass(frozen=True)
class State:
    query: str
    columns: tuple[Column, Column]

    def address(self, side: int | None = None, doc: str = "") -> str:
        """The page's address with this state; with `side`, with a document of that column explained."""
        texts = {"q": self.query}
        for number, (name, column) in enumerate(zip(SIDES, self.columns, strict=True)):
            shown = column if side is None else replace(column, doc=doc if number == side else "")
            fields = vars(shown) | {"depth": str(shown.depth)}
            texts |= {f"{name}.{key}": value for key, value in fields.items() if value}
        return "/?" + urlencode(texts)


def first_state(found: Mapping[str, Indexed]) -> State:
    """The first index, beside another model under the same engine where there is one, else the other scoring."""
    names = list(found)
    first = found[names[0]]
    engine = first.name.removeprefix(first.model)
    other = next((n for n in names[1:] if n.removeprefix(found[n].model) == engine), None)
    left = Column(first.name, _scoring(first))
    if other is not None:
        return State("", (left, Column(other, _scoring(found[other]))))
    turned = "colbert" if left.scoring == "xtr" else "xtr"
    return State("", (left, replace(left, scoring=turned)))


def _scoring(index: Indexed) -> str:
    return index.scoring if index.scoring in SCORINGS else "xtr"


def read_state(parameters: Mapping[str, str], found: Mapping[str, Indexed]) -> State:
    """The state that an address holds. What it does not say, or says wrongly, is as at the start."""
    start = first_state(found)
    columns = [_read(parameters, name, column, found) for name, column in zip(SIDES, start.columns, strict=True)]
    return State(parameters.get("q", ""), (columns[0], columns[1]))


def _read(parameters: Mapping[str, str], side: str, column: Column, found: Mapping[str, Indexed]) -> Column:
    def given(key: str, known: object) -> str | None:
        value = parameters.get(f"{side}.{key}")
        return value if value in known else None  # type: ignore[operator]

    depth = given("depth", [str(number) for number in range(len(K_PRIMES))])
    return Column(
        given("index", found) or column.index,
        given("scoring", SCORINGS) or column.scoring,
        int(depth) if depth is not None else column.depth,
        given("imputation", imputations.entries()) or column.imputation,
        parameters.get(f"{side}.doc", ""),
    )
