"""Quantization-aware training: a graph goes on learning while its weights and activations are rounded.

Jacob et al. 2018 (train through simulated integers), Esser et al. 2020, "Learned Step Size Quantization" (the scale's
gradient: what a value loses by rounding, or the end of the range where it is clipped). Differs: scales are learned in
their logarithm, as in Jain et al. 2020, "Trained Quantization Thresholds": Adam's steps ignore how large a gradient
is, so LSQ's factor 1 / sqrt(N Q) has nothing to do, and a scale stays positive. Scales begin at a calibrated plan's;
zero points stay as they are there. BatchNorm is folded before the first step and its statistics stay frozen (Nagel
et al. 2021, section 4.2: as good as folding on the way, and what is trained is what ships); biases begin corrected. By
default the loss is distillation from the original, which needs no label. Cost: `epochs` over the training data, each
step about twice a plain one, and the teacher's forward pass.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from trimtab.compress.distill import DistillPlan, answers, taught
from trimtab.compress.emit import bias_name
from trimtab.compress.points import SAME_SCALE, rounded_readers
from trimtab.compress.quantize import Quantize, QuantizePlan
from trimtab.compress.scales import WeightScale, top
from trimtab.compress.sensitivity import relative_error
from trimtab.core import Fit, Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import get_tensor, set_tensor_
from trimtab.runtimes.base import is_quantized
from trimtab.train.further import further, hand_learned_on_, learn_further, shown_settings
from trimtab.train.loop import num_steps

LearnFrom = Literal["original", "labels"]
TEMPERATURE = 2.0
SCALES = "log_scales"
FAR = 1.0  # of the outputs' variance: as far as one sample's outputs are from another's


@dataclass(frozen=True)
class QATPlan:
    """What will be trained and how, and the scales that training begins with; `steps` in all.

    The scales that it ends with are learned, so they are in the result: `train_quantized` gives them as a plan.
    """

    settings: Fit
    learn_from: LearnFrom
    steps: int
    start: QuantizePlan

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return self.start.skipped

    def rows(self) -> list[dict[str, Any]]:
        """The settings, one a row."""
        bits = sorted({weight.bits for weight in self.start.weights})
        values = {
            **shown_settings(self.settings),
            "learn_from": self.learn_from,
            "steps": self.steps,
            "integer layers": len(self.start.weights),
            "weight bits": " ".join(map(str, bits)),
        }
        return [{"setting": key, "value": value} for key, value in values.items()]


@dataclass(frozen=True)
class QAT:
    """Static int8 whose scales, weights and biases are trained together, with rounding in every step.

    Args:
        epochs: over `task.train`.
        lr: the highest learning rate, of weights and of the logarithms of scales; default: found by short trials, and
            what training harms is left as it was (`train/further.py`). The rest is the task's `fit`, but its
            precision "auto" is fp32 here: bf16 would round what the integers do not.
        start: gives the first scales, the bits of the weights, and which layers become integers. Its rounding
            and bound on the error are not used: training settles that.
        learn_from: "original": its answers on the training inputs (as `Distill`), or "labels": the task's loss.
    """

    epochs: int = 2
    lr: float | None = None
    start: Quantize = field(default_factory=Quantize)
    learn_from: LearnFrom = "original"

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.lr is not None and not 0 < self.lr < math.inf):
            raise PlanError(f"QAT needs epochs >= 1 and a finite lr > 0; got epochs={self.epochs}, lr={self.lr}.")
        if self.learn_from not in get_args(LearnFrom):
            raise PlanError(
                f"QAT(learn_from={self.learn_from!r}): there is none such; take one of {list(get_args(LearnFrom))}."
            )

    @property
    def name(self) -> str:
        return "int8 QAT"

    def plan(self, graph: GraphModule, task: Task, tools: Tools | None = None) -> QATPlan:
        """The settings and the first scales; the graph is not changed. tools: as for `Quantize.plan`.

        Raises:
            PlanError: the graph holds integers already, there are no labels to learn from, or as for `Quantize.plan`.
        """
        if is_quantized(graph):
            raise PlanError(
                "QAT needs weights that can be trained; the graph was given holds integers already. Give the graph "
                "before it was quantized."
            )
        if self.learn_from == "labels":
            _require_labels(task)
        settings = further(task, epochs=self.epochs, lr=self.lr)
        if settings.precision == "auto":
            settings = dataclasses.replace(settings, precision="fp32")
        start = dataclasses.replace(self.start, rounding="nearest", most_error=None).plan(graph, task, tools)
        return QATPlan(settings, self.learn_from, num_steps(task, settings), start)

    def apply(self, graph: GraphModule, plan: QATPlan, tools: Tools) -> GraphModule:
        """A copy that was trained and then quantized: the same kind of graph as `Quantize.apply` gives.

        Raises:
            PlanError: the plan is for another graph, there is no task or original to learn from, or training led away
                from the original that it is to learn from.
        """
        trained, learned = train_quantized(graph, plan, tools)
        integer = Quantize().apply(trained, learned, tools)
        hand_learned_on_(trained, integer)
        learns = plan.learn_from == "original"
        if learns and plan.settings.lr is not None and tools.original is not None and tools.task is not None:
            after = relative_error(tools.original, integer, tools.task.select)
            if not after <= FAR:
                untrained = Quantize().apply(graph, plan.start, tools)
                _refuse_astray(relative_error(tools.original, untrained, tools.task.select), after, plan.settings.lr)
        return integer


def _require_labels(task: Task) -> None:
    targets = task.train.targets
    known = targets.isfinite() if targets.is_floating_point() else targets >= 0
    if not known.any():
        raise PlanError(
            'QAT(learn_from="labels") needs labels, and all targets of the train split are NaN or negative. Give '
            'labels, or QAT(learn_from="original"), which needs none.'
        )


def _refuse_astray(before: float, after: float, lr: float) -> None:
    """Refuse a training whose steps were too large for the model: what it had before is gone."""
    if not after <= 2 * before:
        raise PlanError(
            f"QAT(lr={lr:g}) led away from the original: its outputs on select moved by {after:.2g} of their variance, "
            f"by {before:.2g} without training. The steps are too large for this model. Give QAT(lr={lr / 10:g}), or "
            "take Quantize, which trains nothing."
        )


def train_quantized(graph: GraphModule, plan: QATPlan, tools: Tools) -> tuple[GraphModule, QuantizePlan]:
    """The trained graph in floating point, and the plan of its learned scales: `Quantize().apply` makes them integers.

    Args:
        graph: as for `QAT.plan`; left as it was.
        plan: what `QAT.plan` gave.
        tools: the task, the original if it is learned from; its folder keeps a checkpoint after each epoch, or five
            minutes.

    Raises:
        PlanError: as for `QAT.apply`.
    """
    rounded = train_rounded(graph, plan, tools)
    floats = unrounded(rounded, graph, plan.start)
    hand_learned_on_(rounded, floats)
    return floats, learned_plan(rounded, plan.start)


def train_rounded(graph: GraphModule, plan: QATPlan, tools: Tools) -> GraphModule:
    """What `fake_quantized` makes of `graph`, trained: it answers as the integers will. Arguments: `train_quantized`.

    Raises:
        PlanError: as for `QAT.apply`.
    """
    if tools.task is None or (plan.learn_from == "original" and tools.original is None):
        raise PlanError(
            f"QAT(learn_from={plan.learn_from!r}) needs the task{' and the original' * (plan.learn_from == 'original')}"
            f" to learn from; got Tools(task={tools.task and tools.task.name!r}, "
            f"original={type(tools.original).__name__}). Give Tools(task=..., original=...)."
        )
    Quantize().apply(graph, plan.start, tools)  # refuses a plan for another graph, before any training
    rounded = fake_quantized(graph, plan.start)
    if plan.learn_from == "original" and tools.original is not None:
        lesson = DistillPlan(plan.settings, answers(tools.task, TEMPERATURE), plan.steps)
        return taught(rounded, tools.original, lesson, tools, who="QAT", instead='QAT(learn_from="labels")')  # type: ignore[return-value]
    checkpoint = Path(tools.folder) / "qat.safetensors" if tools.folder else None
    return learn_further(rounded, tools.task, plan.settings, report=tools.report, checkpoint=checkpoint)


def fake_quantized(graph: GraphModule, plan: QuantizePlan) -> GraphModule:
    """A copy with BatchNorm folded that rounds where `plan` says, in floating point: it trains, its scales too.

    The scales are parameters under `log_scales`. In eval mode its answers are, bit for bit, those of
    `Quantize().apply` with the plan that `learned_plan` reads from it.

    Args:
        graph: the one that `plan` was made for; left as it was.
        plan: the scales to begin with.
    """
    rounded = _floats(graph, plan)
    nodes = {node.name: node for node in rounded.graph.nodes}
    readers = rounded_readers(rounded.graph, {activation.node for activation in plan.activations})
    reads: dict[Node, Node] = {}
    for activation in plan.activations:
        value = nodes[activation.node]
        tied = reads.get(value.args[0]) if value.target in SAME_SCALE else None  # type: ignore[arg-type]
        with rounded.graph.inserting_after(value):
            read = tied or _scale_(rounded, f"activation_{value.name}", torch.tensor(activation.scale))
        with rounded.graph.inserting_after(value if tied else read):
            fake = rounded.graph.call_function(fake_quantize, (value, read, activation.zero_point, 0, 255))
        for reader in readers[activation.node]:
            reader.replace_input_with(value, fake)
        reads[fake] = read  # what comes next reads the rounded value
    for weight in plan.weights:
        layer, limit = nodes[weight.layer], top(weight.bits)
        # Equal scales are one scale: of the whole tensor.
        scales = weight.scales if len(set(weight.scales)) > 1 else weight.scales[:1]
        with rounded.graph.inserting_before(layer):
            read = _scale_(rounded, f"weight_{layer.name}", torch.tensor(scales))
            fake = rounded.graph.call_function(fake_quantize, (layer.args[1], read, 0, -limit, limit))
        layer.args = (layer.args[0], fake, *layer.args[2:])
    rounded.recompile()
    return rounded


def learned_plan(rounded: GraphModule, start: QuantizePlan) -> QuantizePlan:
    """The plan with the scales that a graph of `fake_quantized` has now.

    Args:
        rounded: made from `start`.
        start: gives all but the scales; what it did to floats and biases is in the graph by now.
    """
    nodes = {node.name: node for node in rounded.graph.nodes}
    fakes = {fake.args[0].name: fake for fake in nodes.values() if fake.target is fake_quantize}

    def scales(fake: Node) -> Tensor:
        return get_tensor(rounded, str(fake.args[1].target)).detach().exp()  # type: ignore[union-attr]

    def learned(weight: WeightScale) -> WeightScale:
        found = scales(nodes[weight.layer].args[1]).expand(len(weight.scales))
        return WeightScale(weight.layer, weight.weight, tuple(found.tolist()), weight.bits)

    return QuantizePlan(
        tuple(dataclasses.replace(a, scale=float(scales(fakes[a.node]))) for a in start.activations),
        tuple(map(learned, start.weights)),
        start.skipped,
    )


def _floats(graph: GraphModule, plan: QuantizePlan) -> GraphModule:
    """What `Quantize.apply` rounds: BatchNorm folded, and whatever else the plan does to floats; biases that train."""
    floats = Quantize().apply(graph, dataclasses.replace(plan, activations=(), weights=()), Tools())
    for shift in plan.biases:
        name = bias_name(shift.layer)
        set_tensor_(floats, name, nn.Parameter(get_tensor(floats, name)))
    return floats


def _scale_(graph: GraphModule, name: str, scale: Tensor) -> Node:
    """A read, at the graph's insertion point, of a new parameter that holds the logarithm of `scale`."""
    set_tensor_(graph, f"{SCALES}.{name}", nn.Parameter(scale.log()))
    return graph.graph.create_node("get_attr", f"{SCALES}.{name}")


