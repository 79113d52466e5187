"""The tables of the low-rank benchmark."""

from __future__ import annotations

from typing import Any

import low_rank
import pytest


def row(mrr: float, macs: int) -> dict[str, Any]:
    quality = {"MRR": mrr, "cosine": 0.9}
    return {"data": "300 docstrings", "seconds": 4.0, "macs": macs, "params": 1000, "quality": quality}


FOUND = {
    "original": row(0.6, 1000),
    "rank 96 weighted": row(0.5, 700),
    "rank 96 plain": row(0.4, 700),
    "rank 48 weighted": row(0.1, 500),
    "rank 48 plain": row(0.2, 500),
}


def test_report_says_what_is_true() -> None:
    text = "\n".join(low_rank.report(FOUND))
    assert "beats plain SVD in 1 of 2 pairs" in text
    assert "| rank 96 weighted | 0.500 | 0.900 | 0.700 | 1,000 | 4 |" in text
    assert "after recovery" not in text
    assert "Not run: macs 0.7 weighted, macs 0.7 plain," in text
    for mrr, word in ((0.59, "it lost 1.7%, so this holds"), (0.5, "it lost 16.7%, so this does not hold")):
        assert word in "\n".join(low_rank.report({**FOUND, low_rank.RECOVERED: row(mrr, 699)}))


def test_nothing_to_report() -> None:
    with pytest.raises(SystemExit, match="no cell to report"):
        low_rank.report({})
