"""Sparse weights: the zeros are where they should be, what stays makes up for them, and bytes are told honestly."""

from __future__ import annotations

import copy
import dataclasses
import json
import zlib

import cattrs
import pytest
import torch
from torch import nn

from tests.compress.test_prune import captured
from tests.compress.test_quantize import task_of
from trimtab.compress.sparsify import Sparsify, SparsifyPlan
from trimtab.core import Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture

SETTINGS = [
    {"ratio": 0.7},
    {"pattern": "2:4"},
    {"ratio": 0.6, "importance": "activation"},
    {"pattern": "2:4", "importance": "activation", "compensate": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_result_has_the_planned_zeros(name: str, settings) -> None:
    graph, x = copy.deepcopy(captured(name))
    task, method = task_of(x), Sparsify(samples=64, **settings)
    plan = method.plan(graph, task)
    back = cattrs.structure(json.loads(json.dumps(cattrs.unstructure(plan))), SparsifyPlan)
    assert back == plan
    result = method.apply(graph, back, Tools(task=task))
    for one in plan.weights:
        weight = result.get_parameter(one.weight)
        assert int((weight != 0).sum()) == one.kept
        assert abs(one.kept / one.size - (1 - method.ratio)) < 0.1
        if method.pattern == "2:4":
            assert ((weight.flatten(1).reshape(-1, 4) != 0).sum(1) == 2).all()
    assert result(x).shape == graph(x).shape
    assert all(torch.equal(p, captured(name)[0].state_dict()[key]) for key, p in graph.state_dict().items())


def test_the_smallest_go() -> None:
    graph, _ = copy.deepcopy(captured("mlp"))
    plan = Sparsify(0.5).plan(graph)
    result = Sparsify(0.5).apply(graph, plan)
    before, after = graph.get_parameter("layers.3.weight").detach(), result.get_parameter("layers.3.weight").detach()
    assert before[after == 0].abs().max() <= before[after != 0].abs().min()
    assert torch.equal(after[after != 0], before[after != 0])


def test_the_global_allocation_is_lamp() -> None:
    """Against the obvious way: for each number, its square over the sum of the squares that are no smaller."""
    graph, x = copy.deepcopy(captured("mlp"))
    method = Sparsify(0.7, allocation="global")
    plan = method.plan(graph)
    back = cattrs.structure(json.loads(json.dumps(cattrs.unstructure(plan))), SparsifyPlan)
    result = method.apply(graph, back)
    scores, zeros = [], []
    for one in plan.weights:
        weight = graph.get_parameter(one.weight).detach().double().flatten()
        scores += [float(w**2 / (weight[weight.abs() >= w.abs()] ** 2).sum()) for w in weight]
        zeros += (result.get_parameter(one.weight) == 0).flatten().tolist()
    assert abs(sum(zeros) / len(zeros) - 0.7) < 1 / len(zeros)
    assert max(s for s, zero in zip(scores, zeros, strict=True) if zero) <= min(
        s for s, zero in zip(scores, zeros, strict=True) if not zero
    )
    shares = {one.kept / one.size for one in plan.weights}
    assert len(shares) > 1, "layers lose different shares"
    assert result(x).isfinite().all()


def test_what_stays_makes_up_for_what_went() -> None:
    graph, x = copy.deepcopy(captured("conv"))
    task = task_of(x)
    fresh, errors = task.select.inputs[0], []
    for compensate in (False, True):
        method = Sparsify(0.6, compensate=compensate)
        result = method.apply(graph, method.plan(graph, task), Tools(task=task))
        with torch.no_grad():
            errors.append(float((result(fresh) - graph(fresh)).square().sum()))
    assert errors[1] < 0.8 * errors[0]


def test_bytes_are_what_zlib_makes_of_the_weights() -> None:
    graph, _ = copy.deepcopy(captured("mlp"))
    method = Sparsify(0.8)
    plan = method.plan(graph)
    result = method.apply(graph, plan)
    for one in plan.weights:
        assert one.bytes_after == len(zlib.compress(result.get_parameter(one.weight).detach().numpy().tobytes(), 6))
        assert one.bytes_after < 0.6 * one.bytes_before
    assert "compressed by zlib" in str(plan)
    assert len(json.dumps(cattrs.unstructure(plan))) < 2000, "masks are hashes, not lists"


def test_what_does_not_fit_the_pattern_is_listed() -> None:
    graph = capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), (torch.randn(2, 6),))
    plan = Sparsify(pattern="2:4").plan(graph)
    assert [one.weight for one in plan.weights] == ["2.weight"]
    assert [(skip.what, skip.why) for skip in plan.skipped] == [
        ("0.weight", "its sums have 6 terms, which is no multiple of 4")
    ]


def test_refusals() -> None:
    with pytest.raises(PlanError, match="give 0 < ratio < 1"):
        Sparsify(1.0)
    with pytest.raises(PlanError, match="is not known; use pattern"):
        Sparsify(pattern="1:3")
    with pytest.raises(PlanError, match=r"zeroes half of the weights; got ratio=0\.7"):
        Sparsify(0.7, pattern="2:4")
    with pytest.raises(PlanError, match=r"allocation='global'"):
        Sparsify(pattern="2:4", allocation="global")
    with pytest.raises(PlanError, match=r"allocation='best'"):
        Sparsify(allocation="best")
    graph, x = copy.deepcopy(captured("mlp"))
    with pytest.raises(PlanError, match="needs data to calibrate on"):
        Sparsify(importance="activation").plan(graph)
    plan = Sparsify(0.5).plan(graph)
    other = copy.deepcopy(graph)
    with torch.no_grad():
        other.get_parameter("layers.0.weight").neg_().add_(1)
    with pytest.raises(PlanError, match=r"another graph or other data: layers\.0\.weight"):
        Sparsify(0.5).apply(other, plan)
    with torch.no_grad():
        other.get_parameter("layers.3.weight")[0, 0] = torch.nan
    with pytest.raises(PlanError, match=r"layers\.3\.weight' holds NaN"):
        Sparsify(0.5).plan(other)
    with pytest.raises(PlanError, match="Nothing can be made sparse"):
        Sparsify(0.5).plan(capture(nn.ReLU(), (x,)))
    assert dataclasses.replace(Sparsify(0.5), ratio=0.25).name == "sparsify .25"
