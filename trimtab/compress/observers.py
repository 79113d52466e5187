"""Which range of values an activation's 256 levels cover: what is outside is clipped, what is inside rounded coarser.

minmax: everything that was seen. percentile: all but the outermost 0.01 % on each side. mse: least squared error of
rounding and clipping together (Nagel et al. 2021, a white paper on quantization). entropy: least KL divergence between
the histogram of the values and that of their levels (Migacz 2017, 8-bit inference with TensorRT). Differs: zeros do not
count, as every range has a level for them and what ReLU or a picture's blank border leaves would outweigh the rest; and
both ends of an affine range shrink together. Cost: a pass over the values, 20 for mse, one over a histogram for each of
entropy's candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Observer = Literal["minmax", "percentile", "mse", "entropy"]
Range = tuple[float, float]
LEVELS = 255
TAIL = 1e-4
STEPS, SMALLEST = 20, 0.525
BINS, CANDIDATES, LEAST = 4096, 64, 0.1
SMOOTH = 1e-4  # of a value, in bins that levels leave empty


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


def entropy(values: Tensor) -> Range:
    """The shrunken range whose levels tell the histogram of the values best: least KL divergence, of what is not 0."""
    low, high = extremes(values)
    told = values[values != 0].double()
    if low == high or not len(told):
        return low, high
    histogram = torch.histc(told, BINS, low, high)
    width = (high - low) / BINS
    centres = low + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def divergence(shrink: float) -> float:
        scale, zero = affine(low * shrink, high * shrink)
        inside = (centres >= low * shrink) & (centres <= high * shrink)
        levels = (centres / scale).round_().add_(zero).clamp_(0, LEVELS).long()
        # What is clipped comes to lie on the ends; the levels do not know of it, and spread evenly where values were.
        clipped = torch.zeros(BINS, dtype=torch.float64)
        places = torch.arange(BINS).clamp(int(inside.nonzero()[0]), int(inside.nonzero()[-1]))
        clipped.index_add_(0, places, histogram)
        counts = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add_(0, levels, histogram * inside)
        filled = ((histogram > 0) & inside).double()
        shares = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add_(0, levels, filled)
        spread = filled * counts[levels] / shares[levels].clamp_min(1)
        want, found = clipped / clipped.sum(), (spread + SMOOTH) / (spread + SMOOTH).sum()
        return float(torch.special.xlogy(want, want / found).sum())

    best = min(torch.linspace(1, LEAST, CANDIDATES).tolist(), key=divergence)
    return low * best, high * best


OBSERVERS: dict[Observer, Callable[[Tensor], Range]] = {
    "minmax": extremes,
    "percentile": percentile,
    "mse": least_squares,
    "entropy": entropy,
}
