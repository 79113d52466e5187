"""Prodigy: AdamW that finds its own learning rate (Mishchenko and Defazio 2023).

d, a lower bound on the distance from the start to the solution, grows by what the gradients along the way show of it;
lr is a factor on it and stays 1. Differs from the paper's code, which fails without a word: a d that never leaves
its first value within `patience` steps, or that becomes infinite, is an error that says so; a growth of d past ten
times in one step is held to that. Biases and norm scales do not decay. Cost: six
operations a piece and fused AdamW's; state: four tensors a weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trimtab.errors import OptimizerError
from trimtab.optim.base import Betas, check_settings, decay_groups
from trimtab.optim.flat import Closure, arithmetic, fused_adamw_, gradients, pieces, restore_dtypes_, run

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

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, model: nn.Module) -> ProdigyOptimizer:
        """Over the model's trainable parameters."""
        return ProdigyOptimizer(decay_groups(model, self.weight_decay), self)


class ProdigyOptimizer(torch.optim.Optimizer):
    """What `Prodigy` builds; `d` is what it has found."""

    def __init__(self, groups: list[dict[str, Any]], settings: Prodigy) -> None:
        defaults = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "d_coef": settings.d_coef}
        defaults |= {"d": settings.d0, "d0": settings.d0, "patience": settings.patience, "numerator": 0.0, "step": 0}
        super().__init__(groups, defaults)

    @property
    def d(self) -> float:
        """The estimate: one for all groups."""
        return float(self.param_groups[0]["d"])

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; returns the closure's loss.

        Raises:
            OptimizerError: d did not grow, or is not finite; or a gradient is sparse.
        """
        loss = run(closure)
        given = [(group, p, g) for group in self.param_groups for p, g in gradients(group)]
        if not given:
            return loss
        first = self.param_groups[0]
        lr, (beta1, beta2), d = first["lr"], first["betas"], first["d"]
        slow, count = math.sqrt(beta2), first["step"] + 1
        numerator, total = slow * first["numerator"], 0.0
        for _, p, g in given:
            state, g = self._state(p), g.to(arithmetic(p))
            for weights, gradient, start, s in pieces(p, g, state["start"], state["s"]):
                gone = torch.dot(gradient, start - weights)
                numerator += (1 - slow) * lr * d * d * float(gone)
                s.mul_(slow).add_(gradient, alpha=(1 - slow) * lr * d * d)
                total += float(torch.linalg.vector_norm(s, 1))
        estimate = first["d_coef"] * numerator / total if total else d
        found = max(d, min(estimate, GROWTH * d))
        self._refuse(estimate, found, count)
        for group, p, g in given:
            numbers = {"beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"], "eps": d * group["eps"]}
            means = (self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"])
            for weights, gradient, m, v in pieces(p, g, *means):
                exact = weights.to(m.dtype)
                fused_adamw_(exact, gradient.to(m.dtype) * d, m, v, LATE, lr=lr * d, **numbers)
                if exact is not weights:
                    weights.copy_(exact)
        for group in self.param_groups:
            group.update(d=found, numerator=numerator, step=count)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        restore_dtypes_(self, state_dict)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["start"] = p.to(arithmetic(p), copy=True)
            state.update({name: torch.zeros_like(state["start"]) for name in ("s", "exp_avg", "exp_avg_sq")})
        return state

    def _refuse(self, estimate: float, found: float, count: int) -> None:
        first = self.param_groups[0]
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
