"""Which layers cost a quantized model its answers, and the cheapest choice of those that stay in floating point.

To first order, rounding in layer l moves the outputs f by J d, with d the error of the layer's own outputs and J how f
depends on them. For random e with independent signs, (e' J d)^2 is |J d|^2 on average, and g = J' e comes out of one
backward pass for all layers at once: no layer is tried alone. The same idea with the loss's curvature is HAWQ (Dong et
al. 2019); here the outputs themselves are what has to stay. Layers are kept in the order of error removed per
multiplication, until the quantized model as a whole, measured on `select`, is within the bound. Cost: one run of the
exact and of the quantized model on a few samples; where that is too far off, two backward passes and, for each round
of keeping, another plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from trimtab.compress.calibration import batches
from trimtab.compress.scales import ActivationScale, BiasShift, WeightScale, levels, simulated
from trimtab.core import Split
from trimtab.graph.cost import macs_of_nodes

# By name of a node: what is made of the value that it gives. Of a layer, of its arguments, and its own outputs.
Change = Mapping[str, Callable[[Tensor], Tensor]]
NUM_JUDGED, NUM_PROBED, NUM_DRAWS, BATCH = 64, 16, 2, 8


@dataclass(frozen=True)
class Sensitivity:
    """How far the outputs move if `layer` alone is quantized, as a share of how they vary; a first-order estimate."""

    layer: str
    error: float


def relative_error(graph: GraphModule, other: GraphModule, data: Split) -> float:
    """How far the outputs move, as a share of how they vary: sum |other(x) - graph(x)|^2 / sum |graph(x) - mean|^2."""
    few = data.batch(slice(0, NUM_JUDGED))
    off, spread = 0.0, _Spread()
    with torch.no_grad():
        for batch in batches(few, BATCH):
            # Fresh copies: a graph may write into its inputs.
            want, found = (model(*(x.clone() for x in batch.inputs)).double() for model in (graph, other))
            off += float((found - want).square().sum())
            spread.add_(want)
    return off / spread.total()


class _Spread:
    """The squared distance of outputs [N, ...] from their mean, batch by batch."""

    def __init__(self) -> None:
        self.num, self.squares, self.sums = 0, 0.0, torch.zeros((), dtype=torch.float64)

    def add_(self, outputs: Tensor) -> None:
        self.num += len(outputs)
        self.squares += float(outputs.square().sum())
        self.sums = self.sums + outputs.sum(0)

    def total(self) -> float:
        """The sum; where outputs hardly vary, a millionth of their squares, so that it is never nothing."""
        return max(self.squares - float(self.sums.square().sum()) / self.num, 1e-6 * self.squares, 1e-30)


def sensitivities(
    graph: GraphModule,
    activations: tuple[ActivationScale, ...],
    weights: tuple[WeightScale, ...],
    biases: tuple[BiasShift, ...],
    data: Split,
) -> tuple[Sensitivity, ...]:
    """The share of the outputs' error that each layer causes by itself, the largest first.

    Args:
        graph: in eval mode, not quantized.
        activations: of the values that will be quantized.
        weights: of the layers that are judged.
        biases: what is added to their biases.
        data: samples; a few of them are used.
    """
    sources = {scale.node: scale for scale in activations}
    shifts = {shift.layer: shift.values for shift in biases}
    nodes = {node.name: node for node in graph.graph.nodes}
    changes = {w.layer: (_rounding(nodes[w.layer], w, sources, shifts.get(w.layer)),) for w in weights}
    found = [Sensitivity(name, error) for name, (error,) in moved_by(graph, changes, data).items()]
    return tuple(sorted(found, key=lambda one: -one.error))


def _rounding(
    node: Node, weight: WeightScale, sources: Mapping[str, ActivationScale], shift: tuple[float, ...] | None
) -> Change:
    """What quantizing a layer changes: its weight, what goes in if that is quantized, its outputs by its bias."""
    x, read = node.args[:2]
    assert isinstance(read, Node)

    def rounded(value: Tensor) -> Tensor:
        integers, scales = levels(value, weight)
        return integers * scales

    change: dict[str, Callable[[Tensor], Tensor]] = {read.name: rounded}
    if isinstance(x, Node) and (scale := sources.get(x.name)):
        change[x.name] = lambda value: simulated(value, scale)
    if shift is not None:
        last = node.target == torch.ops.aten.linear.default
        change[node.name] = lambda value: (
            value + torch.tensor(shift).reshape(-1, *[1] * (0 if last else value.ndim - 2))
        )
    return change


def moved_by(
    graph: GraphModule, changes: Mapping[str, Sequence[Change]], data: Split, *, num: int = NUM_PROBED
) -> dict[str, tuple[float, ...]]:
    """How far the outputs move with each change of each layer alone, as a share of how they vary; to first order.

    Args:
        graph: in eval mode, not quantized.
        changes: layer -> what may be done to it.
        data: samples; an even choice of them is used.
        num: how many, at most.
    """
    few = data.batch(torch.linspace(0, len(data) - 1, min(len(data), num)).long())
    generator = torch.Generator().manual_seed(0)
    squares = {name: [0.0] * len(each) for name, each in changes.items()}
    spread = _Spread()
    for batch in batches(few, BATCH):
        probe = _Probe(graph, changes)
        with torch.enable_grad():
            outputs = probe.run(*(x.clone() for x in batch.inputs))
        spread.add_(outputs.detach().double())
        grads: dict[str, list[Tensor]] = {name: [] for name in probe.outputs}
        for _ in range(NUM_DRAWS):
            signs = torch.randint(2, outputs.shape, generator=generator).to(outputs.dtype) * 2 - 1
            drawn = torch.autograd.grad((outputs * signs).sum(), list(probe.outputs.values()), retain_graph=True)
            for name, grad in zip(probe.outputs, drawn, strict=True):
                grads[name].append(grad)
        del probe, outputs, drawn
        _Moves(graph, changes, grads, squares).run(*(x.clone() for x in batch.inputs))
    return {name: tuple(total / spread.total() for total in totals) for name, totals in squares.items()}


def order_to_keep(graph: GraphModule, found: tuple[Sensitivity, ...]) -> list[Sensitivity]:
    """Those first whose place in floating point removes most error for the multiplications that it costs."""
    costs = macs_of_nodes(graph)
    return sorted(found, key=lambda one: -one.error / max(1, costs.get(one.layer, 1)))


def num_to_keep(order: list[Sensitivity], error: float, bound: float, *, more_than: int) -> int:
    """How many of the first of `order` have to stay, by the estimate scaled to the error that was measured.

    >>> order = [Sensitivity("a", 0.6), Sensitivity("b", 0.3), Sensitivity("c", 0.1)]
    >>> num_to_keep(order, 0.5, 0.3, more_than=0), num_to_keep(order, 0.5, 0.06, more_than=0)
    (1, 2)
    """
    total = sum(one.error for one in order) or 1.0
    left, num = total, 0
    while num < len(order) and (num <= more_than or left / total * error > bound):
        left -= order[num].error
        num += 1
    return num


class _Probe(Interpreter):
    """Runs the exact model and remembers the outputs of each layer that is to change."""

    def __init__(self, graph: GraphModule, changes: Mapping[str, Sequence[Change]]) -> None:
        super().__init__(graph)
        self.changes = changes
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name not in self.changes:
            return value
        value = value if value.requires_grad else value.requires_grad_()
        self.outputs[n.name] = value
        return value.clone()  # the next operation may write into it


class _Moves(Interpreter):
    """Runs the exact model again and adds up how far each change moves the outputs, one change at a time in memory."""

    def __init__(
        self,
        graph: GraphModule,
        changes: Mapping[str, Sequence[Change]],
        grads: Mapping[str, list[Tensor]],
        squares: dict[str, list[float]],
    ) -> None:
        super().__init__(graph)
        self.changes, self.grads, self.squares = changes, grads, squares

    @torch.no_grad()
    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        for place, change in enumerate(self.changes.get(n.name, ())):
            error = self._changed(n, change) - value
            for grad in self.grads[n.name]:
                moved = (grad * error).flatten(1).sum(1).double()
                self.squares[n.name][place] += float(moved.square().sum()) / NUM_DRAWS
        return value

    def _changed(self, n: Node, change: Change) -> Tensor:
        held = {read: self.env[read] for read in n.all_input_nodes if read.name in change}
        self.env |= {read: change[read.name](value) for read, value in held.items()}
        outputs = super().run_node(n)
        self.env |= held
        return change[n.name](outputs) if n.name in change else outputs
