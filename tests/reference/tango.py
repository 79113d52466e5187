"""The slow, obvious side of the paired test: Tango's statistic by maximising the likelihood, and exact levels.

Nothing here is clever: the nuisance parameter is found on the constrained likelihood itself, and the false PASS rate
is the probability, under a true drop that sits on the margin, summed over every outcome (wins, losses).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from trimtab.measure.stats import non_inferiority


def score_statistic(wins: float, losses: float, num: int, diff: float) -> float:
    """(observed - expected) / standard error, the loss rate being the most likely one under P(win) = P(loss) + diff."""
    lowest, highest = max(0.0, -diff), (1 - diff) / 2

    def surprise(loss_rate: float) -> float:
        win_rate = loss_rate + diff
        terms = ((wins, win_rate), (losses, loss_rate), (num - wins - losses, 1 - win_rate - loss_rate))
        return -sum(count * np.log(max(rate, 1e-300)) for count, rate in terms if count)

    found = minimize_scalar(surprise, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12})
    loss_rate = float(found.x)
    win_rate = loss_rate + diff
    variance = num * (win_rate + loss_rate - diff**2)
    return float((wins - losses - num * diff) / np.sqrt(variance))


def scores(wins: int, losses: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Binary scores of a baseline and a candidate with that many discordant pairs."""
    baseline, candidate = np.zeros(num), np.zeros(num)
    candidate[:wins] = 1
    baseline[wins : wins + losses] = 1
    return baseline, candidate


def false_pass_rate(*, num: int, margin: float, loss_rate: float, confidence: float = 0.95) -> float:
    """P(the interval clears the margin), where P(loss) = `loss_rate` and the true drop is exactly `margin`."""
    win_rate = loss_rate - margin
    total = 0.0
    for losses in range(_likely(num, loss_rate) + 1):
        num_left, wins_allowed = num - losses, _likely(num, win_rate)
        least = _least_wins(losses, num, margin=margin, confidence=confidence, most=min(wins_allowed, num_left))
        if least is not None:
            tail = binom.sf(least - 1, num_left, min(max(win_rate, 0.0) / (1 - loss_rate), 1.0))
            total += binom.pmf(losses, num, loss_rate) * tail
    return float(total)


def _likely(num: int, rate: float) -> int:
    return min(num, int(num * rate + 8 * np.sqrt(num * max(rate, 0.0)) + 12))


def _least_wins(losses: int, num: int, *, margin: float, confidence: float, most: int) -> int | None:
    """The fewest wins that pass against so many losses, by bisection: more wins never hurt (a property test)."""

    def passes(wins: int) -> bool:
        drop = non_inferiority(*scores(wins, losses, num), margin=margin, confidence=confidence, binary=True)
        return drop.low >= -margin

    if not passes(most):
        return None
    low, high = -1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high
