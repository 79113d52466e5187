"""Packed weights in OpenVINO's IR: constants of so many bits on disk, and answers that are the graph's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.compress.test_quantize import task_of
from tests.nets import net
from tests.runtimes.test_onnxpacked import wide
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Precision, Tools
from trimtab.graph.capture import capture
from trimtab.graph.packed import precision_of
from trimtab.runtimes import RUNTIMES

openvino = pytest.importorskip("openvino")
OPENVINO = RUNTIMES["openvino"]
KINDS = {"int4w": "i4", "nf4w": "nf4", "int8w": "i8", "fp8": "f8e4m3", "fp16": "f16"}


@pytest.mark.parametrize(
    "method",
    [
        WeightOnly("int4", group_size=16, symmetric=False),
        WeightOnly("int8"),
    ],
    ids=lambda method: method.name,
)
def test_constants_have_so_many_bits_and_answers_are_the_graphs(method: WeightOnly, tmp_path: Path) -> None:
    module, x = wide()
    graph = capture(module.eval(), (x,))
    packed = method.apply(graph, method.plan(graph, task_of(x)), Tools())
    precision: Precision = precision_of(packed)  # type: ignore[assignment]
    OPENVINO.export(packed, tmp_path, precision=precision, batch_size=4, threads=1)
    model = openvino.Core().read_model(tmp_path / "model.xml")
    kind = "u4" if not method.symmetric else KINDS[precision]
    kinds = [op.get_element_type().get_type_name() for op in model.get_ops() if op.get_type_name() == "Constant"]
    assert kinds.count(kind) == (2 if method.symmetric else 4)
    call = OPENVINO.load(tmp_path, precision=precision, threads=1, exact=True)
    np.testing.assert_allclose(call((x.numpy(),)), packed(x).detach().numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_file_of_convolutions_shrinks_with_the_bits(tmp_path: Path) -> None:
    module, x = net("resnet")
    method = WeightOnly("int4", symmetric=False)
    graph = capture(module, (x,))
    packed = method.apply(graph, method.plan(graph, task_of(x)), Tools())
    OPENVINO.export(packed, tmp_path, precision="int4w", batch_size=1, threads=1)
    num_weights = sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)
    assert (tmp_path / "model.bin").stat().st_size < num_weights
    call = OPENVINO.load(tmp_path, precision="int4w", threads=1, exact=True)
    np.testing.assert_allclose(call((x.numpy(),)), packed(x).detach().numpy(), rtol=1e-3, atol=1e-4)
