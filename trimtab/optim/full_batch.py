"""What descends on the loss over all data has in common: one long vector, a closure, and a line.

`step(closure)` takes `max_iter` iterations. The closure gives the loss over all data and leaves its gradient, as for
`torch.optim.LBFGS`; within a step it must be the same function each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trimtab.errors import OptimizerError
from trimtab.optim.base import check_settings, trainable
from trimtab.optim.flat import Closure, arithmetic, gradients, restore_dtypes_, run


@dataclass(frozen=True)
class Here:
    """A point, the loss there and its gradient."""

    x: Tensor
    value: float
    gradient: Tensor


@dataclass(frozen=True)
class FullBatchSettings:
    """What the methods without a setting of their own are set by.

    Args:
        lr: the first step that is tried.
        max_iter: iterations in one call of `step`.
        tolerance: stop when the largest gradient is below it.

    Raises:
        OptimizerError: a setting is out of range.
    """

    full_batch: ClassVar[bool] = True
    schedule: ClassVar[Literal["cosine", "constant"]] = "constant"
    built: ClassVar[type[FullBatch]]

    lr: float = 1.0
    max_iter: int = 20
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters; its `step` needs a closure."""
        return self.built(model, lr=self.lr, max_iter=self.max_iter, tolerance=self.tolerance)


class FullBatch(torch.optim.Optimizer):
    """The base: a method says where to go from a point (`advance`), and keeps what it likes in `memory`."""

    def __init__(self, model: nn.Module, *, lr: float, max_iter: int, tolerance: float) -> None:
        groups = [{"params": trainable(model)}]
        super().__init__(groups, {"lr": lr, "max_iter": max_iter, "tolerance": tolerance})

    def advance(self, here: Here, closure: Closure) -> Here | None:
        """One iteration; None where nothing better is found."""
        raise NotImplementedError

    @property
    def memory(self) -> dict[str, Any]:
        """What lasts from one iteration to the next: tensors and numbers, part of the state dict."""
        memory: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        return memory

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """At most `max_iter` iterations; returns the loss before them.

        Raises:
            OptimizerError: there is no closure, or a gradient is sparse.
        """
        if closure is None:
            raise OptimizerError(
                f"{type(self).__name__} searches along a line and must be able to ask for the loss: call "
                "optimizer.step(closure), where closure() zeroes the gradients, computes the loss over all data, calls "
                "backward() and returns the loss."
            )
        group, loss = self.param_groups[0], run(closure)
        assert loss is not None
        here = Here(self._gathered(), float(loss), self._gradient())
        for _ in range(group["max_iter"]):
            if not math.isfinite(here.value) or float(here.gradient.abs().max()) <= group["tolerance"]:
                break
            further = self.advance(here, closure)
            if further is None:
                break
            here = further
        self._scatter(here.x)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        restore_dtypes_(self, state_dict)

    def evaluate(self, x: Tensor, closure: Closure) -> Here:
        """The loss at `x`."""
        self._scatter(x)
        loss = run(closure)
        return Here(x, float(loss if loss is not None else math.nan), self._gradient())

    def _gathered(self) -> Tensor:
        parameters = self.param_groups[0]["params"]
        dtype = torch.float32
        for p in parameters:
            dtype = torch.promote_types(dtype, arithmetic(p))
        return torch.cat([p.reshape(-1).to(dtype) for p in parameters])

    def _gradient(self) -> Tensor:
        group = self.param_groups[0]
        given = dict(gradients(group))
        parts = [given[p].reshape(-1) if p in given else p.new_zeros(p.numel()) for p in group["params"]]
        dtype = max((arithmetic(part) for part in parts), key=lambda one: torch.finfo(one).bits)
        return torch.cat([part.to(dtype) for part in parts])

    def _scatter(self, x: Tensor) -> None:
        parameters = self.param_groups[0]["params"]
        for p, part in zip(parameters, x.split([p.numel() for p in parameters]), strict=True):
            p.copy_(part.view(p.shape))


class Line:
    """The loss along x + t d; remembers where it was asked last."""

    def __init__(self, optimizer: FullBatch, closure: Closure, here: Here, direction: Tensor) -> None:
        self._optimizer, self._closure, self._here, self._direction = optimizer, closure, here, direction
        self.slope = float(here.gradient @ direction)
        self._last: tuple[float, Here] | None = None

    def __call__(self, t: float) -> tuple[float, float]:
        here = self.at(t)
        return here.value, float(here.gradient @ self._direction)

    def at(self, t: float) -> Here:
        """The point at distance `t`."""
        if self._last is None or self._last[0] != t:
            self._last = (t, self._optimizer.evaluate(self._here.x + t * self._direction, self._closure))
        return self._last[1]
