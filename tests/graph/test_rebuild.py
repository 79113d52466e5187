"""A pruned graph as the user's own class: who can follow does, who cannot is told where."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.nets import net
from tests.runtimes.quantized import QuantizedNet, quantized_graph
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.compare import relative_error
from trimtab.graph.dims import groups
from trimtab.graph.rebuild import as_module, derived
from trimtab.graph.save import load_graph, save_graph
from trimtab.graph.surgery import cut


def halves(graph: GraphModule) -> dict[str, tuple[int, ...]]:
    return {group.name: tuple(range(0, group.size, 2)) for group in groups(graph).cuttable}


def same(module: nn.Module, graph: GraphModule, *inputs: Tensor) -> None:
    """`module` is the graph: answers, names, shapes, bits, one step of training."""
    assert not isinstance(module, GraphModule)
    assert relative_error(module(*inputs), graph(*inputs)) < 1e-5
    ours, theirs = dict(module.named_parameters()), dict(graph.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    own = {id(parameter) for parameter in graph.parameters()}
    assert not any(id(parameter) in own for parameter in module.parameters())
    copy.deepcopy(module).train()(*inputs).sum().backward()


@functools.cache
def halved(name: str) -> tuple[nn.Module, Tensor, GraphModule]:
    module, x = net(name)
    graph = capture(module, (x,))
    return module, x, cut(graph, halves(graph))


@pytest.mark.parametrize("name", ["resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mlp", "conv"))])
def test_a_cut_net_is_its_own_class_again(name: str) -> None:
    module, x, pruned = halved(name)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    own = as_module(pruned, like=module)
    assert type(own) is type(module)
    same(own, pruned, x)
    assert not own.training
    assert all(torch.equal(tensor, module.state_dict()[key]) for key, tensor in before.items())
    if name == "mlp":
        assert groups(capture(own, (x,))) == groups(pruned), "it can be captured and pruned further"


def test_the_attributes_of_layers_follow_from_a_loaded_graph_too(tmp_path: Path) -> None:
    module, x, pruned = halved("resnet")
    save_graph(pruned, tmp_path)
    own = as_module(load_graph(tmp_path).train(), like=module)
    assert own.training
    same(own.eval(), pruned, x)
    block: Any = own.get_submodule("blocks.1")
    assert (block.depthwise.groups, block.depthwise.in_channels, block.depthwise.out_channels) == (16, 16, 16)
    assert (block.grouped.groups, block.grouped.in_channels, block.grouped.out_channels) == (4, 16, 16)
    assert block.bn1.num_features == 16
    assert repr(own.get_submodule("head")) == "Linear(in_features=16, out_features=5, bias=True)"


class Wide(nn.Module):
    """The constructor's arguments decide the sizes."""

    def __init__(self, a: int = 24, b: int = 16) -> None:
        super().__init__()
        self.widths = [a, b]
        self.first, self.second, self.last = nn.Linear(6, a), nn.Linear(a, b), nn.Linear(b, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.widths
        y = torch.relu(self.first(x)).view(x.shape[0], 1, a).reshape(x.shape[0], a)
        return self.last(torch.relu(self.second(y)).view(-1, b))


@pytest.mark.slow
@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.sets(st.integers(0, 23), min_size=1), st.sets(st.integers(0, 15), min_size=1))
def test_any_widths_of_an_mlp(first: set[int], second: set[int]) -> None:
    torch.manual_seed(0)
    module, x = Wide(), torch.randn(4, 6)
    pruned = cut(capture(module, (x,)), {"first": sorted(first), "second": sorted(second)})
    own = as_module(pruned, like=module)
    same(own, pruned, x)
    assert own.widths == [len(first), len(second)]


def test_a_constructor_that_takes_the_new_sizes() -> None:
    module, x = Wide(), torch.randn(4, 6)
    pruned = cut(capture(module, (x,)), {"first": (0, 5, 6), "second": (2, 3)})
    made = as_module(pruned, like=Wide(3, 2))
    same(made, pruned, x)
    assert made.widths == as_module(pruned, like=module).widths == [3, 2]


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner = num_heads, head_dim, num_heads * head_dim
        self.scale = head_dim**-0.5
        self.q, self.k, self.v = (nn.Linear(dim, self.inner) for _ in range(3))
        self.out = nn.Linear(self.inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, self.num_heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, self.inner))


