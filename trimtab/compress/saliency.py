"""Optimal Brain Surgeon for whole channels: what each costs if the weights that stay make up for it.

Removing the features S of a layer with inputs X (H = X'X) and weights W, and re-solving the rest by least squares,
raises its squared output error by tr(W_S' (H^-1_SS)^-1 W_S). Channels go greedily, the cheapest first, and after each
step H^-1 and W are those of what is left, so of two channels that carry the same only one is cheap.
Hassibi and Stork, "Second order derivatives for network pruning" (1993); Frantar and Alistarh, "SparseGPT" (2023);
Kurtic et al., "ZipLM" (2023), which removes structures of one layer. Differs: all layers that read a channel count,
each by its error relative to its output, and convolutions by their patches. Up to 1/64 of the channels go in one step.
Cost: 64 steps of F^2 x (F / 64) for each layer with F features, and one pass over the calibration samples. A group's
curve, what it loses in the end, costs two passes forward and two back over 64 samples more, and of each layer that
reads it one more at each of `SHARES`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from trimtab.compress.calibration import MAX_FEATURES, Layer, chunked, grams, layer_of, num_features
from trimtab.compress.sensitivity import Change, moved_by
from trimtab.core import Split
from trimtab.graph.capture import get_tensor
from trimtab.graph.dims import Group

NUM_STEPS = 64
DAMPENING = 0.01
GRAM_NUMBERS = 1 << 27  # of Gram matrices, and of weights for curves, at a time: 1 GB
NUM_JUDGED = 64
SHARES = tuple(at / 8 for at in range(1, 8))  # of the channels gone, at which the outputs are looked at


@dataclass(frozen=True)
class Saliency:
    """What the channels of a group cost.

    values: of each at the step at which it goes, [size] in float64, rising in that order.
    curve: how many are left -> how far the model's outputs move when this group alone keeps only the best, the layers
    that read it re-solved; a share of how the outputs vary, to first order. Empty if it was not asked for.
    """

    values: Tensor
    curve: tuple[tuple[int, float], ...] = ()


def saliencies(
    graph: GraphModule, groups: list[Group], data: list[Split], *, judge: Split | None = None
) -> dict[str, Saliency]:
    """What each group's channels cost; a group that no layer reads which can be solved is left out.

    Args:
        graph: not changed.
        groups: of this graph.
        data: calibration samples, in batches.
        judge: other samples, on which the curves are measured; None for no curves.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    readers: dict[str, list[tuple[Layer, Tensor]]] = {}
    layers: dict[str, Layer] = {}
    for group in groups:
        for read in group.reads:
            layer = layer_of(graph, nodes[read.node])
            if layer is None or layer.argument != read.argument:
                continue
            if num_features(layer, get_tensor(graph, layer.weight)) <= MAX_FEATURES:
                readers.setdefault(group.name, []).append((layer, read.place.table()))
                layers[layer.node] = layer
    found = {}
    for run in _in_memory(graph, groups, readers, num_widths=0 if judge is None else len(SHARES)):
        own = {layer.node: layer for name in run for layer, _ in readers[name]}
        inputs = grams(graph, list(own.values()), data)
        solved: dict[str, _Solved] = {}
        for name in run:
            if not all(inputs[layer.node].isfinite().all() for layer, _ in readers[name]):
                found[name] = Saliency(torch.full((len(readers[name][0][1]),), torch.nan, dtype=torch.float64))
                continue
            every = {layer.node: _problems(graph, layer, table, inputs[layer.node]) for layer, table in readers[name]}
            if problems := {node: those for node, those in every.items() if those}:
                values, solved[name] = _greedy(problems, () if judge is None else SHARES)
                found[name] = Saliency(values)
        if judge is not None:
            curves = _curves(graph, layers, solved, judge)
            found |= {name: Saliency(found[name].values, curve) for name, curve in curves.items()}
    return found


# How many channels are left, and the weights of each layer, by its node, [num_groups, features, outputs].
_Solved = list[tuple[int, dict[str, Tensor]]]


def _curves(
    graph: GraphModule, layers: dict[str, Layer], solved: dict[str, _Solved], judge: Split
) -> dict[str, tuple[tuple[int, float], ...]]:
    """How far the outputs move at each width of each group: the sum over the layers that read it."""
    nodes = {node.name: node for node in graph.graph.nodes}
    changes: dict[str, list[Change]] = {}
    places: dict[str, list[tuple[str, int]]] = {}
    for name, steps in solved.items():
        for step, (_, weights) in enumerate(steps):
            for layer, weight in weights.items():
                changes.setdefault(layer, []).append(_rewritten(graph, nodes[layer], layers[layer], weight))
                places.setdefault(layer, []).append((name, step))
    moved = moved_by(graph, changes, judge, num=NUM_JUDGED)
    sums = {name: [0.0] * len(steps) for name, steps in solved.items()}
    for layer, where in places.items():
        for (name, step), error in zip(where, moved[layer], strict=True):
            sums[name][step] += error
    return {
        name: tuple((left, total) for (left, _), total in zip(steps, sums[name], strict=True))
        for name, steps in solved.items()
    }


