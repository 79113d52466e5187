"""Weights in fewer bits, as operations of the graph: `trimtab.unpack` and `trimtab.quantize_now`.

The graph holds bytes and scales, and its arithmetic is what a runtime has to give: eager runs it as it stands,
exporters translate it into the form that a runtime reads packed. NF4 is the table of Dettmers et al. 2023 (QLoRA),
quantiles of a normal distribution. Why these are our own operations: docs/decisions/0007-packed-weights.md.
Cost: eager unpacks a weight each time it is used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import GraphModule

from trimtab.core import Precision

# What a packed weight is stored as, the fewest bits first; each is the precision in which such a graph is served.
FORMATS: tuple[Precision, ...] = ("int4w", "nf4w", "int8w", "fp8", "fp16")
BITS = {"int4w": 4, "nf4w": 4, "int8w": 8, "fp8": 8, "fp16": 16}
MIDDLE = 8  # the code of 0 where int4 has no zero point
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP8_MAX = 448.0


def encode(values: Tensor, scales: Tensor | None, zeros: Tensor | None, precision: str) -> Tensor:
    """The nearest code of each value; int4 and nf4 codes are uint8 from 0 to 15.

    Args:
        values: any shape.
        scales: broadcast to it; None for fp16.
        zeros: the codes of 0, broadcast to it; None: 8 for int4.
        precision: one of `FORMATS`.

    >>> encode(torch.tensor([-0.5, 0.0, 0.26]), torch.tensor(0.5), None, "int4w").tolist()
    [7, 8, 9]
    """
    if precision == "fp16" or scales is None:
        return values.half()
    scaled = values / scales
    if precision == "int8w":
        return scaled.round().clamp(-127, 127).to(torch.int8)
    if precision == "fp8":
        return scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    if precision == "nf4w":
        table = torch.tensor(NF4, dtype=scaled.dtype)
        return torch.bucketize(scaled.contiguous(), (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return (scaled.round() + (MIDDLE if zeros is None else zeros)).clamp(0, 15).to(torch.uint8)


def decode(codes: Tensor, scales: Tensor | None, zeros: Tensor | None, precision: str) -> Tensor:
    """The values in float32 that codes stand for; the inverse of `encode` up to rounding.

    >>> decode(torch.tensor([7, 8, 9], dtype=torch.uint8), torch.tensor(0.5), None, "int4w").tolist()
    [-0.5, 0.0, 0.5]
    """
    if precision == "nf4w":
        values = torch.tensor(NF4)[codes.long()]
    elif precision == "int4w":
        values = codes.float() - (MIDDLE if zeros is None else zeros.float())
    else:
        values = codes.float()
    return values if scales is None else values * scales


def pack(codes: Tensor) -> Tensor:
    """Codes of 4 bits [rows, F] as bytes [rows, ceil(F / 2)], the first of a pair in the low half.

    >>> pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8)).tolist()
    [[33, 3]]
    """
    even = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return even[:, ::2] | even[:, 1::2] << 4


def unpacked_codes(packed: Tensor, num_features: int) -> Tensor:
    """The codes [rows, F] that `pack` took."""
    return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)[:, :num_features]


@torch.library.custom_op("trimtab::unpack", mutates_args=())
def unpack(packed: Tensor, scales: Tensor | None, zeros: Tensor | None, precision: str, shape: list[int]) -> Tensor:
    """A weight in float32 from its bytes.

    Args:
        packed: uint8 [rows, ceil(F / 2)] for 4 bits; int8, float8_e4m3fn or float16 [rows, F].
        scales: float32 [rows, groups]; None for fp16.
        zeros: uint8 [rows, groups], the codes of 0; None: symmetric.
        precision: one of `FORMATS`.
        shape: of the weight; shape[0] = rows, and the rest has F elements.
    """
    num_features = math.prod(shape[1:])
    codes = unpacked_codes(packed, num_features) if BITS[precision] == 4 else packed
    if scales is None:
        return decode(codes, None, None, precision).reshape(shape)
    grouped = codes.reshape(len(codes), scales.shape[1], -1)
    offsets = None if zeros is None else zeros[:, :, None]
    return decode(grouped, scales[:, :, None], offsets, precision).reshape(shape)


@unpack.register_fake
def _unpack_shape(
    packed: Tensor, scales: Tensor | None, zeros: Tensor | None, precision: str, shape: list[int]
) -> Tensor:
    return packed.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("trimtab::quantize_now", mutates_args=())
def quantize_now(x: Tensor) -> Tensor:
    """Round to 256 even levels between the least and the largest value of this very batch, 0 being one of them.

    ONNX's DynamicQuantizeLinear followed by its inverse: scale = (max(x, 0) - min(x, 0)) / 255.
    """
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round().clamp(0, 255)
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


@quantize_now.register_fake
def _quantize_now_shape(x: Tensor) -> Tensor:
    return torch.empty_like(x)


UNPACK = torch.ops.trimtab.unpack.default
QUANTIZE_NOW = torch.ops.trimtab.quantize_now.default


def precision_of(graph: GraphModule) -> Precision | None:
    """The precision that a graph's quantize operations ask for, or None if it has none.

    Of several, static int8 decides, then dynamic, then the weights with the fewest bits.
    """
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    if any(getattr(node.target, "namespace", "") == "quantized_decomposed" for node in calls):
        return "int8"
    if any(node.target is QUANTIZE_NOW for node in calls):
        return "int8d"
    found = {node.args[3] for node in calls if node.target is UNPACK}
    return next((precision for precision in FORMATS if precision in found), None)


def holds_packed(graph: GraphModule) -> bool:
    """Whether the graph calls our operations."""
    return any(node.target in (UNPACK, QUANTIZE_NOW) for node in graph.graph.nodes)
