"""How the learning rate goes, and sizes that grow while one trains: pure functions of the step's number.

A schedule of the rate is (step, total, warmup) -> a factor in (0, 1]; `SCHEDULES` lists them. All begin with a linear
warm-up and are never 0, so that no step is in vain.
"""

from __future__ import annotations

import math
from typing import Protocol

from trimtab.errors import TaskError


class Schedule(Protocol):
    """The factor on the learning rate of `step`, 0 .. total - 1; `warmup` is a fraction of the steps."""

    def __call__(self, step: int, total: int, *, warmup: float) -> float: ...


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


def warmup_constant(step: int, total: int, *, warmup: float) -> float:
    """Linear warm-up, then 1: for methods that average, or search along a line.

    Args:
        step: 0 .. total - 1.
        total: number of steps.
        warmup: fraction of the steps, 0 <= warmup < 1.

    Example:
        >>> [warmup_constant(step, 4, warmup=0.5) for step in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / max(1, round(warmup * total)))


def warmup_polynomial(step: int, total: int, *, warmup: float, power: float = 1.0) -> float:
    """Linear warm-up, then ((total - step) / (total - w))^power: a line to zero by default.

    Args:
        step: 0 .. total - 1.
        total: number of steps.
        warmup: fraction of the steps, 0 <= warmup < 1.
        power: 2 is a parabola that falls early.

    Example:
        >>> [warmup_polynomial(step, 5, warmup=0.2) for step in range(5)]
        [1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return float(((total - step) / (total - rising)) ** power)


def warmup_stable_decay(step: int, total: int, *, warmup: float, decay: float = 0.2) -> float:
    """WSD: linear warm-up, 1, and over the last part 1 - sqrt of how far it is (Haegele 2024).

    A run can be prolonged from any step before the decay without having lost anything.

    Args:
        step: 0 .. total - 1.
        total: number of steps.
        warmup: fraction of the steps, 0 <= warmup < 1.
        decay: fraction of the steps, 0 <= decay <= 1.

    Example:
        >>> [round(warmup_stable_decay(step, 10, warmup=0.2, decay=0.4), 2) for step in range(10)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.29, 0.13]
    """
    falling = round(decay * total)
    past = step - (total - falling)
    if past <= 0:
        return warmup_constant(step, total, warmup=warmup)
    return warmup_constant(step, total, warmup=warmup) * (1 - math.sqrt(past / falling))


def one_cycle(step: int, total: int, *, warmup: float, start: float = 0.04, end: float = 4e-6) -> float:
    """Half a cosine from `start` up to 1 over the warm-up, and half a cosine down to `end` (Smith and Topin 2018).

    Args:
        step: 0 .. total - 1.
        total: number of steps.
        warmup: fraction of the steps, 0 <= warmup < 1; 0.3 is usual here.
        start: the first factor.
        end: the last.

    Example:
        >>> [round(one_cycle(step, 7, warmup=0.43), 2) for step in range(7)]
        [0.04, 0.52, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    peak = max(0, round(warmup * total) - 1)
    low, share = (start, step / peak) if step < peak else (end, 1 - (step - peak) / max(1, total - 1 - peak))
    return low + (1 - low) * (1 - math.cos(math.pi * share)) / 2


def growing_batch(step: int, total: int, *, first: int, last: int) -> int:
    """A batch size that doubles in equal stretches of steps, in place of a rate that falls (Smith 2018).

    Args:
        step: 0 .. total - 1.
        total: number of steps.
        first: samples in the first batch.
        last: samples in the last; reached in the last stretch.

    Example:
        >>> [growing_batch(step, 6, first=32, last=100) for step in range(6)]
        [32, 32, 64, 64, 100, 100]
    """
    doublings = max(0, math.ceil(math.log2(last / first)))
    return min(last, first * 2 ** (step * (doublings + 1) // total))


def growing_size(step: int, total: int, *, first: int, last: int, multiple: int = 1, over: float = 0.8) -> int:
    """A resolution (Tan and Le 2021) or sequence length (Li 2022) that grows on a line, then stays.

    Args:
        step: 0 .. total - 1.
        total: number of steps.
        first: pixels or tokens at the first step.
        last: at the end.
        multiple: each size but `last` is one of these, rounded down, and at least one.
        over: the fraction of the steps after which it is `last`.

    Example:
        >>> [growing_size(step, 5, first=64, last=128, multiple=32, over=0.8) for step in range(5)]
        [64, 64, 96, 96, 128]
    """
    share = min(1.0, step / (over * total)) if over else 1.0
    if share == 1:
        return last
    return max(multiple, int(first + share * (last - first)) // multiple * multiple)


SCHEDULES: dict[str, Schedule] = {
    "constant": warmup_constant,
    "cosine": warmup_cosine,
    "linear": warmup_polynomial,
    "one_cycle": one_cycle,
    "wsd": warmup_stable_decay,
}


def find_schedule(name: str) -> Schedule:
    """The schedule of that name.

    Raises:
        TaskError: there is none.

    Example:
        >>> find_schedule("cosine") is warmup_cosine
        True
    """
    if name not in SCHEDULES:
        raise TaskError(f"There is no schedule {name!r}; the schedules are {', '.join(SCHEDULES)}.")
    return SCHEDULES[name]
