"""Saving: bit-exact, no pickle, tied weights, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.graph.test_capture import Tied
from tests.nets import NETS, net
from trimtab.errors import ArtifactError
from trimtab.graph.capture import capture
from trimtab.graph.modes import frozen_modes
from trimtab.graph.save import load_graph, save_graph


@pytest.mark.parametrize("name", NETS)
def test_loads_bit_exactly(name: str, tmp_path: Path) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    save_graph(graph, tmp_path)
    back = load_graph(tmp_path)
    assert torch.equal(back(x[:3]), graph(x[:3]))
    assert back.code == graph.code
    torch.manual_seed(0)
    trained = graph.train()(x)
    torch.manual_seed(0)
    assert torch.equal(back.train()(x), trained)
    assert [key for key, _ in back.named_parameters()] == [key for key, _ in graph.named_parameters()]


def test_a_file_from_before_later_fields_were_known_still_loads(tmp_path: Path) -> None:
    module, x = net("mlp")
    module.get_parameter("layers.0.weight").requires_grad_(False)
    graph = capture(module, (x,))
    save_graph(graph, tmp_path)
    assert not load_graph(tmp_path).get_parameter("layers.0.weight").requires_grad
    described = json.loads((tmp_path / "graph.json").read_text())
    for entry in (*described["inputs"], *described["tensors"]):
        entry.pop("high", None)
        entry.pop("frozen", None)
    (tmp_path / "graph.json").write_text(json.dumps(described))
    back = load_graph(tmp_path)
    assert torch.equal(back(x), graph(x))
    assert back.get_parameter("layers.0.weight").requires_grad


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    graph = capture(Tied(), (x, y))
    save_graph(graph, tmp_path)
    back = load_graph(tmp_path)
    assert len(list(back.parameters())) == 3
    assert torch.equal(back(x, y), graph(x, y))


def test_frozen_modes_drop_dropout_and_stay_exact() -> None:
    module, x = net("conv")
    graph = capture(module, (x,))
    frozen = frozen_modes(graph)
    assert torch.equal(frozen(x), graph(x))
    assert "dropout" not in frozen.code
    assert "dropout" in graph.code


def test_a_damaged_or_foreign_graph_is_refused(tmp_path: Path) -> None:
    module, x = net("mlp")
    save_graph(capture(module, (x,)), tmp_path)
    text = (tmp_path / "graph.json").read_text()
    (tmp_path / "graph.json").write_text(text.replace('"format": 2', '"format": 99'))
    with pytest.raises(ArtifactError, match="format 99"):
        load_graph(tmp_path)
    (tmp_path / "graph.json").write_text(text.replace("aten.relu.default", "evil.relu.default"))
    with pytest.raises(ArtifactError, match="do not trust it"):
        load_graph(tmp_path)
    (tmp_path / "graph.json").write_text(text.replace("aten.relu.default", "aten.nonsense.default"))
    with pytest.raises(ArtifactError, match="does not have"):
        load_graph(tmp_path)
    (tmp_path / "graph.json").write_text(text[:100])
    with pytest.raises(ArtifactError, match="Cannot read"):
        load_graph(tmp_path)


@pytest.mark.parametrize("name", ["torch:load", "operator:call", "operator:attrgetter", "os:system", "nonsense"])
def test_a_file_cannot_name_a_function_that_runs_code(name: str, tmp_path: Path) -> None:
    module, x = net("mlp")
    save_graph(capture(module, (x,)), tmp_path)
    text = (tmp_path / "graph.json").read_text()
    (tmp_path / "graph.json").write_text(text.replace("aten.relu.default", name))
    with pytest.raises(ArtifactError, match="do not trust it"):
        load_graph(tmp_path)


class Arithmetic(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] * 2, x.shape[1] // 2).reshape(x.shape[0], -1)


def test_shape_arithmetic_survives(tmp_path: Path) -> None:
    _, x = net("mlp")
    save_graph(capture(Arithmetic(), (x,)), tmp_path)
    assert "operator:mul" in (tmp_path / "graph.json").read_text()
    assert torch.equal(load_graph(tmp_path)(x[:3]), x[:3])
