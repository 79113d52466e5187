"""K-means of numbers on a line, many problems at once, each number with a weight.

Lloyd, "Least squares quantization in PCM" (1982), on sorted numbers: the means of a step are differences of running
sums at the midpoints of the last one, so a step costs a search and not a pass. Started evenly between the extremes,
which Han et al. (2016) found to serve networks best, and at even quantiles; the better end is kept.
Cost: one sort; a step is O(K log N) for each problem.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 60


def kmeans(values: Tensor, num: int, weights: Tensor | None = None) -> Tensor:
    """Centroids that make the weighted sum of squared distances small, rising.

    Args:
        values: float64, [G problems, N].
        num: K, how many centroids; at most N.
        weights: of each number, zero or more; [G, N]. Default: 1.

    Returns:
        Centroids, float64 [G, K].

    >>> kmeans(torch.tensor([[0.0, 1.0, 5.0, 6.0]]).double(), 2).tolist()
    [[0.5, 5.5]]
    """
    ordered, order = values.sort(dim=1)
    # A trace of weight everywhere keeps the means of numbers that count for nothing defined.
    mass = torch.ones_like(values) if weights is None else weights + 1e-9 * weights.mean().clamp_min(1e-30)
    mass = mass.gather(1, order)
    sums = _running(mass), _running(mass * ordered)
    low, high = ordered[:, :1], ordered[:, -1:]
    steps = torch.linspace(0, 1, num, dtype=values.dtype)
    shares = (torch.arange(num, dtype=values.dtype) + 0.5) / num
    ranks = torch.searchsorted(sums[0][:, 1:].contiguous(), sums[0][:, -1:] * shares)
    starts = (low + (high - low) * steps, ordered.gather(1, ranks.clamp_max(ordered.shape[1] - 1)))
    first, second = (_lloyd(ordered, start, *sums) for start in starts)
    better = _error(ordered, mass, first) <= _error(ordered, mass, second)
    return torch.where(better[:, None], first, second)


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Which centroid is nearest, int64 [G, N]; of equals the lower one.

    Args:
        values: [G, N].
        centroids: rising, [G, K].
    """
    return torch.searchsorted(_midpoints(centroids), values.contiguous())


def _lloyd(ordered: Tensor, centroids: Tensor, mass: Tensor, moments: Tensor) -> Tensor:
    num = torch.full_like(ordered[:, :1], ordered.shape[1], dtype=torch.int64)
    for _ in range(STEPS):
        inner = torch.searchsorted(ordered, _midpoints(centroids), right=True)
        bounds = torch.cat([torch.zeros_like(num), inner, num], dim=1)
        each = mass.gather(1, bounds).diff(dim=1)
        means = moments.gather(1, bounds).diff(dim=1) / each
        moved = torch.where(each > 0, means, centroids).sort(dim=1).values
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _error(values: Tensor, mass: Tensor, centroids: Tensor) -> Tensor:
    return (mass * (values - centroids.gather(1, nearest(values, centroids))) ** 2).sum(1)


def _midpoints(centroids: Tensor) -> Tensor:
    return ((centroids[:, 1:] + centroids[:, :-1]) / 2).contiguous()


def _running(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x.cumsum(1)], dim=1)
