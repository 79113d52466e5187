"""Cuts: equal to the masked original on any net, in both modes, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.graph.test_dims import Forward
from tests.nets import NETS, net
from trimtab.errors import PlanError
from trimtab.graph import surgery
from trimtab.graph.atoms import Block, Place
from trimtab.graph.capture import capture, set_tensor_
from trimtab.graph.compare import relative_error
from trimtab.graph.dims import Groups, groups
from trimtab.graph.modes import frozen_modes
from trimtab.graph.save import load_graph, save_graph
from trimtab.graph.shapes import refresh_shapes_
from trimtab.graph.surgery import cut


def halves(graph: GraphModule) -> dict[str, tuple[int, ...]]:
    return {group.name: tuple(range(0, group.size, 2)) for group in groups(graph).cuttable}


def shapes(graph: GraphModule) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in graph.named_parameters()}


@torch.no_grad()
def masked_by_weights(graph: GraphModule, kept: dict[str, tuple[int, ...]]) -> GraphModule:
    """The slow reference: zero the columns of every weight that reads a cut channel.

    Where no weight reads it (queries meet keys), zero the rows of the weights and biases that make it.
    """
    masked = copy.deepcopy(graph)
    parameters = dict(masked.named_parameters())
    for group in groups(graph).cuttable:
        reading = [use for use in group.uses if use.role == "consumer"]
        for use in reading or group.uses:
            if group.name in kept:
                gone = ~use.place.mask(kept[group.name])
                parameters[use.name].index_fill_(use.dim, gone.nonzero().flatten(), 0)
    return masked


@pytest.mark.parametrize("name", NETS)
def test_equals_the_original_with_zeroed_columns(name: str) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    pruned = cut(graph, halves(graph))
    torch.testing.assert_close(pruned(x), masked_by_weights(graph, halves(graph))(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_leaves_the_original_alone(name: str) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    before, code = copy.deepcopy(graph.state_dict()), graph.code
    random_state = torch.get_rng_state()
    cut(graph, halves(graph))
    assert graph.code == code
    assert not graph.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in graph.state_dict().items())


def test_half_of_a_resnet_has_the_expected_shapes() -> None:
    module, x = net("resnet")
    graph = capture(module, (x,))
    pruned = cut(graph, halves(graph))
    after = shapes(pruned)
    assert after["stem.0.weight"] == (8, 3, 3, 3)
    assert after["blocks.0.depthwise.weight"] == (8, 1, 3, 3)
    assert after["blocks.0.grouped.weight"] == (8, 2, 3, 3)
    assert after["blocks.1.short.0.weight"] == (16, 8, 1, 1)
    assert after["blocks.2.grouped.weight"] == (16, 4, 3, 3)
    assert after["head.weight"] == (5, 16)
    assert list(after) == list(shapes(graph))
    node = next(n for n in pruned.graph.nodes if n.name == "relu_6")
    assert node.meta["val"].shape[1:] == (16, 8, 8)


def test_flattened_positions_go_with_their_channel() -> None:
    module, x = net("conv")
    graph = capture(module, (x,))
    pruned = cut(graph, {"features.4": (0, 7)})
    columns = [*range(9), *range(63, 72)]
    assert torch.equal(pruned.get_parameter("head.weight"), graph.get_parameter("head.weight")[:, columns])


@pytest.mark.parametrize("name", NETS)
def test_result_is_a_graph_like_any_other(name: str, tmp_path) -> None:
    """It exports again, saves bit-exactly, is cut again, and trains."""
    module, x = net(name)
    graph = capture(module, (x,))
    pruned = cut(graph, halves(graph))
    batch = torch.export.Dim("batch")
    again = torch.export.export(frozen_modes(pruned), (x,), dynamic_shapes=({0: batch},), strict=False).module()
    torch.testing.assert_close(again(x), pruned(x))
    save_graph(pruned, tmp_path)
    assert torch.equal(load_graph(tmp_path)(x), pruned(x))
    twice = cut(pruned, halves(pruned))
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in pruned.parameters())
    optimizer = torch.optim.AdamW(pruned.train().parameters(), lr=1e-2)
    before = {key: parameter.clone() for key, parameter in pruned.named_parameters()}
    nn.functional.cross_entropy(pruned(x), torch.arange(4)).backward()
    optimizer.step()
    assert all(not torch.equal(parameter, before[key]) for key, parameter in pruned.named_parameters())


def test_tied_weights_stay_tied() -> None:
    module = Forward(
        lambda m, x: m.last(m.b(m.a(x)) + m.b(torch.relu(m.a(x)))),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 8),
        last=nn.Linear(8, 3),
    )
    graph = capture(module.eval(), (torch.randn(4, 6),))
    weight = next(node for node in graph.graph.nodes if node.target == "b.weight")
    set_tensor_(graph, "c.weight", graph.get_parameter("b.weight"))
    with graph.graph.inserting_after(weight):
        alias = graph.graph.get_attr("c.weight")
    list(weight.users)[1].replace_input_with(weight, alias)
    graph.recompile()
    pruned = cut(refresh_shapes_(graph), halves(graph))
    assert pruned.get_parameter("b.weight") is pruned.get_parameter("c.weight")
    assert pruned.get_parameter("b.weight").shape == (4, 4)


def test_constants_in_reshapes_are_rewritten() -> None:
    def heads(m, x):
        y = m.a(x).view(x.shape[0], 5, 4, 6).transpose(1, 2)
        return m.b(torch.relu(y).transpose(1, 2).reshape(x.shape[0], 5, 24)).mean(1)

    graph = capture(Forward(heads, a=nn.Linear(6, 24), b=nn.Linear(24, 3)).eval(), (torch.randn(4, 5, 6),))
    pruned = cut(graph, {"a": (1, 3), "a#2": (0, 1, 2)})
    assert shapes(pruned)["a.weight"] == (6, 6)
    assert pruned(torch.randn(7, 5, 6)).shape == (7, 3)


def test_in_place_operations_are_followed() -> None:
    def forward(m, x):
        y = m.a(x)
        z = torch.nn.functional.relu(m.norm(y), inplace=True)
        return m.last((z + torch.sigmoid_(y)).mean((2, 3)))

    module = Forward(forward, a=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), last=nn.Linear(8, 4))
    graph = capture(module.eval(), (torch.randn(4, 3, 5, 5),))
    assert shapes(cut(graph, halves(graph)))["a.weight"] == (4, 3, 3, 3)


class Attend(nn.Module):
    """Attention over positions, [B, C, H, W] -> the same, with fused, uneven or grouped projections."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind, self.heads = kind, 2
        self.num_keys = 1 if kind == "grouped" else 2
        self.project = nn.Linear(width, 3 * (2 + 2 * self.num_keys))
        self.out = nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(x.flatten(2).transpose(1, 2))
        batch, length = y.shape[:2]
        if self.kind == "fused":
            q, k, v = y.view(batch, length, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = y.split([6, 3 * self.num_keys, 3 * self.num_keys], dim=-1)
            q, k, v = (part.unflatten(-1, (-1, 3)).transpose(1, 2) for part in parts)
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=self.kind == "grouped")
        return self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class RandomNet(nn.Module):
    """Layers of all kinds, joined by sums, products and concatenation; pooling or flattening; linear layers."""

    def __init__(self, layers: list[tuple], width: int, flatten: bool, hidden: int) -> None:
        super().__init__()
        self.layers, self.flatten = layers, flatten
        self.parts = nn.ModuleList([nn.Conv2d(2, width, 3, padding=1)])
        for kind, wide, num_groups in layers:
            self.parts.append(self.part(kind, width, wide, num_groups))
            width = {"conv": wide, "strided": wide, "dense": width + wide, "halves": width // 2}.get(kind, width)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Sequential(nn.Linear(width * (4 if flatten else 1), hidden), nn.GELU(), nn.Linear(hidden, 3))

    @staticmethod
    def part(kind: str, width: int, wide: int, num_groups: int) -> nn.Module:
        num_groups = num_groups if width % num_groups == wide % num_groups == 0 else 1
        match kind:
            case "depthwise":
                return nn.Conv2d(width, width, 3, padding=1, groups=width)
            case "conv" | "strided":
                stride = 2 if kind == "strided" else 1
                return nn.Conv2d(width, wide, 3, padding=1, groups=num_groups, stride=stride)
            case "residual" | "gated":
                return nn.Sequential(
                    nn.Conv2d(width, wide, 1), nn.BatchNorm2d(wide), nn.SiLU(), nn.Conv2d(wide, width, 1)
                )
            case "squeeze":
                return nn.Sequential(
                    nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
                )
            case "dense":
                return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, wide, 3, padding=1))
            case "norm":
                return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            case "group norm":
                return nn.Sequential(nn.GroupNorm(2 if width % 2 == 0 else 1, width), nn.ReLU())
            case "fused" | "uneven" | "grouped":
                return Attend(width, kind)
            case "shuffle":
                return nn.ChannelShuffle(2 if width % 2 == 0 else 1)
            case "pool":
                return nn.MaxPool2d(3, stride=1, padding=1)
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts[0](x)
        for (kind, _, _), part in zip(self.layers, self.parts[1:], strict=True):
            y = part(x)
            if kind in ("residual", "fused", "uneven", "grouped"):
                x = x + y
            elif kind in ("gated", "squeeze"):
                x = x * y
            elif kind == "dense":
                x = torch.cat([y, x], 1)
            elif kind == "halves":
                first, second = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 : x.shape[1] // 2 * 2]
                x = first * torch.sigmoid(second)
            else:
                x = y
        x = self.pool(x).flatten(1) if self.flatten else x.mean((2, 3))
        return self.head(self.drop(x))


