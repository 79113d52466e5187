"""What runs on integers, as each runtime's own optimised graph tells."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from tests.compress.test_quantize import task_of
from tests.nets import net
from tests.runtimes.quantized import quantized_graph
from tests.runtimes.test_onnxpacked import wide
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.quantize import Quantize
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Method, Precision, Tools
from trimtab.errors import RuntimeFailed
from trimtab.graph.capture import capture
from trimtab.graph.packed import precision_of
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.coverage import Coverage, coverage, fallbacks, num_quantized
from trimtab.runtimes.inductor import FILE


def made(method: Method, module: nn.Module, x: torch.Tensor) -> GraphModule:
    graph = capture(module.eval(), (x,))
    return method.apply(graph, method.plan(graph, task_of(x)), Tools())


def covered(graph: GraphModule, runtime: str, folder: Path) -> tuple[Coverage, Precision]:
    if reason := RUNTIMES[runtime].missing():
        pytest.skip(reason)
    precision: Precision = precision_of(graph)  # type: ignore[assignment]
    RUNTIMES[runtime].export(graph, folder, precision=precision, batch_size=2, threads=1)
    return coverage(runtime, folder, precision=precision), precision


@pytest.mark.parametrize(
    ("runtime", "running"),
    [
        ("onnxruntime", {"QLinearConv": 2, "QGemm": 1}),
        ("openvino", {"Convolution": 2, "FullyConnected": 1}),
    ],
)
def test_every_layer_of_a_static_plan_runs_on_integers(runtime: str, running: dict[str, int], tmp_path: Path) -> None:
    graph = quantized_graph()
    found, precision = covered(graph, runtime, tmp_path)
    assert found == Coverage(runtime, running, {})
    assert num_quantized(graph) == 3
    assert fallbacks(graph, found, precision) == ()


@pytest.mark.slow
def test_inductor_runs_linear_layers_on_integers(tmp_path: Path) -> None:
    graph = made(Quantize(samples=64), *wide())
    found, precision = covered(graph, "inductor", tmp_path)
    assert found == Coverage("inductor", {"qlinear_pointwise_tensor": 2}, {})
    assert fallbacks(graph, found, precision) == ()


@pytest.mark.slow
def test_inductor_runs_an_encoder_on_integers_and_fuses_what_follows_its_layers(tmp_path: Path) -> None:
    graph = made(Quantize(samples=64), *net("encoder"))
    found, precision = covered(graph, "inductor", tmp_path)
    # q, k, v and the layer before the activation, which is fused into it; both layers before a residual sum
    assert found == Coverage("inductor", {"qlinear_pointwise_tensor": 4, "qlinear_pointwise_binary_tensor": 2}, {})
    assert fallbacks(graph, found, precision) == ()
    with zipfile.ZipFile(tmp_path / FILE) as package:
        code = "".join(package.read(name).decode() for name in package.namelist() if name.endswith(".cpp"))
    assert len(re.findall(r'qlinear_pointwise_tensor\(.*"gelu"', code)) == 1


@pytest.mark.slow
def test_a_layer_that_inductor_does_not_recognise_behind_a_reshape_is_listed(tmp_path: Path) -> None:
    graph = quantized_graph()  # written by hand: between rounding and the last layer stands a flatten
    found, precision = covered(graph, "inductor", tmp_path)
    assert found.running == {"qconv_pointwise_tensor": 2}
    (skip,) = fallbacks(graph, found, precision)
    assert skip.why.startswith("1 of 3 layers run in floating point there; of its layers so: ")


@pytest.mark.parametrize(
    ("runtime", "method", "running"),
    [
        ("onnxruntime", WeightOnly("int4"), {"MatMulNBits": 2}),
        pytest.param("onnxruntime", WeightOnly("nf4"), {"MatMulBnb4": 2}, marks=pytest.mark.slow),
        ("onnxruntime", Dynamic(), {"DynamicQuantizeMatMul": 2}),
        ("openvino", WeightOnly("int4", group_size=16, symmetric=False), {"FullyConnected": 2}),
        pytest.param("openvino", WeightOnly("int8"), {"FullyConnected": 2}, marks=pytest.mark.slow),
        ("eager", WeightOnly("int4"), {"unpack + layer": 2}),
        pytest.param("inductor", WeightOnly("int8", group_size=16), {"dequantize + layer": 2}, marks=pytest.mark.slow),
    ],
)
def test_linear_layers_read_packed_weights(
    runtime: str, method: WeightOnly | Dynamic, running: dict[str, int], tmp_path: Path
) -> None:
    graph = made(method, *wide())
    found, precision = covered(graph, runtime, tmp_path)
    assert found == Coverage(runtime, running, {})
    assert fallbacks(graph, found, precision) == ()


@pytest.mark.slow
def test_convolutions_of_openvino_fall_back_and_are_listed(tmp_path: Path) -> None:
    graph = made(WeightOnly("int4"), *net("resnet"))
    found, precision = covered(graph, "openvino", tmp_path)
    (skip,) = fallbacks(graph, found, precision)
    assert skip.what == "int4w in openvino"
    assert skip.why.startswith(f"{12 - found.num_running} of 12 layers run with weights unpacked to floats there")
    assert found.floating["Convolution"] > 5
    assert any("conv2d" in name for name in found.names)


@pytest.mark.slow
def test_convolutions_of_onnxruntime_stay_packed_unless_a_table_is_needed(tmp_path: Path) -> None:
    for format, runs in (("int4", True), ("nf4", False)):
        folder = tmp_path / format
        folder.mkdir()
        graph = made(WeightOnly(format), *net("conv"))
        found, precision = covered(graph, "onnxruntime", folder)
        assert (fallbacks(graph, found, precision) == ()) == runs, found


def test_a_static_layer_that_falls_back_is_listed(tmp_path: Path) -> None:
    module, x = net("mlp")
    floats = RUNTIMES["onnxruntime"]
    floats.export(capture(module, (x,)), tmp_path, precision="fp32", batch_size=1, threads=1)
    found = coverage("onnxruntime", tmp_path, precision="int8")
    assert found.num_running == 0
    assert sum(found.floating.values()) == 3
    (skip,) = fallbacks(quantized_graph(), found, "int8")
    assert skip.why.startswith("3 of 3 layers run in floating point there; of its layers so: ")


def test_a_runtime_that_does_not_tell_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="tensorrt does not tell how it runs a file; eager, inductor, onnxruntime"):
        coverage("tensorrt", tmp_path, precision="int8")
