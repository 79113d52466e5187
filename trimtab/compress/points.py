"""Which values of a graph are rounded for its layers, and who reads them rounded.

Between two layers as much as can be runs on integers: clamps, pooling, reshapes, sums. A value that comes out of them
exists there in integers alone, so whoever reads it reads it rounded. A value that is there in floating point (an input,
or made by a norm, an attention, an activation that integers do not have) is rounded once, for those who read integers;
others read it exact, as the residual sum beside a layer does. So it costs no accuracy twice, and inductor, which knows
a layer of sequences as quantized only where nothing but layers reads what goes in, finds all of them.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.fx import Graph, Node

from trimtab.compress.ops import ADDS, AVERAGES, LIMITED, MAX_POOLS, RELUS

aten = torch.ops.aten
LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)
# Fused into the layer before them: no rounding between the two.
CLAMPS = (*RELUS, *LIMITED)
# Run on integers as they are: what goes in and what comes out share one scale.
SAME_SCALE = (
    *MAX_POOLS,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
)
# Run on integers with a scale on each side.
MEANS = (*AVERAGES, aten.mean.dim)


def made_of_integers(graph: Graph) -> set[Node]:
    """The values that can come out of integer operations: of layers, inputs, and what may follow them on integers."""
    found: set[Node] = set()
    for node in graph.nodes:
        if (
            node.op == "placeholder"
            or node.target in LAYERS
            or (node.target in (*CLAMPS, *SAME_SCALE, *MEANS) and node.args[0] in found)
            or (node.target in ADDS and not found.isdisjoint(node.all_input_nodes))
        ):
            found.add(node)
    return found


def points(layers: list[Node]) -> tuple[list[Node], dict[Node, Node]]:
    """The values to quantize, in graph order, and which of them take another's scale.

    They are the inputs of the layers, and from there backwards what must be integer for the operators between
    two layers (pooling, residual additions, reshapes) to run on integers too.
    """
    integers = made_of_integers(layers[0].graph)
    wanted: dict[Node, None] = {}
    ties: dict[Node, Node] = {}
    stack = [layer.args[0] for layer in layers]
    while stack:
        value = stack.pop()
        if not isinstance(value, Node) or value in wanted:
            continue
        wanted[value] = None
        if value not in integers:
            continue
        maker = value.args[0] if value.target in CLAMPS and isinstance(value.args[0], Node) else value
        if maker.target in SAME_SCALE and maker is value:
            ties[value] = maker.args[0]  # type: ignore[assignment]
            stack.append(maker.args[0])
        elif maker.target in MEANS:
            stack.append(maker.args[0])
        elif maker.target in ADDS:
            stack += maker.args[:2]
    order = {node: place for place, node in enumerate(layers[0].graph.nodes)}
    return sorted(wanted, key=order.__getitem__), ties


def rounded_readers(graph: Graph, names: Collection[str]) -> dict[str, list[Node]]:
    """For each value that a plan names, who reads it rounded.

    Args:
        graph: not quantized.
        names: of all the values that will be quantized.
    """
    integers = made_of_integers(graph)

    def on_integers(user: Node) -> bool:
        """Whether it is a layer, or what a layer further on asks for in integers."""
        if user.target in LAYERS:
            return True
        ends = [user, *(after for after in user.users if after.target in CLAMPS)]
        between = user.target in (*ADDS, *SAME_SCALE, *MEANS) and user in integers
        return between and any(end.name in names for end in ends)

    def rounded(value: Node) -> list[Node]:
        exact = value.op == "placeholder" or value not in integers
        return [user for user in value.users if not exact or on_integers(user)]

    return {node.name: rounded(node) for node in graph.nodes if node.name in names}
