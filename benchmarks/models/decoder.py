"""A decoder in the manner of Llama 3.2 1B: RMSNorm, rotary positions, grouped queries, gated feed-forward, tied head.

Random weights, or none at all on the meta device. Sizes after Meta's published configuration (2024): hidden 2048, 16
layers, 32 query and 8 key heads, feed-forward 8192, vocabulary 128,256: 1.24 billion parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN, LAYERS, HEADS, KEY_HEADS, WIDE, VOCABULARY = 2048, 16, 32, 8, 8192, 128_256


class Layer(nn.Module):
    """Attention and feed-forward, each after a norm and beside a residual; [B, T, C] -> the same."""

    def __init__(self, hidden: int, heads: int, key_heads: int, wide: int) -> None:
        super().__init__()
        self.head = hidden // heads
        self.norm, self.norm2 = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.q = nn.Linear(hidden, heads * self.head, bias=False)
        self.k = nn.Linear(hidden, key_heads * self.head, bias=False)
        self.v = nn.Linear(hidden, key_heads * self.head, bias=False)
        self.o = nn.Linear(heads * self.head, hidden, bias=False)
        self.gate, self.up = nn.Linear(hidden, wide, bias=False), nn.Linear(hidden, wide, bias=False)
        self.down = nn.Linear(wide, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (part(y).unflatten(-1, (-1, self.head)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): each pair of channels is turned by its angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Decoder(nn.Module):
    """Tokens [B, T] -> logits [B, T, V]."""

    def __init__(
        self,
        *,
        hidden: int = HIDDEN,
        layers: int = LAYERS,
        heads: int = HEADS,
        key_heads: int = KEY_HEADS,
        wide: int = WIDE,
        vocabulary: int = VOCABULARY,
        length: int = 64,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(Layer(hidden, heads, key_heads, wide) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden)
        steps = torch.arange(hidden // heads // 2) * 2 / (hidden // heads)
        angles = torch.outer(torch.arange(length), 500_000.0**-steps)
        self.register_buffer("angles", torch.cat([angles, angles], dim=-1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        cos, sin = self.angles.cos(), self.angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed.weight)
