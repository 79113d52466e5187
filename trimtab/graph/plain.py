"""Write ops whose meaning hangs on a size in a form that names the number, so that a cut can leave or change it.

A chunk becomes a split into named sizes (chunks of a narrower dim would fall elsewhere), and attention names its
scale, 1 / sqrt(E), which must not follow E when channels of a head go. The values stay the same, bit for bit. The
assertions about dtypes that export writes go: they would hold the graph to one dtype.
"""

from __future__ import annotations

import math

import torch
from torch.fx import Graph, Node

from trimtab.graph.calls import arguments, set_argument_

aten = torch.ops.aten
CHUNKS = (
    aten.chunk.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.tensor_split.sections,
    aten.unsafe_chunk.default,
)


def plain_forms_(graph: Graph) -> Graph:
    """Rewrite every chunk and every attention without a scale in `graph`, whose nodes carry `meta["val"]`."""
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in CHUNKS:
            _name_sizes_(node)
        elif node.target is aten.scaled_dot_product_attention.default and arguments(node)["scale"] is None:
            width = arguments(node)["query"].meta["val"].shape[-1]
            if isinstance(width, int):
                set_argument_(node, "scale", 1 / math.sqrt(width))
    return graph


def _name_sizes_(node: Node) -> None:
    given = arguments(node)
    d = given["dim"]
    sizes = [piece.shape[d] for piece in node.meta["val"]]
    if all(isinstance(size, int) for size in sizes):
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (node.args[0], sizes, d), {}
