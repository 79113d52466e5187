"""Channels scaled up or down between layers, so that one scale for a whole tensor suits all of them.

Cross-layer equalization (Nagel et al. 2019) and SmoothQuant (Xiao et al. 2022) are one step: what makes a tensor (a
convolution, a linear layer, a LayerNorm's weight) gives channel c times f[c], what reads it divides by f[c]. With r the
largest value of each channel and w the largest weight that reads it, as a share of its output's largest, both of the
calibration data: f = sqrt(w / r), which shares the trouble out between activations and weights; f = 1 / r where only
depthwise convolutions read it, whose weights have a scale for each channel anyway. Differs: weights here have a scale
per output channel, so only what reads counts; residual sums, ReLU and pooling in between are walked through; ReLU6
stays as it is: a channel that reaches 6 keeps f = 1, the others stay below 6. Where linear layers read what cannot take
factors, as an activation that is not linear or a norm that a residual sum reads too, the value is multiplied by f on
its way to them. Heads of attention are left: nothing was gained (MiniLM). Cost: one pass over the calibration data.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from trimtab.compress.calibration import CONVOLUTIONS, LINEAR, Layer, layer_of, watch_outputs
from trimtab.compress.ops import ADDS, AVERAGES, LIMITED, MAX_POOLS, RELUS
from trimtab.compress.points import SAME_SCALE, made_of_integers
from trimtab.core import Split
from trimtab.graph.calls import arguments
from trimtab.graph.capture import get_tensor, set_tensor_
from trimtab.graph.shapes import refresh_shapes_

aten = torch.ops.aten
# A channel that hardly speaks is not made louder than this.
MOST = 64.0
# At this share of ReLU6's limit a channel counts as reaching it; others get no nearer than ROOM of it, as samples that
# were not seen may be larger.
REACHED, ROOM = 0.999, 0.8


@dataclass(frozen=True)
class Factors:
    """What the nodes `producers` make is multiplied by `values`, a factor a channel; `consumers` divide by them.

    multiplied: without producers, the value that is multiplied on its way to the consumers.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    values: tuple[float, ...]
    multiplied: str | None = None

    def fit(self, graph: GraphModule) -> bool:
        """Whether the graph has all that takes them, with as many channels."""
        nodes = {node.name: node for node in graph.graph.nodes}
        found = [nodes.get(name) for name in (*self.producers, self.multiplied, *self.consumers) if name]
        if not all(node and isinstance(node.meta.get("val"), Tensor) for node in found):
            return False
        made, read = found[: -len(self.consumers)], found[-len(self.consumers) :]
        sizes = {node.meta["val"].shape[_channel(node)] for node in made if node}
        layers = [layer_of(graph, node) for node in read if node]
        sizes |= {get_tensor(graph, x.weight).shape[1] * x.num_groups if x else 0 for x in layers}
        return sizes == {len(self.values)}


@dataclass
class _Space:
    """Values that must have the same factors, and who makes and reads them."""

    producers: list[Node] = field(default_factory=list)
    consumers: list[Node] = field(default_factory=list)
    values: dict[Node, int] = field(default_factory=dict)  # with the channel's dim
    limit: float = math.inf


def find_factors(graph: GraphModule, data: Iterable[Split]) -> tuple[Factors, ...]:
    """The factors of every space whose readers can all take them.

    Args:
        graph: in eval mode, BatchNorm folded.
        data: calibration samples in batches.
    """
    spaces = _spaces(graph)
    spaces += _read_by_linear(graph, {node for space in spaces for node in space.consumers})
    if not spaces:
        return ()
    largest: dict[Node, Tensor] = {}

    def see(node: Node, value: Tensor) -> None:
        dims = [dim for dim in range(value.ndim) if dim != watched[node]]
        found = value.float().abs().amax(dims)
        largest[node] = torch.maximum(largest[node], found) if node in largest else found

    watched = {node: dim for space in spaces for node, dim in space.values.items() if _is_read(node, space)}
    watch_outputs(graph, [node.name for node in watched], data, see)
    found = []
    for space in spaces:
        seen = torch.stack([largest[node] for node in space.values if node in largest]).amax(0)
        if seen.isfinite().all() and seen.max() > 0:
            found.append(_factors(graph, space, seen))
    return tuple(found)


