"""Steps scaled by running squares of the gradient: torch's own family, each with the settings that its paper names.

Adagrad (Duchi 2011), RMSprop (Tieleman and Hinton 2012), Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter
2019), NAdamW (Dozat 2016, with decoupled decay), RAdam (Liu 2020, with decoupled decay), Adafactor (Shazeer and Stern
2018). Differs from the papers: biases and norm scales are left out of the decay. Cost on CPU: Adagrad, Adam and AdamW
are fused, one pass; the others take torch's loop of whole-tensor passes. State: two tensors a weight; one for Adagrad
and RMSprop; for Adafactor a row and a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from trimtab.optim.base import Betas, check_settings, decay_groups


@dataclass(frozen=True)
class _Adaptive:
    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "cosine"

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Adagrad(_Adaptive):
    """v <- v + g^2;  p <- p - lr g / (sqrt(v) + eps).

    Args:
        lr: the learning rate.
        eps: keeps the division finite.
        weight_decay: added to the gradient of weights with two or more dims.

    Example:
        >>> Adagrad().build(nn.Linear(2, 1)).defaults["lr"]
        0.01
    """

    lr: float = 0.01
    eps: float = 1e-10
    weight_decay: float = 0.0

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        return torch.optim.Adagrad(decay_groups(model, self.weight_decay), lr=self.lr, eps=self.eps, fused=True)


@dataclass(frozen=True)
class RMSprop(_Adaptive):
    """v <- alpha v + (1 - alpha) g^2;  b <- momentum b + g / (sqrt(v) + eps);  p <- p - lr b.

    Args:
        lr: the learning rate.
        alpha: how slowly the squares are forgotten.
        momentum: of the scaled gradient.
        eps: keeps the division finite.
        weight_decay: added to the gradient of weights with two or more dims.

    Example:
        >>> RMSprop().build(nn.Linear(2, 1)).defaults["alpha"]
        0.99
    """

    lr: float = 1e-3
    alpha: float = 0.99
    momentum: float = 0.0
    eps: float = 1e-8
    weight_decay: float = 0.0

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        groups = decay_groups(model, self.weight_decay)
        return torch.optim.RMSprop(groups, lr=self.lr, alpha=self.alpha, momentum=self.momentum, eps=self.eps)


@dataclass(frozen=True)
class Adam(_Adaptive):
    """m, v: running means of g and g^2, corrected for their start;  p <- p - lr m / (sqrt(v) + eps).

    Args:
        lr: the learning rate.
        betas: how slowly m and v forget.
        eps: keeps the division finite.
        weight_decay: added to the gradient; `AdamW` takes it from the weight instead.

    Example:
        >>> Adam().build(nn.Linear(2, 1)).defaults["betas"]
        (0.9, 0.999)
    """

    lr: float = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        groups = decay_groups(model, self.weight_decay)
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True)
class AdamW(_Adaptive):
    """Adam whose decay is decoupled:  p <- (1 - lr weight_decay) p - lr m / (sqrt(v) + eps).

    Args:
        lr: the learning rate.
        betas: how slowly m and v forget.
        eps: keeps the division finite.
        weight_decay: of weights with two or more dims.

    Example:
        >>> [group["weight_decay"] for group in AdamW().build(nn.Linear(2, 1)).param_groups]
        [0.02, 0.0]
    """

    lr: float = 3e-3
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.02

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        groups = decay_groups(model, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True)
class NAdamW(_Adaptive):
    """AdamW with Nesterov's momentum: the step uses the mean as it will be one step on.

    The defaults are the best single setting over the workloads of AlgoPerf (Dahl 2023).

    Args:
        lr: the learning rate.
        betas: how slowly m and v forget.
        eps: keeps the division finite.
        weight_decay: decoupled, of weights with two or more dims.

    Example:
        >>> NAdamW().build(nn.Linear(2, 1)).defaults["decoupled_weight_decay"]
        True
    """

    lr: float = 1.75e-3
    betas: Betas = (0.9327, 0.9955)
    eps: float = 1e-8
    weight_decay: float = 0.0812

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        groups = decay_groups(model, self.weight_decay)
        return torch.optim.NAdam(groups, lr=self.lr, betas=self.betas, eps=self.eps, decoupled_weight_decay=True)


@dataclass(frozen=True)
class RAdam(_Adaptive):
    """Adam that leaves the division out until the running square has seen enough to be trusted.

    Args:
        lr: the learning rate.
        betas: how slowly m and v forget.
        eps: keeps the division finite.
        weight_decay: decoupled, of weights with two or more dims.

    Example:
        >>> RAdam().build(nn.Linear(2, 1)).defaults["decoupled_weight_decay"]
        True
    """

    lr: float = 3e-3
    betas: Betas = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.02

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        groups = decay_groups(model, self.weight_decay)
        return torch.optim.RAdam(groups, lr=self.lr, betas=self.betas, eps=self.eps, decoupled_weight_decay=True)


@dataclass(frozen=True)
class Adafactor(_Adaptive):
    """Adam without m, whose v of a matrix is the outer product of its rows' and columns' means.

    The step is relative to the weight's root mean square, and clipped to one of 1.

    Args:
        lr: the largest relative step.
        beta2_decay: v forgets with 1 - step^beta2_decay.
        weight_decay: decoupled, of weights with two or more dims.

    Example:
        >>> Adafactor().build(nn.Linear(2, 1)).defaults["beta2_decay"]
        -0.8
    """

    lr: float = 0.02
    beta2_decay: float = -0.8
    weight_decay: float = 0.0

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters."""
        groups = decay_groups(model, self.weight_decay)
        return torch.optim.Adafactor(groups, lr=self.lr, beta2_decay=self.beta2_decay)
