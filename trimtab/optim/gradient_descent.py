"""Gradient descent on the loss over all data, its step found by a line search (Cauchy 1847; Armijo 1966; Wolfe 1969).

Differs from the textbook: Armijo's first trial is twice the last step that was taken, so that steps may grow.
Cost: one gradient a trial, two trials an iteration in the usual case; state: one number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from trimtab.errors import OptimizerError
from trimtab.optim.base import check_settings
from trimtab.optim.flat import Closure
from trimtab.optim.full_batch import FullBatch, Here, Line
from trimtab.optim.line_search import armijo, strong_wolfe


@dataclass(frozen=True)
class GradientDescent:
    """p <- p - t g, with t from a line search.

    Args:
        lr: the first step that is tried.
        search: "armijo" asks for a decrease, "wolfe" also for a flatter slope.
        max_iter: iterations in one call of `step`.
        tolerance: stop when the largest gradient is below it.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = GradientDescent().build(model)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.eye(2)).square().sum()
        ...     loss.backward()
        ...     return loss
        >>> before, after = optimizer.step(closure).item(), closure().item()
        >>> after < 0.01 * before
        True
    """

    full_batch: ClassVar[bool] = True
    schedule: ClassVar[Literal["cosine", "constant"]] = "constant"

    lr: float = 1.0
    search: Literal["armijo", "wolfe"] = "armijo"
    max_iter: int = 20
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        check_settings(self)
        if self.search not in ("armijo", "wolfe"):
            raise OptimizerError(f"There is no line search {self.search!r}; give 'armijo' or 'wolfe'.")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters; its `step` needs a closure."""
        return GradientDescentOptimizer(
            model, self.search, lr=self.lr, max_iter=self.max_iter, tolerance=self.tolerance
        )


class GradientDescentOptimizer(FullBatch):
    """What `GradientDescent` builds."""

    def __init__(self, model: nn.Module, search: str, *, lr: float, max_iter: int, tolerance: float) -> None:
        super().__init__(model, lr=lr, max_iter=max_iter, tolerance=tolerance)
        self._search = search

    def advance(self, here: Here, closure: Closure) -> Here | None:
        """Down the gradient."""
        line = Line(self, closure, here, -here.gradient)
        first = 2 * self.memory["t"] if "t" in self.memory else self.param_groups[0]["lr"]
        find = armijo if self._search == "armijo" else strong_wolfe
        t = find(line, here.value, line.slope, first)
        if not t:
            return None
        self.memory["t"] = t
        return line.at(t)
