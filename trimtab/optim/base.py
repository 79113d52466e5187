"""What all optimizers share: how settings become a `torch.optim.Optimizer`, and what is refused before any work.

Settings are frozen values; `build(model)` gives an object with `step`, `zero_grad`, `param_groups`, `state_dict` and
`load_state_dict` as torch's own have them, so that schedulers and checkpoints need not know whose it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from trimtab.errors import OptimizerError

Betas = tuple[float, float]
# What `build` gives torch: names with parameters, so that errors and state dicts can say which.
Groups = list[dict[str, Any]]


class Optimizer(Protocol):
    """The settings of an optimizer, as a frozen dataclass.

    full_batch: `step(closure)` asks for the loss over all data, several times, and searches along a line.
    schedule: how the learning rate goes unless somebody says otherwise, a name in `train.schedule.SCHEDULES`.
    """

    full_batch: ClassVar[bool]
    schedule: ClassVar[Literal["cosine", "constant"]]

    @property
    def lr(self) -> float: ...

    def build(self, model: nn.Module) -> torch.optim.Optimizer: ...


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda v: v > 0, "lr > 0"),
    "weight_decay": (lambda v: v >= 0, "weight_decay >= 0"),
    "momentum": (lambda v: 0 <= v < 1, "0 <= momentum < 1"),
    "alpha": (lambda v: 0 <= v < 1, "0 <= alpha < 1"),
    "betas": (lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v), "two betas in [0, 1)"),
    "eps": (lambda v: v > 0, "eps > 0"),
    "max_iter": (lambda v: v >= 1, "max_iter >= 1"),
    "history": (lambda v: v >= 1, "history >= 1"),
}


def check_settings(settings: Any) -> None:
    """Refuse values out of range.

    Raises:
        OptimizerError: names the optimizer, what was given and what is allowed.
    """
    for field in dataclasses.fields(settings):
        holds, expected = _RULES.get(field.name, (lambda _: True, ""))
        value = getattr(settings, field.name)
        if not holds(value):
            raise OptimizerError(
                f"{type(settings).__name__}({field.name}={value!r}) is out of range; give {expected}. "
                f"The default is {field.default!r}."
            )


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The named parameters that have `requires_grad`.

    Raises:
        OptimizerError: there are none, or one is complex, or an embedding gives sparse gradients.
    """
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
            raise OptimizerError(
                f"{name or type(part).__name__} gives sparse gradients, and no optimizer here takes them: make it "
                f"with {type(part).__name__}(..., sparse=False)."
            )
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise OptimizerError(
            f"{type(model).__name__} has no parameter to train: none has requires_grad. "
            "Call model.requires_grad_() or bring a model with weights."
        )
    for name, p in named:
        if p.is_complex():
            raise OptimizerError(
                f"{name} is {p.dtype}, and optimizers here take real numbers: keep the two parts as "
                "torch.view_as_real of it."
            )
    return named


def unbiased(lr: float, betas: Betas, step: int) -> tuple[float, float]:
    """Adam's corrections at a step, counted from 1: the rate for the mean of gradients, the factor of the root.

    >>> unbiased(0.1, (0.5, 0.75), 1)
    (0.2, 2.0)
    """
    beta1, beta2 = betas
    return lr / (1 - beta1**step), (1 - beta2**step) ** -0.5


def decay_groups(model: nn.Module, weight_decay: float) -> Groups:
    """Parameters that decay and those that do not: decay pulls to zero, where biases and norm scales need not be."""
    named = trainable(model)
    groups: Groups = [
        {"params": [(name, p) for name, p in named if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [(name, p) for name, p in named if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def dense(name: str, gradient: Tensor) -> Tensor:
    """The gradient, if it is dense.

    Raises:
        OptimizerError: it is sparse.
    """
    if gradient.layout != torch.strided:
        raise OptimizerError(
            f"The gradient of {name} is {gradient.layout}, and a dense one is needed: make its embedding with "
            "sparse=False, or call .to_dense() on the gradient."
        )
    return gradient


def changed(settings: Optimizer, **values: float | None) -> Optimizer:
    """The settings with other values, those of the inner optimizer where one wraps another; None changes nothing.

    Raises:
        OptimizerError: the optimizer has no such setting.

    Example:
        >>> from trimtab.optim.sgd import SGD
        >>> changed(SGD(), lr=0.5, weight_decay=None).lr
        0.5
    """
    given = {key: value for key, value in values.items() if value is not None}
    fields = {field.name for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    if "inner" in fields:
        return dataclasses.replace(settings, inner=changed(settings.inner, **given))  # type: ignore[attr-defined,type-var]
    for key in given:
        if key not in fields:
            raise OptimizerError(
                f"{type(settings).__name__} has no {key}, and {given[key]!r} was given for it: leave it out. Its "
                f"settings are {', '.join(sorted(fields))}."
            )
    return dataclasses.replace(settings, **given)  # type: ignore[type-var]
