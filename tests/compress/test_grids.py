"""Scales: no scale of the steps is better, and importance moves them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.compress.grids import LEAST, STEPS, scales_of
from trimtab.graph.packed import decode, encode


def lost(rows: Tensor, scales: Tensor, zeros: Tensor | None, precision: str, importance: Tensor) -> Tensor:
    offsets = None if zeros is None else zeros[:, :, None]
    codes = encode(rows, scales[:, :, None], offsets, precision)
    return ((decode(codes, scales[:, :, None], offsets, precision) - rows).square() * importance).sum(2)


@pytest.mark.parametrize(
    ("precision", "symmetric"), [("int4w", True), ("int4w", False), ("nf4w", True), ("int8w", True)]
)
def test_the_chosen_scale_loses_least_of_all_steps(precision: str, symmetric: bool) -> None:
    torch.manual_seed(0)
    rows, importance = torch.randn(5, 2, 16) + 0.5, torch.rand(5, 2, 16)
    scales, zeros = scales_of(rows, precision=precision, symmetric=symmetric, importance=importance)
    assert (zeros is None) == symmetric
    own = lost(rows, scales, zeros, precision, importance)
    for factor in torch.linspace(1, LEAST, STEPS).tolist():
        if symmetric:
            top = {"int4w": 7.0, "nf4w": 1.0, "int8w": 127.0}[precision]
            other, offset = (rows * factor).abs().amax(2) / top, None
        else:
            low, high = (rows * factor).amin(2).clamp(max=0), (rows * factor).amax(2).clamp(min=0)
            other = (high - low) / 15
            offset = (-low / other).round().to(torch.uint8)
        assert (own <= lost(rows, other, offset, precision, importance) + 1e-6).all()


def test_zero_points_lose_less_where_weights_lie_to_one_side() -> None:
    torch.manual_seed(0)
    rows, one = torch.rand(8, 1, 32), torch.ones(())
    losses = [
        lost(rows, *scales_of(rows, precision="int4w", symmetric=yes), "int4w", one).sum() for yes in (True, False)
    ]
    assert losses[1] < 0.5 * losses[0]


def test_an_input_that_is_always_zero_does_not_count() -> None:
    rows = torch.tensor([[[4.0, 1.0, -1.0, 0.5]]])
    importance = torch.tensor([0.0, 1.0, 1.0, 1.0])
    scales, _ = scales_of(rows, precision="int4w", symmetric=True, importance=importance)
    plain, _ = scales_of(rows, precision="int4w", symmetric=True)
    assert scales < plain


def test_rows_of_zeros_stay_zeros() -> None:
    rows = torch.zeros(2, 1, 8)
    for precision in ("int4w", "nf4w", "int8w", "fp8"):
        scales, zeros = scales_of(rows, precision=precision, symmetric=True)
        codes = encode(rows, scales[:, :, None], zeros, precision)
        assert torch.equal(decode(codes, scales[:, :, None], zeros, precision), rows)
