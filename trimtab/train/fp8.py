"""Training in fp8 (Micikevicius et al. 2022), emulated: what it does to a training, on machines without it.

Linear layers take inputs and weights rounded to e4m3, and gradients rounded to e5m2,
each tensor with a scale that puts its largest magnitude at the format's largest: q(x) = s * fp8(x / s). Products add up
in fp32, as tensor cores do; weights, their updates and everything else stay fp32. Rounding passes gradients through.
What differs from a GPU's: nothing is faster. The products are fp32 ones of rounded numbers.
Cost: five roundings a layer and step; a step takes longer than in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trimtab.errors import TaskError

LINEAR = (F.linear, torch.ops.aten.linear.default)  # of modules, and of captured graphs


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` with the values that fp8 of one scale has, as fp32; not finite values make all NaN.

    Args:
        x: any shape.
        dtype: torch.float8_e4m3fn, or torch.float8_e5m2, which reaches further and has fewer digits.

    Example:
        >>> rounded(torch.tensor([0.0, 0.3, 1.0]), torch.float8_e4m3fn)
        tensor([0.0000, 0.2857, 1.0000])
    """
    x = x.float()
    scale = x.abs().amax().clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(dtype).max
    return (x / scale).to(dtype).float() * scale


class _Linear(torch.autograd.Function):
    """y = q(x) q(w)^T, and both gradients from q of what they multiply."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = rounded(x, torch.float8_e4m3fn), rounded(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = rounded(grads[0], torch.float8_e5m2)
        flat = grad.reshape(-1, grad.shape[-1])
        return grad @ weight, flat.T @ x.reshape(-1, x.shape[-1])


class Fp8(TorchFunctionMode):
    """While it lasts, linear layers round as fp8 does; convolutions and attention's products stay as they are.

    Raises:
        TaskError: at its end, no linear layer ran; or tensors are not on the CPU.
    """

    _met = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in LINEAR:
            return func(*args, **(kwargs or {}))
        self._met = True
        return _linear(*args, **(kwargs or {}))

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if raised[0] is None and not self._met:
            raise TaskError(
                "Fit(precision='fp8') rounds what linear layers multiply, and the model has none. Take 'bf16'."
            )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.device.type != "cpu":
        raise TaskError(
            f"Fit(precision='fp8') is emulated on the CPU, and the model is on {input.device}. Tensor cores for fp8 "
            "are in NVIDIA GPUs of compute capability 8.9 and more (Ada, Hopper, Blackwell); they are not used yet. "
            "Take 'bf16'."
        )
    y: Tensor = _Linear.apply(input, weight)
    return y if bias is None else y + bias
