from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from trimtab.core import Bound, Drop, Goal, Metric, Task
from trimtab.errors import MetricError, TaskError
from trimtab.measure.quality import graded, held_against, scores, value
from trimtab.measure.verdict import hold
from trimtab.tasks.metrics import auc, f1

SPLITS = ("train", "select", "verify")
TARGETS = torch.arange(60) % 3


def task(**settings: Any) -> Task:
    rng = np.random.default_rng(0)
    pairs = {
        name: (rng.normal(0, 1, (60, 3)).astype("float32"), TARGETS.numpy()) for name in ("train", "select", "verify")
    }
    return Task.of("toy", **pairs, labels=("a", "b", "c"), **{"metrics": (f1(1),), **settings})


def answers(wrong: list[int]) -> Tensor:
    said = TARGETS.clone()
    said[wrong] = (said[wrong] + 1) % 3
    return torch.eye(3)[said]


def drops(job: Task, goal: Goal, wrong: list[int]) -> dict[str, Drop]:
    before, after = (graded(job, goal, answers(places), job.select) for places in ([0], wrong))
    return {drop.what: drop for drop in held_against(job, goal, job.select, before, after)}


def test_each_bound_is_held_on_its_own_samples() -> None:
    goal = Goal(keep=0.9, bounds=(Bound("F1 of 1", drop=0.2), Bound(per_class=True)))
    found = drops(task(), goal, [0, 1, 4])
    assert found["accuracy"].diff == pytest.approx(-2 / 60)
    assert found["accuracy"].margin == pytest.approx(0.1 * 59 / 60)
    assert (found["accuracy, b"].n, found["accuracy, b"].share) == (20, pytest.approx(1 / 3))
    assert found["accuracy, b"].diff == pytest.approx(-2 / 20)
    assert found["accuracy, a"].diff == found["accuracy, c"].diff == 0
    assert found["accuracy, a"].margin == pytest.approx(0.1 * 19 / 20)
    assert found["F1 of 1"].margin == 0.2
    assert "BCa" in found["F1 of 1"].method
    assert found["F1 of 1"].candidate == pytest.approx(2 * 18 / (2 * 18 + 3))


def test_a_slices_statistics_are_taken_among_its_own_samples() -> None:
    # Among all samples the AUC is .5; among the first half, sorted by label, it is 1.
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0])
    job = Task.of(
        "pairs",
        **{name: (np.arange(8, dtype="float32")[:, None] + place, labels.numpy()) for place, name in
           ((0, "train"), (10, "select"), (20, "verify"))},
        metric=auc(), loss=torch.nn.functional.mse_loss,
        slices={"first": lambda inputs, targets: torch.arange(8) < 4},
    )  # fmt: skip
    found = graded(job, Goal(bounds=(Bound(slice="first"),)), torch.arange(8.0), job.select)
    assert value(auc(), found["AUC"]) == pytest.approx(0.5)
    assert value(auc(), found["AUC of first"]) == pytest.approx(1.0)


def bad(per_sample: Any, **settings: Any) -> None:
    scores(Metric("mine", per_sample, **settings), answers([]), TARGETS)


