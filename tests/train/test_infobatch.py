from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.core import Fit, Task
from trimtab.errors import TaskError
from trimtab.train.infobatch import InfoBatch, each_loss
from trimtab.train.keep import Keep
from trimtab.train.loop import fit, num_steps, score, training

PRUNED = dataclasses.replace(FIT, epochs=8, prune_samples=0.5)


def test_the_gradient_of_an_epoch_is_in_expectation_that_of_all_samples():
    """The mean over 3000 draws, sample by sample and as a gradient, to five standard errors."""
    task, model = toy_task(), nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    x, y = task.train.inputs[0], task.train.targets
    losses = F.cross_entropy(model(x), y, reduction="none")
    num, ratio, draws = len(y), 0.6, 3000
    pruning, generator = InfoBatch(task, ratio, epochs=8), torch.Generator().manual_seed(0)
    pruning.losses = losses.detach().clone()
    total, few = torch.zeros(num), 0
    for _ in range(draws):
        kept = pruning.draw_(0, torch.arange(num), generator)
        total[kept] += pruning.weights[kept]
        few += len(kept)
    low = int((losses < losses.mean()).sum())
    assert abs(few / draws - (num - ratio * low)) < 5 * (ratio * (1 - ratio) * low / draws) ** 0.5
    error = (ratio / (1 - ratio) / draws) ** 0.5
    assert float((total / draws - 1).abs().max()) < 5 * error
    grads = [
        torch.autograd.grad(weight @ losses, model[1].weight, retain_graph=True)[0]
        for weight in (total, torch.ones(num))
    ]
    each = torch.stack([torch.autograd.grad(one, model[1].weight, retain_graph=True)[0] for one in losses])
    assert bool(((grads[0] / draws - grads[1]).abs() <= 5 * error * each.square().sum(0).sqrt() + 1e-5).all())


def test_the_weighted_step_is_the_gradient_by_hand_whatever_the_parts():
    task, model = toy_task(), nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    pruning = InfoBatch(task, 0.5, epochs=8)
    rows = torch.tensor([3, 1, 4, 1, 5, 9])
    pruning.weights = torch.rand(len(task.train.targets)) + 1
    batch = task.train.batch(rows)
    losses = [task.loss(model(x[None]), y[None]) for x, y in zip(batch.inputs[0], batch.targets, strict=True)]
    by_hand = (torch.stack(losses) * pruning.weights[rows]).mean()
    pruning.take_(rows)
    whole = pruning(model, batch.inputs, batch.targets)
    torch.testing.assert_close(whole, by_hand)
    pruning.take_(rows)
    parts = [pruning(model, (batch.inputs[0][at],), batch.targets[at]) for at in (slice(0, 4), slice(4, 6))]
    torch.testing.assert_close(parts[0] * 4 / 6 + parts[1] * 2 / 6, by_hand)
    assert int(pruning.losses.isfinite().sum()) == 5


def test_fewer_steps_are_taken_until_the_last_epochs_and_it_learns():
    task, model = toy_task(), toy_net()
    with training(model, task, PRUNED) as steps:
        taken = list(steps)
    num = [sum(step.epoch == epoch for step in taken) for epoch in range(8)]
    assert num[0] == num[7] == 6 > max(num[2:7])
    assert [step.ends_epoch for step in taken].count(True) == 8
    assert taken[-1].total == len(taken) < taken[0].total == num_steps(task, PRUNED) == 48
    assert taken[-1].lr == pytest.approx(fitted_lr(task), rel=1e-6)
    assert score(model.eval(), task.select, task.metric).mean() > 0.9


def fitted_lr(task: Task) -> float:
    with training(toy_net(), task, dataclasses.replace(PRUNED, prune_samples=None)) as steps:
        return list(steps)[-1].lr


@pytest.mark.parametrize("stop", [7, 11, 13])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path, stop: int):
    task, settings = toy_task(), dataclasses.replace(PRUNED, accumulate=2)
    whole, keep = fit(toy_net(), task, settings), Keep(tmp_path / "state", every=1)
    with training(toy_net(), task, settings, checkpoint=keep) as steps:
        for step in steps:
            if step.index + 1 == stop:
                break
    with training(resumed := toy_net(), task, settings, checkpoint=keep) as steps:
        assert next(steps).index == stop
        list(steps)
    assert same_weights(whole, resumed)


def test_losses_of_samples_agree_with_one_by_one():
    outputs, targets = torch.randn(6, 4, 3), torch.randint(4, (6, 3))
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), partial(F.cross_entropy, label_smoothing=0.1)):
        one_by_one = torch.stack([loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(each_loss(loss)(outputs, targets), one_by_one)


def test_what_has_no_loss_per_sample_is_refused():
    task, model = toy_task(), toy_net()
    with pytest.raises(TaskError, match="the mean over samples; of the first batch it is"):
        fit(model, dataclasses.replace(task, loss=partial(F.cross_entropy, weight=torch.arange(5.0))), PRUNED)
    with pytest.raises(TaskError, match="a mean over the terms that `weigh` counts"):
        fit(model, dataclasses.replace(task, weigh=lambda targets: 2 * len(targets)), PRUNED)
    with pytest.raises(TaskError, match="here another objective is trained for"):
        fit(model, task, PRUNED, objective=lambda m, x, y: F.cross_entropy(m(*x), y))
    with pytest.raises(TaskError, match="takes all data at once"):
        fit(model, task, dataclasses.replace(PRUNED, optimizer="lbfgs", lr=None))
    with pytest.raises(TaskError, match="take ema"):
        Fit(prune_samples=0.5, tail=0.25)
    with pytest.raises(TaskError, match="prune_samples=1"):
        Fit(prune_samples=1)
