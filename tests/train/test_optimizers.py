"""The loop with optimizers other than its default: by name and by value, interrupted, evaluated in between."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.core import Fit
from trimtab.errors import OptimizerError, TaskError
from trimtab.optim.adamw8bit import AdamW8bit
from trimtab.optim.adaptive import AdamW
from trimtab.optim.cautious import Cautious
from trimtab.optim.soap import SOAP
from trimtab.train.integers import integer_weights_
from trimtab.train.loop import fit, num_steps, optimizer_of, score, training


def settings_for(optimizer, **given) -> Fit:
    return dataclasses.replace(FIT, **{"lr": None, "optimizer": optimizer, **given})


RESUMED = {
    "schedule_free_adamw": settings_for("schedule_free_adamw", lr=1e-2),
    "soap": settings_for(SOAP(every=2)),
    "prodigy": settings_for("prodigy"),
    "muon": settings_for("muon"),
    "adamw8bit": settings_for(AdamW8bit(lr=1e-2)),
    "cautious": settings_for(Cautious(AdamW(lr=1e-2)), schedule="wsd"),
    "lbfgs": settings_for("lbfgs"),
    "conjugate_gradient": settings_for("conjugate_gradient"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_stopped_in_the_middle_ends_bit_identical(name, tmp_path):
    settings, path = RESUMED[name], tmp_path / "fit.safetensors"
    net, task = toy_net(width=16), toy_task(settings=settings)  # 5,120 weights in the last layer: enough for 8 bits
    with training(copy.deepcopy(net), task, checkpoint=path) as steps:
        for _ in range(3 if optimizer_of(settings).full_batch else 8):
            next(steps)
    assert path.exists()
    resumed, whole = fit(net, task, checkpoint=path), fit(net, task)
    assert same_weights(resumed, whole)
    assert score(whole, task.select, task.metric).mean() > 0.8


@pytest.mark.parametrize("optimizer", ["lion", "adamw8bit", "muon", "soap"])
def test_integer_weights_learn_too(optimizer):
    settings = settings_for(optimizer, lr=2e-3 if optimizer == "lion" else 1e-2)
    task = toy_task(settings=settings)
    trained = fit(integer_weights_(toy_net(width=16)), task)
    assert score(trained, task.select, task.metric).mean() > 0.8


def test_evaluating_in_between_changes_nothing_and_sees_the_averaged_weights():
    settings = RESUMED["schedule_free_adamw"]
    task, ends = toy_task(settings=settings), []
    for look in (False, True):
        model, seen = toy_net(), []
        with training(model, task) as steps:
            for step in steps:
                if look and step.index % 5 == 2:
                    before = [p.clone() for p in model.parameters()]
                    seen.append(score(model, task.select, task.metric).mean())
                    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        ends.append(model)
    assert same_weights(*ends)
    assert seen[-1] > 0.8


def test_all_data_at_once_takes_a_step_an_epoch_and_leaves_out_no_sample():
    settings, task = settings_for("gradient_descent", epochs=2), toy_task()
    assert num_steps(task, settings) == 2
    sizes = []

    def watching(model, inputs, targets):
        sizes.append(len(targets))
        return task.loss(model(*inputs), targets)

    fit(toy_net(), task, settings, objective=watching)
    assert sum(sizes[:7]) == 100
    assert max(sizes) <= 16


def test_the_loss_of_all_data_in_batches_is_that_of_one_batch():
    task = dataclasses.replace(toy_task(), augment=None)
    nets = []
    for batch_size in (16, 100):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)).double()
        net.load_state_dict({"1.weight": torch.zeros(5, 64), "1.bias": torch.zeros(5)})
        settings = settings_for("gradient_descent", epochs=1, batch_size=batch_size)
        nets.append(fit(net, task, settings, objective=lambda m, x, y: task.loss(m(x[0].double()), y)))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_names_and_settings_that_are_not_there_are_refused():
    for settings, error, says in (
        (settings_for("adamv"), OptimizerError, "There is no optimizer 'adamv'"),
        (settings_for("lbfgs", weight_decay=0.1), OptimizerError, "LBFGS has no weight_decay, and 0.1 was given"),
        (settings_for("adamw", schedule="cosin"), TaskError, "There is no schedule 'cosin'"),
        (settings_for("lbfgs", clip=1.0), TaskError, "LBFGS searches along a line on all data; clip"),
        (settings_for("schedule_free_sgd", ema=0.9), TaskError, "ScheduleFreeSGD averages the weights by itself"),
    ):
        with pytest.raises(error, match=says):
            fit(toy_net(), toy_task(), settings)


def test_rates_come_from_the_fit_where_it_has_them():
    assert optimizer_of(Fit()) == AdamW()
    assert optimizer_of(Fit(lr=0.1, weight_decay=0.3)) == AdamW(lr=0.1, weight_decay=0.3)
    assert optimizer_of(Fit(optimizer=Cautious(), lr=0.1)) == Cautious(AdamW(lr=0.1))
