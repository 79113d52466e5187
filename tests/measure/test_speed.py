from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from trimtab.errors import RuntimeFailed
from trimtab.measure.speed import Timing, block_spread, interleave, latency, percentile, tails, throughput


def recorder(log: list[str], name: str, value: float) -> Callable[[int], list[float]]:
    def timer(count: int) -> list[float]:
        log.append(name)
        return [value] * count

    return timer


def test_order_rotates_and_warm_up_comes_first() -> None:
    log: list[str] = []
    interleave({name: recorder(log, name, 1.0) for name in "ABC"}, rounds=3, block=2, warmup=5)
    assert "".join(log) == "ABC" + "ABC" + "BCA" + "CAB"


def test_every_sample_is_kept_and_warm_up_is_not() -> None:
    counter = itertools.count(1.0)
    timing = interleave({"a": lambda k: [next(counter) for _ in range(k)]}, rounds=2, block=3, warmup=4, extra=0)["a"]
    assert timing.samples_ms == (5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
    assert timing.block_medians == (6.0, 9.0)


def test_calm_machine_gets_no_extra_rounds() -> None:
    timing = interleave({"a": lambda k: [1.0] * k}, rounds=4, block=2)["a"]
    assert (timing.disturbed, timing.extra_rounds, len(timing.block_medians)) == (False, 0, 4)


def test_passing_disturbance_is_waited_out_and_said() -> None:
    levels = itertools.chain([3.0, 1.0, 3.0, 1.0], itertools.repeat(1.0))
    timings = interleave(
        {"a": lambda k: [next(levels)] * k, "b": lambda k: [1.0] * k}, rounds=4, block=2, warmup=0, extra=20
    )
    assert not timings["a"].disturbed
    assert timings["a"].extra_rounds == timings["b"].extra_rounds > 0
    assert len(timings["a"].block_medians) == len(timings["b"].block_medians) == 4 + timings["a"].extra_rounds
    assert timings["a"].block_medians[:2] == (3.0, 1.0), "disturbed blocks are kept too"


def test_lasting_disturbance_ends_and_names_who_was_hit() -> None:
    levels = itertools.cycle([1.0, 3.0])
    timings = interleave(
        {"a": lambda k: [next(levels)] * k, "b": lambda k: [1.0] * k}, rounds=4, block=2, warmup=0, extra=3
    )
    assert timings["a"].disturbed
    assert not timings["b"].disturbed
    assert timings["a"].extra_rounds == 3
    assert timings["a"].spread == block_spread(timings["a"].block_medians) > 0.15


@pytest.mark.parametrize(("ms", "most", "taken"), [(1.0, 20, 20), (200.0, 20, 10), (900.0, 20, 5), (900.0, 3, 3)])
def test_slow_inferences_come_in_shorter_blocks_for_all(ms: float, most: int, taken: int) -> None:
    timers = {"slow": lambda k: [ms] * k, "fast": lambda k: [0.5] * k}
    timings = interleave(timers, rounds=3, block=most)
    assert [len(timing.samples_ms) for timing in timings.values()] == [3 * taken, 3 * taken]


def test_report_is_told_each_block() -> None:
    told: list[tuple[int, int, str]] = []
    interleave(
        {"a": lambda k: [1.0] * k, "b": lambda k: [1.0] * k},
        rounds=2,
        block=1,
        report=lambda done, total, text: told.append((done, total, text)),
    )
    assert told == [(0, 2, "a"), (0, 2, "b"), (1, 2, "b"), (1, 2, "a")]


def test_a_timer_that_loses_samples_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="returned 1 latencies for 5"):
        interleave({"a": lambda k: [1.0]}, rounds=1, block=5, warmup=0)


def test_latency_is_the_median_with_the_interval_of_the_blocks() -> None:
    timing = Timing((1.0, 2.0, 3.0, 9.0, 9.0), (2.0, 4.0))
    measured = latency(timing)
    assert (measured.quantity, measured.unit, measured.value, measured.n) == ("latency_ms", "ms", 3.0, 5)
    assert (measured.low, measured.high) == (2.0, 4.0)
    assert percentile(timing, 100) == 9.0


def test_interval_always_holds_the_value() -> None:
    measured = latency(Timing((1.0, 1.0, 1.0, 8.0, 8.0), (3.0, 3.0)))
    assert measured.low <= measured.value <= measured.high


def test_tails_have_their_own_intervals() -> None:
    samples = tuple(float(ms) for ms in range(1, 1001))
    p95, p99 = tails(Timing(samples, (500.0,)))
    assert (p95.quantity, p99.quantity) == ("latency_p95_ms", "latency_p99_ms")
    assert p95.low < p95.value < p95.high < p99.value < p99.high <= 1000
    few = tails(Timing((1.0, 2.0, 9.0), (2.0,)))[1]
    assert few.low <= few.value <= few.high == 9.0


def test_throughput_counts_all_time_not_the_median() -> None:
    measured = throughput(Timing((1.0, 1.0, 1.0, 7.0), (1.0, 4.0)), batch_size=10)
    assert measured.value == pytest.approx(4000.0)
    assert (measured.low, measured.high) == (2500.0, 10_000.0)


def test_a_block_in_which_the_clock_went_back_is_timed_again_and_counted() -> None:
    blocks = iter([[1.0, -5.0], [1.0, 0.0], [2.0, 2.0], [3.0, 3.0]])
    timing = interleave({"a": lambda _: next(blocks)}, rounds=2, block=2, warmup=0, extra=0)["a"]
    assert (timing.samples_ms, timing.jumps) == ((2.0, 2.0, 3.0, 3.0), 2)
    with pytest.raises(RuntimeFailed, match=r"clock went back while a was timed, in 4 blocks .* -1 ms"):
        interleave({"a": lambda k: [-1.0] * k}, rounds=1, block=2, warmup=0)


def test_a_leap_of_the_clock_is_kept_and_told() -> None:
    samples = iter([1.0] * 9 + [60_000.0])
    timing = interleave({"a": lambda k: [next(samples) for _ in range(k)]}, rounds=1, block=10, warmup=0, extra=0)["a"]
    assert (timing.leaps, max(timing.samples_ms)) == (1, 60_000.0)
    assert interleave({"a": lambda k: [900.0] * k}, rounds=1, block=4)["a"].leaps == 0
