"""A curved function to follow, for optimizers and their references alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from tests.optim.problems import Point
from trimtab.optim.base import Optimizer

STEPS = 100


def start(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients() -> Callable[[Tensor], Tensor]:
    """Of sum k x^2 / 2, k from 0.1 to 2, and noise: the same each time it is begun.

    Without noise squares of gradients go to zero, and a method that divides by them makes much of a rounding error.
    """
    generator = torch.Generator().manual_seed(7)

    def gradient(x: Tensor) -> Tensor:
        k = torch.linspace(0.1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)
        return k * x + torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return gradient


def follow(
    settings: Optimizer,
    x: Tensor,
    *,
    rates: list[float] | None = None,
    steps: int = STEPS,
    gradient: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, torch.optim.Optimizer]:
    """Where the optimizer takes x, and the optimizer."""
    model = Point(x=x)
    optimizer, gradient = settings.build(model), gradient or gradients()
    for step in range(steps):
        if rates:
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
        model.x.grad = gradient(model.x.detach())
        optimizer.step()
    return model.x.detach(), optimizer


def compiled(settings: Optimizer) -> Optimizer:
    return dataclasses.replace(settings, compiled=True)  # type: ignore[type-var]
