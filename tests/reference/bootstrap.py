"""The slow, obvious side of the bootstrap intervals: SciPy's own, and levels by drawing whole tasks again and again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats


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
