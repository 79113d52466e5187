"""What both halves of the benchmark do with a model: run steps that may fail, train one step, run in ONNX Runtime."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")
LEAST_CUT = 0.05  # a model counts as cut when this share of its parameters went
TOLERANCE = 1e-3  # of ONNX Runtime in float32, relative to the largest output
LEARNING_RATE = 0.01
LARGEST_GRADIENT = (
    1.0  # norm: random weights under BatchNorm on two small pictures would throw some models off, cut or not
)


class Failed(Exception):
    """A step of the benchmark did not come out as it should; the text says how."""


class Steps:
    """Runs the steps of one model, and keeps for each True or why it failed; `save` gets the record after each."""

    def __init__(self, record: dict[str, Any], columns: Sequence[str], save: Callable[[dict[str, Any]], None]) -> None:
        self.record = record
        self.save = save
        record.setdefault("columns", dict.fromkeys(columns, "not reached"))
        record.setdefault("seconds", {})
        save(record)

    def run(self, column: str, action: Callable[[], T]) -> T | None:
        """The result of `action`, or None where it failed."""
        self.record["columns"][column] = "did not end (time or memory)"
        self.save(self.record)
        start = time.perf_counter()
        result = None
        try:
            result = action()
            self.record["columns"][column] = True
        except Exception as error:  # noqa: BLE001 - any failure of a step is a result
            self.record["columns"][column] = reason(error)
            self.record.setdefault("tracebacks", {})[column] = traceback.format_exc()[-3000:]
        self.record["seconds"][column] = round(time.perf_counter() - start, 2)
        self.save(self.record)
        return result


def reason(error: BaseException) -> str:
    """An error in one text."""
    return str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"


def num_params(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(p.numel() for p in module.parameters())


def counted_macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates of one sample, counted by PyTorch while it runs; recurrent layers are not in it."""
    model = copy.deepcopy(module).requires_grad_(requires_grad=False)  # the counter fails on some weights that train
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return int(counter.get_total_flops() // 2 // inputs[0].shape[0])


def check_cut(before: int, after: int) -> None:
    """Fail if too few parameters went.

    Raises:
        Failed: less than LEAST_CUT went.
    """
    if after > (1 - LEAST_CUT) * before:
        raise Failed(f"only {1 - after / before:.1%} of the parameters went ({before:,} -> {after:,})")


def train_one_step(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """One clipped step of SGD on a copy: loss, gradients, next output must be finite, and weights must move.

    Raises:
        Failed: one of these does not hold.
    """
    model = copy.deepcopy(module).train()
    params = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in params]
    out = model(*inputs).float()
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    loss = (out - target).square().mean()
    loss.backward()
    bad = [p for p in params if p.grad is not None and not p.grad.isfinite().all()]
    if not loss.isfinite() or bad:
        raise Failed(f"the loss is {loss.item():g}, and {len(bad)} gradients are not finite")
    nn.utils.clip_grad_norm_(params, LARGEST_GRADIENT)
    torch.optim.SGD(params, lr=LEARNING_RATE).step()
    if all(torch.equal(old, new) for old, new in zip(before, params, strict=True)):
        raise Failed("no weight moved")
    with torch.no_grad():
        if not model.eval()(*inputs).isfinite().all():
            raise Failed("the output is not finite after the step")


def check_agrees(got: Any, expected: Tensor, *, tolerance: float, what: str) -> None:
    """Fail unless two outputs agree relative to the largest expected one.

    Raises:
        Failed: they have other shapes, or differ.
    """
    got = torch.as_tensor(got)
    if got.shape != expected.shape:
        raise Failed(f"{what} gives {tuple(got.shape)} where {tuple(expected.shape)} was expected")
    error = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not error <= tolerance:
        raise Failed(f"{what} is {error:.1e} off, relative to the largest output")


def in_onnxruntime(path: Path, inputs: tuple[Tensor, ...]) -> Any:
    """The first output of an ONNX file in ONNX Runtime, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]