def equalized(graph: GraphModule, factors: Iterable[Factors]) -> GraphModule:
    """A copy with the factors in its weights and biases; it computes the same."""
    result = copy.deepcopy(graph)
    nodes = {node.name: node for node in result.graph.nodes}
    for one in factors:
        values = torch.tensor(one.values)
        for name in one.producers:
            _multiply_(result, nodes[name], values)
        if one.multiplied:
            readers = [nodes[name] for name in one.consumers]
            _multiply_between_(result, nodes[one.multiplied], readers, values)
        for name in one.consumers:
            layer = layer_of(result, nodes[name])
            assert layer is not None
            weight = get_tensor(result, layer.weight).detach()
            set_tensor_(result, layer.weight, nn.Parameter(_by_input(layer, weight, 1 / values)))
    result.recompile()
    return refresh_shapes_(result)


def _multiply_(graph: GraphModule, producer: Node, values: Tensor) -> None:
    given = arguments(producer)
    for name in ("weight", "bias"):
        if isinstance(given[name], Node):
            at = str(given[name].target)
            tensor = get_tensor(graph, at).detach()
            set_tensor_(graph, at, nn.Parameter(tensor * values.reshape(-1, *[1] * (tensor.ndim - 1))))


def product_name(value: str) -> str:
    """What a value is called after it was multiplied."""
    return f"{value}_equalized"


def _multiply_between_(graph: GraphModule, value: Node, readers: list[Node], values: Tensor) -> None:
    """Multiply what these readers get of `value`; others get it as it is."""
    name = product_name(value.name)
    set_tensor_(graph, f"{name}_by", values)
    with graph.graph.inserting_after(value):
        read = graph.graph.create_node("get_attr", f"{name}_by")
    with graph.graph.inserting_after(read):
        product = graph.graph.create_node("call_function", aten.mul.Tensor, (value, read), name=name)
    for reader in readers:
        reader.replace_input_with(value, product)


def _by_input(layer: Layer, weight: Tensor, values: Tensor) -> Tensor:
    """The weight times a value for each input channel."""
    split = weight.reshape(layer.num_groups, -1, *weight.shape[1:])
    each = values.reshape(layer.num_groups, 1, -1, *[1] * (weight.ndim - 2))
    return (split * each).reshape(weight.shape)


def _factors(graph: GraphModule, space: _Space, seen: Tensor) -> Factors:
    """The factors of channels whose largest values are `seen`, [C]."""
    spread = seen.max() / seen.clamp_min(float(seen.max()) / MOST)
    layers = [layer for node in space.consumers if (layer := layer_of(graph, node))]
    wide = [layer for layer in layers if layer.num_groups < len(seen)]
    if wide:
        reads = torch.stack([_reads(layer, get_tensor(graph, layer.weight).detach()) for layer in wide]).amax(0)
        values = (spread * reads / reads.max()).sqrt().clamp_min(1 / MOST)
    else:
        values = spread
    if space.limit < math.inf:
        room = (ROOM * space.limit / seen.clamp_min(space.limit / MOST)).clamp_min(1)
        values = torch.where(seen >= REACHED * space.limit, torch.ones_like(values), torch.minimum(values, room))
    values = torch.where(seen > 0, values, torch.ones_like(values))  # nothing is known of a channel that kept silent
    producers, consumers = (tuple(node.name for node in nodes) for nodes in (space.producers, space.consumers))
    multiplied = None if producers else next(iter(space.values)).name
    return Factors(producers, consumers, tuple(values.tolist()), multiplied)


def _reads(layer: Layer, weight: Tensor) -> Tensor:
    """The largest weight that reads each input channel, as a share of the largest of its output channel; [C]."""
    share = weight.abs() / weight.flatten(1).abs().amax(1).clamp_min(1e-12).reshape(-1, *[1] * (weight.ndim - 1))
    split = share.reshape(layer.num_groups, -1, weight.shape[1], math.prod(weight.shape[2:]))
    return split.amax(dim=(1, 3)).flatten()


def _is_read(node: Node, space: _Space) -> bool:
    """Whether the value is more than what a ReLU is about to clamp, which no scale has to cover."""
    return any(user in space.consumers or user.target not in (*RELUS, *LIMITED) for user in node.users)


def _spaces(graph: GraphModule) -> list[_Space]:
    found: list[_Space] = []
    for node in graph.graph.nodes:
        if _makes(graph, node) and not any(node in space.values for space in found):
            space = _space(graph, node)
            if space is not None and space.consumers:
                found.append(space)
    return found


def _read_by_linear(graph: GraphModule, taken: set[Node]) -> list[_Space]:
    """What is rounded for linear layers alone, and no space has: each with its readers, and no maker."""
    integers = made_of_integers(graph.graph)
    found: dict[Node, _Space] = {}
    for node in graph.graph.nodes:
        value = node.args[0] if node.target in LINEAR and node not in taken else None
        if not isinstance(value, Node) or value in integers or value.target in SAME_SCALE:
            continue
        dim = value.meta["val"].ndim - 1
        if _reads_channels(graph, node, value, dim):
            found.setdefault(value, _Space(values={value: dim})).consumers.append(node)
    return list(found.values())


