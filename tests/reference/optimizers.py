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


def muon(x: Tensor, gradient: Gradient, steps: int) -> Tensor:
    """Jordan 2024 with the step of Liu 2025, equation 4; lr 0.01, momentum 0.9, decay 0.1; by singular values.

    A polynomial of X X^T times X acts on each singular value alone, so no product of matrices is iterated here.
    """
    momentum = torch.zeros_like(x)
    for _ in range(steps):
        g = gradient(x)
        momentum = 0.9 * momentum + 0.1 * g
        look_ahead = 0.9 * momentum + 0.1 * g
        u, s, v = torch.linalg.svd(look_ahead, full_matrices=False)
        s = s / s.square().sum().sqrt()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        x = (1 - 0.01 * 0.1) * x - 0.01 * 0.2 * max(x.shape) ** 0.5 * (u * s) @ v
    return x


def prodigy(
    x: Tensor,
    gradient: Gradient,
    rates: list[float],
    *,
    decay: float,
    d: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
) -> tuple[Tensor, list[float]]:
    """Algorithm 4 of Mishchenko and Defazio 2023, with decoupled decay and at most tenfold growth; x and every d."""
    x0, m, v, r, s, found = x, torch.zeros_like(x), torch.zeros_like(x), 0.0, torch.zeros_like(x), []
    for lr in rates:
        g = gradient(x)
        m = beta1 * m + (1 - beta1) * d * g
        v = beta2 * v + (1 - beta2) * d**2 * g**2
        r = beta2**0.5 * r + (1 - beta2**0.5) * lr * d**2 * float((g * (x0 - x)).sum())
        s = beta2**0.5 * s + (1 - beta2**0.5) * lr * d**2 * g
        x = x - lr * d * (m / (torch.sqrt(v) + d * 1e-8) + decay * x)
        d = max(d, min(r / float(s.abs().sum()), 10 * d))
        found.append(d)
    return x, found


def adamw(
    x: Tensor, gradient: Gradient, steps: int, *, lr: float, decay: float, beta2: float = 0.99, cautious: bool = False
) -> Tensor:
    """Loshchilov and Hutter 2019; with `cautious`, algorithm 1 of Liang 2024."""
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, steps + 1):
        g = gradient(x)
        m = 0.9 * m + 0.1 * g
        v = beta2 * v + (1 - beta2) * g**2
        u = (m / (1 - 0.9**step)) / (torch.sqrt(v / (1 - beta2**step)) + 1e-8)
        if cautious:
            agrees = (u * g > 0).double()
            u = u * agrees / max(float(agrees.mean()), 1e-3)
        x = x - lr * decay * x - lr * u
    return x


def soap(x: Tensor, gradient: Gradient, steps: int, *, lr: float, decay: float, every: int, sides: str) -> Tensor:
    """Algorithm 3 of Vyas 2024 with all betas 0.95; `sides` of "L", "R" or both."""
    (rows, columns), beta = x.shape, 0.95
    left, right = torch.zeros(rows, rows, dtype=x.dtype), torch.zeros(columns, columns, dtype=x.dtype)
    q_left, q_right = torch.eye(rows, dtype=x.dtype), torch.eye(columns, dtype=x.dtype)
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(steps):
        g = gradient(x)
        if step > 0:  # the first gradient only sets up the bases
            m = beta * m + (1 - beta) * g
            g_turned, m_turned = q_left.T @ g @ q_right, q_left.T @ m @ q_right
            v = beta * v + (1 - beta) * g_turned**2
            u = q_left @ (m_turned / (torch.sqrt(v) + 1e-8)) @ q_right.T
            x = (1 - lr * decay) * x - lr * (1 - beta**step) ** 0.5 / (1 - beta**step) * u
        left = beta * left + (1 - beta) * g @ g.T
        right = beta * right + (1 - beta) * g.T @ g
        if step == 0:
            q_left = torch.linalg.eigh(left)[1].flip(1) if "L" in sides else q_left
            q_right = torch.linalg.eigh(right)[1].flip(1) if "R" in sides else q_right
        elif step % every == 0:
            if "L" in sides:
                order = torch.diag(q_left.T @ left @ q_left).argsort(descending=True)
                q_left, v = gram_schmidt(left @ q_left[:, order]), v[order]
            if "R" in sides:
                order = torch.diag(q_right.T @ right @ q_right).argsort(descending=True)
                q_right, v = gram_schmidt(right @ q_right[:, order]), v[:, order]
    return x


def gram_schmidt(columns: Tensor) -> Tensor:
    """Column by column, twice for the rounding; the signs are free, as Adam does not see them."""
    done: list[Tensor] = []
    for column in columns.T:
        for _ in range(2):
            for other in done:
                column = column - (other @ column) * other
        done.append(column / column.norm())
    return torch.stack(done, 1)


def quantized(values: Tensor, codes: Tensor, *, block: int = 256, rounded: bool = True) -> Tensor:
    """Each number by itself: its share of its block's largest, rounded to bf16 or not, becomes the nearest code."""
    result = torch.zeros_like(values)
    for start in range(0, len(values), block):
        part = values[start : start + block]
        largest = part.abs().max()
        if largest > 0:
            shares = (part / largest).bfloat16().float() if rounded else part / largest
            middles = (codes[1:].double() + codes[:-1].double()) / 2
            result[start : start + block] = largest * codes[torch.searchsorted(middles, shares.double())]
    return result
