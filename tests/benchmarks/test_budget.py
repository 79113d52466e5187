"""What the benchmark of budgets says."""

from __future__ import annotations

import budget
import pytest


def test_report_says_what_is_true() -> None:
    row = {"minutes": 4.0, "used": 4.2, "tried": 7, "load": 1.0}
    text = "\n".join(budget.report([row]))
    assert "within 10% of what it was given: this holds." in text
    assert "| 4 | 4.20 | 1.050 | 7 | 1.0 |" in text
    late = row | {"minutes": 2.0, "used": 2.5}
    assert "this holds for 1 of 2." in "\n".join(budget.report([row, late]))
    assert "this does not hold." in "\n".join(budget.report([late]))
    with pytest.raises(SystemExit, match="no search to report"):
        budget.report([])
