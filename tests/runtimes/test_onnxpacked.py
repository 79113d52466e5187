"""Packed weights in ONNX: which operations, which bytes, and answers that are the graph's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn
from torch.fx import GraphModule

from tests.compress.test_quantize import task_of
from tests.compress.test_weightonly import Products
from tests.nets import net
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Tools
from trimtab.graph.capture import capture
from trimtab.runtimes.onnxfile import onnx_model
from trimtab.runtimes.onnxruntime import without_fast_paths


def made(method: WeightOnly | Dynamic, module: nn.Module, x: torch.Tensor) -> tuple[GraphModule, onnx.ModelProto]:
    graph = capture(module.eval(), (x,))
    packed = method.apply(graph, method.plan(graph, task_of(x)), Tools())
    return packed, onnx_model(packed)


def answers(model: onnx.ModelProto, x: torch.Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    exact = without_fast_paths(model.SerializeToString())
    session = onnxruntime.InferenceSession(exact, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def wide(*, last: int = 48) -> tuple[nn.Module, torch.Tensor]:
    """[B, 3, 64] -> [B, 3, last]: three-dimensional, so that the exporter writes products and not Gemm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, last, bias=False)), torch.randn(4, 3, 64)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (WeightOnly("int4"), "MatMulNBits"),
        (WeightOnly("int4", group_size=32, symmetric=False), "MatMulNBits"),
        (WeightOnly("nf4", group_size=32), "MatMulBnb4"),
    ],
)
def test_linear_layers_are_products_with_packed_weights(method: WeightOnly, kind: str) -> None:
    module, x = wide()
    graph, model = made(method, module, x)
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops[kind] == 2
    assert ops["MatMul"] == ops["Gemm"] == ops["Transpose"] == ops["DequantizeLinear"] == 0
    assert not [t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 600]
    np.testing.assert_allclose(answers(model, x), graph(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_bytes_are_those_of_the_graph_and_only_speed_rounds_activations() -> None:
    module, x = wide()
    graph, model = made(WeightOnly("int4", group_size=16), module, x)
    stored = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_int4"))
    assert stored.shape == (96, 4, 8)
    assert np.array_equal(stored.reshape(96, 32), dict(graph.named_buffers())["0_weight_packed"].numpy())
    levels = [a.i for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert levels == [4, 4]
    exact = onnx.load_from_string(without_fast_paths(model.SerializeToString()))
    assert not [a for node in exact.graph.node for a in node.attribute if a.name == "accuracy_level"]


def test_convolutions_read_constants_of_so_many_bits() -> None:
    module, x = net("conv")
    graph, model = made(WeightOnly("int4", symmetric=False), module, x)
    convolutions = [
        t for t in model.graph.initializer if t.data_type == TensorProto.UINT4 and np.prod(t.dims) in (72, 864)
    ]
    assert len(convolutions) == 2
    assert model.opset_import[0].version == 21
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx", "com.microsoft"}
    np.testing.assert_allclose(answers(model, x), graph(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [WeightOnly("int4", group_size=8), WeightOnly("int8")])
def test_products_with_weights_the_other_way_round(method: WeightOnly) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    graph, model = made(method, Products(), x)
    found, want = answers(model, x), graph(x).detach().numpy()
    assert np.linalg.norm(found - want) <= 1e-5 * np.linalg.norm(want)


def test_dynamic_layers_are_integer_products_with_one_range_for_all_that_read_a_value() -> None:
    from tests.compress.test_dynamic import Heads

    torch.manual_seed(0)
    x = torch.randn(4, 16)
    graph, model = made(Dynamic(), Heads(), x)
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["DynamicQuantizeLinear"] == 1
    assert ops["MatMulInteger"] == 3
    assert ops["Gemm"] == ops["MatMul"] == ops["DequantizeLinear"] == 0
    np.testing.assert_allclose(answers(model, x), graph(x).detach().numpy(), rtol=1e-4, atol=1e-4)
