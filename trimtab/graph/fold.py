"""Fold BatchNorm into the convolution or linear layer before it, as every runtime does: w' = w g / sqrt(v + eps).

Exact in eval mode up to rounding; what is folded cannot be trained as BatchNorm any more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from trimtab.graph.capture import get_tensor, set_tensor_
from trimtab.graph.modes import frozen_modes

aten = torch.ops.aten
FOLDABLE = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)


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
