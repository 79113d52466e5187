"""Which scale a group of weights has: the one whose rounding loses least, weighted by how much each input matters.

The range of a group shrinks in steps from its extremes; the step with the least sum of h (q(w) - w)^2 is taken, where h
is the mean square of the input that w multiplies, or 1. Clipping by mean squared error as in Nagel et al. 2021 (a white
paper on quantization), weighted as the diagonal of the Hessian of Frantar et al. 2023 (GPTQ). NF4 scales are its
largest magnitude (Dettmers et al. 2023), shrunk likewise. Cost: `STEPS` roundings of the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.graph.packed import FP8_MAX, decode, encode

STEPS = 25
LEAST = 0.4  # of the extremes
TINY = 1e-12


def scales_of(
    rows: Tensor, *, precision: str, symmetric: bool, importance: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The best scale of each group, and the code of 0 if it is not symmetric.

    Args:
        rows: float32 [rows, groups, size].
        precision: int4w, nf4w, int8w or fp8.
        symmetric: whether int4 has its zero in the middle.
        importance: h, broadcast to `rows`.

    Returns:
        Scales float32 [rows, groups] and zeros uint8 [rows, groups] or None.
    """
    best = torch.full(rows.shape[:2], torch.inf)
    scales, zeros = torch.ones(rows.shape[:2]), torch.zeros(rows.shape[:2], dtype=torch.uint8)
    for factor in torch.linspace(1, LEAST, STEPS if precision != "fp8" else 1).tolist():
        own, offset = _scales(rows * factor, precision, symmetric=symmetric)
        offsets = None if offset is None else offset[:, :, None]
        codes = encode(rows, own[:, :, None], offsets, precision)
        lost = (decode(codes, own[:, :, None], offsets, precision) - rows).square()
        error = (lost if importance is None else lost * importance).sum(2)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, own, scales)
        if offset is not None:
            zeros = torch.where(better, offset, zeros)
    return scales, None if symmetric else zeros


def _scales(rows: Tensor, precision: str, *, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """The scales that cover all of `rows`, and the codes of 0."""
    largest = rows.abs().amax(2).clamp_min(TINY)
    if precision == "int4w" and not symmetric:
        low, high = rows.amin(2).clamp(max=0), rows.amax(2).clamp(min=0)
        scales = ((high - low) / 15).clamp_min(TINY)
        return scales, (-low / scales).round().clamp(0, 15).to(torch.uint8)
    return largest / {"int4w": 7.0, "int8w": 127.0, "nf4w": 1.0, "fp8": FP8_MAX}[precision], None
