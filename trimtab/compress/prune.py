"""Structured pruning: whole channels go, so the model is smaller and faster in every runtime.

Which slices belong to one channel is read from the graph (`graph/dims.py`); the least important channels of each group
go, the same share from every group. Importance is magnitude: the L2 norm of a channel's slice of each weight that
makes it, scales it (BatchNorm, depthwise convolution) or reads it, each relative to the mean over the group's
channels, averaged. After Li et al., "Pruning Filters for Efficient ConvNets" (2017), which ranks by the L1 norm of
the producing filter alone, and Fang et al., "DepGraph" (2023), which sums over the whole group.

Cost: one pass over the weights to plan; applying checks the cut by four forward passes in float64 on three inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.core import Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import get_tensor
from trimtab.graph.dims import Group, groups
from trimtab.graph.surgery import cut


@dataclass(frozen=True)
class Slice:
    """A dim of a parameter or buffer, before and after."""

    parameter: str
    dim: int
    before: int
    after: int


@dataclass(frozen=True)
class Cut:
    """What goes from one group: `kept` are the channels that stay, out of `size`.

    importance_lost: the share of the group's importance that goes. params_freed counts what goes beside the cuts
    that stand before it in the plan, so that they add up.
    """

    group: str
    size: int
    kept: tuple[int, ...]
    slices: tuple[Slice, ...]
    importance_lost: float
    params_freed: int


@dataclass(frozen=True)
class PrunePlan:
    """Which channels stay in which group, and what was left alone."""

    cuts: tuple[Cut, ...]
    skipped: tuple[Skip, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per group."""
        return [
            {
                "group": one.group,
                "weights": ", ".join(dict.fromkeys(part.parameter for part in one.slices)),
                "channels before": one.slices[0].before,
                "channels after": one.slices[0].after,
                "importance lost": round(one.importance_lost, 4),
                "params freed": one.params_freed,
            }
            for one in self.cuts
        ]


@dataclass(frozen=True)
class Prune:
    """Cut the share `ratio` of the channels of every group.

    ratio: between 0 and 1. round_to: kept widths become multiples of it in groups at least twice as wide, because
    runtimes work in such blocks. keep_min: a plan that would keep fewer channels of a group is refused.

    >>> Prune(0.5).name
    'prune .5'
    """

    ratio: float
    importance: Literal["magnitude"] = "magnitude"
    round_to: int = 8
    keep_min: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise PlanError(
                f"Prune(ratio={self.ratio:g}) is not a share of channels to cut: give 0 < ratio < 1, e.g. 0.5."
            )
        if self.importance != "magnitude":
            raise PlanError(f"Prune(importance={self.importance!r}) is not known; use 'magnitude'.")
        if self.round_to < 1 or self.keep_min < 1:
            raise PlanError(
                f"Prune needs round_to >= 1 and keep_min >= 1; got {self.round_to} and {self.keep_min}. "
                "round_to=1 keeps any width."
            )

    @property
    def name(self) -> str:
        """Name for people, e.g. in a recipe."""
        return f"prune {self.ratio:g}".replace(" 0.", " .")

    def plan(self, graph: GraphModule | nn.Module, task: Task | None = None) -> PrunePlan:
        """Choose the channels that stay. `task` is not needed: magnitude looks at the weights alone.

        Raises:
            PlanError: nothing can be cut, too few channels would stay, or weights are not finite.
        """
        if not isinstance(graph, GraphModule):
            raise PlanError(
                f"Prune plans on a captured graph; got a {type(graph).__name__}. "
                "Capture it first: capture(model, inputs)."
            )
        found = groups(graph)
        chosen, skipped = _disjoint(found.cuttable)
        shapes = {name: list(p.shape) for name, p in graph.named_parameters()}
        cuts = []
        for group in chosen:
            importance = magnitude(graph, group)
            num_kept = self._num_kept(group)
            if num_kept == group.size:
                why = f"cutting {self.ratio:g} of it, rounded to a multiple of {self.round_to}, leaves it whole"
                skipped.append(Skip(f"{group.name} ({group.size})", why))
            else:
                cuts.append(_cut(group, importance, num_kept, shapes))
        skips = (*found.skipped, *skipped)
        if not cuts:
            reasons = "".join(f"\n  {skip.what}: {skip.why}" for skip in skips)
            raise PlanError(
                f"Nothing can be cut from this graph at ratio {self.ratio:g}. Raise the ratio, lower round_to, "
                f"or use a method that does not cut channels.{reasons}"
            )
        return PrunePlan(tuple(cuts), skips)

    def apply(self, graph: GraphModule, plan: PrunePlan, tools: Tools | None = None) -> GraphModule:
        """A copy of `graph` without the channels that the plan leaves out; every cut is checked.

        Raises:
            PlanError: the plan is for another graph, or the result is not the masked original.
        """
        sizes = {group.name: group.size for group in groups(graph).cuttable}
        wrong = [one for one in plan.cuts if sizes.get(one.group) != one.size]
        if wrong:
            listed = ", ".join(f"{w.group}: {w.size} planned, {sizes.get(w.group, 'none')} found" for w in wrong)
            raise PlanError(f"This plan was made for another graph ({listed}). Plan on the graph that you cut.")
        return cut(graph, {one.group: one.kept for one in plan.cuts})

    def _num_kept(self, group: Group) -> int:
        # The width is what a runtime sees: a group may be a factor of it, e.g. in a grouped convolution.
        factor = math.gcd(*(use.place.table().shape[1] for use in group.uses if use.role == "producer")) or 1
        step = self.round_to // math.gcd(self.round_to, factor) if group.size * factor >= 2 * self.round_to else 1
        share = (1 - self.ratio) * group.size
        if math.floor(share + 0.5) < self.keep_min:
            most = 1 - (self.keep_min - 0.5) / group.size
            mend = f"Use a ratio of at most {math.floor(most * 100) / 100:g}" if most >= 0.01 else "Lower keep_min"
            raise PlanError(
                f"Ratio {self.ratio:g} leaves {math.floor(share + 0.5)} of the {group.size} channels of {group.name}; "
                f"at least {self.keep_min} must stay. {mend}."
            )
        num_steps = max(math.floor(share / step + 0.5), math.ceil(self.keep_min / step))
        return min(num_steps * step, group.size)


