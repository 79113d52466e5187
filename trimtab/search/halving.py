"""Successive halving of candidates by two costs at once, as each comes: cheap measurements decide who gets dear ones.

Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020): a candidate
that has reached a rung goes on if it is among the best 1/eta of all that have reached it so far. With two costs "best"
is how few others are at least as good in both (the ranking of Fonseca and Fleming 1993). What is found late is compared
with more, and what came early is let through: nobody waits. Cost: n^2 comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

Point = tuple[float, float]
ETA = 3
LEAST_LEFT = 0.1  # of a loss by a recovery, where little is known: the least that was seen is 18 %
ALIKE = 4  # losses that recovery may bring back alike differ by so many times at most


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is at least as small in both and not the same.

    >>> dominates((1, 2), (1, 3)), dominates((1, 2), (1, 2)), dominates((1, 4), (2, 3))
    (True, False, False)
    """
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def front(points: Sequence[Point]) -> list[int]:
    """Where the points are that none dominates, in order.

    >>> front([(1, 3), (2, 2), (2, 3), (3, 1)])
    [0, 1, 3]
    """
    return [at for at, own in enumerate(points) if not any(dominates(other, own) for other in points)]


def promoted(own: Point, others: Sequence[Point], *, eta: int = ETA) -> bool:
    """Whether `own` is among the best 1/eta of itself and `others`; ties are let through.

    >>> promoted((2, 2), [(1, 1), (3, 3)]), promoted((2, 2), [(3, 3), (4, 4)])
    (False, True)
    """
    everyone = [*others, own]
    ranks = [sum(dominates(other, one) for other in everyone) for one in everyone]
    better = sum(rank < ranks[-1] for rank in ranks)
    return better < math.ceil(len(everyone) / eta)


def beyond_recovery(loss: float, recoveries: Sequence[tuple[float, float]]) -> str | None:
    """Why a loss is more than training could recover; None if it is not, or may not be.

    What may be left of it is what the best recovery so far left, squared, as if it were as good twice over. Where fewer
    than two are known, it is a guess below all that was seen (docs/decisions/0015).

    Args:
        loss: as a share of what is allowed.
        recoveries: of each the loss before and after. Those count that began beyond what is allowed, and not much
            nearer to it than `loss`, as of a larger loss a larger share comes back.

    >>> beyond_recovery(9.0, [(10.0, 5.0), (4.0, 3.6), (0.5, 0.6)]), beyond_recovery(9.0, [(2.0, 1.8)])
    ('recoveries of such losses left 50% of them or more', None)
    """
    shares = _shares(loss, recoveries)
    if len(shares) < 2:
        return f"recovery hardly ever leaves less than {LEAST_LEFT:.0%} of a loss" if loss * LEAST_LEFT > 1 else None
    least = min(1.0, min(shares))
    return f"recoveries of such losses left {least:.0%} of them or more" if loss * least**2 > 1 else None


def comes_back(loss: float, recoveries: Sequence[tuple[float, float]]) -> bool:
    """Whether recovery brings a loss within what is allowed, if it does as well as the middle one of such losses did.

    >>> comes_back(1.2, [(1.1, 0.8), (9.0, 4.5)]), comes_back(2.0, [(1.1, 0.8)]), comes_back(1.2, [])
    (True, False, False)
    """
    shares = _shares(loss, recoveries)
    return bool(shares) and loss * median(shares) <= 1


def _shares(loss: float, recoveries: Sequence[tuple[float, float]]) -> list[float]:
    """What recoveries left of losses beyond what is allowed that were not much nearer to it than `loss`."""
    return [after / before for before, after in recoveries if before > max(1.0, loss / ALIKE)]


def hypervolume(points: Sequence[Point], worst: Point) -> float:
    """The area that `points` dominate, up to the corner `worst`; both costs are to be small.

    >>> hypervolume([(1, 2), (2, 1), (2, 2)], (3, 3))
    3.0
    """
    area, ceiling = 0.0, worst[1]
    for x, y in sorted(points):
        if x < worst[0] and y < ceiling:
            area += (worst[0] - x) * (ceiling - y)
            ceiling = y
    return area
