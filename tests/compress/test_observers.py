"""The ranges that observers choose, on values whose best range is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.reference.entropy_range import entropy_range
from trimtab.compress.observers import LEVELS, OBSERVERS, Observer, affine, entropy


def rounded(values: Tensor, low: float, high: float) -> Tensor:
    scale, zero = affine(low, high)
    return ((values / scale).round() + zero).clamp(0, LEVELS).sub(zero) * scale


@given(low=st.floats(-100, -0.01), high=st.floats(0.01, 100))
def test_zero_is_a_level_and_both_ends_are_reached(low: float, high: float) -> None:
    scale, zero = affine(low, high)
    assert 0 <= zero <= LEVELS
    assert rounded(torch.zeros(1), low, high).item() == 0
    ends = torch.tensor([low, high])
    assert (rounded(ends, low, high) - ends).abs().max().item() <= scale


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("kind", ["normal", "one-sided", "uniform", "few"])
def test_a_range_lies_within_the_extremes_and_holds_zero(observer: Observer, kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, generator=draw)
    values = {"normal": normal, "one-sided": normal.relu(), "uniform": torch.rand(999, generator=draw) - 2}.get(
        kind, torch.tensor([0.0, 0.5, 3.0])
    )
    low, high = OBSERVERS[observer](values)
    assert min(0, values.min().item()) - 1e-6 <= low <= 0 <= high <= max(0, values.max().item()) + 1e-6
    assert low < high


def test_a_far_outlier_is_clipped_by_a_percentile() -> None:
    values = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
    values[0] = 30.0
    highs = {name: OBSERVERS[name](values)[1] for name in OBSERVERS}
    assert highs["minmax"] == 30
    assert highs["percentile"] < 5
    errors = {name: (rounded(values, *OBSERVERS[name](values)) - values).square().mean().item() for name in OBSERVERS}
    assert errors["mse"] == min(errors.values())


@pytest.mark.parametrize("kind", ["normal", "long-tailed", "one-sided", "negative"])
def test_entropy_agrees_with_its_reference(kind: str) -> None:
    normal = torch.randn(3_000, generator=torch.Generator().manual_seed(0))
    values = {"normal": normal, "long-tailed": normal**5, "one-sided": normal.pow(3).relu()}.get(kind, -normal.abs())
    assert entropy(values) == pytest.approx(entropy_range(values.tolist()), rel=1e-6)


def test_entropy_clips_a_long_tail_and_zeros_do_not_count() -> None:
    values = torch.randn(30_000, generator=torch.Generator().manual_seed(0)) ** 3
    low, high = entropy(values)
    assert 0.1 * values.max() < high < 0.5 * values.max()
    assert entropy(torch.cat([values, torch.zeros(300_000)])) == (low, high)


def test_uniform_values_are_not_clipped() -> None:
    values = torch.rand(30_000, generator=torch.Generator().manual_seed(0))
    for name, observe in OBSERVERS.items():
        assert observe(values)[1] > 0.95 * values.max().item(), name
