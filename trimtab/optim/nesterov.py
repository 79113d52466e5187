"""Nesterov's accelerated gradient on the loss over all data (1983), with backtracking and adaptive restart.

Backtracking after Beck and Teboulle 2009; the momentum is forgotten when it points uphill (O'Donoghue and Candes
2015). Differs from them: the step may grow again, by a tenth an iteration. Cost: two gradients an iteration; state:
one tensor a weight and two numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from trimtab.optim.flat import Closure
from trimtab.optim.full_batch import FullBatch, FullBatchSettings, Here, Line
from trimtab.optim.line_search import armijo


class NesterovOptimizer(FullBatch):
    """What `Nesterov` builds."""

    def advance(self, here: Here, closure: Closure) -> Here | None:
        """From the point ahead, or from here if the momentum points uphill."""
        memory = self.memory
        k_old = memory.get("k", 1.0)
        k = (1 + math.sqrt(1 + 4 * k_old**2)) / 2
        old = memory.get("x", here.x)
        forward = here.x - old
        ahead = self.evaluate(here.x + (k_old - 1) / k * forward, closure) if k_old > 1 else here
        if not math.isfinite(ahead.value) or float(ahead.gradient @ forward) > 0:
            ahead, k = here, 1.0
        line = Line(self, closure, ahead, -ahead.gradient)
        first = 1.1 * memory["t"] if "t" in memory else self.param_groups[0]["lr"]
        t = armijo(line, ahead.value, line.slope, first, c1=0.5)
        if not t:
            return None
        memory.update(t=t, k=k, x=here.x)
        return line.at(t)


@dataclass(frozen=True)
class Nesterov(FullBatchSettings):
    """y = x + (k_old - 1) / k (x - x_old);  x <- y - t grad(y), with f(x) <= f(y) - t/2 |grad(y)|^2.

    k <- (1 + sqrt(1 + 4 k^2)) / 2.

    Example:
        >>> from torch import nn
        >>> Nesterov().build(nn.Linear(2, 1)).param_groups[0]["max_iter"]
        20
    """

    built: ClassVar[type[FullBatch]] = NesterovOptimizer
