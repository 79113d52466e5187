"""Rows as text that a person can read: what a plan prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.core import Skip

WIDEST = 44


def table(rows: Sequence[Mapping[str, Any]], skipped: Iterable[Skip] = ()) -> str:
    """A table of the rows, numbers to the right; under it what was left alone, and why.

    >>> print(table([{"group": "a", "channels": 12}, {"group": "bc", "channels": 8}], [Skip("head", "it stays")]))
    group  channels
    a            12
    bc            8
    left alone:
      head: it stays
    """
    lines = []
    if rows:
        names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        columns = {name: [name, *("" if row[name] is None else _shown(row[name]) for row in rows)] for name in names}
        right = {name: all(isinstance(row[name], int | float | None) for row in rows) for name in columns}
        widths = {name: max(map(len, cells)) for name, cells in columns.items()}
        for place in range(len(rows) + 1):
            cells = (
                column[place].rjust(widths[name]) if right[name] else column[place].ljust(widths[name])
                for name, column in columns.items()
            )
            lines.append("  ".join(cells).rstrip())
    left = [f"  {skip.what}: {skip.why}" for skip in skipped]
    return "\n".join([*lines, *(["left alone:", *left] if left else [])])


def _shown(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
