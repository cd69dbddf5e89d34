"""The page of an explanation: a heat map, the table and the document's text, and the files that are kept of it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from xtrrep import artifacts
from xtrrep.artifacts import Spec
from xtrrep.report.page import page
from xtrrep.report.table import Table
from xtrrep.retrieval.explain import HIT, Explanation, in_words, notes, share, source, table

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
        *(f"<p>{html.escape(line)}</p>" for line in in_words(explanation)),
        "<h2>Similarities</h2>",
        heat_map(explanation),
        "<h2>Token by token</h2>",
        table(explanation, grouped=True).html(),
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


def heat_map(explanation: Explanation) -> str:
    """(T, S) cells in hundredths, retrieved ones outlined, lexical ones marked with an equals sign.

    The tokens that fill up the query are one row, whose own rows open under the figure.
    """
    low, high = float(explanation.similarities.min()), float(explanation.similarities.max())
    together = explanation.expansion
    shown = [t for t in range(len(explanation.query_tokens)) if t not in together]
    parts = ["<figure>", _key(low, high), _grid(explanation, shown, "Query tokens by document tokens", together)]
    if together:
        percent = share(explanation, together)
        summary = f"{len(together)} expansion tokens" + ("" if percent is None else f", {percent:.1f} % of XTR's score")
        parts += [
            f"<details><summary>{summary}</summary>",
            _grid(explanation, together, "Expansion tokens"),
            "</details>",
        ]
    parts.append(
        f"<figcaption>{html.escape(notes(explanation)[0])}. The figure scrolls sideways.</figcaption></figure>"
    )
    return "\n".join(parts)


def _grid(explanation: Explanation, shown: list[int], caption: str, together: list[int] | None = None) -> str:
    """The heat map of some query tokens; `together`: others that are one row of sums."""
    similarities, found, lexical = explanation.similarities, explanation.evidence, explanation.lexical
    low, high = float(similarities.min()), float(similarities.max())
    levels = np.floor((similarities - low) / max(high - low, 1e-9) * (LEVELS - 1) + 0.5).astype(int)
    tokens = "".join(
        f'<th scope="col" class="token">{html.escape(token.name)}</th>' for token in explanation.document_tokens
    )
    head = '<th scope="col">query token</th><th scope="col">XTR</th><th scope="col">MaxSim</th>'
    rows = []
    for t in shown:
        cells = "".join(
            f'<td class="cell c{level}{"" if np.isnan(hit) else " retrieved"}">{round(100 * float(value))}'
            f"{'<b>=</b>' if same else ''}</td>"
            for level, hit, value, same in zip(levels[t], found.hits[t], similarities[t], lexical[t], strict=True)
        )
        from_hit = found.sources[t] == HIT
        label = "" if from_hit else f" {html.escape(source(explanation, t))}"
        rows.append(
            f'<tr{"" if from_hit else " class=imputed"}><th scope="row">{html.escape(explanation.query_tokens[t].name)}'
            f'</th><td class="value">{found.xtr[t]:.4f}{label}</td><td class="value">{explanation.maxsim[t]:.4f}</td>'
            f"{cells}</tr>"
        )
    if together:
        rows.append(_sums(explanation, f"{len(together)} expansion", together))
    foot = _sums(explanation, "sum", [*shown, *(together or [])])
    return "\n".join(
        [
            f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}: similarities">',
            f'<table class="heat"><caption>{caption}, similarity × 100</caption>',
            f"<thead><tr>{head}{tokens}</tr></thead>",
            "<tbody>",
            *rows,
            f"</tbody><tfoot>{foot}</tfoot></table></div>",
        ]
    )


def _sums(explanation: Explanation, name: str, tokens: list[int]) -> str:
    """A row with what some query tokens give together."""
    xtr, maxsim = explanation.evidence.xtr[tokens].sum(), explanation.maxsim[tokens].sum()
    return (
        f'<tr><th scope="row">{name}</th><td class="value">{xtr:.4f}</td><td class="value">{maxsim:.4f}</td>'
        f'<td colspan="{len(explanation.document_tokens)}"></td></tr>'
    )


def _key(low: float, high: float) -> str:
    scale = "".join(f'<span class="cell c{level}">&nbsp;</span>' for level in range(LEVELS))
    return (
        f'<ul class="key"><li>{low:.2f} {scale} {high:.2f}</li>'
        '<li><span class="cell c3 retrieved">31</span> among the k\' hits</li>'
        '<li><span class="cell c3">31<b>=</b></span> same word (vocabulary id)</li></ul>'
    )
