"""Which family fits which layers, and what it is predicted to gain: against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import trimtab as tt
from trimtab.diagnose.families import Family, Whole, families
from trimtab.diagnose.roofline import Peaks, Place, roofline

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
    assert packed.size[1] == pytest.approx(7)
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
