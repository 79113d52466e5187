from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.optim.problems import Point, logistic
from trimtab.errors import OptimizerError
from trimtab.optim.conjugate_gradient import ConjugateGradient
from trimtab.optim.gradient_descent import GradientDescent
from trimtab.optim.lbfgs import LBFGS
from trimtab.optim.nesterov import Nesterov

ALL = [GradientDescent(), GradientDescent(search="wolfe"), Nesterov(), ConjugateGradient()]


def evaluations(settings, *, until=1e-6, most=400):
    """Gradients of the logistic regression until the loss is that near to the lowest."""
    problem, count = logistic(), 0
    optimizer = settings.build(problem.model)
    best = float("inf")

    def closure():
        nonlocal count, best
        optimizer.zero_grad()
        loss = problem.loss(problem.model)
        loss.backward()
        if best > until:
            count += 1
            best = min(best, loss.item() - problem.lowest)
        return loss

    while best > until and count < most:
        optimizer.step(closure)
    return count


@pytest.mark.parametrize(
    ("settings", "most"),
    [(LBFGS(), 40), (ConjugateGradient(), 80), (Nesterov(), 260), (GradientDescent(), 1000)],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else None,
)
def test_so_many_gradients_of_the_logistic_regression_are_enough(settings, most):
    assert evaluations(settings, most=2 * most) <= most


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_no_step_makes_it_worse_and_a_step_ends_where_it_says(settings):
    problem = logistic()
    optimizer = settings.build(problem.model)

    def closure():
        optimizer.zero_grad()
        loss = problem.loss(problem.model)
        loss.backward()
        return loss

    values = [optimizer.step(closure).item() for _ in range(4)]
    assert values == sorted(values, reverse=True)
    assert problem.loss(problem.model).item() < values[-1]


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_without_a_closure_it_is_refused(settings):
    with pytest.raises(OptimizerError, match=r"searches along a line.*optimizer.step\(closure\)"):
        settings.build(nn.Linear(2, 1)).step()


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_at_the_lowest_point_or_at_nan_it_stays(settings):
    for start, scale in ((0.0, 1.0), (1.0, float("nan"))):
        model = Point(x=torch.tensor([start]))
        optimizer = settings.build(model)

        def closure(model=model, optimizer=optimizer, scale=scale):
            optimizer.zero_grad()
            loss = scale * model.x.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert model.x.item() == start


def test_an_unknown_line_search_is_refused():
    with pytest.raises(OptimizerError, match="no line search 'exact'; give 'armijo' or 'wolfe'"):
        GradientDescent(search="exact")
