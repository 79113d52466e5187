"""Lion: the sign of an interpolated momentum (Chen 2023, "Symbolic discovery of optimization algorithms").

Every element moves by lr, so the learning rate is 3 to 10 times smaller than AdamW's and the decay as much larger.
Differs from the paper: biases and norm scales are left out of the decay. Cost: four operations a piece, or one pass
compiled; state: one tensor a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trimtab.optim.base import Betas, check_settings, decay_groups
from trimtab.optim.flat import Flat, fused_sgd_


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
        """Learning rate, decay, the share of m that is added to g, and the share of g that is kept in m."""
        beta1, beta2 = group["betas"]
        return (group["lr"], group["weight_decay"], beta1 / (1 - beta1), 1 - beta2)

    @staticmethod
    def update_(p: Tensor, g: Tensor, m: Tensor, lr: float, decay: float, mix: float, fresh: float) -> None:
        """Four operations; a positive factor does not change the sign, so the interpolation is one addition.

        Torch's fused SGD without momentum moves and decays in one: p <- p - lr (sign + decay p).
        """
        sign = torch.add(g, m, alpha=mix)
        m.lerp_(g, fresh)
        fused_sgd_(p, sign.sign_(), lr=lr, weight_decay=decay)

    @staticmethod
    def formula_(p: Tensor, g: Tensor, m: Tensor, numbers: Tensor) -> None:
        """The same."""
        lr, decay, mix, fresh = numbers.unbind()
        p.sub_(lr * (torch.sign(g + mix * m) + decay * p))
        m.copy_(m + fresh * (g - m))
