"""Milliseconds of each contraction at narrower widths: measured, in eager PyTorch, one thread, one sample.

Each different shape is timed alone at five widths, all its groups narrowed alike, and read off between them by its
multiply-accumulates. What lies between contractions is not counted, and a runtime that fuses is faster: these times
rank layers and widths; what a model takes is measured in its runtime. Cost: some 10 ms for each shape and width.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from trimtab.graph.calls import arguments, position
from trimtab.graph.cost import CONVOLUTIONS, NOTHING, Contraction, Gone, Sizes, contractions, for_one_sample

SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
BLOCKS = 5
BLOCK_SECONDS = 0.0015


class LayerTimes:
    """The time of every contraction of a graph as a function of the channels that are gone."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._nodes = {node.name: node for node in sizes.graph.graph.nodes}
        self._groups = {group.name: group.size for group in sizes.groups}
        self._measured: dict[str, float] = {}
        self._tables: dict[str, tuple[list[int], list[float]]] = {}
        self.contractions = contractions(sizes)

    def ms(self, gone: Gone = NOTHING) -> float:
        """Milliseconds of all contractions."""
        return sum(self.of(one, gone) for one in self.contractions)

    def of(self, one: Contraction, gone: Gone = NOTHING) -> float:
        """Milliseconds of one contraction."""
        if one.node not in self._tables:
            widths = [self._narrowed(one, share) for share in (SHARES if one.groups() else SHARES[:1])]
            # From narrow to wide, as reading between them needs.
            points = {one.macs(width): self._time(self._nodes[one.node], width) for width in reversed(widths)}
            self._tables[one.node] = list(points), list(points.values())
        macs, times = self._tables[one.node]
        return float(np.interp(one.macs(gone), macs, times))

    def _narrowed(self, one: Contraction, share: float) -> dict[str, int]:
        return {name: self._groups[name] - max(1, round(share * self._groups[name])) for name in one.groups()}

    def _time(self, node: Node, gone: Gone) -> float:
        made = {source: self._value(source, gone) for source in node.all_input_nodes}
        args, kwargs = _filled(node, made)
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else value for value in made.values()]
        rest = [value for value in arguments(node).values() if not isinstance(value, Node | list | tuple)]
        key = f"{node.target} {shapes} {[v for v in rest if not isinstance(v, Tensor)]}"
        if key not in self._measured:
            self._measured[key] = _milliseconds(node.target, args, kwargs)
        return self._measured[key]

    def _value(self, source: Node, gone: Gone) -> Any:
        value = source.meta.get("val")
        if not isinstance(value, Tensor):
            return for_one_sample(value) if isinstance(value, int | torch.SymInt) else value
        shape = [width.after(gone) for width in self._sizes.of(source)]
        return (
            torch.randn(shape).to(value.dtype) if value.is_floating_point() else torch.zeros(shape, dtype=value.dtype)
        )


def _filled(node: Node, made: dict[Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = torch.fx.map_arg(node.args, made.__getitem__)
    kwargs = torch.fx.map_arg(node.kwargs, made.__getitem__)
    if node.target in CONVOLUTIONS and "transpose" not in str(node.target):
        a = arguments(node)
        x, weight = made[a["input"]], made[a["weight"]]
        groups = x.shape[x.ndim - weight.ndim + 1] // weight.shape[1]
        at = position(node, "groups")
        args = (*args[:at], groups, *args[at + 1 :]) if at < len(args) else args
    return args, kwargs


def _milliseconds(target: Any, args: Any, kwargs: Any) -> float:
    """The least mean of a few blocks: what disturbs only adds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            target(*args, **kwargs)
            means = []
            for _ in range(BLOCKS):
                began, calls = time.perf_counter(), 0
                while (spent := time.perf_counter() - began) < BLOCK_SECONDS or not calls:
                    target(*args, **kwargs)
                    calls += 1
                means.append(spent / calls)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * min(means)
