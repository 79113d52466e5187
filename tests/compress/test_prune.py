"""Pruning: the plan says what goes, the result is that, and what cannot be done is refused."""

from __future__ import annotations

import copy
import functools
import json

import cattrs
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.graph.test_dims import Forward
from tests.nets import NETS, net
from trimtab.compress.prune import Prune, PrunePlan, magnitude
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.dims import groups


@functools.cache
def captured(name: str) -> tuple[GraphModule, Tensor]:
    module, x = net(name)
    return capture(module, (x,)), x


def graph_of(name: str) -> tuple[GraphModule, Tensor]:
    return copy.deepcopy(captured(name))


def test_names_itself() -> None:
    assert Prune(0.5).name == "prune .5"
    assert Prune(0.25).name == "prune .25"


@pytest.mark.parametrize("name", NETS)
def test_plan_says_what_apply_does(name: str) -> None:
    graph, x = graph_of(name)
    method = Prune(0.5)
    plan = method.plan(graph)
    pruned = method.apply(graph, plan)
    tensors = pruned.state_dict()
    for one in plan.cuts:
        assert 0 < one.importance_lost < 0.6
        assert all(tensors[part.parameter].shape[part.dim] == part.after for part in one.slices)
        assert len(one.kept) < one.size
    freed = sum(p.numel() for p in graph.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert sum(one.params_freed for one in plan.cuts) == freed > 0
    assert pruned(x).shape == graph(x).shape
    rows = plan.rows()
    assert [row["group"] for row in rows] == [one.group for one in plan.cuts]
    assert all(row["channels after"] < row["channels before"] for row in rows)


@pytest.mark.parametrize("name", NETS)
def test_plan_goes_through_json_and_replays_bit_for_bit(name: str) -> None:
    graph, x = graph_of(name)
    method = Prune(0.4, round_to=1)
    plan = method.plan(graph)
    back = cattrs.structure(json.loads(json.dumps(cattrs.unstructure(plan))), PrunePlan)
    assert back == plan
    first, second = method.apply(graph, plan), method.apply(graph_of(name)[0], back)
    assert torch.equal(first(x), second(x))
    assert all(torch.equal(tensor, second.state_dict()[key]) for key, tensor in first.state_dict().items())


def test_half_of_a_resnet() -> None:
    graph, _ = graph_of("resnet")
    plan = Prune(0.5).plan(graph)
    assert {row["group"]: (row["channels before"], row["channels after"]) for row in plan.rows()} == {
        "stem.0": (16, 8),
        "blocks.0.conv1": (16, 8),
        "blocks.1.conv1": (32, 16),
        "blocks.1.grouped": (32, 16),
        "blocks.2.conv1": (32, 16),
    }
    assert [skip.what for skip in plan.skipped] == ["head (5)"]


def test_widths_are_rounded_where_there_is_room() -> None:
    graph, _ = graph_of("mlp")
    widths = {one.group: len(one.kept) for one in Prune(0.3).plan(graph).cuts}
    assert widths == {"layers.0": 24, "layers.3": 16}
    widths = {one.group: len(one.kept) for one in Prune(0.3, round_to=1).plan(graph).cuts}
    assert widths == {"layers.0": 22, "layers.3": 17}
    widths = {one.group: len(one.kept) for one in Prune(0.3, round_to=32).plan(graph).cuts}
    assert widths == {"layers.0": 22, "layers.3": 17}


def test_what_rounding_leaves_whole_is_listed() -> None:
    graph, _ = graph_of("mlp")
    plan = Prune(0.2, round_to=12).plan(graph)
    assert "layers.3 (24)" in [skip.what for skip in plan.skipped if "leaves it whole" in skip.why]


def test_the_unimportant_go() -> None:
    graph, _ = graph_of("conv")
    with torch.no_grad():
        for channel in (1, 4, 5):
            graph.get_parameter("features.0.weight")[channel] *= 0.01
            graph.get_parameter("features.1.weight")[channel] *= 0.01
            graph.get_parameter("features.4.weight")[:, channel] *= 0.01
    first = groups(graph).cuttable[0]
    importance = magnitude(graph, first)
    assert importance.argsort()[:3].sort().values.tolist() == [1, 4, 5]
    kept = next(one.kept for one in Prune(0.375).plan(graph).cuts if one.group == "features.0")
    assert kept == (0, 2, 3, 6, 7)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_importance_does_not_depend_on_the_scale_of_a_layer(factor: float) -> None:
    graph, _ = graph_of("conv")
    first = groups(graph).cuttable[0]
    before = magnitude(graph, first)
    with torch.no_grad():
        graph.get_parameter("features.4.weight").mul_(factor)
    torch.testing.assert_close(magnitude(graph, first), before, rtol=1e-5, atol=1e-6)


def test_only_the_largest_factor_of_a_dim_is_cut() -> None:
    def heads(m, x):
        y = torch.relu(m.a(x).view(x.shape[0], 5, 4, 6).transpose(1, 2))
        return m.b(y.transpose(1, 2).reshape(x.shape[0], 5, 24)).mean(1)

    graph = capture(Forward(heads, a=nn.Linear(6, 24), b=nn.Linear(24, 3)).eval(), (torch.randn(4, 5, 6),))
    plan = Prune(0.5, round_to=4).plan(graph)
    assert [(one.group, len(one.kept)) for one in plan.cuts] == [("a#2", 3)]
    assert any(skip.what == "a (4)" and "a#2" in skip.why for skip in plan.skipped)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan")])
def test_refuses_a_ratio_that_is_no_share(ratio: float) -> None:
    with pytest.raises(PlanError, match="give 0 < ratio < 1"):
        Prune(ratio)


def test_refuses_settings_that_make_no_sense() -> None:
    with pytest.raises(PlanError, match="round_to >= 1 and keep_min >= 1"):
        Prune(0.5, round_to=0)
    with pytest.raises(PlanError, match="round_to >= 1 and keep_min >= 1"):
        Prune(0.5, keep_min=0)
    with pytest.raises(PlanError, match="use 'magnitude'"):
        Prune(0.5, importance="luck")


def test_refuses_to_leave_nothing() -> None:
    graph, _ = graph_of("conv")
    with pytest.raises(
        PlanError, match=r"leaves 0 of the 8 channels of features\.0; at least 1 must stay.*at most 0\.93"
    ):
        Prune(0.97).plan(graph)
    assert Prune(0.93).plan(graph).cuts
    with pytest.raises(PlanError, match=r"leaves 4 of the 8 .* at least 6 must stay.*at most 0\.31"):
        Prune(0.5, keep_min=6).plan(graph)
    assert Prune(0.31, keep_min=6).plan(graph).cuts


def test_refuses_weights_that_are_not_finite() -> None:
    graph, _ = graph_of("conv")
    with torch.no_grad():
        graph.get_parameter("features.4.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(
        PlanError, match=r"importance of features\.0 is NaN: features\.4\.weight .*Load a sound checkpoint"
    ):
        Prune(0.5).plan(graph)


def test_refuses_a_graph_without_anything_to_cut() -> None:
    graph = capture(nn.Linear(4, 3), (torch.randn(4, 4),))
    with pytest.raises(PlanError, match=r"Nothing can be cut .*\n.*it is the model's output"):
        Prune(0.5).plan(graph)


def test_refuses_a_module_that_is_not_captured() -> None:
    with pytest.raises(PlanError, match="Capture it first"):
        Prune(0.5).plan(nn.Linear(4, 3))


def test_refuses_a_plan_for_another_graph() -> None:
    graph, _ = graph_of("mlp")
    plan = Prune(0.5).plan(graph)
    once = Prune(0.5).apply(graph, plan)
    with pytest.raises(PlanError, match=r"made for another graph \(layers\.0: 32 planned, 16 found"):
        Prune(0.5).apply(once, plan)
