"""Why a document scores what it scores: one query and one document, token by token, under XTR and under MaxSim.

Shapes: T query tokens, S document tokens. The numbers are those of retrieval (retrieve.py): the same token search, the
same imputation, the same treatment of empty slots. With an approximate engine a hit's score is the engine's own, which
is what XTR sums; the similarities beside it are exact.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtrrep import artifacts
from xtrrep.artifacts import Spec
from xtrrep.report.page import page
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import TokenSearcher
from xtrrep.retrieval.rank import imputed_values, with_empty_slots
from xtrrep.retrieval.retrieve import Setting, host_search
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


# --- as text -------------------------------------------------------------------------------------------------------


def table(explanation: Explanation) -> Table:
    """One row a query token: its best document token, whether that was retrieved, and what the token contributes."""
    lexical, found = explanation.lexical, explanation.evidence
    best = explanation.similarities.argmax(axis=1)
    rows: list[list[object]] = []
    for t, token in enumerate(explanation.query_tokens):
        at = int(best[t])
        row: list[object] = [token.name, explanation.document_tokens[at].name, float(explanation.similarities[t, at])]
        row += ["no" if np.isnan(found.hits[t, at]) else "yes", float(found.xtr[t]), _source(explanation, t)]
        rows.append([*row, "yes" if lexical[t, at] else "elsewhere" if lexical[t].any() else "no"])
    columns = ["query token", "best document token", "similarity", "retrieved?", "XTR contribution", "from", "lexical"]
    return Table(f"{explanation.document} for {explanation.query!r}", columns, rows, notes(explanation))


def _source(explanation: Explanation, t: int) -> str:
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
        "query_tokens": query_tokens,
        "document_tokens": [vars(token) for token in explanation.document_tokens],
        "similarities": explanation.similarities.tolist(),
    }


# --- as a page -----------------------------------------------------------------------------------------------------

LEVELS = 16
LIGHT, DARK = (255, 255, 255), (8, 48, 107)  # one hue that only darkens: the order survives in grey


def _levels() -> str:
    """CSS of the colour scale, each level with the ink that stands out from it."""
    rules = []
    for level in range(LEVELS):
        share = level / (LEVELS - 1)
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(LIGHT, DARK, strict=True))
        linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 255 / 12.92 for c in (red, green, blue)]
        luminance = sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        ink = "#000" if luminance > 0.18 else "#fff"  # where both have the same contrast
        rules.append(f".c{level}{{background:rgb({red},{green},{blue});color:{ink}}}")
    return "".join(rules)


STYLE = f"""
.sums{{display:flex;flex-wrap:wrap;gap:.5rem 2.5rem;margin:1rem 0}}.sums dt{{color:var(--soft)}}
.sums dd{{margin:0;font-size:1.5rem;font-variant-numeric:tabular-nums}}
.heat th,.heat td{{padding:.1rem .25rem;border:0}}
.heat tbody td.cell,.key .cell{{min-width:2.4em;text-align:right;font-size:.75rem}}
.heat thead th.token{{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;vertical-align:bottom;
 font-size:.75rem}}
.heat tbody th,.heat thead th:first-child,.heat tfoot th{{position:sticky;left:0;background:#fff;max-width:9rem;
 overflow:hidden;text-overflow:ellipsis;border-right:1px solid var(--line)}}
