from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import trimtab as tt
from trimtab.core import Bound, Goal, Metric, Task
from trimtab.errors import GoalError, TaskError
from trimtab.tasks.bounds import asked, check_bounds
from trimtab.tasks.metrics import f1


def task(**settings: Any) -> Task:
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0, 1, (num, 4)).astype("float32"), np.arange(num) % 3) for num in (30, 60, 90)]
    train, select, verify = pairs
    slices = {"late": lambda inputs, targets: torch.arange(len(targets)) >= len(targets) // 2}
    return Task.of(
        "toy", train=train, select=select, verify=verify, **{"metrics": (f1(1),), "slices": slices, **settings}
    )


def test_what_is_asked_of_a_split() -> None:
    job = task(labels=("a", "b", "c"))
    goal = Goal(keep=0.95, bounds=(Bound("F1 of 1", drop=0.1), Bound(slice="late"), Bound(per_class=True, keep=0.9)))
    found = asked(job, goal, job.select)
    assert [one.what for one in found] == [
        "accuracy", "F1 of 1", "accuracy of late", "accuracy, a", "accuracy, b", "accuracy, c",
    ]  # fmt: skip
    assert [int(one.mask.sum()) for one in found] == [60, 60, 30, 20, 20, 20]
    assert [one.keep for one in found] == [0.95, 0.95, 0.95, 0.9, 0.9, 0.9]
    assert [one.drop for one in found] == [None, 0.1, None, None, None, None]
    check_bounds(job, goal)


def test_an_absolute_drop_is_inherited_by_the_same_metric_alone() -> None:
    job = task()
    assert [one.drop for one in asked(job, Goal(drop=0.02, bounds=(Bound(slice="late"),)), job.select)] == [0.02, 0.02]
    kept = asked(job, Goal(drop=0.02, bounds=(Bound(slice="late", keep=0.9),)), job.select)[1]
    assert (kept.keep, kept.drop) == (0.9, None)
    with pytest.raises(GoalError, match=r"in the units of accuracy, so the bound on F1 of 1 needs a keep or a drop"):
        check_bounds(job, Goal(drop=0.02, bounds=(Bound("F1 of 1"),)))


@pytest.mark.parametrize(
    ("bound", "settings", "error", "message"),
    [
        (Bound("recall"), {}, GoalError, "'recall' is none of the task's: accuracy, F1 of 1"),
        (Bound(slice="early"), {}, GoalError, "'early' is none of the task's: late"),
        (Bound(slice="early"), {"slices": {}}, GoalError, "it has none; give Task"),
        (
            Bound("F1 of 1"),
            {"metrics": (f1(1), f1(1))},
            TaskError,
            "needs a name of its own; got accuracy, F1 of 1, F1",
        ),
        (Bound(slice="late"), {"slices": {"late": lambda x, t: t}}, TaskError, r"torch.bool \(60,\); got torch.int64"),
        (Bound(slice="late"), {"slices": {"late": lambda x, t: 1 / 0}}, TaskError, "'late' raised ZeroDivisionError"),
        (Bound(slice="late"), {"slices": {"late": lambda x, t: t > 5}}, TaskError, "has 0 of 60 select samples"),
        (Bound(per_class=True), {"labels": tuple("abcd")}, TaskError, "accuracy, d has 0 of 60 select samples"),
    ],
)
def test_bounds_that_the_task_cannot_answer_are_refused(
    bound: Bound, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_bounds(task(**settings), Goal(bounds=(bound,)))


def test_classes_need_whole_numbers() -> None:
    x, y = np.zeros((4, 2), "float32"), np.linspace(0, 1, 4, dtype="float32")
    pairs = {name: (x + place, y) for place, name in enumerate(("train", "select", "verify"))}
    metric = Metric("closeness", lambda out, true: -(out[:, 0] - true).abs())
    real = Task.of("real", **pairs, loss=torch.nn.functional.mse_loss, metric=metric)
    with pytest.raises(GoalError, match="needs one class a sample"):
        check_bounds(real, Goal(bounds=(Bound(per_class=True),)))


def test_bounds_that_say_nothing_or_too_much() -> None:
    with pytest.raises(GoalError, match="repeats the goal"):
        Bound()
    with pytest.raises(GoalError, match=r"keep=0.9 and drop=0.1: give one"):
        Bound("F1", keep=0.9, drop=0.1)
    with pytest.raises(GoalError, match="keep=2 is not a fraction"):
        Bound("F1", keep=2)
    with pytest.raises(GoalError, match="drop=-1 must be zero or more"):
        Bound("F1", drop=-1)
    with pytest.raises(GoalError, match="drop=inf must be zero or more"):
        tt.Goal(drop=float("inf"))
