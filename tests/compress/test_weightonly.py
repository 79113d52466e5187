"""Weight-only quantization: the plan, how close answers stay, what GPTQ gains, the errors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.compress.test_quantize import SharedWeight, task_of
from tests.nets import net
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.quantize import Quantize
from trimtab.compress.weightonly import PRECISIONS, WeightOnly
from trimtab.core import Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture

# Relative L2 of the outputs that each format may move small random nets by.
CLOSE = {"fp16": 1e-3, "int8": 2e-2, "fp8": 0.1, "int4": 0.25, "nf4": 0.25}


def given(name: str) -> tuple[GraphModule, Task, Tensor]:
    module, x = net(name)
    task = task_of(x)
    return capture(module, (x,)), task, task.select.inputs[0]


def error(method: WeightOnly, name: str) -> float:
    graph, task, x = given(name)
    packed = method.apply(graph, method.plan(graph, task), Tools(task=task))
    with torch.no_grad():
        return float((packed(x) - graph(x)).norm() / graph(x).norm())


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize("format", PRECISIONS)
def test_answers_stay_close(format: str, name: str) -> None:
    assert error(WeightOnly(format), name) < CLOSE[format]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("mlp", WeightOnly("int4")),
        ("mlp", WeightOnly("nf4")),
        ("conv", WeightOnly("int4", symmetric=False)),
        pytest.param("resnet", WeightOnly("int4"), marks=pytest.mark.slow),
    ],
)
def test_gptq_loses_less_on_samples_that_it_did_not_see(name: str, method: WeightOnly) -> None:
    better = dataclasses.replace(method, rounding="gptq", samples=96)
    assert error(better, name) < 0.9 * error(method, name)


def test_the_plan_says_how_each_weight_is_stored() -> None:
    graph, task, _ = given("mlp")
    plan = WeightOnly("int4", group_size=8, symmetric=False).plan(graph, task)
    first = plan.rows()[0]
    assert first["layer"] == "layers.0"
    assert (first["bits"], first["scale per"], first["group"], first["symmetric"]) == (4, "group", 8, False)
    assert first["activations"] == "float"
    assert first["bytes"] == 32 * 16 // 2
    whole = WeightOnly("nf4").plan(graph, task).weights[1]
    assert (whole.granularity, whole.group_size, whole.symmetric) == ("channel", 32, True)


def test_smaller_groups_lose_less() -> None:
    assert error(WeightOnly("int4", group_size=2), "mlp") < 0.7 * error(WeightOnly("int4"), "mlp")


def test_the_packed_graph_holds_so_many_bits_a_weight() -> None:
    graph, task, _ = given("conv")
    floats = sum(p.numel() for name, p in graph.named_parameters() if p.ndim > 1)
    for format, bits in (("int4", 4), ("int8", 8), ("fp16", 16)):
        packed = WeightOnly(format).apply(graph, WeightOnly(format).plan(graph, task), Tools())
        held = sum(b.numel() * b.element_size() for name, b in packed.named_buffers() if name.endswith("_packed"))
        # rows of an odd number of 4-bit codes are filled up
        assert floats * bits / 8 <= held <= floats * bits / 8 * 1.02


class Products(nn.Module):
    """[B, 8] -> [B, 5] by matrix products with weights [in, out], and one of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(8, width)) for width in (16, 16, 5))
        self.d = nn.Parameter(torch.randn(16, 8))
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.addmm(self.bias, x, self.a).relu() + torch.mm(x, self.b)
        mixed = torch.matmul(h[:, :, None], h[:, None, :]).mean(2)
        return torch.matmul(torch.mm(mixed, self.d), self.c)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_products_with_a_weight_are_layers_too(rounding: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    graph, task = capture(Products(), (x,)), task_of(x)
    method = WeightOnly("int8", rounding=rounding)  # type: ignore[arg-type]
    plan = method.plan(graph, task)
    assert [weight.weight for weight in plan.weights] == ["a", "b", "d", "c"]
    assert plan.skipped == ()
    packed = method.apply(graph, plan, Tools(task=task))
    assert ((packed(x) - graph(x)).norm() / graph(x).norm()).item() < 0.02


def test_a_shared_weight_is_left_in_float_and_listed() -> None:
    x = torch.randn(4, 16)
    graph = capture(SharedWeight(), (x,))
    plan = WeightOnly("int4").plan(graph, task_of(x))
    assert [skip.what for skip in plan.skipped] == ["int4w of linear", "int4w of linear_1"]
    assert [weight.weight for weight in plan.weights] == ["b.weight"]


def test_a_group_size_that_does_not_divide_is_refused_with_the_layer() -> None:
    graph, task, _ = given("mlp")
    with pytest.raises(
        PlanError,
        match=r"group_size=12 does not divide the 16 weights of an output of 'layers\.0\.weight' \(2 of 3 layers .*"
        r"group_size=None, one scale for each output, or a divisor of 8, which divides all",
    ):
        WeightOnly("int4", group_size=12).plan(graph, task)


@pytest.mark.parametrize("first", [Quantize(samples=64), WeightOnly("nf4"), Dynamic()])
def test_what_is_quantized_is_not_quantized_again(first: Quantize | WeightOnly | Dynamic) -> None:
    graph, task, _ = given("mlp")
    once = first.apply(graph, first.plan(graph, task), Tools())  # type: ignore[arg-type]
    for method in (WeightOnly("int8"), Dynamic()):
        with pytest.raises(PlanError, match=r"weights already, .*Give it the model before quantization"):
            method.plan(once, task)


def test_gptq_refuses_too_few_samples_and_no_task() -> None:
    graph, task, _ = given("mlp")
    method = WeightOnly("int4", rounding="gptq", samples=4)
    with pytest.raises(PlanError, match=r'GPTQ needs 16 calibration samples or more; got 4 .*rounding="nearest"'):
        method.plan(graph, task)
    method = WeightOnly("int4", rounding="gptq")
    with pytest.raises(PlanError, match="GPTQ needs data to calibrate on; got no task"):
        method.apply(graph, method.plan(graph, task), Tools())


def test_weights_that_are_not_finite_or_not_float32_are_refused() -> None:
    module, x = net("mlp")
    with pytest.raises(PlanError, match=r"'layers\.0\.weight' is torch\.float64; float32 is needed: model\.float\(\)"):
        WeightOnly("int8").plan(capture(module.double(), (x.double(),)), task_of(x))
    with torch.no_grad():
        module.float().get_parameter("layers.0.weight")[0, 0] = float("inf")
    with pytest.raises(PlanError, match=r"'layers\.0\.weight' holds NaN or infinity"):
        WeightOnly("int8").plan(capture(module, (x,)), task_of(x))
    with pytest.raises(PlanError, match="Nothing to pack"):
        WeightOnly("int8").plan(capture(nn.ReLU(), (x,)), task_of(x))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": "int3"}, "no such format"),
        ({"rounding": "up"}, "no such rounding"),
        ({"format": "fp8", "rounding": "gptq"}, "GPTQ rounds to"),
        ({"format": "nf4", "symmetric": False}, "only int4 has zero points"),
        ({"group_size": 1}, "group_size=1 means nothing here"),
        ({"format": "fp16", "group_size": 32}, "group_size=32 means nothing here"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        WeightOnly(**settings)  # type: ignore[arg-type]
