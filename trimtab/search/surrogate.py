"""What to try next, by what was seen: the candidate whose two costs are expected to add most to the hypervolume.

A Gaussian process for each cost over the picks (Matern 5/2 kernel; Rasmussen and Williams, "Gaussian Processes for
Machine Learning", 2006, eqs. 2.23, 2.24, 2.30 and 4.17), and the expected improvement of the hypervolume (Emmerich,
Giannakoglou and Naujoks, "Single- and Multiobjective Evolutionary Optimization Assisted by Gaussian Random Field
Metamodels", 2006). What differs: the costs are taken as independent, so that in two dimensions the expectation is a sum
of products over the strips of the front, each by quantiles; and length and noise are drawn by their likelihood from a
grid, by the seed, which searches of different seeds explore by. Gains do not multiply, so the distance is over all
slots at once.
Cost: n^3 for n candidates seen, and n for each that could come.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trimtab.core import Slot

Array = NDArray[np.float64]
Picks = Mapping[str, str]
LENGTHS, NOISES = (1.0, 2.0, 4.0), (0.003, 0.03, 0.2)  # in units of a slot's range, and of the variance
UNORDERED = 0.5  # how far apart the options of a slot without order are, times the root of 2
QUANTILES = np.array([NormalDist().inv_cdf((k + 0.5) / 16) for k in range(16)])
MOST_COMPARED = 20_000
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Seen:
    """A candidate, and what is known of its costs: a share of the best free baseline's, and of the loss allowed."""

    picks: Picks
    cost: float | None
    lost: float | None


def most_promising(slots: Sequence[Slot], seen: Sequence[Seen], left: Sequence[Picks], *, seed: str) -> Picks:
    """Of `left`, the picks that are expected to add most to the hypervolume up to the corner (1, 1).

    Where nothing is expected of any, that whose loss is the least at best, of those that may be cheaper: the nearest to
    what is allowed. They are drawn if none may be, or fewer than two costs of a kind are known. Of more than 20,000
    left, so many are drawn first.

    Args:
        slots: the space.
        seen: what is known; a candidate that is under way counts with what is expected of it, with neither cost.
        left: what can be proposed, at least one.
        seed: of what is drawn.
    """
    rng = random.Random(seed)
    if len(left) > MOST_COMPARED:
        left = rng.sample(list(left), MOST_COMPARED)
    costs = [(one.picks, float(np.log(one.cost))) for one in seen if one.cost is not None]
    losses = [(one.picks, squeezed(one.lost)) for one in seen if one.lost is not None]
    if min(len(costs), len(losses)) < 2:
        return rng.choice(left)
    pending = [one.picks for one in seen if one.cost is None and one.lost is None]
    asked = encoded(slots, [*left, *pending])
    cost, loss = (
        predicted(encoded(slots, [picks for picks, _ in known]), np.array([y for _, y in known]), asked, rng=rng)
        for known in (costs, losses)
    )
    points = [(one.cost, max(0.0, one.lost)) for one in seen if one.cost is not None and one.lost is not None]
    points += [
        (float(np.exp(cost[0][at])), max(0.0, float(unsqueezed(loss[0][at])))) for at in range(len(left), len(asked))
    ]
    costs_of, losses_of = (
        mean[: len(left), None] + deviation[: len(left), None] * QUANTILES for mean, deviation in (cost, loss)
    )
    gains = expected_gain(points, np.exp(costs_of), np.maximum(0.0, unsqueezed(losses_of)))
    if gains.max() > 0:
        return left[int(gains.argmax())]
    cheaper = np.flatnonzero(costs_of.min(1) < 0)
    return left[int(cheaper[losses_of[cheaper].min(1).argmin()])] if len(cheaper) else rng.choice(left)


def expected_gain(points: Sequence[tuple[float, float]], costs: Array, losses: Array) -> Array:
    """How much candidates are expected to add to the hypervolume of `points`, up to the corner (1, 1): [K].

    Args:
        points: the two costs of what is known.
        costs: equally likely values of the first, [K, Q].
        losses: of the second, independent of it, [K, Q].

    >>> expected_gain([(0.5, 0.5)], np.array([[0.25], [0.75]]), np.array([[0.75], [0.75]])).tolist()
    [0.0625, 0.0]
    """
    strips = [(0.0, 1.0)]  # from this cost on, up to the next, what loses less than this adds
    for x, y in sorted(points):
        if x < 1 and y < strips[-1][1]:
            strips.append((x, y))
    gains = np.zeros(len(costs))
    ends = [x for x, _ in strips[1:]] + [1.0]
    for (start, ceiling), end in zip(strips, ends, strict=True):
        width = np.maximum(0.0, end - np.maximum(start, costs)).mean(1)
        gains += width * np.maximum(0.0, ceiling - losses).mean(1)
    return gains


def predicted(x: Array, y: Array, asked: Array, *, rng: random.Random) -> tuple[Array, Array]:
    """Mean and standard deviation of a Gaussian process at `asked`, [K] each.

    Args:
        x: where values are known, [N, D].
        y: the values, [N].
        asked: [K, D].
        rng: draws length and noise by their likelihood.
    """
    middle, scale = float(y.mean()), float(y.std()) + 1e-6
    z, choices = (y - middle) / scale, [(length, noise) for length in LENGTHS for noise in NOISES]
    likelihoods, factors = [], []
    for length, noise in choices:
        lower = np.linalg.cholesky(matern(x, x, length) + noise * np.eye(len(x)))
        weighted = np.linalg.solve(lower, z)
        likelihoods.append(-0.5 * float(weighted @ weighted) - float(np.log(np.diag(lower)).sum()))
        factors.append((lower, weighted))
    weights = np.exp(np.array(likelihoods) - max(likelihoods))
    chosen = rng.choices(range(len(choices)), weights=weights.tolist())[0]
    lower, weighted = factors[chosen]
    across = np.linalg.solve(lower, matern(x, asked, choices[chosen][0]))
    variance = np.maximum(1 - (across**2).sum(0), LEAST_VARIANCE)
    return middle + scale * (across.T @ weighted), scale * np.sqrt(variance)


def matern(a: Array, b: Array, length: float) -> Array:
    """The Matern 5/2 kernel of unit variance between the rows of `a` [N, D] and `b` [M, D]: [N, M]."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    r = np.sqrt(5 * np.maximum(squares, 0.0)) / length
    return (1 + r + r * r / 3) * np.exp(-r)  # type: ignore[no-any-return]


def encoded(slots: Sequence[Slot], picks: Sequence[Picks]) -> Array:
    """Picks as points, [N, D]: an ordered slot is a line from 0 to 1, the options of another are all equally far."""
    columns: list[list[float]] = []
    for slot in slots:
        if slot.ordered:
            place = {option: at / max(1, len(slot.options) - 1) for at, option in enumerate(slot.options)}
            columns.append([place.get(one.get(slot.name, ""), 0.0) for one in picks])
        else:
            columns += [[UNORDERED * (one.get(slot.name) == option) for one in picks] for option in slot.options]
    return np.array(columns).T


def squeezed(lost: float) -> float:
    """A loss on a scale that is linear near 0 and logarithmic beyond what is allowed."""
    return float(np.arcsinh(2 * lost))


def unsqueezed(value: Array) -> Array:
    """Back from `squeezed`."""
    return np.sinh(value) / 2  # type: ignore[no-any-return]
