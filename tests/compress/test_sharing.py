"""Shared blocks: the ones that are alike, one tensor for all of them, trained once, saved once."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path

import cattrs
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import trimtab as tt
from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.sharing import ShareBlocks, SharePlan
from trimtab.core import Fit, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture


@functools.cache
def twins() -> tuple[GraphModule, Tensor]:
    module, x = net("twins")
    return capture(module, (x,)), x


def parts(graph: GraphModule, block: int) -> list[Tensor]:
    return [graph.get_parameter(f"blocks.{block}.{place}.weight") for place in (0, 2)]


@pytest.mark.parametrize("by", ["weights", "outputs"])
def test_the_blocks_that_are_nearly_the_same_share_first(by) -> None:
    graph, x = twins()
    task, method = task_of(x), ShareBlocks(1, by=by)
    plan = method.plan(graph, task)
    assert [one.blocks for one in plan.groups] == [("blocks.1", "blocks.2")]
    assert plan.groups[0].distance < 0.1
    assert [(skip.what, skip.why) for skip in plan.skipped] == [
        ("blocks.0", "another pair is more alike"),
        ("blocks.3", "another pair is more alike"),
    ]
    back = cattrs.structure(json.loads(json.dumps(cattrs.unstructure(plan))), SharePlan)
    result = method.apply(graph, back)
    assert all(a is b for a, b in zip(parts(result, 1), parts(result, 2), strict=True))
    assert not any(a is b for a, b in zip(parts(result, 0), parts(result, 1), strict=True))
    assert result.get_parameter("blocks.1.0.bias") is not result.get_parameter("blocks.2.0.bias")
    left = sum(p.numel() for p in result.parameters())
    assert left == plan.params - 2 * 16 * 24
    assert f"to {left:,} (" in str(plan)
    assert float((result(x) - graph(x)).detach().norm() / graph(x).detach().norm()) < 0.05


def test_by_the_answers_a_block_that_does_nothing_can_use_any_weights() -> None:
    graph = copy.deepcopy(twins()[0])
    with torch.no_grad():  # the last block is the same function with its hidden channels in another order
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        for place, name, dim in ((0, "weight", 0), (0, "bias", 0), (2, "weight", 1), (2, "bias", None)):
            first = graph.get_parameter(f"blocks.0.{place}.{name}")
            moved = first if dim is None else first.index_select(dim, order)
            graph.get_parameter(f"blocks.3.{place}.{name}").copy_(moved)
        for place in (0, 2):  # and the two others are far from each other
            graph.get_parameter(f"blocks.2.{place}.weight").neg_()
    x = twins()[1]
    by_answers = ShareBlocks(1, by="outputs", vectors=True).plan(graph, task_of(x)).groups[0]
    by_weights = ShareBlocks(1, by="weights", vectors=True).plan(graph).groups[0]
    assert by_answers.blocks == ("blocks.0", "blocks.3")
    assert by_answers.distance < 1e-5
    assert by_weights.distance > 0.5


def test_groups_grow_and_the_giver_is_the_nearest_to_all() -> None:
    graph, _ = twins()
    plan = ShareBlocks(3).plan(graph)
    (group,) = plan.groups
    assert group.blocks == tuple(f"blocks.{place}" for place in range(4))
    assert group.giver in ("blocks.1", "blocks.2")
    named = ShareBlocks(groups=(("blocks.3", "blocks.0"),)).plan(graph)
    assert named.groups[0].blocks == ("blocks.0", "blocks.3")
    assert named.skipped == ()


def test_vectors_are_shared_if_asked() -> None:
    graph, _ = twins()
    method = ShareBlocks(1, vectors=True)
    result = method.apply(graph, method.plan(graph))
    assert result.get_parameter("blocks.1.0.bias") is result.get_parameter("blocks.2.0.bias")


def test_the_gradient_flows_into_the_shared_weight_once_for_each_use() -> None:
    graph, x = twins()
    method = ShareBlocks(1)
    plan = method.plan(graph)
    result = method.apply(graph, plan)
    apart = copy.deepcopy(graph)  # the same numbers, each block with its own
    with torch.no_grad():
        for mine, given in zip(parts(apart, 1) + parts(apart, 2), 2 * parts(result, 1), strict=True):
            mine.copy_(given)
    for model in (result, apart):
        model(x).square().sum().backward()
    for shared, first, second in zip(parts(result, 1), parts(apart, 1), parts(apart, 2), strict=True):
        assert torch.allclose(shared.grad, first.grad + second.grad, rtol=1e-4, atol=1e-6)
    assert len(list(result.parameters())) == len(list(apart.parameters())) - 2


def test_distillation_after_it_recovers_and_the_file_holds_the_weights_once(tmp_path: Path) -> None:
    graph, x = twins()
    task = task_of(x, num=256)
    task = dataclasses.replace(task, fit=Fit(batch_size=64, precision="fp32"))
    share, recover = ShareBlocks(2), tt.Distill(epochs=10, lr=3e-3)
    tools = Tools(task=task, original=graph)
    shared = share.apply(graph, share.plan(graph), tools)
    trained = recover.apply(shared, recover.plan(shared, task), tools)
    inputs = task.select.inputs[0]
    errors = [float((model(inputs) - graph(inputs)).detach().norm()) for model in (shared, trained)]
    assert errors[1] < 0.7 * errors[0]
    assert all(a is b for a, b in zip(parts(trained, 1), parts(trained, 2), strict=True))
    sizes = [
        (tt.save(one, tmp_path / name) / "weights.safetensors").stat().st_size
        for name, one in (("a", graph), ("b", trained))
    ]
    assert sizes[0] - sizes[1] == pytest.approx(2 * 4 * 2 * 16 * 24, abs=400)
    back = tt.load(tmp_path / "b").graph
    assert torch.equal(back(x), trained(x))
    assert parts(back, 1)[0] is parts(back, 2)[0]


def test_blocks_inside_of_blocks_are_found_where_the_outer_ones_differ() -> None:
    torch.manual_seed(0)
    stages = nn.Sequential(
        nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)),
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8)),
        nn.Linear(8, 3),
    )
    plan = ShareBlocks(1).plan(capture(stages, (torch.randn(4, 6),)))
    assert plan.groups[0].blocks == ("0.0", "0.2")
    assert ("1.0", "no other block has its shapes") in [(skip.what, skip.why) for skip in plan.skipped]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"needs one of num and groups; got num=None"),
        ({"num": 1, "groups": (("a.0", "a.1"),)}, "needs one of num and groups"),
        ({"num": 0}, "shares nothing: give num >= 1"),
        ({"groups": (("a.0",),)}, "groups of two blocks or more"),
        ({"groups": (("a.0", "a.1"), ("a.1", "a.2"))}, "names a block twice"),
        ({"num": 1, "by": "colour"}, r"by='colour'\) is not known"),
    ],
)
def test_nonsense_is_refused(settings, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ShareBlocks(**settings)


def test_what_cannot_share_is_refused_before_any_work() -> None:
    graph, _ = twins()
    mlp = capture(*[net("mlp")[0], (net("mlp")[1],)])
    with pytest.raises(
        PlanError, match=r"layers.0 and layers.3 cannot share: weight is \(32, 16\) in one and \(24, 32\) in"
    ):
        ShareBlocks(groups=(("layers.0", "layers.3"),)).plan(mlp)
    with pytest.raises(
        PlanError, match=r"names 'blocks.9', and the graph has no such numbered block; it has: blocks.0"
    ):
        ShareBlocks(groups=(("blocks.0", "blocks.9"),)).plan(graph)
    with pytest.raises(PlanError, match=r"would have 4 blocks give up their weights, and the graph has 3 with another"):
        ShareBlocks(4).plan(graph)
    with pytest.raises(PlanError, match=r"would have 1 blocks give up their weights, and the graph has 0"):
        ShareBlocks(1).plan(mlp)
    with pytest.raises(PlanError, match="needs data to calibrate on; got no task"):
        ShareBlocks(1, by="outputs").plan(graph)
    with pytest.raises(PlanError, match=r"another graph: the block blocks.1 should hold 768 numbers and holds 0"):
        ShareBlocks(1).apply(mlp, ShareBlocks(1).plan(graph))
