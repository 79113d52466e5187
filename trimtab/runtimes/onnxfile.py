"""A graph as one ONNX file: opset 20 (21 for packed weights), dynamic batch, int8 weights stored as int8.

PyTorch's exporter writes our quantize operations as QuantizeLinear and DequantizeLinear already. Four things are
mended afterwards: biases of quantized layers become int32 (without that ONNX Runtime leaves the last layer in fp32),
global means become GlobalAveragePool (which has an int8 kernel, and keeps blocked layouts), zeros around what a
convolution reads become its own padding (TensorFlow's uneven one comes as a Pad, which runs in fp32), and the
exporter's notes (source lines and paths of this machine, a third of a small file) go.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trimtab.runtimes.base import exported_program, exporting
from trimtab.runtimes.onnxpacked import packed_weights_, translations
from trimtab.runtimes.onnxregistry import registry_read_once

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto
    from torch.fx import GraphModule

OPSET, PACKED_OPSET = 20, 21  # 4 bits and blocks came with 21
INT32_MAX = 2**31 - 1
QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
SAME_SCALE = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")


def missing_exporter() -> str | None:
    """What writing ONNX needs and does not find, with the command, or None."""
    lacking = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"Writing ONNX needs {' and '.join(lacking)}: pip install {' '.join(lacking)}" if lacking else None


def onnx_model(graph: GraphModule, *, packed: Callable[[ModelProto], None] = packed_weights_) -> ModelProto:
    """The graph in ONNX, as runtimes like it best.

    Args:
        graph: with or without packed weights.
        packed: rewrites the nodes that stand for packed weights, in place; as ONNX Runtime reads them by default.

    Raises:
        RuntimeFailed: ONNX has no form of one of its operations.
    """
    import torch

    from trimtab.graph.packed import holds_packed
    from trimtab.runtimes.onnxforms import onnx_forms

    ours = holds_packed(graph)
    with exporting("ONNX"), registry_read_once(), torch.no_grad():
        program = torch.onnx.export(
            exported_program(onnx_forms(graph), batch_size=None),
            dynamo=True,
            opset_version=PACKED_OPSET if ours else OPSET,
            verbose=False,
            custom_translation_table=translations() if ours else None,
        )
    assert program is not None, "torch.onnx.export with dynamo returns a program"
    model = program.model_proto
    if ours:
        packed(model)
    integer_biases_(model.graph)
    global_pools_(model.graph)
    padded_convolutions_(model.graph)
    strip_notes_(model)
    return model


def integer_biases_(graph: GraphProto) -> None:
    """Store each quantized layer's fp32 bias as int32, in units of (input scale * weight scale) per channel."""
    from onnx import helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[NodeProto] = []
    for node in graph.node:
        tensors = _integer_bias(node, makers, constants)
        if tensors:
            graph.initializer.extend(tensors)
            name = f"{node.output[0]}_bias"
            nodes.append(helper.make_node("DequantizeLinear", [t.name for t in tensors], [name], axis=0))
            node.input[2] = name
        nodes.append(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    drop_unused_(graph)


def _integer_bias(
    node: NodeProto, makers: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]
) -> list[TensorProto]:
    """The bias as integers and its scales (zero point 0 goes without saying); nothing for a floating layer."""
    import numpy as np
    from onnx import numpy_helper

    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
        return []
    x, w = makers.get(node.input[0]), makers.get(node.input[1])
    while x is not None and x.op_type in SAME_SCALE:
        x = makers.get(x.input[0])
    if x is None or w is None or {x.op_type, w.op_type} != {"DequantizeLinear"} or node.input[2] not in constants:
        return []
    if w.input[0] not in constants or any(a.name in ("alpha", "beta") and a.f != 1 for a in node.attribute):
        return []
    bias = numpy_helper.to_array(constants[node.input[2]])
    scale = numpy_helper.to_array(constants[x.input[1]]) * numpy_helper.to_array(constants[w.input[1]])
    scale = np.broadcast_to(scale, bias.shape).astype(np.float32)
    if np.any(np.abs(bias / scale) > INT32_MAX):
        return []
    values = {"int32": np.rint(bias / scale).astype(np.int32), "scale": scale}
    return [numpy_helper.from_array(value, f"{node.output[0]}_bias_{key}") for key, value in values.items()]


def global_pools_(graph: GraphProto) -> None:
    """Write a mean over height and width, dims kept, as the GlobalAveragePool that it is."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    values = (*graph.value_info, *graph.input)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
            continue
        axes = {int(axis) % 4 for axis in numpy_helper.to_array(constants[node.input[1]])}
        keeps = all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims")
        if ranks.get(node.input[0]) == 4 and axes == {2, 3} and keeps:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]
    drop_unused_(graph)


def padded_convolutions_(graph: GraphProto) -> None:
    """Let a convolution pad by itself what a Pad put zeros around, quantized in between or not; zero stays zero."""
    from onnx import helper

    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        own = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type != "Conv" or ("auto_pad" in own and own["auto_pad"].s != b"NOTSET"):
            continue
        reads, value = node, node.input[0]
        while (made := makers.get(value)) and readers[value] == 1 and made.op_type in QUANTIZING:
            reads, value = made, made.input[0]
        zeros = _zeros_around(made, constants) if made and readers[value] == 1 else None
        if made is None or zeros is None:
            continue
        before = list(own["pads"].ints) if "pads" in own else [0] * len(zeros)
        if "pads" in own:
            node.attribute.remove(own["pads"])
        node.attribute.append(helper.make_attribute("pads", [a + b for a, b in zip(before, zeros, strict=True)]))
        reads.input[0] = made.input[0]
        graph.node.remove(made)
    drop_unused_(graph)


def _zeros_around(node: NodeProto, constants: Mapping[str, TensorProto]) -> list[int] | None:
    """How many zeros a Pad puts before, then after each spatial dim; None if it is another operation, or pads else."""
    import numpy as np
    from onnx import numpy_helper

    told = list(node.input[1:])
    if node.op_type != "Pad" or len(told) > 2 or any(name and name not in constants for name in told):
        return None
    modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
    values = [numpy_helper.to_array(constants[name]) for name in told if name]
    if modes not in ([], [b"constant"]) or np.any(values[1:]) or np.any(values[0] < 0):
        return None
    pads = [int(number) for number in values[0]]
    half = len(pads) // 2
    outside = pads[:2] + pads[half : half + 2]
    return None if any(outside) else pads[2:half] + pads[half + 2 :]


def drop_unused_(graph: GraphProto) -> None:
    """Remove the constants that nothing reads."""
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def strip_notes_(model: ModelProto) -> None:
    """Remove the exporter's notes from every node and value."""
    parts: list[Any] = [model, model.graph, *model.graph.node, *model.graph.initializer]
    parts += [*model.graph.input, *model.graph.output]
    for part in parts:
        del part.metadata_props[:]
        part.ClearField("doc_string")
    # Runtimes infer the shapes between again.
    del model.graph.value_info[:]