def unrounded(rounded: GraphModule, graph: GraphModule, plan: QuantizePlan) -> GraphModule:
    """A copy of `graph` in floats, BatchNorm folded, with the weights of what `fake_quantized` made of it by `plan`."""
    floats = _floats(graph, plan)
    floats.load_state_dict({name: t for name, t in rounded.state_dict().items() if not name.startswith(f"{SCALES}.")})
    return floats


def fake_quantize(x: Tensor, log_scale: Tensor, zero: int, low: int, high: int) -> Tensor:
    """Round to the nearest of the integers `low ... high` times a scale, with gradients for both.

    y = (clamp(round(x / s) + z, low, high) - z) s with s = exp(log_scale). dy/dx = 1 where nothing was clipped and 0
    elsewhere (straight-through); dy/ds = round(x / s) - x / s where nothing was clipped, else the end of the range.

    Args:
        x: [C, ...] or any shape.
        log_scale: one number, or [C], or [1] for one that all channels share.
        zero: z, the integer that stands for 0.
        low: the smallest integer.
        high: the largest.

    Returns:
        y, in the shape of x.

    Example:
        >>> fake_quantize(torch.tensor([0.4, 2.6, 9.0]), torch.tensor(0.0), 0, -3, 3)
        tensor([0., 3., 3.])
    """
    return _FakeQuantize.apply(x, log_scale, zero, low, high)  # type: ignore[no-any-return, no-untyped-call]


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor, zero: int, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, log_scale)
        ctx.limits = zero, low, high
        scale = _laid(log_scale.exp(), x)
        return _over(x, scale).round_().add_(zero).clamp_(low, high).sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad,), (x, log_scale), (zero, low, high) = grads, ctx.saved_tensors, ctx.limits
        scale = _laid(log_scale.exp(), x)
        steps = _over(x, scale)
        level = steps.round()
        kept = level.clamp(low - zero, high - zero)
        inside = kept == level
        # the end of the range where it was clipped, else what rounding added
        slope = kept.sub_(steps.mul_(inside)).mul_(grad)
        of_scale = slope.sum_to_size(scale.shape).mul_(scale).reshape(log_scale.shape)
        return (grad * inside).to(x.dtype), of_scale, None, None, None


def _laid(scale: Tensor, x: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (x.ndim - 1)) if scale.ndim else scale


def _over(x: Tensor, scale: Tensor) -> Tensor:
    """The quotient, in the very operations that integer graphs round with: weights divide, activations multiply."""
    return x.float() / scale if scale.ndim else x.float() * (1 / scale.double()).float()
