"""Schedule-free AdamW and SGD (Defazio 2024, "The road less scheduled"): an average in place of a decaying rate.

Gradients are taken at y, between the fast z and its running average x; x is what one evaluates. The weights hold y
while the model trains and x while it is evaluated. Differs from the paper's code: the switch happens by itself, in
the model's next forward pass, and cannot be forgotten; it is exact in both directions, as y is kept while x is in
place; BatchNorm's statistics, which belong to y, are taken anew for x, or the pass is refused; biases and norm scales
do not decay. Cost: as AdamW or SGD, with one more read and write a weight; state: z, and for AdamW the squares.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from trimtab.errors import OptimizerError
from trimtab.optim.base import Betas, check_settings, decay_groups
from trimtab.optim.flat import Closure, Flat, fused_adamw_

# Gives some batches of training inputs, each a tuple of tensors [B, ...].
Calibration = Callable[[], Iterable[tuple[Tensor, ...]]]


@dataclass(frozen=True)
class ScheduleFreeAdamW:
    """u = g / (sqrt(v) + eps) + weight_decay y;  z <- z - lr u;  x <- (1 - c) x + c z;  y = (1 - beta1) z + beta1 x.

    c = w_t / sum of w, w_t the square of the highest rate so far, so that a warm-up counts little. The defaults are
    the best single setting over the workloads of AlgoPerf (Dahl 2023).

    Args:
        lr: constant after a warm-up.
        betas: how near y is to x, and how slowly the squares are forgotten.
        eps: keeps the division finite.
        weight_decay: at y, of weights with two or more dims.
        compiled: one pass by torch.compile; needs a C++ compiler.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = ScheduleFreeAdamW().build(model)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> _ = model.eval()(torch.ones(1, 2))  # of the averaged weights
        >>> optimizer.averaged
        True
    """

    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "constant"

    lr: float = 2.5e-3
    betas: Betas = (0.9, 0.9955)
    eps: float = 1e-8
    weight_decay: float = 0.0812
    compiled: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        _refuse_no_average("betas[0]", self.betas[0])

    def build(self, model: nn.Module) -> ScheduleFree:
        """Over the model's trainable parameters; the model's forward passes switch the weights from now on."""
        defaults = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        return ScheduleFreeAdamWOptimizer(model, self.weight_decay, defaults, compiled=self.compiled)


@dataclass(frozen=True)
class ScheduleFreeSGD:
    """z <- z - lr (g + weight_decay y);  x <- (1 - c) x + c z;  y = (1 - momentum) z + momentum x.

    Args:
        lr: constant after a warm-up; larger than that of SGD with momentum.
        momentum: how near y is to x.
        weight_decay: at y, of weights with two or more dims.
        compiled: one pass by torch.compile; needs a C++ compiler.

    Raises:
        OptimizerError: a setting is out of range.

    Example:
        >>> ScheduleFreeSGD(lr=0.5).build(nn.Linear(2, 1)).averaged
        False
    """

    full_batch: ClassVar[bool] = False
    schedule: ClassVar[Literal["cosine", "constant"]] = "constant"

    lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    compiled: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        _refuse_no_average("momentum", self.momentum)

    def build(self, model: nn.Module) -> ScheduleFree:
        """Over the model's trainable parameters; the model's forward passes switch the weights from now on."""
        defaults = {"lr": self.lr, "betas": (self.momentum, 0.0)}
        return ScheduleFreeSGDOptimizer(model, self.weight_decay, defaults, compiled=self.compiled)


class ScheduleFree(Flat):
    """What both build. `calibration` gives inputs for BatchNorm; set it if the model has any.

    `eval` and `train` switch the weights; forward passes call them, by the model's mode. `finish` ends the training:
    the averaged weights stay, and forward passes are free again.
    """

    def __init__(self, model: nn.Module, decay: float, defaults: dict[str, Any], *, compiled: bool) -> None:
        defaults |= {"step": 0, "weight_sum": 0.0, "lr_max": 0.0, "averaged": False}
        super().__init__(decay_groups(model, decay), defaults, compiled=compiled)
        self.calibration: Calibration | None = None
        self._model = model
        self._switch = _Switch(self)
        self._handle = model.register_forward_pre_hook(self._switch)

    @property
    def averaged(self) -> bool:
        """Whether the weights hold x, the average; else they hold y, where gradients are taken."""
        return bool(self.param_groups[0]["averaged"])

    def begin_state(self, slot: str, p: Tensor) -> Tensor:
        """Let z start where the weights do."""
        return p.to(super().begin_state(slot, p).dtype, copy=True) if slot == "z" else super().begin_state(slot, p)

    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; returns the closure's loss.

        Raises:
            OptimizerError: the weights are the averaged ones, so the gradient is not that of y.
        """
        if self.averaged and closure is None:
            raise OptimizerError(
                "A step was asked for while the weights are the averaged ones, so the gradient is not of the point "
                "that learns. Run the forward pass with model.train(), or call optimizer.train() before it."
            )
        self.train()
        return super().step(closure)

    @torch.no_grad()
    def train(self) -> None:
        """Let the weights be y."""
        if self.averaged:
            for p in self._moved():
                p.copy_(self.state[p].pop("y"))
            self._mark(averaged=False)

    @torch.no_grad()
    def eval(self) -> None:
        """Let the weights be x, with statistics of BatchNorm that belong to them.

        Raises:
            OptimizerError: the model has BatchNorm, and there is no `calibration`.
        """
        if self.averaged:
            return
        norms = [*_norms(self._model), *_graph_norms(self._model)]
        moved = self._moved()
        if norms and moved and self.calibration is None:
            raise OptimizerError(
                f"{type(self._model).__name__} has BatchNorm, whose statistics belong to the weights that train, not "
                "to the averaged ones. Give the optimizer some training inputs to take them anew: "
                "optimizer.calibration = lambda: [(x[:200],), (x[200:400],)]."
            )
        for p in moved:
            beta = next(group["betas"][0] for group in self.param_groups if any(p is one for one in group["params"]))
            self.state[p]["y"] = p.clone()
            z = self.state[p]["z"]
            p.copy_(torch.lerp(p.to(z.dtype), z, 1 - 1 / beta))
        self._mark(averaged=True)
        if norms and moved and self.calibration is not None:
            self._switch.rests = True  # a captured graph takes statistics in train mode
            try:
                recalibrate_(self._model, self.calibration())
            finally:
                self._switch.rests = False

    def finish(self) -> None:
        """Leave the averaged weights in place for good."""
        self.eval()
        self._handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; the model must have the weights of the same moment."""
        super().load_state_dict(state_dict)
        self._mark(averaged=self.averaged)

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """Count the step; its rate, decay, beta, the weight c of z in the average, and that of z in the new y."""
        group["step"] += 1
        group["lr_max"] = max(group["lr"], group["lr_max"])
        weight = group["lr_max"] ** 2
        group["weight_sum"] += weight
        c = weight / group["weight_sum"] if weight else 0.0
        beta = group["betas"][0]
        return (group["lr"], group["weight_decay"], beta, c, 1 - beta * (1 - c))

    def _moved(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if "z" in self.state[p]]

    def _mark(self, *, averaged: bool) -> None:
        self._switch.averaged = averaged
        for group in self.param_groups:
            group["averaged"] = averaged


class ScheduleFreeAdamWOptimizer(ScheduleFree):
    """What `ScheduleFreeAdamW` builds."""

    slots = ("z", "exp_avg_sq")

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """Also eps, the step's number, the second beta, what it is short of 1, and what undoes the bias of roots."""
        beta2, step = group["betas"][1], group["step"] + 1
        return (*super().numbers(group), group["eps"], step, beta2, 1 - beta2, (1 - beta2**step) ** -0.5)

    @staticmethod
    def update_(y: Tensor, g: Tensor, z: Tensor, v: Tensor, *numbers: float) -> None:
        """Torch's fused AdamW without momentum moves z; before it y becomes x, after it the new y.

        The decay, lr * decay * y = lr * decay * ((1 - beta) z + beta x), is shared between the kernel and an addition.
        The kernel's momentum is then the gradient itself, so that it needs no memory of its own.
        """
        lr, decay, beta, _, share, eps, step, beta2, *_ = numbers
        y.lerp_(z, 1 - 1 / beta)
        fused_adamw_(z, g, g, v, step, lr=lr, beta1=0.0, beta2=beta2, weight_decay=decay * (1 - beta), eps=eps)
        if decay:
            z.add_(y, alpha=-lr * decay * beta)
        y.lerp_(z, share)

    @staticmethod
    def formula_(y: Tensor, g: Tensor, z: Tensor, v: Tensor, numbers: Tensor) -> None:
        """As the docstring of `ScheduleFreeAdamW` has it, with x left out."""
        lr, decay, _, c, share, eps, _, _, fresh, unbias = numbers.unbind()
        squares = v + fresh * (g * g - v)
        move = lr * (g / (squares.sqrt() * unbias + eps) + decay * y)
        y.copy_(y + c * (z - y) - share * move)
        z.sub_(move)
        v.copy_(squares)


