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
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node, map_arg

from trimtab.compress.calibration import MAX_FEATURES, Layer, input_rows, layer_of, num_features, pick
from trimtab.compress.scales import ActivationScale, BiasShift, WeightScale, levels, simulated, top, with_steps
from trimtab.core import Split

MAX_SAMPLES, MIN_SAMPLES, MAX_BYTES = 64, 16, 128 << 20
MIN_ROWS = 2048
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
) -> tuple[tuple[WeightScale, ...], tuple[BiasShift, ...]]:
    """The weights with their rounding, and the shifts of the biases.

    Each layer is settled in turn, with the inputs that the layers before it leave it.

    Args:
        graph: in eval mode, not quantized.
        activations: of the values that will be quantized.
        weights: of the layers; the rounding that they have is replaced if `learn`.
        data: calibration samples; the walk takes an even choice of them.
        learn: choose the rounding of each weight.
        shift: choose the shift of each bias.
    """
    num = min(len(data), max(MIN_SAMPLES, min(MAX_SAMPLES, MAX_BYTES // max(1, _largest(graph)))))
    chosen = data.batch(torch.linspace(0, len(data) - 1, num).long())
    walk = _Walk(graph, activations, weights, learn=learn, shift=shift)
    walk.run(*((x.clone(), x.clone()) for x in chosen.inputs), enable_io_processing=False)
    done = tuple(walk.weights[scale.layer] for scale in weights)
    return done, tuple(BiasShift(name, tuple(values.tolist())) for name, values in walk.shifts.items())


def _largest(graph: GraphModule) -> int:
    """The bytes of the largest value for one sample."""
    values = [node.meta.get("val") for node in graph.graph.nodes if node.op == "call_function"]
    sizes = [value.shape[1:] for value in values if isinstance(value, Tensor) and value.ndim]
    return max((4 * math.prod(int(size) for size in shape) for shape in sizes), default=1)


class _Walk(Interpreter):
    """Runs the exact and the quantized model side by side: each value is a pair of both."""

    def __init__(
        self,
        graph: GraphModule,
        activations: tuple[ActivationScale, ...],
        weights: tuple[WeightScale, ...],
        *,
        learn: bool,
        shift: bool,
    ) -> None:
        super().__init__(graph)
        self.activations = {scale.node: scale for scale in activations}
        self.weights = {scale.layer: scale for scale in weights}
        self.shifts: dict[str, Tensor] = {}
        self.learn, self.shift = learn, shift

    def run_node(self, n: Node) -> Any:
        if n.op == "placeholder":
            exact, rounded = super().run_node(n)
        elif n.op == "get_attr":
            exact = rounded = super().run_node(n)
        elif n.op == "output":
            return self._arguments(n, 0)[0][0], self._arguments(n, 1)[0][0]
        else:
            args, kwargs = self._arguments(n, 0)
            exact = n.target(*args, **kwargs)  # type: ignore[operator]
            rounded = self._rounded(n, exact)
        if n.name in self.activations:
            rounded = simulated(rounded, self.activations[n.name])
        return exact, rounded

    def _arguments(self, n: Node, side: int) -> Any:
        return map_arg((n.args, n.kwargs), lambda node: self.env[node][side])

    def _rounded(self, n: Node, exact: Any) -> Any:
        args, kwargs = self._arguments(n, 1)
        if n.name not in self.weights:
            return n.target(*args, **kwargs)  # type: ignore[operator]
        x, weight, *others = args
        if self.learn and (layer := layer_of(self.module, n)) is not None:  # type: ignore[arg-type]
            self.weights[n.name] = self._learned(layer, weight, (self._arguments(n, 0)[0][0], x), exact)
        integers, scales = levels(weight, self.weights[n.name])
        outputs = n.target(x, integers * scales, *others, **kwargs)  # type: ignore[operator]
        if not self.shift:
            return outputs
        channel = outputs.ndim - 1 if n.target == torch.ops.aten.linear.default else outputs.ndim - weight.ndim + 1
        lost = (exact - outputs).movedim(channel, -1).flatten(0, -2).double().mean(0).float()
        self.shifts[n.name] = lost
        return outputs + lost.reshape(-1, *[1] * (outputs.ndim - channel - 1))

    def _learned(self, layer: Layer, weight: Tensor, inputs: tuple[Tensor, Tensor], outputs: Tensor) -> WeightScale:
        """The scale of a layer with the steps that are best for its inputs, (exact, quantized), and exact outputs."""
        scale = self.weights[layer.node]
        if num_features(layer, weight) > MAX_FEATURES:
            return scale
        kernel = tuple(weight.shape[2:])
        rows = max(MIN_ROWS, 4 * num_features(layer, weight))
        picked = pick(layer, outputs, rows)
        wanted, given = (input_rows(layer, side, kernel, picked) for side in inputs)  # [groups, rows, features]
        if self.shift:
            wanted, given = (side - side.mean(1, keepdim=True) for side in (wanted, given))
        nearest, scales = levels(weight, scale)
        steps = best_steps(
            layer.matrix(weight),
            layer.matrix(nearest),
            layer.matrix(scales.expand_as(weight)),
            wanted.mT @ given / given.shape[1],
            given.mT @ given / given.shape[1],
            top(scale.bits),
        )
        return with_steps(scale, layer.weight_of(steps, weight.shape))


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
