"""Times, multiplications and bytes of each operation, beside what can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trimtab as tt
from trimtab.diagnose.roofline import Peaks, peaks, roofline
from trimtab.runtimes.base import num_threads

MACHINE = Peaks(macs_per_s=1e9, bytes_per_s=1e9)


def test_a_place_has_the_operations_counts_and_the_nearer_roof() -> None:
    graph = tt.capture(nn.Sequential(nn.Linear(100, 10), nn.ReLU()), (torch.randn(2, 100),))
    places = {place.node: place for place in roofline(graph, (torch.randn(3, 100),), MACHINE, threads=1)}
    assert list(places) == ["linear", "relu"]
    linear, relu = places["linear"], places["relu"]
    assert linear.macs == 3 * 1000
    assert linear.weight_bytes == 4 * 1010
    assert linear.bytes == 4 * (1010 + 300 + 30)
    assert (linear.bound, linear.roof_ms) == ("memory", 1e3 * linear.bytes / 1e9)
    assert (relu.macs, relu.bytes, relu.weight_bytes) == (0, 4 * 60, 0)
    assert all(place.ms > 0 for place in places.values())


def test_many_samples_make_a_product_bound_by_arithmetic() -> None:
    graph = tt.capture(nn.Linear(64, 64), (torch.randn(2, 64),))
    (place,) = roofline(graph, (torch.randn(256, 64),), MACHINE, threads=1)
    assert place.bound == "compute"
    assert place.roof_ms == pytest.approx(1e3 * 256 * 64 * 64 / 1e9)


def test_peaks_are_measured_with_the_threads_asked_for_which_are_given_back() -> None:
    before = torch.get_num_threads()
    found = peaks(threads=1)
    assert found.macs_per_s > 1e7
    assert found.bytes_per_s > 1e7
    with num_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
