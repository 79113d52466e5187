"""Optimizers by their papers' formulas: slow, whole float64 tensors, nothing in place, every sequence kept by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]


def lion(x: Tensor, gradient: Gradient, steps: int, *, lr: float, beta1: float, beta2: float, decay: float) -> Tensor:
    """Algorithm 2 of Chen 2023."""
    m = torch.zeros_like(x)
    for _ in range(steps):
        g = gradient(x)
        c = beta1 * m + (1 - beta1) * g
        x = x - lr * (torch.sign(c) + decay * x)
        m = beta2 * m + (1 - beta2) * g
    return x


def schedule_free(
    x: Tensor,
    gradient: Gradient,
    steps: int,
    *,
    rates: list[float],
    beta: float,
    decay: float,
    squares: float | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Equations 3 to 5 and algorithm 1 of Defazio 2024; with `squares`, the beta2 of AdamW. Returns x and y."""
    z, v, total, highest = x, torch.zeros_like(x), 0.0, 0.0
    y = (1 - beta) * z + beta * x
    for step in range(1, steps + 1):
        lr = rates[step - 1]
        g = gradient(y)
        if squares is not None:
            v = squares * v + (1 - squares) * g**2
            g = g / (torch.sqrt(v / (1 - squares**step)) + eps)
        z = z - lr * (g + decay * y)
        highest = max(highest, lr)
        total += highest**2
        c = highest**2 / total
        x = (1 - c) * x + c * z
        y = (1 - beta) * z + beta * x
    return x, y
