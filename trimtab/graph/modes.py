"""Train and eval modes that really switch, inside a captured graph.

An exported graph holds `training` as a constant in each BatchNorm and Dropout call. Here it becomes a read of the
module's own `training` attribute, so `graph.train()` and `graph.eval()` act as on any module, without recompiling,
and `torch.compile` guards on it.
"""

from __future__ import annotations

import copy

import torch
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
# op -> position of its training flag
FLAGS = {
    aten.batch_norm.default: 5,
    aten.dropout.default: 2,
    aten.dropout_.default: 2,
    aten.feature_dropout.default: 2,
    aten.alpha_dropout.default: 2,
}
TRAINING = "training"


def live_modes_(graph: Graph) -> Graph:
    """Make every mode flag in `graph` follow the module's `training` attribute.

    A BatchNorm without running statistics uses the batch's in both modes and is left alone.
    """
    flagged = [node for node in graph.nodes if node.op == "call_function" and _follows_mode(node)]
    if not flagged:
        return graph
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        training = graph.create_node("get_attr", TRAINING)
    for node in flagged:
        node.update_arg(FLAGS[node.target], training)
    return graph


def _follows_mode(node: Node) -> bool:
    at = FLAGS.get(node.target)  # type: ignore[call-overload]
    if at is None or len(node.args) <= at or node.args[at] is not False:
        return False
    return node.target is not aten.batch_norm.default or node.args[3] is not None


def kept_norms(graph: GraphModule) -> GraphModule:
    """A copy whose BatchNorms normalize by their running statistics in train mode too, and leave them as they are."""
    kept = copy.deepcopy(graph)
    for node in kept.graph.nodes:
        if node.target is aten.batch_norm.default and node.args[3] is not None:
            node.update_arg(FLAGS[node.target], False)  # noqa: FBT003
    kept.recompile()
    return kept


def frozen_modes(graph: GraphModule) -> GraphModule:
    """A copy that is in eval mode for good: what runtimes take. Dropout is gone."""
    frozen = copy.deepcopy(graph).eval()
    for node in list(frozen.graph.nodes):
        if node.op == "get_attr" and node.target == TRAINING:
            for user in list(node.users):
                user.replace_input_with(node, False)  # type: ignore[arg-type]  # noqa: FBT003
            frozen.graph.erase_node(node)
    for node in list(frozen.graph.nodes):
        if node.target in FLAGS and node.target is not aten.batch_norm.default:
            node.replace_all_uses_with(node.args[0])
            frozen.graph.erase_node(node)
    frozen.recompile()
    return frozen
