"""The registry of PyTorch's exporter: read once, its own for each export, and left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _registration

from trimtab.graph.capture import capture
from trimtab.runtimes import onnxregistry
from trimtab.runtimes.onnxfile import onnx_model
from trimtab.runtimes.onnxregistry import READ, registry_read_once

Registry = _registration.ONNXRegistry


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each reading of the registry, with nothing read yet."""
    monkeypatch.setattr(onnxregistry, "_KEPT", {})
    own, seen = vars(Registry)[READ], []

    def read(cls: type, /, **settings: Any) -> Any:
        seen.append(settings)
        return own.__get__(None, cls)(**settings)

    monkeypatch.setattr(Registry, READ, classmethod(read))
    return seen


def test_a_second_export_reads_nothing_and_writes_the_same(reads: list[Any]) -> None:
    graph = capture(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), (torch.randn(2, 6),))
    first, again = (onnx_model(graph).SerializeToString(deterministic=True) for _ in range(2))
    assert len(reads) == 1
    assert first == again


def test_what_one_export_registers_is_not_there_in_the_next(reads: list[Any]) -> None:
    with registry_read_once():
        one, other = (Registry.from_torchlib(opset_version=20) for _ in range(2))
        assert Registry.from_torchlib(opset_version=21).opset_version == 21
    assert len(reads) == 2
    relu = torch.ops.aten.relu.default
    one.register_op(relu, lambda x: x)
    assert next(form.is_custom for form in one.get_decomps(relu))
    assert not any(form.is_custom for form in other.get_decomps(relu))
    assert one.opset_version == other.opset_version == 20


def test_pytorch_is_left_as_it_was(reads: list[Any]) -> None:
    own = vars(Registry)[READ]

    def fail() -> None:
        with registry_read_once():
            assert vars(Registry)[READ] is not own
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert vars(Registry)[READ] is own


def test_a_pytorch_that_keeps_it_otherwise_reads_it_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxregistry, "READ", "from_elsewhere")
    own = vars(Registry)["from_torchlib"]
    with registry_read_once():
        assert vars(Registry)["from_torchlib"] is own
