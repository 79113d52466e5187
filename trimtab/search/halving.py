"""Successive halving of candidates by two costs at once, as each comes: cheap measurements decide who gets dear ones.

Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020): a candidate
that has reached a rung goes on if it is among the best 1/eta of all that have reached it so far. With two costs "best"
is how few others are at least as good in both (the ranking of Fonseca and Fleming 1993). What is found late is compared
with more, and what came early is let through: nobody waits. Cost: n^2 comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
ETA = 3
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


def may_be_left(loss: float, recoveries: Sequence[tuple[float, float]]) -> float:
    """The share of a loss that recovery may leave, if as good as the best so far twice over; 0 where little is known.

    Args:
        loss: as a share of what is allowed.
        recoveries: of each the loss before and after. Those count that began beyond what is allowed, and not much
            nearer to it than `loss`, as of a larger loss a larger share comes back; one alone says nothing.

    >>> may_be_left(9.0, [(10.0, 5.0), (4.0, 3.6), (0.5, 0.6)]), may_be_left(9.0, [(10.0, 9.0), (2.0, 1.8)])
    (0.25, 0.0)
    """
    shares = [after / before for before, after in recoveries if before > max(1.0, loss / ALIKE)]
    return min(1.0, min(shares)) ** 2 if len(shares) > 1 else 0.0


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
