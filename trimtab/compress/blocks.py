"""Whole residual blocks go: where x + f(x) allows it, f is removed and x stands for the sum.

A block is a sum of two tensors of one shape of which one, the skip, leads to the other through at least one layer; so
attention and feed-forward of a transformer are a block each, and a ResNet's blocks without a projection. Importance is
how much a block changes what goes through it, 1 - cos(x, x + f(x)), a mean over samples.
Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (2024), for whole decoder
layers; here any residual branch of any graph is found. The result is compared with the original in which the branch
gives zeros, in eval and train mode.
Cost: one pass over the calibration samples; four float64 passes on three inputs to check.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from trimtab.compress.calibration import batches, calibration
from trimtab.compress.prune import as_graph
from trimtab.compress.tables import table
from trimtab.core import Skip, Split, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.calls import arguments, writes
from trimtab.graph.capture import without_unread_
from trimtab.graph.compare import CHECK_BATCH, disagreement
from trimtab.graph.cost import COUNTED, macs, num_parameters
from trimtab.graph.shapes import example_inputs, refresh_shapes_

aten = torch.ops.aten
SUMS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Block:
    """The sum `node` of `skip` and what `branch` gives; `name` is what its weights have in common."""

    node: str
    skip: str
    branch: str
    name: str


@dataclass(frozen=True)
class Dropped:
    """A block that goes, how much it changed its input, and what goes with it beside those before it in the plan."""

    block: Block
    change: float
    params_freed: int
    macs_freed: int


@dataclass(frozen=True)
class DropPlan:
    """Which blocks go, and which stay and why. params and macs are the original's."""

    dropped: tuple[Dropped, ...]
    skipped: tuple[Skip, ...]
    params: int
    macs: int

    def rows(self) -> list[dict[str, Any]]:
        """One row per block that goes."""
        return [
            {
                "block": one.block.name,
                "sum": one.block.node,
                "change": round(one.change, 4),
                "params freed": one.params_freed,
                "macs freed": one.macs_freed,
            }
            for one in self.dropped
        ]

    def __str__(self) -> str:
        """The rows as a table, what is left of the whole, and what stays and why."""
        params = self.params - sum(one.params_freed for one in self.dropped)
        macs_left = self.macs - sum(one.macs_freed for one in self.dropped)
        lines = [
            table(self.rows()),
            f"parameters {self.params:,} to {params:,} ({params / self.params:.1%} left)",
            f"MACs of one sample {self.macs:,} to {macs_left:,} ({macs_left / self.macs:.1%} left)",
        ]
        return "\n".join([*lines, table([], self.skipped)]).rstrip()


