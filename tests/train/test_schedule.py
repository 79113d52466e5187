from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TaskError
from trimtab.train.schedule import (
    SCHEDULES,
    find_schedule,
    growing_batch,
    growing_size,
    warmup_cosine,
    warmup_polynomial,
    warmup_stable_decay,
)


@pytest.mark.parametrize("name", SCHEDULES)
@given(st.integers(1, 300), st.floats(0, 0.8))
def test_every_step_learns_and_one_learns_most(name, total, warmup):
    factors = [SCHEDULES[name](step, total, warmup=warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == pytest.approx(1)
    factors = [min(factor, max(factors)) for factor in factors]
    factors[factors.index(max(factors))] = 1
    peak = factors.index(1)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_warmup_is_a_line_and_decay_half_a_cosine():
    factors = [warmup_cosine(step, 14, warmup=4 / 14) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1]
    assert factors[9] == pytest.approx(0.5)


def test_the_others_go_as_they_say():
    assert [warmup_polynomial(step, 4, warmup=0, power=2) for step in range(4)] == [1, 0.5625, 0.25, 0.0625]
    stable = [warmup_stable_decay(step, 100, warmup=0.1) for step in range(100)]
    assert stable[9:81] == [1.0] * 72
    longer = [warmup_stable_decay(step, 200, warmup=0.05) for step in range(200)]
    assert longer[:81] == stable[:81]


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 1000), st.sampled_from([1, 8]))
def test_sizes_grow_from_first_to_last(total, first, more, multiple):
    first *= multiple
    last = first + more
    for sizes in (
        [growing_batch(step, total, first=first, last=last) for step in range(total)],
        [growing_size(step, total, first=first, last=last, multiple=multiple) for step in range(total)],
    ):
        assert sizes == sorted(sizes)
        assert first <= sizes[0] <= sizes[-1] <= last
    assert growing_size(total, total, first=first, last=last) == last
    assert growing_batch(10 * total - 1, 10 * total, first=first, last=last) == last or total < 2


def test_a_schedule_that_is_not_there_is_refused():
    with pytest.raises(TaskError, match="There is no schedule 'cosin'; the schedules are constant, cosine"):
        find_schedule("cosin")
