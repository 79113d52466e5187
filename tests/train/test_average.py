from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.errors import TaskError
from trimtab.train.integers import integer_weights_
from trimtab.train.loop import fit, score, training

TASK = dataclasses.replace(toy_task(), augment=None)


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))


def all_weights() -> list[torch.Tensor]:
    """The weights after each step of the plain run."""
    model = plain_net()
    with training(model, TASK) as steps:
        return [model[1].weight.detach().double().clone() for _ in steps]


@pytest.mark.parametrize("tail", [0.25, 0.5, 1.0])
def test_tail_is_the_mean_of_the_last_weights(tail):
    weights = all_weights()
    averaged = fit(plain_net(), TASK, dataclasses.replace(FIT, tail=tail))
    mean = torch.stack(weights[-round(tail * 24) :]).mean(0)
    torch.testing.assert_close(averaged[1].weight.double(), mean, rtol=1e-5, atol=1e-6)


def test_ema_forgets_at_its_decay_and_begins_as_a_plain_mean():
    weights = all_weights()
    averaged = fit(plain_net(), TASK, dataclasses.replace(FIT, ema=0.8))
    mean = torch.zeros_like(weights[0])
    for t, weight in enumerate(weights):
        rate = max(0.2, 1 / (t + 1))
        mean = (1 - rate) * mean + rate * weight
    torch.testing.assert_close(averaged[1].weight.double(), mean, rtol=1e-5, atol=1e-6)


def test_batchnorm_statistics_are_those_of_the_averaged_weights():
    task, settings = toy_task(), dataclasses.replace(FIT, tail=1.0)
    averaged = fit(toy_net(), task, settings)
    assert score(averaged, task.select, task.metric).mean() > 0.9
    x = torch.cat([task.train.inputs[0]] * 8)
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))  # as toy.noisy does
    seen = averaged[0](x)
    torch.testing.assert_close(averaged[1].running_mean, seen.mean((0, 2, 3)), rtol=0.1, atol=0.05)
    torch.testing.assert_close(averaged[1].running_var, seen.var((0, 2, 3)), rtol=0.1, atol=0.05)


def test_a_run_stopped_early_ends_with_the_average_so_far_if_it_has_begun():
    for tail, same in ((0.25, True), (1.0, False)):
        plain, model = toy_net(), toy_net()
        for net, settings in ((plain, FIT), (model, dataclasses.replace(FIT, tail=tail))):
            with training(net, TASK, settings) as steps:
                for _ in range(5):
                    next(steps)
        assert same_weights(plain, model) == same


@pytest.mark.parametrize("average", [{"ema": 0.9}, {"tail": 0.8}])
def test_an_average_survives_a_checkpoint(tmp_path, average):
    path, settings = tmp_path / "fit.safetensors", dataclasses.replace(FIT, **average)
    model = toy_net()
    with training(copy.deepcopy(model), toy_task(), settings, checkpoint=path) as steps:
        for _ in range(13):
            next(steps)
    assert same_weights(fit(model, toy_task(), settings, checkpoint=path), fit(model, toy_task(), settings))


def test_integer_weights_have_no_average():
    with pytest.raises(TaskError, match=r"the model's are integers: .* call float_weights_\(model\) first"):
        fit(integer_weights_(plain_net()), TASK, dataclasses.replace(FIT, ema=0.9))