@dataclass(frozen=True)
class DropBlocks:
    """Remove the residual blocks that change least.

    Args:
        num: how many; give it or a ratio.
        ratio: the share of the blocks that goes.
        samples: of the train split, to see what each block changes.

    >>> DropBlocks(2).name, DropBlocks(ratio=0.25).name
    ('drop 2 blocks', 'drop .25 of the blocks')
    """

    num: int | None = None
    ratio: float | None = None
    samples: int = 256

    def __post_init__(self) -> None:
        if (self.num is None) == (self.ratio is None):
            raise PlanError(f"DropBlocks needs one of num and ratio; got num={self.num}, ratio={self.ratio}.")
        if (self.num is not None and self.num < 1) or (self.ratio is not None and not 0 < self.ratio < 1):
            raise PlanError(
                f"DropBlocks(num={self.num}, ratio={self.ratio}) drops nothing or too much: give num >= 1, or "
                "0 < ratio < 1."
            )

    @property
    def name(self) -> str:
        how = f"{self.num}" if self.num is not None else f"{self.ratio:g} of the".replace("0.", ".")
        return f"drop {how} blocks"

    def plan(self, graph: GraphModule | nn.Module, task: Task | None = None) -> DropPlan:
        """Choose the blocks that go.

        Raises:
            PlanError: there are not so many blocks, what they give is not finite, or there are too few samples.
        """
        graph = as_graph(graph, task, method="DropBlocks")
        found, skipped = blocks(graph)
        num = self.num if self.num is not None else math.floor((self.ratio or 0.0) * len(found) + 0.5)
        changes = _changes(graph, found, calibration(task, self.samples, purpose="DropBlocks"))
        ranked = sorted(found, key=lambda block: changes[block.node])
        chosen = _apart(graph, ranked)[:num]
        if num < 1 or len(chosen) < num:
            reasons = "".join(f"\n  {skip.what}: {skip.why}" for skip in skipped)
            raise PlanError(
                f"DropBlocks would have to drop {num} blocks, and the graph has {len(_apart(graph, ranked))} that can "
                f"go apart from each other. Give num or ratio to match, or use Prune.{reasons}"
            )
        smaller, dropped = copy.deepcopy(graph), []
        for block in [block for block in found if block in chosen]:  # in graph order
            freed = _drop_(smaller, block)
            dropped.append(Dropped(block, changes[block.node], *freed))
        stay = [
            Skip(f"{b.name} at {b.node}", f"it changes what goes through it by {changes[b.node]:.3g}")
            for b in found
            if b not in chosen
        ]
        return DropPlan(tuple(dropped), (*skipped, *stay), num_parameters(graph), macs(graph))

    def apply(self, graph: GraphModule, plan: DropPlan, tools: Tools | None = None) -> GraphModule:
        """A copy of `graph` without the blocks; compared with the original in which they give zeros.

        Raises:
            PlanError: the plan is for another graph, or the result is not the original without the branches.
        """
        known, smaller = blocks(graph)[0], copy.deepcopy(graph)
        for one in plan.dropped:
            if one.block not in known or _drop_(smaller, one.block) != (one.params_freed, one.macs_freed):
                raise PlanError(
                    f"This plan was made for another graph: there is no block {one.block.name} with the planned "
                    f"weights at {one.block.node!r}. Plan on the graph that you drop blocks from."
                )
        _check(graph, smaller, [one.block for one in plan.dropped])
        return smaller


def blocks(graph: GraphModule) -> tuple[list[Block], list[Skip]]:
    """The residual blocks of a graph in order, and the sums of computed tensors that are none, with reasons."""
    found, skipped = [], []
    for node in graph.graph.nodes:
        if node.target not in SUMS or not _same_shapes(node):
            continue
        first, second = node.args[:2]
        above = {first: _ancestors(first), second: _ancestors(second)}
        skip = first if first in above[second] else second if second in above[first] else None
        branch = second if skip is first else first
        if skip is None:
            pairs = ((first, second), (second, first))
            if all(_weights((above[side] | {side}) - above[other]) for side, other in pairs):
                skipped.append(Skip(node.name, "both of its sides go through layers, so neither is a skip"))
            continue
        if weights := _weights((above[branch] | {branch}) - above[skip] - {skip}):
            found.append(Block(node.name, skip.name, branch.name, _common(weights)))
    return found, skipped


def _same_shapes(node: Node) -> bool:
    sides = node.args[:2]
    if len(sides) < 2 or arguments(node)["alpha"] != 1:
        return False
    if not all(isinstance(side, Node) and isinstance(side.meta.get("val"), Tensor) for side in sides):
        return False
    return tuple(sides[0].meta["val"].shape) == tuple(sides[1].meta["val"].shape)  # type: ignore[union-attr]


def _ancestors(node: Node) -> set[Node]:
    seen: set[Node] = set()
    queue = [node]
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return seen


def _weights(nodes: set[Node]) -> list[str]:
    """The weights of the layers among some nodes."""
    layers = [node for node in nodes if node.target in COUNTED]
    return sorted({str(source.target) for node in layers for source in node.all_input_nodes if source.op == "get_attr"})


