"""Tables of plans."""

from __future__ import annotations

from trimtab.compress.tables import table
from trimtab.core import Skip


def test_numbers_stand_right_and_empty_columns_are_left_out() -> None:
    rows = [{"name": "a" * 60, "n": 12345, "ms": None, "x": 0.123456}, {"name": "b", "n": 1, "ms": None, "x": None}]
    lines = table(rows).splitlines()
    assert lines[0].split() == ["name", "n", "x"]
    assert lines[1].endswith("...  12,345  0.1235")
    assert lines[2].split() == ["b", "1"]


def test_nothing_but_what_was_left_alone() -> None:
    assert table([], [Skip("head", "it stays")]) == "left alone:\n  head: it stays"
    assert table([]) == ""
