"""Sensitivity: the estimate against layers tried one by one, what is kept, and what cannot be helped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.quantize import Quantize, QuantizePlan
from trimtab.compress.sensitivity import Sensitivity, num_to_keep, order_to_keep, relative_error, sensitivities
from trimtab.core import Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.fold import fold_batchnorm


@pytest.mark.parametrize("name", ["conv", "resnet"])
def test_the_estimate_agrees_with_layers_tried_one_by_one(name: str) -> None:
    module, x = net(name)
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=64, weight_bits=5, correct_bias=False, most_error=None)
    plan, folded = method.plan(graph, task), fold_batchnorm(graph)
    found = sensitivities(folded, plan.activations, plan.weights, (), task.select)
    nodes = {node.name: node for node in folded.graph.nodes}
    tried = {}
    for weight in plan.weights:
        source = nodes[weight.layer].args[0].name
        alone = QuantizePlan(tuple(a for a in plan.activations if a.node == source), (weight,))
        tried[weight.layer] = relative_error(graph, method.apply(graph, alone, Tools()), task.select)
    assert [one.error for one in found] == sorted((one.error for one in found), reverse=True)
    for one in found[: len(found) // 2 + 1]:
        assert 0.4 < one.error / tried[one.layer] < 2.5
    assert max(tried, key=tried.__getitem__) in {one.layer for one in found[:2]}


class Loud(nn.Module):
    """The second layer reads a channel that is 10,000 times as loud as the others, and hardly weighs it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        with torch.no_grad():
            self.a.weight[0] *= 1e4
            self.b.weight[:, 0] *= 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(self.a(x))))


def test_a_layer_whose_error_explodes_is_named_and_kept() -> None:
    torch.manual_seed(0)
    module, x = Loud().eval(), torch.randn(4, 16)
    graph, task = capture(module, (x,)), task_of(x)
    free = Quantize(samples=64, weight_bits=8, equalize=False, most_error=None)
    broken = relative_error(graph, free.apply(graph, free.plan(graph, task), Tools()), task.select)
    assert broken > 0.25
    method = Quantize(samples=64, weight_bits=8, equalize=False)
    plan = method.plan(graph, task)
    assert [skip.what for skip in plan.skipped] == ["int8 of linear_1"]
    assert "more than most_error=0.25; with what is kept in floating point by" in plan.skipped[0].why
    assert [weight.layer for weight in plan.weights] == ["linear", "linear_2"]
    assert relative_error(graph, method.apply(graph, plan, Tools()), task.select) < 0.01
    for equalize in (True, None):
        helped = Quantize(samples=64, weight_bits=8, equalize=equalize).plan(graph, task)
        assert helped.skipped == ()
        assert len(helped.weights) == 3


def test_a_bound_is_kept_with_some_layers_in_int8() -> None:
    module, x = net("resnet")
    graph, task = capture(module, (x,)), task_of(x)
    whole = Quantize(samples=64, weight_bits=4, most_error=None)
    error = relative_error(graph, whole.apply(graph, whole.plan(graph, task), Tools()), task.select)
    method = Quantize(samples=64, weight_bits=4, most_error=error / 3)
    plan = method.plan(graph, task)
    assert 0 < len(plan.skipped) < 12
    assert len(plan.skipped) + len(plan.weights) == 12
    assert relative_error(graph, method.apply(graph, plan, Tools()), task.select) <= error / 3


def test_a_bound_that_no_choice_keeps_is_refused() -> None:
    module, x = net("mlp")
    with pytest.raises(PlanError, match=r"more than most_error=1e-12, and no choice of layers brings it below\. Give"):
        Quantize(samples=64, most_error=1e-12).plan(capture(module, (x,)), task_of(x))
    with pytest.raises(PlanError, match=r"most_error=0\): give a share"):
        Quantize(most_error=0)


def test_cheap_layers_are_kept_first() -> None:
    module, x = net("mlp")
    graph = capture(module, (x,))
    found = tuple(Sensitivity(name, 1.0) for name in ("linear", "linear_1", "linear_2"))
    assert [one.layer for one in order_to_keep(graph, found)] == ["linear_2", "linear", "linear_1"]
    assert num_to_keep(list(found), 0.9, 0.5, more_than=0) == 2
    assert num_to_keep(list(found), 0.9, 0.5, more_than=2) == 3
