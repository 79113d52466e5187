"""Muon: hidden matrices move by their momentum made orthogonal (Jordan 2024), the rest by AdamW.

Which is which is read from the model: weights of two or more dims are hidden, unless they are an embedding, the last
layer, or a single row or column; convolutions count as a matrix [out, in * kernel]. The step's root mean square is
that of AdamW (Liu 2025, "Muon is scalable for LLM training"), so that one learning rate and one decay serve both.
Differs from the paper and from torch's own: products are in bf16 only where that is faster, on a GPU and for large
matrices on a CPU that has the instructions. Cost: 15 matrix products a matrix and step; state: one tensor a hidden
weight, two for the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim.adamw import adamw

from trimtab.optim.base import Betas, check_settings, decay_groups, trainable
from trimtab.optim.flat import Closure, arithmetic, gradients, restore_dtypes_, run

# Jordan's quintic: takes singular values from (0, 1] to about 1 in five turns.
COEFFICIENTS, TURNS = (3.4445, -4.7750, 2.0315), 5
# Multiply-adds of a product from which bf16 is faster on a CPU: .9 times as fast at 2 M, 1.7 times at 17 M, 2.6 at 1 G.
LARGE = 2**24


@dataclass(frozen=True)
class Muon:
    """b <- momentum b + (1 - momentum) g;  u = orthogonal((1 - momentum) g + momentum b).

    p <- (1 - lr weight_decay) p - 0.2 lr sqrt(max(rows, columns)) u.

    Args:
        lr: of all parameters; that of AdamW serves.
        momentum: of the hidden matrices.
        weight_decay: decoupled, of weights with two or more dims.
        betas: of AdamW, for the others.
        eps: of AdamW.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> Muon().build(model).param_groups[0]["param_names"]
        ['1.weight']
    """

    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "cosine"

    lr: float = 3e-3
    momentum: float = 0.95
    weight_decay: float = 0.02
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters; the hidden ones are the first group, if there are any."""
        hidden = hidden_matrices(model)
        groups = []
        for group in decay_groups(model, self.weight_decay):
            for matrix in (True, False):
                named = [(name, p) for name, p in group["params"] if (name in hidden) == matrix]
                if named:
                    groups.append({**group, "params": named, "matrix": matrix})
        defaults = {"lr": self.lr, "momentum": self.momentum, "betas": self.betas, "eps": self.eps}
        return MuonOptimizer(groups, defaults)


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the weights that are made orthogonal."""
    tables = {
        f"{name}.weight".lstrip(".")
        for name, part in model.named_modules()
        if isinstance(part, nn.Embedding | nn.EmbeddingBag)
    }
    if isinstance(model, GraphModule):  # a captured graph has no modules left, but says what it looks up
        calls = (node for node in model.graph.nodes if node.target is torch.ops.aten.embedding.default)
        tables |= {str(node.args[0].target) for node in calls}
    wide = [name for name, p in trainable(model) if p.ndim > 1 and name not in tables and min(as_matrix(p).shape) > 1]
    return set(wide[:-1])


def as_matrix(tensor: Tensor) -> Tensor:
    """[out, everything else]."""
    return tensor.reshape(tensor.shape[0], -1)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of `matrix` = U S V^T, with singular values between 0.7 and 1.2: five Newton-Schulz turns.

    Example:
        >>> orthogonal(torch.diag(torch.tensor([2.0, 1.0]))).diagonal() > 0.6
        tensor([True, True])
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    if x.dtype == torch.float32 and faster_in_bf16(x):
        x = x.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(TURNS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def faster_in_bf16(wide: Tensor) -> bool:
    """Whether the products of a matrix [rows, columns], rows <= columns, are; the same on each machine of a kind."""
    if wide.device.type != "cpu":
        return wide.device.type == "cuda"
    rows, columns = wide.shape
    return rows * rows * columns >= LARGE and torch.cpu._is_avx512_bf16_supported()


class MuonOptimizer(torch.optim.Optimizer):
    """What `Muon` builds."""

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; returns the closure's loss.

        Raises:
            OptimizerError: a gradient is sparse.
        """
        loss = run(closure)
        for group in self.param_groups:
            given = list(gradients(group))
            if group["matrix"]:
                for p, g in given:
                    self._turn(p, g, group)
            elif given:
                self._adamw(given, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        restore_dtypes_(self, state_dict)

    def _turn(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state, lr = self.state[p], group["lr"]
        if not state:
            state["momentum"] = torch.zeros_like(p, dtype=arithmetic(p))
        g = g.to(arithmetic(p))
        momentum = state["momentum"].lerp_(g, 1 - group["momentum"])
        move = orthogonal(as_matrix(torch.lerp(g, momentum, group["momentum"])))
        p.mul_(1 - lr * group["weight_decay"])
        p.add_(move.view(p.shape).to(p.dtype), alpha=-0.2 * lr * max(move.shape) ** 0.5)

    def _adamw(self, given: list[tuple[nn.Parameter, Tensor]], group: dict[str, Any]) -> None:
        for p, _ in given:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                )
                if p.device.type != "cpu":
                    self.state[p]["step"] = self.state[p]["step"].to(p.device)
        states = [self.state[p] for p, _ in given]
        adamw(
            [p for p, _ in given],
            [g for _, g in given],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
