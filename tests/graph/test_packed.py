"""Packed weights: codes and bytes there and back, the two operations against plain arithmetic, saved bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.quantize import Quantize
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.cast import cast
from trimtab.graph.packed import (
    BITS,
    FORMATS,
    NF4,
    decode,
    encode,
    pack,
    precision_of,
    quantize_now,
    unpack,
    unpacked_codes,
)
from trimtab.graph.rebuild import as_module
from trimtab.graph.save import load_graph, save_graph


@given(rows=st.integers(1, 4), features=st.integers(1, 9), seed=st.integers(0, 99))
def test_four_bits_go_into_bytes_and_back(rows: int, features: int, seed: int) -> None:
    codes = torch.randint(0, 16, (rows, features), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack(codes)
    assert packed.shape == (rows, math.ceil(features / 2))
    assert torch.equal(unpacked_codes(packed, features), codes)
    first = [code & 15 for byte in packed[0].tolist() for code in (byte, byte >> 4)]
    assert first[:features] == codes[0].tolist()


def test_nf4_is_the_published_table() -> None:
    assert len(NF4) == 16
    assert (NF4[0], NF4[7], NF4[15]) == (-1, 0, 1)
    assert list(NF4) == sorted(NF4)
    # Quantiles of the normal distribution: 8 levels up to 0, 9 from it, each side from 1 - offset down to 1/2.
    offset = 0.9677083
    normal = torch.distributions.Normal(0, 1)
    above = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    below = normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    want = torch.cat([-below, torch.zeros(1), above.flip(0)]) / above.max()
    assert torch.allclose(torch.tensor(NF4), want, atol=1e-5)


@pytest.mark.parametrize("precision", FORMATS)
def test_every_value_gets_its_nearest_code(precision: str) -> None:
    values = torch.randn(64)
    scale = (
        None
        if precision == "fp16"
        else torch.tensor({"fp8": 0.01, "int8w": 0.02, "int4w": 0.3, "nf4w": 2.5}[precision])
    )
    codes = encode(values, scale, None, precision)
    back = decode(codes, scale, None, precision)
    if BITS[precision] == 4:
        every = decode(torch.arange(16, dtype=torch.uint8), scale, None, precision)
        assert torch.equal((back - values).abs(), (every - values[:, None]).abs().amin(1))
    assert torch.equal(encode(back, scale, None, precision).float(), codes.float()), "what is on the grid stays"


def test_unpack_is_code_minus_zero_times_scale_group_by_group() -> None:
    codes = torch.randint(0, 16, (3, 8)).to(torch.uint8)
    scales, zeros = torch.rand(3, 2), torch.randint(0, 16, (3, 2)).to(torch.uint8)
    found = unpack(pack(codes), scales, zeros, "int4w", [3, 2, 2, 2]).reshape(3, 8)
    for row in range(3):
        for at in range(8):
            group = at // 4
            want = (int(codes[row, at]) - int(zeros[row, group])) * float(scales[row, group])
            assert float(found[row, at]) == pytest.approx(want, abs=1e-6)


def test_ranges_found_now_are_those_of_onnx() -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    info = [onnx.helper.make_tensor_value_info(n, t, None) for n, t in (("y", 2), ("s", 1), ("z", 2))]
    graph = onnx.helper.make_graph([node], "g", [onnx.helper.make_tensor_value_info("x", 1, [None])], info)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    for x in (torch.randn(50), torch.rand(50) + 1, -torch.rand(50) - 1):
        y, s, z = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
        np.testing.assert_allclose(quantize_now(x).numpy(), (y.astype(np.float32) - z) * s, atol=1e-6)
    assert torch.equal(quantize_now(torch.zeros(4)), torch.zeros(4))


def test_a_packed_graph_is_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    module, x = net("conv")
    graph, task = capture(module, (x,)), task_of(x)
    method = WeightOnly("int4", symmetric=False)
    packed = method.apply(graph, method.plan(graph, task), Tools())
    save_graph(packed, tmp_path)
    back = load_graph(tmp_path)
    assert torch.equal(back(x), packed(x))
    assert precision_of(back) == "int4w"


def test_the_precision_of_a_graph_is_what_its_operations_say() -> None:
    module, x = net("mlp")
    graph, task = capture(module, (x,)), task_of(x)
    assert precision_of(graph) is None
    for method, want in ((Quantize(samples=64), "int8"), (Dynamic(), "int8d"), (WeightOnly("nf4"), "nf4w")):
        assert precision_of(method.apply(graph, method.plan(graph, task), Tools())) == want  # type: ignore[attr-defined]


def test_a_packed_graph_is_neither_cast_nor_given_back_as_a_class() -> None:
    module, x = net("mlp")
    graph = capture(module, (x,))
    method = WeightOnly("int8")
    packed = method.apply(graph, method.plan(graph, task_of(x)), Tools())
    with pytest.raises(PlanError, match="cannot be cast"):
        cast(packed, torch.bfloat16)
    with pytest.raises(PlanError, match="cannot be a MLP"):
        as_module(packed, like=module)


def test_a_weight_that_no_layer_multiplies_is_no_trouble() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.scale = nn.Linear(8, 8), nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) * self.scale

    x = torch.randn(4, 8)
    graph = capture(Scaled(), (x,))
    method = WeightOnly("int8")
    packed = method.apply(graph, method.plan(graph, task_of(x)), Tools())
    assert {name for name, _ in packed.named_parameters()} == {"a.bias", "scale"}