KINDS = (
    *("conv", "strided", "depthwise", "residual", "gated", "squeeze", "dense", "halves"),
    *("norm", "group norm", "fused", "uneven", "grouped", "shuffle", "pool"),
)
LAYERS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from([4, 8, 12]), st.sampled_from([1, 1, 2, 4])),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    layers=LAYERS, width=st.sampled_from([4, 8]), flatten=st.booleans(), hidden=st.sampled_from([5, 8]), data=st.data()
)
def test_any_net_is_cut_exactly(
    layers: list[tuple], width: int, flatten: bool, hidden: int, data: st.DataObject
) -> None:
    """`cut` checks itself; here the weight-column reference confirms it, and one training step runs."""
    torch.manual_seed(0)
    module = RandomNet(layers, width, flatten, hidden).eval()
    x = torch.randn(4, 2, 6, 6)
    graph = capture(module, (x,))
    kept = {}
    for group in groups(graph).cuttable:
        chosen = data.draw(st.sets(st.integers(0, group.size - 1), min_size=1), label=group.name)
        kept[group.name] = tuple(sorted(chosen))
    pruned = cut(graph, kept)
    assert relative_error(pruned(x), masked_by_weights(graph, kept)(x)) < 1e-4
    pruned.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_a_wrong_rule_is_caught_and_the_group_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule gives the reads of other channels than the ones that are sliced."""
    from dataclasses import replace

    module, x = net("resnet")
    graph = capture(module, (x,))
    right = groups(graph)

    def wrong(_: GraphModule, *, means: bool) -> Groups:
        first, *others = right.cuttable
        swapped = tuple(replace(r, place=Place(r.place.size, r.place.width, (Block(0, (), 4),))) for r in first.reads)
        return Groups((replace(first, reads=swapped), *others), right.skipped)

    monkeypatch.setattr(surgery, "groups", wrong)
    with pytest.raises(PlanError, match=r"Cutting stem\.0 would change more than the cut channels: in eval mode"):
        cut(graph, halves(graph))


def test_a_cut_that_does_not_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    module, x = net("mlp")
    graph = capture(module, (x,))
    first, second = groups(graph).cuttable
    broken = replace(first, uses=tuple(use for use in first.uses if use.role != "consumer"))
    monkeypatch.setattr(surgery, "groups", lambda _, *, means: Groups((broken, second), ()))
    with pytest.raises(PlanError, match=r"Cutting layers\.0 would .* it does not run"):
        cut(graph, halves(graph))


@pytest.mark.parametrize("channels", [(), (0, 0), (3, 1), (-1, 2), (0, 32)])
def test_refuses_channels_that_are_not_there(channels: tuple[int, ...]) -> None:
    module, x = net("mlp")
    with pytest.raises(PlanError, match=r"'layers\.0' cannot keep .*expected at least one of its channels 0 to 31"):
        cut(capture(module, (x,)), {"layers.0": channels})


def test_refuses_a_group_that_is_not_there() -> None:
    module, x = net("mlp")
    with pytest.raises(PlanError, match=r"no group 'head' that can be cut; it has: layers\.0, layers\.3"):
        cut(capture(module, (x,)), {"head": (0, 1)})
