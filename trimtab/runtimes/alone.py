"""One small graph alone in a runtime: written, loaded in a fresh process, timed; what a call itself costs is taken off.

Cost: writing the file and starting the process, some seconds; then some hundred inferences.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch.fx import Graph, GraphModule

from trimtab.core import Precision
from trimtab.graph.shapes import InputSpec, example_inputs, refresh_shapes_
from trimtab.measure.machine import versions
from trimtab.runtimes import find_runtime
from trimtab.runtimes.process import Served

BLOCKS, BLOCK_MS, MOST_CALLS, LEAST_MS = 7, 3.0, 200, 1e-4


def alone_ms(graph: GraphModule, runtime: str, *, precision: Precision, threads: int, batch_size: int = 1) -> float:
    """Milliseconds of one batch of `graph` beyond those of a call that does nothing, at least 0.0001.

    Raises:
        RuntimeFailed: the runtime does not take it.
    """
    own = _ms(graph, runtime, precision, threads, batch_size)
    return max(LEAST_MS, own - _call_ms(runtime, precision, threads))


def described(runtime: str, precision: Precision, threads: int) -> str:
    """What decides the times of a runtime besides the machine: its version, precision, threads.

    >>> described("eager", "fp32", 1).split()[0]
    'eager'
    """
    package = {"onnxruntime": "onnxruntime", "openvino": "openvino"}.get(runtime, "torch")
    return f"{runtime} {versions([package]).get(package, '')} {precision} {threads} threads"


@lru_cache
def _call_ms(runtime: str, precision: Precision, threads: int) -> float:
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["spec"] = InputSpec("x", (1,), "float32")
    graph.output(graph.create_node("call_function", torch.ops.aten.neg.default, (x,)))
    return _ms(refresh_shapes_(GraphModule(torch.nn.Module(), graph).eval()), runtime, precision, threads, 1)


def _ms(graph: GraphModule, runtime: str, precision: Precision, threads: int, batch_size: int) -> float:
    with tempfile.TemporaryDirectory(prefix="layer-") as folder:
        find_runtime(runtime).export(graph, Path(folder), precision=precision, batch_size=batch_size, threads=threads)
        with Served(runtime, Path(folder), precision=precision, threads=threads) as served:
            served.set_example(tuple(x.numpy() for x in example_inputs(graph, batch_size=batch_size)))
            return least_mean(served.time)


def least_mean(timer: Callable[[int], list[float]]) -> float:
    """The least median of a few blocks: what disturbs only adds. timer: k -> the latencies of k inferences in ms."""
    first = min(timer(5))
    calls = max(3, min(MOST_CALLS, int(BLOCK_MS / max(first, 1e-6))))
    return min(sorted(timer(calls))[calls // 2] for _ in range(BLOCKS))
