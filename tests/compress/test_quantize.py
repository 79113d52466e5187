"""Quantization: the plan's figures, the emitted graph, the errors."""

from __future__ import annotations

import json
import math

import cattrs
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.nets import NETS, net
from trimtab.compress.observers import OBSERVERS, Observer
from trimtab.compress.quantize import Quantize, QuantizePlan, usable_bits
from trimtab.core import Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture, get_tensor


def task_of(x: Tensor, *, num: int = 128) -> Task:
    data = torch.randn(3 * num, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    y = torch.arange(num) % 5
    train, select, verify = data.split(num)
    return Task.of("t", train=(train, y), select=(select, y), verify=(verify, y))


def quantized(name: str) -> tuple[nn.Module, GraphModule, QuantizePlan, Tensor]:
    module, x = net(name)
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=128)
    plan = method.plan(graph, task)
    return module, method.apply(graph, plan, Tools()), plan, task.select.inputs[0]


@pytest.mark.parametrize("name", NETS)
def test_answers_stay_close_and_weights_are_integers(name: str) -> None:
    module, graph, plan, x = quantized(name)
    want = module(x)
    assert ((graph(x) - want).norm() / want.norm()).item() < 0.05
    for weight in plan.weights:
        levels = get_tensor(graph, f"{weight.weight.replace('.', '_')}_int8")
        assert levels.dtype == torch.int8
        assert weight.weight not in dict(graph.named_parameters())
    assert plan.skipped == ()


def test_weight_scales_are_the_largest_value_over_the_largest_integer_per_channel() -> None:
    module, _, plan, _ = quantized("mlp")
    weight = module.get_parameter("layers.0.weight")
    scales = next(w for w in plan.weights if w.weight == "layers.0.weight").scales
    for row, scale in zip(weight, scales, strict=True):
        assert math.isclose(scale, row.abs().max().item() / (2 ** (usable_bits() - 1) - 1), rel_tol=1e-6)


def test_one_scale_for_a_tensor_is_that_of_its_largest_channel() -> None:
    module, x = net("conv")
    graph, task = capture(module, (x,)), task_of(x)
    channels, tensor = (Quantize(samples=64, granularity=one).plan(graph, task) for one in ("channel", "tensor"))  # type: ignore[arg-type]
    for by_channel, by_tensor in zip(channels.weights, tensor.weights, strict=True):
        assert set(by_tensor.scales) == {max(by_channel.scales)}
        assert len(by_tensor.scales) == len(by_channel.scales)


def test_activation_levels_agree_with_plain_arithmetic() -> None:
    module, graph, plan, x = quantized("mlp")
    first = plan.activations[0]
    seen: dict[str, Tensor] = {}

    class Spy(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    Spy(graph).run(x)
    reader = next(n for n in graph.graph.nodes if n.args and getattr(n.args[0], "name", "") == first.node)
    levels = (x.double() / first.scale).round().add(first.zero_point).clamp(0, 255)
    assert torch.equal(seen[reader.name].double(), levels)
    assert module is not graph


def test_every_layer_reads_integers_on_both_sides() -> None:
    _, graph, _, _ = quantized("resnet")
    calls = [n for n in graph.graph.nodes if n.op == "call_function"]
    layers = [n for n in calls if "conv2d" in str(n.target) or "linear" in str(n.target)]
    assert len(layers) == 12
    for layer in layers:
        assert [str(arg.target) for arg in layer.args[:2]] == [
            "quantized_decomposed.dequantize_per_tensor.default",
            "quantized_decomposed.dequantize_per_channel.default",
        ]
    adds = [n for n in calls if "aten.add" in str(n.target)]
    assert adds
    for add in adds:
        assert all("dequantize" in str(arg.target) for arg in add.args[:2]), "a residual sum must read integers"


def test_a_plan_survives_json_and_replays_bit_exactly() -> None:
    module, x = net("conv")
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=64)
    plan = method.plan(graph, task)
    back = cattrs.structure(json.loads(json.dumps(cattrs.unstructure(plan))), QuantizePlan)
    assert back == plan
    assert torch.equal(method.apply(graph, back, Tools())(x), method.apply(graph, plan, Tools())(x))
    assert len(plan.rows()) == 3


def test_the_input_graph_is_untouched() -> None:
    module, x = net("conv")
    graph, task = capture(module, (x,)), task_of(x)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    code = graph.code
    method = Quantize(samples=64)
    method.apply(graph, method.plan(graph, task), Tools())
    assert graph.code == code
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


def test_what_cannot_be_quantized_is_refused_with_the_mend() -> None:
    module, x = net("mlp")
    task = task_of(x)
    graph = capture(module, (x,))
    with pytest.raises(PlanError, match="16 calibration samples or more; got 4"):
        Quantize(samples=4).plan(graph, task)
    with pytest.raises(PlanError, match="Nothing to quantize"):
        Quantize().plan(capture(nn.ReLU(), (x,)), task)
    other, y = net("conv")
    method = Quantize(samples=64)
    foreign = method.plan(capture(other, (y,)), task_of(y))
    with pytest.raises(PlanError, match="has no value named"):
        method.apply(graph, foreign, Tools())


