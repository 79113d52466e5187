"""How far to go along a direction: Armijo's backtracking (1966), and the strong Wolfe conditions (1969).

The second after Nocedal and Wright, "Numerical Optimization" (2006), algorithms 3.5 and 3.6, with the minimum of the
cubic through two values and slopes as the trial. Cost: one value (and slope) of the function a trial, 1 to 3 in
the usual case.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# t -> value and slope of the function at the distance t
Phi = Callable[[float], tuple[float, float]]
C1, TRIALS = 1e-4, 40


def armijo(phi: Phi, value: float, slope: float, t: float, *, c1: float = C1) -> float:
    """The first of t, t/2, t/4, ... with  phi(t) <= phi(0) + c1 t phi'(0).

    Args:
        phi: the function along the line.
        value: phi(0).
        slope: phi'(0), negative.
        t: the first trial.
        c1: which share of the promised decrease is enough.

    Returns:
        The distance; 0 if none of 40 trials decreases, as happens at the end of the float's precision.

    Example:
        >>> armijo(lambda t: ((t - 1) ** 2, 2 * (t - 1)), 1.0, -2.0, 8.0)
        1.0
    """
    for _ in range(TRIALS):
        if phi(t)[0] <= value + c1 * t * slope:
            return t
        t /= 2
    return 0.0


def strong_wolfe(phi: Phi, value: float, slope: float, t: float, *, c2: float = 0.9) -> float:
    """A t with  phi(t) <= phi(0) + c1 t phi'(0)  and  |phi'(t)| <= c2 |phi'(0)|.

    Args:
        phi: the function along the line.
        value: phi(0).
        slope: phi'(0), negative.
        t: the first trial.
        c2: how flat it must be: 0.9 is lax, 0.1 nearly the minimum.

    Returns:
        The distance; 0 if nothing was found that decreases.

    Example:
        >>> round(strong_wolfe(lambda t: ((t - 1) ** 2, 2 * (t - 1)), 1.0, -2.0, 8.0, c2=0.1), 6)
        1.0
    """
    before = (0.0, value, slope)
    for trial in range(TRIALS):
        here = (t, *phi(t))
        if not here[1] <= value + C1 * t * slope or (trial and here[1] >= before[1]):
            return _zoom(phi, value, slope, before, here, c2)
        if abs(here[2]) <= -c2 * slope:
            return t
        if here[2] >= 0:
            return _zoom(phi, value, slope, here, before, c2)
        before, t = here, 2 * t
    return before[0]


def _zoom(
    phi: Phi,
    value: float,
    slope: float,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    c2: float,
) -> float:
    """Algorithm 3.6: the interval between `low`, the best so far, and `high` holds such a t."""
    for _ in range(TRIALS):
        t = _trial(low, high)
        here = (t, *phi(t))
        if not here[1] <= value + C1 * t * slope or here[1] >= low[1]:
            high = here
        else:
            if abs(here[2]) <= -c2 * slope:
                return t
            if here[2] * (high[0] - low[0]) >= 0:
                high = low
            low = here
        if abs(high[0] - low[0]) <= 1e-12 * max(low[0], high[0]):
            break
    return low[0]


def _trial(low: tuple[float, float, float], high: tuple[float, float, float]) -> float:
    """The minimum of the cubic through both ends, kept a tenth of the interval away from them."""
    (a, fa, ga), (b, fb, gb) = low, high
    middle = (a + b) / 2
    if not math.isfinite(fb + gb):
        return middle
    d1 = ga + gb - 3 * (fa - fb) / (a - b)
    square = d1 * d1 - ga * gb
    if square < 0:
        return middle
    d2 = math.copysign(math.sqrt(square), b - a)
    bottom = gb - ga + 2 * d2
    if not bottom:
        return middle
    t = b - (b - a) * (gb + d2 - d1) / bottom
    left, right = sorted((a, b))
    margin = 0.1 * (right - left)
    return min(max(t, left + margin), right - margin)
