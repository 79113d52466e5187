"""What a graph takes and what flows along its edges: input specs, example inputs, shapes of every node.

The batch dim (dim 0 of every input) is symbolic; all other dims are numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext


@dataclass(frozen=True)
class InputSpec:
    """One input: its name, its shape without the batch dim, and its dtype as in `torch.<dtype>`.

    high: integers from 0 to high - 1 are known to be good values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    high: int = 1


def input_specs(graph: GraphModule) -> tuple[InputSpec, ...]:
    """What the graph takes, in order."""
    return tuple(node.meta["spec"] for node in graph.graph.nodes if node.op == "placeholder")


def example_inputs(graph: GraphModule, *, batch_size: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs that fit the graph: normal floats, integers known to be good; each [batch_size, ...]."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(_example(spec, batch_size, generator) for spec in input_specs(graph))


def _example(spec: InputSpec, batch_size: int, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, spec.dtype)
    shape = (batch_size, *spec.shape)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, spec.high, shape, generator=generator).to(dtype)


def refresh_shapes_(graph: GraphModule) -> GraphModule:
    """Set `meta["val"]` of every node anew from the input specs, with a symbolic batch; nothing is computed."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inputs: list[Tensor] = []
    for example in example_inputs(graph, batch_size=3):
        dims = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (example.ndim - 1)
        context: StatelessSymbolicContext = StatelessSymbolicContext(dynamic_sizes=dims)
        inputs.append(mode.from_tensor(example, symbolic_context=context))
    # The Python dispatcher knows forms of some ops (recurrent layers) that take a symbolic batch.
    with torch.no_grad(), enable_python_dispatcher(), mode:
        _Shapes(graph, mode).run(*_one_batch(inputs))
    return graph


def _one_batch(inputs: list[Tensor]) -> list[Tensor]:
    # All inputs share one batch symbol: state it, so that what joins them need not guess.
    for other in inputs[1:]:
        torch._check(inputs[0].shape[0] == other.shape[0])
    return inputs


class _Shapes(Interpreter):
    def __init__(self, graph: GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(graph)
        self.mode = mode

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return self.mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        n.meta["val"] = value
        return value
