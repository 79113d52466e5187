"""A small quantized network, written by hand: u8 activations, s8 weights per channel, as Quantize emits them."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.graph.capture import capture

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators below
integer = torch.ops.quantized_decomposed


class Weight(nn.Module):
    """Integers, one scale per output channel, and a floating bias."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        w = torch.randn(shape) * 0.2
        scales = w.abs().amax(tuple(range(1, len(shape)))) / 127
        self.register_buffer("int8", torch.round(w / scales.view(-1, *[1] * (len(shape) - 1))).to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(shape[0], dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(shape[0]) * 0.1)

    def forward(self) -> Tensor:
        return integer.dequantize_per_channel(self.int8, self.scales, self.zeros, 0, -127, 127, torch.int8)


def rounded(x: Tensor, scale: float, zero_point: int = 0) -> Tensor:
    """Round to u8 and back."""
    u8 = integer.quantize_per_tensor(x, scale, zero_point, 0, 255, torch.uint8)
    return integer.dequantize_per_tensor(u8, scale, zero_point, 0, 255, torch.uint8)


class QuantizedNet(nn.Module):
    """[B, 3, 16, 16] -> [B, 5]: two convolutions, global pooling, linear, all on integers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = Weight(16, 3, 3, 3), Weight(32, 16, 3, 3), Weight(5, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = rounded(x, 0.03, 128)
        x = rounded(torch.relu(nn.functional.conv2d(x, self.a(), self.a.bias, padding=1)), 0.02)
        x = rounded(torch.relu(nn.functional.conv2d(x, self.b(), self.b.bias, stride=2, padding=1)), 0.03)
        x = rounded(nn.functional.adaptive_avg_pool2d(x, 1), 0.02)
        return nn.functional.linear(torch.flatten(x, 1), self.head(), self.head.bias)


def quantized_graph() -> GraphModule:
    """A seeded `QuantizedNet` as a graph."""
    torch.manual_seed(0)
    return capture(QuantizedNet().eval(), (torch.randn(2, 3, 16, 16),))
