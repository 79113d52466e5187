"""Packed weights in ONNX: the operations that ONNX Runtime reads without making floats of a whole weight first.

Linear layers become MatMulNBits (int4, int8) and MatMulBnb4 (nf4) of ONNX Runtime's own set, in blocks of 16 to 256
weights of an output; layers with dynamic ranges become DynamicQuantizeLinear and MatMulInteger. Everything else becomes
DequantizeLinear or its like before the layer. Our exporter writes a node `trimtab.Unpack` for each packed weight;
nothing of that set is left in a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto

OURS, THEIRS = "trimtab", "com.microsoft"
BLOCKS = (16, 256)  # the sizes that ONNX Runtime's kernels take: powers of two between these
# int8 activations inside the product: 1.5 to 4 times as fast on CPUs with VNNI, and off by some 1e-3. `load` strips it
# where answers have to be exact.
FAST = 4


@dataclass(frozen=True)
class Bytes:
    """A packed weight as NumPy arrays: codes [rows, F], scales [rows, groups], zeros [rows, groups], and its shape."""

    precision: str
    shape: tuple[int, ...]
    codes: NDArray[Any]
    scales: NDArray[Any] | None
    zeros: NDArray[Any] | None

    @property
    def group_size(self) -> int:
        """How many codes of a row share a scale."""
        return self.codes.shape[1] // (1 if self.scales is None else self.scales.shape[1])


def translations() -> dict[Any, Callable[..., Any]]:
    """How PyTorch's exporter writes our operations: as nodes of our own set, for `packed_weights_` to replace."""
    import onnx
    from onnxscript import values

    from trimtab.graph.packed import QUANTIZE_NOW, UNPACK

    schema = onnx.defs.OpSchema
    optional = schema.FormalParameterOption.Optional
    bytes_ = [f"tensor({name})" for name in ("uint8", "int8", "float16", "float8e4m3fn")]
    unpack = schema(
        "Unpack",
        OURS,
        1,
        inputs=[
            schema.FormalParameter("packed", "P"),
            schema.FormalParameter("scales", "tensor(float)", param_option=optional),
            schema.FormalParameter("zeros", "tensor(uint8)", param_option=optional),
        ],
        outputs=[schema.FormalParameter("weight", "tensor(float)")],
        type_constraints=[("P", bytes_, "")],
        attributes=[
            schema.Attribute("precision", schema.AttrType.STRING),
            schema.Attribute("shape", schema.AttrType.INTS),
        ],
    )
    floats = [schema.FormalParameter(name, "tensor(float)") for name in ("x", "y")]
    now = schema("QuantizeNow", OURS, 1, inputs=floats[:1], outputs=floats[1:])
    ours = values.Opset(OURS, 1)

    def write_unpack(packed: Any, scales: Any, zeros: Any, precision: str, shape: list[int]) -> Any:
        return values.Op(ours, "Unpack", unpack)(packed, scales, zeros, precision=precision, shape=shape)

    def write_now(x: Any) -> Any:
        return values.Op(ours, "QuantizeNow", now)(x)

    return {UNPACK: write_unpack, QUANTIZE_NOW: write_now}


