"""Times of layers: measured once a shape, read off between widths, whatever the kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.graph.test_cost import one_of_each_dim, row
from trimtab.compress import layertime
from trimtab.compress.layertime import LayerTimes
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
