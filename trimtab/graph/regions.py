"""Put the body of a region back into the graph: export keeps what stands under autocast or a gradient switch apart.

A model that turns autocast off for a part of itself (for range: linear attention, norms) is one graph all the same.
What is lost is the switch: trained in bf16, that part is bf16 too. In float32 the values stay, bit for bit.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from trimtab.errors import CaptureError

hop = torch.ops.higher_order
# Where the region's graph stands among the arguments; what follows it goes in.
BODY = {hop.wrap_with_autocast: 4, hop.wrap_with_set_grad_enabled: 1}
ENABLED = 2


def inlined_regions_(module: GraphModule) -> Graph:
    """Replace every region in `module` by what it does; returns its graph.

    Raises:
        CaptureError: a region turns autocast on.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target not in BODY:
            continue
        if node.target is hop.wrap_with_autocast and node.args[ENABLED]:
            raise CaptureError(
                "The model turns autocast on within its own forward, so it would not be the same model in float32. "
                'Take torch.autocast out of it and say the precision where it is trained: Fit(precision="bf16").'
            )
        at = BODY[node.target]
        body = module.get_submodule(str(node.args[at].target))
        assert isinstance(body, GraphModule), "export keeps a region as a graph"
        inner = inlined_regions_(body)
        inputs = [one for one in inner.nodes if one.op == "placeholder"]
        seen: dict[Node, Node] = dict(zip(inputs, node.args[at + 1 :], strict=True))  # type: ignore[arg-type]
        with graph.inserting_before(node):
            outputs = graph.graph_copy(inner, seen)
        for user in list(node.users):  # operator.getitem
            user.replace_all_uses_with(outputs[user.args[1]])  # type: ignore[index,arg-type]
            graph.erase_node(user)
        graph.erase_node(node)
    return graph
