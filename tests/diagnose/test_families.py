"""Which family fits which layers, and what it is predicted to gain: against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab as tt
from trimtab.compress.recipes import NONE, STRUCTURE, space_of
from trimtab.core import Quantity
from trimtab.diagnose.families import BY_HAND, FAMILIES, IN_SPACE, Family, Whole, families
from trimtab.diagnose.roofline import Peaks, Place, roofline
from trimtab.runtimes.formats import precisions_of

MACHINE = Peaks(macs_per_s=1e12, bytes_per_s=1e12)


class Residual(nn.Module):
    """[B, 32] -> [B, 5], through two blocks of the same shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def found(model: nn.Module, *shape: int, runtimes: tuple[str, ...] = ("onnxruntime",), features: tuple[str, ...] = ()):
    graph = tt.capture(model, (torch.randn(2, *shape),))
    places = roofline(graph, (torch.randn(1, *shape),), MACHINE, threads=1)
    return {family.name: family for family in families(graph, places, tt.Target(runtimes=runtimes), features)}


@pytest.fixture(scope="module")
def residual() -> dict[str, Family]:
    return found(Residual(), 32)


def test_each_family_names_the_layers_that_it_fits(residual: dict[str, Family]) -> None:
    assert residual["prune"].layers == ("blocks.0.0", "blocks.1.0")
    assert any("output" in skip.why for skip in residual["prune"].skipped)
    assert len(residual["int8"].layers) == len(residual["weights in 4 bits"].layers) == 5
    assert residual["weights in 8 or 16 bits"].layers == residual["int8"].layers
    assert len(residual["drop blocks"].layers) == len(residual["share blocks"].layers) == 2
    assert residual["share blocks"].latency is None
    assert residual["low rank"].layers


def test_a_plain_net_of_convolutions_has_no_blocks_and_weights_in_4_bits_make_it_smaller_alone() -> None:
    plain = found(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)), 3, 8, 8)
    assert plain["drop blocks"].why == "the model has no residual block, which could go whole"
    packed = plain["weights in 4 bits"]
    assert len(packed.layers) == 2
    assert packed.latency
    assert 0.4 <= packed.latency[0] < packed.latency[1] == 1
    assert packed.size
    assert packed.size[1] == pytest.approx(8)
    assert plain["weights in 8 or 16 bits"].size == (1.0, pytest.approx(4))
    assert "share blocks" in plain
    assert "ShareBlocks" in plain["share blocks"].why


def test_what_no_allowed_runtime_runs_is_ruled_out() -> None:
    assert found(Residual(), 32, runtimes=("eager",))["int8"].why.startswith("none of the allowed runtimes has int8")


def test_predictions_follow_amdahl() -> None:
    graph = tt.capture(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), (torch.randn(2, 8),))
    places = [
        Place("linear", "linear", 3.0, 64, 300, 256, 0.1, "compute"),
        Place("relu", "relu", 1.0, 0, 64, 0, 0.1, "memory"),
    ]
    whole = Whole(graph, {place.node: place for place in places}, tt.Target(), ())
    assert whole.faster({"linear": 3.0}) == pytest.approx(4.0 / 2.0)
    assert whole.smaller(("linear",), 4.0) == pytest.approx(288 / (288 - 256 * 0.75))
    slow, quick = (
        {one.name: one for one in families(graph, places, tt.Target(runtimes=("onnxruntime",)), features)}["int8"]
        for features in ((), ("avx512_vnni",))
    )
    assert slow.latency == (1.0, pytest.approx(4 / 2.5))
    assert quick.latency == (1.0, pytest.approx(4 / 1.75))
    assert "no products of bytes" in slow.why
    assert "no products of bytes" not in quick.why


def test_of_a_bold_cut_what_lies_between_contractions_is_predicted_to_shrink_at_best() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
    graph = tt.capture(model, (torch.randn(2, 3, 8, 8),))
    names = [node.name for node in graph.graph.nodes if node.op == "call_function"]
    places = [Place(name, "", 1.0, 64, 300, 256, 0.1, "memory") for name in names]
    found = {one.name: one for one in families(graph, places, tt.Target(runtimes=("onnxruntime",)), ())}
    assert found["prune"].latency == (pytest.approx(3 / (0.75 + 1 + 0.75)), pytest.approx(3 / 0.75))


def plain() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)), (3, 8, 8)


def narrow() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten()), (1, 8, 8)


@pytest.mark.parametrize("make", [lambda: (Residual(), (32,)), plain, narrow])
@pytest.mark.parametrize("minimise", ["latency_ms", "size_bytes"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "eager"])
def test_what_is_said_to_be_searched_is_in_the_space_and_the_reverse(
    make: Any, minimise: Quantity, runtime: str
) -> None:
    model, shape = make()
    graph = tt.capture(model, (torch.randn(2, *shape),))
    space = space_of(graph, dict.fromkeys(precisions_of(runtime), (runtime,)), minimise=minimise)
    slots = {slot.name: slot.options for slot in space.slots}
    inside = {name for name, (slot, options) in IN_SPACE.items() if any(one in slots.get(slot, ()) for one in options)}
    places = roofline(graph, (torch.randn(1, *shape),), MACHINE, threads=1)
    could = families(graph, places, tt.Target(runtimes=(runtime,)), (), minimise=minimise)
    assert {one.name for one in could if not one.unsearched} == inside
    assert inside <= {one.name for one in could if one.layers}, "what the search tries fits some layer"


def test_every_option_that_changes_a_model_is_of_one_family() -> None:
    graph = tt.capture(Residual(), (torch.randn(2, 32),))
    every = dict.fromkeys(map(str, precisions_of("onnxruntime")), ("onnxruntime",))
    slots = {slot.name: slot.options for slot in space_of(graph, every, minimise="size_bytes").slots}
    owned = [(slot, option) for slot, options in IN_SPACE.values() for option in options]
    changing = {(slot, option) for slot in STRUCTURE for option in slots[slot] if option != NONE}
    changing |= {("numbers", option) for option in slots["numbers"] if option != "floats"}
    assert set(owned) == changing
    assert len(owned) == len(set(owned))
    assert set(FAMILIES) == set(IN_SPACE) | set(BY_HAND)


def test_what_the_search_leaves_out_says_why() -> None:
    shape, target = (3, 8, 8), tt.Target(runtimes=("onnxruntime",))
    graph = tt.capture(plain()[0], (torch.randn(2, *shape),))
    places = roofline(graph, (torch.randn(1, *shape),), MACHINE, threads=1)
    for minimise, told in (("latency_ms", "less than half of this model"), ("size_bytes", "")):
        could = {one.name: one for one in families(graph, places, target, (), minimise=minimise)}  # type: ignore[arg-type]
        assert could["weights in 4 bits"].unsearched.endswith(told)
        assert bool(could["weights in 4 bits"].unsearched) == bool(told)
        assert could["drop blocks"].unsearched == "the model has no residual block"
        assert could["palette"].unsearched.startswith("ask for it by hand: Palette()")