def read_weights(graph: GraphProto) -> dict[str, Bytes]:
    """The packed weights of a graph, by the name of the value that `Unpack` gives."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.domain != OURS or node.op_type != "Unpack":
            continue
        settings = {a.name: a for a in node.attribute}
        arrays = [numpy_helper.to_array(constants[name]) if name else None for name in (*node.input, "", "")][:3]
        precision, shape = settings["precision"].s.decode(), tuple(settings["shape"].ints)
        packed = arrays[0]
        assert packed is not None
        codes = _codes(packed, math.prod(shape[1:])) if precision in ("int4w", "nf4w") else packed
        found[node.output[0]] = Bytes(precision, shape, codes, arrays[1], arrays[2])
    return found


def _codes(packed: NDArray[Any], num_features: int) -> NDArray[Any]:
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)[:, :num_features]


def packed_weights_(model: ModelProto) -> None:
    """Replace every node of our set by what ONNX Runtime has for it."""
    from onnx import helper

    graph = model.graph
    weights = read_weights(graph)
    makers = {output: node for node in graph.node for output in node.output}
    rewriter = _Rewriter(graph, weights, makers)
    for node in graph.node:
        rewriter.visit(node)
    copies = [type(node).FromString(node.SerializeToString()) for node in rewriter.nodes]
    del graph.node[:]
    graph.node.extend(copies)
    kept = [entry for entry in model.opset_import if entry.domain != OURS]
    del model.opset_import[:]
    model.opset_import.extend([*kept, helper.make_opsetid(THEIRS, 1)])


class _Rewriter:
    """Goes through the nodes in order and writes new ones; what nobody reads in the end is not written."""

    def __init__(self, graph: GraphProto, weights: Mapping[str, Bytes], makers: Mapping[str, NodeProto]) -> None:
        self.graph, self.weights, self.makers = graph, weights, makers
        self.nodes: list[NodeProto] = []
        self._rounded: dict[str, list[str]] = {}
        self._direct = {node.output[0] for node in graph.node if self._weight_of(node) is not None}
        readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        self._readers = readers

    def visit(self, node: NodeProto) -> None:
        """Write what takes the place of `node`."""
        if node.domain == OURS and node.op_type == "Unpack":
            if not self._only_direct(node.output[0]):
                self._floats(node)
        elif node.domain == OURS:
            self._round(node)
        elif node.op_type == "Transpose" and node.input[0] in self.weights and self._only_direct(node.output[0]):
            return
        elif node.output[0] in self._direct:
            self._product(node)
        else:
            self.nodes.append(node)

    def _only_direct(self, name: str) -> bool:
        """Whether all that read a value are layers that take the packed weight itself."""
        return all(
            reader.output[0] in self._direct or (reader.op_type == "Transpose" and self._only_direct(reader.output[0]))
            for reader in self._readers.get(name, [])
        )

    def _weight_of(self, node: NodeProto) -> str | None:
        """The packed weight of a linear layer that has a kernel for it."""
        if node.op_type not in ("Gemm", "MatMul"):
            return None
        name, turned = node.input[1], any(a.name == "transB" and a.i for a in node.attribute)
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "Transpose":
            name, turned = maker.input[0], not turned
        plain = all(a.f == 1 for a in node.attribute if a.name in ("alpha", "beta"))
        plain &= not any(a.name == "transA" and a.i for a in node.attribute)
        if name not in self.weights or not turned or not plain or len(self.weights[name].shape) != 2:
            return None
        dynamic = self._is_rounded(node.input[0])
        return name if dynamic or _block(self.weights[name]) else None

    def _is_rounded(self, name: str) -> bool:
        maker = self.makers.get(name)
        return maker is not None and maker.domain == OURS and maker.op_type == "QuantizeNow"

    def _constant(self, name: str, array: NDArray[Any], dtype: int | None = None) -> str:
        from onnx import helper, numpy_helper

        if dtype is None:
            self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        else:  # 4 bits: two to a byte over the whole tensor, the first in the low half
            flat = array.reshape(-1) & 15
            even = np.pad(flat, (0, flat.size % 2)).astype(np.uint8)
            data = (even[::2] | even[1::2] << 4).tobytes()
            self.graph.initializer.append(helper.make_tensor(name, dtype, array.shape, data, raw=True))
        return name

    def _add(self, kind: str, inputs: list[str], outputs: list[str], *, domain: str = "", **settings: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **settings))
        return outputs[0]

    def _round(self, node: NodeProto) -> None:
        made = [f"{node.output[0]}_{part}" for part in ("u8", "scale", "zero")]
        self._add("DynamicQuantizeLinear", [node.input[0]], made)
        self._rounded[node.output[0]] = made
        if not all(reader.output[0] in self._direct for reader in self._readers.get(node.output[0], [])):
            self._add("DequantizeLinear", made, [node.output[0]])

    def _product(self, node: NodeProto) -> None:
        """The layer on its packed weight, and its bias after it."""
        name = self._weight_of(node)
        assert name is not None
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        product = f"{node.output[0]}_product" if bias else node.output[0]
        if self._is_rounded(node.input[0]):
            self._integers(self._rounded[node.input[0]], name, product)
        else:
            self._blocks(node.input[0], name, product)
        if bias:
            self._add("Add", [product, bias], [node.output[0]])

    def _integers(self, rounded: list[str], name: str, product: str) -> None:
        weight = self.weights[name]
        assert weight.scales is not None
        levels = self._constant(f"{name}_int8", weight.codes.T)
        scales = self._constant(f"{name}_scales", weight.scales[:, 0])
        value, scale, zero = rounded
        whole = self._add("MatMulInteger", [value, levels, zero], [f"{product}_int32"])
        real = self._add("Cast", [whole], [f"{product}_float"], to=1)
        both = self._add("Mul", [scale, scales], [f"{product}_scale"])
        self._add("Mul", [real, both], [product])

    def _blocks(self, x: str, name: str, product: str) -> None:
        weight = self.weights[name]
        block = _block(weight)
        assert block is not None
        assert weight.scales is not None
        (rows, size), times = weight.codes.shape, weight.group_size // block
        scales = self._constant(f"{name}_scales", weight.scales.repeat(times, axis=1).reshape(-1))
        settings: dict[str, Any] = {"K": size, "N": rows, "block_size": block}
        if weight.precision == "nf4w":  # this kernel reads the first of a pair from the high half
            swapped = weight.codes[:, ::2] << 4 | weight.codes[:, 1::2]
            inputs = [x, self._constant(f"{name}_nf4", swapped.reshape(-1)), scales]
            self._add("MatMulBnb4", inputs, [product], domain=THEIRS, quant_type=1, **settings)
            return
        bits = 4 if weight.precision == "int4w" else 8
        codes = weight.codes[:, ::2] | weight.codes[:, 1::2] << 4 if bits == 4 else (weight.codes.view(np.uint8) ^ 128)
        inputs = [x, self._constant(f"{name}_int{bits}", codes.reshape(rows, size // block, -1)), scales]
        if weight.zeros is not None:
            zeros = weight.zeros.repeat(times, axis=1)
            even = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
            inputs.append(self._constant(f"{name}_zeros", (even[:, ::2] | even[:, 1::2] << 4).reshape(-1)))
        self._add("MatMulNBits", inputs, [product], domain=THEIRS, bits=bits, accuracy_level=FAST, **settings)

    def _floats(self, node: NodeProto) -> None:
        """The weight as floats, made from its bytes at run time or when the file is loaded."""
        from onnx import TensorProto

        name = node.output[0]
        weight = self.weights[name]
        if weight.scales is None:
            half = self._constant(f"{name}_fp16", weight.codes.reshape(weight.shape))
            self._add("Cast", [half], [name], to=TensorProto.FLOAT)
            return
        if weight.precision in ("nf4w", "fp8"):
            self._looked_up(name, weight)
            return
        whole = weight.scales.shape[1] == 1
        shape = weight.shape if whole else weight.codes.shape
        scales = weight.scales[:, 0] if whole else weight.scales
        zeros = weight.zeros if weight.zeros is None or not whole else weight.zeros[:, 0]
        dtype = None
        codes = weight.codes
        if weight.precision == "int4w":
            dtype = TensorProto.INT4 if zeros is None else TensorProto.UINT4
            codes = codes ^ 8 if zeros is None else codes  # two's complement of code - 8
        parts = [self._constant(f"{name}_codes", codes.reshape(shape), dtype)]
        parts.append(self._constant(f"{name}_scales", scales))
        if zeros is not None:
            parts.append(self._constant(f"{name}_zeros", zeros, dtype))
        along: dict[str, Any] = {"axis": 0} if whole else {"axis": 1, "block_size": weight.group_size}
        made = self._add("DequantizeLinear", parts, [name if whole else f"{name}_rows"], **along)
        if not whole:
            self._reshaped(made, name, weight.shape)

    def _looked_up(self, name: str, weight: Bytes) -> None:
        from onnx import TensorProto

        from trimtab.graph.packed import NF4

        assert weight.scales is not None
        rows, groups = weight.scales.shape
        grouped = weight.codes.reshape(rows, groups, -1)
        if weight.precision == "nf4w":
            codes = self._constant(f"{name}_codes", grouped, TensorProto.UINT4)
            index = self._add("Cast", [codes], [f"{name}_index"], to=TensorProto.INT32)
            table = self._constant(f"{name}_table", np.array(NF4, np.float32))
            values = self._add("Gather", [table, index], [f"{name}_values"], axis=0)
        else:
            values = self._constant(f"{name}_codes", grouped)
            values = self._add("Cast", [values], [f"{name}_values"], to=TensorProto.FLOAT)
        scales = self._constant(f"{name}_scales", weight.scales[:, :, None])
        self._reshaped(self._add("Mul", [values, scales], [f"{name}_rows"]), name, weight.shape)

    def _reshaped(self, made: str, name: str, shape: tuple[int, ...]) -> None:
        self._add("Reshape", [made, self._constant(f"{name}_shape", np.array(shape, np.int64))], [name])


def _block(weight: Bytes) -> int | None:
    """The largest block that kernels take and that lies within a group; None if there is none."""
    if weight.precision not in ("int4w", "nf4w", "int8w"):
        return None
    power = weight.group_size & -weight.group_size
    return min(power, BLOCKS[1]) if power >= BLOCKS[0] else None
