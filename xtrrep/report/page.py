"""The frame of our HTML pages: one file each, readable at 400 px and in grey, no script and nothing from a network."""

from __future__ import annotations

import html

STYLE = """
:root{color-scheme:light;--ink:#1a1a1a;--soft:#555;--line:#ccc}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;color:var(--ink);background:#fff;
 font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2.5rem}
a{color:#005a94}img{max-width:100%;height:auto}
figure{margin:1rem 0}figcaption,.soft{color:var(--soft);font-size:.875rem}
.scroll{overflow-x:auto;max-width:100%;overflow-wrap:normal}
:focus-visible{outline:3px solid #0072b2;outline-offset:2px}
table{border-collapse:separate;border-spacing:0;font-size:.875rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.25rem 0;max-width:calc(100vw - 2rem);position:sticky;left:0}
th,td{padding:.2rem .6rem;text-align:left;white-space:nowrap;border-bottom:1px solid var(--line);font-weight:400}
.words{white-space:normal;min-width:16rem}
thead th{font-weight:600;border-bottom:2px solid var(--ink)}
.notes{padding-left:1.1rem}
"""
# Whatever a corpus holds, no script runs and no address is asked.
POLICY = (
    "script-src 'none'; object-src 'none'; connect-src 'none'; font-src 'none'; frame-src 'none'; form-action 'none'"
)


def page(title: str, body: str, style: str = "", policy: str = POLICY) -> str:
    """A whole page. `title` is text and escaped here; `body` and `style` are HTML and CSS, escaped by who made them.

    policy: what a browser may load and run, as a Content-Security-Policy.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="generator" content="xtrrep">',
            '<link rel="icon" href="data:,">',  # or a browser would ask a server for one
            f"<title>{html.escape(title)}</title>",
            f"<style>{STYLE}{style}</style>",
            "</head>",
            "<body>",
            "<main>",
            f"<h1>{html.escape(title)}</h1>",
            body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )
