"""What a plan says of one tensor, and the integers that follow from it: scales, learned rounding, bias shifts.

u8 activations and s8 weights, the pair that x86, NPUs and ONNX share. Rounding that was learned is kept as what it adds
to the nearest integer, -1, 0 or 1 per weight, compressed: about a tenth of the bytes of the weights themselves.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActivationScale:
    """The value that `node` makes is round(x / scale) + zero_point in 0 ... 255."""

    node: str
    scale: float
    zero_point: int
    low: float
    high: float


@dataclass(frozen=True)
class WeightScale:
    """Channel i (dim 0) of `weight` is round(w / scales[i]), an integer of `bits` bits, the least value left out.

    steps: what learned rounding adds to the nearest integer, packed by `with_steps`; empty where it is the nearest.
    """

    layer: str
    weight: str
    scales: tuple[float, ...]
    bits: int = 8
    steps: str = ""


@dataclass(frozen=True)
class BiasShift:
    """What is added to the bias of `layer`, per channel: by so much quantization moves its outputs on average."""

    layer: str
    values: tuple[float, ...]


def top(bits: int) -> int:
    """The largest integer of so many bits, sign included.

    >>> top(8)
    127
    """
    return int(2 ** (bits - 1)) - 1


def levels(weight: Tensor, scale: WeightScale) -> tuple[Tensor, Tensor]:
    """The integers of a weight, as floats of its shape, and its scales laid along dim 0.

    >>> integers, scales = levels(torch.tensor([[0.5, -1.0]]), WeightScale("layer", "w", (0.5,)))
    >>> integers.tolist(), scales.tolist()
    ([[1.0, -2.0]], [[0.5]])
    """
    rows = torch.tensor(scale.scales).reshape(-1, *[1] * (weight.ndim - 1))
    nearest = (weight / rows).round().clamp(-top(scale.bits), top(scale.bits))
    return (nearest + _steps(scale).reshape(weight.shape) if scale.steps else nearest), rows


def fits(scale: WeightScale, weight: Tensor) -> bool:
    """Whether the scale is one of this weight, by its sizes."""
    return len(scale.scales) == len(weight) and (not scale.steps or len(_steps(scale)) == weight.numel())


def _steps(scale: WeightScale) -> Tensor:
    return torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(scale.steps))), dtype=torch.int8)


def with_steps(scale: WeightScale, steps: Tensor) -> WeightScale:
    """The same with rounding that differs from the nearest by `steps`, -1, 0 or 1, in the weight's shape."""
    if not steps.any():
        return replace(scale, steps="")
    packed = zlib.compress(steps.to(torch.int8).contiguous().numpy().tobytes())
    return replace(scale, steps=base64.b64encode(packed).decode())


def simulated(value: Tensor, scale: ActivationScale) -> Tensor:
    """The value after quantizing and dequantizing.

    >>> simulated(torch.tensor([0.6, 300.0]), ActivationScale("x", 1.0, 0, 0.0, 255.0)).tolist()
    [1.0, 255.0]
    """
    whole = (value / scale.scale).round_().add_(scale.zero_point).clamp_(0, 255)
    return whole.sub_(scale.zero_point).mul_(scale.scale)
