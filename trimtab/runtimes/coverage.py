"""What really runs on integers: each runtime's own optimised graph is read, and its layers counted.

A quantized file is a wish. ONNX Runtime writes the graph that it made of it, OpenVINO tells the precision in which each
operation runs, and inductor's package holds the code that it generated: there stands what came of it. A layer is an
operation that multiplies a fixed weight. It counts where its product is taken on integers or, for packed weights,
where the weight is read packed at every call. Cost: the file is loaded once more.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core import Skip
from trimtab.errors import RuntimeFailed
from trimtab.runtimes.base import read_signature
from trimtab.runtimes.formats import PACKED

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto
    from torch.fx import GraphModule

    from trimtab.core import Precision

# ONNX Runtime: kernels that multiply integers or packed weights, and those of floats that may read a fixed weight.
INTEGER_KERNELS = (
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "ConvInteger", "MatMulNBits", "MatMulBnb4",
)  # fmt: skip
FLOAT_KERNELS = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
MOVES = ("Reshape", "Transpose", "ReorderInput")
FLOATS = ("f32", "f16", "bf16", "undefined", "")
# inductor: calls of oneDNN's integer kernels, int8 weights that were not folded, and calls of floating layers.
QUANTIZED_CALL = re.compile(r"aoti_torch_cpu__(q(?:conv|conv2d|linear)_pointwise\w*)\(")
INT8_CONSTANT = re.compile(r"constants_info_\[\d+\]\.dtype = cached_torch_dtype_int8;")
FLOAT_CALL = re.compile(
    r"aoti_torch_cpu_(mkldnn__convolution_pointwise\w*|convolution|_linear_pointwise\w*|_mkl_linear|addmm_out|mm_out)\("
)
LAYERS = ("conv1d", "conv2d", "conv3d", "linear", "addmm", "mm", "matmul")


@dataclass(frozen=True)
class Coverage:
    """The layers of a file as its runtime runs them: operation -> how many; `names` are those in floating point."""

    runtime: str
    running: Mapping[str, int]
    floating: Mapping[str, int]
    names: tuple[str, ...] = ()

    @property
    def num_running(self) -> int:
        """How many layers run on integers or read packed weights."""
        return sum(self.running.values())


def coverage(runtime: str, folder: Path, *, precision: Precision) -> Coverage:
    """How the layers of the file in `folder` run.

    Args:
        runtime: onnxruntime, openvino, inductor or eager.
        folder: what its `export` wrote.
        precision: as exported.

    Raises:
        RuntimeFailed: the runtime does not tell.
    """
    if runtime not in READERS:
        raise RuntimeFailed(f"{runtime} does not tell how it runs a file; {', '.join(READERS)} do.")
    found = READERS[runtime](folder, precision)
    running, floating = (Counter(kind for kind, _, runs in found if runs == wanted) for wanted in (True, False))
    return Coverage(runtime, dict(running), dict(floating), tuple(name for _, name, runs in found if not runs))


def fallbacks(graph: GraphModule, found: Coverage, precision: Precision) -> tuple[Skip, ...]:
    """What the graph has quantized and its runtime runs in floating point all the same."""
    wanted = num_quantized(graph)
    if found.num_running >= wanted:
        return ()
    kinds = ", ".join(f"{kind} ({count})" for kind, count in found.floating.items()) or "fused into others"
    how = "with weights unpacked to floats" if precision in PACKED else "in floating point"
    why = f"{wanted - found.num_running} of {wanted} layers run {how} there; of its layers so: {kinds}"
    return (Skip(f"{precision} in {found.runtime}", why),)


def num_quantized(graph: GraphModule) -> int:
    """How many layers of a graph read a quantized weight."""
    return sum(
        any(_is_quantized(argument) for argument in node.all_input_nodes)
        for node in graph.graph.nodes
        if node.op == "call_function" and _name(node) in LAYERS
    )


def _name(node: Any) -> str:
    return str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""


def _is_quantized(node: Any) -> bool:
    """Whether a value is a weight made from integers or bytes."""
    if _name(node) == "transpose":
        return _is_quantized(node.args[0])
    makes = ("dequantize_per_channel", "dequantize_per_tensor", "trimtab.unpack")
    fixed = bool(node.all_input_nodes) and node.all_input_nodes[0].op == "get_attr"
    return fixed and any(word in str(node.target) for word in makes)


Found = list[tuple[str, str, bool]]  # operation, name, whether it counts


def _in_onnxruntime(folder: Path, precision: Precision) -> Found:
    import onnx
    import onnxruntime

    from trimtab.runtimes.onnxruntime import FILE

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as scratch:
        options.optimized_model_filepath = f"{scratch}/optimised.onnx"
        onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    makers = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type in INTEGER_KERNELS:
            found.append((node.op_type, node.name, True))
        elif node.op_type in FLOAT_KERNELS:
            source = _weight_source(graph, node, makers)
            if source is not None:
                found.append((f"{source}{node.op_type}", node.name, precision in PACKED and source != ""))
    return found


def _weight_source(graph: GraphProto, node: NodeProto, makers: Mapping[str, NodeProto]) -> str | None:
    """What a floating layer reads its weight through: "" for a plain constant, None if it is no constant."""
    name, through = node.input[1], ""
    while name in makers:
        maker = makers[name]
        if maker.op_type in ("DequantizeLinear", "Cast", "Mul"):
            through = "DequantizeLinear + "
        elif maker.op_type not in MOVES:
            return None
        name = maker.input[0]
    return through if any(tensor.name == name for tensor in graph.initializer) else None


def _in_openvino(folder: Path, precision: Precision) -> Found:
    from trimtab.runtimes.openvino import FILES, with_batch, without_telemetry

    core = without_telemetry().Core()
    model = core.read_model(folder / FILES[0])
    size = read_signature(folder).batch_size
    model.reshape({value: with_batch(value, size) for value in model.inputs})
    found = []
    for op in core.compile_model(model, "CPU").get_runtime_model().get_ordered_ops():
        told = {key: op.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision")}
        if told["layerType"] not in ("Convolution", "FullyConnected", "GroupConvolution"):
            continue
        names = op.get_rt_info()["originalLayersNames"].astype(str)
        found.append((told["layerType"], names.split(",")[0], told["runtimePrecision"] not in FLOATS))
    return found


def _in_inductor(folder: Path, precision: Precision) -> Found:
    from trimtab.runtimes.inductor import FILE

    with zipfile.ZipFile(folder / FILE) as package:
        code = "".join(package.read(name).decode() for name in package.namelist() if name.endswith(".cpp"))
    if precision in PACKED:  # int8 weights that are still there are made floats of just before their layers
        packed = len(INT8_CONSTANT.findall(code))
        rest = FLOAT_CALL.findall(code)[packed:]
        return [("dequantize + layer", "", True)] * packed + [(call, "", False) for call in rest]
    return [
        (call, "", counts)
        for pattern, counts in ((QUANTIZED_CALL, True), (FLOAT_CALL, False))
        for call in pattern.findall(code)
    ]


def _in_eager(folder: Path, precision: Precision) -> Found:
    from trimtab.graph.save import load_graph

    graph = load_graph(folder)
    return [("unpack + layer", "", True)] * num_quantized(graph)


READERS: dict[str, Callable[[Path, Precision], Found]] = {
    "eager": _in_eager,
    "inductor": _in_inductor,
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
}