@pytest.mark.parametrize(
    ("per_sample", "settings", "message"),
    [
        (lambda y, t: y[:, 7], {}, r"'mine' raised IndexError.*outputs \(60, 3\) and targets \(60,\)"),
        (lambda y, t: t.float().mean(), {}, r"must return a tensor \[N\] for N = 60 samples; it gave \(\)"),
        (lambda y, t: 0.5, {}, "it gave float"),
        (lambda y, t: t.float(), {"aggregate": lambda m: m[..., 0]}, r"must return a tensor \[N, D\]"),
        (lambda y, t: torch.where(t > 0, t, torch.nan), {}, "returned NaN or inf in 20 of 60 places"),
        (lambda y, t: t, {"binary": True}, "declared binary and returned 2"),
        (lambda y, t: t, {"limits": (0.0, 1.0)}, r"between 0 and 1, and gave 2 \(20 of 60\)"),
    ],
)
def test_a_metric_that_is_not_what_it_declares_is_named(per_sample: Any, settings: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        bad(per_sample, **settings)


def test_an_aggregate_that_is_not_what_it_declares_is_named() -> None:
    own = np.ones((60, 2))
    with pytest.raises(MetricError, match=r"between 0 and 1, and gave 2"):
        value(Metric("mine", f1().per_sample, aggregate=lambda m: m[..., 0] + m[..., 1], limits=(0.0, 1.0)), own)
    with pytest.raises(MetricError, match="'mine' is nan on 60 samples"):
        value(Metric("mine", f1().per_sample, aggregate=lambda m: m[..., 0] - np.inf * m[..., 1] * 0), own)
    with pytest.raises(MetricError, match="aggregate raised KeyError"):
        value(Metric("mine", f1().per_sample, aggregate=lambda m: {}["tp"]), own)


def test_rounding_beyond_the_limits_is_no_lie() -> None:
    metric = Metric("cosine", lambda y, t: torch.full((60,), 1.0 + 1e-7), limits=(-1.0, 1.0))
    assert len(scores(metric, torch.zeros(60, 3), torch.zeros(60))) == 60


def test_declarations_that_contradict_each_other() -> None:
    with pytest.raises(TaskError, match="declared binary, its scores being 0 or 1, and has limits too"):
        Metric("mine", f1().per_sample, binary=True, limits=(0.0, 1.0))
    with pytest.raises(TaskError, match=r"must be \(lowest, highest\); got \(1.0, 0.0\)"):
        Metric("mine", f1().per_sample, limits=(1.0, 0.0))


GOALS = (0.9, 0.95, 0.99)


def words(confidence: float, *, margin: float, what: str) -> tuple[Drop, str]:
    """What a goal of that confidence says of one of three metrics, 900 samples, of which the candidate loses some."""
    rng = np.random.default_rng(4)
    targets = torch.arange(900) % 3
    said = torch.where(torch.from_numpy(rng.random(900)) < 0.1, (targets + 1) % 3, targets)
    again = torch.where(torch.from_numpy(rng.random(900)) < 0.03, (said + 2) % 3, said)
    likeness = Metric("likeness", lambda y, t: y[:, 3])
    pairs = {name: (np.zeros((900, 4), "float32") + at, targets.numpy()) for at, name in enumerate(SPLITS)}
    job = Task.of("toy", **pairs, labels=("a", "b", "c"), metrics=(f1(1), likeness))
    noise = torch.from_numpy(rng.normal(0, 0.1, 900)).float()
    outputs = [
        torch.cat([torch.eye(3)[answer], (shift + noise * size)[:, None]], 1)
        for answer, shift, size in ((said, 0.5, 1.0), (again, 0.49, 0.5))
    ]
    own = {"accuracy": {"drop": margin}}.get(what, {"drop": 1.0, "bounds": (Bound(what, drop=margin),)})
    goal = Goal(confidence=confidence, **own)
    before, after = (graded(job, goal, output, job.select) for output in outputs)
    found = {drop.what: drop for drop in held_against(job, goal, job.select, before, after)}[what]
    return found, hold([found])[0].word


@pytest.mark.parametrize("what", ["accuracy", "likeness", "F1 of 1"])
def test_the_goals_confidence_makes_the_interval(what: str) -> None:
    found = {confidence: words(confidence, margin=0.02, what=what)[0] for confidence in GOALS}
    usual = found[0.95]
    for confidence, drop in found.items():
        assert (drop.confidence, drop.diff) == (confidence, usual.diff)
        # All three are nearly normal here, so that a bound lies as many standard errors away as its quantile says.
        times = pytest.approx(norm.ppf(confidence) / norm.ppf(0.95), rel=0.08)
        assert (drop.diff - drop.low) / (usual.diff - usual.low) == times
        assert (drop.high - drop.diff) / (usual.high - usual.diff) == times


P, F, OPEN = "PASS", "FAIL", "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("what", "margins"),
    [
        ("accuracy", (0.053, 0.049, 0.028, 0.025)),
        ("likeness", (0.0115, 0.0108, 0.0060, 0.0050)),
        ("F1 of 1", (0.055, 0.050, 0.0225, 0.0185)),
    ],
)
def test_the_goals_confidence_decides_the_word(what: str, margins: tuple[float, ...]) -> None:
    """The same samples and margin: what is sure enough for one goal is open for another."""
    found = [[words(confidence, margin=margin, what=what)[1] for confidence in GOALS] for margin in margins]
    assert found == [[P, P, OPEN], [P, OPEN, OPEN], [F, OPEN, OPEN], [F, F, OPEN]]