class Layer(nn.Module):
    def __init__(self, dim: int, num_heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.dim = hidden, dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads, head_dim)
        self.up, self.down, self.drop = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.dim
        x = x + self.attention(self.norm1(x))
        return x + self.drop(self.down(nn.functional.gelu(self.up(self.norm2(x)))))


class Encoder(nn.Module):
    """[B, 5] of token ids -> [B, 3]. `num_layers` is a number that no output depends on."""

    def __init__(self, dim: int = 16, num_heads: int = 4, head_dim: int = 4, hidden: int = 32) -> None:
        super().__init__()
        self.num_layers = 4
        self.embed, self.position = nn.Embedding(11, dim), nn.Parameter(torch.randn(1, 5, dim))
        self.layers = nn.Sequential(*(Layer(dim, num_heads, head_dim, hidden) for _ in range(2)))
        self.head = nn.Linear(dim, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(ids) + self.position).mean(1))


IDS = torch.arange(20).view(4, 5) % 11


HEADS = {
    "heads": ({"q": (0, 2)}, 2, 4),
    "one head": ({"q": (3,)}, 1, 4),
    "channels of heads": ({"q#2": (0, 1, 3), "v": (1, 2, 3)}, 4, 3),
    "both": ({"q": (1, 2, 3), "q#2": (0, 3), "v": (1, 2)}, 3, 2),
}


@pytest.mark.parametrize("which", [pytest.param(name, marks=pytest.mark.slow) for name in HEADS])
def test_heads_of_an_encoder_though_heads_and_head_dim_are_equal_numbers(which: str) -> None:
    kept, num_heads, head_dim = HEADS[which]
    module = Encoder().eval()
    everywhere = {f"layers.{place}.attention.{name}": channels for place in range(2) for name, channels in kept.items()}
    pruned = cut(capture(module, (IDS,)), everywhere)
    own = as_module(pruned, like=module)
    same(own, pruned, IDS)
    for layer in own.layers:
        assert (layer.attention.num_heads, layer.attention.head_dim) == (num_heads, head_dim)
        assert (layer.attention.inner, layer.attention.scale) == (num_heads * head_dim, 0.5)
        assert (layer.hidden, layer.dim) == (32, 16)
    assert own.num_layers == 4


def test_each_layer_follows_its_own_cut() -> None:
    module = Encoder().eval()
    kept = {"layers.0.attention.q": (0, 1, 2), "layers.1.attention.q": (3,), "layers.1.up": (0, 1, 2)}
    pruned = cut(capture(module, (IDS,)), kept)
    own = as_module(pruned, like=module)
    same(own, pruned, IDS)
    assert [layer.attention.num_heads for layer in own.layers] == [3, 1]
    assert [layer.attention.head_dim for layer in own.layers] == [4, 4]
    assert [(layer.hidden, layer.dim) for layer in own.layers] == [(32, 16), (3, 16)]
    assert own.layers[1].up.out_features == own.layers[1].down.in_features == 3
    assert own.num_layers == 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(8, 12), nn.Linear(8, 12)
        self.other.weight = self.inner.weight
        self.shared = nn.Linear(12, 12)
        self.again = self.shared
        self.last, self.unused = nn.Linear(12, 2), nn.Linear(12, 7)
        self.mask = torch.rand(12)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.inner(x) + self.other(x)) * self.mask
        return self.last(torch.relu(self.again(torch.relu(self.shared(y)))))


def test_tied_weights_stay_tied_frozen_ones_frozen_and_plain_tensors_are_cut() -> None:
    module, x = Tied().eval(), torch.randn(4, 8)
    module.last.weight.requires_grad_(False)
    graph = capture(module, (x,))
    pruned = cut(graph, halves(graph))
    own = as_module(pruned, like=module)
    assert relative_error(own(x), pruned(x)) < 1e-5
    assert own.inner.weight is own.other.weight
    assert own.again is own.shared
    assert own.inner.weight.shape == (6, 8)
    assert own.mask.shape == (6,)
    assert own.unused.weight.shape == (7, 12)
    assert [name for name, one in own.named_parameters() if not one.requires_grad] == ["last.weight"]


class Forward(nn.Module):
    def __init__(self, forward: Callable, **parts: Any) -> None:
        super().__init__()
        self.do = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.do(self, x)


