"""Small problems with known answers: a model, its loss, and the lowest value that the loss can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.optim.base import Optimizer
from trimtab.optim.schedule_free import ScheduleFree
from trimtab.train.schedule import warmup_cosine


@dataclass(frozen=True)
class Problem:
    """A model, (model) -> loss, and the smallest loss there is."""

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    lowest: float = 0.0


class Point(nn.Module):
    """A model that is nothing but its parameters."""

    def __init__(self, **start: Tensor) -> None:
        super().__init__()
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def forward(self) -> None:
        raise AssertionError("a point has no forward pass")


def quadratic() -> Problem:
    """1/2 sum_i k_i x_i^2, k from 0.01 to 1 (condition 100), in a turned basis; from 1.6 down to 0."""
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))
    curvature = (turn * torch.logspace(-2, 0, 10, dtype=torch.float64)) @ turn.T
    model = Point(x=torch.ones(10, 1, dtype=torch.float64))
    return Problem(model, lambda m: 0.5 * (m.x * (curvature @ m.x)).sum())


def rosenbrock() -> Problem:
    """(1 - x)^2 + 100 (y - x^2)^2 from (-1.2, 1): a curved valley; from 24.2 down to 0."""
    model = Point(xy=torch.tensor([-1.2, 1.0], dtype=torch.float64))
    return Problem(model, lambda m: (1 - m.xy[0]) ** 2 + 100 * (m.xy[1] - m.xy[0] ** 2) ** 2)


def factorization() -> Problem:
    """Mean of (A B - M)^2 for an M [20, 15] of rank 4: not convex, no bad minimum; from about 3.9 down to 0."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    matrix = draw(20, 4) @ draw(4, 15)
    model = Point(a=0.3 * draw(20, 4), b=0.3 * draw(4, 15))
    return Problem(model, lambda m: (m.a @ m.b - matrix).square().mean())


@cache
def _cancer() -> tuple[Tensor, Tensor]:
    data = load_breast_cancer()
    x, y = torch.tensor(data.data), torch.tensor(data.target).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    return torch.cat([x, torch.ones(len(x), 1)], 1), y


def logistic() -> Problem:
    """Logistic regression of breast cancer, 569 cases, 30 standardized features and a constant, ridge 1 / (2 n)."""
    x, y = _cancer()
    model = Point(w=torch.zeros(31, 1, dtype=torch.float64))

    def loss(m: nn.Module) -> Tensor:
        return F.binary_cross_entropy_with_logits((x @ m.w)[:, 0], y) + m.w.square().sum() / (2 * len(x))

    return Problem(model, loss, 0.0663940698)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data).float()[:600] / 16, torch.tensor(data.target)[:600]


def digits() -> Problem:
    """Cross-entropy of 600 digits under a net of two hidden layers with a norm, all at once; from 2.3 down to 0."""
    x, y = _digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        model.append(nn.Linear(32, 10))
    return Problem(model, lambda m: F.cross_entropy(m(x), y))


PROBLEMS = {
    "quadratic": quadratic,
    "rosenbrock": rosenbrock,
    "factorization": factorization,
    "logistic": logistic,
    "digits": digits,
}


def rise(step: int, steps: int) -> float:
    """A warm-up over the first 2 % of the steps, then 1."""
    return min(1.0, (step + 1) / max(1, round(0.02 * steps)))


def solve(problem: Problem, settings: Optimizer, steps: int) -> float:
    """How far above the lowest the loss is after so many steps, with the schedule that the optimizer names."""
    optimizer = settings.build(problem.model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss(problem.model)
        loss.backward()
        return loss

    for step in range(steps):
        factor = (
            1.0
            if settings.full_batch
            else rise(step, steps)
            if settings.schedule == "constant"
            else warmup_cosine(step, steps, warmup=0.02)
        )
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * factor
        optimizer.step(closure)
    if isinstance(optimizer, ScheduleFree):
        optimizer.finish()
    return problem.loss(problem.model).item() - problem.lowest