def _common(weights: list[str]) -> str:
    parents = [weight.split(".")[:-1] for weight in weights]
    shared = list(itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False)))
    return ".".join(parts[0] for parts in shared) or ", ".join(dict.fromkeys(".".join(parent) for parent in parents))


def _branch(graph: GraphModule, block: Block) -> list[Node]:
    """The nodes that only the branch needs, in order."""
    nodes = {node.name: node for node in graph.graph.nodes}
    skip, end = nodes[block.skip], nodes[block.branch]
    own = (_ancestors(end) | {end}) - _ancestors(skip) - {skip}
    return [node for node in graph.graph.nodes if node in own and node.op != "placeholder"]


def _apart(graph: GraphModule, ranked: list[Block]) -> list[Block]:
    """The blocks, best first, of which none lies in another."""
    chosen: list[Block] = []
    taken: set[Node] = set()
    for block in ranked:
        own = {node for node in _branch(graph, block) if node.op == "call_function"}
        if not own & taken:
            chosen.append(block)
            taken |= own
    return chosen


@torch.no_grad()
def _changes(graph: GraphModule, found: list[Block], data: Split) -> dict[str, float]:
    """1 - cos(x, x + f(x)) of each block, a mean over samples."""
    nodes = {node.name: node for node in graph.graph.nodes}
    totals = dict.fromkeys((block.node for block in found), 0.0)

    class See(Interpreter):
        def run_node(self, n: Node) -> Any:
            before = self.env.get(nodes[skips[n.name]]) if n.name in skips else None
            before = before.clone() if before is not None else None  # the sum may be in place
            after = super().run_node(n)
            if before is not None:
                cos = torch.cosine_similarity(before.flatten(1).double(), after.flatten(1).double(), dim=1)
                totals[n.name] += float((1 - cos).sum()) / len(data)
            return after

    skips = {block.node: block.skip for block in found}
    for batch in batches(data):
        See(graph, garbage_collect_values=False).run(*(x.clone() for x in batch.inputs))
    for block in found:
        if not math.isfinite(totals[block.node]):
            raise PlanError(
                f"The importance of block {block.name} is NaN: it gives NaN or infinity on the calibration samples. "
                "Check the weights and the data."
            )
    return totals


def _drop_(graph: GraphModule, block: Block) -> tuple[int, int]:
    """Take a block out, in place; returns the parameters and multiply-accumulates that went."""
    before = num_parameters(graph), macs(graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    branch = _branch(graph, block)
    nodes[block.node].replace_all_uses_with(nodes[block.skip])
    graph.graph.erase_node(nodes[block.node])
    for node in reversed(branch):
        # What writes into a tensor of the branch goes with it; what writes into the skip stays.
        if not node.users and not (writes(node) and node.args[0] not in branch):
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    refresh_shapes_(without_unread_(graph))
    return before[0] - num_parameters(graph), before[1] - macs(graph)


@torch.no_grad()
def _check(graph: GraphModule, smaller: GraphModule, dropped: list[Block]) -> None:
    """Compare with the original in which the branches give zeros.

    Raises:
        PlanError: they differ.
    """
    sums = {block.node: block for block in dropped}

    class Zeroed(Interpreter):
        def fetch_args_kwargs_from_env(self, n: Node) -> Any:
            args, kwargs = super().fetch_args_kwargs_from_env(n)
            if n.name in sums:
                at = [side.name for side in n.args[:2]].index(sums[n.name].branch)  # type: ignore[union-attr]
                args = (*args[:at], torch.zeros_like(args[at]), *args[at + 1 :])
            return args, kwargs

    examples = example_inputs(graph, batch_size=CHECK_BATCH)
    if wrong := disagreement(graph, smaller, examples, run=Zeroed):
        raise PlanError(
            f"Dropping {', '.join(block.name for block in dropped)} would change more than these branches: {wrong}. "
            "Something in them writes into their input. Leave them in (a smaller num), and report the model."
        )
