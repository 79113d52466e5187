"""Which range of values an activation's 256 levels cover: what is outside is clipped, what is inside rounded coarser.

minmax: everything that was seen. percentile: all but the outermost 0.01 % on each side. mse: least squared error of
rounding and clipping together (Nagel et al. 2021, a white paper on quantization). entropy: the rounded histogram tells
least apart from the real one, by KL divergence (Migacz 2017, 8-bit inference with TensorRT); differs: values may be
one-sided, and the longer side is clipped first. Cost: a pass over the values, 20 for mse, 40 for entropy.
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
STEPS, MSE_STEPS = 40, 20
# Fewer values in a bin than this, and the histogram's own noise looks like structure that a finer grid would keep.
VALUES_PER_BIN, LEAST_BINS, MOST_BINS = 64, 256, 2048


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

    best = min((1 - step / STEPS for step in range(MSE_STEPS)), key=error)
    return low * best, high * best


def least_divergence(values: Tensor) -> Range:
    """The clipped range whose rounded histogram diverges least from the real one."""
    low, high = extremes(values)
    bins = min(max(len(values) // VALUES_PER_BIN, LEAST_BINS), MOST_BINS)
    counts = torch.histc(values.double(), bins, low, high)
    middles = low + (torch.arange(bins, dtype=torch.float64) + 0.5) * (high - low) / bins

    def clipped(step: int) -> Range:
        most = max(-low, high) * (1 - step / STEPS)
        return max(low, -most), min(high, most)

    def divergence(step: int) -> float:
        least, most = clipped(step)
        scale, zero = affine(least, most)
        inside = (middles >= least) & (middles <= most)
        places = inside.nonzero()[:, 0]
        if not len(places):
            return float("inf")
        levels = (middles / scale).round().add(zero).clamp(0, LEVELS).long()
        # What is clipped counts at the ends of the real histogram, and is missing from the rounded one.
        wanted = counts * inside
        wanted[places[0]] += counts[: places[0]].sum()
        wanted[places[-1]] += counts[places[-1] + 1 :].sum()
        full = (counts > 0) & inside
        sums = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add(0, levels, counts * full)
        shared = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add(0, levels, full.double())
        return _divergence(wanted, (sums / shared.clamp_min(1))[levels] * full)

    return clipped(min(range(STEPS), key=divergence))


def _divergence(p: Tensor, q: Tensor) -> float:
    """KL(p || q) of two histograms; where q has nothing it counts as a millionth of a sample."""
    p, q = p / p.sum(), q.clamp_min(1e-6) / q.clamp_min(1e-6).sum()
    held = p > 0
    return float((p[held] * (p[held] / q[held]).log()).sum())


OBSERVERS: dict[Observer, Callable[[Tensor], Range]] = {
    "minmax": extremes,
    "percentile": percentile,
    "mse": least_squares,
    "entropy": least_divergence,
}
