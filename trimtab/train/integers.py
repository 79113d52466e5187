"""Training with integer weights: each weight lives as int8 with a scale per channel, and every write rounds by chance.

Gupta et al. 2015, "Deep Learning with Limited Numerical Precision": a value between two integers becomes the upper one
with the probability of its distance from the lower one, so that updates smaller than a step are not lost but right on
average. Zhang et al. 2024, "Q-GaLore": int8 weights that are updated in this way, with no floating-point copy. Differs:
a channel's scale is not chosen anew at each update, which would round weights that did not move; it doubles when a
weight leaves the 127 integers, and halves (which is exact) when the largest falls below the 48th. Gradients and the
optimizer's state stay in floating point. Cost: each read of a weight makes a float tensor that is freed again, each
step draws a random number a weight, a write adds noise of up to a level, and weights are never laid out channels last.

It lives here, not among the methods of `compress`: those change a graph once, and this is how a module is trained.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from trimtab.errors import TaskError

M = TypeVar("M", bound=nn.Module)
aten = torch.ops.aten
# The largest integer; where the largest weight of a channel begins, to have room to grow; where its scale halves.
TOP, START, LOW = 127, 96, 48
SMALLEST = 1e-12
ALIASES = (aten.detach.default, aten.alias.default)


class IntegerWeight(Tensor):
    """A tensor that reads as float32, `levels * scale`, and holds only these two.

    It is written as a whole: a part or a view of it (`weight[0]`) is a copy in floats, and writing there is lost.

    levels: int8 [C, ...].
    scale: float32 [C, 1, ...].
    """

    levels: Tensor
    scale: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, levels: Tensor, scale: Tensor) -> IntegerWeight:
        return Tensor._make_wrapper_subclass(  # type: ignore[no-any-return, attr-defined]
            cls, levels.shape, strides=levels.stride(), dtype=scale.dtype, device=levels.device
        )

    def __init__(self, levels: Tensor, scale: Tensor) -> None:
        self.levels, self.scale = levels, scale

    @classmethod
    def of(cls, values: Tensor) -> IntegerWeight:
        """The nearest integers of floats [C, ...]."""
        scale = _largest(values).div_(START).clamp_min_(SMALLEST)
        return cls((values / scale).round_().to(torch.int8).contiguous(), scale)

    def floats(self) -> Tensor:
        """The values as an ordinary tensor of its own."""
        return self.levels * self.scale

    def write_(self, values: Tensor) -> None:
        """Hold `values` from now on, rounded by chance to the integers around each.

        P(level = floor(v) + 1) = v - floor(v) with v = value / scale: the expected level is v. Draws from the global
        generator. NaN and infinity make the channel NaN.
        """
        largest = _largest(values)
        filled = largest / (self.scale * TOP)
        doublings = torch.where(filled > 1, filled.log2().ceil(), -(filled < LOW / TOP).float())
        doublings = torch.where((doublings < 0) & (self.scale < SMALLEST), 0, doublings)
        # 0 * largest is 0, or NaN: what is not finite must not hide behind integers.
        self.scale.copy_(torch.ldexp(self.scale, doublings) + 0 * largest)
        steps = values / self.scale
        below = steps.floor()
        chance = steps.sub_(below)
        self.levels.copy_(below.add_(torch.rand_like(chance) < chance).clamp_(-TOP, TOP))

    def __deepcopy__(self, memo: dict[int, Any]) -> IntegerWeight:
        """A copy of both parts; as `nn.Parameter` does, without the gradient."""
        copied: Tensor = IntegerWeight(self.levels.clone(), self.scale.clone())
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=self.requires_grad)
        return memo.setdefault(id(self), copied)  # type: ignore[no-any-return]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Values as floats."""
        return f"IntegerWeight({self.floats()})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """What it is made of, as torch asks for it."""
        return ["levels", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], _: Any, __: Any, ___: Any) -> IntegerWeight:
        """The inverse of `__tensor_flatten__`."""
        return cls(parts["levels"], parts["scale"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run `func` on floats; what it wrote into is rounded back."""
        kwargs = kwargs or {}
        if func in ALIASES:
            return cls(args[0].levels, args[0].scale)
        relaid = func is aten._to_copy.default and kwargs.get("dtype") in (None, args[0].dtype)
        if func is aten.clone.default or relaid:
            # Always in plain order: a fused optimizer walks weight and gradient side by side through memory.
            return cls(args[0].levels.clone(), args[0].scale.clone())
        if func is aten.copy_.default and isinstance(args[0], cls) and isinstance(args[1], cls):
            args[0].levels.copy_(args[1].levels)
            args[0].scale.copy_(args[1].scale)
            return args[0]
        floats: dict[int, Tensor] = {}

        def opened(value: Any) -> Any:
            return floats.setdefault(id(value), value.floats()) if isinstance(value, cls) else value

        result = func(*tree_map(opened, args), **tree_map(opened, kwargs))
        written = _written(func, args, kwargs) if func._schema.is_mutable else []
        for weight in written:
            weight.write_(floats[id(weight)])
        names = {id(floats[id(weight)]): weight for weight in written}
        return tree_map(lambda value: names.get(id(value), value), result)


