"""Which groups a plan cuts where several share a dim, as heads and the width of a head do.

Cutting each by the same share would cut the dim twice, so of groups that overlap in any tensor one is taken. Groups
beside each other in a dim, as in a concatenation, do not overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from trimtab.core import Skip
from trimtab.graph.dims import Group

Heads = Literal["auto", "whole", "inside"]


def disjoint(
    cuttable: tuple[Group, ...], can_be_cut: Callable[[Group], bool], heads: Heads
) -> tuple[list[Group], list[Skip]]:
    """Groups of which no two overlap, in their order, and the rest with reasons.

    Args:
        cuttable: groups of one graph.
        can_be_cut: whether at least one channel of a group would go.
        heads: of overlapping groups take the outermost ("whole"), the innermost ("inside"), or ("auto") the
            outermost that can be cut: whole heads if at least one goes.
    """
    marks = _Marks(cuttable)
    outward = sorted(cuttable, key=_stride, reverse=heads != "inside")
    chosen: dict[str, Group] = {}
    seen: list[str] = []
    skipped = []
    for group in outward:
        rivals = marks.overlapping(group.name)
        taken = next((name for name in rivals if name in chosen), None)
        before = next((name for name in rivals if name in seen), None)
        seen.append(group.name)
        what = f"{group.name} ({group.size})"
        if taken:
            skipped.append(Skip(what, f"it shares a dim with {taken}, which is cut"))
        elif before and heads != "auto":
            skipped.append(Skip(what, f"it shares a dim with {before}, which heads={heads!r} prefers"))
        elif rivals and heads == "auto" and not can_be_cut(group):
            skipped.append(Skip(what, "none of its channels would go, and other factors of its dim can be cut"))
        else:
            chosen[group.name] = group
    return [group for group in cuttable if group.name in chosen], skipped


def _stride(group: Group) -> int:
    """How far channels lie apart: the outer of two factors of a dim has the larger stride."""
    if group.size == 1:
        return 0
    firsts = [use.place.table()[:2, 0].tolist() for use in group.uses]
    return max((int(second - first) for first, second in firsts), default=0)


class _Marks:
    """Which indices of which dims each group has."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        self._places: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
        self._own: dict[str, list[tuple[tuple[str, int], Tensor]]] = {}
        for group in groups:
            for use in group.uses:
                marked = torch.zeros(use.place.width, dtype=torch.bool)
                marked[use.place.table().flatten()] = True
                at = (use.name, use.dim)
                self._places.setdefault(at, []).append((group.name, marked))
                self._own.setdefault(group.name, []).append((at, marked))

    def overlapping(self, group: str) -> list[str]:
        """The other groups that have an index of a dim with this one."""
        return list(
            dict.fromkeys(
                name
                for at, marked in self._own.get(group, ())
                for name, other in self._places[at]
                if name != group and bool((marked & other).any())
            )
        )
