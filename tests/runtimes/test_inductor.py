"""A call that takes one batch size only, made to take any."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.runtimes.inductor import in_batches_of, num_threads


@given(batch_size=st.integers(1, 7), size=st.integers(1, 20))
def test_any_number_of_samples_goes_through_in_order(batch_size: int, size: int) -> None:
    seen = []

    def call(inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        a, b = inputs
        seen.append((len(a), len(b)))
        return a * 10 + b[:, 0]

    a, b = np.arange(size), np.arange(3 * size).reshape(size, 3)
    answers = in_batches_of(batch_size, call)((a, b))
    assert np.array_equal(answers, a * 10 + b[:, 0])
    assert set(seen) == {(batch_size, batch_size)}


def test_threads_are_lent_and_given_back() -> None:
    before = torch.get_num_threads()
    with num_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), num_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
