"""One step: the gradient of a batch, whole or in parts, and what happens to it before the optimizer takes it.

Parts (gradient accumulation) hold less memory. The loss of a batch is a mean over its samples, or over its tokens; the
parts' means are weighed by how many of those each part holds, so that the sum is the batch's own gradient whatever the
sizes of the parts. Layers that look at the batch as a whole (BatchNorm) see the parts, as they always do.
Mixed precision in fp16 scales the loss (Micikevicius et al. 2018), by torch's GradScaler.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from trimtab.core import Fit, Split

# (model, inputs, targets [B, ...]) -> the loss, a single number
Objective = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]
_GENERATOR = torch.default_generator


@dataclass(frozen=True)
class Gradient:
    """How a batch's gradient is made.

    objective: the loss of a batch, a mean.
    cast: the context of the forward pass; it is entered again and again.
    parts: how many the batch is cut into.
    weigh: (targets [B, ...]) -> the number of terms that the objective's mean is over.
    scaler: for fp16.
    """

    objective: Objective
    cast: contextlib.AbstractContextManager[Any]
    parts: int = 1
    weigh: Callable[[Tensor], Any] = len
    scaler: GradScaler | None = None

    def add_(self, model: nn.Module, batch: Split, seed: int) -> Tensor:
        """Add the batch's gradient to the parameters' `grad`; returns its loss, detached.

        Args:
            model: in train mode.
            batch: B samples, of which each part gets an equal number, or one more.
            seed: of what the forward pass draws.
        """
        if self.parts == 1:
            loss = self._forward(model, batch, seed)
            self._backward(loss)
            return loss.detach()
        bounds = [len(batch) * part // self.parts for part in range(self.parts + 1)]
        pieces = [batch.batch(slice(*pair)) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
        weights = [float(self.weigh(piece.targets)) for piece in pieces]
        total = torch.zeros(())
        for place, (piece, weight) in enumerate(zip(pieces, weights, strict=True)):
            if weight:  # a mean over nothing is NaN, and no part of the batch's mean
                loss = self._forward(model, piece, seed + place) * (weight / sum(weights))
                self._backward(loss)
                total += loss.detach()
        return total

    def _forward(self, model: nn.Module, batch: Split, seed: int) -> Tensor:
        with Lent(seed), self.cast:
            return self.objective(model, batch.inputs, batch.targets)

    def _backward(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()


class Lent:
    """Lend `seed` to the global generator: dropout draws from it and takes no other; then put it back.

    `torch.random.fork_rng` does the like and takes 1 % of a step of a millisecond; a generator function takes half as
    long again as this class.
    """

    __slots__ = ("_seed", "_state")

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._state = _GENERATOR.get_state()
        _GENERATOR.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        _GENERATOR.set_state(self._state)


def scaler_for(precision: str) -> GradScaler | None:
    """What keeps small gradients from vanishing in fp16; other precisions need none."""
    return GradScaler("cpu") if precision == "fp16" else None


def take_(optimizer: Optimizer, settings: Fit, scaler: GradScaler | None, *, usable: bool = True) -> bool:
    """Let the optimizer take the gradients: unscaled, clipped, or not at all where they are to be skipped.

    Clipping is by the norm of all of them together (Pascanu et al. 2013): g <- g * min(1, clip / |g|).

    Args:
        optimizer: of the parameters.
        settings: `clip` and `nan` are used.
        scaler: that scaled the loss.
        usable: whether the loss is a number.

    Returns:
        Whether it took them; a scaler that leaves them out to lower its scale counts as taking them.
    """
    if not usable:
        return False
    if scaler:
        scaler.unscale_(optimizer)
    if settings.clip is not None or settings.nan == "skip":
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if settings.nan == "skip" and not scaler and not bool(norm.isfinite()):
            return False
        if settings.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return True