def _rewritten(graph: GraphModule, node: Node, layer: Layer, solved: Tensor) -> Change:
    """What gives a layer the weights, and bias, that were solved."""
    read = {str(source.target): source.name for source in node.all_input_nodes if source.op == "get_attr"}
    weight = get_tensor(graph, layer.weight)
    change = {}
    if layer.bias:
        bias = solved[:, -1].reshape(get_tensor(graph, layer.bias).shape)
        change[read[layer.bias]] = lambda value: bias.to(value.dtype)
        solved = solved[:, :-1]
    change[read[layer.weight]] = lambda value: layer.weight_of(solved.mT, weight.shape).to(value.dtype)
    return change


def _in_memory(
    graph: GraphModule, groups: list[Group], readers: dict[str, list[tuple[Layer, Tensor]]], *, num_widths: int
) -> list[list[str]]:
    """The groups in runs whose Gram matrices fit in memory together, with the weights that are kept of each width."""

    def numbers(layer: Layer) -> int:
        weight = get_tensor(graph, layer.weight)
        kept = -(-num_widths * weight.numel() // 2)  # in fp32, half of a Gram matrix's fp64
        return layer.num_groups * num_features(layer, weight) ** 2 + kept

    names = [group.name for group in groups if group.name in readers]
    return chunked(names, lambda name: sum(numbers(layer) for layer, _ in readers[name]), GRAM_NUMBERS)


class _Problem:
    """One least squares problem: the inverse of its H, its weights [F, outputs], and each channel's features."""

    def __init__(self, h: Tensor, weight: Tensor, columns: Tensor) -> None:
        energy = float((weight * (h @ weight)).sum())
        self.scale = math.sqrt(energy) if energy > 0 else 1.0
        self.weight = weight / self.scale
        h = h + DAMPENING * h.diagonal().mean().clamp_min(1e-12) * torch.eye(len(h), dtype=h.dtype)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
        self.columns = columns

    def costs(self, left: Tensor) -> Tensor:
        """tr(W_S' (H^-1_SS)^-1 W_S) for each channel that is left."""
        columns = self.columns[left]
        inner = self.inverse[columns[:, :, None], columns[:, None, :]]
        weight = self.weight[columns]
        return (weight * torch.linalg.solve(inner, weight)).sum(dim=(1, 2))

    def remove_(self, channels: Tensor) -> None:
        """Take channels out; the rest makes up for them."""
        gone = self.columns[channels].flatten()
        share = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone])
        across = self.inverse[:, gone].clone()
        self.weight = self.weight - share.T @ self.weight[gone]
        self.inverse = self.inverse - across @ share


def _problems(graph: GraphModule, layer: Layer, table: Tensor, gram: Tensor) -> list[_Problem]:
    weight = get_tensor(graph, layer.weight).detach().double()
    columns = layer.columns(table, weight.shape[layer.input_dim] * layer.num_groups, weight)
    if columns is None:
        return []
    matrices = layer.matrix(weight).mT
    if layer.bias:  # the last feature is always 1; it stays
        bias = get_tensor(graph, layer.bias).detach().double().reshape(layer.num_groups, 1, -1)
        matrices = torch.cat([matrices, bias.expand(-1, -1, matrices.shape[-1])], dim=1)
    return [_Problem(gram[g], matrices[g], columns[g]) for g in range(layer.num_groups) if columns[g].shape[1]]


def _greedy(problems: dict[str, list[_Problem]], shares: tuple[float, ...]) -> tuple[Tensor, _Solved]:
    """The cost of each channel, and the weights where so many of them are gone."""
    every = [problem for own in problems.values() for problem in own]
    size = len(every[0].columns)
    result = torch.zeros(size, dtype=torch.float64)
    left = torch.arange(size)
    stops = sorted({math.floor(size * (1 - share)) for share in shares} - {0}, reverse=True)
    solved: _Solved = []
    each, reached = max(1, size // NUM_STEPS), 0.0
    while len(left):
        costs = torch.stack([problem.costs(left) for problem in every]).sum(0).clamp_min(0)
        order = costs.argsort(stable=True)[:each]
        result[left[order]] = costs[order].clamp_min(reached)
        reached = float(result[left[order]].max()) * (1 + 1e-9)  # who goes later ranks higher
        gone = left[order]
        left = left[~torch.isin(left, gone)]
        if len(left):
            for problem in every:
                problem.remove_(gone)
        if stops and 0 < len(left) <= stops[0]:
            stops = [stop for stop in stops if stop < len(left)]
            weights = {
                node: torch.stack([(one.weight * one.scale).float() for one in own]) for node, own in problems.items()
            }
            solved.append((len(left), weights))
    return result, solved
