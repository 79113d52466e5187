"""Which range of values an activation's 256 levels cover: what is outside is clipped, what is inside rounded coarser.

minmax: everything that was seen. percentile: all but the outermost 0.01 % on each side. mse: least squared error of
rounding and clipping together (Nagel et al. 2021, a white paper on quantization). Cost: a pass over the values, 20 for
mse. KL divergence of histograms (Migacz 2017, 8-bit inference with TensorRT) is left out: where many values are equal,
as behind a picture's blank border, it clips what matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Observer = Literal["minmax", "percentile", "mse"]
Range = tuple[float, float]
LEVELS = 255
TAIL = 1e-4
STEPS, SMALLEST = 20, 0.525


def affine(low: float, high: float) -> tuple[float, int]:
    """The scale and zero point of low ... high in 0 ... 255.

    >>> affine(-1.0, 254.0)
    (1.0, 1)
    """
    scale = (high - low) / LEVELS
    return scale, round(-low / scale)


def extremes(values: Tensor) -> Range:
    """The least and the largest of values [N], and 0, which must be one of the levels."""
    return min(0.0, float(values.min())), max(0.0, float(values.max()))


def percentile(values: Tensor) -> Range:
    """The range without the outermost values; the extremes if nothing else is left."""
    ends = torch.quantile(values.double(), torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)).tolist()
    low, high = min(0.0, ends[0]), max(0.0, ends[1])
    return (low, high) if low < high else extremes(values)


def least_squares(values: Tensor) -> Range:
    """The shrunken range whose clipped rounding has the least mean squared error."""
    low, high = extremes(values)

    def error(shrink: float) -> float:
        scale, zero = affine(low * shrink, high * shrink)
        levels = (values / scale).round_().add_(zero).clamp_(0, LEVELS)
        return float((levels.sub_(zero).mul_(scale) - values).square_().mean())

    best = min(torch.linspace(1, SMALLEST, STEPS).tolist(), key=error)
    return low * best, high * best


OBSERVERS: dict[Observer, Callable[[Tensor], Range]] = {
    "minmax": extremes,
    "percentile": percentile,
    "mse": least_squares,
}
