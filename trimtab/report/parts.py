"""The pieces that every section of the page is made of: cards, tables that fold on a phone, badges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from trimtab.report import words

Evidence = Mapping[str, Any]


def section(name: str, title: str, content: str, note: str = "") -> str:
    """A card with a heading, a note below it, and content, which is HTML."""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<section class="card" aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{below}{content}</section>'
    )


def table(
    headers: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    caption: str,
    names: Sequence[str] = (),
) -> str:
    """A table that turns into a list of cards on a phone; cells are HTML, the first of a row is its header.

    names: an id for each row that can be gone to.
    """
    head = "".join(f'<th scope="col" role="columnheader">{escape(header)}</th>' for header in headers)
    ids = [f' id="{name}" tabindex="-1"' for name in names]
    body = "".join(
        f'<tr role="row" class="{css}"{ids[place] if ids else ""}>{_cells(headers, cells)}</tr>'
        for place, (css, cells) in enumerate(rows)
    )
    return (
        f'<table class="table" role="table" aria-label="{escape(caption)}"><thead role="rowgroup"><tr role="row">{head}'
        f'</tr></thead><tbody role="rowgroup">{body}</tbody></table>'
    )


def _cells(headers: Sequence[str], cells: Sequence[str]) -> str:
    first = f'<th scope="row" role="rowheader">{cells[0]}</th>'
    rest = ""
    for header, cell in zip(headers[1:], cells[1:], strict=True):
        css = "" if cell else ' class="empty"'
        label = escape(header.split(" (")[0])
        rest += f'<td role="cell" data-label="{label}"{css}><div>{cell}</div></td>'
    return first + rest


def badge(word: str) -> str:
    """A verdict's word."""
    return f'<span class="badge {escape(word)}">{escape(word)}</span>'


def small(text: str) -> str:
    """A second, smaller line in a cell."""
    return f"<small>{escape(text)}</small>"


def changed(drop: Mapping[str, Any], *, percent: bool) -> str:
    """A metric's difference as a cell, with its interval below."""
    span = words.interval(drop["low"], drop["high"], percent=percent)
    return escape(words.change(drop["diff"], percent=percent)) + small(span)


def figure(name: str, label: str, *, css: str = "", caption: str = "") -> str:
    """A place for a plot, which `page.js` draws; `label` is what somebody hears who does not see it."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    look = f"plot {css}".strip()
    return f'<figure><div class="{look}" id="{name}" role="img" aria-label="{escape(label)}"></div>{below}</figure>'


def facts(found: Mapping[str, Any]) -> str:
    """Names and what they stand for, a line each."""
    pairs = ((name, ", ".join(map(str, value)) if isinstance(value, list) else value) for name, value in found.items())
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    return f'<dl class="facts">{rows}</dl>'
