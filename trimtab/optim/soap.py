"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas 2024).

For a matrix gradient G [m, n] the running means L of G G^T and R of G^T G have eigenbases Q_L and Q_R; Adam runs on
Q_L^T G Q_R. A basis is brought up to date every `every` steps by one turn of power iteration and a QR decomposition.
Differs from the paper's code: the first step only sets up the bases, as there; dims above `largest` keep the identity,
and with `one_sided` so does the larger of the two; convolutions count as a matrix [out, in * kernel]; vectors
take AdamW. Cost: four to six matrix products a matrix and step, four with one side half of that, and the QR;
state: two tensors a weight, and two squares a side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trimtab.errors import OptimizerError
from trimtab.optim.base import Betas, check_settings, decay_groups
from trimtab.optim.flat import Closure, arithmetic, gradients, restore_dtypes_, run

SIDES = ("left", "right")


@dataclass(frozen=True)
class SOAP:
    """G' = Q_L^T G Q_R;  p <- (1 - lr weight_decay) p - lr Q_L (m' / (sqrt(v') + eps)) Q_R^T.

    m is kept in the weight's own basis and turned with it, v in the eigenbasis.

    Args:
        lr: that of AdamW serves.
        betas: how slowly m and v forget.
        eps: keeps the division finite.
        weight_decay: decoupled, of weights with two or more dims.
        shampoo_beta: how slowly L and R forget.
        every: steps from one basis to the next.
        largest: dims above it keep the identity.
        one_sided: only the smaller dim has a basis.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> SOAP(one_sided=True).build(nn.Linear(8, 2)).param_groups[0]["one_sided"]
        True
    """

    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "cosine"

    lr: float = 3e-3
    betas: Betas = (0.95, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    shampoo_beta: float = 0.95
    every: int = 10
    largest: int = 4096
    one_sided: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if self.every < 1 or self.largest < 1 or not 0 <= self.shampoo_beta < 1:
            raise OptimizerError(f"SOAP needs every >= 1, largest >= 1 and 0 <= shampoo_beta < 1; got {self}.")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        defaults = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "shampoo_beta": self.shampoo_beta}
        defaults |= {"every": self.every, "largest": self.largest, "one_sided": self.one_sided, "step": 0}
        return SOAPOptimizer(decay_groups(model, self.weight_decay), defaults)


class SOAPOptimizer(torch.optim.Optimizer):
    """What `SOAP` builds."""

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """One step, of which the first only sets up the bases; returns the closure's loss.

        Raises:
            OptimizerError: a gradient is sparse.
        """
        loss = run(closure)
        for group in self.param_groups:
            for p, g in gradients(group):
                # Contiguous, as all of the state is: a file keeps no strides, and other strides may round otherwise.
                exact = g.to(arithmetic(p)).reshape(g.shape[0] if g.ndim > 1 else 1, -1).contiguous()
                state = self.state[p]
                if not state:
                    self._begin(state, exact, group)
                else:
                    self._move(p, exact, state, group)
                    _renew(state, exact, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        restore_dtypes_(self, state_dict)

    def _begin(self, state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> None:
        state.update(step=0, exp_avg=torch.zeros_like(g), exp_avg_sq=torch.zeros_like(g))
        smaller = "left" if g.shape[0] <= g.shape[1] else "right"
        for side, size in zip(SIDES, g.shape, strict=True):
            if 1 < size <= group["largest"] and min(g.shape) > 1 and (not group["one_sided"] or side == smaller):
                gram = (1 - group["shampoo_beta"]) * _gram(g, side)
                state[f"{side}_gram"] = gram
                state[f"{side}_basis"] = torch.linalg.eigh(gram)[1].flip(1).contiguous()

    def _move(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        state["step"] += 1
        state["exp_avg"].lerp_(g, 1 - beta1)
        turned = _turn(g, state)
        state["exp_avg_sq"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        move = _turn(state["exp_avg"], state).div_(state["exp_avg_sq"].sqrt().add_(group["eps"]))
        p.mul_(1 - lr * group["weight_decay"])
        p.add_(_turn_back(move, state).view(p.shape).to(p.dtype), alpha=-lr * correction)


def _gram(g: Tensor, side: str) -> Tensor:
    return g @ g.T if side == "left" else g.T @ g


def _turn(g: Tensor, state: dict[str, Any]) -> Tensor:
    if "left_basis" in state:
        g = state["left_basis"].T @ g
    return g @ state["right_basis"] if "right_basis" in state else g.clone()


def _turn_back(g: Tensor, state: dict[str, Any]) -> Tensor:
    if "left_basis" in state:
        g = state["left_basis"] @ g
    return g @ state["right_basis"].T if "right_basis" in state else g


def _renew(state: dict[str, Any], g: Tensor, group: dict[str, Any]) -> None:
    """The means of the grams, and in due time the bases; v goes along with the order of their directions."""
    for dim, side in enumerate(SIDES):
        if f"{side}_basis" not in state:
            continue
        gram, basis = state[f"{side}_gram"], state[f"{side}_basis"]
        gram.lerp_(_gram(g, side), 1 - group["shampoo_beta"])
        if state["step"] % group["every"] == 0:
            power = gram @ basis
            order = (basis * power).sum(0).argsort(descending=True)
            state["exp_avg_sq"] = state["exp_avg_sq"].index_select(dim, order)
            state[f"{side}_basis"] = torch.linalg.qr(power[:, order])[0].contiguous()
