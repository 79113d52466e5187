"""The Fisher diagonal that training leaves: it goes with copies, graphs and files, and only with its own weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from trimtab.errors import ArtifactError
from trimtab.graph.capture import capture
from trimtab.graph.fisher import FISHER_FILE, Fisher, attach_fisher_, fisher, fisher_of
from trimtab.graph.save import load_graph, save_graph


def with_fisher() -> tuple[nn.Module, Fisher]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    found = fisher(model, {name: torch.rand_like(p) for name, p in model.named_parameters()}, "a test")
    attach_fisher_(model, found)
    return model, found


def captured(model: nn.Module) -> torch.fx.GraphModule:
    return capture(model, (torch.randn(2, 4),))


def test_it_goes_along_with_a_copy_a_graph_and_a_file_and_fits_each(tmp_path: Path) -> None:
    model, found = with_fisher()
    graph = captured(copy.deepcopy(model))
    save_graph(copy.deepcopy(graph), tmp_path)
    loaded = load_graph(tmp_path)
    for other in (graph, captured(graph), loaded):
        own = fisher_of(other)
        assert own is not None
        assert own.why_not(other) is None
        assert (own.weights, own.by) == (found.weights, "a test")
        assert all(torch.equal(own.squares[name], square) for name, square in found.squares.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == [FISHER_FILE, "graph.json", "weights.safetensors"]
    assert set(loaded.state_dict()) == set(graph.state_dict()) == set(model.state_dict())


def test_one_changed_bit_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    model, _ = with_fisher()
    graph = captured(model)
    save_graph(graph, tmp_path)
    with torch.no_grad():
        graph.get_parameter("2.bias")[0] += 1e-6
    own = fisher_of(graph)
    assert own is not None
    assert own.why_not(graph) == "2.bias has changed since the training"
    save_graph(graph, tmp_path)
    assert fisher_of(load_graph(tmp_path)) is None


def test_another_shape_or_a_missing_weight_is_told() -> None:
    _, found = with_fisher()
    assert found.why_not(nn.Sequential(nn.Linear(4, 5))) == "0.weight has changed since the training"
    assert found.why_not(nn.Linear(4, 3)) == "the model has no 0.weight any more"


def test_nothing_is_attached_after_it_was_taken_away(tmp_path: Path) -> None:
    model, _ = with_fisher()
    attach_fisher_(model, None)
    attach_fisher_(model, None)
    save_graph(captured(model), tmp_path)
    assert fisher_of(load_graph(tmp_path)) is None


@pytest.mark.parametrize("data", [b"short", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    model, _ = with_fisher()
    save_graph(captured(model), tmp_path)
    (tmp_path / FISHER_FILE).write_bytes(data)
    with pytest.raises(ArtifactError, match="Cannot read the graph"):
        load_graph(tmp_path)
