"""Coded tensors: bit for bit, in the form that fits, and refused where they are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.nets import NETS, net
from trimtab.errors import ArtifactError
from trimtab.graph.capture import capture
from trimtab.graph.coded import Coded, code, decoded, tensors_from_coded, tensors_to_coded
from trimtab.graph.save import load_graph, save_graph

torch.manual_seed(0)
NORMAL = torch.randn(96, 120)
ZEROS = torch.where(torch.rand(96, 120) < 0.9, 0.0, NORMAL)
ODD = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-40])[torch.randint(0, 5, (10, 100))]
TENSORS = {
    "normal": (NORMAL, "zlib"),
    "zeros": (ZEROS, "sparse"),
    "few values": ((4 * NORMAL).round() / 4, "palette"),
    "few values in each row": ((4 * NORMAL).round() * torch.rand(96, 1), "palette"),
    "few values in each eight rows": ((4 * NORMAL).round() * torch.rand(12, 1).repeat_interleave(8, 0), "palette"),
    "not numbers, and two zeros": (ODD, "palette"),
    "one value": (torch.full((50, 50), 3.0), "zlib"),
    "int8": ((6 * NORMAL).to(torch.int8), "palette"),
    "bfloat16": ((4 * NORMAL).round().bfloat16(), "palette"),
    "float64": ((4 * NORMAL).round().double() / 3, "palette"),
    "bool": (NORMAL > 0, "palette"),
    "bias": (NORMAL[0, :10], "raw"),
    "one number": (torch.tensor(5), "raw"),
    "nothing": (torch.empty(0, 3), "raw"),
}


def same(one: Tensor, other: Tensor) -> bool:
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


@pytest.mark.parametrize("name", TENSORS)
def test_each_form_gives_the_same_bits(name: str) -> None:
    tensor, form = TENSORS[name]
    coded = code(tensor)
    assert coded.coding["form"] == form
    assert len(coded.data) <= tensor.nbytes
    assert same(decoded(coded, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)), tensor)


def test_a_palette_is_found_for_as_many_rows_as_share_one() -> None:
    groups = {name: code(tensor).coding["groups"] for name, (tensor, form) in TENSORS.items() if form == "palette"}
    assert groups["few values"] == 1
    assert groups["few values in each row"] == 96
    assert groups["few values in each eight rows"] == 12


def test_values_that_half_holds_take_half() -> None:
    values = torch.randn(256).half().float()
    tensor = values[torch.randint(0, 256, (40, 100))]
    more = code(torch.where(tensor == values[0], values[0] * 1.0001, tensor))
    assert code(tensor).coding["half"]
    assert not more.coding["half"]
    assert 450 < len(more.data) - len(code(tensor).data) <= 512


def test_a_file_of_tensors_comes_back_and_damage_is_refused() -> None:
    tensors = {name: tensor for name, (tensor, _) in TENSORS.items()}
    data = tensors_to_coded(tensors)
    back = tensors_from_coded(data)
    assert list(back) == list(tensors)
    assert all(same(back[name], tensor) for name, tensor in tensors.items())
    for wrong in (data[:-1], data[:12], data[:20] + b"\0" + data[21:], data[:-9] + b"\0" + data[-8:]):
        with pytest.raises(ArtifactError, match="are damaged: they do not decode"):
            tensors_from_coded(wrong)
    with pytest.raises(ArtifactError, match="was written by another version"):
        tensors_from_coded(b"TRIMTAB\x09" + data[8:])


@pytest.mark.parametrize(
    "wrong",
    [
        Coded({"form": "raw"}, b"123"),
        Coded({"form": "zlib"}, b"123"),
        Coded({"form": "sparse"}, b"123"),
        Coded({"form": "palette", "groups": 3, "entries": 2, "half": False}, b"123"),
    ],
    ids=lambda coded: coded.coding["form"],
)
def test_a_damaged_tensor_is_refused(wrong: Coded) -> None:
    with pytest.raises(ArtifactError, match="are damaged"):
        decoded(wrong, "float32", (2, 2))


def test_a_form_that_is_not_known_is_refused() -> None:
    with pytest.raises(ArtifactError, match="which this trimtab does not know"):
        decoded(Coded({"form": "fractal"}, b""), "float32", (2, 2))


@pytest.mark.parametrize("name", NETS)
def test_a_graph_is_kept_coded_bit_for_bit(name: str, tmp_path: Path) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    save_graph(graph, tmp_path)
    assert save_graph(graph, tmp_path, coded=True) == ("graph.json", "weights.coded")
    assert {file.name for file in tmp_path.iterdir()} == {"graph.json", "weights.coded"}
    back = load_graph(tmp_path)
    assert torch.equal(back(x), graph(x))
    assert all(same(tensor, back.state_dict()[key]) for key, tensor in graph.state_dict().items())
    (tmp_path / "weights.coded").write_bytes(b"TRIMTAB\x01 and nothing")
    with pytest.raises(ArtifactError, match="damaged"):
        load_graph(tmp_path)
