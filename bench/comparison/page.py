"""The report as one HTML page that needs nothing else: plots, tables, and what they were taken on."""

from __future__ import annotations

import html
from typing import List

from bench.comparison import report as text
from bench.comparison.plots import plots
from bench.comparison.values import Report
from bench.measure import Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --line: #d5dae1; --dim: #5a6675; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --paper: #14181d; --line: #38414c; --dim: #9aa5b3; --bad: #ff8a80; }
}
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.about { color: var(--dim); margin-top: .2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap; }
th { color: var(--dim); font-weight: 600; } .left { text-align: left; } .bad { color: var(--bad); font-weight: 600; }
svg { display: block; max-width: 100%; height: auto; }
code { font-size: .9em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content auto; gap: .2rem 1rem; } dt { color: var(--dim); }
dd { margin: 0; }
"""


def render(made: Report) -> str:
    """The page. ValueError where matplotlib is missing."""
    parts = [
        "<h1>How long a VM's disks take to be there</h1>",
        f'<p class="about">{_text(made.started)}, {made.seconds:.0f} s, <code>{_text(made.command)}</code></p>',
        _table(text.matrix(made)),
        "<p>In parentheses: how many times fastcopy's figure it is; n=1: it rests on one run. In [brackets]: shown, "
        "not compared.</p>",
    ]
    for title, svg in plots(made):
        parts.append(f"<h2>{_text(title)}</h2>\n{svg}")
    for title, table in (
        ("Everything that was counted", text.details(made) if text.counted(made) else None),
        ("Where the time goes", text.phases(made)),
        ("What the machine can do", text.rates(made) if made.rates else None),
    ):
        if table:
            parts += [f"<h2>{title}</h2>", _table(table)]
    drivers = [f"{one.name}: {one.label}" + (f"; {one.note}" if one.note else "") for one in made.drivers]
    for title, sentences in (
        ("Drivers", drivers),
        ("Slower than a rival", text.slower(made)),
        ("Runs that failed", text.failures(made)),
        ("Notes", made.notes),
    ):
        if sentences:
            parts += [f"<h2>{title}</h2>", _list(sentences)]
    about = {**made.machine, **made.versions, **made.method}
    pairs = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in about.items())
    parts += ["<h2>Machine, versions, method</h2>", f"<dl>{pairs}</dl>"]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fastcopy: prolog time</title><style>{_STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _text(value: str) -> str:
    return html.escape(value)


def _list(sentences: List[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences) + "</ul>"


def _table(table: Table) -> str:
    def cell(kind: str, column: int, value: str) -> str:
        names = [*(["left"] if column in table.text_columns else []), *(["bad"] if "FAILED" in value else [])]
        of = f' class="{" ".join(names)}"' if names else ""
        return f"<{kind}{of}>{_text(value)}</{kind}>"

    head = "".join(cell("th", column, value) for column, value in enumerate(table.headings))
    rows = ["".join(cell("td", column, value) for column, value in enumerate(row)) for row in table.rows]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
