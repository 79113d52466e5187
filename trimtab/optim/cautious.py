"""The cautious mask (Liang 2024): what an optimizer would move against the present gradient does not move.

A wrapper: the inner optimizer takes its step, and the part of it whose sign disagrees with the gradient is taken
back; the rest is scaled up by the share that agrees. Decoupled decay is left out of the comparison, as in the paper.
Differs from the paper's code: the share is at least 1e-3 of the tensor, as in later code. Cost: around AdamW six
operations a piece, or two passes compiled, the first over the gradient and the momentum alone; around the others a
copy of the weights and eight operations a piece. State: the inner one's, and room for the copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trimtab.errors import OptimizerError
from trimtab.optim.adaptive import Adafactor, AdamW, NAdamW, RAdam
from trimtab.optim.base import Groups, Optimizer, decay_groups, unbiased
from trimtab.optim.flat import Closure, Flat, fused_adamw_, fused_sgd_, gradients, pieces, run
from trimtab.optim.kernel import for_any_shape
from trimtab.optim.lion import Lion
from trimtab.optim.muon import Muon
from trimtab.optim.soap import SOAP

# Those whose decay is decoupled and whose step is taken at the weights themselves.
INNER = (AdamW, NAdamW, RAdam, Adafactor, Lion, Muon, SOAP)
_DEFAULT = AdamW()
LEAST = 1e-3  # of the share that agrees


@dataclass(frozen=True)
class Cautious:
    """p <- p_decayed - u [u g > 0] / mean([u g > 0]), with u the step of the inner optimizer.

    Args:
        inner: what is masked: AdamW, NAdamW, RAdam, Adafactor, Lion, Muon or SOAP.
        compiled: AdamW's step in two passes by torch.compile, the others' mask; needs a C++ compiler.

    Raises:
        OptimizerError: the inner one cannot be masked.

    Example:
        >>> Cautious(AdamW(lr=1e-3)).lr
        0.001
    """

    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "cosine"

    inner: Optimizer = _DEFAULT
    compiled: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.inner, INNER):
            raise OptimizerError(
                f"Cautious cannot mask {type(self.inner).__name__}; it masks "
                f"{', '.join(one.__name__ for one in INNER)}."
            )

    @property
    def lr(self) -> float:
        """That of the inner optimizer."""
        return self.inner.lr

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The inner one, and the mask."""
        if isinstance(self.inner, AdamW):
            defaults = {"lr": self.inner.lr, "betas": self.inner.betas, "eps": self.inner.eps, "step": 0}
            return CautiousAdamW(decay_groups(model, self.inner.weight_decay), defaults, compiled=self.compiled)
        return CautiousOptimizer(self.inner.build(model), compiled=self.compiled)


