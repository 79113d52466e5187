"""The tables of the Deep Compression benchmark, and its nets."""

from __future__ import annotations

from typing import Any

import deep_compression
import pytest
import torch


def row(step: str, coded: int, right: list[int]) -> dict[str, Any]:
    return {"step": step, "params": 10, "seconds": 1.0, "coded": coded, "plain": 4000, "select": 0.9, "right": right}


def rows(last: list[int], coded: int) -> list[dict[str, Any]]:
    steps = ["original", *deep_compression.STEPS]
    return [row(step, 4000, [1] * 1200) for step in steps[:-1]] + [row(steps[-1], coded, last)]


@pytest.mark.parametrize(
    ("last", "coded", "words"),
    [
        ([1] * 1200, 100, "40.0 times smaller, +0.00 points: this holds (the interval too)."),
        (
            [0] * 4 + [1] * 1196,
            100,
            "40.0 times smaller, -0.33 points: this holds (the interval's lower end is further",
        ),
        ([0] * 12 + [1] * 1188, 100, "40.0 times smaller, -1.00 points: this does not hold."),
        ([1] * 1200, 200, "20.0 times smaller, +0.00 points: this does not hold."),
    ],
)
def test_report_says_what_is_true(last: list[int], coded: int, words: str) -> None:
    text = "\n".join(deep_compression.report({"LeNet-5": rows(last, coded)}))
    assert words in text
    assert "## LeNet-5" in text


def test_nothing_to_report() -> None:
    with pytest.raises(SystemExit, match="no step to report"):
        deep_compression.report({"LeNet-5": []})


@pytest.mark.parametrize(("name", "params"), [("LeNet-5", 431_080), ("VGG-like", 635_226)])
def test_nets(name: str, params: int) -> None:
    net = deep_compression.NETS[name]().eval()
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) == params