class Kinds(nn.Module):
    """[B, 4, 5] -> [B, 2]: layers of many kinds, all of one width."""

    def __init__(self, width: int = 8, num_heads: int = 4) -> None:
        super().__init__()
        self.up, self.norm, self.slope = nn.Conv1d(4, width, 1), nn.GroupNorm(2, width), nn.PReLU(width)
        self.back, self.rms = nn.ConvTranspose1d(width, width, 3, groups=width), nn.RMSNorm(7)
        self.mix = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.cell, self.split = nn.GRUCell(width, width), nn.Unflatten(1, (width, 1))
        self.rows = nn.LSTM(width, width, batch_first=True)
        self.last = nn.Bilinear(width, width, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rms(self.back(self.slope(self.norm(self.up(x))))).transpose(1, 2)
        y = self.rows(self.mix(y, y, y, need_weights=False)[0])[0][:, -1]
        y = self.split(self.cell(y)).flatten(1)
        return self.last(y, y)


@pytest.mark.slow
def test_layers_of_many_kinds() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5)
    pruned = capture(Kinds(6, 3).eval(), (x,))
    own = as_module(pruned, like=Kinds())
    same(own, pruned, x)
    assert (own.cell.hidden_size, own.cell.input_size, own.norm.num_channels) == (6, 6, 6)
    assert (own.rows.hidden_size, own.rows.input_size) == (6, 6)
    assert (own.back.groups, own.back.in_channels, own.back.out_channels) == (6, 6, 6)
    assert (own.split.unflattened_size, own.slope.num_parameters) == ((6, 1), 6)
    assert (own.mix.num_heads, own.mix.head_dim, own.mix.embed_dim) == (3, 2, 6)
    assert (own.last.in1_features, own.last.out_features) == (6, 2)


def test_what_follows_from_the_weights_of_a_layer() -> None:
    lstm = nn.LSTM(6, 8, proj_size=3)
    lstm.weight_ih_l0, lstm.weight_hh_l0 = nn.Parameter(torch.rand(20, 4)), nn.Parameter(torch.rand(20, 2))
    assert derived(lstm) == {"input_size": 4, "hidden_size": 5, "proj_size": 2}
    assert derived(nn.GRU(6, 8)) == {"input_size": 6, "hidden_size": 8}
    assert derived(nn.RNNCell(6, 8)) == {"input_size": 6, "hidden_size": 8}
    assert derived(nn.EmbeddingBag(6, 8)) == {"num_embeddings": 6, "embedding_dim": 8}
    assert derived(nn.BatchNorm1d(6, affine=False)) == {"num_features": 6}
    for bare in (nn.LayerNorm(4, elementwise_affine=False), nn.GroupNorm(2, 4, affine=False), nn.InstanceNorm1d(4)):
        assert derived(bare) == {}


def test_a_multiple_of_an_attribute() -> None:
    def doubled(m: Any, x: Tensor) -> Tensor:
        return m.last(torch.relu(m.first(x))[:, : 2 * m.width].view(-1, 2 * m.width))

    def make(width: int) -> nn.Module:
        return Forward(doubled, width=width, first=nn.Linear(5, 2 * width), last=nn.Linear(2 * width, 2)).eval()

    x = torch.randn(4, 5)
    pruned = capture(make(3), (x,))
    own: Any = as_module(pruned, like=make(7))
    assert own.width == 3
    same(own, pruned, x)


# --- what a class cannot follow --------------------------------------------------------------------------------------


def refusal(pruned: GraphModule, like: nn.Module) -> str:
    with pytest.raises(PlanError) as refused:
        as_module(pruned, like=like)
    return str(refused.value)


def test_a_size_written_into_forward_is_told_with_its_line() -> None:
    def hard(m: Any, x: Tensor) -> Tensor:
        return m.b(torch.relu(m.a(x)).view(-1, 5 * 16)).relu()

    module = Forward(hard, a=nn.Linear(6, 16), b=nn.Linear(5 * 16, 3)).eval()
    pruned = cut(capture(module, (torch.randn(4, 5, 6),)), {"a": tuple(range(8))})
    said = refusal(pruned, module)
    assert said.startswith("Forward cannot take the graph's sizes: its forward: shape '[-1, 80]' is invalid")
    assert "test_rebuild.py:" in said
    assert "m.b(torch.relu(m.a(x)).view(-1, 5 * 16))" in said
    assert "The graph itself keeps working" in said
    assert "tt.save(graph, folder)" in said


