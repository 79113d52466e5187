"""How good a model's answers are, by every metric that a goal asks for, and how that compares with the original's.

A metric is the user's code: what it raises or returns wrongly is told as a `MetricError` that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trimtab.core import Drop, Goal, Metric, Split, Task
from trimtab.errors import MetricError
from trimtab.measure.corpus import value_of
from trimtab.measure.resample import Floats
from trimtab.measure.stats import Kept, held_by
from trimtab.tasks.bounds import Asked, asked

ROUNDING = 1e-6  # of the limits' span: a cosine of floats may be 1.0000001
# what is asked, e.g. "accuracy of night" -> the scores [M] or statistics [M, D] of the M samples it is asked of
Scores = Mapping[str, Floats]


def graded(task: Task, goal: Goal, outputs: np.ndarray | Tensor, split: Split) -> dict[str, Floats]:
    """The scores of `outputs` [N, ...] by everything that the goal asks of them, the task's own metric first.

    Raises:
        MetricError: a metric raised, or is not what it declares.
    """
    answers = outputs if isinstance(outputs, Tensor) else torch.from_numpy(outputs)
    return {
        one.what: scores(one.metric, answers[one.mask], split.targets[one.mask]) for one in asked(task, goal, split)
    }


def scores(metric: Metric, outputs: Tensor, targets: Tensor) -> Floats:
    """The metric's score of each sample, float64 [N]; its statistics [N, D] if it has an aggregate.

    Raises:
        MetricError: it raised, or returned NaN, something else than a number a sample, or more than its limits allow.
    """
    try:
        found = metric.per_sample(outputs, targets)
    except Exception as error:  # the user's metric may raise anything
        raise MetricError(
            f"The metric {metric.name!r} raised {type(error).__name__}: {error}. It was given outputs "
            f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}."
        ) from error
    shape = "[N, D]" if metric.aggregate else "[N]"
    ndim = 2 if metric.aggregate else 1
    if not isinstance(found, Tensor) or found.ndim != ndim or len(found) != len(targets):
        got = f"{tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise MetricError(
            f"The metric {metric.name!r} must return a tensor {shape} for N = {len(targets)} samples; it gave {got}."
        )
    own = found.detach().double().numpy()
    _require_declared(metric, own)
    return own


def value(metric: Metric, own: Floats) -> float:
    """The metric, from its scores [N] or statistics [N, D].

    Raises:
        MetricError: the aggregate raised, is not finite, or is beyond the metric's limits.

    >>> value(Metric("accuracy", lambda y, t: (y == t).float()), np.array([1.0, 0.0]))
    0.5
    """
    if metric.aggregate is None:
        return float(own.mean())
    found = float(value_of(metric.aggregate, own.mean(0)))
    if not np.isfinite(found):
        raise MetricError(f"The metric {metric.name!r} is {found} on {len(own)} samples; expected a finite number.")
    _require_within(metric, np.array([found]))
    return found


def held_against(task: Task, goal: Goal, split: Split, reference: Scores, candidate: Scores) -> tuple[Drop, ...]:
    """How the candidate's scores compare with the reference's: one `Drop` for each thing that the goal asks.

    Args:
        task: says what the metrics are.
        goal: says how much of them may be lost, and with what confidence.
        split: the samples that were scored.
        reference: the original's scores, as `graded` gives them.
        candidate: the like.

    Raises:
        MetricError: a metric is not finite on a bound's samples.
    """
    drops = []
    for one in asked(task, goal, split):
        before, after = reference[one.what], candidate[one.what]
        for own in (before, after):
            value(one.metric, own)  # refuses what is not finite, or beyond the limits
        drop = held_by(one.metric, before, after, margin=margin_of(one), confidence=goal.confidence)
        drops.append(replace(drop, what=one.what, share=float(one.mask.float().mean())))
    return tuple(drops)


def margin_of(one: Asked) -> float | Kept:
    """What may be lost: so much, or what is beyond the share that is to be kept."""
    return Kept(one.keep) if one.drop is None else one.drop


def _require_declared(metric: Metric, own: Floats) -> None:
    if bad := int(np.sum(~np.isfinite(own))):
        raise MetricError(
            f"The metric {metric.name!r} returned NaN or inf in {bad} of {own.size} places. Expected finite numbers: "
            "look at the model's outputs, or at the metric."
        )
    if metric.binary and not np.isin(own, (0.0, 1.0)).all():
        raise MetricError(
            f"The metric {metric.name!r} is declared binary and returned {own[~np.isin(own, (0.0, 1.0))][0]:g}. "
            "Return 0 or 1 per sample, or set binary=False."
        )
    if metric.aggregate is None:
        _require_within(metric, own)


def _require_within(metric: Metric, own: Floats) -> None:
    if metric.limits is None:
        return
    low, high = metric.limits
    rounding = ROUNDING * (high - low)
    beyond = own[(own < low - rounding) | (own > high + rounding)]
    if len(beyond):
        raise MetricError(
            f"The metric {metric.name!r} is declared to lie between {low:g} and {high:g}, and gave {beyond[0]:g} "
            f"({len(beyond)} of {len(own)}). Mend the metric, or its limits."
        )
