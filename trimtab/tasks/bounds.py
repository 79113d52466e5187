"""What a goal's bounds ask for on a task: which metric, on which samples, and how much of it may be lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.core import Bound, Goal, Metric, Split, Task
from trimtab.errors import GoalError, TaskError
from trimtab.tasks.check import behind_the_seal


@dataclass(frozen=True)
class Asked:
    """One thing that must stay true: a metric on some samples, as a mask [N]; `keep` of it, or `drop` less."""

    what: str
    metric: Metric
    mask: Tensor
    keep: float
    drop: float | None


def asked(task: Task, goal: Goal, split: Split) -> tuple[Asked, ...]:
    """Everything that `goal` asks of `split`, the task's metric on all samples first.

    Raises:
        TaskError: a slice raised, is no mask, or leaves fewer than two samples.
    """
    everything = torch.ones(len(split), dtype=torch.bool)
    main = Asked(task.metric.name, task.metric, everything, goal.keep, goal.drop)
    return (main, *(one for bound in goal.bounds for one in _of(bound, task, goal, split)))


def check_bounds(task: Task, goal: Goal) -> None:
    """Refuse bounds that name what the task has not, or that no split has samples for.

    Raises:
        GoalError: a bound names an unknown metric or slice, asks for classes that are none, or says no loss.
        TaskError: a slice raised, is no mask, or leaves fewer than two samples.
    """
    metrics = metrics_of(task)
    if len(metrics) != 1 + len(task.metrics):
        names = ", ".join(metric.name for metric in (task.metric, *task.metrics))
        raise TaskError(f"Each of the task's metrics needs a name of its own; got {names}.")
    for bound in goal.bounds:
        if bound.metric and bound.metric not in metrics:
            raise GoalError(f"The bound's metric {bound.metric!r} is none of the task's: {', '.join(metrics)}.")
        if bound.slice and bound.slice not in task.slices:
            known = ", ".join(task.slices) or "it has none; give Task(slices={name: function})"
            raise GoalError(f"The bound's slice {bound.slice!r} is none of the task's: {known}.")
        if bound.per_class and (task.select.targets.is_floating_point() or task.select.targets.ndim != 1):
            raise GoalError(
                f"per_class=True needs one class a sample, whole numbers [N]; the targets are "
                f"{task.select.targets.dtype} {tuple(task.select.targets.shape)}. Give slices instead."
            )
        other = bound.metric not in ("", task.metric.name)
        if other and goal.drop is not None and bound.keep is None and bound.drop is None:
            raise GoalError(
                f"The goal's drop={goal.drop:g} is in the units of {task.metric.name}, so the bound on "
                f"{bound.metric} needs a keep or a drop of its own."
            )
    # Of `verify` only how many samples each bound has is looked at, which no answer of a model enters.
    for name, split in (("select", task.select), ("verify", behind_the_seal(task.verify))):
        for one in asked(task, goal, split):
            if int(one.mask.sum()) < 2:
                raise TaskError(
                    f"The bound on {one.what} has {int(one.mask.sum())} of {len(split)} {name} samples: two or more "
                    "are needed, and hundreds to prove anything. Add such samples, or take the bound away."
                )


def metrics_of(task: Task) -> dict[str, Metric]:
    """The task's metrics by name, its main one first."""
    return {metric.name: metric for metric in (task.metric, *task.metrics)}


def _of(bound: Bound, task: Task, goal: Goal, split: Split) -> Iterator[Asked]:
    metric = metrics_of(task)[bound.metric or task.metric.name]
    what, mask = metric.name, torch.ones(len(split), dtype=torch.bool)
    if bound.slice:
        what, mask = f"{what} of {bound.slice}", _mask(bound.slice, task, split)
    drop = bound.drop if bound.keep is not None or bound.drop is not None else goal.drop
    keep = goal.keep if bound.keep is None else bound.keep
    if not bound.per_class:
        yield Asked(what, metric, mask, keep, drop)
        return
    num = len(task.labels) or int(task.select.targets.max()) + 1
    for label in range(num):
        name = task.labels[label] if task.labels else f"class {label}"
        yield Asked(f"{what}, {name}", metric, mask & (split.targets == label), keep, drop)


def _mask(name: str, task: Task, split: Split) -> Tensor:
    try:
        mask = task.slices[name](split.inputs, split.targets)
    except Exception as error:  # the user's function may raise anything
        raise TaskError(f"The slice {name!r} raised {type(error).__name__}: {error}.") from error
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (len(split),):
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TaskError(
            f"The slice {name!r} must say of each sample whether it belongs: torch.bool ({len(split)},); got {got}."
        )
    return mask
