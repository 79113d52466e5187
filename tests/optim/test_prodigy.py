from __future__ import annotations

import pytest
import torch

from tests.optim.curve import follow, gradients, start
from tests.optim.problems import Point
from tests.reference import optimizers as reference
from trimtab.errors import OptimizerError
from trimtab.optim.flat import PIECE
from trimtab.optim.prodigy import Prodigy

RATES = [min(1.0, (step + 1) / 10) for step in range(100)]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "formula"])
def test_it_agrees_with_the_paper_for_100_steps(compiled, monkeypatch):
    monkeypatch.setattr("trimtab.optim.flat.compiled", lambda formula: formula)
    x = start(30, 40) + 3
    expected, found = reference.prodigy(x, gradients(), RATES, decay=0.1, d=1e-6)
    reached, optimizer = follow(Prodigy(betas=(0.9, 0.99), weight_decay=0.1, compiled=compiled), x, rates=RATES)
    torch.testing.assert_close(reached, expected, rtol=1e-6, atol=1e-8)
    assert optimizer.d == pytest.approx(found[-1], rel=1e-6)
    assert found[-1] > 1e4 * found[0]


def test_an_estimate_that_never_grows_is_told():
    model = Point(x=torch.ones(3))
    optimizer = Prodigy(patience=5).build(model)
    for step in range(4):
        model.x.grad = torch.full((3,), (-1.0) ** step)  # turns each time, so it leads nowhere
        optimizer.step()
    with pytest.raises(OptimizerError, match=r"still its first, d0=1e-06, after 5 steps.*d0=0.001"):
        optimizer.step()


def test_a_gradient_that_is_not_finite_is_told_and_moves_nothing():
    model = Point(x=torch.ones(3))
    optimizer = Prodigy().build(model)
    model.x.grad = torch.tensor([1.0, float("inf"), 0.0])
    with pytest.raises(OptimizerError, match=r"estimate of the distance became .* at its step 1: a gradient is not"):
        optimizer.step()
    assert model.x.tolist() == [1, 1, 1]


def test_a_gradient_that_is_not_finite_moves_nothing_of_the_other_weights_either():
    model = Point(x=torch.ones(3), y=torch.ones(2, 2))
    optimizer = Prodigy().build(model)
    model.x.grad, model.y.grad = torch.tensor([1.0, float("nan"), 0.0]), torch.ones(2, 2)
    with pytest.raises(OptimizerError, match="a gradient is not finite"):
        optimizer.step()
    assert (model.y == 1).all()


def test_a_sum_of_gradients_that_overflows_is_no_failure():
    model = Point(x=torch.ones(3))
    optimizer = Prodigy(d0=1e-25).build(model)
    model.x.grad = torch.full((3,), 2e38)
    optimizer.step()
    assert model.x.isfinite().all()


def test_gradients_of_zero_are_no_failure():
    model = Point(x=torch.ones(3))
    optimizer = Prodigy().build(model)
    model.x.grad = torch.zeros(3)
    optimizer.step()
    assert model.x.tolist() == [1, 1, 1]
    assert optimizer.d == 1e-6


def test_weights_of_several_pieces_and_of_any_layout_take_the_same_steps():
    x, g = start(PIECE // 4 + 5, 10).float(), start(PIECE // 4 + 5, 10, seed=1).float()
    found, points = [], []
    for lay in (lambda w: w, lambda w: w.T.contiguous().T, lambda w: w.repeat_interleave(2, 1)[:, ::2]):
        model = Point(x=lay(x.clone()))
        optimizer = Prodigy().build(model)
        for _ in range(2):
            model.x.grad = g - model.x.detach()
            optimizer.step()
        found.append(optimizer.d)
        points.append(model.x.detach())
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)
    torch.testing.assert_close(points[1], points[0])
    torch.testing.assert_close(points[2], points[0])
