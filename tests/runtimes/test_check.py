"""Agreement in figures, and its refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.nets import net
from trimtab.errors import RuntimeFailed
from trimtab.graph.capture import capture
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.check import TOLERANCE, Agreement, agree, compare, require_agreement, within_tolerance


def test_the_figures_are_what_they_say() -> None:
    expected = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    found = compare(expected, expected + np.float32([[0, 0], [0.5, 0]]), runtime="eager", precision="fp32")
    assert found == Agreement("eager", "fp32", pytest.approx(0.1), pytest.approx(0.5), 1.0, 2)
    assert compare(expected, expected[::-1], runtime="eager", precision="fp32").argmax == 0.0


def test_other_shapes_are_refused() -> None:
    with pytest.raises(RuntimeFailed, match=r"\(2, 1\); the graph's is \(2, 3\)"):
        compare(np.zeros((2, 3)), np.zeros((2, 1)), runtime="eager", precision="fp32")


@pytest.mark.parametrize("precision", TOLERANCE)
def test_tolerances_hold_on_both_sides(precision: str) -> None:
    at = TOLERANCE[precision]
    good, bad = (Agreement("eager", precision, at * factor, 0.25, 0.5, 8) for factor in (0.99, 1.01))
    assert within_tolerance(good) is good
    with pytest.raises(
        RuntimeFailed, match=rf"eager {precision} does not answer .* 2.50e-01, same decision on 50.0% of 8"
    ):
        within_tolerance(bad)


def test_nan_never_agrees() -> None:
    with pytest.raises(RuntimeFailed, match="relative L2 nan"):
        within_tolerance(compare(np.ones((2, 3)), np.array([[1, 1, np.nan]] * 2), runtime="openvino", precision="int8"))


def test_a_file_of_other_weights_is_caught(tmp_path: Path) -> None:
    (module, x), (other, _) = net("mlp"), net("mlp", seed=1)
    runtime, graph = RUNTIMES["onnxruntime"], capture(module, (x,))
    runtime.export(graph, tmp_path, precision="fp32", batch_size=1, threads=1)
    inputs = (x.numpy(),)
    assert agree(graph, runtime, tmp_path, precision="fp32", inputs=inputs).relative_l2 < 1e-5
    with pytest.raises(RuntimeFailed, match="does not answer as the graph does"):
        require_agreement(capture(other, (x,)), runtime, tmp_path, precision="fp32", inputs=inputs)


def test_a_graph_in_train_mode_is_compared_as_it_is_served(tmp_path: Path) -> None:
    module, x = net("conv")
    runtime, graph = RUNTIMES["onnxruntime"], capture(module, (x,)).train()
    runtime.export(graph, tmp_path, precision="fp32", batch_size=1, threads=1)
    torch.manual_seed(0)
    assert require_agreement(graph, runtime, tmp_path, precision="fp32", inputs=(x.numpy(),)).n == 4
    assert graph.training
