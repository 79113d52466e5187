"""Of groups that overlap in a dim one is cut; of those beside each other, all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.graph.test_dims import Forward
from tests.graph.test_rules import dense_block
from trimtab.compress.factors import disjoint
from trimtab.graph.capture import capture
from trimtab.graph.dims import Groups, groups


def heads(num: int, width: int) -> Groups:
    def attend(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).view(x.shape[0], 5, num, width).transpose(1, 2) for part in (m.q, m.k, m.v))
        return m.o(F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)).mean(1)

    parts = {name: nn.Linear(6, num * width) for name in "qkv"} | {"o": nn.Linear(num * width, 3)}
    return groups(capture(Forward(attend, **parts).eval(), (torch.randn(2, 5, 6),)))


@pytest.mark.parametrize(
    ("how", "some_go", "expected"),
    [
        ("auto", {"q", "q#2", "v"}, ["q"]),
        ("auto", {"q#2", "v"}, ["q#2", "v"]),
        ("whole", {"q#2", "v"}, ["q"]),
        ("inside", {"q", "q#2", "v"}, ["q#2", "v"]),
    ],
)
def test_heads_or_what_is_inside_them(how, some_go: set[str], expected: list[str]) -> None:
    found = heads(2, 4)
    assert [(group.name, group.size) for group in found.cuttable] == [("q", 2), ("q#2", 4), ("v", 4)]
    chosen, skipped = disjoint(found.cuttable, lambda group: group.name in some_go, how)
    assert [group.name for group in chosen] == expected
    assert len(chosen) + len(skipped) == 3
    assert all(skip.why for skip in skipped)


def test_groups_beside_each_other_are_all_cut() -> None:
    parts = {
        "stem": nn.Conv2d(3, 8, 3, padding=1),
        "na": nn.BatchNorm2d(8),
        "a": nn.Conv2d(8, 4, 3, padding=1),
        "nb": nn.BatchNorm2d(12),
        "b": nn.Conv2d(12, 4, 3, padding=1),
        "head": nn.Linear(16, 3),
    }
    found = groups(capture(Forward(dense_block, **parts).eval(), (torch.randn(2, 3, 6, 6),)))
    chosen, skipped = disjoint(found.cuttable, lambda group: True, "auto")
    assert [group.name for group in chosen] == ["stem", "a", "b"]
    assert skipped == []