class ScheduleFreeSGDOptimizer(ScheduleFree):
    """What `ScheduleFreeSGD` builds."""

    slots = ("z",)

    @staticmethod
    def update_(y: Tensor, g: Tensor, z: Tensor, lr: float, decay: float, beta: float, c: float, share: float) -> None:
        """The formula of `ScheduleFreeSGD` with x left out."""
        move = torch.add(g, y, alpha=decay) if decay else g
        y.lerp_(z, c).add_(move, alpha=-lr * share)
        z.add_(move, alpha=-lr)

    @staticmethod
    def formula_(y: Tensor, g: Tensor, z: Tensor, numbers: Tensor) -> None:
        """The same."""
        lr, decay, _, c, share = numbers.unbind()
        move = lr * (g + decay * y)
        y.copy_(y + c * (z - y) - share * move)
        z.sub_(move)


class _Switch:
    """Called before each forward pass of the model; a copy of the model has one that only refuses."""

    def __init__(self, optimizer: ScheduleFree) -> None:
        self._optimizer: ScheduleFree | None = optimizer
        self.averaged = self.rests = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _Switch:
        other = copy.copy(self)
        other._optimizer = None
        return other

    def __call__(self, module: nn.Module, args: Any) -> None:
        optimizer = self._optimizer
        if self.rests:
            return
        if optimizer is None:
            if not self.averaged and not module.training:
                raise OptimizerError(
                    "These weights are a copy of a schedule-free run taken while it trained, and not the averaged "
                    "ones. Call optimizer.eval() before copying the model, or optimizer.finish() at the end."
                )
            return
        if module.training:
            optimizer.train()
        else:
            optimizer.eval()


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [part for part in model.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]


