"""Energy of an inference: the processor's own counter (RAPL), else an estimate from the power that the user states.

RAPL counts what the whole package takes, idle cores and neighbours included, so that it compares contestants of one
race and is no property of a model. Linux shows it under /sys/class/powercap, often to root alone and on virtual
machines not at all: then only the estimate is left, and its unit says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trimtab.core import Measurement
from trimtab.measure.stats import median_interval

POWERCAP = Path("/sys/class/powercap")
ESTIMATE = "J (estimate: stated power times time)"


@dataclass(frozen=True)
class Counter:
    """One package's counter: microjoules so far, and the value at which it starts again from 0."""

    microjoules: int
    most: int


def counters(root: Path = POWERCAP) -> dict[str, Counter]:
    """The counter of each processor package that may be read; empty where there is none."""
    found = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        # intel-rapl:0 is a package; intel-rapl:0:0 is a part of it, counted there already.
        if folder.name.count(":") == 1:
            try:
                now, most = ((folder / name).read_text() for name in ("energy_uj", "max_energy_range_uj"))
            except OSError:
                continue
            found[folder.name] = Counter(int(now), int(most))
    return found


def joules(before: dict[str, Counter], after: dict[str, Counter]) -> float:
    """What was taken between two readings, over all packages; a counter that started again once is seen through.

    >>> joules({"a": Counter(900, 1000)}, {"a": Counter(100, 1000)})
    0.0002
    """
    return sum((after[name].microjoules - one.microjoules) % one.most for name, one in before.items()) / 1e6


@dataclass
class Metered:
    """A timer that also notes the joules of each block it times; without a counter it only times."""

    timer: Callable[[int], list[float]]
    read: Callable[[], dict[str, Counter]] = counters
    block_joules: list[float] = field(default_factory=list)

    def __call__(self, num_calls: int) -> list[float]:
        """The latencies of `num_calls` inferences."""
        before = self.read()
        latencies = self.timer(num_calls)
        if before and (after := self.read()).keys() == before.keys():  # else a package went: nothing is known
            self.block_joules.append(joules(before, after) / num_calls)
        return latencies


def energy(
    block_joules: tuple[float, ...], *, latency_ms: float, batch_size: int, watts: float | None
) -> Measurement | None:
    """Energy a sample: the median over the blocks that were counted, else `watts` x time; None if neither is known.

    Args:
        block_joules: joules of one inference in each block.
        latency_ms: of one inference.
        batch_size: samples in an inference.
        watts: what the machine takes while it runs, as stated.

    >>> energy((), latency_ms=2.0, batch_size=1, watts=50.0).value
    0.1
    """
    if block_joules:
        value, low, high = median_interval(np.array(block_joules) / batch_size)
        return Measurement("energy_j", value, "J", len(block_joules), low, high)
    if watts is None:
        return None
    value = watts * latency_ms / 1000 / batch_size
    return Measurement("energy_j", value, ESTIMATE, 1, value, value)
