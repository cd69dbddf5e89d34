"""Why a document scores what it scores: one query and one document, token by token, under XTR and under MaxSim.

Shapes: T query tokens, S document tokens. The numbers are those of retrieval (retrieve.py): the same token search, the
same imputation, the same treatment of empty slots. With an approximate engine a hit's score is the engine's own, which
is what XTR sums; the similarities beside it are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep.report.table import Table
from xtrrep.retrieval.engines import TokenSearcher
from xtrrep.retrieval.rank import imputed_values, with_empty_slots
from xtrrep.retrieval.retrieve import HitSearch, MaximaSearch, Setting, host_search, rank_query
from xtrrep.store.encode import Store

WORD, SPECIAL, EXPANSION, POOLED = "word", "special", "expansion", "pooled"
HIT, IMPUTED, EMPTY_SLOT = "hit", "imputed", "empty slot"


@dataclass(frozen=True)
class Token:
    """A token as the tokenizer writes it. id: its vocabulary id, -1 for a pooled vector; kind: "word", "special",
    "expansion" (added to fill up the query) or "pooled" (one vector for several tokens)."""

    text: str
    id: int
    kind: str

    @property
    def name(self) -> str:
        """As tables show it, with its kind where it is no word."""
        return self.text if self.kind in (WORD, POOLED) else f"{self.text} ({self.kind})"


@dataclass(frozen=True)
class Contributions:
    """What each query token contributes to one document's XTR score, and from where.

    hits: (T, S) the score of each retrieved token, NaN where it was not among the k' hits; xtr: (T,) what each query
    token contributes; sources: (T,) "hit", "imputed", or "empty slot" where protocol.missing_slots=zero credits one to
    the first document; candidate: whether anything of the document was retrieved, without which a search leaves it out.
    """

    hits: NDArray[np.float32]
    xtr: NDArray[np.float64]
    sources: list[str]
    candidate: bool


@dataclass(frozen=True)
class Smaller:
    """The same document at a smaller k': how many query tokens are imputed there, and the score."""

    k_prime: int
    imputed: int
    xtr: float


@dataclass(frozen=True)
class Rival:
    """The document ranked next. difference: (T,) what each query token gives the explained document more than it."""

    document: str
    difference: NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """A query and a document, token by token. `similarities` are (T, S) dot products of unit vectors."""

    query: str
    document: str
    text: str
    engine: str
    setting: Setting  # its imputation is what XTR uses here, even where the search itself ranks by MaxSim
    query_tokens: list[Token]
    document_tokens: list[Token]
    similarities: NDArray[np.float32]
    evidence: Contributions
    smaller: tuple[Smaller, ...] = ()
    rival: Rival | None = None

    @property
    def expansion(self) -> list[int]:
        """The query tokens that fill up the query, where there are several: pages show them as one row."""
        found = [t for t, token in enumerate(self.query_tokens) if token.kind == EXPANSION]
        return found if len(found) > 1 else []

    @property
    def maxsim(self) -> NDArray[np.float64]:
        """(T,) the best similarity of each query token: its part of MaxSim."""
        best: NDArray[np.float64] = self.similarities.max(axis=1).astype(np.float64)
        return best

    @property
    def lexical(self) -> NDArray[np.bool_]:
        """(T, S) where query and document token have the same vocabulary id, special tokens included."""
        ids = [np.array([token.id for token in tokens]) for tokens in (self.query_tokens, self.document_tokens)]
        same: NDArray[np.bool_] = (ids[0][:, None] == ids[1][None, :]) & (ids[0] >= 0)[:, None]
        return same

    @property
    def xtr_sum(self) -> float:
        """XTR's score; of a document that is no candidate, what it would be from imputed values alone."""
        return float(self.evidence.xtr.sum())

    @property
    def maxsim_sum(self) -> float:
        return float(self.maxsim.sum())


def tokens_of(tokenizer: Any, ids: NDArray[np.int32], expansion: dict[str, Any] | None = None) -> list[Token]:
    """The tokens behind stored vocabulary ids (tokens,).

    `expansion` is the encoder's query expansion: the run of its token at the end fills up the query.
    """
    numbers = [int(number) for number in ids]
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.convert_ids_to_tokens([max(number, 0) for number in numbers])
    filled = len(numbers)
    if expansion is not None:
        word = expansion.get("token") or tokenizer.mask_token or tokenizer.eos_token  # sentence-transformers' order
        while filled and numbers[filled - 1] == tokenizer.convert_tokens_to_ids(word):
            filled -= 1
    found = []
    for place, (number, text) in enumerate(zip(numbers, texts, strict=True)):
        if number < 0:
            found.append(Token("(pooled)", number, POOLED))
        else:
            found.append(Token(text, number, EXPANSION if place >= filled else SPECIAL if number in special else WORD))
    return found


