"""Compensation: what the layer gave is given again as far as its inputs allow, also on samples not seen."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from tests.compress.test_prune import captured
from tests.compress.test_quantize import task_of
from tests.graph.test_cost import row
from tests.graph.test_dims import Forward
from trimtab.compress import compensate
from trimtab.compress.calibration import Gram, Layer
from trimtab.compress.compensate import Problem, compensate_, solvable, solve
from trimtab.compress.parts import Parts
from trimtab.compress.prune import Prune
from trimtab.core import Split, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.dims import groups
from trimtab.graph.surgery import cut


def error(pruned: GraphModule, graph: GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        return float((pruned(x) - graph(x)).square().sum() / graph(x).square().sum())


def twins(kind: str) -> tuple[nn.Module, tuple[int, ...], str]:
    """A net in which channel 3 of the first layer is twice channel 1."""
    torch.manual_seed(0)
    if kind == "linear":
        module: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
        shape: tuple[int, ...] = (6,)
    elif kind == "conv":
        module = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3, stride=2, padding=1), nn.Flatten())
        shape = (2, 6, 6)
    else:
        module = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 5, 3, bias=False), nn.Flatten())
        shape = (2, 9)
    with torch.no_grad():
        module[0].weight[3], module[0].bias[3] = 2 * module[0].weight[1], 2 * module[0].bias[1]
    return module.eval(), shape, "0"


@pytest.mark.parametrize("kind", ["linear", "conv", "conv1d"])
def test_a_channel_that_another_carries_is_made_up_for(kind: str) -> None:
    module, shape, name = twins(kind)
    graph = capture(module, (torch.randn(2, *shape),))
    task = task_of(torch.randn(2, *shape))
    kept = {name: (0, 1, 2, 4, 5, 6, 7)}
    pruned = cut(graph, kept)
    nodes, skipped = solvable(graph, list(groups(graph).cuttable))
    solved = compensate_(copy.deepcopy(pruned), graph, task.train, nodes, outputs={})
    assert skipped == ()
    fresh = task.select.inputs[0]
    assert error(pruned, graph, fresh) > 1e-2
    assert error(solved, graph, fresh) < 1e-4 * error(pruned, graph, fresh)


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize("importance", ["magnitude", "obs"])
def test_less_is_lost_on_samples_that_were_not_seen(name: str, importance) -> None:
    graph, x = copy.deepcopy(captured(name))
    task = task_of(x, num=128)
    plain = Prune(0.4, importance=importance, round_to=1, compensate=False)
    method = Prune(0.4, importance=importance, round_to=1, compensate=True)
    without = plain.apply(graph, plain.plan(graph, task))
    plan = method.plan(graph, task)
    solved = method.apply(graph, plan, Tools(task=task))
    assert plan.compensated
    assert plan.samples == 128
    assert error(solved, graph, task.select.inputs[0]) < 0.7 * error(without, graph, task.select.inputs[0])
    again = method.apply(graph, plan, Tools(task=task))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in solved.state_dict().items())


def test_later_layers_see_what_earlier_ones_got_wrong() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 5)).eval()
    graph = capture(module, (torch.randn(2, 6),))
    task = task_of(torch.randn(2, 6), num=512)
    kept = {"0": tuple(range(4)), "2": tuple(range(12))}
    nodes, _ = solvable(graph, list(groups(graph).cuttable))
    outputs = {"2.weight": torch.arange(24) < 12}
    whole = compensate_(cut(graph, kept), graph, task.train, nodes, outputs=outputs)
    blind = compensate_(cut(graph, kept), graph, task.train, nodes[:1], outputs=outputs)
    last_alone = cut(graph, {"2": kept["2"]})
    compensate_(last_alone, graph, task.train, nodes[1:], outputs={})
    with torch.no_grad():  # the last layer as it is solved where nothing before it was cut
        blind.get_parameter("4.weight").copy_(last_alone.get_parameter("4.weight"))
        blind.get_parameter("4.bias").copy_(last_alone.get_parameter("4.bias"))
    x = task.select.inputs[0]
    assert error(whole, graph, x) < error(blind, graph, x)


def test_a_layer_that_has_nothing_to_make_up_for_stays() -> None:
    torch.manual_seed(0)
    graph = capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval(), (torch.randn(2, 6),))
    same = copy.deepcopy(graph)
    compensate_(same, graph, Split((torch.randn(64, 6),), torch.zeros(64)), ("linear_1",), outputs={})
    assert error(same, graph, torch.randn(9, 6)) < 1e-6


def test_says_what_cannot_be_solved(monkeypatch) -> None:
    def shared(m: nn.Module, x: Tensor) -> Tensor:
        h = F.relu(m.a(x))
        return m.b(h) + m.b(h * 2) + m.c(h)

    module = Forward(shared, a=nn.Linear(6, 8), b=nn.Linear(8, 5), c=nn.Linear(8, 5)).eval()
    graph = capture(module, (torch.randn(2, 6),))
    nodes, skipped = solvable(graph, list(groups(graph).cuttable))
    assert nodes == ("linear_3",)
    assert [(skip.what, skip.why) for skip in skipped] == [
        ("compensation of linear_1", "it multiplies no fixed weight of its own"),
        ("compensation of linear_2", "it multiplies no fixed weight of its own"),
    ]
    monkeypatch.setattr(compensate, "MAX_FEATURES", 4)
    assert solvable(graph, list(groups(graph).cuttable))[1][2].why == "its sums have more than 4 terms"


def test_a_layer_applied_along_what_is_cut_is_left_as_it_is() -> None:
    graph, shape = row("token mixing")
    task = task_of(torch.randn(2, *shape), num=48)
    task = dataclasses.replace(task, train=dataclasses.replace(task.train, targets=task.train.targets % 3))
    method = Prune(0.4, round_to=1, samples=48, compensate=True)
    plan = method.plan(graph, task)
    assert any("also where it is applied" in skip.why for skip in plan.skipped)
    assert plan.compensated == ("linear_2",)
    assert method.apply(graph, plan, Tools(task=task))(torch.randn(2, *shape)).shape == (2, 3)


def test_refuses_values_that_are_not_finite_and_a_missing_task() -> None:
    module, shape, name = twins("linear")
    graph = capture(module, (torch.randn(2, *shape),))
    pruned = cut(graph, {name: (0, 1, 2)})
    poisoned = Split((torch.full((32, 6), torch.inf),), torch.zeros(32))
    with pytest.raises(PlanError, match=r"NaN or infinity at linear_1 .*Check the weights and the data"):
        compensate_(pruned, graph, poisoned, ("linear_1",), outputs={})
    task: Task = task_of(torch.randn(2, *shape))
    method = Prune(0.5, compensate=True)
    plan = method.plan(graph, task)
    with pytest.raises(PlanError, match=r"got no task\. Give Tools\(task=\.\.\.\), or plan with compensate=False"):
        method.apply(graph, plan)


def test_tells_of_its_progress() -> None:
    module, shape, name = twins("linear")
    graph = capture(module, (torch.randn(2, *shape),))
    told: list[tuple[int, int, str]] = []
    task = task_of(torch.randn(2, *shape))
    compensate_(
        cut(graph, {name: (0, 1)}),
        graph,
        task.train,
        ("linear_1",),
        outputs={},
        parts=Parts(report=lambda *a: told.append(a)),
    )
    assert told == [(0, 1, "compensating linear_1")]


def test_sums_that_rounding_made_indefinite_take_a_larger_ridge() -> None:
    """Sums over many features are rounded to fp32: the least of the ridges may not make up for it."""
    torch.manual_seed(0)
    x = torch.randn(64, 6, dtype=torch.float64)
    want = torch.randn(6, 2, dtype=torch.float64)
    half = Gram()
    half.xx, half.xy = (x.mT @ x)[None], (x.mT @ x @ want)[None]
    weight = want[None] + 0.1
    exact = solve(Problem(Layer("a", "input", "a.weight", None), weight, (half, half)))
    assert exact is not None
    assert torch.allclose(exact[0], want, atol=1e-3)
    bad = Gram()
    bad.xx, bad.xy = half.xx.clone(), half.xy
    values, vectors = torch.linalg.eigh(bad.xx[0])
    values[0] = -5e-3 * values.mean()
    bad.xx[0] = vectors @ values.diag() @ vectors.mT
    solved = solve(Problem(Layer("a", "input", "a.weight", None), weight, (bad, bad)))
    assert solved is not None
    assert solved.isfinite().all()
