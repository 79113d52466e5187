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


def is_contraction(node: Node) -> bool:
    """A linear layer or a convolution that is not depthwise."""
    if node.target is aten.linear.default:
        return True
    if node.target not in (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default):
        return False
    groups = node.args[6] if len(node.args) > 6 else 1
    return groups == 1 or node.args[1].meta["val"].shape[1] > 1


class _Run(Interpreter):
    """Records what contractions read; answers with `held` values for those that do not use parameter `name`."""

    def __init__(self, graph: GraphModule, name: str = "", held: dict[Node, Tensor] | None = None) -> None:
        super().__init__(graph)
        self.name, self.held = name, held
        self.read: dict[Node, Tensor] = {}
        self.made: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if not is_contraction(n):
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
        channel = read.ndim - 1 if node.target is aten.linear.default else 1
        changed = (read - base.read[node]).abs().movedim(channel, 0).flatten(1).amax(dim=1) > 1e-9
        found |= {(node.name, channel, i) for i in changed.nonzero().flatten().tolist()}
    return frozenset(found)