class CautiousAdamW(Flat):
    """What `Cautious` builds of AdamW."""

    slots = ("exp_avg", "exp_avg_sq")
    whole = True

    def __init__(self, groups: Groups, defaults: dict[str, Any], *, compiled: bool) -> None:
        super().__init__(groups, defaults, compiled=compiled)
        self._room = torch.empty(0)  # kept: fresh memory costs twice what the step does

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """Count the step; its number, rate, decay, betas and eps, the rate that undoes the bias, and that of roots."""
        group["step"] += 1
        step, lr, (beta1, beta2) = group["step"], group["lr"], group["betas"]
        corrections = unbiased(lr, group["betas"], step)
        return (step, lr, group["weight_decay"], beta1, beta2, group["eps"], 1 - beta1, 1 - beta2, *corrections)

    def update_(self, p: Tensor, g: Tensor, m: Tensor, v: Tensor, *numbers: float) -> None:  # type: ignore[override]
        """Torch's fused AdamW moves zeros by the step, upwards; its fused SGD decays and takes the part that agrees."""
        step, lr, decay, beta1, beta2, eps, *_ = numbers
        if self._room.numel() < p.numel() or (self._room.dtype, self._room.device) != (p.dtype, p.device):
            self._room = torch.empty_like(p)
        steps, agreeing = self._room[: p.numel()], 0.0
        for move, gradient, mean, squares in pieces(steps, g, m, v):
            fused_adamw_(
                move.zero_(), gradient, mean, squares, step, lr=-lr, beta1=beta1, beta2=beta2, weight_decay=0.0, eps=eps
            )
            agree = (move * gradient).gt_(0)
            agreeing += float(agree.sum())
            move.mul_(agree)
        scale = 1 / max(agreeing / max(p.numel(), 1), LEAST)
        for weights, move in pieces(p, steps):
            fused_sgd_(weights, move, lr=scale, weight_decay=lr * decay / scale)

    @staticmethod
    def formula_(p: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: Tensor) -> None:
        """The same."""
        _, lr, decay, _, _, eps, fresh1, fresh2, rate, unbias = numbers.unbind()
        mean, squares = m + fresh1 * (g - m), v + fresh2 * (g * g - v)
        agree, size = mean * g > 0, p.numel()
        agreeing = agree.sum(dtype=torch.int32)  # torch.compile sums floats at half the speed
        agreeing = agreeing.to(p.dtype).clamp(min=LEAST * size)  # and would divide by it once more in every turn
        move = size * rate * mean / (squares.sqrt() * (agreeing * unbias) + agreeing * eps)
        p.sub_(lr * decay * p + torch.where(agree, move, 0.0))
        m.copy_(mean)
        v.copy_(squares)


class CautiousOptimizer(torch.optim.Optimizer):
    """What `Cautious` builds of the others; groups and state are those of the inner optimizer."""

    def __init__(self, inner: torch.optim.Optimizer, *, compiled: bool) -> None:
        super().__init__([{"params": group["params"]} for group in inner.param_groups], {})
        self._inner, self._compiled = inner, compiled
        self._before: dict[Tensor, Tensor] = {}  # room that is kept: fresh memory costs as much as the copy
        self._share()

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; returns the closure's loss.

        Raises:
            OptimizerError: a gradient is sparse.
        """
        loss = run(closure)
        before = [(p, g, self._kept(p), group) for group in self.param_groups for p, g in gradients(group)]
        self._inner.step()
        for p, g, old, group in before:
            keep = 1 - group["lr"] * group["weight_decay"]
            if self._compiled:
                for_any_shape(_mask_)(p, g, old, torch.tensor(keep, dtype=torch.float64))
            else:
                mask = _mask_by_pieces_ if type(p) in (Tensor, nn.Parameter) else _mask_  # one write rounds once
                mask(p, g, old, keep)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._inner.load_state_dict(state_dict)
        self._share()

    def _kept(self, p: Tensor) -> Tensor:
        old = self._before.get(p)
        if old is None or (old.dtype, old.device, old.stride()) != (p.dtype, p.device, p.stride()):
            old = self._before[p] = torch.empty_like(p.detach())
        return old.copy_(p)

    def _share(self) -> None:
        self.param_groups, self.state = self._inner.param_groups, self._inner.state


def _mask_by_pieces_(p: Tensor, g: Tensor, old: Tensor, keep: float) -> None:
    """As `_mask_`; of `old`, the part of the step that agrees is left."""
    agreeing = 0.0
    for weights, gradient, move in pieces(p, g, old):
        move.mul_(keep).sub_(weights)
        agree = (move * gradient).gt_(0)
        agreeing += float(agree.sum(dtype=torch.float32))
        weights.add_(move)
        move.mul_(agree)
    p.add_(old, alpha=-1 / max(agreeing / max(p.numel(), 1), LEAST))


def _mask_(p: Tensor, g: Tensor, old: Tensor, keep: float | Tensor) -> None:
    start = old * keep
    move = start - p
    agree = (move * g > 0).to(p.dtype)
    p.copy_(start - move * (agree / agree.mean().clamp(min=LEAST)))
