"""Prodigy: AdamW that finds its own learning rate (Mishchenko and Defazio 2023).

d, a lower bound on the distance from the start to the solution, grows by what the gradients along the way show of it;
lr is a factor on it and stays 1. Differs from the paper's code, which fails without a word: a d that never leaves
its first value within `patience` steps, or that becomes infinite, is an error that says so; a growth of d past ten
times in one step is held to that. Biases and norm scales do not decay. Cost: one pass over six tensors and one more
over the gradient, to refuse before any weight moves what is no number: by bytes 1.6 times fused AdamW's, compiled;
else eight operations a piece and fused AdamW's. State: four tensors a weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trimtab.errors import OptimizerError
from trimtab.optim.base import Betas, check_settings, decay_groups
from trimtab.optim.flat import Flat, arithmetic, fused_adamw_

GROWTH = 10.0  # the most that d may grow by in one step
LATE = 1e12  # a step of AdamW whose means need no correction for their start: Prodigy has none


@dataclass(frozen=True)
class Prodigy:
    """AdamW of the gradients d g with the step lr d, and  d <- max(d, d_coef r / |s|_1).

    r <- sqrt(beta2) r + (1 - sqrt(beta2)) lr d^2 g (p0 - p);  s <- sqrt(beta2) s + (1 - sqrt(beta2)) lr d^2 g.

    Args:
        lr: a factor; a schedule multiplies it.
        betas: how slowly m and v forget.
        eps: keeps the division finite; is multiplied by d.
        weight_decay: decoupled, of weights with two or more dims.
        d0: the first d, small.
        d_coef: a factor on d, the one thing to tune.
        patience: steps within which d must have grown.
        compiled: one pass by torch.compile; needs a C++ compiler.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> Prodigy().build(nn.Linear(2, 1)).d
        1e-06
    """

    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "cosine"

    lr: float = 1.0
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    d0: float = 1e-6
    d_coef: float = 1.0
    patience: int = 500
    compiled: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, model: nn.Module) -> ProdigyOptimizer:
        """Over the model's trainable parameters."""
        return ProdigyOptimizer(decay_groups(model, self.weight_decay), self)


class ProdigyOptimizer(Flat):
    """What `Prodigy` builds; `d` is what it has found."""

    slots = ("start", "s", "exp_avg", "exp_avg_sq")

    def __init__(self, groups: list[dict[str, Any]], settings: Prodigy) -> None:
        defaults = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "d_coef": settings.d_coef}
        defaults |= {"d": settings.d0, "d0": settings.d0, "patience": settings.patience, "numerator": 0.0, "step": 0}
        super().__init__(groups, defaults, compiled=settings.compiled)

    @property
    def d(self) -> float:
        """The estimate: one for all groups."""
        return float(self.param_groups[0]["d"])

    def begin_state(self, slot: str, p: Tensor) -> Tensor:
        """Keep where the weights start."""
        return p.to(arithmetic(p), copy=True) if slot == "start" else super().begin_state(slot, p)

    def check(self, given: list[Tensor]) -> None:
        """Refuse a gradient that is not finite: a sum says that all are; one that overflows is looked at again."""
        if not all(math.isfinite(float(g.sum())) or bool(g.isfinite().all()) for g in given):
            self._refuse(math.nan, self.d)

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """d, its factor on g in s, the shares of s and of both means that are new, the betas, eps, decay and rate."""
        first = self.param_groups[0]
        d, lr, (beta1, beta2) = first["d"], first["lr"], first["betas"]
        fresh = (1 - math.sqrt(beta2), 1 - beta1, 1 - beta2)
        return (d, lr * d * d, *fresh, beta1, beta2, d * group["eps"], group["weight_decay"], lr * d)

    def end(self, returned: list[Any]) -> None:
        """Find the next d, from <g, start - p> and |s|_1 of all pieces."""
        first = self.param_groups[0]
        slow, d = math.sqrt(first["betas"][1]), first["d"]
        shown, total = (sum(float(pair[at]) for pair in returned) for at in (0, 1))
        numerator = slow * first["numerator"] + (1 - slow) * first["lr"] * d * d * shown
        estimate = first["d_coef"] * numerator / total if total else d
        found = max(d, min(estimate, GROWTH * d))
        self._refuse(estimate, found)
        for group in self.param_groups:
            group.update(d=found, numerator=numerator, step=group["step"] + 1)

    @staticmethod
    def update_(
        p: Tensor, g: Tensor, start: Tensor, s: Tensor, m: Tensor, v: Tensor, *numbers: float
    ) -> tuple[Tensor, Tensor]:
        """Eight operations, then torch's fused AdamW."""
        d, factor, fresh, _, _, beta1, beta2, eps, decay, lr = numbers
        shown = torch.dot(g, start - p)
        s.mul_(1 - fresh).add_(g, alpha=fresh * factor)
        fused_adamw_(p, g * d, m, v, LATE, lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps)
        return shown, s.abs().sum()  # vector_norm takes five times as long

    @staticmethod
    def formula_(
        p: Tensor, g: Tensor, start: Tensor, s: Tensor, m: Tensor, v: Tensor, numbers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same."""
        d, factor, fresh, fresh1, fresh2, _, _, eps, decay, lr = numbers.unbind()
        scaled, shown = d * g, (g * (start - p)).sum()
        slow = s + fresh * (factor * g - s)
        mean, squares = m + fresh1 * (scaled - m), v + fresh2 * (scaled * scaled - v)
        p.sub_(lr * (mean / (squares.sqrt() + eps) + decay * p))
        s.copy_(slow)
        m.copy_(mean)
        v.copy_(squares)
        return shown, slow.abs().sum()

    def _refuse(self, estimate: float, found: float) -> None:
        first = self.param_groups[0]
        count = first["step"] + 1
        if not math.isfinite(estimate):
            raise OptimizerError(
                f"Prodigy's estimate of the distance became {estimate} at its step {count}: a gradient is not finite. "
                "Look at the loss, or clip the gradients."
            )
        if count == first["patience"] and found <= first["d0"]:
            raise OptimizerError(
                f"Prodigy's estimate of the distance is still its first, d0={first['d0']:g}, after {count} steps: it "
                f"learns nothing. Give a larger one, e.g. d0={1000 * first['d0']:g}, or a larger d_coef, or use AdamW."
            )
