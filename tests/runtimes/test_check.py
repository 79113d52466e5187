"""Agreement in figures, and its refusal."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.nets import net
from trimtab.errors import RuntimeFailed
from trimtab.graph.capture import capture
from trimtab.graph.modes import frozen_modes
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.check import TOLERANCE, Agreement, Rounded, agree, compare, require_agreement, within_tolerance


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


class Bent(nn.Module):
    """[B, 4] -> [B, 4]: a logistic map in its chaotic range, whose rounding grows with every turn."""

    def __init__(self, turns: int, rate: float) -> None:
        super().__init__()
        self.turns, self.rate = turns, rate

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.turns):
            x = self.rate * x * (1 - x)
        return x


@pytest.mark.parametrize(("turns", "taken"), [(20, True), (60, False)])
def test_what_rounding_alone_moves_may_be_off_by_as_much_and_no_more(turns: int, taken: bool, tmp_path: Path) -> None:
    x = torch.rand(32, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    graph, almost = (capture(Bent(turns, rate), (x,)) for rate in (3.9, 3.9 * (1 + 4e-7)))
    runtime = RUNTIMES["onnxruntime"]
    runtime.export(almost, tmp_path, precision="fp32", batch_size=1, threads=1)
    found = agree(graph, runtime, tmp_path, precision="fp32", inputs=(x.numpy(),))
    assert found.relative_l2 > 5 * TOLERANCE["fp32"]
    assert found.noise > found.relative_l2 / 2
    if taken:
        assert within_tolerance(found) is found
    else:
        assert found.allowed == 0.5
        with pytest.raises(RuntimeFailed, match=r"allowed 5\.0e-01"):
            within_tolerance(found)


def test_rounding_to_bf16_is_tried_on_weights_and_results_alike() -> None:
    module, x = net("mlp")
    graph = frozen_modes(capture(module, (x,)))
    with torch.no_grad():
        exact, rounded, noisy = graph(x), Rounded(graph, "bf16").run(x), Rounded(graph, "int8").run(x)
        held = copy.deepcopy(graph).bfloat16()(x.bfloat16()).float()
    off = compare(exact.numpy(), rounded.numpy(), runtime="eager", precision="bf16").relative_l2
    assert off == pytest.approx(
        compare(exact.numpy(), held.numpy(), runtime="eager", precision="bf16").relative_l2, rel=0.5
    )
    assert 1e-7 < compare(exact.numpy(), noisy.numpy(), runtime="eager", precision="int8").relative_l2 < 1e-5