def _written(func: Any, args: Any, kwargs: Any) -> list[IntegerWeight]:
    """The integer weights among the arguments that `func` writes into."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    changed = [
        given[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in given
    ]
    many = [value for one in changed for value in (one if isinstance(one, list | tuple) else [one])]
    return [value for value in many if isinstance(value, IntegerWeight)]


def _largest(values: Tensor) -> Tensor:
    """The largest absolute value of each channel, [C, 1, ...]."""
    return values.abs().amax(tuple(range(1, values.ndim)), keepdim=True)


def integer_weights_(model: M) -> M:
    """Keep every trainable weight of two or more dims as int8 with a scale per channel (dim 0); returns `model`.

    They read as floats, so any model, loss and optimizer goes on as before; `fit` and `training` resume it bit by bit.
    Biases and the scales of norms stay floats. An optimizer that was made before holds the old weights: make it after.

    Args:
        model: float32, changed in place.

    Raises:
        TaskError: nothing can become integers, or a weight holds NaN or inf.

    Example:
        >>> model = integer_weights_(nn.Linear(64, 10))
        >>> model.weight.levels.dtype, model.weight.scale.shape, model.bias.dtype
        (torch.int8, torch.Size([10, 1]), torch.float32)
    """
    fitting = {name: parameter for name, parameter in model.named_parameters() if _fits(parameter)}
    if not fitting:
        raise TaskError(
            f"{type(model).__name__} has no trainable float32 weight of two or more dims that could become integers. "
            "Call model.float().requires_grad_() first; what is integers already stays so."
        )
    for name, parameter in fitting.items():
        if not parameter.detach().isfinite().all():
            raise TaskError(f"The weight {name} holds NaN or inf, so it has no scale. Load or train the model anew.")
    _replace_(model, {parameter: IntegerWeight.of(parameter.detach()) for parameter in fitting.values()})
    return model


def _fits(parameter: Tensor) -> bool:
    floats = parameter.dtype == torch.float32 and not isinstance(parameter, IntegerWeight)
    return floats and parameter.requires_grad and parameter.ndim > 1


def float_weights_(model: M) -> M:
    """The inverse of `integer_weights_`: the same values in ordinary weights, for what needs these; returns `model`."""
    integer = [parameter for parameter in model.parameters() if isinstance(parameter, IntegerWeight)]
    _replace_(model, {parameter: parameter.floats() for parameter in integer})
    return model


def _replace_(model: nn.Module, values: dict[Tensor, Tensor]) -> None:
    # One new parameter for each old one: tied weights stay tied.
    made = {id(old): nn.Parameter(new, requires_grad=old.requires_grad) for old, new in values.items()}
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) in made:
                part._parameters[name] = made[id(parameter)]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, an integer weight as `name.levels` and `name.scale`: all that a file must keep.

    They are the model's own: what is copied into them is in the model.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = {name: tensor for name, tensor in named.items() if not isinstance(tensor, IntegerWeight)}
    integer = {name: tensor for name, tensor in named.items() if isinstance(tensor, IntegerWeight)}
    return (
        plain
        | {f"{name}.levels": weight.levels for name, weight in integer.items()}
        | {f"{name}.scale": weight.scale for name, weight in integer.items()}
    )
