"""The bootstrap's engine: the means of N rows, drawn anew with replacement, many times over.

What is drawn is how often each row comes up. Where few rows differ from each other (counts, ranks, 0 and 1), equal
rows are drawn as one, which changes nothing but the cost: resamples x different rows instead of resamples x N.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NUM_RESAMPLES = 4999
# drawn at once: small enough to stay in a processor's cache
CHUNK_SAMPLES = 1 << 16
# Drawing the count of a distinct row costs about this many times as much as drawing one sample.
COUNT_COST = 8


def resampled_means(rows: Floats, *, seed: int, num_resamples: int = NUM_RESAMPLES, squares: bool = False) -> Floats:
    """The means of each column over N rows that are drawn with replacement.

    Args:
        rows: [N, D].
        seed: of the draws; the same seed gives the same means.
        num_resamples: R.
        squares: the means of the squared columns too, behind those of the columns.

    Returns:
        [R, D], or [R, 2 D].

    >>> resampled_means(np.array([[0.0], [1.0]]), seed=0, num_resamples=5)[:, 0].tolist()
    [1.0, 0.5, 0.0, 0.0, 0.5]
    """
    rng = np.random.default_rng(seed)
    num = len(rows)
    distinct, counts = _distinct(rows)
    if squares:
        distinct, rows = (np.concatenate([one, one**2], 1) for one in (distinct, rows))
    if COUNT_COST * len(distinct) <= num:
        weights = rng.multinomial(num, counts / num, size=num_resamples)
        return weights @ distinct / num
    chunk = max(1, CHUNK_SAMPLES // num)
    parts = []
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        drawn = rng.integers(num, size=(size, num), dtype=np.int32)
        drawn += num * np.arange(size, dtype=np.int32)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * num).reshape(size, num)
        parts.append(weights.astype(np.float64) @ rows / num)
    return np.concatenate(parts)


def _distinct(rows: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The different rows [K, D], and how often each occurs [K]; many times faster than np.unique(axis=0)."""
    ordered = rows[np.lexsort(rows.T)]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(1)]))
    return ordered[starts], np.diff(starts, append=len(rows))
