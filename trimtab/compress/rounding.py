"""Weights rounded, and biases shifted, so that each layer gives what it gave before quantization.

Rounding: AdaRound (Nagel et al. 2020) chooses for each weight the integer below or above by the error of the layer's
outputs. Differs: the quadratic problem that it relaxes and trains is solved by coordinate descent, as in QuantEase
(Behdin et al. 2023), which needs no learning rate and gives the same answer each time; and the layer sees the inputs
that it will have when all layers before it are quantized. With X those inputs, X* the exact ones and s the scales:
min over q of |W X*' - (s q) X'|^2, the means taken out where the bias carries them.
Biases: shifted by what quantization moves each channel's mean (Nagel et al. 2019), measured on the same inputs.

Cost: one walk over at most 64 samples, fewer where a sample's values are large (128 MB a value), both models side by
side; rounding adds the Gram matrix of each layer's inputs and three sweeps over its weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from trimtab.compress.calibration import (
    LINEAR,
    MAX_FEATURES,
    Layer,
    batches,
    input_rows,
    layer_of,
    num_features,
    output_like,
    pick,
)
from trimtab.compress.compensate import Walk
from trimtab.compress.emit import bias_name, emitted
from trimtab.compress.parts import NOTHING_KEPT, Parts
from trimtab.compress.scales import ActivationScale, BiasShift, WeightScale, levels, top, with_steps
from trimtab.core import Split
from trimtab.graph.calls import arguments
from trimtab.graph.capture import get_tensor
from trimtab.graph.cost import for_one_sample

MAX_SAMPLES, MIN_SAMPLES, MAX_BYTES = 64, 16, 128 << 20
MIN_ROWS = 2048
BATCH = 16
SWEEPS = 3
BLOCK = 32  # features whose effect on the others is put off until all of them are chosen
# Of the mean squared input: what keeps weights whose inputs were never seen at the nearest integer.
DAMPING = 1e-3


@torch.no_grad()
def refine(
    graph: GraphModule,
    activations: tuple[ActivationScale, ...],
    weights: tuple[WeightScale, ...],
    data: Split,
    *,
    learn: bool,
    shift: bool,
    parts: Parts = NOTHING_KEPT,
) -> tuple[tuple[WeightScale, ...], tuple[BiasShift, ...]]:
    """The weights with their rounding, and the shifts of the biases.

    Each layer is settled in turn, with the inputs that the layers before it leave it.

    Args:
        graph: in eval mode, not quantized.
        activations: of the values that will be quantized.
        weights: of the layers, in graph order; the rounding that they have is replaced if `learn`.
        data: calibration samples; the walk takes an even choice of them.
        learn: choose the rounding of each weight.
        shift: choose the shift of each bias.
        parts: the layers that were settled before with these very arguments, and who is told of progress.
    """
    num = min(len(data), max(MIN_SAMPLES, min(MAX_SAMPLES, MAX_BYTES // max(1, _largest(graph)))))
    pieces = batches(data.batch(torch.linspace(0, len(data) - 1, num).long()), BATCH)
    unmoved = tuple(BiasShift(scale.layer, (0.0,) * len(scale.scales)) for scale in weights) if shift else ()
    rounded = emitted(graph, activations, (), unmoved)
    exact, given = Walk(graph, pieces), Walk(rounded, pieces)
    done, shifts = [], []
    for place, scale in enumerate(weights):
        parts.step(place, len(weights), f"rounding {scale.layer}")
        if learn:
            scale = parts.value(
                f"{scale.layer} rounding", partial(_learned, exact, given, scale, centred=shift), WeightScale
            )
        integers, scales = levels(get_tensor(graph, scale.weight), scale)
        get_tensor(rounded, scale.weight).copy_(integers * scales)
        if shift:
            lost = parts.tensors(f"{scale.layer} bias", partial(_lost, exact, given, scale.layer))["lost"]
            get_tensor(rounded, bias_name(scale.layer)).add_(lost)
            shifts.append(BiasShift(scale.layer, tuple(lost.tolist())))
        done.append(scale)
    return tuple(done), tuple(shifts)


def _largest(graph: GraphModule) -> int:
    """The bytes of the largest value for one sample."""
    values = [node.meta.get("val") for node in graph.graph.nodes if node.op == "call_function"]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return max((4 * math.prod(map(for_one_sample, value.shape)) for value in tensors), default=1)


def _lost(exact: Walk, given: Walk, name: str) -> dict[str, Tensor]:
    """By how much the outputs of a layer are smaller than the exact ones, the mean of each channel: lost [C]."""
    node = exact.nodes[name]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in range(len(exact)):
        off = exact.output(batch, node) - given.output(batch, given.nodes[name])
        rows = (off if node.target in LINEAR else off.movedim(1, -1)).flatten(0, -2).double()
        total, count = total + rows.sum(0), count + len(rows)
    return {"lost": (total / count).float()}


def _learned(exact: Walk, given: Walk, scale: WeightScale, *, centred: bool) -> WeightScale:
    """The scale with the steps that are best for a layer's inputs in both graphs; `centred`: a bias takes the mean."""
    layer, weight = layer_of(exact.graph, exact.nodes[scale.layer]), get_tensor(exact.graph, scale.weight)
    if layer is None or num_features(layer, weight) > MAX_FEATURES:
        return scale
    kernel = tuple(weight.shape[2:])
    wanted = math.ceil(max(MIN_ROWS, 4 * num_features(layer, weight)) / len(exact))
    sums: list[Any] = [0.0, 0.0, 0.0, 0.0]  # of X*' X and X' X, of X* and X
    count, middle = 0, None
    for batch in range(len(exact)):
        x, y = (walk.before(batch, walk.nodes[layer.node])[_input(walk, layer)] for walk in (exact, given))
        picked = pick(layer, output_like(layer, x, kernel), wanted)
        rows = [input_rows(layer, side, kernel, picked) for side in (x, y)]  # [groups, rows, features]
        if centred:  # near their mean, which no float32 can take out afterwards
            middle = rows[0].mean(1, keepdim=True) if middle is None else middle
            rows = [side - middle for side in rows]
        parts = rows[0].mT @ rows[1], rows[1].mT @ rows[1], rows[0].sum(1), rows[1].sum(1)
        sums = [total + part.double() for total, part in zip(sums, parts, strict=True)]
        count += rows[0].shape[1]
    cross, gram, first, second = (total / count for total in sums)
    if centred:
        cross, gram = cross - first[:, :, None] * second[:, None], gram - second[:, :, None] * second[:, None]
    nearest, scales = levels(weight, replace(scale, steps=""))
    steps = best_steps(
        layer.matrix(weight),
        layer.matrix(nearest),
        layer.matrix(scales.expand_as(weight)),
        cross.float(),
        gram.float(),
        top(scale.bits),
    )
    return with_steps(scale, layer.weight_of(steps, weight.shape))


