"""Dynamic int8: which layers, how close answers stay, what is shared, the errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.quantize import usable_bits
from trimtab.core import Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture, get_tensor
from trimtab.graph.packed import QUANTIZE_NOW


def test_linear_layers_go_and_convolutions_stay() -> None:
    module, x = net("conv")
    graph, task = capture(module, (x,)), task_of(x)
    plan = Dynamic().plan(graph, task)
    assert [weight.weight for weight in plan.weights] == ["head.weight"]
    assert [skip.what for skip in plan.skipped] == ["int8d of conv2d", "int8d of conv2d_1"]
    assert plan.rows()[0]["activations"] == "dynamic"
    dynamic = Dynamic().apply(graph, plan, Tools())
    data = task.select.inputs[0]
    assert ((dynamic(data) - graph(data)).norm() / graph(data).norm()).item() < 0.03
    assert get_tensor(dynamic, "head_weight_packed").abs().max() == 2 ** (usable_bits() - 1) - 1


class Heads(nn.Module):
    """Three layers that read one value."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (part(x) for part in self.parts)
        return a * b + c


def test_a_value_that_several_layers_read_is_rounded_once() -> None:
    x = torch.randn(4, 16)
    graph = capture(Heads(), (x,))
    dynamic = Dynamic().apply(graph, Dynamic().plan(graph, task_of(x)), Tools())
    assert sum(node.target is QUANTIZE_NOW for node in dynamic.graph.nodes) == 1


def test_narrow_layers_stay_and_nothing_left_is_refused() -> None:
    module, x = net("mlp")
    graph, task = capture(module, (x,)), task_of(x)
    plan = Dynamic(min_features=20).plan(graph, task)
    assert [weight.weight for weight in plan.weights] == ["layers.3.weight", "layers.5.weight"]
    assert "fewer than 20 terms" in plan.skipped[0].why
    with pytest.raises(PlanError, match=r"no linear layer of 99 features or more\. Take Quantize"):
        Dynamic(min_features=99).plan(graph, task)
    with pytest.raises(PlanError, match="a sum has 1 term or more"):
        Dynamic(min_features=0)
