"""Averages of the weights over the steps, which generalise better than the last ones and cost one more copy of them.

Exponential (EMA, Polyak's averaging with forgetting) or of the run's tail (stochastic weight averaging, Izmailov et al.
2018; here after each step, with the learning rate going on as it would). The weight of step t, counted from the
average's first, is max(1 - decay, 1 / (t + 1)): an exponential average begins as a plain one, so that the first weights
do not linger. Buffers that hold statistics belong to the weights they were made with: they are made anew.
Cost: one pass over the weights a step, about that of plain SGD.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.core import Fit
from trimtab.errors import TaskError
from trimtab.train.integers import IntegerWeight


class Average:
    """The running average of a model's trainable parameters.

    Args:
        model: whose weights; only read here.
        settings: `ema` (the decay) or `tail` (the last fraction of the steps).
        total: number of steps of the run.
    """

    def __init__(self, model: nn.Module, settings: Fit, total: int) -> None:
        self._decay = settings.ema or 1.0
        self._first = 0 if settings.ema else total - max(1, round((settings.tail or 0.0) * total))
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    def update_(self, index: int) -> None:
        """Take in the weights after step `index`."""
        if index >= self._first:
            weight = max(1 - self._decay, 1 / (index - self._first + 1))
            for name, parameter in self._parameters.items():
                self.tensors[name].lerp_(parameter.detach(), weight)

    def put_(self, index: int) -> bool:
        """Make the average the model's weights, if there is one after step `index`."""
        if index < self._first:
            return False
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self.tensors[name])
        return True


def average_of(model: nn.Module, settings: Fit, total: int) -> Average | None:
    """The average that the settings ask for, if any.

    Raises:
        TaskError: the weights are integers, which have no mean.
    """
    if (settings.ema or settings.tail) and any(isinstance(p, IntegerWeight) for p in model.parameters()):
        raise TaskError(
            f"Fit averages weights (ema={settings.ema}, tail={settings.tail}), and the model's are integers: leave "
            "both away, or call float_weights_(model) first."
        )
    return Average(model, settings, total) if settings.ema or settings.tail else None
