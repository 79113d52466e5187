"""Training that keeps zeros: a weight that was made sparse is multiplied by its mask in every step.

Han et al., "Learning both Weights and Connections" (2015), retrain what pruning left. A weight counts as sparse if a
hundredth of its numbers or more are exactly zero. Cost: a product of each sparse weight with its mask, in every step.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.graph.capture import get_tensor, set_tensor_
from trimtab.graph.shapes import refresh_shapes_

aten = torch.ops.aten

ZEROS_COUNT_FROM = 0.01


def is_sparse(weight: Tensor) -> bool:
    """Whether so many of its numbers are zero that somebody made them so."""
    return weight.ndim > 1 and weight.is_floating_point() and zero_share(weight) >= ZEROS_COUNT_FROM


def zero_share(weight: Tensor) -> float:
    """The share of exact zeros.

    >>> zero_share(torch.tensor([0.0, 1.0]))
    0.5
    """
    return float((weight == 0).double().mean())


def keeping_zeros(graph: GraphModule | nn.Module) -> GraphModule | nn.Module:
    """A copy of `graph` that trains as it does, but for zeros of sparse weights, which stay.

    Itself if none is sparse, or if it is a module that was not captured.
    """
    if not isinstance(graph, GraphModule):
        return graph
    reads = [node for node in graph.graph.nodes if node.op == "get_attr"]
    held = dict(graph.named_parameters(remove_duplicate=False))
    sparse = [node.name for node in reads if str(node.target) in held and is_sparse(held[str(node.target)].detach())]
    if not sparse:
        return graph
    result = copy.deepcopy(graph)
    nodes = {node.name: node for node in result.graph.nodes}
    for name in sparse:
        node = nodes[name]
        weight = get_tensor(result, str(node.target)).detach()
        mask = f"{str(node.target).replace('.', '_')}_mask"
        set_tensor_(result, mask, (weight != 0).to(weight.dtype))
        with result.graph.inserting_after(node):
            read = result.graph.create_node("get_attr", mask)
        with result.graph.inserting_after(read):
            masked = result.graph.call_function(aten.mul.Tensor, (node, read))
        node.replace_all_uses_with(masked, delete_user_cb=lambda user, own=masked: user is not own)
    result.recompile()
    return refresh_shapes_(result)


def take_weights_(graph: GraphModule, trained: dict[str, Tensor]) -> GraphModule:
    """Give `graph` the values of its tensors in `trained`, which may hold more; in eval mode."""
    graph.load_state_dict({name: trained[name] for name in graph.state_dict()})
    return graph.eval()
