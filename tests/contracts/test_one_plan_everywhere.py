"""One int8 plan, as JSON, gives every runtime that takes int8 a file with the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import cattrs
import pytest

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.quantize import Quantize, QuantizePlan
from trimtab.core import Target, Tools
from trimtab.graph.capture import capture
from trimtab.measure.machine import stamp
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.check import agree
from trimtab.runtimes.evaluate import export_checked

# Without VNNI the kernels add pairs of 8-bit products in 16 bits, which saturate; with it they are exact.
EXACT_INTEGERS = any("vnni" in feature for feature in stamp()["features"])
TOLERANCE = 0.02 if EXACT_INTEGERS else 0.08
INTEGER_RUNTIMES = [name for name, runtime in RUNTIMES.items() if "int8" in runtime.precisions]


@pytest.mark.parametrize("name", ["conv", "resnet", "mlp"])
@pytest.mark.parametrize(
    "runtime", [pytest.param(n, marks=[pytest.mark.slow] if n == "inductor" else []) for n in INTEGER_RUNTIMES]
)
def test_the_same_plan_runs_in_every_runtime(name: str, runtime: str, tmp_path: Path) -> None:
    module, x = net(name)
    graph, task = capture(module, (x,)), task_of(x)
    method = Quantize(samples=128)
    stored = json.dumps(cattrs.unstructure(method.plan(graph, task)))
    quantized = method.apply(graph, cattrs.structure(json.loads(stored), QuantizePlan), Tools())
    inputs = (task.select.inputs[0].numpy(),)
    export_checked(quantized, RUNTIMES[runtime], tmp_path, precision="int8", inputs=inputs, target=Target())
    found = agree(quantized, RUNTIMES[runtime], tmp_path, precision="int8", inputs=inputs)
    assert found.relative_l2 < TOLERANCE
    assert found.argmax > 0.95


def test_at_least_three_runtimes_take_integers() -> None:
    assert set(INTEGER_RUNTIMES) >= {"inductor", "onnxruntime", "openvino"}
