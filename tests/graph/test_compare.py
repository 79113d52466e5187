"""Comparing graphs: what differs is said in words, in both modes."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.nets import net
from trimtab.graph.capture import capture
from trimtab.graph.compare import disagreement, relative_error


def test_a_graph_agrees_with_itself_and_not_with_another() -> None:
    module, x = net("conv")
    graph = capture(module, (x,))
    assert disagreement(graph, copy.deepcopy(graph), (x,)) is None
    other = copy.deepcopy(graph)
    with torch.no_grad():
        other.get_parameter("head.bias")[0] += 1e-3
    assert "in eval mode its output is" in str(disagreement(graph, other, (x,)))
    statistics = copy.deepcopy(graph)
    with torch.no_grad():
        statistics.get_parameter("features.0.weight").mul_(3)  # BatchNorm takes it away, in train mode alone
    assert "in eval mode" in str(disagreement(graph, statistics, (x,)))
    smaller, x16 = net("mlp")
    assert "does not run" in str(disagreement(graph, capture(smaller, (x16,)), (x,)))


def test_relative_error_sees_what_is_not_finite() -> None:
    good = torch.tensor([1.0, 4.0])
    assert relative_error(good + 0.4, good) == pytest.approx(0.1)
    assert relative_error(torch.tensor([1.0, torch.nan]), good) == float("inf")
    assert relative_error(torch.full((2,), torch.nan), torch.full((2,), torch.nan)) == float("inf")
