"""GPTQ: weights are rounded one input at a time, and what each rounding loses is made up for by those that follow.

Frantar et al. 2023. With H = X'X of the layer's inputs and U the upper Cholesky factor of H^-1, the rounding error
e = (w_j - q_j) / U_jj of column j is taken from the columns after it as e U_j. Columns go by falling H_jj, their scales
chosen beforehand. Differs: where a layer has a bias, H is centred, since the bias takes the mean of what is lost; and
the layers before are quantized already, so that first the weights are re-solved for the inputs that they will see
(`compensate.py`). Cost: for each layer one Cholesky factorization of F x F and F rank-one updates of [outputs, F].
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.compress.grids import scales_of
from trimtab.graph.packed import decode, encode

DAMPING = 0.01  # of the mean of the diagonal
BLOCK = 64


def gptq(
    matrix: Tensor, hessian: Tensor, *, precision: str, group_size: int, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes that reproduce the layer's outputs best, input by input.

    Args:
        matrix: the weight, float32 [num_groups, outputs, F].
        hessian: X'X, float64 [num_groups, F, F].
        precision: int4w, nf4w or int8w.
        group_size: weights of a row that share a scale; divides F.
        symmetric: whether int4 has its zero in the middle.

    Returns:
        codes [num_groups * outputs, F], scales [rows, F / group_size], zeros [rows, F / group_size] or None.
    """
    num_parts, num_outputs, num_features = matrix.shape
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    importance = diagonal.float().repeat_interleave(num_outputs, 0).reshape(-1, num_features // group_size, group_size)
    rows = matrix.reshape(importance.shape)
    scales, zeros = scales_of(rows, precision=precision, symmetric=symmetric, importance=importance + 1e-12)
    order = diagonal.argsort(dim=1, descending=True, stable=True)
    along = order[:, None, :].expand_as(matrix)
    left = matrix.gather(2, along).clone()
    step = _spread(scales, group_size, matrix.shape).gather(2, along)
    offset = None if zeros is None else _spread(zeros, group_size, matrix.shape).gather(2, along)
    factor = _factor(hessian, order)
    codes = []
    for start in range(0, num_features, BLOCK):
        stop = min(start + BLOCK, num_features)
        errors = torch.zeros(num_parts, num_outputs, stop - start)
        for j in range(start, stop):
            zero = None if offset is None else offset[..., j]
            code = encode(left[..., j], step[..., j], zero, precision)
            lost = (left[..., j] - decode(code, step[..., j], zero, precision)) / factor[:, j, j, None]
            left[..., j:stop] -= lost[..., None] * factor[:, None, j, j:stop]
            errors[..., j - start] = lost
            codes.append(code)
        left[..., stop:] -= errors @ factor[:, start:stop, stop:]
    chosen = torch.stack(codes, dim=2)
    return torch.empty_like(chosen).scatter_(2, along, chosen).flatten(0, 1), scales, zeros


def _spread(values: Tensor, group_size: int, shape: torch.Size) -> Tensor:
    """One value per group as one per weight, [num_groups, outputs, F]."""
    return values.repeat_interleave(group_size, dim=1).reshape(shape)


def _factor(hessian: Tensor, order: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped H^-1, inputs in `order`; float32 [num_groups, F, F]."""
    size = hessian.shape[-1]
    sorted_rows = hessian.gather(1, order[:, :, None].expand_as(hessian))
    sorted_both = sorted_rows.gather(2, order[:, None, :].expand_as(hessian))
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    damped = sorted_both + DAMPING * mean[:, None, None] * torch.eye(size, dtype=hessian.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
