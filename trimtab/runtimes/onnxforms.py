"""Write what the ONNX exporter has no sound form of in operations that it has, with the same values.

Attention over other than four dims (windows, one head): the dims before the heads become one, or one is put in.
A clamp between tensors: two choices; a Clip of the exporter's own, also one made of max and min, may lose its limits.
"""

from __future__ import annotations

import copy

import torch
from torch.fx import GraphModule, Node

from trimtab.graph.calls import arguments, set_argument_

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
CLAMP = aten.clamp.Tensor
OPERANDS = ("query", "key", "value", "attn_mask")


def onnx_forms(graph: GraphModule) -> GraphModule:
    """`graph`, or a copy of it with every such operation rewritten."""
    if not any(_is_foreign(node) for node in graph.graph.nodes):
        return graph
    result = copy.deepcopy(graph)
    for node in list(result.graph.nodes):
        if _is_foreign(node):
            (_clamp_ if node.target is CLAMP else _attention_)(node)
    result.recompile()
    return result


def _is_foreign(node: Node) -> bool:
    return node.target is CLAMP or (node.target is ATTENTION and _num_dims(arguments(node)["query"]) != 4)


def _num_dims(node: Node) -> int:
    return node.meta["val"].dim()  # type: ignore[no-any-return]


def _clamp_(node: Node) -> None:
    given = arguments(node)
    value = given["self"]
    with node.graph.inserting_before(node):
        for beyond, limit in ((aten.lt.Tensor, given["min"]), (aten.gt.Tensor, given["max"])):
            if limit is not None:
                outside = node.graph.call_function(beyond, (value, limit))
                value = node.graph.call_function(aten.where.self, (outside, limit, value))
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def _attention_(node: Node) -> None:
    """Let the call see [lead, heads, L, E]: of [B, ..., heads, L, E] the first become one, [B, L, E] has one head."""
    graph, given = node.graph, arguments(node)
    lead = given["query"].meta["val"].shape[1:-3]
    few = _num_dims(given["query"]) < 4

    def four(operand: Node) -> Node:
        if few:
            return graph.call_function(aten.unsqueeze.default, (operand, 1))
        # A mask may be the same for all windows, or all samples: it is laid out for each.
        query = given["query"]
        if _num_dims(operand) < 4:
            return operand
        first = graph.call_function(aten.sym_size.int, (query, 0))
        own = [-1] * 3
        wide = graph.call_function(aten.expand.default, (operand, [first, *lead, *own]))
        return graph.call_function(aten.flatten.using_ints, (wide, 0, len(lead)))

    with graph.inserting_before(node):
        for name in OPERANDS:
            if isinstance(given[name], Node) and not (few and _num_dims(given[name]) < 3):
                set_argument_(node, name, four(given[name]))
    with graph.inserting_after(node):
        if few:
            back = graph.call_function(aten.squeeze.dim, (node, 1))
        else:
            back = graph.call_function(aten.unflatten.int, (node, 0, [-1, *lead]))
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
