"""Where a model's time and bytes are: each operation's own time, beside what this machine could do at best.

The roofline model (Williams, Waterman and Patterson 2009): an operation takes at least its multiplications over the
peak rate, and its bytes over the bandwidth; whichever is more says what bounds it. Peak and bandwidth are measured
here, with the target's threads, by one large matrix product and one large copy. What differs from the paper: bytes are
those of the operands, as if no cache held them. Cost: some runs of the model, operation by operation, in eager PyTorch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from trimtab.graph.cost import for_one_sample, macs_of_nodes
from trimtab.runtimes.base import num_threads

REPEATS, LEAST_SECONDS, MOST_SECONDS = 5, 0.5, 6.0
PEAK_SECONDS = 0.3
MATRIX, COPIED = 768, 1 << 24


@dataclass(frozen=True)
class Peaks:
    """What the machine does at best with some threads: multiply-accumulates and bytes a second, in fp32."""

    macs_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Place:
    """One operation for a batch: its time, multiply-accumulates and bytes; roof_ms is the least time it could take.

    weight_bytes: of the parameters that it reads.
    """

    node: str
    operation: str
    ms: float
    macs: int
    bytes: int
    weight_bytes: int
    roof_ms: float
    bound: Literal["compute", "memory"]


def peaks(*, threads: int) -> Peaks:
    """Measure this machine: the best of a few runs each."""
    a, big = torch.randn(MATRIX, MATRIX), torch.randn(COPIED)
    out, copy = torch.empty(MATRIX, MATRIX), torch.empty(COPIED)
    with num_threads(threads), torch.inference_mode():
        product = _best(lambda: torch.mm(a, a, out=out))
        moved = _best(lambda: copy.copy_(big))
    return Peaks(MATRIX**3 / product, 2 * 4 * COPIED / moved)


def roofline(graph: GraphModule, inputs: tuple[Tensor, ...], machine: Peaks, *, threads: int) -> tuple[Place, ...]:
    """Every operation of `graph` that takes time, in graph order, on one batch of `inputs` [B, ...]."""
    clock = _Clock(graph)
    began = time.perf_counter()
    with num_threads(threads), torch.inference_mode():
        runs = 0
        while runs < 2 or ((runs < REPEATS or _since(began) < LEAST_SECONDS) and _since(began) < MOST_SECONDS):
            clock.run(*(x.clone() for x in inputs))
            runs += 1
    macs, batch = macs_of_nodes(graph), len(inputs[0])
    return tuple(
        _place(node, clock.seconds[node.name], batch * macs.get(node.name, 0), batch, machine)
        for node in graph.graph.nodes
        if node.name in clock.seconds
    )


def _place(node: Node, seconds: float, macs: int, batch: int, machine: Peaks) -> Place:
    weights = sum(_bytes(source, batch) for source in node.all_input_nodes if source.op == "get_attr")
    moved = weights + _bytes(node, batch)
    moved += sum(_bytes(source, batch) for source in node.all_input_nodes if source.op != "get_attr")
    compute, memory = macs / machine.macs_per_s, moved / machine.bytes_per_s
    bound: Literal["compute", "memory"] = "compute" if compute > memory else "memory"
    return Place(
        node.name, str(node.target).removeprefix("aten."), 1e3 * seconds, macs, moved, weights,
        1e3 * max(compute, memory), bound,
    )  # fmt: skip


def _bytes(node: Node, batch: int) -> int:
    values = node.meta.get("val")
    parts: Any = values if isinstance(values, list | tuple) else (values,)
    return sum(_numbers(part, batch) * part.element_size() for part in parts if isinstance(part, Tensor))


def _numbers(tensor: Tensor, batch: int) -> int:
    num = math.prod(for_one_sample(size) for size in tensor.shape)
    return num * batch if any(not isinstance(size, int) for size in tensor.shape) else num


class _Clock(Interpreter):
    """Runs a graph operation by operation; `seconds` holds the least time of each."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.seconds: dict[str, float] = {}

    def run_node(self, n: Node) -> Any:
        began = time.perf_counter()
        result = super().run_node(n)
        if n.op == "call_function":
            self.seconds[n.name] = min(_since(began), self.seconds.get(n.name, math.inf))
        return result


def _since(began: float) -> float:
    return time.perf_counter() - began


def _best(call: Callable[[], Any]) -> float:
    times: list[float] = []
    first = time.perf_counter()
    while len(times) < REPEATS or _since(first) < PEAK_SECONDS:
        began = time.perf_counter()
        call()
        times.append(_since(began))
    return min(times)