.heat .value{{text-align:right}}.heat tfoot th,.heat tfoot td{{border-top:2px solid var(--ink);font-weight:600}}
.heat tr.imputed td.value,.heat tr.imputed th{{font-style:italic}}
.retrieved{{box-shadow:inset 0 0 0 2px #000,inset 0 0 0 3px #fff}}
.cell b{{font-weight:700}}
.key{{display:flex;flex-wrap:wrap;gap:.5rem 1.5rem;padding:0;list-style:none}}
.key .cell{{display:inline-block;padding:.1rem .25rem}}
{_levels()}
"""


def as_html(explanation: Explanation) -> str:
    """One self-contained page: the two sums, the similarities as a heat map, the table, the document's text.

    All text of query, document and tokenizer is escaped.
    """
    found = explanation.evidence
    facts = "".join(
        f"<div><dt>{name}</dt><dd>{value:.4f}</dd></div>"
        for name, value in (("XTR", explanation.xtr_sum), ("MaxSim", explanation.maxsim_sum))
    )
    absent = "" if found.candidate else "<p><strong>No candidate:</strong> no token of it was retrieved.</p>"
    body = [
        f"<p>Query: <q>{html.escape(explanation.query)}</q></p>",
        f'<dl class="sums">{facts}</dl>',
        absent,
        "<h2>Similarities</h2>",
        _heat_map(explanation),
        "<h2>Token by token</h2>",
        table(explanation).html(),
        "<h2>The document</h2>",
        f"<p>{html.escape(explanation.text)}</p>",
    ]
    return page(f"Document {explanation.document}", "\n".join(body), STYLE)


def save(explanation: Explanation, index: Spec, root: Path) -> Path:
    """Leave the page in `root`/explain/, with its numbers beside it: page.html, table.csv, similarities.csv.

    `index` is the index that answered. Returns the folder, from which `xtrrep report` takes the page.
    """
    text = as_html(explanation)
    tokens = [f"{number} {token.name}" for number, token in enumerate(explanation.document_tokens)]
    names = [token.name for token in explanation.query_tokens]
    grid = [[name, *map(float, row)] for name, row in zip(names, explanation.similarities, strict=True)]

    def write(out: Path) -> dict[str, Any]:
        artifacts.write_atomic(out / "page.html", lambda file: file.write(text.encode(errors="replace")))
        table(explanation).save_csv(out / "table.csv")
        Table("", ["query token", *tokens], grid).save_csv(out / "similarities.csv")
        return {"query_tokens": len(names), "document_tokens": len(tokens)}

    asked = {"query": explanation.query, "document": explanation.document}
    spec = Spec("explain", index.label, 1, asked, {"index": index.fingerprint}, {"page": artifacts.digest(text)})
    return artifacts.make(spec, root, write)


def _heat_map(explanation: Explanation) -> str:
    """(T, S) cells in hundredths, retrieved ones outlined, lexical ones marked with an equals sign."""
    similarities, found, lexical = explanation.similarities, explanation.evidence, explanation.lexical
    low, high = float(similarities.min()), float(similarities.max())
    levels = np.floor((similarities - low) / max(high - low, 1e-9) * (LEVELS - 1) + 0.5).astype(int)
    tokens = "".join(
        f'<th scope="col" class="token">{html.escape(token.name)}</th>' for token in explanation.document_tokens
    )
    head = '<th scope="col">query token</th><th scope="col">XTR</th><th scope="col">MaxSim</th>'
    rows = []
    for t, token in enumerate(explanation.query_tokens):
        cells = "".join(
            f'<td class="cell c{level}{"" if np.isnan(hit) else " retrieved"}">{round(100 * float(value))}'
            f"{'<b>=</b>' if same else ''}</td>"
            for level, hit, value, same in zip(levels[t], found.hits[t], similarities[t], lexical[t], strict=True)
        )
        from_hit = found.sources[t] == HIT
        label = "" if from_hit else f" {html.escape(_source(explanation, t))}"
        rows.append(
            f'<tr{"" if from_hit else " class=imputed"}><th scope="row">{html.escape(token.name)}</th>'
            f'<td class="value">{found.xtr[t]:.4f}{label}</td><td class="value">{explanation.maxsim[t]:.4f}</td>'
            f"{cells}</tr>"
        )
    count = len(explanation.document_tokens)
    foot = f'<th scope="row">sum</th><td class="value">{explanation.xtr_sum:.4f}</td>'
    foot += f'<td class="value">{explanation.maxsim_sum:.4f}</td><td colspan="{count}"></td>'
    return "\n".join(
        [
            "<figure>",
            _key(low, high),
            '<div class="scroll" role="region" tabindex="0" aria-label="Similarities of query and document tokens">',
            '<table class="heat"><caption>Query tokens by document tokens, similarity × 100</caption>',
            f"<thead><tr>{head}{tokens}</tr></thead>",
            "<tbody>",
            *rows,
            f"</tbody><tfoot><tr>{foot}</tr></tfoot></table></div>",
            f"<figcaption>{html.escape(notes(explanation)[0])}. The figure scrolls sideways.</figcaption>",
            "</figure>",
        ]
    )


def _key(low: float, high: float) -> str:
    scale = "".join(f'<span class="cell c{level}">&nbsp;</span>' for level in range(LEVELS))
    return (
        f'<ul class="key"><li>{low:.2f} {scale} {high:.2f}</li>'
        '<li><span class="cell c3 retrieved">31</span> among the k\' hits</li>'
        '<li><span class="cell c3">31<b>=</b></span> same word (vocabulary id)</li></ul>'
    )
