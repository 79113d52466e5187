"""Every rule on a small module: the groups that must come out, and random cuts that `cut` finds exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.test_dims import Forward, check_channel
from trimtab.graph.capture import capture
from trimtab.graph.dims import groups
from trimtab.graph.rules import RULES
from trimtab.graph.surgery import cut


@dataclass(frozen=True)
class Row:
    """A forward of (module, x), its parts, the shape of x without the batch, and the sizes of the groups by name."""

    forward: Callable[[nn.Module, Tensor], Tensor]
    parts: Callable[[], dict[str, nn.Module]]
    shape: tuple[int, ...]
    sizes: dict[str, int]


def heads(x: Tensor, num: int) -> Tensor:
    """[B, T, num * D] -> [B, num, T, D]."""
    return x.view(x.shape[0], x.shape[1], num, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def separate(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (heads(part(x), 4) for part in (m.q, m.k, m.v))
    return m.o(merged(F.scaled_dot_product_attention(q, k, v))).mean(1)


def fused(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).reshape(x.shape[0], x.shape[1], 3, 4, 5).permute(2, 0, 3, 1, 4).unbind(0)
    return m.o(merged(F.scaled_dot_product_attention(q, k, v))).mean(1)


def chunked(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (heads(part, 4) for part in m.qkv(x).chunk(3, dim=-1))
    scores = (q @ k.transpose(-2, -1) / math.sqrt(5)).softmax(-1)
    return m.o(merged(scores @ v)).mean(1)


def grouped_queries(m: nn.Module, x: Tensor) -> Tensor:
    """Fused, split unevenly: 4 query heads, 2 key and value heads, each repeated for 2 queries."""
    q, k, v = m.qkv(x).split([20, 10, 10], dim=-1)
    q, k, v = heads(q, 4), heads(k, 2), heads(v, 2)
    k, v = (y[:, :, None].expand(x.shape[0], 2, 2, x.shape[1], 5).reshape(x.shape[0], 4, x.shape[1], 5) for y in (k, v))
    return m.o(merged(F.scaled_dot_product_attention(q, k, v))).mean(1)


def native_grouped_queries(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
    return m.o(merged(F.scaled_dot_product_attention(q, k, v, enable_gqa=True))).mean(1)


def rotary(m: nn.Module, x: Tensor) -> Tensor:
    angles = torch.cat([m.steps.weight, m.steps.weight], dim=-1)

    def turned(y: Tensor) -> Tensor:
        first, second = y[..., : y.shape[-1] // 2], y[..., y.shape[-1] // 2 :]
        return y * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()

    q, k, v = turned(heads(m.q(x), 3)), turned(heads(m.k(x), 3)), heads(m.v(x), 3)
    return m.o(merged(F.scaled_dot_product_attention(q, k, v))).mean(1)


def einsums(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (part(x).view(x.shape[0], x.shape[1], 4, 5) for part in (m.q, m.k, m.v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
    return m.o(torch.einsum("bhij,bjhd->bihd", scores, v).flatten(2)).mean(1)


def dense_block(m: nn.Module, x: Tensor) -> Tensor:
    features = [m.stem(x)]
    for layer, norm in ((m.a, m.na), (m.b, m.nb)):
        features.append(layer(F.relu(norm(torch.cat(features, 1)))))
    return m.head(torch.cat(features, 1).mean((2, 3)))


def shuffled(m: nn.Module, x: Tensor) -> Tensor:
    """As ShuffleNet: half of the channels goes through, then the halves are interleaved."""
    y = m.stem(x)
    left, right = y.chunk(2, dim=1)
    y = torch.cat([left, m.b(m.a(right))], 1)
    y = y.view(y.shape[0], 2, 8, 6, 6).transpose(1, 2).reshape(y.shape[0], 16, 6, 6)
    return m.head(y).mean((2, 3))


def u_net(m: nn.Module, x: Tensor) -> Tensor:
    a = F.relu(m.a(x))
    b = F.relu(m.b(F.max_pool2d(a, 2)))
    up = F.interpolate(b, scale_factor=2.0, mode="bilinear")
    return m.last(F.relu(m.c(torch.cat([a, up, m.up(b)], 1)))).mean((2, 3))


def lstm(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(m.rnn(m.first(x))[0]).mean(1)


def gated(m: nn.Module, x: Tensor) -> Tensor:
    a, b = m.up(x).chunk(2, dim=-1)
    return m.down(F.silu(a) * b)


def window_bias(m: nn.Module, x: Tensor) -> Tensor:
    """As Swin: a bias for each head, picked from a table by constant indices, and a cyclic shift."""
    y = torch.roll(x, shifts=1, dims=1)
    q, k, v = m.qkv(y).view(x.shape[0], x.shape[1], 3, 4, 5).permute(2, 0, 3, 1, 4).unbind(0)
    bias = m.table.weight[torch.arange(49) % 13].view(7, 7, 4).permute(2, 0, 1).unsqueeze(0)
    return m.o(merged((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v)).mean(1)


def class_token(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y = torch.cat([m.token.weight.expand(x.shape[0], -1, -1), y], 1)
    return m.b(F.gelu(y))[:, 0]


def conv(i: int, o: int, k: int = 3, **more: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)  # type: ignore[arg-type]


def projections(width: int, *, keys: int | None = None) -> dict[str, nn.Module]:
    keys = keys or width
    return {"q": nn.Linear(6, width), "k": nn.Linear(6, keys), "v": nn.Linear(6, keys), "o": nn.Linear(width, 3)}


def experts(m: nn.Module, x: Tensor) -> Tensor:
    """A mixture of gated experts, two for each sample, as batched matrix products."""
    score, chosen = m.router(x).topk(2, dim=-1)
    each = x[:, None].expand(-1, 2, -1).reshape(-1, 6, 1)
    gate, up = torch.bmm(m.up[0][chosen.flatten()], each).squeeze(-1).chunk(2, dim=-1)
    y = torch.bmm(m.down[0][chosen.flatten()], (F.silu(gate) * up)[..., None]).squeeze(-1)
    return m.head((y.reshape(-1, 2, 5) * torch.softmax(score, -1)[..., None]).sum(1))


ROWS = {
    "attention": Row(separate, lambda: projections(20), (7, 6), {"q": 4, "q#2": 5, "v": 5}),
    "attention, fused": Row(
        fused, lambda: {"qkv": nn.Linear(6, 60), "o": nn.Linear(20, 3)}, (7, 6), {"qkv": 4, "qkv#2": 5}
    ),
    "attention, chunked": Row(
        chunked, lambda: {"qkv": nn.Linear(6, 60), "o": nn.Linear(20, 3)}, (7, 6), {"qkv": 4, "qkv#2": 5, "qkv#3": 5}
    ),
    "attention, grouped queries": Row(
        grouped_queries,
        lambda: {"qkv": nn.Linear(6, 40), "o": nn.Linear(20, 3)},
        (7, 6),
        {"qkv": 2, "qkv#2": 2, "qkv#3": 5, "qkv#4": 5},
    ),
    "attention, native grouped queries": Row(
        native_grouped_queries, lambda: projections(20, keys=10), (7, 6), {"q": 2, "q#2": 2, "q#3": 5, "v": 5}
    ),
    "attention, rotary": Row(
        rotary, lambda: {**projections(18), "steps": nn.Embedding(7, 3)}, (7, 6), {"q": 3, "q#2": 3, "v": 6}
    ),
    "attention, einsum": Row(einsums, lambda: projections(20), (7, 6), {"q": 4, "q#2": 5, "v": 5}),
    "attention, window bias": Row(
        window_bias,
        lambda: {"qkv": nn.Linear(6, 60), "o": nn.Linear(20, 3), "table": nn.Embedding(13, 4)},
        (7, 6),
        {"qkv": 4, "qkv#2": 5},
    ),
    "class token": Row(
        class_token,
        lambda: {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3), "token": nn.Embedding(1, 8)},
        (7, 6),
        {"a": 8},
    ),
    "gated": Row(gated, lambda: {"up": nn.Linear(6, 20), "down": nn.Linear(10, 3)}, (6,), {"up": 10}),
    "dense block": Row(
        dense_block,
        lambda: {
            "stem": conv(3, 8),
            "na": nn.BatchNorm2d(8),
            "a": conv(8, 4),
            "nb": nn.BatchNorm2d(12),
            "b": conv(12, 4),
            "head": nn.Linear(16, 3),
        },
        (3, 6, 6),
        {"stem": 8, "a": 4, "b": 4},
    ),
    "channel shuffle": Row(
        shuffled,
        lambda: {"stem": conv(3, 16), "a": conv(8, 8, groups=8), "b": conv(8, 8, 1), "head": conv(16, 3, 1)},
        (3, 6, 6),
        {"stem": 8, "stem#2": 8},
    ),
    "u-net": Row(
        u_net,
        lambda: {
            "a": conv(3, 8),
            "b": conv(8, 12),
            "up": nn.ConvTranspose2d(12, 4, 2, stride=2),
            "c": conv(24, 8),
            "last": conv(8, 3, 1),
        },
        (3, 6, 6),
        {"a": 8, "b": 12, "up": 4, "c": 8},
    ),
    "transposed convolution in groups": Row(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))).mean((2, 3)),
        lambda: {
            "a": conv(3, 8),
            "b": nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2),
            "c": nn.ConvTranspose2d(12, 3, 1),
        },
        (3, 5, 5),
        {"a": 4, "b": 6},
    ),
    "lstm": Row(
        lstm,
        lambda: {
            "first": nn.Linear(6, 8),
            "rnn": nn.LSTM(8, 10, num_layers=2, bidirectional=True, batch_first=True),
            "head": nn.Linear(20, 3),
        },
        (7, 6),
        {"first": 8, "rnn.weight_ih_l0": 10},
    ),
    "gru": Row(
        lstm,
        lambda: {"first": nn.Linear(6, 8), "rnn": nn.GRU(8, 10, batch_first=True), "head": nn.Linear(10, 3)},
        (7, 6),
        {"first": 8, "rnn.weight_ih_l0": 10},
    ),
    "group norm": Row(
        lambda m, x: m.c(F.relu(m.norm(m.a(x)))).mean((2, 3)),
        lambda: {"a": conv(3, 12), "norm": nn.GroupNorm(4, 12), "c": conv(12, 3)},
        (3, 5, 5),
        {"a": 4},
    ),
    "instance norm": Row(
        lambda m, x: m.c(F.relu(m.norm(m.a(x)))).mean((2, 3)),
        lambda: {"a": conv(3, 12), "norm": nn.InstanceNorm2d(12, affine=True), "c": conv(12, 3)},
        (3, 5, 5),
        {"a": 12},
    ),
    "pixel shuffle": Row(
        lambda m, x: m.c(F.pixel_shuffle(m.a(F.pixel_unshuffle(F.relu(m.first(x)), 2)), 2)).mean((2, 3)),
        lambda: {"first": conv(3, 5), "a": conv(20, 24), "c": conv(6, 3)},
        (3, 6, 6),
        {"first": 5, "a": 6},
    ),
    "slices and padding": Row(
        lambda m, x: m.b(F.pad(m.a(x)[:, 2:], (1, 2))),
        lambda: {"a": nn.Linear(6, 10), "b": nn.Linear(11, 3)},
        (6,),
        {"a#2": 8},
    ),
    "an empty slice": Row(
        lambda m, x: m.b(torch.cat([m.a(x)[:, :10] * 2, m.a(x)[:, 10:]], 1)),
        lambda: {"a": nn.Linear(6, 10), "b": nn.Linear(10, 3)},
        (6,),
        {"a": 10},
    ),
    "strided slices": Row(
        lambda m, x: m.b(m.a(x)[:, ::2] * m.a(x)[:, 1::2]),
        lambda: {"a": nn.Linear(6, 10), "b": nn.Linear(5, 3)},
        (6,),
        {"a": 5},
    ),
    "stack and sum": Row(
        lambda m, x: m.c((torch.stack([m.a(x), m.b(x)], 1) * torch.softmax(m.w(x), -1)[:, :, None]).sum(1)),
        lambda: {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "w": nn.Linear(6, 2), "c": nn.Linear(8, 3)},
        (6,),
        {"a": 8},
    ),
    "a sum over channels": Row(
        lambda m, x: torch.stack([m.a(x).sum(-1), F.relu(m.b(x)).sum(-1)], -1),
        lambda: {"a": nn.Linear(6, 8), "b": nn.Linear(6, 9)},
        (6,),
        {"a": 8, "b": 9},
    ),
    "repeats": Row(
        lambda m, x: m.c(m.a(x).repeat(1, 2) + torch.repeat_interleave(m.b(x), 2, dim=1, output_size=16)),
        lambda: {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "c": nn.Linear(16, 3)},
        (6,),
        {"a": 4},
    ),
    "repeat": Row(
        lambda m, x: m.c(m.a(x).repeat(1, 2)),
        lambda: {"a": nn.Linear(6, 8), "c": nn.Linear(16, 3)},
        (6,),
        {"a": 8},
    ),
    "token mixing": Row(
        lambda m, x: m.head(m.out(F.gelu(m.mix(m.embed(x).flatten(2)))).mean(2)),
        lambda: {
            "embed": nn.Conv2d(3, 8, 2, stride=2),
            "mix": nn.Linear(9, 14),
            "out": nn.Linear(14, 9),
            "head": nn.Linear(8, 3),
        },
        (3, 6, 6),
        {"embed": 8, "mix": 14},
    ),
    "the largest, and a triangle": Row(
        lambda m, x: m.b(F.relu(m.a(x))).topk(2, dim=1)[0].tril().sum(1),
        lambda: {"a": nn.Linear(6, 9), "b": nn.Linear(9, 3)},
        (5, 6),
        {"a": 9},
    ),
    "matrix product with a weight": Row(
        lambda m, x: torch.relu(x @ m.a.weight) @ m.b.weight,
        lambda: {"a": nn.Embedding(6, 9), "b": nn.Embedding(9, 3)},
        (5, 6),
        {"a": 9},
    ),
    "matrix product with a transposed weight": Row(
        lambda m, x: torch.relu(x @ m.a.weight.T + m.a.bias) @ m.b.weight.T,
        lambda: {"a": nn.Linear(6, 9), "b": nn.Linear(9, 3)},
        (5, 6),
        {"a": 9},
    ),
    "experts that a router picks": Row(
        experts,
        lambda: {
            "router": nn.Linear(6, 4),
            "up": nn.ParameterList([torch.randn(4, 20, 6)]),
            "down": nn.ParameterList([torch.randn(4, 5, 10)]),
            "head": nn.Linear(5, 3),
        },
        (6,),
        {"up.0": 10, "down.0": 5},
    ),
    "prelu": Row(
        lambda m, x: m.c(m.p(m.a(x))).mean((2, 3)),
        lambda: {"a": conv(3, 8), "p": nn.PReLU(8), "c": conv(8, 3)},
        (3, 5, 5),
        {"a": 8},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_groups_are_found_and_cut_exactly(name: str) -> None:
    row = ROWS[name]
    torch.manual_seed(0)
    module = Forward(row.forward, **row.parts()).eval()
    graph = capture(module, (torch.randn(3, *row.shape),))
    found = groups(graph)
    assert {group.name: group.size for group in found.cuttable} == row.sizes
    assert not [skip for skip in found.skipped if "no rule" in skip.why]
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        kept = {}
        for group in found.cuttable:
            some = torch.randperm(group.size, generator=generator)[: max(1, group.size * 2 // 3)]
            kept[group.name] = tuple(some.sort().values.tolist())
        if kept:
            pruned = cut(graph, kept)  # compares with the masked original in both modes
            before = sum(p.numel() for p in graph.parameters())
            assert sum(p.numel() for p in pruned.parameters()) < before
    for group in found.cuttable:  # and each alone
        cut(graph, {group.name: tuple(range(1, group.size))})


# Here each contraction is a linear layer, a convolution or a sum, which is all that the reference knows.
BY_BRUTE_FORCE = (
    "gated",
    "class token",
    "dense block",
    "channel shuffle",
    "u-net",
    "transposed convolution in groups",
    "group norm",
    "pixel shuffle",
    "slices and padding",
    "strided slices",
    "a sum over channels",
    "repeats",
    "repeat",
    "prelu",
)


@pytest.mark.parametrize("name", BY_BRUTE_FORCE)
def test_agrees_with_brute_force(name: str) -> None:
    row = ROWS[name]
    torch.manual_seed(0)
    x = torch.randn(3, *row.shape)
    graph = capture(Forward(row.forward, **row.parts()).eval(), (x,)).double()
    for group in groups(graph).cuttable:
        for channel in range(group.size):
            check_channel(graph, x.double(), group, channel)


def response_norm(m: nn.Module, x: Tensor) -> Tensor:
    """As ConvNeXt V2: each channel by its share of the mean over channels."""
    y = F.gelu(m.a(x))
    size = y.norm(dim=1, keepdim=True)
    return m.b(y * (size / (size.mean(-1, keepdim=True) + 1e-6)))


def test_a_mean_over_channels_can_pass_with_its_divisor_kept() -> None:
    module = Forward(response_norm, a=nn.Linear(6, 8), b=nn.Linear(8, 3)).eval()
    graph = capture(module, (torch.randn(3, 5, 6),))
    assert not groups(graph).cuttable
    assert [group.size for group in groups(graph, means=True).cuttable] == [8]
    once = cut(graph, {"a": (0, 1, 3, 4, 6, 7)}, means=True)
    twice = cut(once, {"a": (0, 2, 3, 4)}, means=True)
    straight = cut(graph, {"a": (0, 3, 4, 6)}, means=True)
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(twice(x), straight(x))
    with torch.no_grad():
        masked = capture(module, (x,))
        masked.get_parameter("a.weight")[[1, 2, 5, 7]] = 0
        masked.get_parameter("a.bias")[[1, 2, 5, 7]] = 0  # the norm of nothing is nothing
    torch.testing.assert_close(straight(x), masked(x))


def test_a_model_that_draws_random_numbers_is_cut_too() -> None:
    module = Forward(lambda m, x: m.b(m.a(x) + torch.rand(5)), a=nn.Linear(6, 5), b=nn.Linear(5, 3)).eval()
    graph = capture(module, (torch.randn(3, 6),))
    assert not groups(graph).cuttable  # what is drawn has the width
    module = Forward(lambda m, x: m.b(m.a(x)) * torch.rand_like(x[:, :3]), a=nn.Linear(6, 5), b=nn.Linear(5, 3)).eval()
    graph = capture(module, (torch.randn(3, 6),))
    cut(graph, {"a": (0, 3)})


def test_the_table_covers_the_training_ir() -> None:
    """Each op counts once, whatever its overloads and in-place forms."""
    packets = {str(op).rpartition(".")[0].rstrip("_") for op in RULES if isinstance(op, torch._ops.OpOverload)}
    assert len(packets) >= 130
