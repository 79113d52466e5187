"""What inference costs, from a price that the user states."""

from __future__ import annotations


def per_million(latency_ms: float, *, price_per_hour: float, batch_size: int = 1, utilisation: float = 1.0) -> float:
    """The price of a million samples, in the currency of `price_per_hour`.

    price = price_per_hour / 3600 s x latency / batch_size x 1e6 / utilisation

    Args:
        latency_ms: of one inference of `batch_size` samples.
        price_per_hour: of what one inference at a time keeps busy: a machine, or its share.
        batch_size: samples in an inference.
        utilisation: the share of the paid time in which it is busy, above 0 and at most 1.

    >>> round(per_million(3.6, price_per_hour=1.0), 6)
    1.0
    """
    assert 0 < utilisation <= 1, f"a share of the time: {utilisation}"
    return price_per_hour / 3600 * (latency_ms / 1000) / batch_size * 1e6 / utilisation