def test_a_constant_range_and_nan_are_refused() -> None:
    module, x = net("mlp")
    task = task_of(x)
    with torch.no_grad():
        module.get_parameter("layers.0.weight").zero_()
        module.get_parameter("layers.0.bias").fill_(-1)
    with pytest.raises(PlanError, match="only zeros in the value"):
        Quantize().plan(capture(module, (x,)), task)
    with torch.no_grad():
        module.get_parameter("layers.5.weight")[0, 0] = float("nan")
        module.get_parameter("layers.0.bias").fill_(1)
    with pytest.raises(PlanError, match=r"The weight 'layers\.5\.weight' holds NaN"):
        Quantize().plan(capture(module, (x,)), task)


def test_integers_are_not_quantized_again() -> None:
    module, x = net("mlp")
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=64)
    once = method.apply(graph, method.plan(graph, task), Tools())
    with pytest.raises(PlanError, match="holds integers already, which have no range to choose"):
        method.plan(once, task)


class SharedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)
        self.b = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.a(x)))


def test_a_shared_weight_is_left_in_float_and_listed() -> None:
    _, x = net("mlp")
    plan = Quantize(samples=64).plan(capture(SharedWeight(), (x,)), task_of(x))
    assert [skip.what for skip in plan.skipped] == ["int8 of linear", "int8 of linear_1"]
    assert [weight.weight for weight in plan.weights] == ["b.weight"]


@pytest.mark.parametrize(
    ("features", "bits"), [(["avx2"], 7), (["avx2", "avx_vnni"], 8), (["avx2", "avx512_vnni"], 8), ([], 8)]
)
def test_weights_leave_room_where_kernels_saturate(
    monkeypatch: pytest.MonkeyPatch, features: list[str], bits: int
) -> None:
    monkeypatch.setattr("trimtab.compress.quantize.stamp", lambda: {"features": features})
    assert usable_bits() == bits


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_every_observer_gives_a_plan_that_stays_close(observer: Observer, name: str) -> None:
    module, x = net(name)
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=128, observer=observer)
    plan = method.plan(graph, task)
    data = task.select.inputs[0]
    want = module(data)
    assert ((method.apply(graph, plan, Tools())(data) - want).norm() / want.norm()).item() < 0.1
    for scale in plan.activations:
        assert scale.low - scale.scale <= -scale.zero_point * scale.scale
        assert (255 - scale.zero_point) * scale.scale <= scale.high + scale.scale


@pytest.mark.parametrize("observer", OBSERVERS)
def test_symmetric_activations_have_their_zero_in_the_middle_or_at_the_end(observer: Observer) -> None:
    module, x = net("conv")
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=64, observer=observer, symmetric=True)
    plan = method.plan(graph, task)
    assert {scale.zero_point for scale in plan.activations} == {0, 128}
    for scale in plan.activations:
        largest = max(-scale.low, scale.high)
        assert scale.zero_point == (128 if scale.low < 0 else 0)
        assert scale.scale * (255 - scale.zero_point) <= largest * 1.0001
    data = task.select.inputs[0]
    want = module(data)
    assert ((method.apply(graph, plan, Tools())(data) - want).norm() / want.norm()).item() < 0.1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_have_the_bits_that_were_asked_for(bits: int) -> None:
    module, x = net("mlp")
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=64, weight_bits=bits, most_error=None)
    plan = method.plan(graph, task)
    quantized = method.apply(graph, plan, Tools())
    assert {row["bits"] for row in plan.rows()} == {bits}
    for weight in plan.weights:
        assert get_tensor(quantized, f"{weight.weight.replace('.', '_')}_int8").abs().max() == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("name", NETS)
def test_corrected_biases_bring_back_the_mean_of_the_outputs(name: str) -> None:
    module, x = net(name)
    graph, task = capture(module, (x,)), task_of(x)
    data = task.train.inputs[0]
    plain, corrected = (
        Quantize(samples=128, weight_bits=3, correct_bias=yes, equalize=False, most_error=None) for yes in (False, True)
    )
    plans = [method.plan(graph, task) for method in (plain, corrected)]
    assert plans[0].weights == plans[1].weights
    assert not plans[0].biases
    assert [shift.layer for shift in plans[1].biases] == [weight.layer for weight in plans[1].weights]
    means = [
        method.apply(graph, plan, Tools())(data).mean(0) for method, plan in zip((plain, corrected), plans, strict=True)
    ]
    off, less = ((mean - module(data).mean(0)).norm().item() for mean in means)
    assert less < 0.5 * off


def test_a_bias_shift_is_what_quantization_takes_from_the_mean() -> None:
    x = torch.rand(64, 6)
    y = torch.arange(64) % 3
    graph = capture(nn.Sequential(nn.Linear(6, 4, bias=False)), (x,))
    task = Task.of("t", train=(x, y), select=(x + 1, y), verify=(x + 2, y))
    plain, corrected = (Quantize(samples=64, weight_bits=3, correct_bias=yes, most_error=None) for yes in (False, True))
    plan = corrected.plan(graph, task)
    without = plain.apply(graph, plain.plan(graph, task), Tools())(x)
    want = (graph(x) - without).mean(0)
    assert torch.allclose(torch.tensor(plan.biases[0].values), want, atol=1e-6)
    assert torch.allclose(corrected.apply(graph, plan, Tools())(x) - without, want.expand(64, -1), atol=1e-6)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(
        PlanError, match=r"there is none such; take one of \['minmax', 'percentile', 'mse', 'entropy'\]"
    ):
        Quantize(observer="best")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"int8 weights have 2 \.\.\. 8 bits"):
        Quantize(weight_bits=9)
    with pytest.raises(
        PlanError, match=r"granularity='group'\): there is none such; take one of \['channel', 'tensor'\]"
    ):
        Quantize(granularity="group")  # type: ignore[arg-type]
