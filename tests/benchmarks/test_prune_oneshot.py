"""Tables of the benchmark without training."""

from __future__ import annotations

from typing import Any

import prune_oneshot
import pytest


def row(method: str, ratio: float, quality: float) -> dict[str, Any]:
    found = {"model": "MiniLM", "method": method, "ratio": ratio, "samples": 64, "data": "600 docstrings"}
    return {**found, "params": 1000, "macs": 2000, "quality": {"MRR": quality}}


ROWS = [
    row("original", 0.0, 0.6),
    row("magnitude", 0.1, 0.4),
    row("obs + compensation", 0.1, 0.55),
]


def test_report() -> None:
    text = "\n".join(prune_oneshot.report(ROWS))
    assert "600 docstrings. Original: MRR 0.600; 1,000 parameters, 2,000 MACs." in text
    assert "| magnitude | - | 0.400 | - | - |" in text
    assert "| obs + compensation | - | **0.550** | - | - |" in text
    assert "| parameters | - | 1,000 | - | - |" in text


def test_sizes_tell_a_range() -> None:
    wide = {**ROWS[1], "params": 900}
    assert "| parameters | - | 900 to 1,000 | - | - |" in prune_oneshot.sizes([*ROWS, wide])


def test_nothing_to_report() -> None:
    with pytest.raises(SystemExit, match="no cell to report"):
        prune_oneshot.report([])


def test_every_method_is_one_that_prune_knows() -> None:
    for name in prune_oneshot.METHODS:
        assert prune_oneshot.Prune(0.1, **prune_oneshot.settings(name, 64)).ratio == 0.1
