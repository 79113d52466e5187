"""GPTQ against a slow form of its own formula, and against rounding to nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.compress.gptq import BLOCK, DAMPING, gptq
from trimtab.graph.packed import decode, encode


def correlated(features: int, rows: int = 400) -> Tensor:
    mixing = torch.randn(features, features)
    x = torch.randn(rows, features) @ mixing
    return x.double()


def values(codes: Tensor, scales: Tensor, zeros: Tensor | None, precision: str, size: int) -> Tensor:
    spread = scales.repeat_interleave(size, 1)
    offsets = None if zeros is None else zeros.repeat_interleave(size, 1)
    return decode(codes, spread, offsets, precision)


def slow(weight: Tensor, hessian: Tensor, scales: Tensor) -> Tensor:
    """Optimal Brain Quantization in the order of GPTQ: the inverse is updated after each input, row by row."""
    size = len(hessian)
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    left, codes = weight.double().clone(), torch.zeros(weight.shape, dtype=torch.uint8)
    for j in hessian.diagonal().argsort(descending=True, stable=True).tolist():
        code = encode(left[:, j], scales[:, j].double(), None, "int4w")
        codes[:, j] = code
        error = (left[:, j] - decode(code, scales[:, j].double(), None, "int4w")) / inverse[j, j]
        left -= error[:, None] * inverse[j]
        inverse -= inverse[:, j, None] * inverse[j] / inverse[j, j]
        inverse[j], inverse[:, j] = 0, 0
    return codes


def test_agrees_with_optimal_brain_quantization_in_the_same_order() -> None:
    torch.manual_seed(0)
    x, weight = correlated(24), torch.randn(6, 24)
    codes, scales, _ = gptq(weight[None], (x.T @ x)[None], precision="int4w", group_size=8, symmetric=True)
    want = slow(weight, x.T @ x, scales.repeat_interleave(8, 1))
    assert (codes == want).float().mean() > 0.99  # ties in float32


@pytest.mark.parametrize(("precision", "symmetric"), [("int4w", True), ("int4w", False), ("nf4w", True)])
def test_outputs_lose_less_than_by_rounding_to_nearest(precision: str, symmetric: bool) -> None:
    torch.manual_seed(1)
    features = BLOCK + 16  # more than one block
    x, weight = correlated(features), torch.randn(2, 8, features)
    hessian = (x.T @ x).expand(2, -1, -1)
    settings = {"precision": precision, "group_size": 16, "symmetric": symmetric}
    codes, scales, zeros = gptq(weight, hessian, **settings)  # type: ignore[arg-type]
    rows = weight.reshape(16, features)
    spread = scales.repeat_interleave(16, 1)
    offsets = None if zeros is None else zeros.repeat_interleave(16, 1)
    nearest = decode(encode(rows, spread, offsets, precision), spread, offsets, precision)
    ours = values(codes, scales, zeros, precision, 16)
    errors = [float((x @ (rows - found).double().T).square().sum()) for found in (ours, nearest)]
    assert errors[0] < 0.7 * errors[1]


def test_inputs_that_do_not_correlate_are_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1, 4, 16)
    hessian = torch.eye(16, dtype=torch.float64)[None]
    codes, scales, zeros = gptq(weight, hessian, precision="int4w", group_size=16, symmetric=True)
    assert zeros is None
    assert torch.equal(codes, encode(weight[0], scales, None, "int4w"))


def test_inputs_that_are_always_zero_are_no_trouble() -> None:
    torch.manual_seed(0)
    x, weight = correlated(8), torch.randn(1, 4, 8)
    x[:, 3] = 0
    codes, scales, _ = gptq(weight, (x.T @ x)[None], precision="int8w", group_size=8, symmetric=True)
    found = values(codes, scales, None, "int8w", 8)
    assert found.isfinite().all()
    assert (x @ (weight[0] - found).double().T).norm() < 0.02 * (x @ weight[0].double().T).norm()
