from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.nets import net
from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.core import Fit
from trimtab.errors import OptimizerError, TaskError
from trimtab.graph.fisher import fisher_of
from trimtab.tasks.metrics import ACCURACY
from trimtab.train.loop import fit, num_steps, predict, score, training
from trimtab.train.schedule import warmup_cosine


def test_fit_learns_a_copy_and_leaves_the_model_as_it_was():
    model, task = toy_net(), toy_task()
    before = copy.deepcopy(model.state_dict())
    model[0].eval()
    trained = fit(model, task)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (model.training, model[0].training, trained.training) == (True, False, False)
    assert all(parameter.is_contiguous() for parameter in trained.parameters())
    assert score(trained, task.select, task.metric).mean() > 0.9 > 2 * score(model, task.select, task.metric).mean()


def test_equal_runs_end_equal_whatever_the_global_generator_and_another_seed_does_not():
    task = toy_task()
    torch.manual_seed(1)
    first = fit(toy_net(), task)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = fit(toy_net(), task)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(first, second)
    assert not same_weights(first, fit(toy_net(), task, dataclasses.replace(FIT, seed=4)))


def test_the_loop_agrees_with_a_slow_plain_one():
    """AdamW by its formula (Loshchilov and Hutter 2019), on a net without randomness, one batch an epoch."""
    task = dataclasses.replace(toy_task(), augment=None)
    settings = Fit(epochs=5, lr=1e-2, batch_size=100, precision="fp32", weight_decay=0.3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double()
    task = dataclasses.replace(task, train=dataclasses.replace(task.train, inputs=(task.train.inputs[0].double(),)))
    objective = lambda m, inputs, targets: F.cross_entropy(m(*inputs), targets)  # noqa: E731
    fast, slow = fit(model, task, settings, objective=objective), copy.deepcopy(model)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in slow.named_parameters()}
    for step in range(5):
        slow.zero_grad()
        F.cross_entropy(slow(*task.train.inputs), task.train.targets).backward()
        lr = 1e-2 * warmup_cosine(step, 5, warmup=settings.warmup)
        for name, p in slow.named_parameters():
            m, v = moments[name]
            m.mul_(0.9).add_(0.1 * p.grad)
            v.mul_(0.999).add_(0.001 * p.grad**2)
            decay = 0.3 if p.ndim > 1 else 0.0
            update = (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            p.data = p.data * (1 - lr * decay) - lr * update
    for a, b in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_steps_tell_where_they_are():
    model, task = toy_net(), toy_task()
    with training(model, task) as steps:
        taken = list(steps)
    assert [step.index for step in taken] == list(range(24))
    assert [step.epoch for step in taken] == [index // 6 for index in range(24)]
    assert {step.total for step in taken} == {24} == {num_steps(task, FIT)}
    assert [step.lr for step in taken] == [FIT.lr * warmup_cosine(index, 24, warmup=FIT.warmup) for index in range(24)]
    assert all(step.loss.ndim == 0 and not step.loss.requires_grad for step in taken)
    assert taken[-1].seconds_left == 0 < taken[0].seconds_left
    assert all(step.samples_per_second > 0 for step in taken)
    with pytest.raises(dataclasses.FrozenInstanceError):
        taken[0].lr = 1.0  # type: ignore[misc]


def test_training_works_in_place_step_by_step_and_gives_the_modes_back():
    model = toy_net()
    model[1].eval()
    before = copy.deepcopy(model)
    with training(model, toy_task()) as steps:
        next(steps)
        assert model[1].training
    assert not model[1].training
    assert model.training
    assert not same_weights(before, model)


def test_an_epoch_shows_each_sample_at_most_once_and_another_order_each_time():
    task = dataclasses.replace(toy_task(), augment=None)
    seen: list[list[float]] = []

    def watching(model, inputs, targets):
        seen.append(inputs[0][:, 0, 0, 0].tolist())
        return task.loss(model(*inputs), targets)

    fit(toy_net(), task, dataclasses.replace(FIT, epochs=2), objective=watching)
    first, second = ([x for batch in seen[at : at + 6] for x in batch] for at in (0, 6))
    assert len(set(first)) == len(first) == 96 == len(set(second))
    assert first != second


def test_a_batch_larger_than_the_data_is_all_of_it():
    task = toy_task()
    assert num_steps(task, Fit(epochs=3, batch_size=1000)) == 3
    assert fit(toy_net(), task, Fit(epochs=1, batch_size=1000, precision="fp32")) is not None


def test_no_weight_decay_on_biases_and_norms():
    model, task = toy_net(), toy_task()
    constant = lambda m, inputs, targets: 0 * m(*inputs).sum()  # noqa: E731
    trained = fit(model, task, dataclasses.replace(FIT, weight_decay=0.5), objective=constant)
    before, after = dict(model.named_parameters()), dict(trained.named_parameters())
    assert after["0.weight"].norm() < before["0.weight"].norm()
    assert all(torch.equal(after[name], before[name]) for name in ("1.weight", "1.bias", "5.bias"))


def test_frozen_parameters_stay():
    model = toy_net()
    model[0].weight.requires_grad_(False)
    trained = fit(model, toy_task())
    assert torch.equal(trained[0].weight, model[0].weight)
    assert not torch.equal(trained[5].weight, model[5].weight)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(OptimizerError, match="Sequential has no parameter to train"):
        fit(toy_net().requires_grad_(False), toy_task())


@pytest.mark.parametrize("at", [0, 5, 23])
def test_a_loss_of_nan_stops_the_run_naming_step_and_lr(at):
    task, count = toy_task(), iter(range(1000))

    def failing(model, inputs, targets):
        loss = task.loss(model(*inputs), targets)
        return loss * math.nan if next(count) == at else loss

    lr = FIT.lr * warmup_cosine(at, 24, warmup=FIT.warmup)
    with pytest.raises(TaskError, match=rf"became nan at step {at} of 24 .* learning rate of {lr:.3g}"):
        fit(toy_net(), task, objective=failing)


def test_report_is_called_seldom_and_at_the_end():
    told: list[tuple[int, int, str]] = []
    fit(toy_net(), toy_task(), dataclasses.replace(FIT, epochs=20), report=lambda *args: told.append(args))
    assert told[-1][:2] == (120, 120)
    assert len(told) < 120
    assert told[-1][2].startswith("epoch 20/20, loss 0.")
    assert told[-1][2].endswith(" samples/s")


def test_bf16_learns_too():
    task = toy_task()
    trained = fit(toy_net(), task, dataclasses.replace(FIT, precision="bf16"))
    assert score(trained, task.select, task.metric).mean() > 0.9
    assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())


def test_auto_precision_learns_too():
    task = toy_task()
    trained = fit(toy_net(), task, dataclasses.replace(FIT, precision="auto"))
    assert score(trained, task.select, task.metric).mean() > 0.9


def test_predict_agrees_with_one_call_in_eval_mode_and_its_output_can_be_learned_from():
    model, _ = net("conv")
    x = torch.randn(17, 1, 12, 12)
    expected = model(x).detach()
    model.train()
    outputs = predict(model, x, batch_size=5)
    assert model.training
    torch.testing.assert_close(outputs, expected)
    assert not outputs.requires_grad
    weight = torch.ones_like(outputs, requires_grad=True)
    (weight * outputs).sum().backward()
    torch.testing.assert_close(weight.grad, outputs)


def test_predict_takes_several_inputs():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

    a, b = torch.randn(2, 7, 3)
    torch.testing.assert_close(predict(Sum(), (a, b), batch_size=2), a + b)


def test_score_is_the_metric_of_each_sample():
    model, task = toy_net(), toy_task()
    scores = score(model, task.select, ACCURACY)
    assert (scores.dtype, scores.shape) == (np.float64, (50,))
    expected = model.eval()(task.select.inputs[0]).argmax(1) == task.select.targets
    assert scores.tolist() == expected.double().tolist()


def test_a_captured_graph_trains_as_its_module_does():
    capture = pytest.importorskip("trimtab.graph.capture").capture
    model, task = toy_net(), toy_task()
    del model[4]  # graph and module would draw dropout masks in the same way, but need not
    graph = fit(capture(model, (task.train.inputs[0][:4],)), task)
    assert not graph.training
    plain = fit(model, task)
    # The losses' gradients differ in rounding only; 24 steps keep that small.
    torch.testing.assert_close(
        predict(graph, task.select.inputs), predict(plain, task.select.inputs), rtol=1e-3, atol=1e-3
    )


def test_the_loop_costs_little_beside_the_work():
    """A step asks nothing of the loss: no more than one read a step, of the step before."""
    reads = []

    class Counting(torch.Tensor):
        def __float__(self) -> float:
            reads.append(1)
            return super().__float__()

    task = toy_task()
    objective = lambda m, inputs, targets: task.loss(m(*inputs), targets).as_subclass(Counting)  # noqa: E731
    with training(toy_net(), task, objective=objective) as steps:
        next(steps)
        assert not reads
        next(steps)
        assert len(reads) == 1


def test_the_squares_that_the_optimizer_kept_are_left_with_the_averaged_weights_and_survive_a_resume(tmp_path):
    settings, path = dataclasses.replace(FIT, ema=0.8), tmp_path / "fit.safetensors"
    whole = fisher_of(trained := fit(toy_net(), toy_task(), settings))
    assert whole.why_not(trained) is None
    assert whole.by == "the training's AdamW"
    with training(toy_net(), toy_task(), settings, checkpoint=path) as steps:
        for _ in range(13):
            next(steps)
    resumed = fisher_of(fit(toy_net(), toy_task(), settings, checkpoint=path))
    assert whole.weights == resumed.weights
    assert all(torch.equal(square, resumed.squares[name]) for name, square in whole.squares.items())


def test_the_squares_stand_for_one_sample_whatever_the_batch_size():
    def mean(batch_size: int) -> float:
        settings = dataclasses.replace(FIT, batch_size=batch_size, lr=1e-9, epochs=8)
        model = fit(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), dataclasses.replace(toy_task(), augment=None), settings
        )
        return float(fisher_of(model).squares["1.weight"].float().mean())

    torch.manual_seed(0)
    assert 0.3 < mean(2) / mean(1) < 3


@pytest.mark.parametrize("optimizer", ["schedule_free_adamw", "cautious_adamw", "adamw8bit", "muon"])
def test_the_squares_are_of_the_weights_that_the_run_ends_with_whatever_was_switched_in_between(optimizer):
    model = fit(toy_net(width=16), toy_task(), dataclasses.replace(FIT, optimizer=optimizer))
    found = fisher_of(model)
    assert found.why_not(model) is None
    assert ("0.weight" in found.squares) == (optimizer != "muon")


@pytest.mark.parametrize("other", [{"objective": lambda model, x, y: model(*x).square().mean()}, {"optimizer": "lion"}])
def test_squares_of_another_objective_or_none_at_all_are_not_left_nor_those_from_before(other):
    model = fit(toy_net(), toy_task())
    objective = other.pop("objective", None)
    again = fit(model, toy_task(), dataclasses.replace(FIT, epochs=1, **other), objective=objective)
    assert fisher_of(model) is not None
    assert fisher_of(again) is None
