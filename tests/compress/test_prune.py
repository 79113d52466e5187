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

from tests.compress.test_quantize import task_of
from tests.graph.test_dims import Forward
from tests.graph.test_rules import response_norm
from tests.nets import NETS, net
from trimtab.compress.allocate import Budget
from trimtab.compress.importance import magnitude
from trimtab.compress.prune import Prune, PrunePlan
from trimtab.core import Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs, num_parameters
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
    assert Prune(0.5, importance="fisher", compensate=True, allocation="global").name == (
        "prune .5 globally by fisher compensated"
    )
    assert Prune(budget=Budget(macs=0.5, params=0.25)).name == "prune to .5 macs, .25 params"


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


def heads(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.relu(m.a(x).view(x.shape[0], 5, 4, 6).transpose(1, 2))
    return m.b(y.transpose(1, 2).reshape(x.shape[0], 5, 24)).mean(1)


@pytest.mark.parametrize(
    ("settings", "expected", "left"),
    [
        ({"ratio": 0.5, "round_to": 4}, ("a", 2), "a#2 (6)"),
        ({"ratio": 0.1, "round_to": 1}, ("a#2", 5), "a (4)"),
        ({"ratio": 0.95, "round_to": 1, "keep_min": 2}, None, ""),
        ({"ratio": 0.5, "round_to": 1, "heads": "inside"}, ("a#2", 3), "a (4)"),
        ({"budget": Budget(macs=0.7), "round_to": 1}, ("a", 2), "a#2 (6)"),
    ],
)
def test_of_heads_and_their_width_one_is_cut(settings, expected, left: str) -> None:
    graph = capture(Forward(heads, a=nn.Linear(6, 24), b=nn.Linear(24, 3)).eval(), (torch.randn(4, 5, 6),))
    if expected is None:
        with pytest.raises(PlanError, match="none of its channels would go"):
            Prune(**settings).plan(graph)
        return
    plan = Prune(**settings).plan(graph)
    assert [(one.group, len(one.kept)) for one in plan.cuts] == [expected]
    assert any(skip.what == left and skip.why for skip in plan.skipped)
    assert Prune(**settings).apply(graph, plan)(torch.randn(2, 5, 6)).shape == (2, 3)


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan")])
def test_refuses_a_ratio_that_is_no_share(ratio: float) -> None:
    with pytest.raises(PlanError, match="give 0 < ratio < 1"):
        Prune(ratio)


def test_refuses_settings_that_make_no_sense() -> None:
    with pytest.raises(PlanError, match="round_to >= 1 and keep_min >= 1"):
        Prune(0.5, round_to=0)
    with pytest.raises(PlanError, match="round_to >= 1 and keep_min >= 1"):
        Prune(0.5, keep_min=0)
    with pytest.raises(PlanError, match="use one of 'magnitude', 'bn_scale'"):
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
    with pytest.raises(PlanError, match=r"got a Linear and no task.*Capture it first"):
        Prune(0.5).plan(nn.Linear(4, 3))


def test_refuses_a_plan_for_another_graph() -> None:
    graph, _ = graph_of("mlp")
    plan = Prune(0.5).plan(graph)
    once = Prune(0.5).apply(graph, plan)
    with pytest.raises(PlanError, match=r"made for another graph \(layers\.0: 32 planned, 16 found"):
        Prune(0.5).apply(once, plan)


def test_a_module_is_captured_with_the_tasks_inputs() -> None:
    module, x = net("mlp")
    task = task_of(x)
    assert Prune(0.5).plan(module, task) == Prune(0.5).plan(capture(module, (x,)), task)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.4, "importance": "taylor"},
        {"ratio": 0.4, "importance": "fisher", "allocation": "global", "round_to": 1},
        {"budget": Budget(macs=0.6), "importance": "activation", "round_to": 2},
        {"budget": Budget(params=0.6), "importance": "bn_scale", "round_to": 2, "compensate": True},
        {"budget": Budget(macs=0.6, params=0.7), "importance": "obs", "round_to": 2},
    ],
    ids=str,
)
def test_every_setting_plans_what_apply_makes(name: str, settings) -> None:
    graph, x = graph_of(name)
    task, method = task_of(x), Prune(samples=64, **settings)
    plan = method.plan(graph, task)
    pruned = method.apply(graph, plan, Tools(task=task))
    macs_left = plan.macs - sum(one.macs_freed for one in plan.cuts)
    params_left = plan.params - sum(one.params_freed for one in plan.cuts)
    assert (macs(pruned), num_parameters(pruned)) == (macs_left, params_left)
    assert (macs(graph), num_parameters(graph)) == (plan.macs, plan.params)
    for quantity, share in (method.budget.limits() if method.budget else {}).items():
        assert {"macs": macs_left / plan.macs, "params": params_left / plan.params}[quantity] <= share
    assert bool(plan.compensated) == (settings["importance"] == "obs" or "compensate" in settings)