def magnitude(graph: GraphModule, group: Group) -> Tensor:
    """How much each channel of a group weighs: mean over its weights of the norm relative to the channels' mean.

    Returns:
        [size] in float64; around 1.

    Raises:
        PlanError: a weight is not finite.
    """
    scores = []
    for use in group.uses:
        if use.role == "follower":
            continue
        weight = get_tensor(graph, use.name).detach().double()
        if not weight.isfinite().all():
            raise PlanError(
                f"The importance of {group.name} is NaN: {use.name} holds NaN or inf. Load a sound checkpoint."
            )
        channels = weight.movedim(use.dim, 0).reshape(use.place.width, -1)[use.place.table()]
        norm = channels.square().sum(dim=(1, 2)).sqrt()
        scores.append(norm / norm.mean().clamp_min(torch.finfo(torch.float64).tiny))
    return torch.stack(scores).mean(dim=0)


def _disjoint(cuttable: tuple[Group, ...]) -> tuple[list[Group], list[Skip]]:
    """Of several factors of one dim only the largest is cut: cutting each by `ratio` would cut the dim twice."""
    taken: dict[tuple[str, int], str] = {}
    chosen, skipped = [], []
    for group in sorted(cuttable, key=lambda group: -group.size):
        dims = [(use.name, use.dim) for use in group.uses]
        other = next((taken[dim] for dim in dims if dim in taken), None)
        if other is None:
            chosen.append(group)
            taken.update(dict.fromkeys(dims, group.name))
        else:
            skipped.append(Skip(f"{group.name} ({group.size})", f"it shares a dim with {other}, which is cut"))
    return [group for group in cuttable if group in chosen], skipped


def _cut(group: Group, importance: Tensor, num_kept: int, shapes: dict[str, list[int]]) -> Cut:
    """The cut that keeps the most important channels; `shapes` of the parameters follow it."""
    ranked = importance.argsort(descending=True, stable=True)
    kept = sorted(ranked[:num_kept].tolist())
    before = sum(math.prod(shape) for shape in shapes.values())
    slices = []
    for use in group.uses:
        gone = use.place.table().shape[1] * (group.size - num_kept)
        slices.append(Slice(use.name, use.dim, use.place.width, use.place.width - gone))
        if use.name in shapes:
            shapes[use.name][use.dim] -= gone
    after = sum(math.prod(shape) for shape in shapes.values())
    total = float(importance.sum())
    lost = 1 - float(importance[kept].sum()) / total if total else 0.0
    return Cut(group.name, group.size, tuple(kept), tuple(slices), lost, before - after)
