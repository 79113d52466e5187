"""Palettes: few values, zeros that stay, bytes that are those of the file, and centroids that learn."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import cattrs
import pytest
import torch
from torch import Tensor, nn

import trimtab as tt
from tests.compress.test_prune import captured
from tests.compress.test_quantize import task_of
from trimtab.artifact import Saved
from trimtab.compress.palette import Palette, PalettePlan, _open
from trimtab.compress.sparsify import Sparsify
from trimtab.core import Fit, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.coded import code
from trimtab.train.loop import predict


def distinct(weight: Tensor, rows: int) -> int:
    return max(len(group.unique()) for group in weight.detach().reshape(len(weight) // rows, -1))


@pytest.mark.parametrize(
    ("settings", "rows"),
    [({"bits": 3}, [32, 24, 5]), ({"bits": 2, "rows": 1}, [1, 1, 1]), ({"bits": 3, "rows": 5}, [8, 6, 5])],
    ids=str,
)
def test_so_many_rows_share_so_many_values(settings, rows: list[int]) -> None:
    graph, x = copy.deepcopy(captured("mlp"))
    method = Palette(**settings)
    plan = method.plan(graph)
    result = method.apply(graph, plan)
    assert [one.rows for one in plan.weights] == rows
    for one in plan.weights:
        weight = result.get_parameter(one.weight).detach()
        assert distinct(weight, one.rows) <= 2**method.bits
        assert torch.equal(weight.half().float(), weight)
        before = graph.get_parameter(one.weight).detach()
        error = (weight - before).pow(2).sum() / before.pow(2).sum()
        assert float(error) == pytest.approx(one.error, rel=1e-4)
    assert result(x).shape == graph(x).shape
    assert torch.equal(result.get_parameter("layers.0.bias"), graph.get_parameter("layers.0.bias"))
    assert method.name in str(tt.Recipe((method,)).name)
    assert "in the coded file" in str(plan)


def test_more_bits_err_less_and_each_number_has_its_nearest_value() -> None:
    graph, _ = copy.deepcopy(captured("mlp"))
    errors = [Palette(bits).plan(graph).weights[0].error for bits in (1, 2, 4, 6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.02
    plan = Palette(3).plan(graph)
    before = graph.get_parameter("layers.0.weight").detach()
    after = Palette(3).apply(graph, plan).get_parameter("layers.0.weight").detach()
    values = torch.tensor(plan.weights[0].centroids[0])
    assert torch.allclose((before - after).abs(), (before[..., None] - values).abs().amin(-1))


@pytest.mark.parametrize("settings", [{}, {"rows": 1}, {"weighted": True, "compensate": True, "samples": 64}], ids=str)
def test_zeros_stay_zeros(settings) -> None:
    graph, x = copy.deepcopy(captured("mlp"))
    task, sparse, method = task_of(x), Sparsify(0.8), Palette(2, **settings)
    zeros = sparse.apply(graph, sparse.plan(graph))
    result = method.apply(zeros, method.plan(zeros, task), Tools(task=task))
    before, after = (g.get_parameter("layers.3.weight").detach() for g in (zeros, result))
    if not method.compensate:
        assert (after[before == 0] == 0).all()
    assert (after == 0).double().mean() > 0.6
    assert distinct(after, method.rows or len(after)) <= 4


def test_what_the_data_asks_for_errs_less_on_the_data() -> None:
    torch.manual_seed(0)
    # Inputs that go together, some of them large, and weights that are small where they are.
    scale = torch.logspace(-0.5, 0.5, 32)
    x = torch.randn(256, 8) @ torch.randn(8, 32) * scale
    module = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 5))
    with torch.no_grad():
        module.get_parameter("0.weight").div_(scale)
    graph = capture(module, (x[:4],))
    y = torch.arange(256) % 5
    task = tt.Task.of("t", train=(x, y), select=(x + 1, y), verify=(x + 2, y))
    errors = {}
    for name, settings in {
        "plain": {},
        "weighted": {"weighted": True},
        "both": {"weighted": True, "compensate": True},
    }.items():
        method = Palette(3, **settings)
        result = method.apply(graph, method.plan(graph, task), Tools(task=task))
        errors[name] = float((predict(result, x) - predict(graph, x)).norm() / predict(graph, x).norm())
    assert errors["weighted"] < 0.8 * errors["plain"]
    assert errors["both"] < 0.7 * errors["weighted"]


def test_the_bytes_that_are_claimed_are_those_in_the_file_and_the_file_runs(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 32)
    )
    graph = capture(module, (torch.randn(4, 3, 8, 8),))
    method = Palette(4)
    plan = method.plan(graph)
    result = method.apply(graph, plan)
    for one in plan.weights:
        assert len(code(result.get_parameter(one.weight)).data) == one.bytes_after
    small, large = (
        tt.save(result, tmp_path / str(coded), plans=[(method, plan)], coded=coded) for coded in (True, False)
    )
    claimed = sum(one.bytes_after for one in plan.weights)
    biases = 4 * (16 + 64 + 32)
    size = (small / "weights.coded").stat().st_size
    assert claimed + biases < size < claimed + biases + 500, "what is beside the tensors is the header"
    assert size < 0.16 * (large / "weights.safetensors").stat().st_size
    back = tt.load(small)
    assert isinstance(back, Saved)
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(back.graph(x), result(x))
    assert cattrs.structure(json.loads(json.dumps(back.plans[0]["plan"])), PalettePlan) == plan


def test_a_centroid_learns_by_the_sum_of_its_numbers_gradients() -> None:
    graph, x = copy.deepcopy(captured("mlp"))
    method = Palette(2)
    plan = method.plan(graph)
    result = method.apply(graph, plan)
    places = {
        one.weight: torch.searchsorted(
            torch.tensor(one.centroids[0]), result.get_parameter(one.weight).detach()
        ).reshape(1, -1)
        for one in plan.weights
    }
    opened = _open(result, plan, places)
    assert torch.equal(opened(x), result(x))
    for model in (opened, result):
        model(x).square().sum().backward()
    grads = result.get_parameter("layers.3.weight").grad
    assert grads is not None
    sums = torch.zeros(4).index_add_(0, places["layers.3.weight"].flatten(), grads.flatten())
    assert torch.allclose(opened.get_parameter("layers_3_weight_palette").grad.flatten(), sums, rtol=1e-4)


def test_trained_centroids_answer_better_and_stay_a_palette() -> None:
    graph, x = copy.deepcopy(captured("conv"))
    task = task_of(x)
    labels = graph(task.train.inputs[0]).argmax(1)
    task = dataclasses.replace(
        task, train=dataclasses.replace(task.train, targets=labels), fit=Fit(batch_size=32, precision="fp32")
    )
    sparse = Sparsify(0.5)
    zeros = sparse.apply(graph, sparse.plan(graph))
    losses = []
    for method in (Palette(3), Palette(3, epochs=6, lr=1e-2)):
        plan = method.plan(zeros, task)
        result = method.apply(zeros, plan, Tools(task=task))
        losses.append(float(task.loss(predict(result, task.train.inputs), labels)))
        for one in plan.weights:
            weight, before = result.get_parameter(one.weight).detach(), zeros.get_parameter(one.weight)
            assert distinct(weight, one.rows) <= 8
            assert (weight[before == 0] == 0).all()
            assert torch.equal(weight.half().float(), weight)
            assert len(code(weight).data) <= 1.2 * one.bytes_after
        assert result.state_dict().keys() == graph.state_dict().keys()
    assert losses[1] < 0.7 * losses[0]


def test_tied_weights_share_one_palette() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x))[:, 0]

    torch.manual_seed(0)
    train, select, verify = torch.randint(0, 40, (3, 60, 6))
    graph = capture(Tied(), (train,))
    splits = {"train": train, "select": select, "verify": verify}
    task = tt.Task.of("t", **{name: (tokens, tokens[:, 0]) for name, tokens in splits.items()})
    method = Palette(2, epochs=1)
    plan = method.plan(graph, task)
    result = method.apply(graph, plan, Tools(task=task))
    assert [one.weight for one in plan.weights] == ["head.weight"]
    assert distinct(result.get_parameter("head.weight"), 40) <= 4


def test_bits_of_one_weight_and_none() -> None:
    graph, _ = copy.deepcopy(captured("mlp"))
    plan = Palette(4, bits_of=(("layers.0.weight", 2), ("layers.3.weight", 0))).plan(graph)
    assert [(one.weight, one.bits) for one in plan.weights] == [("layers.0.weight", 2), ("layers.5.weight", 4)]
    assert [(skip.what, skip.why) for skip in plan.skipped] == [("layers.3.weight", "bits_of says 0 bits")]


def test_a_palette_larger_than_its_weight_is_left_out_or_refused_where_it_was_asked_for() -> None:
    graph, _ = copy.deepcopy(captured("conv"))
    plan = Palette(7).plan(graph)
    assert [one.weight for one in plan.weights] == ["features.4.weight", "head.weight"]
    assert "would be larger than the weight (1 of 128 values for 72 numbers)" in plan.skipped[0].why
    with pytest.raises(PlanError, match=r"'features.0.weight': a palette would be larger.*Give fewer bits, more rows"):
        Palette(4, bits_of=(("features.0.weight", 7),)).plan(graph)
    with pytest.raises(PlanError, match=r"none with two dims or more is larger than its palette.\n  features.0.weight"):
        Palette(8, rows=1).plan(graph)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0}, r"bits=0\) makes no palette: give 1 ... 8 bits"),
        ({"bits": 9}, r"bits=9\) makes no palette"),
        ({"bits_of": (("a", 9),)}, r"bits=9\) makes no palette"),
        ({"rows": 0}, r"rows=0\): give how many rows"),
        ({"epochs": -1}, "needs epochs >= 0 and lr > 0; got epochs=-1"),
        ({"lr": 0.0}, "needs epochs >= 0 and lr > 0"),
    ],
)
def test_nonsense_is_refused(settings, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Palette(**settings)


def test_what_cannot_be_done_is_refused_before_any_work() -> None:
    graph, x = copy.deepcopy(captured("mlp"))
    with pytest.raises(PlanError, match=r"names 'nose.weight', and the graph has no such weight.*it has: layers.0.w"):
        Palette(bits_of=(("nose.weight", 3),)).plan(graph)
    with pytest.raises(PlanError, match=r"needs data to calibrate on; got no task"):
        Palette(weighted=True).plan(graph)
    with pytest.raises(PlanError, match=r"needs the task to train centroids; got no task"):
        Palette(epochs=1).plan(graph)
    method = Palette(epochs=1)
    with pytest.raises(PlanError, match=r"needs the task to train centroids; got Tools\(task=None\)"):
        method.apply(graph, method.plan(graph, task_of(x)), Tools())
    with pytest.raises(PlanError, match=r"another graph: layers.0.weight should be \(32, 16\) and is none"):
        Palette().apply(copy.deepcopy(captured("conv")[0]), Palette().plan(graph))
    with torch.no_grad():
        graph.get_parameter("layers.0.weight")[0, 0] = float("nan")
    with pytest.raises(PlanError, match=r"'layers.0.weight' holds NaN"):
        Palette().plan(graph)
