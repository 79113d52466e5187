"""Times of layers: measured once a shape, read off between widths, whatever the kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.graph.test_cost import one_of_each_dim, row
from trimtab.compress import layertime
from trimtab.compress.layertime import Layer, LayerTimes, in_runtime
from trimtab.errors import PlanError, RuntimeFailed
from trimtab.graph.capture import capture
from trimtab.graph.cost import Sizes
from trimtab.graph.dims import groups


def times_of(graph) -> LayerTimes:
    return LayerTimes(Sizes(graph, one_of_each_dim(groups(graph).cuttable)))


def test_a_wide_layer_takes_longer_than_a_narrow_one() -> None:
    module = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 8))
    times = times_of(capture(module.eval(), (torch.randn(2, 64),)))
    middle = times.contractions[1]
    whole, narrow = times.of(middle), times.of(middle, {"0": 1024 * 7 // 8, "2": 1024 * 7 // 8})
    assert whole > 2 * narrow > 0
    assert narrow <= times.of(middle, {"0": 512, "2": 512}) <= whole
    assert times.ms() == pytest.approx(sum(times.of(one) for one in times.contractions))


def test_each_shape_is_measured_once_and_threads_come_back(monkeypatch) -> None:
    measured = []
    monkeypatch.setattr(layertime, "_milliseconds", lambda target, *_: measured.append(target) or 1.0)
    module = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    times = times_of(capture(module.eval(), (torch.randn(2, 16),)))
    assert times.ms() == 6.0
    assert len(measured) <= 3 * len(layertime.SHARES), "first, middle and last layers narrow differently"
    monkeypatch.undo()
    torch.set_num_threads(2)
    assert layertime._milliseconds(torch.ops.aten.relu.default, (torch.randn(4),), {}) > 0
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["attention", "channel shuffle", "u-net", "lstm", "attention, einsum"])
def test_every_kind_of_layer_can_be_timed(name: str) -> None:
    times = times_of(row(name)[0])
    assert all(times.of(one) > 0 for one in times.contractions)


@pytest.mark.parametrize("name", ["attention", "channel shuffle", "u-net", "attention, einsum"])
def test_a_layer_alone_computes_what_it_does_in_the_model(name: str) -> None:
    """At full width and narrowed: its graph gives what the operation gives for the same values."""
    compared = []

    def clock(layer: Layer) -> float:
        graph = layer.graph()
        placeholders = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        named = {source.name: value for source, value in layer.values.items()}
        own = graph(*(named[name] for name in placeholders))
        expected = layer.node.target(*layer.filled(layer.values)[0], **layer.filled(layer.values)[1])
        torch.testing.assert_close(own, expected)
        compared.append(layer.key)
        return 1.0

    graph = row(name)[0]
    times = LayerTimes(Sizes(graph, one_of_each_dim(groups(graph).cuttable)), clock)
    assert times.ms() == len(times.contractions)
    assert len(set(compared)) == len(compared) > 1


def test_in_a_runtime_what_it_refuses_counts_as_in_eager(monkeypatch) -> None:
    def refuse(graph, runtime, **_) -> float:
        raise RuntimeFailed("no such operation")

    kept: dict[str, float] = {}

    def keep(key, measure) -> float:
        kept[key] = kept.get(key) or measure()
        return kept[key]

    graph = capture(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), (torch.randn(2, 16),))
    monkeypatch.setattr(layertime, "eager_ms", lambda layer: 7.0)
    monkeypatch.setattr(layertime, "alone_ms", refuse)
    clock = in_runtime("onnxruntime", precision="fp32", threads=1, kept=keep)
    assert LayerTimes(Sizes(graph), clock).ms() == 14.0
    monkeypatch.setattr(layertime, "alone_ms", lambda *_, **__: 1.0)
    assert LayerTimes(Sizes(graph), clock).ms() == 14.0, "both are kept"
    kept.clear()
    assert LayerTimes(Sizes(graph), clock).ms() == 2.0


class Frames(nn.Module):
    """[B, 8, 16] -> [B, 8, 4], each of the 8 frames by itself: they are folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(1, 4, 16)

    def forward(self, x):
        return self.layer(x.flatten(0, 1)[:, None]).unflatten(0, (-1, 8))[..., 0]


def test_what_is_folded_into_the_batch_is_timed_with_it(monkeypatch) -> None:
    asked = []

    def alone(graph, runtime, *, batch_size: int, **_) -> float:
        asked.append(batch_size)
        return 1.0

    monkeypatch.setattr(layertime, "alone_ms", alone)
    clock = in_runtime("onnxruntime", precision="fp32", threads=1, kept=lambda key, measure: measure())
    for module, x in ((Frames(), torch.randn(2, 8, 16)), (nn.Linear(16, 4), torch.randn(2, 16))):
        LayerTimes(Sizes(capture(module.eval(), (x,))), clock).ms()
    assert asked == [8, 1]


def test_a_layer_that_holds_samples_in_another_dim_is_not_served_alone() -> None:
    told = []

    def clock(layer: Layer) -> float:
        if layer.node.target == torch.ops.aten.lstm.input:
            with pytest.raises(PlanError, match="zeros holds the samples in another dim than the first"):
                layer.graph()
            told.append(layer.key)
        return 1.0

    LayerTimes(Sizes(row("lstm")[0]), clock).ms()
    assert len(told) == 1