def contributions(
    searcher: TokenSearcher, documents: Store, vectors: NDArray[np.float32], number: int, setting: Setting
) -> Contributions:
    """What the k' hits of (T, H) query vectors say of document `number`, from the evidence that retrieval ranks."""
    search = host_search(searcher, documents, [vectors], [replace(setting, scoring="xtr")])
    return contributions_of(search, documents, vectors, number, setting)


def contributions_of(
    search: HitSearch | MaximaSearch,
    documents: Store,
    vectors: NDArray[np.float32],
    number: int,
    setting: Setting,
) -> Contributions:
    """As `contributions`, from a search that was made before, at least as deep as the setting's k'."""
    evidence = search.evidence(0, setting)
    known = with_empty_slots(evidence, setting)
    own, best = evidence.best_of(number), known.best_of(number)
    imputed = np.isnan(best)
    sources = [
        IMPUTED if none else HIT if hit == value else EMPTY_SLOT
        for none, hit, value in zip(imputed, own, best, strict=True)
    ]
    similarities = vectors @ documents.vectors(number).astype(np.float32).T
    hits = search.token_hits(0, setting, int(documents.offsets[number]), similarities)
    xtr = np.where(imputed, imputed_values(known, setting), best) if imputed.any() else best
    return Contributions(hits, xtr, sources, not imputed.all())


def at_smaller(
    searcher: TokenSearcher, documents: Store, vectors: NDArray[np.float32], number: int, setting: Setting
) -> tuple[Smaller, ...]:
    """The document's XTR score at each power of ten below k', from 10 on, where something of it is imputed."""
    found = []
    for k_prime in (10**power for power in range(5, 0, -1)):
        if k_prime < setting.k_prime:
            other = contributions(searcher, documents, vectors, number, replace(setting, k_prime=k_prime))
            if imputed := other.sources.count(IMPUTED):
                found.append(Smaller(k_prime, imputed, float(other.xtr.sum())))
    return tuple(found)


def next_document(
    searcher: TokenSearcher, documents: Store, vectors: NDArray[np.float32], number: int, setting: Setting
) -> Rival | None:
    """The document that a search ranks right behind `number`; None where it ranks none there."""
    ranked = [name for name, _ in rank_query(searcher, documents, vectors, setting)]
    name = documents.ids[number]
    if name not in ranked[:-1]:
        return None
    other = ranked[ranked.index(name) + 1]
    given = []
    for place in (number, documents.ids.index(other)):
        if setting.scoring == "xtr" and not setting.rerank:
            given.append(contributions(searcher, documents, vectors, place, setting).xtr)
        else:
            given.append((vectors @ documents.vectors(place).astype(np.float32).T).max(axis=1))
    return Rival(other, np.asarray(given[0] - given[1], np.float64))


# --- as text -------------------------------------------------------------------------------------------------------


def table(explanation: Explanation, *, grouped: bool = False) -> Table:
    """One row a query token: its best document token, whether that was retrieved, and what the token contributes.

    grouped: the tokens that fill up the query are one row.
    """
    lexical, found = explanation.lexical, explanation.evidence
    best = explanation.similarities.argmax(axis=1)
    together = explanation.expansion if grouped else []
    rows: list[list[object]] = []
    for t, token in enumerate(explanation.query_tokens):
        if t in together:
            continue
        at = int(best[t])
        row: list[object] = [token.name, explanation.document_tokens[at].name, float(explanation.similarities[t, at])]
        row += ["no" if np.isnan(found.hits[t, at]) else "yes", float(found.xtr[t]), share(explanation, [t])]
        rows.append(
            [*row, source(explanation, t), "yes" if lexical[t, at] else "elsewhere" if lexical[t].any() else "no"]
        )
    if together:
        retrieved = sum(not np.isnan(found.hits[t, best[t]]) for t in together)
        imputed = sum(found.sources[t] == IMPUTED for t in together)
        name = f"{len(together)} x {explanation.query_tokens[together[0]].name}"
        row = [name, None, float(explanation.maxsim[together].sum()), f"{retrieved} of {len(together)}"]
        row += [float(found.xtr[together].sum()), share(explanation, together), f"{imputed} imputed", None]
        rows.append(row)
    columns = ["query token", "best document token", "similarity", "retrieved?", "XTR contribution", "share, %", "from"]
    title = f"{explanation.document} for {explanation.query!r}"
    return Table(title, [*columns, "lexical"], rows, [*in_words(explanation), *notes(explanation)])


