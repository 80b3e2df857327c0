"""Parts of an HTML page that needs nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_COLOURS = ("#57606a", "#0969da", "#d1590a", "#1a7f37", "#8250df", "#bf3989", "#9a6700")

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f5f7; color: #1f2328; font: 14px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
header { background: #16202c; color: #fff; padding: 28px 0 24px; }
header h1 { margin: 0 0 4px; font-size: 25px; font-weight: 650; letter-spacing: -.2px; }
header p { margin: 0; color: #b9c4d0; }
.page { max-width: 1200px; margin: 0 auto; padding: 0 24px; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 14px; margin: 20px 0 4px; }
.card { background: #fff; border: 1px solid #dde2e7; border-radius: 8px; padding: 14px 16px; }
.card b { display: block; font-size: 24px; font-weight: 650; letter-spacing: -.4px; }
.card span { color: #57606a; font-size: 12.5px; }
section { background: #fff; border: 1px solid #dde2e7; border-radius: 8px; padding: 18px 20px 16px; margin: 16px 0; }
h2 { margin: 0 0 10px; font-size: 16.5px; font-weight: 650; }
h3 { margin: 6px 0 4px; font-size: 13px; font-weight: 600; color: #424a53; }
p.note { color: #57606a; margin: 8px 0 0; font-size: 12.5px; max-width: 960px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; text-align: right; border-bottom: 1px solid #eaeef2; white-space: nowrap; }
th { color: #57606a; font-weight: 600; font-size: 12.5px; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
.row { display: flex; flex-wrap: wrap; gap: 18px 22px; align-items: flex-start; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 2px 0 8px; font-size: 12.5px; color: #424a53; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin: 0 6px 3px 0; vertical-align: middle; }
.shots { display: grid; grid-template-columns: repeat(4, 1fr); gap: 14px; }
figure { margin: 0; }
figure img { width: 100%; display: block; border-radius: 5px; }
figcaption { font-size: 12px; color: #57606a; margin-top: 4px; overflow-wrap: anywhere; }
.maps { display: flex; flex-wrap: wrap; gap: 12px; }
.maps figure { width: 168px; }
.matrix td, .matrix th { text-align: center; border: 1px solid #eaeef2; padding: 5px 9px; }
.matrix th:first-child { text-align: left; }
.matrix { width: auto; }
pre { background: #f6f8fa; border-radius: 6px; padding: 12px; overflow: auto; font-size: 12px; max-height: 420px; }
summary { cursor: pointer; color: #0969da; }
"""


def page(title: str, subtitle: str, body: str) -> str:
    """A whole page; `body` is HTML, the others are text."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><header><div class="page">'
        f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p></div></header>"
        f'<main class="page">{body}</main></body></html>\n'
    )


def section(title: str, body: str) -> str:
    """A box with a heading; nothing without a body."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def note(text: str) -> str:
    """Small print."""
    return f'<p class="note">{escape(text)}</p>'


def legend(names: Sequence[str]) -> str:
    """Names with the colours that charts give them, in order."""
    items = (f'<span><i style="background:{colour(k)}"></i>{escape(name)}</span>' for k, name in enumerate(names))
    return f'<div class="legend">{"".join(items)}</div>'


def colour(k: int) -> str:
    """The colour of the k-th network."""
    return _COLOURS[k % len(_COLOURS)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, head first."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
