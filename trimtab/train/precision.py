"""What a training step is fastest in, on this machine and for this model: bf16 or fp32, channels last or first."""

from __future__ import annotations

import contextlib
import copy
import time
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.tasks.check import evaluating
from trimtab.train.fp8 import Fp8

MIN_GAIN = 1.05
# A 1 x 1 convolution of fewer channels must not train in channels last: see `breaks_in_channels_last`.
MIN_CHANNELS_OF_1X1 = 8
ROUNDS, FAR_SLOWER = 5, 2.0
LEAST_TIMED = 2  # BatchNorm wants more than one sample


def pick_precision(model: nn.Module, inputs: tuple[Tensor, ...]) -> Literal["fp32", "bf16"]:
    """bf16 autocast if it makes a forward and backward pass more than 5 % faster, else fp32.

    The two are timed in turn, on a copy, and their medians compared. Cost: 12 passes, after 4 on an eighth of the
    batch; those 4 alone where bf16 takes far longer than fp32, as on CPUs that emulate it.

    Args:
        model: returns one tensor; left as it was.
        inputs: a training batch, each [B, ...].
    """
    trial = copy.deepcopy(model).train()
    few = tuple(x[: max(LEAST_TIMED, len(x) // 8)] for x in inputs)
    with torch.random.fork_rng(devices=[]):
        try:
            if _gain(trial, few, rounds=1) < 1 / FAR_SLOWER:
                return "fp32"
            return "bf16" if _gain(trial, inputs, rounds=ROUNDS) > MIN_GAIN else "fp32"
        except RuntimeError:
            # An operation without a bf16 kernel; fp32 is the one that must run, and the training loop will tell.
            return "fp32"


def autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context that a forward pass in `precision` needs."""
    if precision == "fp8":
        return Fp8()
    if precision == "fp32" and not torch.is_autocast_enabled("cpu"):
        return contextlib.nullcontext()  # entering and leaving one that does nothing costs 1 % of a short step
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast("cpu", dtype=dtype, enabled=precision in ("bf16", "fp16"))


def channels_last_(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Lay convolution weights out channels last, as CPU kernels like them, unless the model then fails or may crash.

    The values do not change. A rule and not a measurement, so that equal runs stay bit-identical; on two x86 cores
    it made training steps of small CNNs 1.1 to 1.4 times as fast.

    Returns:
        Whether anything changed; `lay_out_` takes it back.
    """
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    if not weights or not all(weight.is_contiguous() for weight in weights):
        return False
    if breaks_in_channels_last(model):
        return False
    lay_out_(model, torch.channels_last)
    try:
        with evaluating(model), torch.inference_mode():
            model(*(x[:2] for x in inputs))
    except RuntimeError:
        # `x.view(...)` demands the layout it was written for.
        lay_out_(model, torch.contiguous_format)
        return False
    return True


def breaks_in_channels_last(model: nn.Module) -> bool:
    """Whether a backward pass in channels last may corrupt the process's memory (`free(): invalid next size`).

    In oneDNN 3.12, which torch 2.13 has, that of a strided 1 x 1 convolution of fewer than 8 channels does, on CPUs
    with AVX2 and no AVX-512. The shortcuts of a pruned ResNet are such. Strides are not seen here: any counts.
    """
    kernels = [parameter.shape for parameter in model.parameters() if parameter.ndim == 4]
    return any(shape[2:] == (1, 1) and shape[1] < MIN_CHANNELS_OF_1X1 for shape in kernels)


def channels_first(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same values with the strides of their shape; `contiguous()` leaves a single channel's as they are."""
    return tuple(x.clone(memory_format=torch.contiguous_format) if x.ndim == 4 else x for x in inputs)


def lay_out_(model: nn.Module, layout: torch.memory_format) -> None:
    """Keep every 4-D weight in `layout`; the values do not change."""
    model.to(memory_format=layout)  # type: ignore[call-overload]


def _gain(model: nn.Module, inputs: tuple[Tensor, ...], *, rounds: int) -> float:
    """The median time in fp32 over that in bf16, timed in turn; the first pass of each only warms up."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds + 1):
        for bf16, spent in seconds.items():
            spent.append(_seconds(model, inputs, bf16=bf16))
    return median(seconds[False][1:]) / median(seconds[True][1:])


def _seconds(model: nn.Module, inputs: tuple[Tensor, ...], *, bf16: bool) -> float:
    begin = time.perf_counter()
    with autocast("bf16" if bf16 else "fp32"):
        outputs = model(*inputs)
    outputs.float().square().mean().backward()
    return time.perf_counter() - begin
