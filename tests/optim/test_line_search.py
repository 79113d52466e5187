from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.optim.line_search import C1, armijo, strong_wolfe

FUNCTIONS = {
    "parabola": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
    "quartic": (lambda t: (t - 1) ** 4, lambda t: 4 * (t - 1) ** 3),
    "waves": (lambda t: 0.1 * t * t - math.sin(t), lambda t: 0.2 * t - math.cos(t)),
    "wall": (lambda t: -math.log1p(t) + t / 50, lambda t: -1 / (1 + t) + 1 / 50),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@given(first=st.floats(1e-4, 1e4), c2=st.sampled_from([0.1, 0.9]))
def test_what_is_found_meets_its_conditions(name, first, c2):
    value, slope = FUNCTIONS[name]
    phi = lambda t: (value(t), slope(t))  # noqa: E731
    f0, g0 = phi(0.0)
    t = armijo(phi, f0, g0, first)
    assert 0 < t <= first
    assert value(t) <= f0 + C1 * t * g0
    t = strong_wolfe(phi, f0, g0, first, c2=c2)
    assert value(t) <= f0 + C1 * t * g0
    assert abs(slope(t)) <= c2 * abs(g0)


def test_no_decrease_is_told_by_zero():
    uphill = lambda t: (1.0 + t, 1.0)  # noqa: E731
    assert armijo(uphill, 1.0, -1.0, 1.0) == 0
    assert strong_wolfe(uphill, 1.0, -1.0, 1.0) == 0


def test_values_that_are_not_finite_are_walked_back_from():
    phi = lambda t: (math.nan, math.nan) if t > 0.3 else ((t - 0.2) ** 2, 2 * (t - 0.2))  # noqa: E731
    assert 0 < armijo(phi, 0.04, -0.4, 100.0) <= 0.3
    assert strong_wolfe(phi, 0.04, -0.4, 100.0, c2=0.1) == pytest.approx(0.2, abs=0.03)
