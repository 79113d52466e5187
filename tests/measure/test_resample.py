from __future__ import annotations

import numpy as np
import pytest

from trimtab.measure.resample import resampled_means


@pytest.mark.parametrize("distinct", [True, False])
def test_means_of_resamples_have_the_spread_of_the_mean(distinct: bool) -> None:
    rng = np.random.default_rng(0)
    rows = rng.exponential(1, (200, 2)) if distinct else rng.integers(3, size=(200, 2)).astype(float)
    means = resampled_means(rows, seed=1, num_resamples=4000)
    assert means.shape == (4000, 2)
    assert means.mean(0) == pytest.approx(rows.mean(0), abs=4 * rows.std() / np.sqrt(200 * 4000))
    expected = np.cov(rows.T, bias=True) / 200
    assert np.cov(means.T) == pytest.approx(expected, abs=0.1 * expected.max())


def test_rows_are_drawn_whole_and_the_seed_repeats() -> None:
    values = np.random.default_rng(0).normal(0, 1, 50)
    means = resampled_means(np.stack([values, 2 * values], 1), seed=3, num_resamples=9)
    assert means[:, 1] == pytest.approx(2 * means[:, 0])
    assert np.array_equal(means, resampled_means(np.stack([values, 2 * values], 1), seed=3, num_resamples=9))


def test_chunks_do_not_change_what_is_drawn_from() -> None:
    rows = np.arange(3000.0)[:, None]
    means = resampled_means(rows, seed=0, num_resamples=1500)
    assert means.shape == (1500, 1)
    assert means.std() == pytest.approx(rows.std() / np.sqrt(3000), rel=0.1)
