"""The explorer's HTML. It works without script: a form whose address holds the whole state. All texts are escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping
from itertools import groupby

from xtrrep.explore.answers import Answer, Passage
from xtrrep.explore.indexes import Indexed
from xtrrep.explore.state import K_PRIMES, SCORINGS, SIDES, Column, State
from xtrrep.report.page import page
from xtrrep.retrieval.explain import Explanation, in_words
from xtrrep.retrieval.explain_page import STYLE as HEAT
from xtrrep.retrieval.explain_page import heat_map
from xtrrep.retrieval.imputation import imputations

# Nothing but this server is asked, and no script runs but its own file.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'"
)
LEVELS = 4
SHOWN_CHARACTERS = 600
SCORING_NAMES = {"xtr": "XTR", "colbert": "ColBERT (MaxSim)"}

STYLE = (
    HEAT
    + """
form.ask{display:flex;flex-wrap:wrap;gap:.5rem;margin:1rem 0}
form.ask input[type=search]{flex:1 1 16rem;font:inherit;padding:.4rem .6rem}
button,select{font:inherit;padding:.3rem .6rem;max-width:100%}
.columns{display:grid;gap:1rem 2rem}.columns>*{min-width:0}
@media(min-width:46rem){.columns{grid-template-columns:1fr 1fr}}
fieldset{border:1px solid var(--line);display:grid;gap:.4rem;min-width:0}
fieldset label{display:grid;grid-template-columns:7rem 1fr;align-items:center;gap:.5rem}
fieldset label>*{min-width:0}fieldset select,fieldset input[type=range]{width:100%;min-width:0}
fieldset .depth{display:flex;gap:.5rem;align-items:center}
fieldset output{min-width:4.5em;text-align:right;font-variant-numeric:tabular-nums}
ol.found{padding-left:1.6rem}ol.found li{margin:0 0 1rem}
ol.found h3{font-size:1rem;margin:0}ol.found p{margin:.2rem 0}
mark{color:inherit;padding:0 .05em}mark.m2,mark.m3{border-bottom:2px solid #08306b}
mark.m0{background:#eef4fb}mark.m1{background:#d3e3f3}mark.m2{background:#abcbe6}mark.m3{background:#7fb1da}
"""
)


def whole(state: State, found: Mapping[str, Indexed], results: tuple[str, str], why: str, collection: str) -> str:
    """The page. results: the two columns' HTML; why: that of the explanation, or nothing."""
    columns = "\n".join(
        f'<div>{_controls(side, column, found)}<section id="{side}" aria-label="{side} results" aria-live="polite">'
        f"{result}</section></div>"
        for side, column, result in zip(SIDES, state.columns, results, strict=True)
    )
    body = f"""
<form class="ask" method="get" action="/" id="ask">
<input type="search" name="q" value="{html.escape(state.query)}" aria-label="query"
placeholder="type a query"{"" if state.query else " autofocus"}>
<button>Search</button>
</form>
<p class="soft">{html.escape(collection)}. The address of this page holds its state: copy it to share or keep it.</p>
<div class="columns">
{columns}
</div>
{why}
<script src="/explore.js"></script>
"""
    return page("xtrrep explore", body, STYLE, POLICY)


def _controls(side: str, column: Column, found: Mapping[str, Indexed]) -> str:
    index = found[column.index]
    groups = []
    for model, members in groupby(found.values(), key=lambda one: one.model):
        options = "".join(
            _option(one.name, one.name.removeprefix(model).strip() + (f" · {model}" if model else ""), column.index)
            for one in members
        )
        groups.append(f'<optgroup label="{html.escape(model or "no model")}">{options}</optgroup>')
    lines = [f'<label>index <select name="{side}.index" form="ask">{"".join(groups)}</select></label>']
    if index.is_token_engine:
        scorings = "".join(_option(name, SCORING_NAMES[name], column.scoring) for name in SCORINGS)
        imputed = "".join(_option(name, name, column.imputation) for name in imputations.entries())
        asked = f"{column.k_prime:,}"
        lines += [
            f'<label>scoring <select name="{side}.scoring" form="ask">{scorings}</select></label>',
            f'<label>k\' <span class="depth"><input type="range" name="{side}.depth" form="ask" min="0" '
            f'max="{len(K_PRIMES) - 1}" value="{column.depth}" aria-valuetext="{asked} tokens" data-side="{side}" '
            f'data-stops="{" ".join(map(str, K_PRIMES))}"><output>{asked}</output></span></label>',
            f'<label>imputation <select name="{side}.imputation" form="ask">{imputed}</select></label>',
        ]
    return f"<fieldset><legend>{side}</legend>{''.join(lines)}</fieldset>"


def _option(value: str, text: str, chosen: str) -> str:
    selected = " selected" if value == chosen else ""
    return f'<option value="{html.escape(value)}"{selected}>{html.escape(text)}</option>'


def column(state: State, side: int, answer: Answer) -> str:
    """One column's ranking."""
    items = "\n".join(_passage(passage, state, side) for passage in answer.passages)
    listing = f'<ol class="found">{items}</ol>' if items else "<p>Nothing found.</p>"
    return f"<p>{html.escape(answer.words)} <span class=soft>{1000 * answer.seconds:.0f} ms</span></p>{listing}"


def failed(message: str) -> str:
    return f"<p><strong>{html.escape(message)}</strong></p>"


def _passage(passage: Passage, state: State, side: int) -> str:
    address = html.escape(state.address(side, passage.id)) + "#why"
    return (
        f'<li><h3><a href="{address}">{html.escape(passage.id)}</a> '
        f'<span class="soft">{passage.score:.4f}</span></h3><p>{marked(passage)}</p></li>'
    )


def marked(passage: Passage) -> str:
    """The beginning of a passage's text, its spans marked the darker the more similar the query token is."""
    parts, at = [], 0
    text = passage.text[:SHOWN_CHARACTERS]
    for span in sorted(passage.spans, key=lambda span: span.start):
        if span.start < at or span.end > len(text):
            continue
        level = min(LEVELS - 1, int(LEVELS * max(0.0, span.strength)))
        parts += [html.escape(text[at : span.start])]
        parts += [f'<mark class="m{level}">{html.escape(text[span.start : span.end])}</mark>']
        at = span.end
    parts.append(html.escape(text[at:]))
    return "".join(parts) + ("…" if len(passage.text) > len(text) else "")


def why(explanation: Explanation, side: int) -> str:
    """The heat map of one document."""
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in in_words(explanation))
    return (
        f'<section id="why"><h2>Why {html.escape(explanation.document)} ({SIDES[side]})</h2>{lines}'
        f"{heat_map(explanation)}</section>"
    )
