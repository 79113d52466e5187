"""Stochastic gradient descent, with momentum (Polyak 1964) and Nesterov's look-ahead (Nesterov 1983; Sutskever 2013).

torch's own, its fused kernel. Differs from the textbook: the momentum buffer sums gradients and does not average
them, and weight decay is added to the gradient. Cost: one pass over the weights; state: one tensor a
weight, none without momentum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from trimtab.errors import OptimizerError
from trimtab.optim.base import check_settings, decay_groups


@dataclass(frozen=True)
class SGD:
    """b <- momentum b + g;  p <- p - lr b, or with `nesterov`  p <- p - lr (g + momentum b).

    Args:
        lr: the learning rate.
        momentum: 0 keeps no buffer.
        nesterov: look ahead; needs momentum.
        weight_decay: added to the gradient of weights with two or more dims.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> SGD(lr=0.1).build(nn.Linear(2, 1)).defaults["nesterov"]
        True
    """

    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "cosine"

    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_settings(self)
        if self.nesterov and not self.momentum:
            raise OptimizerError(
                "SGD(momentum=0, nesterov=True) has nothing to look ahead with: give momentum, e.g. 0.9, or "
                "nesterov=False."
            )

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        return torch.optim.SGD(
            decay_groups(model, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=True,
        )
