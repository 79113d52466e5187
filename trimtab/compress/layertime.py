"""Milliseconds of each contraction at narrower widths: measured, of one sample, in eager PyTorch or in a runtime.

Each different shape is timed alone at up to five widths, as they are asked for, all its groups narrowed alike, and
read off between them by its multiply-accumulates. What lies between contractions is not counted, and a runtime that
fuses is faster: these times rank layers and widths; what a model takes is measured in its runtime. Cost: some 10 ms for
each shape and width in eager PyTorch, some seconds in a runtime, whose file has to be written first.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from trimtab.core import Precision
from trimtab.errors import PlanError, RuntimeFailed
from trimtab.graph.calls import arguments, position
from trimtab.graph.cost import CONVOLUTIONS, NOTHING, Contraction, Gone, Sizes, contractions, for_one_sample
from trimtab.graph.shapes import InputSpec, refresh_shapes_
from trimtab.runtimes.alone import alone_ms
from trimtab.runtimes.base import num_threads

SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
BLOCKS = 5
BLOCK_SECONDS = 0.0015


@dataclass(frozen=True)
class Layer:
    """One operation at one size: `values` are what its sources give, of one sample. key: names operation and size."""

    key: str
    node: Node
    values: dict[Node, Any]

    def filled(self, put: dict[Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments, with `put` for its sources, and as many groups as its width now asks for."""
        node = self.node
        args = torch.fx.map_arg(node.args, put.__getitem__)
        kwargs = torch.fx.map_arg(node.kwargs, put.__getitem__)
        if node.target in CONVOLUTIONS and "transpose" not in str(node.target):
            a = arguments(node)
            x, weight = self.values[a["input"]], self.values[a["weight"]]
            groups = x.shape[x.ndim - weight.ndim + 1] // weight.shape[1]
            at = position(node, "groups")
            args = (*args[:at], groups, *args[at + 1 :]) if at < len(args) else args
        return args, kwargs

    def graph(self) -> GraphModule:
        """A graph of this operation alone; what does not depend on the sample is a weight.

        Raises:
            PlanError: a source holds the samples in another dim than the first.
        """
        root, graph, put = nn.Module(), Graph(), dict(self.values)
        for source, value in self.values.items():
            if isinstance(value, Tensor) and self._by_sample(source):
                put[source] = graph.placeholder(source.name)
                spec = InputSpec(source.name, tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
                put[source].meta["spec"] = spec
        for source, value in self.values.items():
            if isinstance(value, Tensor) and put[source] is value:
                root.register_buffer(source.name, value)
                put[source] = graph.create_node("get_attr", source.name)
        args, kwargs = self.filled(put)
        graph.output(graph.create_node("call_function", self.node.target, args, kwargs))  # type: ignore[arg-type]
        return refresh_shapes_(GraphModule(root, graph, class_name="Layer").eval())

    def batch_size(self) -> int:
        """How many rows one sample is here: more than one where other dims were folded into the first.

        Raises:
            PlanError: it differs between the sources.
        """
        rows = {
            len(value) for source, value in self.values.items() if isinstance(value, Tensor) and self._by_sample(source)
        }
        if len(rows) > 1:
            raise PlanError(f"One sample is {' and '.join(map(str, sorted(rows)))} rows: it is not served alone.")
        return rows.pop() if rows else 1

    def _by_sample(self, source: Node) -> bool:
        held = [isinstance(size, torch.SymInt) for size in source.meta["val"].shape]
        if any(held[1:]):
            raise PlanError(f"{source.name} holds the samples in another dim than the first: it is not served alone.")
        return any(held)


def eager_ms(layer: Layer) -> float:
    """Milliseconds in eager PyTorch, one thread."""
    return _milliseconds(layer.node.target, *layer.filled(layer.values))


def in_runtime(
    runtime: str, *, precision: Precision, threads: int, kept: Callable[[str, Callable[[], float]], float]
) -> Callable[[Layer], float]:
    """A clock for `LayerTimes` that times in `runtime`; a layer that it does not take alone counts as in eager PyTorch.

    kept: gives the time of a key, from the measurement if it is new; `search.staircase.Staircase.ms`.
    """

    def measure(layer: Layer) -> float:
        try:
            graph, size = layer.graph(), layer.batch_size()
            return alone_ms(graph, runtime, precision=precision, threads=threads, batch_size=size)
        except (PlanError, RuntimeFailed):
            return eager_ms(layer)

    return lambda layer: kept(layer.key, lambda: measure(layer))


class Point(NamedTuple):
    """A contraction at one width: its multiply-accumulates, the share of its channels, its time."""

    macs: int
    share: float
    ms: float


class LayerTimes:
    """The time of every contraction of a graph as a function of the channels that are gone; `clock` times one."""

    def __init__(self, sizes: Sizes, clock: Callable[[Layer], float] = eager_ms) -> None:
        self._sizes = sizes
        self._clock = clock
        self._nodes = {node.name: node for node in sizes.graph.graph.nodes}
        self._groups = {group.name: group.size for group in sizes.groups}
        self._measured: dict[str, float] = {}
        self._grids: dict[str, dict[int, dict[str, int]]] = {}
        self._timed: dict[tuple[str, int], float] = {}
        self.contractions = contractions(sizes)

    def ms(self, gone: Gone = NOTHING) -> float:
        """Milliseconds of all contractions."""
        return sum(self.of(one, gone) for one in self.contractions)

    def of(self, one: Contraction, gone: Gone = NOTHING) -> float:
        """Milliseconds of one contraction."""
        return self.at(one, one.macs(gone))

    def at(self, one: Contraction, macs: int) -> float:
        """Milliseconds of one contraction narrowed to `macs`; the widths about it are measured."""
        grid = self._grid(one)
        sizes = list(grid)
        place = bisect_left(sizes, macs)
        near = sizes[place : place + 1] if macs in grid else sizes[max(0, place - 1) : place + 1]
        return float(np.interp(macs, near, [self._once(one, size) for size in near]))

    def widths(self, one: Contraction) -> list[tuple[int, float]]:
        """Where one contraction is measured, from narrow to wide: its macs, and the share of its channels."""
        shares = {
            macs: min((1 - num / self._groups[name] for name, num in gone.items()), default=1.0)
            for macs, gone in self._grid(one).items()
        }
        return list(shares.items())

    def _once(self, one: Contraction, macs: int) -> float:
        if (one.node, macs) not in self._timed:
            self._timed[one.node, macs] = self._time(self._nodes[one.node], self._grid(one)[macs])
        return self._timed[one.node, macs]

    def _grid(self, one: Contraction) -> dict[int, dict[str, int]]:
        """The widths that are measured, from narrow to wide, by their multiply-accumulates."""
        if one.node not in self._grids:
            widths = [self._narrowed(one, share) for share in (SHARES if one.groups() else SHARES[:1])]
            self._grids[one.node] = {one.macs(width): width for width in reversed(widths)}
        return self._grids[one.node]

    def _narrowed(self, one: Contraction, share: float) -> dict[str, int]:
        return {name: self._groups[name] - max(1, round(share * self._groups[name])) for name in one.groups()}

    def _time(self, node: Node, gone: Gone) -> float:
        values = {source: self._value(source, gone) for source in node.all_input_nodes}
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in values.values()]
        rest = [value for value in arguments(node).values() if not isinstance(value, Node | list | tuple)]
        key = f"{node.target} {shapes} {[v for v in rest if not isinstance(v, Tensor)]}"
        if key not in self._measured:
            self._measured[key] = self._clock(Layer(key, node, values))
        return self._measured[key]

    def _value(self, source: Node, gone: Gone) -> Any:
        value = source.meta.get("val")
        if not isinstance(value, Tensor):
            return for_one_sample(value) if isinstance(value, int | torch.SymInt) else value
        shape = [width.after(gone) for width in self._sizes.of(source)]
        return (
            torch.randn(shape).to(value.dtype) if value.is_floating_point() else torch.zeros(shape, dtype=value.dtype)
        )


def _milliseconds(target: Any, args: Any, kwargs: Any) -> float:
    """The least mean of a few blocks: what disturbs only adds."""
    with num_threads(1), torch.inference_mode():
        target(*args, **kwargs)
        means = []
        for _ in range(BLOCKS):
            began, calls = time.perf_counter(), 0
            while (spent := time.perf_counter() - began) < BLOCK_SECONDS or not calls:
                target(*args, **kwargs)
                calls += 1
            means.append(spent / calls)
    return 1e3 * min(means)