def test_a_global_ranking_spares_the_group_that_matters() -> None:
    graph, _ = graph_of("mlp")
    plan = Prune(0.4, allocation="global", round_to=1).plan(graph)
    gone = sum(one.size - len(one.kept) for one in plan.cuts)
    assert gone == round(0.4 * (32 + 24))
    with torch.no_grad():
        graph.get_parameter("layers.0.weight")[:20] *= 1e-6
        graph.get_parameter("layers.3.weight")[:, :20] *= 1e-6
    plan = Prune(0.4, allocation="global", round_to=1, max_ratio=0.5).plan(graph)
    assert len(next(one.kept for one in plan.cuts if one.group == "layers.0")) == 16, "as far as max_ratio allows"


def test_times_are_measured_if_asked_for_and_are_no_part_of_a_plans_value() -> None:
    graph, _ = graph_of("conv")
    plain, timed = Prune(0.5).plan(graph), Prune(0.5, timed=True).plan(graph)
    assert plain == timed
    assert plain.ms is None
    assert timed.ms is not None
    assert timed.ms > 0
    assert all(isinstance(row["ms freed"], float) for row in timed.rows())
    assert "eager, one thread, one sample" in str(timed)
    assert " ms" not in str(plain)


def test_a_budget_of_time_narrows_what_is_slow() -> None:
    module = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 8))
    graph = capture(module.eval(), (torch.randn(2, 64),))
    plan = Prune(budget=Budget(latency_ms=0.5), timed=True).plan(graph)
    assert plan.cuts
    assert plan.macs - sum(one.macs_freed for one in plan.cuts) < 0.7 * plan.macs


def test_prints_as_a_table() -> None:
    graph, _ = graph_of("conv")
    text = str(Prune(0.5).plan(graph))
    lines = text.splitlines()
    assert lines[0].split("  ")[0] == "group"
    assert lines[1].startswith("features.0")
    assert "features.0.weight, features.1.weight" in lines[1]
    assert any(line.startswith("parameters 1,") and "% left" in line for line in lines)
    assert any(line.startswith("MACs of one sample") for line in lines)
    assert lines[-2:] == ["left alone:", "  head (5): it is the model's output"]


def test_a_model_without_values_gets_its_widths() -> None:
    graph, _ = graph_of("mlp")
    plan = Prune(0.5).plan(graph.to("meta"))
    assert [len(one.kept) for one in plan.cuts] == [16, 16]
    assert any("no values" in skip.why for skip in plan.skipped)


def test_refuses_what_contradicts_itself() -> None:
    with pytest.raises(PlanError, match="one of ratio and budget"):
        Prune()
    with pytest.raises(PlanError, match="one of ratio and budget"):
        Prune(0.5, budget=Budget(macs=0.5))
    with pytest.raises(PlanError, match="Leave allocation out"):
        Prune(budget=Budget(macs=0.5), allocation="global")
    with pytest.raises(PlanError, match=r"allocation='fair'.*'uniform', 'global', 'measured'"):
        Prune(0.5, allocation="fair")
    with pytest.raises(PlanError, match="heads='some'"):
        Prune(0.5, heads="some")
    with pytest.raises(PlanError, match="most that goes from one group"):
        Prune(0.5, allocation="global", max_ratio=0.4)
    with pytest.raises(PlanError, match="importance='obs' alone"):
        Prune(0.5, allocation="measured")


def test_refuses_a_budget_that_cannot_be_met() -> None:
    graph, _ = graph_of("mlp")
    with pytest.raises(PlanError, match=r"budget cannot be met: macs would have to fall to 0\.01 .* come to 0\.065"):
        Prune(budget=Budget(macs=0.01), round_to=1).plan(graph)


@pytest.mark.parametrize("settings", [{"importance": "taylor"}, {"compensate": True}])
def test_refuses_to_calibrate_on_too_little(settings) -> None:
    graph, x = graph_of("mlp")
    with pytest.raises(PlanError, match="needs data to calibrate on"):
        Prune(0.5, **settings).plan(graph)
    with pytest.raises(PlanError, match="needs 16 calibration samples or more; got 8"):
        Prune(0.5, samples=8, **settings).plan(graph, task_of(x))


def test_computed_weights_are_folded_first_and_the_plan_says_so() -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    graph = capture(module.eval(), (torch.randn(4, 6),))
    method = Prune(0.5, round_to=1)
    plan = method.plan(graph)
    assert [one.size for one in plan.cuts] == [8]
    assert any("becomes a plain weight" in skip.why for skip in plan.skipped)
    pruned = method.apply(graph, plan)
    assert sorted(tuple(p.shape) for p in pruned.parameters()) == [(3,), (3, 4), (4,), (4, 6)]


def test_a_dim_under_a_mean_is_cut_where_nothing_else_can_be() -> None:
    module = Forward(response_norm, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()
    graph = capture(module, (torch.randn(4, 5, 6),))
    method = Prune(0.5, round_to=1)
    plan = method.plan(graph)
    assert plan.through_means
    assert [(one.group, len(one.kept)) for one in plan.cuts] == [("a", 4)]
    assert method.apply(graph, plan)(torch.randn(2, 5, 6)).shape == (2, 5, 3)
    assert not Prune(0.5).plan(graph_of("mlp")[0]).through_means
