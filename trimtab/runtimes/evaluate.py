"""One candidate in its runtime: exported, checked against its graph, asked for answers, raced against others."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.fx import GraphModule

from trimtab.core import Measurement, Precision, Quantity, Ratio, Target
from trimtab.errors import RuntimeMissing
from trimtab.measure.energy import Metered, counting, energy
from trimtab.measure.money import per_million
from trimtab.measure.neighbours import others_cores, ticks
from trimtab.measure.size import size_bytes
from trimtab.measure.speed import Timing, interleave, latency, tails, throughput
from trimtab.measure.stats import gain
from trimtab.runtimes import RUNTIMES, find_runtime
from trimtab.runtimes.base import Runtime
from trimtab.runtimes.check import require_agreement
from trimtab.runtimes.process import Served

CHECKED_SAMPLES = 32
CHUNK = 100
# Processes that are started where memory counts: one for so many rounds, but so many at least.
ROUNDS_A_START, LEAST_STARTS = 4, 3


@dataclass(frozen=True)
class Exported:
    """A runtime's file, in its folder."""

    runtime: str
    precision: Precision
    folder: Path


@dataclass(frozen=True)
class Raced:
    """What a race showed of one contestant: its latencies, the memory its process held at most, and its answers.

    loaded_s: how long it took to load, beside the others. block_joules: of one inference in each block, where the
    device counts. others_cores: how many cores others kept busy meanwhile; None if the system does not tell.
    peaks: the most memory that each of some further processes held, where memory is what counts.
    """

    timing: Timing
    peak_bytes: int
    answers: np.ndarray
    loaded_s: float = 0.0
    block_joules: tuple[float, ...] = ()
    others_cores: float | None = None
    peaks: tuple[int, ...] = ()


def export_checked(
    graph: GraphModule,
    runtime: Runtime,
    folder: Path,
    *,
    precision: Precision,
    inputs: tuple[np.ndarray, ...],
    target: Target,
) -> None:
    """Write the runtime's file into `folder`, and refuse it unless a fresh process gives the graph's own answers.

    Raises:
        RuntimeFailed: the export failed, or the answers differ by more than the precision explains.
    """
    runtime.export(graph, folder, precision=precision, batch_size=target.batch_size, threads=target.threads)
    require_agreement(graph, runtime, folder, precision=precision, inputs=tuple(x[:CHECKED_SAMPLES] for x in inputs))


def race(
    contestants: Mapping[str, Exported],
    inputs: tuple[np.ndarray, ...],
    *,
    target: Target,
    rounds: int,
    minimise: Quantity = "latency_ms",
    asked: Collection[str] | None = None,
    report: Callable[[int, int, str], None] | None = None,
) -> dict[str, Raced]:
    """Time all contestants in turn, each in its own fresh process; then have those that are asked answer all `inputs`.

    Args:
        contestants: name -> file.
        inputs: [N, ...] each; the first batch of the target's size is what is timed.
        target: batch size and threads.
        rounds: blocks of each contestant, at least.
        minimise: where it is memory, further processes are started for it, one for each four rounds: a single one
            tells nothing of how much the next would differ.
        asked: whose answers are wanted; of the others only the first is computed. Default: all.
        report: is told of progress.
    """
    example = tuple(x[: target.batch_size] for x in inputs)
    starts = max(LEAST_STARTS, rounds // ROUNDS_A_START) if minimise == "memory_bytes" else 0
    held = _peaks(contestants, example, target, starts)
    with ExitStack() as stack:
        served = _serve_all(contestants, target, stack)
        for process in served.values():
            process.set_example(example)
        read = counting(target.device)
        timers = {name: Metered(process.time, read) for name, process in served.items()}
        pids = [process.pid for process in served.values()]
        before = ticks(pids)
        timings = interleave(timers, rounds=rounds, report=report)
        others = others_cores(before, ticks(pids), cores=os.cpu_count() or 1)
        # The memory is read before the large batches that only the comparison of answers needs.
        peaks = {name: process.peak_bytes() for name, process in served.items()}
        first = tuple(x[:1] for x in inputs)
        questions = {name: inputs if asked is None or name in asked else first for name in served}
        # Ranges found at run time are those of a batch: such a file is judged on the batches that it will serve.
        sizes = {name: target.batch_size if contestants[name].precision == "int8d" else CHUNK for name in served}
        return {
            name: Raced(
                timings[name],
                peaks[name],
                process.run(questions[name], batch_size=sizes[name]),
                process.loaded_s,
                tuple(timers[name].block_joules[1:]),  # the first is the warm-up
                others,
                held[name],
            )
            for name, process in served.items()
        }


def _peaks(
    contestants: Mapping[str, Exported], example: tuple[np.ndarray, ...], target: Target, starts: int
) -> dict[str, tuple[int, ...]]:
    """The most memory that `starts` processes of each held, in turns: loaded, and asked a few times."""
    peaks: dict[str, list[int]] = {name: [] for name in contestants}
    for _ in range(starts):
        for name, one in contestants.items():
            with Served(one.runtime, one.folder, precision=one.precision, threads=target.threads) as process:
                process.set_example(example)
                process.warm_up()
                peaks[name].append(process.peak_bytes())
    return {name: tuple(found) for name, found in peaks.items()}


def _serve_all(contestants: Mapping[str, Exported], target: Target, stack: ExitStack) -> dict[str, Served]:
    """A process for each, loading side by side; `stack` ends those that started, also where another could not."""

    def serve(one: Exported) -> Served:
        return Served(one.runtime, one.folder, precision=one.precision, threads=target.threads)

    with ThreadPoolExecutor() as pool:
        starting = {name: pool.submit(serve, exported) for name, exported in contestants.items()}
    for started in starting.values():
        if started.exception() is None:
            stack.enter_context(started.result())
    return {name: started.result() for name, started in starting.items()}


def measurements(raced: Raced, exported: Exported, target: Target) -> tuple[Measurement, ...]:
    """What serving this file costs: latency, its tails, throughput, size, peak memory, loading; energy, money if known.

    Energy and money are a sample's and a million samples'; the target says the power or the price.
    """
    p50 = latency(raced.timing)
    once = {
        "size_bytes": (float(size_bytes(exported.folder)), "B"),
        "load_s": (raced.loaded_s, "s"),
    }
    if target.price_per_hour is not None:
        price = per_million(p50.value, price_per_hour=target.price_per_hour, batch_size=target.batch_size)
        once["price_per_million"] = (price, "of the stated currency")
    joules = energy(raced.block_joules, latency_ms=p50.value, batch_size=target.batch_size, watts=target.watts)
    held = np.array(raced.peaks or (raced.peak_bytes,), dtype=float)
    return (
        p50,
        Measurement("memory_bytes", float(np.median(held)), "B", len(held), float(held.min()), float(held.max())),
        *(Measurement(name, value, unit, 1, value, value) for name, (value, unit) in once.items()),
        *tails(raced.timing),
        throughput(raced.timing, batch_size=target.batch_size),
        *((joules,) if joules else ()),
    )


def gain_over(baseline: Raced, candidate: Raced, *, files: tuple[Exported, Exported], minimise: str) -> Ratio:
    """How many times less of what the goal minimises the candidate takes; `files` are the baseline's and its own."""
    if minimise == "latency_ms":
        return gain(np.array(baseline.timing.block_medians), np.array(candidate.timing.block_medians))
    if minimise == "memory_bytes":
        return gain(*(np.array(one.peaks or (one.peak_bytes,)) for one in (baseline, candidate)))
    value = size_bytes(files[0].folder) / size_bytes(files[1].folder)
    return Ratio(value, value, value, 1)


def usable(target: Target) -> dict[str, Runtime]:
    """The runtimes that the target allows and this machine has.

    Raises:
        RuntimeMissing: the target names one that is not installed.
        GoalError: the target names one that does not exist.
    """
    if target.runtimes is None:
        return {name: runtime for name, runtime in RUNTIMES.items() if runtime.missing() is None}
    chosen = {name: find_runtime(name) for name in target.runtimes}
    for runtime in chosen.values():
        if missing := runtime.missing():
            raise RuntimeMissing(missing)
    return chosen