def share(explanation: Explanation, tokens: list[int]) -> float | None:
    """What some query tokens contribute, in percent of XTR's score; None where that is not positive."""
    whole = explanation.xtr_sum
    return round(100 * float(explanation.evidence.xtr[tokens].sum()) / whole, 1) if whole > 0 else None


def in_words(explanation: Explanation) -> list[str]:
    """Which query tokens carry the difference to the next document, and what a smaller k' would impute."""
    lines = []
    if rival := explanation.rival:
        together = explanation.expansion
        parts = [
            (repr(token.name), float(rival.difference[t]))
            for t, token in enumerate(explanation.query_tokens)
            if t not in together
        ]
        if together:
            parts.append((f"the {len(together)} expansion tokens", float(rival.difference[together].sum())))
        largest = sorted(parts, key=lambda part: -abs(part[1]))[:3]
        given = ", ".join(f"{name} {value:+.4f}" for name, value in largest)
        whole = float(rival.difference.sum())
        lines.append(
            f"It is {whole:.4f} ahead of the next document, {rival.document}. The largest differences: {given}."
        )
    count = len(explanation.query_tokens)
    for other in explanation.smaller:
        lines.append(
            f"At k'={other.k_prime:,}, {other.imputed} of {count} query tokens would be imputed: XTR {other.xtr:.4f}."
        )
    return lines


def source(explanation: Explanation, t: int) -> str:
    source = explanation.evidence.sources[t]
    return f"imputed ({explanation.setting.imputation})" if source == IMPUTED else source


def notes(explanation: Explanation) -> list[str]:
    """The two sums, and the conventions behind them."""
    setting, found = explanation.setting, explanation.evidence
    count, imputed = len(explanation.query_tokens), found.sources.count(IMPUTED)
    ranked = "XTR" if setting.scoring == "xtr" else "MaxSim"
    again = f", then its best {setting.rerank} again by MaxSim" if setting.rerank else ""
    lines = [
        f"XTR     {explanation.xtr_sum:.4f}  engine={explanation.engine}, k'={setting.k_prime:,}, "
        f"imputation={setting.imputation}: {imputed} of {count} query tokens imputed",
        f"MaxSim  {explanation.maxsim_sum:.4f}  the sum of the similarities; search ranks by {ranked}{again}",
        "retrieved?: whether the best document token is among the query token's k' hits. lexical: whether it has the "
        "same vocabulary id, or one elsewhere in the document has.",
    ]
    if not found.candidate:
        lines.insert(1, "        no token of the document was retrieved: it is no candidate, and no search returns it")
    return lines


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Everything as plain values; similarities (T, S), `retrieved` and `lexical` as document token numbers."""
    found, setting, lexical = explanation.evidence, explanation.setting, explanation.lexical
    rival = explanation.rival
    query_tokens = []
    for t, token in enumerate(explanation.query_tokens):
        query_tokens.append(
            {
                **vars(token),
                "best": int(explanation.similarities[t].argmax()),
                "maxsim": float(explanation.maxsim[t]),
                "xtr": float(found.xtr[t]),
                "from": found.sources[t],
                "retrieved": np.flatnonzero(~np.isnan(found.hits[t])).tolist(),
                "lexical": np.flatnonzero(lexical[t]).tolist(),
            }
        )
    return {
        "query": explanation.query,
        "document": explanation.document,
        "text": explanation.text,
        "engine": explanation.engine,
        "k_prime": setting.k_prime,
        "imputation": setting.imputation,
        "ranked_by": setting.scoring,
        "rerank": setting.rerank,
        "candidate": found.candidate,
        "xtr": explanation.xtr_sum,
        "maxsim": explanation.maxsim_sum,
        "smaller": [vars(other) for other in explanation.smaller],
        "next": None if rival is None else {"document": rival.document, "difference": rival.difference.tolist()},
        "query_tokens": query_tokens,
        "document_tokens": [vars(token) for token in explanation.document_tokens],
        "similarities": explanation.similarities.tolist(),
    }
