"""L-BFGS: Newton's direction from the last differences of gradients (Liu and Nocedal 1989), strong-Wolfe line search.

torch's own, held to what works: with fewer than 20 iterations a step its line search stalls. Differs from the paper:
one `step` is `max_iter` iterations. Cost: about one and a quarter gradients of all data an iteration; state: twice
`history` tensors a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from trimtab.optim.base import check_settings, trainable


@dataclass(frozen=True)
class LBFGS:
    """p <- p + t H g, where H is built from the last `history` steps and t meets the strong Wolfe conditions.

    Args:
        lr: the first step length that the line search tries.
        max_iter: iterations in one call of `step`.
        history: how many differences are kept.
        tolerance: stop when the largest gradient is below it.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> LBFGS().build(nn.Linear(2, 1)).defaults["line_search_fn"]
        'strong_wolfe'
    """

    full_batch: ClassVar[bool] = True
    schedule: ClassVar[Literal["cosine", "constant"]] = "constant"

    lr: float = 1.0
    max_iter: int = 20
    history: int = 20
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over the model's trainable parameters; its `step` needs a closure."""
        return torch.optim.LBFGS(
            [p for _, p in trainable(model)],
            lr=self.lr,
            max_iter=self.max_iter,
            history_size=self.history,
            tolerance_grad=self.tolerance,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )
