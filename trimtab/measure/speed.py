"""Latency, measured so that a comparison is fair: A B C B C A ..., block by block, with every sample kept.

Interleaving makes slow drifts (heat, neighbours, clock steps) hit every candidate alike, so that the ratio of two
blocks of one round means something where the times themselves do not. Cost: rounds x block inferences each, and more
rounds if the machine is disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trimtab.core import Measurement
from trimtab.errors import RuntimeFailed
from trimtab.measure.stats import median_interval, quantile_interval

MOST_JUMPS = 3
BLOCK_MS, LEAST = 2000.0, 5  # a block takes about this long at most, but has so many inferences
LEAP_MS, LEAP_TIMES = 1000.0, 1000.0
Timer = Callable[[int], list[float]]


@dataclass(frozen=True)
class Timing:
    """Every latency that was measured for one candidate, and the median of each of its M blocks, in ms.

    disturbed: the blocks still disagreed when the extra rounds were used up. extra_rounds: how many were added.
    jumps: blocks that were timed again, as the clock had gone back in them. leaps: samples of over a second and 1,000
    times the median, as when the machine sleeps; they are kept.
    """

    samples_ms: tuple[float, ...]
    block_medians: tuple[float, ...]
    disturbed: bool = False
    extra_rounds: int = 0
    jumps: int = 0
    leaps: int = 0

    @property
    def spread(self) -> float:
        """Distance between the quartiles of the block medians, as a fraction of their median."""
        return block_spread(self.block_medians)


def block_spread(medians: tuple[float, ...] | list[float]) -> float:
    """Distance between the quartiles, as a fraction of the median.

    >>> block_spread([2.0, 2.0, 2.0]), round(block_spread([1.0, 2.0, 3.0]), 2)
    (0.0, 0.5)
    """
    low, middle, high = np.quantile(medians, [0.25, 0.5, 0.75])
    return float((high - low) / middle)


def interleave(
    timers: Mapping[str, Timer],
    *,
    rounds: int = 12,
    block: int = 20,
    warmup: int = 10,
    max_spread: float = 0.15,
    extra: int = 12,
    report: Callable[[int, int, str], None] | None = None,
) -> dict[str, Timing]:
    """Time all candidates in turn, rotating who is first; add rounds while any candidate's blocks disagree.

    Args:
        timers: name -> (k -> the latencies of k inferences in ms).
        rounds: blocks of each candidate, at least.
        block: inferences in a block; fewer where the slowest candidate would take over two seconds, but five.
        warmup: inferences of each candidate before the first round, which are not kept.
        max_spread: the machine counts as disturbed while a candidate's `block_spread` is above this.
        extra: how many rounds may be added for that.
        report: is told (rounds done, rounds planned, the candidate's name).

    Raises:
        RuntimeFailed: the clock goes back again and again.

    >>> timings = interleave({"a": lambda k: [2.0] * k, "b": lambda k: [1.0] * k}, rounds=3, block=4)
    >>> len(timings["a"].samples_ms), timings["b"].block_medians, timings["b"].disturbed
    (12, (1.0, 1.0, 1.0), False)
    """
    assert timers, "nobody to time"
    assert min(rounds, block) >= 1, f"nothing to time: {list(timers)}, {rounds} rounds of {block}"
    names = list(timers)
    slowest = max(float(np.median(timers[name](warmup))) for name in names) if warmup else 0.0
    block = fitting(BLOCK_MS, slowest, least=LEAST, most=block)
    samples: dict[str, list[float]] = {name: [] for name in names}
    medians: dict[str, list[float]] = {name: [] for name in names}
    jumps = dict.fromkeys(names, 0)
    done = 0
    while done < rounds or (done < rounds + extra and _restless(medians, max_spread)):
        for turn in range(len(names)):
            name = names[(done + turn) % len(names)]
            latencies, again = _block(name, timers[name], block)
            jumps[name] += again
            samples[name] += latencies
            medians[name].append(float(np.median(latencies)))
            if report:
                report(done, max(rounds, done + 1), name)
        done += 1
    restless = _restless(medians, max_spread)
    return {
        name: Timing(
            tuple(samples[name]),
            tuple(medians[name]),
            name in restless,
            done - rounds,
            jumps[name],
            _leaps(samples[name]),
        )
        for name in names
    }


def fitting(ms: float, slowest: float, *, least: int, most: int) -> int:
    """How many inferences of `slowest` ms fit into `ms`, but `least` of them, and `most` at most.

    >>> [fitting(60.0, slowest, least=3, most=20) for slowest in (1.0, 7.0, 50.0)]
    [20, 8, 3]
    """
    return min(most, max(least, int(ms / max(slowest, 1e-3))))


def _block(name: str, timer: Timer, block: int) -> tuple[list[float], int]:
    """The latencies of one block, and how often it was timed again because the clock had gone back in it.

    Raises:
        RuntimeFailed: the clock goes back every time.
    """
    for again in range(1 + MOST_JUMPS):
        latencies = timer(block)
        assert len(latencies) == block, f"the timer of {name} returned {len(latencies)} latencies for {block}"
        if all(0 < ms < float("inf") for ms in latencies):
            return latencies, again
    raise RuntimeFailed(
        f"The clock went back while {name} was timed, in {1 + MOST_JUMPS} blocks one after the other (a latency of "
        f"{min(latencies):g} ms). No latency can be measured on this machine: mend its clock, or use another."
    )


def _leaps(samples: list[float]) -> int:
    limit = max(LEAP_MS, LEAP_TIMES * float(np.median(samples)))
    return sum(ms > limit for ms in samples)


def _restless(medians: Mapping[str, list[float]], max_spread: float) -> list[str]:
    return [name for name, values in medians.items() if block_spread(values) > max_spread]


def latency(timing: Timing) -> Measurement:
    """The p50 over all samples; its interval comes from the blocks, whose spread is what repeats."""
    value = percentile(timing, 50)
    _, low, high = median_interval(np.array(timing.block_medians))
    return Measurement("latency_ms", value, "ms", len(timing.samples_ms), min(low, value), max(high, value))


def tails(timing: Timing) -> tuple[Measurement, ...]:
    """The p95 and p99 over all samples, with their order-statistic intervals."""
    found = []
    for percent in (95, 99):
        value, low, high = quantile_interval(np.array(timing.samples_ms), percent / 100)
        low, high = min(low, value), max(high, value)
        found.append(Measurement(f"latency_p{percent}_ms", value, "ms", len(timing.samples_ms), low, high))
    return tuple(found)


def throughput(timing: Timing, *, batch_size: int) -> Measurement:
    """Samples a second, one inference after the other: all samples over all time; its interval is the blocks'.

    >>> throughput(Timing((1.0, 3.0), (2.0,)), batch_size=4).value
    2000.0
    """
    value = 1000 * batch_size / float(np.mean(timing.samples_ms))
    _, low, high = median_interval(1000 * batch_size / np.array(timing.block_medians))
    return Measurement("throughput_per_s", value, "1/s", len(timing.samples_ms), min(low, value), max(high, value))


def percentile(timing: Timing, percent: float) -> float:
    """The latency in ms that `percent` of the samples do not exceed.

    >>> percentile(Timing((1.0, 2.0, 9.0), (2.0,)), 50)
    2.0
    """
    return float(np.percentile(timing.samples_ms, percent))
