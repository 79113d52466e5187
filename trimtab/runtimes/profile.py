"""What serving a file costs beside the target's own case: other batch sizes, all cores, and from nothing to an answer.

Files are timed in turns, as in a race, so that they may be compared; a case that would take too long is left out. It
decides nothing. Cost: one start of a process for each file and number of threads, and a few blocks for each case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from trimtab.core import Measurement, Target
from trimtab.measure.machine import num_cores
from trimtab.measure.speed import fitting, interleave, latency, throughput
from trimtab.runtimes.evaluate import Exported
from trimtab.runtimes.process import Served

BATCH_SIZES = (1, 8, 32)
ROUNDS, EXTRA, BLOCK_MS, MOST_CALLS, MOST_CALL_MS = 6, 2, 60.0, 20, 1000.0


@dataclass(frozen=True)
class Case:
    """One file at a batch size and a number of threads: latency of a batch, and samples a second."""

    role: str
    batch_size: int
    threads: int
    latency: Measurement
    throughput: Measurement


@dataclass(frozen=True)
class Profile:
    """All cases; cold_start_s: role -> seconds from no process to its first answer, once for each start."""

    cases: tuple[Case, ...]
    cold_start_s: Mapping[str, tuple[float, ...]]


def profile(
    files: Mapping[str, Exported],
    inputs: tuple[np.ndarray, ...],
    *,
    target: Target,
    report: Callable[[int, int, str], None] | None = None,
) -> Profile:
    """Time `files` at some batch sizes, with the target's threads and with all cores.

    Args:
        files: role -> file.
        inputs: [N, ...] each; repeated where a batch needs more.
        target: its batch size and threads are among the cases.
        report: is told of progress.

    Raises:
        RuntimeFailed: a file cannot be served.
    """
    sizes = sorted({*BATCH_SIZES, target.batch_size})
    counts = sorted({target.threads, num_cores()})
    cases: list[Case] = []
    cold: dict[str, list[float]] = {role: [] for role in files}
    for place, threads in enumerate(counts):
        with ExitStack() as stack:
            served = {}
            for role, file in files.items():
                began = time.perf_counter()
                own = Served(file.runtime, file.folder, precision=file.precision, threads=threads)
                served[role] = stack.enter_context(own)
                own.run(_batch(inputs, 1), batch_size=1)
                cold[role].append(time.perf_counter() - began)
            for size in sizes:
                if report:
                    report(place, len(counts), f"batches of {size} on {threads} threads")
                cases += _cases(served, _batch(inputs, size), threads)
    return Profile(tuple(cases), {role: tuple(seconds) for role, seconds in cold.items()})


def _cases(served: Mapping[str, Served], batch: tuple[np.ndarray, ...], threads: int) -> list[Case]:
    """All files on one batch; nothing if a call takes too long in one of them."""
    for process in served.values():
        process.set_example(batch)
    slowest = max(process.time(2)[1] for process in served.values())  # the first call makes room
    if slowest > MOST_CALL_MS:
        return []
    block = fitting(BLOCK_MS, slowest, least=3, most=MOST_CALLS)
    timers = {role: process.time for role, process in served.items()}
    timings = interleave(timers, rounds=ROUNDS, block=block, warmup=2, extra=EXTRA)
    size = len(batch[0])
    return [
        Case(role, size, threads, latency(timing), throughput(timing, batch_size=size))
        for role, timing in timings.items()
    ]


def _batch(inputs: tuple[np.ndarray, ...], size: int) -> tuple[np.ndarray, ...]:
    return tuple(x[np.arange(size) % len(x)] for x in inputs)
