"""Residual blocks: found wherever a sum allows it, the least of them go, and nothing else changes."""

from __future__ import annotations

import copy
import json

import cattrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compress.test_prune import captured
from tests.compress.test_quantize import task_of
from tests.graph.test_dims import Forward
from trimtab.compress.blocks import DropBlocks, DropPlan, blocks
from trimtab.core import Split
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs, num_parameters


def stack(forward, *, depth: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    parts = {
        f"block{i}": nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for i in range(depth)
    }
    return Forward(forward, **parts, stem=nn.Linear(6, 8), head=nn.Linear(8, 5)).eval()


def plain(m: nn.Module, x: Tensor) -> Tensor:
    x = m.stem(x)
    for i in range(3):
        x = x + m.get_submodule(f"block{i}")(x)
    return m.head(x)


def in_place(m: nn.Module, x: Tensor) -> Tensor:
    x = m.stem(x)
    for i in range(3):
        y = m.get_submodule(f"block{i}")(x)
        y += x
        x = F.relu(y, inplace=True)
    return m.head(x)


@pytest.mark.parametrize("forward", [plain, in_place])
def test_the_block_that_does_least_goes_and_the_rest_is_as_it_was(forward) -> None:
    module = stack(forward)
    with torch.no_grad():
        for part in (module.block1[3].weight, module.block1[3].bias):
            part.mul_(1e-3)
    graph = capture(module, (torch.randn(2, 6),))
    task, x = task_of(torch.randn(2, 6)), torch.randn(9, 6)
    assert [block.name for block in blocks(graph)[0]] == ["block0", "block1", "block2"]
    plan = DropBlocks(1).plan(graph, task)
    assert [one.block.name for one in plan.dropped] == ["block1"]
    back = cattrs.structure(json.loads(json.dumps(cattrs.unstructure(plan))), DropPlan)
    smaller = DropBlocks(1).apply(graph, back)
    freed = sum(p.numel() for p in module.block1.parameters())
    assert plan.dropped[0].params_freed == freed == num_parameters(graph) - num_parameters(smaller)
    assert plan.dropped[0].macs_freed == 2 * 8 * 16 == macs(graph) - macs(smaller)
    assert not [key for key, _ in smaller.named_parameters() if key.startswith("block1")]
    with torch.no_grad():
        module.block1[3].weight.zero_()
        module.block1[3].bias.zero_()
        torch.testing.assert_close(smaller(x), module(x))
    assert "block1" in str(plan)
    assert len(plan.skipped) == 2


def test_a_share_of_the_blocks_of_a_resnet() -> None:
    graph, x = copy.deepcopy(captured("resnet"))
    found, skipped = blocks(graph)
    assert [block.name for block in found] == ["blocks.0", "blocks.2"]
    assert [skip.why for skip in skipped] == ["both of its sides go through layers, so neither is a skip"]
    plan = DropBlocks(ratio=0.5).plan(graph, task_of(x))
    smaller = DropBlocks(ratio=0.5).apply(graph, plan)
    assert len(plan.dropped) == 1
    assert smaller(x).shape == graph(x).shape
    smaller.train()(x).sum().backward()
    assert all(p.grad is not None for p in smaller.parameters())


def test_of_nested_blocks_one_goes() -> None:
    def nested(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        inner = m.block0(x)
        inner = inner + m.block1(inner)
        return m.head(x + inner)

    graph = capture(stack(nested, depth=2), (torch.randn(2, 6),))
    task = task_of(torch.randn(2, 6))
    assert [block.name for block in blocks(graph)[0]] == ["block1", "block0.1, block0.3, block1.1, block1.3"]
    assert len(DropBlocks(1).plan(graph, task).dropped) == 1
    with pytest.raises(PlanError, match="would have to drop 2 blocks, and the graph has 1"):
        DropBlocks(2).plan(graph, task)


def test_what_writes_into_the_skip_stays() -> None:
    def preactivated(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        for i in range(3):
            y = F.relu(x, inplace=True)  # the skip sees it too
            x = x + m.get_submodule(f"block{i}")(y)
        return m.head(x)

    graph = capture(stack(preactivated), (torch.randn(2, 6),))
    method = DropBlocks(2)
    smaller = method.apply(graph, method.plan(graph, task_of(torch.randn(2, 6))))  # checks itself
    assert smaller(torch.randn(3, 6)).shape == (3, 5)


def test_refusals() -> None:
    with pytest.raises(PlanError, match="one of num and ratio"):
        DropBlocks()
    with pytest.raises(PlanError, match="drops nothing or too much"):
        DropBlocks(0)
    with pytest.raises(PlanError, match="drops nothing or too much"):
        DropBlocks(ratio=1.0)
    graph, x = copy.deepcopy(captured("mlp"))
    with pytest.raises(PlanError, match="the graph has 0 that can go"):
        DropBlocks(1).plan(graph, task_of(x))
    resnet = capture(stack(plain), (torch.randn(2, 6),))
    task = task_of(torch.randn(2, 6))
    with pytest.raises(PlanError, match="needs data to calibrate on"):
        DropBlocks(1).plan(resnet)
    plan = DropBlocks(1).plan(resnet, task)
    with pytest.raises(PlanError, match="made for another graph"):
        DropBlocks(1).apply(graph, plan)
    values = torch.randn(32, 6).index_fill_(1, torch.tensor([0]), torch.inf)
    poisoned = Split((values,), torch.zeros(32, dtype=torch.long))
    with pytest.raises(PlanError, match=r"importance of block block0 is NaN.*Check the weights"):
        DropBlocks(1).plan(resnet, type(task)(**{**task.__dict__, "train": poisoned}))
