"""How the learning rate goes: linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017)."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total: int, *, warmup: float) -> float:
    """The factor in (0, 1] for the learning rate of `step`.

    f = (step + 1) / w for the first w = round(warmup * total) steps, then (1 + cos(pi * (step - w) / (total - w))) / 2.

    Args:
        step: 0 .. total - 1.
        total: number of steps.
        warmup: fraction of the steps, 0 <= warmup < 1.

    Returns:
        The factor; it is 1 at the end of the warm-up and never 0, so that no step is in vain.

    Example:
        >>> [round(warmup_cosine(step, 6, warmup=0.34), 2) for step in range(6)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / (total - rising))) / 2
