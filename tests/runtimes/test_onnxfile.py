"""The ONNX that is written: integers stay integers, global means become pools, no notes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from tests.compress.test_quantize import task_of
from tests.nets import net
from tests.runtimes.quantized import quantized_graph
from trimtab.compress.quantize import Quantize
from trimtab.core import Tools
from trimtab.errors import RuntimeFailed
from trimtab.graph.capture import capture
from trimtab.runtimes import onnxfile
from trimtab.runtimes.onnxfile import onnx_model


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    return onnx_model(quantized_graph())


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_int8_weights_are_stored_as_int8_and_biases_as_int32(quantized: onnx.ModelProto) -> None:
    stored = {(t.data_type, tuple(t.dims)) for t in quantized.graph.initializer}
    for shape in ((16, 3, 3, 3), (32, 16, 3, 3), (5, 32)):
        assert (TensorProto.INT8, shape) in stored
        assert (TensorProto.FLOAT, shape) not in stored
        assert (TensorProto.INT32, shape[:1]) in stored
    num_weights = 16 * 27 + 32 * 144 + 5 * 32
    assert len(quantized.SerializeToString()) < 2 * num_weights


def test_onnxruntime_runs_the_quantized_graph_on_integers(quantized: onnx.ModelProto, tmp_path: Path) -> None:
    ops = optimised(quantized, tmp_path)
    assert (ops["QLinearConv"], ops["QGemm"], ops["QLinearGlobalAveragePool"]) == (2, 1, 1)
    assert ops["Conv"] == ops["Gemm"] == ops["DequantizeLinear"] == 0


def test_activations_are_unsigned(quantized: onnx.ModelProto) -> None:
    zeros = {t.name: t.data_type for t in quantized.graph.initializer}
    quantizers = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 4
    assert {zeros[node.input[2]] for node in quantizers} == {TensorProto.UINT8}


def test_a_model_is_valid_has_a_dynamic_batch_and_no_notes(quantized: onnx.ModelProto) -> None:
    onnx.checker.check_model(quantized, full_check=True)
    assert quantized.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    text = quantized.SerializeToString()
    assert b"stack_trace" not in text
    assert b".py" not in text


def test_an_fp32_graph_keeps_its_weights_bit_for_bit() -> None:
    module, x = net("mlp")
    model = onnx_model(capture(module, (x,)))
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, weight in module.named_parameters():
        assert np.array_equal(stored[name], weight.detach().numpy())


class Means(nn.Module):
    """Means that are global pools, and means that only look like them."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)) + x.mean((-1, -2), keepdim=True).flatten(1)
        return pooled + x.mean((1, 2), keepdim=True).mean((1, 2, 3), keepdim=True).flatten(1)


def test_only_global_means_become_pools() -> None:
    graph = capture(Means(), (torch.randn(2, 3, 5, 4),))
    model = onnx_model(graph)
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["GlobalAveragePool"] >= 1
    assert ops["ReduceMean"] >= 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(4, 3, 5, 4)
    (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(answer, graph(x).numpy(), rtol=1e-5, atol=1e-6)


class Svd(nn.Module):
    """An operation that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


def test_an_operation_that_onnx_lacks_is_named() -> None:
    with pytest.raises(RuntimeFailed, match=r"ONNX cannot export this graph: .*svd"):
        onnx_model(capture(Svd(), (torch.randn(2, 3, 3),)))


def biased(scale: float, bias: float) -> onnx.GraphProto:
    """Both operands as integers, then Gemm with a floating bias."""
    arrays = {"s": np.float32(scale), "w8": np.ones((3, 2), np.int8), "b": np.full(3, bias, np.float32)}
    return helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["x", "s"], ["xf"]),
            helper.make_node("DequantizeLinear", ["w8", "s"], ["wf"]),
            helper.make_node("Gemm", ["xf", "wf", "b"], ["y"], transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )


def test_an_integer_bias_is_right_to_half_a_step() -> None:
    graph = biased(0.01, 0.12345)
    onnxfile.integer_biases_(graph)
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    assert "b" not in stored
    assert stored["y_bias_int32"].dtype == np.int32
    step = stored["y_bias_scale"]
    np.testing.assert_allclose(step, 1e-4, rtol=1e-6)
    assert np.abs(stored["y_bias_int32"] * step - 0.12345).max() <= 0.5 * step[0] * 1.01


def test_a_bias_too_large_for_int32_stays_as_it_is() -> None:
    graph = biased(1e-6, 1e4)
    onnxfile.integer_biases_(graph)
    assert "b" in {t.name for t in graph.initializer}
    assert graph.node[-1].input[2] == "b"


class Padded(nn.Module):
    """Convolutions that read what zeros were put around, unevenly as TensorFlow does; the last around other values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.third = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(functional.pad(x, (0, 1, 0, 1))).relu()
        wide = functional.pad(x, (2, 1, 0, 1))
        x = self.second(wide) + wide.mean((2, 3), keepdim=True)  # two read it: it stays
        x = self.third(functional.pad(x, (1, 1, 1, 1), value=0.5))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("integers", [False, True])
def test_zeros_around_become_the_padding_of_a_convolution(integers: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 16, 16)
    task = task_of(x)
    graph = capture(Padded().eval(), (x[:2],))
    if integers:
        method = Quantize(samples=32, most_error=None)
        graph = method.apply(graph, method.plan(graph, task), Tools(task=task))
    model = onnx_model(graph)
    onnx.checker.check_model(model, full_check=True)
    pads = [list(a.ints) for n in model.graph.node for a in n.attribute if n.op_type == "Conv" and a.name == "pads"]
    assert [0, 0, 1, 1] in pads
    assert sum(node.op_type == "Pad" for node in model.graph.node) == 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x[:8].numpy()})
    want = graph(x[:8]).detach().numpy()
    assert np.abs(found - want).max() <= (0.02 if integers else 1e-4) * np.abs(want).max()
