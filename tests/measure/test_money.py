from __future__ import annotations

import pytest

from trimtab.measure.money import per_million


def test_a_million_samples_cost_their_time() -> None:
    hour_ms = 3_600_000.0
    assert per_million(hour_ms, price_per_hour=0.5, batch_size=1_000_000) == pytest.approx(0.5)
    assert per_million(2.0, price_per_hour=0.36, batch_size=4) == pytest.approx(0.05)
    assert per_million(2.0, price_per_hour=0.36, batch_size=4, utilisation=0.25) == pytest.approx(0.2)


def test_a_share_of_the_time_is_a_share() -> None:
    with pytest.raises(AssertionError, match="a share of the time"):
        per_million(1.0, price_per_hour=1.0, utilisation=1.5)
