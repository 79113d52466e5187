"""Static int8 quantization as a plan of scales on the graph, emitted as quantize/dequantize pairs.

Jacob et al. 2018 (affine integers), Nagel et al. 2021 (a white paper on quantization: per-channel weights, clipping by
mean squared error), Nagel et al. 2019 (bias correction, here with means from calibration data). Differs: the plan is
data and every runtime takes the same one; activations are unsigned and weights signed 8-bit, the pair that x86, NPUs
and ONNX share. Cost: one pass over `samples` calibration inputs; `rounding.py` tells that of biases and rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from trimtab.compress.calibration import batches, calibration, require_fitting, watch_outputs
from trimtab.compress.emit import emitted
from trimtab.compress.equalize import Factors, equalized, find_factors, product_name
from trimtab.compress.observers import OBSERVERS, Observer, affine, extremes
from trimtab.compress.parts import NOTHING_KEPT, Parts
from trimtab.compress.points import LAYERS, points
from trimtab.compress.rounding import refine
from trimtab.compress.scales import ActivationScale, BiasShift, WeightScale, fits, top
from trimtab.compress.sensitivity import Sensitivity, num_to_keep, order_to_keep, relative_error, sensitivities
from trimtab.core import Skip, Split, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import get_tensor
from trimtab.graph.fold import fold_batchnorm
from trimtab.measure.machine import stamp
from trimtab.runtimes.base import is_quantized

KEPT_VALUES = 1 << 15
Rounding = Literal["nearest", "learned"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "learned")
Granularity = Literal["channel", "tensor"]
GRANULARITIES: tuple[Granularity, ...] = ("channel", "tensor")
BATCH = 8  # small, so that the values of a large picture stay in the cache and in memory that is used again


@dataclass(frozen=True)
class QuantizePlan:
    """Every scale of a quantized model, and what stays in floating point."""

    activations: tuple[ActivationScale, ...]
    weights: tuple[WeightScale, ...]
    skipped: tuple[Skip, ...] = ()
    biases: tuple[BiasShift, ...] = ()
    factors: tuple[Factors, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One row per quantized layer."""
        moved = {shift.layer: max(map(abs, shift.values)) for shift in self.biases}
        return [
            {
                "layer": w.weight.removesuffix(".weight"),
                "channels": len(w.scales),
                "bits": w.bits,
                "largest scale": max(w.scales),
                "largest bias shift": moved.get(w.layer),
            }
            for w in self.weights
        ]


