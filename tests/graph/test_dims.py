"""The dimension algebra: agrees with brute force, freezes what it does not know."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.nets import NETS, net
from tests.reference.coupling import moved
from trimtab.graph.atoms import Atoms, Block, Place
from trimtab.graph.capture import capture
from trimtab.graph.dims import Group, Groups, groups

EXPECTED = {
    "mlp": {"layers.0": 32, "layers.3": 24},
    "conv": {"features.0": 8, "features.4": 12},
    "resnet": {"stem.0": 4, "blocks.0.conv1": 4, "blocks.1.conv1": 8, "blocks.1.grouped": 8, "blocks.2.conv1": 8},
}


def found(module: nn.Module, *shape: int) -> Groups:
    return groups(capture(module.eval(), (torch.randn(4, *shape),)))


def sizes(of: Groups) -> dict[str, int]:
    return {group.name: group.size for group in of.cuttable}


class Forward(nn.Module):
    """Modules by name, and a function of them and x."""

    def __init__(self, forward, **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize("name", NETS)
def test_finds_the_groups_of_known_nets(name: str) -> None:
    module, x = net(name)
    result = groups(capture(module, (x,)))
    assert sizes(result) == EXPECTED[name]
    assert [skip.why for skip in result.skipped] == ["it is the model's output"]


@pytest.mark.parametrize("name", NETS)
def test_agrees_with_brute_force(name: str) -> None:
    module, x = net(name)
    graph = capture(module, (x,)).double()
    for group in groups(graph).cuttable:
        for channel in range(group.size):
            check_channel(graph, x.double(), group, channel)


def check_channel(graph: torch.fx.GraphModule, x: Tensor, group: Group, channel: int) -> None:
    """What moves with any slice of a channel is read by the channel's own reads, and all of these move."""
    reads = {(r.node, r.dim, i) for r in group.reads for i in r.place.indices(channel)}
    touched = set()
    for use in group.uses:
        parameter = dict(graph.named_parameters()).get(use.name)
        if use.role == "consumer" or parameter is None:
            continue
        for index in use.place.indices(channel):
            found_ = moved(graph, x, use.name, use.dim, index)
            assert found_ <= reads, f"{use.name}[{index}] moves more than channel {channel} of {group.name}"
            touched |= found_
    assert touched == reads


def test_place_is_index_arithmetic() -> None:
    place = Place(3, 12, (Block(0, ((2, 6),), 2),))
    assert place.indices(1) == (2, 3, 8, 9)
    assert place.mask((0, 2)).tolist() == [True, True, False, False, True, True] * 2
    beside = Place(3, 15, (*place.blocks, Block(12, (), 1)))
    for one in (place, beside):
        assert one.table().shape == (one.size, one.indices_of_one)


