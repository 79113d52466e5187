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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from trimtab.compress.calibration import batches
from trimtab.compress.scales import ActivationScale, BiasShift, WeightScale, levels, simulated
from trimtab.core import Split
from trimtab.graph.cost import macs_of_nodes

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
    few = data.batch(torch.linspace(0, len(data) - 1, min(len(data), NUM_PROBED)).long())
    generator = torch.Generator().manual_seed(0)
    squares = {scale.layer: 0.0 for scale in weights}
    spread = _Spread()
    for batch in batches(few, BATCH):
        probe = _Probe(graph, activations, weights, biases)
        with torch.enable_grad():
            outputs = probe.run(*(x.clone() for x in batch.inputs))
        spread.add_(outputs.detach().double())
        names = list(probe.outputs)
        for _ in range(NUM_DRAWS):
            signs = torch.randint(2, outputs.shape, generator=generator).to(outputs.dtype) * 2 - 1
            grads = torch.autograd.grad((outputs * signs).sum(), list(probe.outputs.values()), retain_graph=True)
            for name, grad in zip(names, grads, strict=True):
                moved = (grad * probe.errors[name]).flatten(1).sum(1).double()
                squares[name] += float(moved.square().sum()) / NUM_DRAWS
    found = [Sensitivity(name, total / spread.total()) for name, total in squares.items()]
    return tuple(sorted(found, key=lambda one: -one.error))


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
    """Runs the exact model and remembers each layer's outputs and the error that its own rounding makes of them."""

    def __init__(
        self,
        graph: GraphModule,
        activations: tuple[ActivationScale, ...],
        weights: tuple[WeightScale, ...],
        biases: tuple[BiasShift, ...],
    ) -> None:
        super().__init__(graph)
        self.activations = {scale.node: scale for scale in activations}
        self.weights = {scale.layer: scale for scale in weights}
        self.shifts = {shift.layer: shift.values for shift in biases}
        self.outputs: dict[str, Tensor] = {}
        self.errors: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name not in self.weights:
            return value
        value = value if value.requires_grad else value.requires_grad_()
        self.outputs[n.name], self.errors[n.name] = value, self._error(n, value)
        return value.clone()  # the next operation may write into it

    @torch.no_grad()
    def _error(self, n: Node, exact: Tensor) -> Tensor:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x, weight, *others = args
        integers, scales = levels(weight, self.weights[n.name])
        source = self.activations.get(n.args[0].name) if isinstance(n.args[0], Node) else None
        rounded = simulated(x, source) if source else x
        error = n.target(rounded, integers * scales, *others, **kwargs) - exact  # type: ignore[operator]
        if n.name not in self.shifts:
            return error
        channel = error.ndim - 1 if n.target == torch.ops.aten.linear.default else error.ndim - weight.ndim + 1
        return error + torch.tensor(self.shifts[n.name]).reshape(-1, *[1] * (error.ndim - channel - 1))
