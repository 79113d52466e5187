"""The slow, obvious side of the bootstrap intervals: SciPy's own BCa, and the studentised one resample by resample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

Bounds = Callable[[float], tuple[float, float]]


def bca(
    first: np.ndarray, second: np.ndarray, metric: Callable[[np.ndarray], float], *, seed: int
) -> tuple[float, float]:
    """SciPy's paired BCa interval, 90 % two-sided, of the change of `metric`: statistics [N, D] -> a number."""
    index = np.arange(len(first))

    def change(picked: np.ndarray) -> float:
        return metric(second[picked]) - metric(first[picked])

    found = stats.bootstrap(
        (index,), change, confidence_level=0.9, n_resamples=4999, method="BCa", vectorized=False,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def studentised(first: np.ndarray, second: np.ndarray, *, weight: float, seed: int, num_resamples: int) -> Bounds:
    """One-sided bounds of the mean of second - weight * first, scores [N]: confidence -> (below, above).

    Each resample picks N differences and notes (its mean - the mean) / its standard error; a bound lies as many of the
    samples' own standard errors away as the quantile of those on the other side says. To each variance comes one more
    event as large as the largest change seen, and half of it to each bound, as `means.Guard` says; what it says of
    events never seen is left out.
    """
    rng, num = np.random.default_rng(seed), len(first)
    left = second - weight * first
    event = float(np.max(np.abs(second - first)))

    def error(picked: np.ndarray) -> float:
        return float(np.sqrt(picked.var(ddof=1) / num + (event / num) ** 2))

    away = []
    for _ in range(num_resamples):
        picked = rng.choice(left, num)
        away.append((picked.mean() - left.mean()) / error(picked))

    def at(confidence: float) -> tuple[float, float]:
        far, near = np.quantile(away, confidence), np.quantile(away, 1 - confidence)
        half = event / (2 * num)
        return left.mean() - far * error(left) - half, left.mean() - near * error(left) + half

    return at
