"""One small graph alone in a runtime."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab.graph.capture import capture
from trimtab.runtimes.alone import LEAST_MS, alone_ms, described, least_mean


def test_a_large_layer_takes_longer_than_a_small_one() -> None:
    small, large = (capture(nn.Linear(size, size).eval(), (torch.randn(2, size),)) for size in (8, 2048))
    times = [alone_ms(graph, "onnxruntime", precision="fp32", threads=1) for graph in (small, large)]
    assert LEAST_MS <= times[0] < times[1]


def test_a_batch_takes_longer_than_a_sample() -> None:
    graph = capture(nn.Linear(1024, 1024).eval(), (torch.randn(2, 1024),))
    one, many = (alone_ms(graph, "onnxruntime", precision="fp32", threads=1, batch_size=size) for size in (1, 256))
    assert one < many


def test_the_least_of_the_blocks_counts_and_not_the_first_call() -> None:
    blocks = iter([5.0, 3.0, 2.0, 9.0, 3.0, 3.0, 3.0])
    asked = []

    def timer(calls: int) -> list[float]:
        asked.append(calls)
        return [1.0] * calls if len(asked) == 1 else [next(blocks)] * calls

    assert least_mean(timer) == 2.0
    assert asked == [5, *[3] * 7]


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
def test_version_precision_and_threads_decide_the_times(runtime: str) -> None:
    assert described(runtime, "fp32", 1) != described(runtime, "fp32", 2) != described(runtime, "bf16", 2)
    assert described(runtime, "fp32", 1).split()[1][0].isdigit(), "a version"
