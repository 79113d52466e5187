"""A call that takes one batch size only, made to take any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.nets import net
from trimtab.graph.capture import capture
from trimtab.runtimes.base import num_threads
from trimtab.runtimes.inductor import Inductor, in_batches_of


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


def test_weights_are_packed_for_the_threads_that_will_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    threads = torch.get_num_threads() + 1
    seen: list[int] = []
    monkeypatch.setattr("shutil.which", lambda name: name)  # nothing is compiled here

    def compile_and_package(program: Any, **settings: Any) -> None:
        seen.append(torch.get_num_threads())

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compile_and_package)
    module, x = net("mlp")
    Inductor().export(capture(module, (x,)), tmp_path, precision="fp32", batch_size=1, threads=threads)
    assert seen == [threads]
