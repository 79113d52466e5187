"""How many channels each group keeps: under a budget, a knapsack over widths; or by one ranking of all.

What a group loses at a width is how far the model's outputs move there, where that was measured (`saliency.py`). Else
it is -log of the share of its importance that stays, so the last channels of a group are dear and a sum over groups is
the log of a product: no group is emptied to spare the others. Widths interact (a layer's
cost is a product of two), so every cost is computed anew from the widths at each step.
Shen et al., "Structural Pruning via Latency-Saliency Knapsack" (2022), packs single neurons with costs fixed in turn;
here whole widths, greedily by loss for cost, and then one group is moved and the others
make up for it, until that helps no more.
Cost: some (widths in all) x (groups) evaluations of the layers that a group touches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import PlanError

MAX_EXCHANGES = 200
MAX_LEVELS = 32
QUANTITIES = ("macs", "params", "latency_ms")


@dataclass(frozen=True)
class Budget:
    """What may stay, each as a fraction of the original's: at least one of them.

    macs: multiply-accumulates. params: numbers in parameters. latency_ms: the measured time of all contractions, in
    eager PyTorch, one thread and one sample.

    >>> Budget(macs=0.5).limits()
    {'macs': 0.5}
    """

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in QUANTITIES if getattr(self, name) is not None}
        if not limits or not all(0 < value < 1 for value in limits.values()):
            raise PlanError(
                f"Budget needs fractions of the original between 0 and 1; got {limits or 'none'}. "
                "Say what may stay, e.g. Budget(macs=0.5)."
            )

    def limits(self) -> dict[str, float]:
        """What is limited, and to which fraction."""
        return {name: getattr(self, name) for name in QUANTITIES if getattr(self, name) is not None}


@dataclass(frozen=True)
class Cost:
    """A quantity as a sum over terms, each a function of the channels that are gone, with the limit for the sum."""

    name: str
    terms: tuple[Any, ...]
    value: Callable[[Any, Mapping[str, int]], float]
    limit: float

    def total(self, gone: Mapping[str, int]) -> float:
        """The sum over all terms."""
        return sum(self.value(term, gone) for term in self.terms)


@dataclass(frozen=True)
class Choice:
    """The widths a group can have, from its full size down, and what is lost at each."""

    group: str
    size: int
    widths: tuple[int, ...]
    lost: tuple[float, ...]


def choice(group: str, importance: Tensor, widths: list[int], curve: tuple[tuple[int, float], ...] = ()) -> Choice:
    """The choice among `widths` of a group; the most important channels stay.

    curve: what is lost at some widths, if it was measured.
    """
    sizes = sorted({len(importance), *widths}, reverse=True)
    stride = math.ceil(len(sizes) / MAX_LEVELS)
    sizes = sorted({*sizes[::stride], sizes[-1]}, reverse=True)
    if curve:
        return Choice(group, len(importance), tuple(sizes), _between(curve, sizes))
    ranked = importance.sort(descending=True).values.cumsum(0)
    total = float(ranked[-1])
    kept = [float(ranked[size - 1]) / total if total else 1.0 for size in sizes]
    return Choice(group, len(importance), tuple(sizes), tuple(-math.log(max(share, 1e-12)) for share in kept))


def _between(curve: tuple[tuple[int, float], ...], sizes: list[int]) -> tuple[float, ...]:
    """What is lost at each of `sizes`, the largest of which is whole; never less at a narrower one.

    >>> _between(((6, 0.1), (2, 0.5)), [8, 6, 4, 2, 1])
    (0.0, 0.1, 0.3, 0.5, 0.75)
    """
    points = [(0, 2 * max(lost for _, lost in curve)), *sorted(curve), (sizes[0], 0.0)]
    widths, lost = zip(*points, strict=True)
    found = np.interp(sizes, widths, np.maximum.accumulate(lost[::-1])[::-1])
    return tuple(map(float, found))


def ranked_together(importance: Mapping[str, Tensor], ratio: float) -> dict[str, int]:
    """How many channels each group keeps if the least of all go, whatever their group.

    Scores are relative to their group's mean. A group may keep none here: limits are the caller's.
    """
    tiny = torch.finfo(torch.float64).tiny
    relative = {name: scores / scores.mean().clamp_min(tiny) for name, scores in importance.items()}
    everything = torch.cat(list(relative.values()))
    owner = torch.cat([torch.full((len(scores),), place) for place, scores in enumerate(relative.values())])
    num_gone = math.floor(ratio * len(everything) + 0.5)
    gone = owner[everything.argsort(stable=True)[:num_gone]].bincount(minlength=len(relative))
    return {name: len(scores) - int(gone[place]) for place, (name, scores) in enumerate(relative.items())}


def knapsack(choices: list[Choice], costs: list[Cost]) -> dict[str, int]:
    """The width of each group that loses least and keeps every cost within its limit.

    Raises:
        PlanError: not even the narrowest widths keep a limit; says how far they get.
    """
    state = _State(choices, costs)
    state.require_feasible()
    state.repair()
    for _ in range(MAX_EXCHANGES):
        if not state.exchange():
            break
    return {one.group: one.widths[state.level[one.group]] for one in choices}


class _State:
    """The level of each group, and every cost at these levels."""

    def __init__(self, choices: list[Choice], costs: list[Cost]) -> None:
        self.choices = {one.group: one for one in choices}
        self.level = dict.fromkeys(self.choices, 0)
        self.costs = costs
        self.touched = [
            {name: [term for term in cost.terms if name in term.groups()] for name in self.choices} for cost in costs
        ]
        self.gone = dict.fromkeys(self.choices, 0)
        self.full = [cost.total({}) for cost in costs]
        self.totals = list(self.full)

    def require_feasible(self) -> None:
        """Refuse limits that the narrowest widths break."""
        least = {name: one.size - one.widths[-1] for name, one in self.choices.items()}
        for cost, full in zip(self.costs, self.full, strict=True):
            reached = cost.total(least)
            if reached > cost.limit:
                raise PlanError(
                    f"The budget cannot be met: {cost.name} would have to fall to {cost.limit / full:.3g} of the "
                    f"original's, and come to {reached / full:.3g} with every group as narrow as it may be. Raise the "
                    "budget, raise max_ratio, or lower round_to and keep_min."
                )

    def fits(self) -> bool:
        """Whether every cost is within its limit."""
        # The totals are sums of differences: they may be off in their last digits.
        return all(total <= cost.limit * (1 + 1e-12) for cost, total in zip(self.costs, self.totals, strict=True))

    def move(self, name: str, levels: int) -> list[float]:
        """Go some levels down (or up, if negative) with one group; returns how each cost changed."""
        one = self.choices[name]
        before = [self._of(place, name) for place in range(len(self.costs))]
        self.level[name] += levels
        self.gone[name] = one.size - one.widths[self.level[name]]
        changes = [self._of(place, name) - old for place, old in enumerate(before)]
        self.totals = [total + change for total, change in zip(self.totals, changes, strict=True)]
        return changes

    def can(self, name: str, levels: int) -> bool:
        """Whether a group has such a level."""
        return 0 <= self.level[name] + levels < len(self.choices[name].widths)

    def lost(self, name: str, levels: int) -> float:
        """What changes in importance lost if a group goes some levels down."""
        at = self.choices[name].lost
        return at[self.level[name] + levels] - at[self.level[name]]

    def lost_in_all(self) -> float:
        """The importance that is lost at the present widths."""
        return sum(one.lost[self.level[name]] for name, one in self.choices.items())

    def repair(self, fixed: str | None = None) -> None:
        """Narrow groups, but for one, until every cost is within its limit if that can be; then widen what fits."""
        while not self.fits() and self.step_down(fixed):
            pass
        while self.fits() and self.step_up(fixed):
            pass

    def step_down(self, fixed: str | None) -> bool:
        """Narrow the group that loses least for what it frees of the costs that are too high; whether one could."""
        best, best_rate = None, math.inf
        over = [total > cost.limit for cost, total in zip(self.costs, self.totals, strict=True)]
        for name in self.choices:
            if name == fixed or not self.can(name, 1):
                continue
            lost = self.lost(name, 1)
            changes = self.move(name, 1)
            self.move(name, -1)
            freed = sum(-change / full for change, full, high in zip(changes, self.full, over, strict=True) if high)
            rate = lost / freed if freed > 0 else math.inf
            if best is None or rate < best_rate:
                best, best_rate = name, rate
        if best is not None:
            self.move(best, 1)
        return best is not None

    def step_up(self, fixed: str | None) -> bool:
        """Widen the group that wins most and still fits; whether there was one."""
        for name in sorted(self.choices, key=lambda name: self.lost(name, -1) if self.can(name, -1) else 0.0):
            if name != fixed and self.can(name, -1) and self.lost(name, -1) < 0:
                self.move(name, -1)
                if self.fits():
                    return True
                self.move(name, 1)
        return False

    def exchange(self) -> bool:
        """Move one group and let the others make up for it, if that loses less in all; whether it did."""
        start, before = dict(self.level), self.lost_in_all()
        for name in self.choices:
            for levels in (-1, 1, -2, 2):
                if self.can(name, levels):
                    self.move(name, levels)
                    self.repair(fixed=name)
                    if self.fits() and self.lost_in_all() < before - 1e-9:
                        return True
                    for other, level in start.items():
                        if self.level[other] != level:
                            self.move(other, level - self.level[other])
        return False

    def _of(self, cost: int, name: str) -> float:
        return sum(self.costs[cost].value(term, self.gone) for term in self.touched[cost][name])
