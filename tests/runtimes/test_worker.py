"""The protocol: messages survive the pipe, and stdout carries nothing else."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trimtab.runtimes.worker import in_batches, latencies_ms, peak_bytes, receive, send

DTYPES = st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.int32])


@given(
    arrays=st.lists(hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0)).map(lambda x: x.T), max_size=3).map(
        tuple
    )
)
def test_messages_and_arrays_survive_the_pipe(arrays: tuple[np.ndarray, ...]) -> None:
    pipe = io.BytesIO()
    send(pipe, {"do": "run", "n": 3}, arrays)
    send(pipe, {"do": "quit"})
    pipe.seek(0)
    received = receive(pipe)
    assert received is not None
    message, got = received
    assert message == {"do": "run", "n": 3}
    assert len(got) == len(arrays)
    for sent, x in zip(arrays, got, strict=True):
        assert (x.dtype, x.shape) == (sent.dtype, sent.shape)
        assert np.array_equal(x, sent, equal_nan=x.dtype.kind == "f")
        assert x.flags.writeable
    assert receive(pipe) == ({"do": "quit"}, ())
    assert receive(pipe) is None


@pytest.mark.parametrize("cut", [3, -3])
def test_a_message_that_is_cut_off_is_an_end(cut: int) -> None:
    pipe = io.BytesIO()
    send(pipe, {"do": "run"}, (np.arange(5),))
    assert receive(io.BytesIO(pipe.getvalue()[:cut])) is None


def test_batches_cover_all_samples_in_order() -> None:
    sizes = []

    def call(inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        sizes.append(len(inputs[0]))
        return inputs[0] + inputs[1]

    x = np.arange(7.0)
    assert np.array_equal(in_batches(call, (x, x), 3), 2 * x)
    assert sizes == [3, 3, 1]


def test_each_call_is_timed_once_and_alone() -> None:
    calls = []
    times = latencies_ms(lambda inputs: calls.append(inputs) or inputs[0], (np.zeros(1),), 5)
    assert len(times) == len(calls) == 5
    assert all(ms > 0 for ms in times)


def test_peak_memory_only_grows() -> None:
    before = peak_bytes()
    block = np.ones(40_000_000, np.uint8)
    assert peak_bytes() >= max(before, block.nbytes)


NOISY = """
import os
from dataclasses import dataclass
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.worker import main

@dataclass(frozen=True)
class Noisy:
    def load(self, folder, *, precision, threads, exact):
        print("from Python", flush=True)
        os.write(1, b"from native code\\n")
        return lambda inputs: inputs[0]

RUNTIMES["noisy"] = Noisy()
main()
"""


def test_what_libraries_print_stays_out_of_the_protocol(tmp_path: Path) -> None:
    orders = io.BytesIO()
    settings = {"folder": str(tmp_path), "precision": "fp32", "threads": 1, "exact": False}
    send(orders, {"runtime": "noisy"} | settings)
    send(orders, {"do": "run", "batch_size": 2}, (np.arange(3.0),))
    send(orders, {"do": "quit"})
    child = subprocess.Popen(
        [sys.executable, "-c", NOISY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    with child:
        child.stdin.write(orders.getvalue())
        child.stdin.flush()
        started, answered = receive(child.stdout), receive(child.stdout)
        assert child.wait(30) == 0
        said = child.stderr.read()
    assert started is not None
    assert started[0]["loaded_s"] >= 0
    assert answered is not None
    assert np.array_equal(answered[1][0], np.arange(3.0))
    assert said == b"from Python\nfrom native code\n"