def _input(walk: Walk, layer: Layer) -> Node:
    """The value that the layer multiplies by its weight."""
    return arguments(walk.nodes[layer.node])[layer.argument]  # type: ignore[no-any-return]


def best_steps(w: Tensor, nearest: Tensor, scales: Tensor, cross: Tensor, gram: Tensor, limit: int) -> Tensor:
    """Which of the two integers around each weight, as what is added to the nearest: -1, 0 or 1.

    Coordinate descent on |w X*' - (scales q) X'|^2 from the nearest integers; each choice is the best given the others.
    Shapes: G groups, O outputs, F features.

    Args:
        w: exact weights [G, O, F].
        nearest: their nearest integers [G, O, F].
        scales: [G, O, F].
        cross: X*' X [G, F, F].
        gram: X' X [G, F, F].
        limit: the largest integer.

    >>> one = torch.ones(1, 1, 2)
    >>> best_steps(0.4 * one, 0 * one, one, torch.ones(1, 2, 2), torch.ones(1, 2, 2), 127).int().tolist()
    [[[1, 0]]]
    """
    ridge = DAMPING * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-12
    ridge = ridge * torch.eye(gram.shape[-1])
    gram, cross = gram + ridge, cross + ridge
    low, high = ((w / scales).floor(), (w / scales).ceil())
    low, high = low.clamp(-limit, limit), high.clamp(-limit, limit)
    chosen = nearest.clone()
    slope = w @ cross - (chosen * scales) @ gram  # half of the falling gradient
    size = w.shape[-1]
    for _ in range(SWEEPS):
        for start in range(0, size, BLOCK):
            block = slice(start, min(start + BLOCK, size))
            ends = low[..., block], high[..., block]
            moved = _sweep_(chosen[..., block], slope[..., block], scales[..., block], ends, gram[:, block, block])
            slope -= moved @ gram[:, block]
    return chosen - nearest


def _sweep_(chosen: Tensor, slope: Tensor, scales: Tensor, ends: tuple[Tensor, Tensor], gram: Tensor) -> Tensor:
    """The best integer of each of a few features in turn, written into `chosen`; returns what the weights moved by."""
    slope, moved = slope.clone(), torch.zeros_like(slope)
    for f in range(gram.shape[-1]):
        best = (chosen[..., f] + slope[..., f] / (gram[:, f, f, None] * scales[..., f])).round()
        best = torch.minimum(torch.maximum(best, ends[0][..., f]), ends[1][..., f])
        moved[..., f] = (best - chosen[..., f]) * scales[..., f]
        slope -= moved[..., f, None] * gram[:, f, None, :]
        chosen[..., f] = best
    return moved
