"""Blocks that do nearly the same share one set of weights; a step of training after it makes them fit.

Lan et al., "ALBERT" (2019): all layers of an encoder share their parameters. Differs: it is done to a trained net, for
the blocks that are most alike, by their weights or by what the whole net answers when one uses the other's; and each
block keeps its own biases and norms (vectors, few numbers), unless `vectors` shares them too. A block is what a module
list or a sequence numbers: blocks of one parent that have tensors of the same names and shapes can share. The block
whose weights serve the others best gives them to all. The operations stay, so nothing gets faster: fewer bytes are
kept, since a file holds a tensor once. `Distill` or `FineTune` after it trains the shared weights once for all uses.
Cost: by "weights" a pass over them; by "outputs" a pass over the samples for every pair, in both directions.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.compress.calibration import calibration
from trimtab.compress.prune import as_graph
from trimtab.compress.tables import table
from trimtab.core import Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import set_tensor_
from trimtab.graph.cost import num_parameters
from trimtab.train.loop import predict

# block -> name below it -> tensor
Blocks = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class SharedBlocks:
    """Blocks that use the weights of one of them, `giver`; numbers: what each held of them.

    distance: mean over the others of how far they are from the giver.
    """

    giver: str
    blocks: tuple[str, ...]
    numbers: int
    distance: float


@dataclass(frozen=True)
class SharePlan:
    """Which blocks share. params: of the whole before."""

    groups: tuple[SharedBlocks, ...]
    skipped: tuple[Skip, ...]
    params: int
    samples: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """One row per group."""
        return [
            {
                "weights of": one.giver,
                "serve": ", ".join(block for block in one.blocks if block != one.giver),
                "distance": round(one.distance, 4),
                "params freed": one.numbers * (len(one.blocks) - 1),
            }
            for one in self.groups
        ]

    def __str__(self) -> str:
        """The rows as a table, what is left of the whole, and what was left alone."""
        left = self.params - sum(one.numbers * (len(one.blocks) - 1) for one in self.groups)
        told = f"parameters {self.params:,} to {left:,} ({left / self.params:.1%} left)"
        return "\n".join([table(self.rows()), told, table([], self.skipped)]).rstrip()


@dataclass(frozen=True)
class ShareBlocks:
    """Let the blocks that are most alike share their weights.

    Args:
        num: how many blocks give up their weights for another's; give it, or `groups`.
        groups: of block names, e.g. (("encoder.layer.0", "encoder.layer.1"),).
        by: how alike two blocks are: "weights" (1 - cosine), or "outputs" (how much the net's answers on data change,
            relative to their size, when one uses the other's).
        vectors: share biases and norms too.
        samples: of the train split, for "outputs".

    >>> ShareBlocks(2).name, ShareBlocks(groups=(("layer.0", "layer.1"),)).name
    ('share 2 blocks by weights', 'share blocks of 1 group')
    """

    num: int | None = None
    groups: tuple[tuple[str, ...], ...] = ()
    by: Literal["weights", "outputs"] = "weights"
    vectors: bool = False
    samples: int = 64

    def __post_init__(self) -> None:
        if (self.num is None) == (not self.groups):
            raise PlanError(f"ShareBlocks needs one of num and groups; got num={self.num}, groups={self.groups}.")
        if (self.num is not None and self.num < 1) or any(len(set(group)) < 2 for group in self.groups):
            raise PlanError(
                f"ShareBlocks(num={self.num}, groups={self.groups}) shares nothing: give num >= 1, or groups of two "
                "blocks or more."
            )
        named = [block for group in self.groups for block in group]
        if len(set(named)) < len(named):
            raise PlanError(f"ShareBlocks(groups={self.groups}) names a block twice: a block is in one group.")
        if self.by not in ("weights", "outputs"):
            raise PlanError(f"ShareBlocks(by={self.by!r}) is not known; use 'weights' or 'outputs'.")

    @property
    def name(self) -> str:
        if self.groups:
            return f"share blocks of {len(self.groups)} group{'s' if len(self.groups) > 1 else ''}"
        return f"share {self.num} blocks by {self.by}" + (" with vectors" if self.vectors else "")

    def plan(self, graph: GraphModule | nn.Module, task: Task | None = None) -> SharePlan:
        """Choose the blocks that share.

        Args:
            graph: captured; or a module, which is captured with inputs of the task's select split.
            task: for data; not needed for a graph by "weights".

        Raises:
            PlanError: there are not so many blocks alike; blocks that were named are not there, or differ in shape.
        """
        graph = as_graph(graph, task, method="ShareBlocks")
        every = _blocks(graph, vectors=self.vectors)
        families = [list(group) for group in self.groups] if self.groups else _families(every)
        _refuse_unlike(every, self.groups)
        pairs = [pair for family in families for pair in itertools.permutations(family, 2)]
        distances, num = self._distances(graph, every, pairs, task)
        merged = families if self.groups else _merged(families, distances, self.num or 0)
        chosen = [_shared(every, group, distances) for group in merged if len(group) > 1]
        skipped = [
            Skip(block, "another pair is more alike" if len(family) > 1 else "no other block has its shapes")
            for family in (families if not self.groups else [])
            for block in family
            if not any(block in one.blocks for one in chosen)
        ]
        return SharePlan(tuple(chosen), tuple(skipped), num_parameters(graph), num)

    def apply(self, graph: GraphModule, plan: SharePlan, tools: Tools | None = None) -> GraphModule:
        """A copy of `graph` in which each planned block uses the giver's weights.

        Raises:
            PlanError: the plan is for another graph.
        """
        every = _blocks(graph, vectors=self.vectors)
        for one in plan.groups:
            wrong = next((block for block in one.blocks if _numbers(every.get(block, {})) != one.numbers), None)
            if wrong is not None:
                raise PlanError(
                    f"This plan was made for another graph: the block {wrong} should hold {one.numbers:,} numbers and "
                    f"holds {_numbers(every.get(wrong, {})):,}. Plan on the graph whose blocks share."
                )
        result = copy.deepcopy(graph)
        held = _blocks(result, vectors=self.vectors)
        for one in plan.groups:
            _give_(result, held, one.giver, [block for block in one.blocks if block != one.giver])
        return result

    def _distances(
        self, graph: GraphModule, every: Blocks, pairs: list[tuple[str, str]], task: Task | None
    ) -> tuple[dict[tuple[str, str], float], int]:
        """(giver, taker) -> how far they are apart, and on how many samples that was seen."""
        if self.by == "weights":
            return {pair: _angle(every[pair[0]], every[pair[1]]) for pair in pairs}, 0
        data = calibration(task, self.samples, purpose=f"ShareBlocks ({self.name})")
        wanted, found = predict(graph, data.inputs), {}
        for giver, taker in pairs:
            trial = copy.deepcopy(graph)
            _give_(trial, _blocks(trial, vectors=self.vectors), giver, [taker])
            change = predict(trial, data.inputs) - wanted
            found[giver, taker] = float(change.norm() / wanted.norm().clamp_min(1e-30))
        return found, len(data)


def _blocks(graph: GraphModule, *, vectors: bool) -> dict[str, dict[str, Tensor]]:
    """Every numbered part of the graph's names, with its parameters that would be shared; outer ones first."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in graph.named_parameters(remove_duplicate=False):
        parts = name.split(".")
        for depth, part in enumerate(parts[:-1], start=1):
            if part.isdecimal() and (vectors or tensor.ndim > 1):
                found.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = tensor
    return dict(sorted(found.items(), key=lambda item: item[0].count(".")))


def _families(every: Blocks) -> list[list[str]]:
    """Blocks of one parent with the same names and shapes; what is inside of one that has a like is not looked at."""
    families: list[list[str]] = []
    for _, level in itertools.groupby(every, key=lambda block: block.count(".")):
        alike: dict[tuple[str, str], list[str]] = {}
        inside = [f"{block}." for family in families if len(family) > 1 for block in family]
        for block in level:
            if not block.startswith(tuple(inside)):
                alike.setdefault((block.rpartition(".")[0], str(_shapes(every[block]))), []).append(block)
        families += alike.values()
    # What has no like, but holds blocks, is looked at through them.
    holders = {block for block in every if any(other.startswith(f"{block}.") for other in every)}
    return [family for family in families if len(family) > 1 or family[0] not in holders]


def _shapes(block: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in sorted(block.items())}


def _numbers(block: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in block.values())


def _refuse_unlike(every: Blocks, groups: tuple[tuple[str, ...], ...]) -> None:
    for group in groups:
        for block in group:
            if block not in every:
                raise PlanError(
                    f"ShareBlocks(groups=...) names {block!r}, and the graph has no such numbered block; it has: "
                    f"{', '.join(every) or 'none'}."
                )
            mine, first = _shapes(every[block]), _shapes(every[group[0]])
            if mine != first:
                name = next(name for name in (*first, *mine) if first.get(name) != mine.get(name))
                raise PlanError(
                    f"ShareBlocks(groups=...): {group[0]} and {block} cannot share: {name} is "
                    f"{first.get(name, 'not there')} in one and {mine.get(name, 'not there')} in the other. Group "
                    "blocks of the same shapes."
                )


def _merged(families: list[list[str]], distances: Mapping[tuple[str, str], float], num: int) -> list[list[str]]:
    """The families' blocks in groups: `num` times the two groups that are nearest on average become one."""
    groups = [[block] for family in families for block in family]

    def apart(one: list[str], other: list[str]) -> float:
        pairs = [pair for a, b in itertools.product(one, other) for pair in ((a, b), (b, a))]
        return sum(distances.get(pair, math.inf) for pair in pairs) / len(pairs)

    most = sum(len(family) - 1 for family in families)
    if num > most:
        raise PlanError(
            f"ShareBlocks would have {num} blocks give up their weights, and the graph has {most} with another of the "
            "same names and shapes beside them. Give a smaller num, or use Palette or Prune."
        )
    for _ in range(num):
        first, second = min(itertools.combinations(groups, 2), key=lambda pair: apart(*pair))
        groups = [group for group in groups if group not in (first, second)] + [first + second]
    return groups


def _shared(every: Blocks, group: list[str], distances: Mapping[tuple[str, str], float]) -> SharedBlocks:
    ordered = sorted(group, key=list(every).index)
    costs = {giver: sum(distances[giver, taker] for taker in ordered if taker != giver) for giver in ordered}
    giver = min(ordered, key=costs.__getitem__)
    return SharedBlocks(giver, tuple(ordered), _numbers(every[giver]), costs[giver] / (len(ordered) - 1))


def _angle(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """1 - the cosine between all numbers of two blocks."""
    left, right = (torch.cat([block[name].detach().double().flatten() for name in one]) for block in (one, other))
    return 1 - float(left @ right / (left.norm() * right.norm()).clamp_min(1e-300))


def _give_(graph: GraphModule, blocks: Blocks, giver: str, takers: list[str]) -> None:
    for taker in takers:
        for name, tensor in blocks[giver].items():
            set_tensor_(graph, f"{taker}.{name}", tensor)
