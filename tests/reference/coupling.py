"""Which channels belong together, found by brute force: disturb one, see what moves.

Slow and obvious: one forward pass per channel, and no knowledge of any operation but which ones contract.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from trimtab.graph.capture import get_tensor

Element = tuple[str, int, int]  # a parameter, a dim and an index; or a contraction, its input's dim and an index
aten = torch.ops.aten


CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def contracted_dim(node: Node) -> int | None:
    """The dim of its first argument that a linear layer, convolution or sum runs over; None for other operations.

    A depthwise convolution runs over none.
    """
    if node.target is aten.linear.default:
        return node.args[0].meta["val"].ndim - 1
    if node.target is aten.sum.dim_IntList:
        return node.args[1][0] % node.args[0].meta["val"].ndim
    if not isinstance(node.target, torch._ops.OpOverload) or str(node.target).split(".")[1] not in CONVOLUTIONS:
        return None
    groups = {a.name: value for a, value in zip(node.target._schema.arguments, node.args, strict=False)}.get(
        "groups", 1
    )
    channels = node.args[0].meta["val"].shape[1]
    return 1 if groups == 1 or channels // groups > 1 else None


class _Run(Interpreter):
    """Records what contractions read; answers with `held` values for those that do not use parameter `name`."""

    def __init__(self, graph: GraphModule, name: str = "", held: dict[Node, Tensor] | None = None) -> None:
        super().__init__(graph)
        self.name, self.held = name, held
        self.read: dict[Node, Tensor] = {}
        self.made: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if contracted_dim(n) is None:
            return super().run_node(n)
        self.read[n] = self.env[n.args[0]].clone()
        uses = any(isinstance(arg, Node) and arg.target == self.name for arg in n.args)
        self.made[n] = super().run_node(n) if self.held is None or uses else self.held[n]
        return self.made[n]


@torch.no_grad()
def moved(graph: GraphModule, x: Tensor, name: str, dim: int, index: int) -> frozenset[Element]:
    """The input channels of contractions that move when one slice of a parameter does, before the next contraction."""
    base = _Run(graph)
    base.run(x.clone())
    parameter = get_tensor(graph, name)
    before = parameter.clone()
    parameter.select(dim, index).add_(0.37)
    after = _Run(graph, name, base.made)
    after.run(x.clone())
    parameter.copy_(before)
    found = set()
    for node, read in after.read.items():
        channel = contracted_dim(node)
        assert channel is not None
        changed = (read - base.read[node]).abs().movedim(channel, 0).flatten(1).amax(dim=1) > 1e-9
        found |= {(node.name, channel, i) for i in changed.nonzero().flatten().tolist()}
    return frozenset(found)
