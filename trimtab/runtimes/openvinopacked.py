"""Packed weights in OpenVINO's IR: constants of 4 or 8 bits, and their decompression, which the plugin fuses.

In the ONNX that OpenVINO reads, each packed weight is an input; `packed_constants_` then puts Constant, Convert,
Subtract, Multiply and Reshape in its place, the chain that the CPU plugin knows as a linear layer's compressed weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.runtimes.onnxpacked import OURS, Bytes, read_weights

if TYPE_CHECKING:
    from onnx import ModelProto


def weights_as_inputs(found: dict[str, Bytes]) -> Any:
    """A rewriter of ONNX models that fills `found` and lets each packed weight be an input of that name."""

    def rewrite(model: ModelProto) -> None:
        from onnx import TensorProto, helper

        graph = model.graph
        found.update(read_weights(graph))
        kept = [type(node).FromString(node.SerializeToString()) for node in graph.node if node.domain != OURS]
        del graph.node[:]
        graph.node.extend(kept)
        for name, weight in found.items():
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, weight.shape))
        opsets = [entry for entry in model.opset_import if entry.domain != OURS]
        del model.opset_import[:]
        model.opset_import.extend(opsets)

    return rewrite


def packed_constants_(openvino: Any, model: Any, weights: Mapping[str, Bytes]) -> None:
    """Put the decompression of each packed weight where the model has an input of its name."""
    for parameter in list(model.get_parameters()):
        name = parameter.output(0).get_any_name()
        if name in weights:
            parameter.output(0).replace(_decompressed(openvino, name, weights[name]).output(0))
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _decompressed(openvino: Any, name: str, weight: Bytes) -> Any:
    from openvino import opset13 as ops

    kinds, groups = openvino.Type, 1 if weight.scales is None else weight.scales.shape[1]
    rest = weight.shape[1:]
    by_group = groups > 1
    shape = (len(weight.codes), groups, weight.group_size) if by_group else weight.shape
    codes = weight.codes
    kind = {"nf4w": kinds.nf4, "int8w": kinds.i8, "fp8": kinds.f8e4m3, "fp16": kinds.f16}.get(weight.precision)
    if kind is None:
        kind = kinds.i4 if weight.zeros is None else kinds.u4
        codes = codes ^ 8 if weight.zeros is None else codes  # two's complement of code - 8
    real = ops.convert(_constant(openvino, codes.reshape(shape), kind, name), kinds.f32)
    one_each = (len(codes), groups, 1) if by_group else (len(codes), *(1 for _ in rest))
    if weight.zeros is not None:
        zeros = _constant(openvino, weight.zeros.reshape(one_each), kind, f"{name}_zeros")
        real = ops.subtract(real, ops.convert(zeros, kinds.f32))
    if weight.scales is not None:
        real = ops.multiply(real, ops.constant(weight.scales.reshape(one_each).astype(np.float32)))
    if by_group:
        real = ops.reshape(real, ops.constant(np.array(weight.shape, np.int64)), special_zero=False)
    return real


def _constant(openvino: Any, values: Any, kind: Any, name: str) -> Any:
    from openvino import opset13 as ops

    if kind in (openvino.Type.i4, openvino.Type.u4, openvino.Type.nf4):
        flat = np.pad(values.reshape(-1) & 15, (0, values.size % 2)).astype(np.uint8)
        data = flat[::2] | flat[1::2] << 4
    else:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    tensor = openvino.Tensor(kind, list(values.shape))
    tensor.data.reshape(-1).view(np.uint8)[:] = data
    made = ops.constant(tensor)
    made.set_friendly_name(name)
    return made
