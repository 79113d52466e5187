"""A layer as a product of two thinner ones: where it fits, what it costs, the decomposition, and putting it in.

`factorize.py` says what is decided with it, and by whom it was invented.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from trimtab.compress.calibration import CONVOLUTIONS, LINEAR, Layer, layer_of, num_features
from trimtab.core import Skip
from trimtab.errors import PlanError
from trimtab.graph.calls import arguments
from trimtab.graph.capture import get_tensor, set_tensor_
from trimtab.graph.cost import for_one_sample, macs_of_nodes

Kind = Literal["linear", "channel", "space"]
# Added to the mean square of what a layer sees: directions that were not seen may be seen later.
DAMPING = 1e-4


@dataclass(frozen=True)
class Site:
    """A layer that may become two, and what its two halves cost together for each rank."""

    layer: Layer
    shape: tuple[int, ...]
    kind: Kind
    macs: int
    macs_of_a_rank: int

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of the matrix that is decomposed."""
        if self.kind == "space":
            return self.shape[0] * self.shape[3], self.shape[1] * self.shape[2]
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def full_rank(self) -> int:
        return min(self.sides)

    @property
    def dearest(self) -> int:
        """The highest rank that saves something; 0 if none does."""
        return min(self.full_rank, (self.macs - 1) // self.macs_of_a_rank)


@dataclass(frozen=True)
class Problem:
    """The decomposition of a site: left [rows, K], values [K], right [K, columns], and the mean of its inputs."""

    site: Site
    left: Tensor
    values: Tensor
    right: Tensor
    mean: Tensor | None

    @property
    def weight(self) -> str:
        return self.site.layer.weight

    @property
    def macs(self) -> int:
        return self.site.macs

    def kept(self, rank: int) -> float:
        squares = self.values.square()
        return float(squares[:rank].sum() / squares.sum().clamp_min(1e-300))

    def rank_for(self, energy: float, step: int) -> int | None:
        """The least rank, a multiple of `step`, that keeps so much; None if that is not cheaper."""
        rank = self._needed(energy, step)
        return rank if rank <= self.site.dearest else None

    def too_dear(self, energy: float, step: int) -> str:
        times = self._needed(energy, step) * self.site.macs_of_a_rank / self.macs
        told = f"rank {self._needed(energy, step)}, which keeps {energy:g} of its energy"
        return f"{told}, would cost {times:.2f} times as much"

    def _needed(self, energy: float, step: int) -> int:
        shares = self.values.square().cumsum(0) / self.values.square().sum().clamp_min(1e-300)
        least = int((shares < energy - 1e-12).sum()) + 1
        return math.ceil(least / step) * step

    def cheapest(self, price: float, step: int) -> tuple[int | None, int]:
        """The rank, or None, and the MACs, of least lost energy + price x MACs."""
        ranks = range(step, self.site.dearest + 1, step)
        options: list[tuple[float, int | None, int]] = [(price * self.macs, None, self.macs)]
        for rank in ranks:
            cost = rank * self.site.macs_of_a_rank
            options.append((1 - self.kept(rank) + price * cost, rank, cost))
        return min(options, key=lambda option: option[0])[1:]


def sites(graph: GraphModule, conv: str) -> tuple[dict[str, Site], list[Skip]]:
    """Weight -> the layer, where low rank can be cheaper; the others with reasons."""
    found, skipped, costs = {}, [], macs_of_nodes(graph)
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in (*LINEAR, *CONVOLUTIONS):
            continue
        layer = layer_of(graph, node)
        if layer is None:
            skipped.append(Skip(node.name, "its weight is computed or shared"))
            continue
        weight = get_tensor(graph, layer.weight)
        if not weight.isfinite().all():
            raise PlanError(f"The weight {layer.weight!r} holds NaN or infinity. Load a sound checkpoint.")
        if (why := _unfit(layer, weight, conv)) is not None:
            skipped.append(Skip(layer.weight, why))
            continue
        site = _site(node, layer, tuple(weight.shape), costs[node.name], conv)
        if site.dearest < 1:
            skipped.append(Skip(layer.weight, "even rank 1 would cost more"))
        else:
            found[layer.weight] = site
    return found, skipped


def _unfit(layer: Layer, weight: Tensor, conv: str) -> str | None:
    if layer.num_groups > 1:
        return f"it has {layer.num_groups} groups, each a layer of its own"
    if weight.ndim == 5:
        return "convolutions over three dims are left alone"
    if conv == "space" and layer.stride and (weight.ndim != 4 or min(weight.shape[2:]) < 2):
        return "by space, its kernel has but one dim"
    return None


def _site(node: Node, layer: Layer, shape: tuple[int, ...], cost: int, conv: str) -> Site:
    uses = cost // math.prod(shape)  # how often each weight is used
    if not layer.stride or conv == "channel":
        kind: Kind = "channel" if layer.stride else "linear"
        return Site(layer, shape, kind, cost, uses * (shape[0] + math.prod(shape[1:])))
    x = arguments(node)["input"]
    height, width = for_one_sample(node.meta["val"].shape[2]), for_one_sample(x.meta["val"].shape[3])
    return Site(layer, shape, "space", cost, height * width * shape[1] * shape[2] + uses * shape[0] * shape[3])


def features_of(graph: GraphModule, site: Site) -> int:
    """How many products each sum of the layer has."""
    return num_features(site.layer, get_tensor(graph, site.layer.weight))


def _matrix(site: Site, weight: Tensor) -> Tensor:
    """The weight as the matrix that is decomposed, [rows, columns]."""
    if site.kind == "space":  # [O, I, kh, kw] -> [(O kw), (I kh)]
        return weight.permute(0, 3, 1, 2).reshape(site.sides)
    return weight.reshape(site.sides)


def decomposed(graph: GraphModule, site: Site, gram: Tensor | None) -> Problem:
    """The decomposition of a layer; with X'X of its inputs [1, F, F], that of least error on them."""
    matrix = _matrix(site, get_tensor(graph, site.layer.weight).detach().double())
    if gram is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return Problem(site, left, values, right, None)
    second, mean = _moments(site, gram[0])
    root = torch.linalg.cholesky(second)
    left, values, right = torch.linalg.svd(matrix @ root, full_matrices=False)
    # right @ root^-1, by solving from the right
    right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return Problem(site, left, values, right, mean)


def _moments(site: Site, gram: Tensor) -> tuple[Tensor, Tensor | None]:
    """The second moment of the columns, damped, and their mean where a bias can make up for it."""
    features = math.prod(site.shape[1:])
    second, mean = gram[:features, :features], None
    if site.layer.bias:
        mean = gram[features, :features] / gram[features, features]
        second = second / gram[features, features] - mean[:, None] * mean
    if site.kind == "space":
        channels, high, wide = site.shape[1:]
        grid = second.reshape(channels, high, wide, channels, high, wide)
        second = torch.einsum("iawjbw->iajb", grid).reshape(channels * high, channels * high)
    scale = second.diagonal().mean().clamp_min(1e-12)
    return second + DAMPING * scale * torch.eye(len(second), dtype=second.dtype), mean


@torch.no_grad()
def put_in_(reference: GraphModule, result: GraphModule, problem: Problem, rank: int) -> None:
    """Two layers in `result`, their product for a weight in `reference`; the bias makes up for the mean."""
    site, name = problem.site, problem.weight
    roots = problem.values[:rank].sqrt()
    first, second = _shaped(site, roots[:, None] * problem.right[:rank], problem.left[:, :rank] * roots)
    weight = get_tensor(reference, name)
    first, second = first.to(weight.dtype), second.to(weight.dtype)
    product = _product(site, first.double(), second.double())
    lost = weight.detach().double() - product
    set_tensor_(reference, name, nn.Parameter(product))  # not rounded to what it was: the comparison is finer
    for graph in (reference, result):
        if problem.mean is not None and site.layer.bias:
            bias = get_tensor(graph, site.layer.bias)
            bias += (lost.flatten(1) @ problem.mean).to(bias.dtype)
    node = next(node for node in result.graph.nodes if node.name == site.layer.node)
    a, trains = arguments(node), get_tensor(result, name).requires_grad
    with result.graph.inserting_before(node):
        reads = []
        for part, value in (("first", first), ("second", second)):
            set_tensor_(result, f"{name}_{part}", nn.Parameter(value.contiguous(), requires_grad=trains))
            reads.append(result.graph.create_node("get_attr", f"{name}_{part}"))
        steps = _steps(site)
        thin = result.graph.call_function(node.target, (a["input"], reads[0], None, *steps[0]))  # type: ignore[arg-type]
        whole = result.graph.call_function(node.target, (thin, reads[1], a["bias"], *steps[1]))  # type: ignore[arg-type]
    node.replace_all_uses_with(whole)
    result.graph.erase_node(node)


def _shaped(site: Site, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The factors [r, columns] and [rows, r] as weights of the two layers."""
    rank = len(first)
    match site.kind:
        case "linear":
            return first, second
        case "channel":
            return first.reshape(rank, *site.shape[1:]), second.reshape(*second.shape, *[1] * (len(site.shape) - 2))
    outputs, channels, high, wide = site.shape
    thin = first.reshape(rank, channels, high, 1)
    return thin, second.reshape(outputs, wide, rank).permute(0, 2, 1).reshape(outputs, rank, 1, wide)


def _product(site: Site, first: Tensor, second: Tensor) -> Tensor:
    """The weight that does what the two do."""
    if site.kind == "space":
        return torch.einsum("riaz,orzb->oiab", first, second)
    return (second.flatten(1) @ first.flatten(1)).reshape(site.shape)


def _steps(site: Site) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Stride, padding and dilation of the two layers."""
    layer = site.layer
    if site.kind == "linear":
        return (), ()
    each = [list(values) for values in (layer.stride, layer.padding, layer.dilation)]
    if site.kind == "channel":
        num = len(layer.stride)
        return tuple(each), ([1] * num, [0] * num, [1] * num)
    (s, p, d) = each
    return ([s[0], 1], [p[0], 0], [d[0], 1]), ([1, s[1]], [0, p[1]], [1, d[1]])
