"""The table of the palette benchmark."""

from __future__ import annotations

from typing import Any

import palette_mobilenet
import pytest


def row(cell: str, top1: float, size: int) -> dict[str, Any]:
    found = {"cell": cell, "data": "154 photos", "bytes": size, "seconds": 3.2, "claimed": size - 100, "whole": 2}
    return found | {"quality": {"top-1": top1, "agreement": 0.9}}


ROWS = [row("original", 0.79, 1000), row("4 bits, one palette", 0.5, 250), row("3 bits, one palette", 0.9, 200)]


@pytest.mark.parametrize(("top1", "word"), [(0.5, "0.500, so this does not hold"), (0.75, "0.750, so this holds")])
def test_report_says_what_is_true(top1: float, word: str) -> None:
    text = "\n".join(palette_mobilenet.report([ROWS[0], row("4 bits, one palette", top1, 250), ROWS[2]]))
    assert f"the best keeps {word}" in text
    assert f"| 4 bits, one palette | {top1:.3f} | 0.900 | 250 | 4.00 | 150 | 2 | 3 |" in text


def test_nothing_to_report() -> None:
    for rows in ([], ROWS[1:]):
        with pytest.raises(SystemExit, match="no cell to report"):
            palette_mobilenet.report(rows)


def test_every_cell_is_a_palette() -> None:
    assert all(palette_mobilenet.Palette(**settings).bits in (3, 4) for settings in palette_mobilenet.CELLS.values())
