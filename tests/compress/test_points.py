"""Which values are rounded, and who reads them rounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.points import LAYERS, points, rounded_readers
from trimtab.compress.qat import fake_quantized, learned_plan, unrounded
from trimtab.compress.quantize import Quantize
from trimtab.core import Tools
from trimtab.graph.capture import capture
from trimtab.graph.fold import fold_batchnorm

aten = torch.ops.aten


def given(module: nn.Module, x: Tensor) -> tuple[GraphModule, list[Node]]:
    graph = fold_batchnorm(capture(module.eval(), (x,)))
    return graph, [node for node in graph.graph.nodes if node.target in LAYERS]


def makers(values: list[Node]) -> list[str]:
    return [str(value.target).split(".")[1] if value.op == "call_function" else value.op for value in values]


def test_an_encoder_rounds_what_its_layers_read_and_nothing_else() -> None:
    values, ties = points(given(*net("encoder"))[1])
    # what q, k and v read; what attention gives, once and not before each reshape; the norm; the activation
    assert makers(values) == ["placeholder", "reshape", "layer_norm", "gelu"]
    assert not ties


def test_a_residual_sum_beside_layers_reads_inputs_and_norms_exact() -> None:
    module, x = net("encoder")
    graph, task = capture(module, (x,)), task_of(x)
    plan = Quantize(samples=64, correct_bias=False).plan(graph, task)
    integer = Quantize().apply(graph, plan, Tools())
    inputs = integer.graph.find_nodes(op="placeholder")
    norms = integer.graph.find_nodes(op="call_function", target=aten.layer_norm.default)
    for value in (*inputs, norms[0]):
        users = {str(user.target) for user in value.users} - {"aten.sym_size.int"}
        assert users == {"aten.add.Tensor", "quantized_decomposed.quantize_per_tensor.default"}


def test_a_value_that_comes_out_of_integers_is_read_rounded_by_all() -> None:
    for name in ("resnet", "conv"):
        graph, layers = given(*net(name))
        values, _ = points(layers)
        readers = rounded_readers(graph.graph, {value.name for value in values})
        assert readers == {value.name: list(value.users) for value in values}


class Mixed(nn.Module):
    """A layer reads the sum of a floating value and a layer's output; a sigmoid reads the floating value too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        return self.b(y + self.a(y)) * torch.sigmoid(y)


def test_a_sum_with_a_layers_output_runs_on_integers_and_others_read_exact() -> None:
    graph, layers = given(Mixed(), torch.randn(2, 6))
    values, _ = points(layers)
    assert makers(values) == ["tanh", "linear", "add"]
    readers = rounded_readers(graph.graph, {value.name for value in values})
    assert makers(readers["tanh"]) == ["linear", "add"]
    assert makers(readers["add"]) == ["linear"]
    # where no layer asks for the sum, it stays exact
    assert makers(rounded_readers(graph.graph, {"tanh"})["tanh"]) == ["linear"]


class Means(nn.Module):
    """The mean of a floating value, read by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x).mean((2, 3)))


def test_a_mean_of_floats_is_rounded_once() -> None:
    assert makers(points(given(Means(), torch.randn(2, 6, 4, 4))[1])[0]) == ["mean"]


@pytest.mark.parametrize("name", ["encoder", "twins"])
def test_training_rounds_what_the_integers_round(name: str) -> None:
    module, x = net(name)
    graph, task = capture(module, (x,)), task_of(x)
    plan = Quantize(samples=64, correct_bias=False).plan(graph, task)
    rounded = fake_quantized(graph, plan)
    integer = Quantize().apply(unrounded(rounded, graph, plan), learned_plan(rounded, plan), Tools())
    sample = task.select.inputs[0]
    assert torch.equal(rounded(sample), integer(sample))
    assert not torch.equal(integer(sample), graph(sample))


class Pooled(nn.Module):
    """An input that is pooled for a layer, and read beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.max_pool2d(x, 2)
        return self.conv(pooled).mean((1, 2, 3)) + x.mean((1, 2, 3))


def test_an_input_is_pooled_on_integers_and_read_exact_by_others() -> None:
    graph, layers = given(Pooled(), torch.randn(2, 3, 4, 4))
    values, ties = points(layers)
    assert makers(values) == ["placeholder", "max_pool2d"]
    assert {value.name: tie.name for value, tie in ties.items()} == {"max_pool2d": "x"}
    assert makers(rounded_readers(graph.graph, {value.name for value in values})["x"]) == ["max_pool2d"]