@given(st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=4), st.data())
def test_regrouping_keeps_index_arithmetic(factors: list[int], data: st.DataObject) -> None:
    """A product refined by any mixed radix is still the same index: compared with numbering all indices."""
    atoms = Atoms()
    dim = tuple(atom for size in factors for atom in atoms.new(size))
    total = math.prod(factors)
    first = data.draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
    out = atoms.regroup(dim, [first, total // first])
    if out is None:
        strides = [math.prod(factors[i:]) for i in range(len(factors) + 1)]
        assert any(total // first % s and s % (total // first) for s in strides)
        return
    leaves = atoms.leaves(dim)
    assert atoms.leaves(out[0]) + atoms.leaves(out[1]) == leaves
    numbers = list(product(*(range(atoms.size(leaf)) for leaf in leaves)))
    split = len(atoms.leaves(out[0]))
    low = math.prod(atoms.size(leaf) for leaf in atoms.leaves(out[1]))
    assert low == total // first
    assert [n[:split] for n in numbers] == [numbers[i // low * low][:split] for i in range(total)]


@given(st.lists(st.sampled_from([2, 3, 4, 6]), min_size=1, max_size=3), st.randoms())
def test_unified_dims_have_the_same_leaves_or_are_frozen(factors: list[int], random) -> None:
    atoms = Atoms()
    a = tuple(atom for size in factors for atom in atoms.new(size))
    shuffled = random.sample(factors, len(factors))
    b = tuple(atom for size in shuffled for atom in atoms.new(size))
    atoms.unify(a, b)
    same = atoms.leaves(a) == atoms.leaves(b)
    frozen = all(atoms.why_frozen(leaf) for leaf in atoms.leaves(a) + atoms.leaves(b))
    assert same or frozen
    assert math.prod(atoms.size(leaf) for leaf in atoms.leaves(a)) == math.prod(factors)


def test_unify_may_meet_an_atom_twice() -> None:
    atoms = Atoms()
    a, b = atoms.new(4), atoms.new(2)
    atoms.unify(a + b, b + a)
    assert atoms.leaves(a) == atoms.leaves(b) * 2


def test_unknown_operation_freezes_and_is_listed() -> None:
    module = Forward(
        lambda m, x: m.c(torch.relu(m.b(torch.renorm(m.a(x), 2, 0, 5.0)))),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 9),
        c=nn.Linear(9, 3),
    )
    result = found(module, 6)
    assert sizes(result) == {"b": 9}
    why = {skip.what: skip.why for skip in result.skipped}
    assert "no rule" in why["aten.renorm.default"]
    assert "no rule" in why["a (8)"]


def test_normalised_dims_stay() -> None:
    module = Forward(
        lambda m, x: m.c(torch.softmax(m.b(m.norm(m.a(x))), -1)),
        a=nn.Linear(6, 8),
        norm=nn.LayerNorm(8),
        b=nn.Linear(8, 9),
        c=nn.Linear(9, 3),
    )
    result = found(module, 6)
    assert sizes(result) == {}
    assert [skip.why.partition(" ")[2] for skip in result.skipped[:2]] == ["normalises over it", "runs along it"]


def test_a_mean_over_channels_keeps_them() -> None:
    module = Forward(lambda m, x: m.b(m.a(x).mean(1)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(5, 2))
    result = found(module, 3, 5, 5)
    assert sizes(result) == {}
    assert any("reduces it" in skip.why for skip in result.skipped)


def test_batchnorm_over_positions_keeps_them() -> None:
    module = Forward(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Linear(6, 8), norm=nn.BatchNorm1d(7), b=nn.Linear(8, 3))
    assert sizes(found(module, 7, 6)) == {}


def test_concatenated_dim_is_a_sum_and_the_others_are_tied() -> None:
    module = Forward(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=nn.Linear(6, 8), b=nn.Linear(6, 8), c=nn.Linear(8, 3)
    )
    assert sizes(found(module, 5, 6)) == {"a": 8}
    module = Forward(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], -1)), a=nn.Linear(6, 8), b=nn.Linear(6, 5), c=nn.Linear(13, 3)
    )
    result = found(module, 5, 6)
    assert sizes(result) == {"a": 8, "b": 5}
    assert [(use.name, use.place.table().flatten().tolist()) for use in result.cuttable[1].uses] == [
        ("b.weight", [0, 1, 2, 3, 4]),
        ("c.weight", [8, 9, 10, 11, 12]),
        ("b.bias", [0, 1, 2, 3, 4]),
    ]


def test_factors_of_one_dim_are_groups_of_their_own() -> None:
    def heads(m, x):
        y = m.a(x).view(x.shape[0], -1, 4, 6).transpose(1, 2)
        return m.b(torch.relu(y).transpose(1, 2).reshape(x.shape[0], -1, 24))

    result = found(Forward(heads, a=nn.Linear(6, 24), b=nn.Linear(24, 3)), 5, 6)
    assert sizes(result) == {"a": 4, "a#2": 6}
    assert [use.place for use in result.cuttable[1].uses] == [Place(6, 24, (Block(0, ((4, 6),), 1),))] * 3


def test_shared_weights_share_their_atoms() -> None:
    module = Forward(
        lambda m, x: m.b(m.a(torch.relu(m.a(m.first(x))))), first=nn.Linear(6, 8), a=nn.Linear(8, 8), b=nn.Linear(8, 3)
    )
    result = found(module, 6)
    assert sizes(result) == {"first": 8}
    assert {(use.name, use.dim) for use in result.cuttable[0].uses} >= {("a.weight", 0), ("a.weight", 1)}


def test_dead_ends_are_listed() -> None:
    module = Forward(lambda m, x: m.a(x), a=nn.Linear(6, 8))
    assert [(skip.what, skip.why) for skip in found(module, 6).skipped] == [("a (8)", "it is the model's output")]


@settings(deadline=None, max_examples=8)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.booleans())
def test_grouped_convolutions_line_up(first: int, second: int, depthwise: bool) -> None:
    parts = {
        "a": nn.Conv2d(3, 16, 3),
        "b": nn.Conv2d(16, 16, 3, groups=first),
        "d": nn.Conv2d(16, 16, 1, groups=16) if depthwise else nn.Identity(),
        "c": nn.Conv2d(16, 16, 1, groups=second),
        "last": nn.Conv2d(16, 2, 1),
    }
    module = Forward(lambda m, x: m.last(m.c(m.d(m.b(m.a(x))))).mean((2, 3)), **parts)
    result = found(module, 3, 5, 5)
    largest = max(first, second)
    assert sizes(result) == {"a": 16 // first, "b": 16 // largest, "c": 16 // second}