def _space(graph: GraphModule, start: Node) -> _Space | None:
    """Everything that has to be scaled with what `start` makes; None if something there cannot be."""
    space, stack = _Space(), [(start, _channel(start))]
    while stack:
        value, dim = stack.pop()
        if value in space.values:
            if space.values[value] != dim:
                return None
            continue
        space.values[value] = dim
        if value.target in LIMITED:
            limit = 6.0 if value.target == aten.relu6.default else _limit(value)
            if limit is None:
                return None
            space.limit = min(space.limit, limit)
        if _makes(graph, value):
            space.producers.append(value)
        elif (sources := _sources(value, dim)) is not None:
            stack += sources
        else:
            return None
        for user in value.users:
            if _reads_channels(graph, user, value, dim):
                space.consumers += [user] if user not in space.consumers else []
            elif (after := _dim_after(user, dim)) is not None:
                stack.append((user, after))
            else:
                return None
    return space


def _makes(graph: GraphModule, node: Node) -> bool:
    """Whether a factor per channel can go into the node's own weight and bias."""
    if node.target == aten.layer_norm.default:
        given = arguments(node)
        own = isinstance(given["weight"], Node) and len(given["normalized_shape"]) == 1
    else:
        own = node.target in (*LINEAR, *CONVOLUTIONS) and layer_of(graph, node) is not None
        given = arguments(node) if own else {}
    return own and all(
        part.op == "get_attr" and _num_reads(graph, part) == 1
        for part in (given["weight"], given["bias"])
        if isinstance(part, Node)
    )


def _num_reads(graph: GraphModule, read: Node) -> int:
    tensor = get_tensor(graph, str(read.target))
    same = (n for n in graph.graph.nodes if n.op == "get_attr" and get_tensor(graph, str(n.target)) is tensor)
    return sum(len(node.users) for node in same)


def _channel(node: Node) -> int:
    return 1 if node.target in CONVOLUTIONS else node.meta["val"].ndim - 1


def _limit(node: Node) -> float | None:
    low, high = node.args[1:3] if len(node.args) > 2 else (-1.0, 1.0)
    return float(high) if low == 0 else None  # type: ignore[arg-type]


def _sources(value: Node, dim: int) -> list[tuple[Node, int]] | None:
    """What a value that is not made by weights is made from, with the channel's dim there; None if not by channel."""
    x = value.args[0] if value.args else None
    if not isinstance(x, Node):
        return None
    if value.target in ADDS:
        parts = [part for part in value.args[:2] if isinstance(part, Node) and _same_shape(part, value)]
        return [(part, dim) for part in parts] if len(parts) == 2 and not value.kwargs else None
    before = [d for d in range(x.meta["val"].ndim) if _dim_after(value, d) == dim]
    return [(x, before[0])] if len(before) == 1 else None


def _dim_after(node: Node, dim: int) -> int | None:
    """Where the channel of the first argument is in what `node` gives; None if channels do not pass one by one."""
    if node.target in (*RELUS, *LIMITED):
        return dim
    if node.target in ADDS:
        return dim if all(isinstance(x, Node) and _same_shape(x, node) for x in node.args[:2]) else None
    x = node.args[0] if node.args else None
    if not isinstance(x, Node):
        return None
    shape = x.meta["val"].shape if isinstance(x.meta.get("val"), Tensor) else ()
    if node.target in (*MAX_POOLS, *AVERAGES):
        return dim if dim == len(shape) - 3 else None
    if node.target == aten.mean.dim:
        given = arguments(node)
        over = {d % len(shape) for d in given["dim"] or range(len(shape))}
        gone = 0 if given["keepdim"] else sum(d < dim for d in over)
        return None if dim in over else dim - gone
    if node.target == aten.flatten.using_ints:
        trailing = all(size == 1 for size in shape[dim + 1 :])
        return dim if arguments(node)["start_dim"] % len(shape) == dim and trailing else None
    return None


def _same_shape(x: Node, y: Node) -> bool:
    return bool(operator.eq(x.meta["val"].shape, y.meta["val"].shape))


def _reads_channels(graph: GraphModule, user: Node, value: Node, dim: int) -> bool:
    """Whether `user` is a layer that sums over this dim of `value`, with a weight of its own."""
    if user.target not in (*LINEAR, *CONVOLUTIONS) or user.args[0] is not value or layer_of(graph, user) is None:
        return False
    inputs = 1 if user.target in CONVOLUTIONS else value.meta["val"].ndim - 1
    return dim == inputs and sum(arg is value for arg in user.args) == 1
