"""Learned rounding and shifted biases: exact where it can be checked, better than the nearest where it matters."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compress.test_quantize import task_of
from tests.nets import NETS, net
from trimtab.compress.quantize import Quantize, QuantizePlan
from trimtab.compress.rounding import best_steps
from trimtab.compress.scales import with_steps
from trimtab.core import Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs


def problem(features: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, features, generator=generator) @ torch.randn(features, features, generator=generator)
    return torch.randn(1, 4, features, generator=generator) * 3, (x.T @ x / 64)[None]


def test_steps_come_near_the_best_of_all_choices() -> None:
    totals = torch.zeros(3)
    for seed in range(5):
        w, gram = problem(7, seed)

        def error(integers: Tensor, w: Tensor = w, gram: Tensor = gram) -> Tensor:
            off = w - integers
            return ((off @ gram) * off).sum(-1)[0]

        found = w.round() + best_steps(w, w.round(), torch.ones_like(w), gram, gram, 127)
        assert ((found == w.floor()) | (found == w.ceil())).all()
        assert (error(found) <= error(w.round()) + 1e-4).all()
        choices = itertools.product((0.0, 1.0), repeat=7)
        best = torch.stack([error(w.floor() + torch.tensor(choice)) for choice in choices]).min(0).values
        totals += torch.stack([error(w.round()).sum(), error(found).sum(), best.sum()])
    nearest, ours, least = totals.tolist()
    assert ours - least < 0.4 * (nearest - least)


def test_inputs_that_differ_are_made_up_for() -> None:
    w, gram = problem(6, 0)
    steps = best_steps(w, w.round(), torch.ones_like(w), 1.2 * gram, gram, 127)
    best = w.round() + steps
    assert ((best - w) * w).sum() > 0, "inputs that are too small by 1 / 1.2 want larger weights"


def answers(name: str, **settings: object) -> tuple[Tensor, Tensor, QuantizePlan]:
    module, x = net(name)
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=128, most_error=None, **settings)  # type: ignore[arg-type]
    plan = method.plan(graph, task)
    data = task.select.inputs[0]
    return method.apply(graph, plan, Tools())(data), module(data), plan


@pytest.mark.parametrize("name", NETS)
def test_learned_rounding_is_closer_on_other_samples(name: str) -> None:
    errors = []
    for rounding in ("nearest", "learned"):
        found, want, plan = answers(name, weight_bits=3, rounding=rounding, correct_bias=False)
        errors.append((found - want).norm().item())
        assert any(weight.steps for weight in plan.weights) is (rounding == "learned")
    assert errors[1] < 0.85 * errors[0]


class Plain(nn.Module):
    """A depthwise layer whose inputs are nearly constant, as on a picture's plain ground."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.depthwise(x))).mean((2, 3))


PLAIN: dict[str, Any] = {
    "samples": 32,
    "weight_bits": 4,
    "correct_bias": False,
    "equalize": False,
    "most_error": None,
}


def test_either_takes_most_of_the_error_of_a_depthwise_layer_on_plain_grounds() -> None:
    torch.manual_seed(0)
    module = Plain().eval()
    data = 3 + 0.1 * torch.randn(96, 8, 6, 6)
    y = torch.arange(32) % 5
    train, select, verify = data.split(32)
    task = Task.of("t", train=(train, y), select=(select, y), verify=(verify, y))
    graph = capture(module, (train,))
    errors = []
    for settings in ({}, {"correct_bias": True}, {"rounding": "learned"}):
        method = Quantize(**{**PLAIN, **settings})
        quantized = method.apply(graph, method.plan(graph, task), Tools())
        errors.append((quantized(select) - module(select)).norm().item())
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < 0.5 * errors[0]


def test_a_plan_whose_steps_are_of_another_size_is_refused() -> None:
    module, x = net("mlp")
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=64, rounding="learned")
    plan = method.plan(graph, task)
    wrong = with_steps(plan.weights[0], torch.ones(32, 3))
    with pytest.raises(PlanError, match="was made for another graph"):
        method.apply(graph, QuantizePlan(plan.activations, (wrong, *plan.weights[1:])), Tools())


def test_a_rounding_that_is_none_is_refused() -> None:
    with pytest.raises(PlanError, match=r"there is none such; take one of \['nearest', 'learned'\]"):
        Quantize(rounding="up")  # type: ignore[arg-type]


class Recurrent(nn.Module):
    """[B, 6, 4] -> [B, 6, 3]; the LSTM's first states hold the batch in their second dim."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


def test_planning_leaves_the_batch_of_a_recurrent_graph_open() -> None:
    x = torch.randn(64, 6, 4, generator=torch.Generator().manual_seed(0))
    graph = capture(Recurrent().eval(), (x,))
    before = macs(graph)
    Quantize(samples=32, most_error=None).plan(graph, task_of(x))
    assert macs(graph) == before, "MACs are counted for one sample"
