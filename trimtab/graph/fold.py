"""Fold what is constant in eval mode into plain weights: BatchNorm, and weights that are computed from others.

BatchNorm goes into the convolution or linear layer before it, as in every runtime: w' = w g / sqrt(v + eps). A weight
that is computed from parameters alone (standardised, normalised, scaled) becomes one parameter with its value. Exact
in eval mode up to rounding; what is folded trains as a plain weight from then on.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from trimtab.graph.capture import get_tensor, set_tensor_, without_unread_
from trimtab.graph.modes import TRAINING, frozen_modes
from trimtab.graph.shapes import refresh_shapes_

aten = torch.ops.aten
FOLDABLE = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
WEIGHTED = (*FOLDABLE, aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
MOVES = {
    getattr(aten, name)
    for name in ["view", "reshape", "permute", "transpose", "t", "alias", "detach", "contiguous", "clone", "to"]
}


def fold_weights(graph: GraphModule) -> tuple[GraphModule, tuple[str, ...]]:
    """A copy in which each computed weight is one parameter, and the names of these; `graph` itself if there is none.

    A weight stays computed where its parts are read elsewhere too: they would no longer be tied.
    """
    if not any(_computed(node) for node in graph.graph.nodes):
        return graph, ()
    folded = copy.deepcopy(graph)
    names = []
    for node in list(folded.graph.nodes):
        if parts := _computed(node):
            weight = node.args[1]
            largest = max(
                (part for part in parts if part.op == "get_attr"),
                key=lambda part: get_tensor(folded, str(part.target)).numel(),
            )
            name = str(largest.target)
            set_tensor_(folded, name, nn.Parameter(_value(folded, weight).contiguous()))
            with folded.graph.inserting_before(node):
                read = folded.graph.create_node("get_attr", name)
            node.replace_input_with(weight, read)
            names.append(name)
    folded.graph.eliminate_dead_code()
    folded.recompile()
    return refresh_shapes_(without_unread_(folded)), tuple(names)


def _computed(layer: Node) -> set[Node]:
    """What the weight of a layer is computed from, itself included; empty if it is not, or not for this layer alone."""
    weight = layer.args[1] if layer.target in WEIGHTED else None
    if not isinstance(weight, Node) or weight.op != "call_function":
        return set()
    parts, queue = {weight}, [weight]
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in parts:
                parts.add(source)
                queue.append(source)
    fixed = all(part.op in ("get_attr", "call_function") and part.target != TRAINING for part in parts)
    own = all(user in parts or (part is weight and user is layer) for part in parts for user in part.users)
    reads = any(part.op == "get_attr" for part in parts)
    moves = all(part.op == "get_attr" or getattr(part.target, "overloadpacket", None) in MOVES for part in parts)
    return parts if fixed and own and reads and not moves else set()


@torch.no_grad()
def _value(graph: GraphModule, node: Any) -> Any:
    """What a node that needs no input gives."""
    if node.op == "get_attr":
        return get_tensor(graph, str(node.target)).detach()
    args = torch.fx.map_arg(node.args, lambda part: _value(graph, part))
    return node.target(*args, **torch.fx.map_arg(node.kwargs, lambda part: _value(graph, part)))


def fold_batchnorm(graph: GraphModule) -> GraphModule:
    """A copy in eval mode for good, in which BatchNorm is part of the layer before it where that is possible.

    A BatchNorm stays where its input has other users or its layer's weight is shared.
    """
    folded = frozen_modes(graph)
    for norm in list(folded.graph.nodes):
        if norm.target is aten.batch_norm.default and _can_fold(norm):
            _fold_(folded, norm)
    folded.graph.eliminate_dead_code()
    folded.recompile()
    return folded


def _can_fold(norm: Node) -> bool:
    layer = norm.args[0]
    if not isinstance(layer, Node) or layer.target not in FOLDABLE or len(layer.users) > 1:
        return False
    weight = layer.args[1]
    fixed = [weight, *norm.args[3:5]]
    if not all(isinstance(part, Node) and part.op == "get_attr" for part in fixed):
        return False
    reads = [n for n in norm.graph.nodes if n.op == "get_attr" and n.target == weight.target]  # type: ignore[union-attr]
    return sum(len(read.users) for read in reads) == 1


def _fold_(graph: GraphModule, norm: Node) -> None:
    layer = norm.args[0]
    assert isinstance(layer, Node)

    def tensor(arg: object, default: float) -> Tensor:
        return get_tensor(graph, str(arg.target)).detach() if isinstance(arg, Node) else torch.tensor(default)

    gamma, beta = tensor(norm.args[1], 1.0), tensor(norm.args[2], 0.0)
    mean, variance = tensor(norm.args[3], 0.0), tensor(norm.args[4], 1.0)
    weight = tensor(layer.args[1], 0.0)
    bias = tensor(layer.args[2], 0.0) if len(layer.args) > 2 else torch.tensor(0.0)
    factor = gamma / torch.sqrt(variance + float(norm.args[7]))  # type: ignore[arg-type]
    name = str(layer.args[1].target)  # type: ignore[union-attr]
    bias_name = f"{name.rpartition('.')[0]}.bias_folded".lstrip(".")
    set_tensor_(graph, name, nn.Parameter(weight * factor.reshape(-1, *[1] * (weight.ndim - 1))))
    set_tensor_(graph, bias_name, nn.Parameter(beta + (bias - mean) * factor))
    with graph.graph.inserting_before(layer):
        read = graph.graph.create_node("get_attr", bias_name)
        read.meta["val"] = norm.args[3].meta.get("val")  # type: ignore[union-attr]
    layer.args = (*layer.args[:2], read, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)