@dataclass(frozen=True)
class Quantize:
    """Static int8: unsigned activations per tensor, signed weights per channel, calibrated on `samples` of `train`.

    Args:
        samples: of the train split, for ranges and bias correction.
        observer: which range of an activation its 256 levels cover; `observers.py` tells of each.
        weight_bits: 2 ... 8 of the 8 bits that a weight is stored in. Default: 8, or 7 on x86 without VNNI, where
            integer kernels saturate.
        correct_bias: shift biases by what quantization moves each channel's mean. Where a channel has few weights
            (depthwise convolutions) and pictures have plain grounds, most of the error is such a shift.
        equalize: scale channels between layers first, so that one scale suits a whole tensor (`equalize.py`). None: if
            that moves the outputs less on `select`; both are planned, which takes twice as long.
        granularity: of the weights' scales: one for each output "channel", or one for the "tensor".
        most_error: how far the outputs may move on `select`, as a share of their variance. Where int8 moves them
            further, the layers that cost most stay in floating point, and the plan says so (`sensitivity.py`). None:
            it is not measured.
        symmetric: give activations with negative values the zero point 128, and the others 0, for runtimes and NPUs
            that have no other. It costs up to half of the levels where values lie to one side.
        rounding: "nearest", or "learned": up or down as it suits the layer's outputs (`rounding.py`).
    """

    samples: int = 512
    observer: Observer = "mse"
    weight_bits: int | None = None
    correct_bias: bool = True
    rounding: Rounding = "nearest"
    equalize: bool | None = None
    most_error: float | None = 0.25
    granularity: Granularity = "channel"
    symmetric: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("observer", OBSERVERS), ("rounding", ROUNDINGS), ("granularity", GRANULARITIES)):
            if (given := getattr(self, name)) not in choices:
                raise PlanError(f"Quantize({name}={given!r}): there is none such; take one of {list(choices)}.")
        if self.most_error is not None and not self.most_error > 0:
            raise PlanError(
                f"Quantize(most_error={self.most_error}): give a share of the outputs' variance, as 0.01, or None."
            )
        if self.weight_bits is not None and not 2 <= self.weight_bits <= 8:
            raise PlanError(f"Quantize(weight_bits={self.weight_bits}): int8 weights have 2 ... 8 bits.")

    @property
    def name(self) -> str:
        return "int8" if self.rounding == "nearest" else f"int8 by {self.rounding} rounding"

    def plan(self, graph: GraphModule, task: Task, tools: Tools | None = None) -> QuantizePlan:
        """Choose every scale; the graph is not changed.

        tools: told of progress; its folder keeps what is settled, so that a calibration that was killed goes on.

        Raises:
            PlanError: nothing can be quantized, or the calibration data is too small, constant, not finite or of a
                shape that the graph cannot take.
        """
        if is_quantized(graph):
            raise PlanError(
                "The graph holds integers already, which have no range to choose. Give Quantize the graph before it "
                "was quantized."
            )
        data = calibration(task, self.samples, purpose="Quantization")
        require_fitting(graph, data)
        folded = fold_batchnorm(graph)
        if not _layers(folded)[0]:
            raise PlanError("Nothing to quantize: the graph has no convolution or linear layer with a fixed weight.")
        parts = Parts.of(tools, graph, data, self)
        scaled, factors, plan, error = self._first(folded, data, task.select, parts)
        _, skipped = _layers(scaled)
        if self.most_error is not None:
            plan = self._within(scaled, plan, (data, task.select), error, parts.inner(bool(factors)))
        return replace(plan, skipped=(*skipped, *plan.skipped), factors=factors)

    def _first(
        self, folded: GraphModule, data: Split, select: Split, parts: Parts
    ) -> tuple[GraphModule, tuple[Factors, ...], QuantizePlan, float | None]:
        """The graph with its channels scaled or not, by which factors, a plan for all layers; its error, if known.

        Where it was left open whether channels are scaled, both are planned, without learned rounding, and the one
        is taken that moves the outputs on `select` less.
        """
        factors = () if self.equalize is False else find_factors(folded, batches(data, BATCH))
        scaled = equalized(folded, factors)
        if self.equalize is not None or not factors:
            return scaled, factors, self._plan(scaled, _layers(scaled)[0], data, parts.inner(bool(factors))), None
        nearest = replace(self, rounding="nearest")
        drafts = [
            (graph, used, nearest._plan(graph, _layers(graph)[0], data, parts.inner(bool(used))))
            for graph, used in ((folded, ()), (scaled, factors))
        ]
        errors = [relative_error(folded, _emitted(graph, draft), select) for graph, _, draft in drafts]
        best = min(range(len(drafts)), key=errors.__getitem__)
        graph, used, draft = drafts[best]
        if self.rounding == "nearest":
            return graph, used, draft, errors[best]
        return graph, used, self._plan(graph, _layers(graph)[0], data, parts.inner(bool(used))), None

    def _plan(self, folded: GraphModule, layers: list[Node], data: Split, parts: Parts) -> QuantizePlan:
        """The plan of these layers, in a graph that is folded and equalized; parts: of this graph and data."""
        values, ties = points(layers)
        parts = parts.inner(self.rounding, [layer.name for layer in layers])
        pieces = batches(data, BATCH)
        seen = parts.tensors("ranges", partial(observe, folded, values, pieces, parts))
        scales: dict[Node, ActivationScale] = {}
        for node in values:
            source = ties.get(node)
            scales[node] = (
                ActivationScale(node.name, *_fields(scales[source]))
                if source
                else _activation(node.name, seen[node.name], self.observer, symmetric=self.symmetric)
            )
        bits = self.weight_bits or usable_bits()
        weights = tuple(_weight(folded, layer, bits, self.granularity) for layer in layers)
        activations = tuple(scales.values())
        biases: tuple[BiasShift, ...] = ()
        if self.correct_bias or self.rounding == "learned":
            learn = self.rounding == "learned"
            weights, biases = refine(
                folded, activations, weights, data, learn=learn, shift=self.correct_bias, parts=parts
            )
        return QuantizePlan(activations, weights, biases=biases)

    def _within(
        self,
        folded: GraphModule,
        plan: QuantizePlan,
        splits: tuple[Split, Split],
        known: float | None,
        parts: Parts,
    ) -> QuantizePlan:
        """A plan that keeps as many layers in floating point as it takes to move the outputs by `most_error` at most.

        known: by how much the plan that is given moves them, where that was measured.
        """
        (data, select), bound, layers = splits, self.most_error, _layers(folded)[0]
        assert bound is not None
        first = error = relative_error(folded, _emitted(folded, plan), select) if known is None else known
        order: list[Sensitivity] = []
        num = 0
        while not error <= bound:
            if not order:
                order = order_to_keep(
                    folded, sensitivities(folded, plan.activations, plan.weights, plan.biases, select)
                )
            num = num_to_keep(order, first, bound, more_than=2 * num)
            kept = {one.layer: one.error for one in order[:num]}
            if len(kept) == len(layers):
                raise PlanError(
                    f"int8 moves the outputs by {first:.2g} of their variance, more than most_error={bound:g}, and "
                    f"no choice of layers brings it below. Give Quantize(rounding='learned', equalize=True), more "
                    f"weight_bits, or a larger most_error."
                )
            plan = self._plan(folded, [layer for layer in layers if layer.name not in kept], data, parts)
            error = relative_error(folded, _emitted(folded, plan), select)
        if not order:
            return plan
        why = (
            f"with all layers in int8 the outputs move by {first:.2g} of their variance, more than "
            f"most_error={bound:g}; with what is kept in floating point by {error:.2g}. Alone this layer moves them by "
        )
        skipped = tuple(Skip(f"int8 of {one.layer}", f"{why}{one.error:.2g}") for one in order[:num])
        return replace(plan, skipped=skipped)

    def apply(self, graph: GraphModule, plan: QuantizePlan, tools: Tools) -> GraphModule:
        """A copy with integer weights and quantize/dequantize pairs where the plan says, in eval mode for good.

        Raises:
            PlanError: the plan is for another graph.
        """
        folded = fold_batchnorm(graph)
        _require_same_graph(folded, plan)
        return _emitted(equalized(folded, plan.factors), plan)


