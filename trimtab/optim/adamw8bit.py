"""AdamW whose state takes 8 bits a number, in blocks (Dettmers 2022, "8-bit optimizers via block-wise quantization").

Each block of 256 numbers is divided by its largest, and each becomes the nearest of 256 values that are dense near
zero: the paper's dynamic tree, signed for m and positive for v. Differs from the paper: blocks of 256 and not 2048, as
in its code later; tensors below 4,096 elements keep fp32, as there; not compiled, a number is rounded to bf16 first, so
that its code comes from one table of 2^16 entries. Cost: several times fused AdamW's on CPU, where table look-ups are
slow; compiled, about half of that, by a closed form of the tree: it buys memory, not time. State: 2.03 bytes a weight
in place of 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.optim.base import Betas, Groups, check_settings, decay_groups, unbiased
from trimtab.optim.flat import Closure, arithmetic, fused_adamw_, gradients, restore_dtypes_, run, shares_memory
from trimtab.optim.kernel import compiled

BLOCK, SMALL, PIECE, ROWS = 256, 4096, 1 << 16, 1 << 10  # ROWS: blocks that a kernel takes at a time


@dataclass(frozen=True)
class AdamW8bit:
    """AdamW on m = codes_m[i] max_m, v = codes_v[j] max_v, quantized again after the step.

    Args:
        lr: that of AdamW.
        betas: how slowly m and v forget.
        eps: keeps the division finite.
        weight_decay: decoupled, of weights with two or more dims.
        compiled: large tensors' steps by torch.compile; needs a C++ compiler. The state is the same, a code may differ.

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
    compiled: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        defaults = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "step": 0}
        return AdamW8bitOptimizer(decay_groups(model, self.weight_decay), defaults, compiled=self.compiled)


class AdamW8bitOptimizer(torch.optim.Optimizer):
    """What `AdamW8bit` builds."""

    def __init__(self, groups: Groups, defaults: dict[str, Any], *, compiled: bool) -> None:
        super().__init__(groups, defaults)
        self._compiled = compiled
        self._room = torch.empty(0)

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
                exact = p.reshape(-1).contiguous().to(torch.float32 if p.numel() >= SMALL else arithmetic(p))
                self._advance(exact, g.reshape(-1).contiguous().to(exact.dtype), self.state[p], group)
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
        if self._compiled:
            self._by_kernels(p, g, state, group)
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

    def _by_kernels(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if self._room.device != p.device or not self._room.numel():
            self._room = p.new_empty(2, ROWS, BLOCK)
        numbers, whole = p.new_tensor(_numbers(group)), len(p) // BLOCK * BLOCK
        each, largest = (p, g, state["m"], state["v"]), (state["m_max"], state["v_max"])
        for start in range(0, whole, ROWS * BLOCK):
            piece = slice(start, min(start + ROWS * BLOCK, whole))
            blocks = slice(start // BLOCK, piece.stop // BLOCK)
            self._step_of([one[piece].view(-1, BLOCK) for one in each], [one[blocks] for one in largest], numbers)
        if whole < len(p):  # the last block is short: a copy is filled up
            rest = [F.pad(one[whole:], (0, -len(p) % BLOCK)).view(1, BLOCK) for one in each]
            self._step_of(rest, [one[-1:] for one in largest], numbers)
            for one, filled in zip(each, rest, strict=True):
                one[whole:] = filled.view(-1)[: len(p) - whole]

    def _step_of(self, blocks: list[Tensor], largest: list[Tensor], numbers: Tensor) -> None:
        weights, gradient, m_codes, v_codes = blocks
        m_max, v_max = largest
        m, v = self._room[:, : len(weights)]
        compiled(step_)(weights, gradient, m_codes, m_max, v_codes, v_max, m, v, numbers)
        compiled(keep_)(m, v, m_codes, m_max, v_codes, v_max, numbers)


def step_(p: Tensor, g: Tensor, m_codes: Tensor, m_max: Tensor, v_codes: Tensor, v_max: Tensor, *rest: Tensor) -> None:
    """AdamW's step for torch.compile, of blocks [n, 256]; the new m and v are put into the two tensors that follow."""
    m_new, v_new, numbers = rest
    assert p.shape[1] == BLOCK  # said to the compiler
    lr, decay, eps, fresh1, fresh2, rate, unbias = numbers.unbind()
    m, v = decode(m_codes, signed=True) * m_max[:, None], decode(v_codes, signed=False) * v_max[:, None]
    m, v = m + fresh1 * (g - m), v + fresh2 * (g * g - v)
    p.sub_(lr * decay * p + rate * m / (v.sqrt() * unbias + eps))
    m_new.copy_(m)
    v_new.copy_(v)


def keep_(m: Tensor, v: Tensor, m_codes: Tensor, m_max: Tensor, v_codes: Tensor, v_max: Tensor, _: Tensor) -> None:
    """Quantize, for torch.compile: a kernel of its own, or it would count m and v again for each use."""
    assert m.shape[1] == BLOCK
    for values, codes, largest, signed in ((m, m_codes, m_max, True), (v, v_codes, v_max, False)):
        most = values.abs().amax(1) if signed else values.amax(1)
        share = values * (1 / most.clamp(min=torch.finfo(torch.float32).tiny))[:, None]
        codes.copy_(encode(share, signed=signed))
        largest.copy_(most)


def decode(codes: Tensor, *, signed: bool) -> Tensor:
    """The values of codes without a table: lines between 10^k and 10^(k+1), whose slopes rise fivefold at each power.

    With b the code's number, from zero, and a half, 10^e (0.9 b / 2^k - 0.8) has k in place of the lookup's power.
    """
    top, number = (6, codes.float() - 127) if signed else (7, codes.float() + 1)
    b = number.abs() + 0.5
    value = b * (0.9e-6 / 2 ** (top - 6)) - 0.8e-6
    for k in range(top - 5, top + 1):
        value = value + 0.72 * 10.0 ** (k - top) / 2**k * torch.relu(b - 2**k)
    value = torch.relu(value - 0.9 / 2**top * torch.relu(b - 2 ** (top + 1)))  # 1 is the last one; the first, 0
    return torch.where(number < 0, -value, value) if signed else value


def encode(shares: Tensor, *, signed: bool) -> Tensor:
    """The codes of the nearest values, int32, for numbers in [-1, 1] or [0, 1]: the inverse of `decode`'s lines.

    They are rounded down to a whole number; where that is the first after a power of ten, the value before it, which
    is nearer to that power, has a fifth of its range.
    """
    top, x = (6, shares.abs()) if signed else (7, shares)
    height = x * (2**top / 0.9) + 2**top * 8 / 9
    for k in range(top - 5, top + 1):
        power = 10.0 ** (k - top)
        height = height - 2**k * 4 / (0.9 * power) * torch.relu(0.1 * power - x)
    first, number = 2 ** (top - 6), height.int()
    number = number - (((number & (number - 1)) == 0) & (height - number < 0.2)).int()
    number = torch.where(x <= 1e-6 * (0.05 + 0.225 / first), first - 1, number.clamp(min=first))
    number = torch.where(height >= 2 ** (top + 1) - 0.25, 2 ** (top + 1), number)
    return 127 + torch.where(shares < 0, -number.clamp(max=127), number) if signed else number - 1


def _numbers(group: dict[str, Any]) -> tuple[float, ...]:
    lr, betas = group["lr"], group["betas"]
    corrections = unbiased(lr, betas, group["step"])
    return (lr, group["weight_decay"], group["eps"], 1 - betas[0], 1 - betas[1], *corrections)


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
