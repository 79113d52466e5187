"""Energy of an inference: the device's own counter (RAPL, NVML), else an estimate from the power that the user states.

Both count what the whole device takes, idle cores and neighbours included, so that they compare contestants of one
race and are no property of a model. Linux shows RAPL, the processor's, under /sys/class/powercap, often to root alone
and on virtual machines not at all: then only the estimate is left, and its unit says so. NVML tells of NVIDIA GPUs from
Volta on, through the package nvidia-ml-py (`trimtab[nvml]`); it is asked only for what runs on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trimtab.core import Measurement
from trimtab.measure.stats import median_interval

POWERCAP = Path("/sys/class/powercap")
ESTIMATE = "J (estimate: stated power times time)"


@dataclass(frozen=True)
class Counter:
    """One device's counter: microjoules so far, and the value at which it starts again from 0, if there is one."""

    microjoules: int
    most: int | None = None


Read = Callable[[], dict[str, Counter]]


def counting(device: str) -> Read:
    """What reads the counters of what an inference on `device` runs on: RAPL for "cpu", NVML for "cuda".

    A race asks for its target's device. Targets know "cpu" alone so far: no GPU is counted for what it does not do. Of
    what runs on a GPU, the processor's part is not counted.

    >>> counting("cpu") is counters
    True
    """
    assert device in ("cpu", "cuda"), f"nothing is known to count on {device}"
    return counters if device == "cpu" else gpu_counters()


def gpu_counters(only: Collection[str] | None = None) -> Read:
    """What reads the counter of each NVIDIA GPU, by its UUID; it finds none without driver, package or such a GPU.

    NVML is opened here, once, and stays open until the process ends, so that no reading waits for it. Its counter
    starts again when the driver is loaded anew, and never else (64 bits of millijoules).

    Args:
        only: the UUIDs of those that run what is measured; None: all.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return dict
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(place) for place in range(nvml.nvmlDeviceGetCount())]
        named = {nvml.nvmlDeviceGetUUID(handle): handle for handle in handles}
    except nvml.NVMLError:
        return dict

    def read() -> dict[str, Counter]:
        found = {}
        for name, handle in named.items():
            if only is None or name in only:
                with suppress(nvml.NVMLError):  # older than Volta, or lost meanwhile
                    found[name] = Counter(1000 * nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        return found

    return read


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


def joules(before: dict[str, Counter], after: dict[str, Counter]) -> float | None:
    """What was taken between two readings, over all devices; a counter that started again once is seen through.

    None if it is not known: a device went, or started again from where it is not known.

    >>> joules({"a": Counter(900, 1000)}, {"a": Counter(100, 1000)})
    0.0002
    """
    if after.keys() != before.keys():
        return None
    taken = 0
    for name, one in before.items():
        more = after[name].microjoules - one.microjoules
        if more < 0 and one.most is None:
            return None
        taken += more if one.most is None else more % one.most
    return taken / 1e6


@dataclass
class Metered:
    """A timer that also notes the joules of each block it times; without a counter it only times."""

    timer: Callable[[int], list[float]]
    read: Read = counters
    block_joules: list[float] = field(default_factory=list)

    def __call__(self, num_calls: int) -> list[float]:
        """The latencies of `num_calls` inferences."""
        before = self.read()
        latencies = self.timer(num_calls)
        if before and (taken := joules(before, self.read())) is not None:
            self.block_joules.append(taken / num_calls)
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
