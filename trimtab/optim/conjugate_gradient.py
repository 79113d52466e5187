"""Nonlinear conjugate gradient: Polak and Ribiere 1969, negative factors cut to zero (PR+; Gilbert and Nocedal 1992).

Strong-Wolfe line search with c2 = 0.1. Differs from the paper: a direction that does not descend is replaced by the
gradient's. Cost: two gradients an iteration in the usual case; state: two tensors a weight and two numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trimtab.optim.flat import Closure
from trimtab.optim.full_batch import FullBatch, FullBatchSettings, Here, Line
from trimtab.optim.line_search import strong_wolfe


class ConjugateGradientOptimizer(FullBatch):
    """What `ConjugateGradient` builds."""

    def advance(self, here: Here, closure: Closure) -> Here | None:
        """Along the conjugate direction; if that leads nowhere, once more along the gradient."""
        memory, g = self.memory, here.gradient
        direction = -g
        if "gradient" in memory:
            old = memory["gradient"]
            factor = max(0.0, float(g @ (g - old)) / float(old @ old))
            direction = factor * memory["direction"] - g
        line = Line(self, closure, here, direction)
        if line.slope >= 0:
            line = Line(self, closure, here, -g)
            direction = -g
        # The first order decrease of the last step, expected of this one too (Nocedal and Wright, 3.60).
        first = memory["t"] * memory["slope"] / line.slope if "t" in memory else self.param_groups[0]["lr"]
        t = strong_wolfe(line, here.value, line.slope, first, c2=0.1)
        if not t:
            memory.clear()
            return None
        memory.update(t=t, slope=line.slope, gradient=g, direction=direction)
        return line.at(t)


@dataclass(frozen=True)
class ConjugateGradient(FullBatchSettings):
    """d <- -g + b d, b = max(0, g (g - g_old) / |g_old|^2);  p <- p + t d.

    Example:
        >>> from torch import nn
        >>> ConjugateGradient().build(nn.Linear(2, 1)).param_groups[0]["max_iter"]
        20
    """

    built: ClassVar[type[FullBatch]] = ConjugateGradientOptimizer
