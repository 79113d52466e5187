"""Optimal Brain Surgeon for whole channels: what each costs if the weights that stay make up for it.

Removing the features S of a layer with inputs X (H = X'X) and weights W, and re-solving the rest by least squares,
raises its squared output error by tr(W_S' (H^-1_SS)^-1 W_S). Channels go greedily, the cheapest first, and after each
step H^-1 and W are those of what is left, so of two channels that carry the same only one is cheap.
Hassibi and Stork, "Second order derivatives for network pruning" (1993); Frantar and Alistarh, "SparseGPT" (2023);
Kurtic et al., "ZipLM" (2023), which removes structures of one layer. Differs: all layers that read a channel count,
each by its error relative to its output, and convolutions by their patches. Up to 1/64 of the channels go in one step.
Cost: 64 steps of F^2 x (F / 64) for each layer with F features, and one pass over the calibration samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import GraphModule

from trimtab.compress.calibration import MAX_FEATURES, Layer, chunked, grams, layer_of, num_features
from trimtab.core import Split
from trimtab.graph.capture import get_tensor
from trimtab.graph.dims import Group

NUM_STEPS = 64
DAMPENING = 0.01
GRAM_NUMBERS = 1 << 27  # of Gram matrices at a time: 1 GB


def saliencies(graph: GraphModule, groups: list[Group], data: list[Split]) -> dict[str, Tensor]:
    """The cost of each channel at the step at which it goes, [size] in float64, rising in that order.

    A group that no layer reads which can be solved is left out.
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
    for run in _in_memory(graph, groups, readers):
        own = {layer.node: layer for name in run for layer, _ in readers[name]}
        inputs = grams(graph, list(own.values()), data)
        for name in run:
            if not all(inputs[layer.node].isfinite().all() for layer, _ in readers[name]):
                found[name] = torch.full((len(readers[name][0][1]),), torch.nan, dtype=torch.float64)
                continue
            problems = [
                problem
                for layer, table in readers[name]
                for problem in _problems(graph, layer, table, inputs[layer.node])
            ]
            if problems:
                found[name] = _greedy(problems)
    return found


def _in_memory(
    graph: GraphModule, groups: list[Group], readers: dict[str, list[tuple[Layer, Tensor]]]
) -> list[list[str]]:
    """The groups in runs whose Gram matrices fit in memory together."""
    names = [group.name for group in groups if group.name in readers]
    sizes = {
        name: sum(
            layer.num_groups * num_features(layer, get_tensor(graph, layer.weight)) ** 2 for layer, _ in readers[name]
        )
        for name in names
    }
    return chunked(names, sizes.__getitem__, GRAM_NUMBERS)


class _Problem:
    """One least squares problem: the inverse of its H, its weights [F, outputs], and each channel's features."""

    def __init__(self, h: Tensor, weight: Tensor, columns: Tensor) -> None:
        energy = float((weight * (h @ weight)).sum())
        self.weight = weight / math.sqrt(energy) if energy > 0 else weight
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


def _greedy(problems: list[_Problem]) -> Tensor:
    size = len(problems[0].columns)
    result = torch.zeros(size, dtype=torch.float64)
    left = torch.arange(size)
    each, reached = max(1, size // NUM_STEPS), 0.0
    while len(left):
        costs = torch.stack([problem.costs(left) for problem in problems]).sum(0).clamp_min(0)
        order = costs.argsort(stable=True)[:each]
        reached = max(reached, float(costs[order[0]]))
        result[left[order]] = costs[order].clamp_min(reached)
        reached = float(result[left[order]].max())
        gone = left[order]
        left = left[~torch.isin(left, gone)]
        if len(left):
            for problem in problems:
                problem.remove_(gone)
    return result