def test_a_number_that_changes_the_values_is_told_with_its_line() -> None:
    class Scaled(Attention):
        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q, k, v = (f(x).view(b, t, self.num_heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            weights = (q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5).softmax(-1)
            return self.out((weights @ v).transpose(1, 2).reshape(b, t, self.inner)).mean(1)

    pruned = capture(Scaled(8, 2, 2).eval(), (torch.randn(4, 5, 8),))
    scale = next(node for node in pruned.graph.nodes if node.target is torch.ops.aten.mul.Tensor)
    scale.update_arg(1, 0.5)  # as a cut of 4 channels to 2 leaves it
    pruned.recompile()
    said = refusal(pruned, Scaled(8, 2, 4))
    assert "in float64, in eval mode its output is" in said
    assert f"The model computes other = {2**-0.5} for mul where the graph has 0.5" in said
    assert "weights = (q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5).softmax(-1)" in said


def test_one_attribute_for_two_widths_is_refused() -> None:
    def loop(m: Any, x: Tensor) -> Tensor:
        for part in (m.a, m.b):
            x = torch.relu(part(x)).view(-1, m.width)
        return m.c(x)

    module = Forward(loop, width=8, a=nn.Linear(4, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 2)).eval()
    graph = capture(module, (torch.randn(4, 4),))
    same(
        as_module(cut(graph, {"a": (0, 1), "b": (2, 3)}), like=module),
        cut(graph, {"a": (0, 1), "b": (2, 3)}),
        torch.randn(4, 4),
    )
    said = refusal(cut(graph, {"a": (0, 1), "b": (2, 3, 4)}), module)
    assert "x = torch.relu(part(x)).view(-1, m.width)" in said
    assert "Set for it: width 8 -> 2" in said


@pytest.mark.slow
def test_queries_narrower_than_values_are_refused_where_one_attribute_rules_both() -> None:
    module = Encoder().eval()
    said = refusal(cut(capture(module, (IDS,)), {"layers.0.attention.q#2": (0, 1, 3)}), module)
    assert "Encoder cannot take the graph's sizes: layers.0.attention: shape" in said
    assert "q, k, v = (f(x).view(b, t, self.num_heads, self.head_dim)" in said


def test_another_model_is_refused() -> None:
    mlp, x = net("mlp")
    conv, _ = net("conv")
    assert "`like` does not take what the graph takes" in refusal(capture(mlp, (x,)), conv)
    other = nn.Sequential(nn.Linear(16, 5))
    assert "Sequential has no layers.0.weight" in refusal(capture(mlp, (x,)), other)
    more = copy.deepcopy(mlp)
    more.layers.append(nn.Linear(5, 5))
    assert "The graph no longer has layers.6.weight, layers.6.bias, which MLP needs" in refusal(
        capture(mlp, (x,)), more
    )
    untied = Tied()
    untied.other.weight = nn.Parameter(torch.randn(12, 8))
    assert "are one tensor in Tied and two in the graph" in refusal(capture(untied, (torch.randn(4, 8),)), Tied())


def test_what_is_no_graph_or_no_class_is_refused() -> None:
    mlp, x = net("mlp")
    graph = capture(mlp, (x,))
    with pytest.raises(PlanError, match="got a MLP and a MLP"):
        as_module(mlp, like=mlp)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="Give the module that you captured"):
        as_module(graph, like=graph)


def test_a_quantized_graph_is_refused() -> None:
    said = refusal(quantized_graph(), QuantizedNet())
    assert said.startswith("A quantized graph cannot be a QuantizedNet: its layers hold no scales.")


def test_a_graph_that_was_changed_in_more_than_sizes_says_where() -> None:
    mlp, x = net("mlp")
    graph = capture(mlp, (x,))
    gelu = next(node for node in graph.graph.nodes if node.target is torch.ops.aten.gelu.default)
    gelu.target = torch.ops.aten.silu.default
    graph.recompile()
    said = refusal(graph, mlp)
    assert "The graph is not as it was captured: it has aten.silu.default where the class has aten.gelu.default" in said
