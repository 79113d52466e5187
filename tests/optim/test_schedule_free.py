from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.optim.curve import compiled, follow, gradients, start
from tests.reference import optimizers as reference
from trimtab.errors import OptimizerError
from trimtab.graph.capture import capture
from trimtab.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD

RATES = [0.02 * min(1, (step + 1) / 10) for step in range(100)]
CASES = [
    (ScheduleFreeAdamW(betas=(0.9, 0.99), weight_decay=0.1), {"beta": 0.9, "decay": 0.1, "squares": 0.99, "eps": 1e-8}),
    (ScheduleFreeAdamW(betas=(0.8, 0.99), weight_decay=0), {"beta": 0.8, "decay": 0, "squares": 0.99, "eps": 1e-8}),
    (ScheduleFreeSGD(momentum=0.9, weight_decay=0.1), {"beta": 0.9, "decay": 0.1}),
    (ScheduleFreeSGD(momentum=0.8, weight_decay=0), {"beta": 0.8, "decay": 0}),
]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def agrees(settings, numbers, shape=(30, 40)):
    expected_x, expected_y = reference.schedule_free(start(*shape), gradients(), 100, rates=RATES, **numbers)
    y, optimizer = follow(settings, start(*shape), rates=RATES)
    torch.testing.assert_close(y, expected_y, **CLOSE)
    optimizer.eval()
    torch.testing.assert_close(y, expected_x, **CLOSE)


@pytest.mark.parametrize(("settings", "numbers"), CASES)
def test_it_agrees_with_the_paper_for_100_steps(settings, numbers):
    agrees(settings, numbers)


@pytest.mark.parametrize(("settings", "numbers"), CASES)
def test_the_formula_for_the_compiler_says_the_same(settings, numbers, monkeypatch):
    monkeypatch.setattr("trimtab.optim.flat.compiled", lambda formula: formula)
    agrees(compiled(settings), numbers)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # inside torch.compile
def test_compiled_it_agrees_for_all_sizes():
    for shape in ((30, 40), (7, 1), (300, 300)):
        agrees(compiled(CASES[0][0]), CASES[0][1], shape)


def net(*, norm: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1))


def walk(model, optimizer, steps, *, look=False):
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(step)
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
        if look:
            model.eval()(x)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("make", [ScheduleFreeAdamW, ScheduleFreeSGD])
def test_evaluating_in_between_changes_nothing_bit_for_bit(make):
    results = []
    for look in (False, True):
        model = net(norm=False)
        walk(model, make().build(model), range(20), look=look)
        model.eval()(torch.zeros(1, 4))
        results.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_forward_pass_switches_the_weights_by_the_models_mode():
    model = net(norm=False)
    optimizer = ScheduleFreeAdamW().build(model)
    walk(model, optimizer, range(5))
    y = weights(model)
    model.eval()(torch.zeros(1, 4))
    x = weights(model)
    assert optimizer.averaged
    assert not any(torch.equal(a, b) for a, b in zip(x, y, strict=True))
    model.train()(torch.zeros(1, 4))
    assert all(torch.equal(a, b) for a, b in zip(weights(model), y, strict=True))


def test_a_step_with_the_gradient_of_the_averaged_weights_is_refused():
    model = net(norm=False)
    optimizer = ScheduleFreeSGD().build(model)
    walk(model, optimizer, range(2))
    model.eval()(torch.ones(1, 4)).sum().backward()
    with pytest.raises(OptimizerError, match="not of the point that learns"):
        optimizer.step()


def test_batch_norm_without_calibration_is_refused_and_with_it_is_taken_anew():
    model, x = net(norm=True), torch.randn(50, 4)
    optimizer = ScheduleFreeAdamW(lr=0.05).build(model)
    walk(model, optimizer, range(5))
    with pytest.raises(OptimizerError, match=r"Sequential has BatchNorm.*optimizer.calibration = lambda"):
        model.eval()(x)
    assert not optimizer.averaged
    optimizer.calibration = lambda: [(x[:20],), (x[20:40],)]
    model.eval()(x)
    batches = [model[0](part).detach() for part in (x[:20], x[20:40])]
    torch.testing.assert_close(model[1].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert model[1].momentum == 0.1
    assert not model[1].training


def test_batch_norm_inside_a_captured_graph_is_refused_and_taken_anew_too():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    model = capture(net(norm=True), (x[:8],))
    optimizer = ScheduleFreeAdamW(lr=0.05).build(model)
    walk(model, optimizer, range(4))
    with pytest.raises(OptimizerError, match=r"has BatchNorm.*optimizer.calibration = lambda"):
        model.eval()(x)
    optimizer.calibration = lambda: [(x[:20],), (x[20:40],)]
    before = torch.get_rng_state()
    model.eval()(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert optimizer.averaged
    assert not model.training
    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    batches = [nn.functional.linear(part, weights["0.weight"], weights["0.bias"]) for part in (x[:20], x[20:40])]
    torch.testing.assert_close(buffers["1.running_mean"], torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(buffers["1.running_var"], torch.stack([b.var(0) for b in batches]).mean(0))


def test_a_copy_of_the_weights_that_train_is_refused_for_evaluation():
    model = net(norm=False)
    optimizer = ScheduleFreeAdamW().build(model)
    walk(model, optimizer, range(3))
    with pytest.raises(OptimizerError, match="a copy of a schedule-free run"):
        copy.deepcopy(model).eval()(torch.zeros(1, 4))
    optimizer.eval()
    other = copy.deepcopy(model).eval()
    assert torch.equal(other(torch.zeros(1, 4)), model.eval()(torch.zeros(1, 4)))


def test_after_the_finish_forward_passes_are_free():
    model = net(norm=False)
    optimizer = ScheduleFreeAdamW().build(model)
    walk(model, optimizer, range(3))
    optimizer.finish()
    x = weights(model)
    model.train()(torch.zeros(1, 4))
    assert all(torch.equal(a, b) for a, b in zip(weights(model), x, strict=True))
    copy.deepcopy(model).eval()(torch.zeros(1, 4))


def test_a_state_saved_while_evaluating_goes_on_bit_for_bit():
    model = net(norm=False)
    optimizer = ScheduleFreeAdamW().build(model)
    walk(model, optimizer, range(3), look=True)
    other = net(norm=False)
    again = ScheduleFreeAdamW().build(other)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    assert again.averaged
    walk(model, optimizer, range(3, 6))
    walk(other, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ScheduleFreeAdamW(betas=(0.0, 0.9)), r"betas\[0\]=0 takes gradients at z"),
        (lambda: ScheduleFreeSGD(momentum=0.0), "momentum=0 takes gradients at z"),
    ],
)
def test_without_an_average_it_is_refused(make, says):
    with pytest.raises(OptimizerError, match=says):
        make()
