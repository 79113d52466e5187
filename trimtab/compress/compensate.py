"""Compensation: the weights that stay are re-solved so that each cut layer gives what it gave.

For each layer that reads cut channels, in graph order: W' minimises ||X W' - Y||^2 + lambda ||W' - W||^2, where X are
its inputs in the smaller graph (whose earlier layers are compensated already, so their errors are seen), Y its outputs
in the original, and W the weights that the cut left; the bias is one more weight, of an input that is always 1. Lambda
is chosen of six on held-out batches, the sixth being infinity: no change. After Frantar and Alistarh, "SparseGPT"
(2023) and "Optimal Brain Compression" (2022), which use the original's inputs; the closed form takes any structure.
A convolution's rows are its patches at an even, seeded choice of positions.
Cost: one pass of both graphs over the samples in all: each batch waits at the layer being solved, with the values that
are still needed there; and for a layer with F features 6 Cholesky factorizations of F x F.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from trimtab.compress.calibration import (
    MAX_FEATURES,
    Gram,
    Layer,
    batches,
    input_rows,
    layer_of,
    num_features,
    num_rows,
    output_rows,
    pick,
    with_one,
)
from trimtab.compress.parts import NOTHING_KEPT, Parts
from trimtab.core import Skip, Split
from trimtab.errors import PlanError
from trimtab.graph.calls import arguments
from trimtab.graph.capture import get_tensor
from trimtab.graph.cost import Sizes
from trimtab.graph.dims import Group

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def solvable(graph: GraphModule, groups: list[Group]) -> tuple[tuple[str, ...], tuple[Skip, ...]]:
    """The nodes of the layers that read `groups` and can be re-solved, in graph order; and the rest, with reasons."""
    readers = {read.node for group in groups for read in group.reads}
    found, skipped, sizes = [], [], Sizes(graph, groups)
    for node in graph.graph.nodes:
        if node.name not in readers:
            continue
        layer = layer_of(graph, node)
        if layer is None:
            why = "it multiplies no fixed weight of its own"
        elif num_features(layer, get_tensor(graph, layer.weight)) > MAX_FEATURES:
            why = f"its sums have more than {MAX_FEATURES} terms"
        elif not layer.stride and any(width.parts for width in sizes.of(arguments(node)[layer.argument])[:-1]):
            why = "what is cut is also where it is applied, so its rows are not the original's"
        else:
            found.append(node.name)
            continue
        skipped.append(Skip(f"compensation of {node.name}", why))
    return tuple(found), tuple(skipped)


def compensate_(
    pruned: GraphModule,
    original: GraphModule,
    data: Split,
    nodes: tuple[str, ...],
    *,
    outputs: Mapping[str, Tensor],
    parts: Parts = NOTHING_KEPT,
) -> GraphModule:
    """Re-solve, in place, the weights of `nodes` in `pruned`.

    Args:
        pruned: `original` without some channels, or with some of its weights zero; nodes have the same names.
        original: gives the targets; not changed.
        data: calibration samples.
        nodes: of layers, as `solvable` names them.
        outputs: weight -> True where an output of the original layer is still there, if some are not.
        parts: the layers that were solved before, and who is told of progress.
    """
    targets, inputs = Walk(original, batches(data)), Walk(pruned, batches(data))
    for place, node in enumerate(nodes):
        parts.step(place, len(nodes), f"compensating {node}")
        found = parts.tensors(node, partial(_solved, targets, inputs, node, outputs))
        layer = layer_of(pruned, inputs.nodes[node])
        if found and layer is not None:
            write_(pruned, layer, found["weights"])
    return pruned


def _solved(targets: Walk, inputs: Walk, node: str, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    problem = gather(targets, inputs, node, outputs)
    solved = solve(problem)
    return {} if solved is None else {"weights": solved.to(get_tensor(inputs.graph, problem.layer.weight).dtype)}


@dataclass(frozen=True)
class Problem:
    """The sums of a layer over two halves of the batches, and its weights [num_groups, features, outputs]."""

    layer: Layer
    weight: Tensor
    halves: tuple[Gram, Gram]


class Walk:
    """Runs a graph over many batches, from node to node: each batch keeps only what is needed further on."""

    def __init__(self, graph: GraphModule, data: list[Split]) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.graph.nodes}
        self._order = list(graph.graph.nodes)
        self._at = [0] * len(data)
        self._run = Interpreter(graph)
        last = {source: node for node in self._order for source in node.all_input_nodes}
        self._dead: dict[Node, list[Node]] = {}
        for source, node in last.items():
            self._dead.setdefault(node, []).append(source)
        inputs = [node for node in self._order if node.op == "placeholder"]
        # Fresh copies: the graph may write into its inputs.
        self._values = [dict(zip(inputs, (x.clone() for x in batch.inputs), strict=True)) for batch in data]

    def __len__(self) -> int:
        return len(self._values)

    @torch.no_grad()
    def before(self, batch: int, node: Node) -> dict[Node, Any]:
        """The values that are there just before `node` runs."""
        values = self._values[batch]
        self._run.env = values
        stop = self._order.index(node)
        for current in self._order[self._at[batch] : stop]:
            if current.op != "placeholder":
                values[current] = self._run.run_node(current)
            for dead in self._dead.get(current, ()):
                del values[dead]
        self._at[batch] = stop
        return values

    @torch.no_grad()
    def output(self, batch: int, node: Node) -> Tensor:
        """What `node` gives; it will run again when the batch goes on."""
        self._run.env = self.before(batch, node)
        return self._run.run_node(node)  # type: ignore[no-any-return]


def gather(targets: Walk, inputs: Walk, name: str, outputs: Mapping[str, Tensor]) -> Problem:
    """The problem of a layer: its inputs from one graph, what it should give from the other.

    Raises:
        PlanError: the calibration samples give NaN or infinity there.
    """
    layer, node = layer_of(inputs.graph, inputs.nodes[name]), inputs.nodes[name]
    assert layer is not None
    weight = get_tensor(inputs.graph, layer.weight).detach()
    kernel, kept = tuple(weight.shape[2:]), outputs.get(layer.weight)
    wanted = math.ceil(num_rows(num_features(layer, weight)) / len(inputs))
    halves = Gram(), Gram()
    for batch in range(len(inputs)):
        y = targets.output(batch, targets.nodes[name])
        if kept is not None:
            y = y[:, kept] if layer.stride else y[..., kept]
        x = inputs.before(batch, node)[arguments(node)[layer.argument]]
        picked = pick(layer, y, wanted)
        rows = with_one(layer, input_rows(layer, x, kernel, picked))
        halves[batch % 2].add_(rows, output_rows(layer, y, picked))
    if not all(half.xx.isfinite().all() and half.xy.isfinite().all() for half in halves):
        raise PlanError(
            f"Compensation found NaN or infinity at {name} on the calibration samples. Check the weights and the data."
        )
    matrix = layer.matrix(weight).mT.double()
    if layer.bias:
        bias = get_tensor(inputs.graph, layer.bias).detach().double().reshape(layer.num_groups, 1, -1)
        matrix = torch.cat([matrix, bias.expand(-1, -1, matrix.shape[-1])], dim=1)
    return Problem(layer, matrix, halves)


def solve(problem: Problem) -> Tensor | None:
    """The weights with the ridge that predicts held-out batches best; None if nothing beats those that are there.

    Each half is predicted from the other, so no sample is without its turn.
    """
    first, second = problem.halves
    halves = ((first, second), (second, first))
    errors = dict.fromkeys((*RIDGES, math.inf), 0.0)
    for learns, tells in halves:
        for ridge in errors:
            solved = _ridge(learns, problem.weight, ridge)
            errors[ridge] += math.inf if solved is None else _error(tells, solved)
    both = Gram()
    both.xx, both.xy = first.xx + second.xx, first.xy + second.xy
    for ridge in sorted(errors, key=errors.__getitem__):
        if ridge == math.inf:
            return None
        if (solved := _ridge(both, problem.weight, ridge)) is not None:
            return solved
    return None


def _ridge(gram: Gram, weight: Tensor, ridge: float) -> Tensor | None:
    """Argmin ||X W' - Y||^2 + lambda ||W' - W||^2, with lambda relative to the mean square of X.

    None where the sums, rounded to fp32 as they are, are not positive definite with so small a lambda.
    """
    if ridge == math.inf:
        return weight
    xx, xy = gram.xx, gram.xy
    scale = ridge * xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)[:, None, None]
    damped = xx + scale * torch.eye(xx.shape[-1], dtype=xx.dtype)
    factor, failed = torch.linalg.cholesky_ex(damped)
    return None if failed.any() else torch.cholesky_solve(xy + scale * weight, factor)


def _error(gram: Gram, weight: Tensor) -> float:
    """||X W - Y||^2 less the part that does not depend on W."""
    return float((weight * (gram.xx @ weight)).sum() - 2 * (weight * gram.xy).sum())


@torch.no_grad()
def write_(graph: GraphModule, layer: Layer, solved: Tensor) -> None:
    """Give the layer what solves its problem, [num_groups, features, outputs], the bias being the last feature."""
    weight = get_tensor(graph, layer.weight)
    if layer.bias:
        bias = get_tensor(graph, layer.bias)
        bias.copy_(solved[:, -1].reshape(bias.shape))
        solved = solved[:, :-1]
    # In place: what waits at this layer has the tensor itself.
    weight.copy_(layer.weight_of(solved.mT, weight.shape))
