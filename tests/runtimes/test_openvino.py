"""What is particular to OpenVINO: no telemetry, exact really exact, a new batch size compiled anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.nets import net
from trimtab.graph.capture import capture
from trimtab.runtimes import RUNTIMES, supported

pytest.importorskip("openvino")
OPENVINO = RUNTIMES["openvino"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino")
    module, x = net("resnet")
    OPENVINO.export(capture(module, (x,)), folder, precision="fp32", batch_size=1, threads=1)
    return folder


def test_weights_are_saved_in_full_precision(folder: Path) -> None:
    module, _ = net("resnet")
    num_weights = sum(weight.numel() for name, weight in module.named_parameters() if "bn" not in name)
    assert (folder / "model.bin").stat().st_size >= 4 * num_weights


def test_exact_forbids_bf16(folder: Path) -> None:
    if reason := supported("openvino", "bf16"):
        pytest.skip(reason)
    _, x = net("resnet")
    calls = {exact: OPENVINO.load(folder, precision="bf16", threads=1, exact=exact) for exact in (True, False)}
    full = OPENVINO.load(folder, precision="fp32", threads=1, exact=False)((x.numpy(),))
    assert np.array_equal(calls[True]((x.numpy(),)), full)
    assert not np.array_equal(calls[False]((x.numpy(),)), full)


def test_answers_outlive_later_calls_of_other_sizes(folder: Path) -> None:
    _, x = net("resnet")
    call = OPENVINO.load(folder, precision="fp32", threads=1, exact=False)
    first = call((x.numpy(),))
    kept = first.copy()
    for size in (1, 2, 3, 4):
        np.testing.assert_allclose(call((-x[:size].numpy(),)), call((-x.numpy(),))[:size], rtol=1e-4, atol=1e-5)
    assert np.array_equal(first, kept)


def test_a_sliced_input_is_read_right(folder: Path) -> None:
    _, x = net("resnet")
    call = OPENVINO.load(folder, precision="fp32", threads=1, exact=False)
    backwards = np.flip(x.numpy(), axis=3)
    assert np.array_equal(call((backwards,)), call((backwards.copy(),)))


def test_nothing_is_reported_or_written_at_home(tmp_path: Path) -> None:
    quiet = ("CI", "TF_BUILD", "JENKINS_URL")
    environment = {name: value for name, value in os.environ.items() if name not in quiet} | {"HOME": str(tmp_path)}
    code = (
        "import sys; from trimtab.runtimes import supported; supported('openvino', 'bf16');"
        "import openvino; print(sys.modules['openvino_telemetry'])"
    )
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "None"
    assert list(tmp_path.iterdir()) == []
