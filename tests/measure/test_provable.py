"""What no candidate could prove: as the tests themselves conclude on two equal models."""

from __future__ import annotations

import numpy as np
import torch

import trimtab as tt
from trimtab.measure.provable import unprovable
from trimtab.measure.quality import graded
from trimtab.measure.stats import non_inferiority
from trimtab.tasks.metrics import f1


def task(num_verify: int) -> tt.Task:
    rng = np.random.default_rng(0)
    sizes = {"train": 20, "select": 200, "verify": num_verify}
    data = {name: (rng.normal(size=(num, 4)).astype("float32"), np.arange(num) % 2) for name, num in sizes.items()}
    return tt.Task.of("made up", **data, metrics=(f1(1),))


def told(job: tt.Task, goal: tt.Goal) -> tuple[str, ...]:
    outputs = torch.nn.functional.one_hot(job.select.targets, 2).float()
    return unprovable(job, goal, graded(job, goal, outputs, job.select), job.select)


def test_it_is_what_two_equal_models_come_to() -> None:
    for num, margin in ((100, 0.02), (100, 0.03), (1000, 0.002), (1000, 0.004)):
        right = np.ones(num)
        drop = non_inferiority(right, right, margin=margin, confidence=0.95, binary=True)
        assert bool(told(task(num), tt.Goal(drop=margin))) == (drop.low < -margin)


def test_it_says_how_many_samples_would_do_and_they_do() -> None:
    (text,) = told(task(100), tt.Goal(drop=0.005))
    enough = int(text.split("Some ")[1].split()[0].replace(",", ""))
    assert told(task(enough), tt.Goal(drop=0.005)) == ()
    assert told(task(enough // 2), tt.Goal(drop=0.005))


def test_every_bound_is_looked_at_and_no_loss_at_all_is_told() -> None:
    goal = tt.Goal(drop=0.5, bounds=(tt.Bound("F1 of 1", drop=0.0),))
    assert [text.partition(":")[0] for text in told(task(100), goal)] == ["F1 of 1"]
    assert "better for sure" in told(task(100), goal)[0]


def test_what_no_number_of_samples_would_prove_says_so() -> None:
    assert told(task(100), tt.Goal(drop=1e-7))[0].endswith("no number of samples that could be had would do.")
