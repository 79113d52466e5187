"""The entropy coder: what was put in comes out, in about as many bits as theory asks for, and damage is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import ArtifactError
from trimtab.graph.entropy import SCALE_BITS, decode, encode, scaled_counts


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=400), st.integers(1, 300))
def test_what_goes_in_comes_out(symbols: list[int], more: int) -> None:
    given_ = np.array(symbols * more)[:30_000]
    counts = scaled_counts(given_, 41)
    assert int(counts.sum(dtype=np.int64)) == 1 << SCALE_BITS
    assert counts.min() >= 1
    assert np.array_equal(decode(encode(given_, counts), counts, len(given_)), given_)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_it_takes_hardly_more_than_the_entropy(share: float) -> None:
    symbols = (np.random.default_rng(0).random(300_000) > share).astype(np.int64)
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) * len(symbols) / 8
    size = len(encode(symbols, scaled_counts(symbols, 2)))
    assert entropy * 0.98 < size < entropy * 1.02 + 4 * 36


def test_nothing_and_one_symbol_alone() -> None:
    for symbols in (np.zeros(0, np.int64), np.full(20_000, 2)):
        counts = scaled_counts(symbols, 3)
        assert np.array_equal(decode(encode(symbols, counts), counts, len(symbols)), symbols)


def test_damage_is_found() -> None:
    symbols = np.random.default_rng(0).integers(0, 5, 5000)
    counts = scaled_counts(symbols, 5)
    data = encode(symbols, counts)
    for wrong in (data[:-2], data[:3], data + b"\0\0", data[:200] + b"\xff\xff" + data[202:]):
        with pytest.raises(ArtifactError, match="damaged"):
            decode(wrong, counts, len(symbols))
    with pytest.raises(ArtifactError, match="damaged"):
        decode(data, counts[:4], len(symbols))