def _emitted(graph: GraphModule, plan: QuantizePlan) -> GraphModule:
    return emitted(graph, plan.activations, plan.weights, plan.biases)


def _require_same_graph(graph: GraphModule, plan: QuantizePlan) -> None:
    nodes = {node.name: node for node in graph.graph.nodes}
    made = {product_name(one.multiplied) for one in plan.factors if one.multiplied}
    named = [*(a.node for a in plan.activations if a.node not in made), *(w.layer for w in plan.weights)]
    missing = [name for name in named if name not in nodes]
    if missing:
        raise PlanError(f"The plan was made for another graph: it has no value named {missing[0]!r}. Plan it anew.")
    for one in plan.factors:
        if not one.fit(graph):
            raise PlanError(
                f"The plan was made for another graph: it has {len(one.values)} factors for the channels that "
                f"{', '.join(one.consumers)} read, and they are not there. Plan it anew."
            )
    for weight in plan.weights:
        read = nodes[weight.layer].args[1]
        found = str(read.target) if isinstance(read, Node) else "nothing"
        size = len(get_tensor(graph, found)) if found == weight.weight else 0
        if size != len(weight.scales) or not fits(weight, get_tensor(graph, found)):
            raise PlanError(
                f"The plan was made for another graph: {weight.layer} has {size or 'no'} channels of "
                f"{weight.weight!r}, {len(weight.scales)} were planned. Plan it anew."
            )


def _layers(graph: GraphModule) -> tuple[list[Node], tuple[Skip, ...]]:
    layers, skipped = [], []
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in LAYERS:
            continue
        weight = node.args[1]
        if isinstance(weight, Node) and weight.op == "get_attr" and len(weight.users) == 1:
            layers.append(node)
        else:
            skipped.append(
                Skip(f"int8 of {node.name}", "its weight is computed or shared, so it has no scale of its own")
            )
    return layers, tuple(skipped)


def observe(
    graph: GraphModule, values: list[Node], data: list[Split], parts: Parts = NOTHING_KEPT
) -> dict[str, Tensor]:
    """For each value: its extremes and an even sample of its values over the calibration data, [at most 2^15 + 2]."""
    kept: dict[str, list[Tensor]] = {node.name: [] for node in values}

    def see(node: Node, value: Tensor) -> None:
        flat = value.float().flatten()
        stride = max(1, flat.numel() * len(data) // KEPT_VALUES)
        kept[node.name].append(torch.cat([flat[::stride], flat.min()[None], flat.max()[None]]))

    for place, batch in enumerate(data):
        parts.step(place, len(data), "finding ranges")
        watch_outputs(graph, kept, [batch], see)
    return {name: torch.cat(pieces) for name, pieces in kept.items()}


def _fields(scale: ActivationScale) -> tuple[float, int, float, float]:
    return scale.scale, scale.zero_point, scale.low, scale.high


def _activation(name: str, values: Tensor, observer: Observer, *, symmetric: bool) -> ActivationScale:
    """The affine scale of the range that the observer chooses; with zero in the middle if it has to be."""
    if not values.isfinite().all():
        raise PlanError(
            f"Calibration found NaN or infinity in the value {name!r}. Check the weights and the calibration data."
        )
    low, high = extremes(values)
    if low == high:
        raise PlanError(
            f"Calibration found only zeros in the value {name!r}, so it has no range. "
            "Use calibration data that is not constant, or leave the layers that read it out of the model."
        )
    if symmetric and low < 0:
        _, largest = OBSERVERS[observer](torch.cat([values, -values]))
        return ActivationScale(name, largest / 127, 128, low, high)
    return ActivationScale(name, *affine(*OBSERVERS[observer](values)), low, high)


def _weight(graph: GraphModule, layer: Node, bits: int, granularity: Granularity) -> WeightScale:
    name = str(layer.args[1].target)  # type: ignore[union-attr]
    weight = get_tensor(graph, name).detach()
    if not weight.isfinite().all():
        raise PlanError(f"The weight {name!r} holds NaN or infinity, so it has no scale. Train or load the model anew.")
    largest = weight.flatten(1).abs().amax(1).clamp_min(1e-8)
    largest = largest if granularity == "channel" else largest.max().expand_as(largest)
    return WeightScale(layer.name, name, tuple((largest / top(bits)).tolist()), bits)


def usable_bits() -> int:
    """8; or 7 on x86 before VNNI, whose kernels add two 8-bit products in 16 bits: 2 * 255 * 63 still fits."""
    features = stamp()["features"]
    return 7 if "avx2" in features and not any("vnni" in feature for feature in features) else 8