def _graph_norms(model: nn.Module) -> list[tuple[GraphModule, list[Tensor], float]]:
    """The BatchNorms inside captured graphs that follow its mode: the graph, running mean and variance, momentum."""
    return [
        (part, [part.get_buffer(str(at.target)) for at in node.args[3:5]], node.args[6])  # type: ignore[union-attr,misc]
        for part in model.modules()
        if isinstance(part, GraphModule)
        for node in part.graph.nodes
        if node.target is torch.ops.aten.batch_norm.default and isinstance(node.args[5], Node) and node.args[6]
    ]


@torch.no_grad()
def recalibrate_(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Take BatchNorm's statistics anew: their mean over the batches, the rest of the model in eval mode.

    The mode of a captured graph is one for all that is in it; its dropout draws from a generator of its own.
    """
    norms, inside = _norms(model), _graph_norms(model)
    if not norms and not inside:
        return
    modes = [(part, part.training) for part in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    for graph, _, _ in inside:
        graph.training = True
    given, sums = 0, [[torch.zeros_like(tensor) for tensor in tensors] for _, tensors, _ in inside]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for inputs in batches:
            given += 1
            for _, tensors, _ in inside:
                torch._foreach_zero_(tensors)
            model(*inputs)
            for (_, tensors, share), total in zip(inside, sums, strict=True):
                torch._foreach_add_(total, tensors, alpha=1 / share)
    for (_, tensors, _), total in zip(inside, sums, strict=True):
        for tensor, one in zip(tensors, total, strict=True):
            tensor.copy_(one / max(given, 1))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for part, mode in modes:
        part.training = mode


def _refuse_no_average(name: str, beta: float) -> None:
    if not beta:
        raise OptimizerError(
            f"Schedule-free with {name}=0 takes gradients at z and could not tell the average from it; give e.g. 0.9."
        )
