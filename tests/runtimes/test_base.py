"""Names, what is missing, what is not supported, signatures."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.nets import net
from trimtab.errors import GoalError, RuntimeFailed, RuntimeMissing
from trimtab.graph.capture import capture
from trimtab.runtimes import RUNTIMES, find_runtime, supported
from trimtab.runtimes.base import Input, Signature, read_signature, write_signature

SIGNATURE = Signature("onnxruntime", 2, (Input("a", (3,), "float32"), Input("b", (), "int64")))


def test_names_are_the_keys() -> None:
    assert {name: runtime.name for name, runtime in RUNTIMES.items()} == {name: name for name in RUNTIMES}


def test_an_unknown_runtime_lists_the_known_ones() -> None:
    with pytest.raises(GoalError, match=r"'tensorrt'.*eager, inductor, onnxruntime, openvino"):
        find_runtime("tensorrt")


@pytest.mark.parametrize(
    ("name", "command"),
    [("onnxruntime", "pip install onnxruntime"), ("openvino", 'pip install "trimtab[openvino]"')],
)
def test_a_missing_runtime_names_the_command(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else found(module))
    module, x = net("mlp")
    assert command in (RUNTIMES[name].missing(serving=True) or "")
    with pytest.raises(RuntimeMissing, match="is not installed") as caught:
        RUNTIMES[name].export(capture(module, (x,)), tmp_path, precision="fp32", batch_size=1, threads=1)
    assert command in str(caught.value)


def test_missing_exporters_matter_to_export_and_not_to_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if "onnxs" in module else found(module))
    assert "pip install onnxscript" in (RUNTIMES["onnxruntime"].missing() or "")
    assert RUNTIMES["onnxruntime"].missing(serving=True) is None


def test_inductor_without_a_compiler_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install g++" in (RUNTIMES["inductor"].missing() or "")
    assert RUNTIMES["inductor"].missing(serving=True) is None


def test_a_precision_that_a_runtime_never_has_is_refused_with_those_it_has() -> None:
    assert supported("onnxruntime", "bf16") == (
        "onnxruntime has no bf16 here; it has fp32, int8, int8d, int8w, int4w, nf4w, fp8, fp16. "
        "bf16 runs in eager, inductor, openvino."
    )
    assert supported("onnxruntime", "int8") is None


def test_bf16_without_the_instructions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert "has no bf16 on this CPU" in (supported("eager", "bf16") or "")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert supported("eager", "bf16") is None


def test_a_signature_survives_its_file(tmp_path: Path) -> None:
    module, x = net("conv")
    assert write_signature(capture(module, (x,)), tmp_path, runtime="eager", batch_size=4) == "signature.json"
    assert read_signature(tmp_path) == Signature("eager", 4, (Input("x", (1, 12, 12), "float32"),))


@pytest.mark.parametrize("text", [None, "", "[]", json.dumps({"runtime": "eager", "inputs": []})])
def test_a_folder_without_a_readable_signature_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "signature.json").write_text(text)
    with pytest.raises(RuntimeFailed, match="holds no exported model"):
        read_signature(tmp_path)


def test_fitting_inputs_pass() -> None:
    assert SIGNATURE.check((np.zeros((4, 3), np.float32), np.zeros(4, np.int64))) is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((np.zeros((4, 3), np.float32),), r"takes 2 input\(s\) \(a, b\); 1 were given"),
        ((np.zeros((4, 2), np.float32), np.zeros(4, np.int64)), r"'a' is float32 \[4, 2\]; .* float32 \[B, 3\]"),
        ((np.zeros((4, 3)), np.zeros(4, np.int64)), r"'a' is float64 .*astype"),
        ((np.zeros((4, 3), np.float32), np.int64(4).reshape(())), r"'b' is int64 \[\]; .* int64 \[B\]"),
        ((np.zeros((4, 3), np.float32), np.zeros(5, np.int64)), r"same number .* got \[4, 5\]"),
        ((np.zeros((0, 3), np.float32), np.zeros(0, np.int64)), r"at least one; got \[0\]"),
    ],
)
def test_inputs_that_do_not_fit_are_told_what_would(inputs: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(RuntimeFailed, match=message):
        SIGNATURE.check(inputs)


def test_importing_the_runtimes_imports_none_of_them() -> None:
    code = (
        "import sys, trimtab.runtimes, trimtab.runtimes.worker;"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'openvino') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
