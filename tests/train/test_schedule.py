from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.train.schedule import warmup_cosine


@given(st.integers(1, 3000), st.floats(0, 0.99))
def test_every_step_learns_and_one_learns_most(total, warmup):
    factors = [warmup_cosine(step, total, warmup=warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1
    peak = factors.index(1)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_warmup_is_a_line_and_decay_half_a_cosine():
    factors = [warmup_cosine(step, 14, warmup=4 / 14) for step in range(14)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1]
    assert factors[9] == pytest.approx(0.5)
