"""Lion: the sign of an interpolated momentum (Chen 2023, "Symbolic discovery of optimization algorithms").

Every element moves by lr, so the learning rate is 3 to 10 times smaller than AdamW's and the decay as much larger.
Differs from the paper: biases and norm scales are left out of the decay. Cost: five operations a piece, or one pass
compiled; state: one tensor a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trimtab.optim.base import Betas, check_settings, decay_groups
from trimtab.optim.flat import Flat


@dataclass(frozen=True)
class Lion:
    """p <- (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g);  m <- beta2 m + (1 - beta2) g.

    Args:
        lr: how far every weight moves in a step.
        betas: of the momentum as it is used, and as it is kept.
        weight_decay: decoupled, of weights with two or more dims.
        compiled: one pass by torch.compile; needs a C++ compiler.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = Lion().build(model)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
    """

    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "cosine"

    lr: float = 3e-4
    betas: Betas = (0.9, 0.99)
    weight_decay: float = 0.2
    compiled: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        groups = decay_groups(model, self.weight_decay)
        return LionOptimizer(groups, {"lr": self.lr, "betas": self.betas}, compiled=self.compiled)


class LionOptimizer(Flat):
    """What `Lion` builds."""

    slots = ("exp_avg",)

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """Learning rate, betas and decay."""
        return (group["lr"], *group["betas"], group["weight_decay"])

    @staticmethod
    def update_(p: Tensor, g: Tensor, m: Tensor, lr: float, beta1: float, beta2: float, decay: float) -> None:
        """Five operations; a positive factor does not change the sign, so the interpolation is one addition."""
        sign = torch.add(g, m, alpha=beta1 / (1 - beta1)).sign_()
        p.mul_(1 - lr * decay).add_(sign, alpha=-lr)
        m.lerp_(g, 1 - beta2)

    @staticmethod
    def formula_(p: Tensor, g: Tensor, m: Tensor, numbers: Tensor) -> None:
        """As the docstring of `Lion` has it."""
        lr, beta1, beta2, decay = numbers.unbind()
        p.copy_((1 - lr * decay) * p - lr * torch.sign(beta1 * m + (1 - beta1) * g))
        m.copy_(beta2 * m + (1 - beta2) * g)
