"""AdamW whose state takes 8 bits a number, in blocks (Dettmers 2022, "8-bit optimizers via block-wise quantization").

Each block of 256 numbers is divided by its largest, and each becomes the nearest of 256 values that are dense near
zero: the paper's dynamic tree, signed for m and positive for v. Differs from the paper: blocks of 256 and not 2048, as
in its code later; a number is rounded to bf16 first, so that its code comes from one table of 2^16 entries; tensors
below 4,096 elements keep fp32, as there. Cost: several times fused AdamW's on CPU, where table look-ups are slow: it
buys memory, not time; state: 2.03 bytes a weight in place of 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.optim.base import Betas, check_settings, decay_groups
from trimtab.optim.flat import Closure, arithmetic, fused_adamw_, gradients, restore_dtypes_, run, shares_memory

BLOCK, SMALL, PIECE = 256, 4096, 1 << 16


@dataclass(frozen=True)
class AdamW8bit:
    """AdamW on m = codes_m[i] max_m, v = codes_v[j] max_v, quantized again after the step.

    Args:
        lr: that of AdamW.
        betas: how slowly m and v forget.
        eps: keeps the division finite.
        weight_decay: decoupled, of weights with two or more dims.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> model = nn.Linear(64, 64)
        >>> optimizer = AdamW8bit().build(model)
        >>> model(torch.ones(1, 64)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[model.weight]["m"].dtype
        torch.uint8
    """

    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "cosine"

    lr: float = 3e-3
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.02

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        defaults = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "step": 0}
        return AdamW8bitOptimizer(decay_groups(model, self.weight_decay), defaults)


class AdamW8bitOptimizer(torch.optim.Optimizer):
    """What `AdamW8bit` builds."""

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; returns the closure's loss.

        Raises:
            OptimizerError: a gradient is sparse.
        """
        loss = run(closure)
        for group in self.param_groups:
            given = list(gradients(group))
            group["step"] += bool(given)
            for p, g in given:
                exact = p.reshape(-1).to(torch.float32 if p.numel() >= SMALL else arithmetic(p))
                self._advance(exact, g.reshape(-1).to(exact.dtype), self.state[p], group)
                if not shares_memory(exact, p):
                    p.copy_(exact.view(p.shape))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, codes as codes."""
        super().load_state_dict(state_dict)
        restore_dtypes_(self, state_dict)

    def _advance(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        small = len(p) < SMALL
        if not state:
            for name in ("m", "v"):
                state[name] = torch.zeros_like(p) if small else torch.full_like(p, ZERO[name], dtype=torch.uint8)
                if not small:
                    state[f"{name}_max"] = p.new_zeros(-(-len(p) // BLOCK))
        if small:
            _adamw(p, g, state["m"], state["v"], group)
            return
        for start in range(0, len(p), PIECE):
            piece, blocks = slice(start, start + PIECE), slice(start // BLOCK, (start + PIECE) // BLOCK)
            kept = [(state[name][piece], state[f"{name}_max"][blocks]) for name in ("m", "v")]
            m, v = (dequantize(*one, signed=signed) for one, signed in zip(kept, (True, False), strict=True))
            _adamw(p[piece], g[piece], m, v, group)
            for (codes, largest), value, signed in zip(kept, (m, v), (True, False), strict=True):
                new, scale = quantize(value, signed=signed)
                codes.copy_(new)
                largest.copy_(scale)


def _adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor, group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    numbers = {name: group[name] for name in ("lr", "weight_decay", "eps")}
    fused_adamw_(p, g, m, v, group["step"], beta1=beta1, beta2=beta2, **numbers)


@cache
def codes(*, signed: bool) -> Tensor:
    """The 256 values of the dynamic tree in [-1, 1] or [0, 1], in order: 10^(e-6) times the middles of even fractions.

    Example:
        >>> codes(signed=True)[[0, 127, 255]].tolist(), codes(signed=False).min().item()
        ([-0.992968738079071, 0.0, 1.0], 0.0)
    """
    values = [0.0, 1.0]
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (power if signed else power + 1) + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (power - 6)).tolist()
        values += middles + ([-value for value in middles] if signed else [])
    return torch.tensor(sorted(values)).float()


@cache
def _table(*, signed: bool) -> Tensor:
    """The nearest code of every bf16 number, at the place that its bits, read as an integer, say."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).double().nan_to_num(0).clamp(-1, 1)
    values = codes(signed=signed).double()
    above = torch.searchsorted(values, numbers.contiguous()).clamp(1, len(values) - 1)
    lower = (numbers - values[above - 1]) <= (values[above] - numbers)
    return (above - lower.long()).to(torch.uint8)


def quantize(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes uint8 [n], and the largest magnitude of each block of 256."""
    blocks = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    largest = torch.maximum(blocks.amax(1), -blocks.amin(1)) if signed else blocks.amax(1)
    share = blocks / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    places = share.bfloat16().view(torch.int16).int().add_(2**15).view(-1)[: len(values)]
    return _table(signed=signed).to(values.device).index_select(0, places), largest


def dequantize(given: Tensor, largest: Tensor, *, signed: bool) -> Tensor:
    """The numbers that `quantize` kept, float32 [n]."""
    values = codes(signed=signed).to(given.device).index_select(0, given.int())
    return F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK).mul_(largest[:, None]).view(-1)[: len(given)]


ZERO = {"m": 127, "v": 0}  # the codes of 0
