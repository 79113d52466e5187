"""Weight-only quantization: weights in 4 or 8 bits, activations as they were; rounded to nearest or by GPTQ.

int4 in groups with or without zero points, NF4 (Dettmers et al. 2023, QLoRA), int8, fp8 (Micikevicius et al. 2022) and
fp16; scales by weighted mean squared error (`grids.py`); GPTQ (Frantar et al. 2023, `gptq.py`). Differs: convolutions
are packed too, and GPTQ works on the graph with BatchNorm folded, layer after layer on what the packed layers before
it give. It pays in size and memory, and in time where weights are what a processor waits for. Cost: seconds to nearest;
by GPTQ one pass of the samples through both graphs and a Cholesky factorization for each layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from trimtab.compress.bits import fewest_bits
from trimtab.compress.calibration import (
    CONVOLUTIONS,
    LINEAR,
    MAX_FEATURES,
    PRODUCTS,
    Layer,
    batches,
    calibration,
    require_floats,
)
from trimtab.compress.compensate import Walk, gather, solve, write_
from trimtab.compress.gptq import gptq
from trimtab.compress.packing import (
    Packed,
    PackedWeight,
    PackPlan,
    finished_,
    fixed_layers,
    pack_,
    packed_nearest,
    planned,
    require_same_layers,
    values_of,
)
from trimtab.compress.parts import Parts
from trimtab.core import Precision, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import get_tensor
from trimtab.graph.fold import fold_batchnorm
from trimtab.graph.packed import BITS

PRECISIONS: dict[str, Precision] = {"int4": "int4w", "nf4": "nf4w", "int8": "int8w", "fp8": "fp8", "fp16": "fp16"}
GRIDS = ("int4", "nf4", "int8")  # formats with levels that GPTQ can aim at
NO_DATA = 'rounding="nearest", which needs none'
VALUES = "values"


@dataclass(frozen=True)
class WeightOnly:
    """Weights in fewer bits, activations in floating point.

    Args:
        format: int4, nf4, int8, fp8 or fp16.
        samples: of the train split, for GPTQ.
        group_size: how many weights of an output share a scale; None: all of them. It must divide their number in
            every layer.
        symmetric: False gives every group of int4 a zero point: better, for half a byte to a byte more per group.
        rounding: "nearest", or "gptq", which needs data and loses less at 4 bits.
        most_error: how far the outputs may move on `select`, as a share of their variance. Where 4 bits move them
            further, the layers that cost most get 8 bits, and the plan says so (`bits.py`). None: all have 4.

    >>> WeightOnly("int4", group_size=32, rounding="gptq").name
    'int4w g32 by gptq'
    """

    format: str = "int4"
    samples: int = 256
    group_size: int | None = None
    symmetric: bool = True
    rounding: Literal["nearest", "gptq"] = "nearest"
    most_error: float | None = None

    def __post_init__(self) -> None:
        given = f"WeightOnly(format={self.format!r}, rounding={self.rounding!r})"
        if self.format not in PRECISIONS:
            raise PlanError(f"{given}: there is no such format; take one of {list(PRECISIONS)}.")
        if self.rounding not in ("nearest", "gptq"):
            raise PlanError(f'{given}: there is no such rounding; take "nearest" or "gptq".')
        if self.rounding == "gptq" and self.format not in GRIDS:
            raise PlanError(f'{given}: GPTQ rounds to {list(GRIDS)}; take one of them, or rounding="nearest".')
        if not self.symmetric and self.format != "int4":
            raise PlanError(f"{given}: only int4 has zero points; leave symmetric=True.")
        if self.most_error is not None and (BITS[PRECISIONS[self.format]] != 4 or not self.most_error > 0):
            raise PlanError(
                f"{given}: most_error={self.most_error} chooses between 4 and 8 bits: give it a share of the outputs' "
                "variance, as 0.01, with the format int4 or nf4; or leave it out."
            )
        if self.group_size is not None and (self.group_size < 2 or self.format in ("fp8", "fp16")):
            raise PlanError(
                f"{given}: group_size={self.group_size} means nothing here; int4, nf4 and int8 take 2 or more, or None."
            )

    @property
    def name(self) -> str:
        group = f" g{self.group_size}" if self.group_size else ""
        zeros = "" if self.symmetric else " with zeros"
        bound = f" within {self.most_error:g}" if self.most_error is not None else ""
        return f"{PRECISIONS[self.format]}{group}{zeros}" + (" by gptq" if self.rounding == "gptq" else "") + bound

    def plan(self, graph: GraphModule, task: Task) -> PackPlan:
        """Choose which weights are packed, and how; the graph is not changed.

        Raises:
            PlanError: nothing can be packed, the graph is quantized already, a group size does not divide, a weight is
                not finite float32, GPTQ has too little data, or 8 bits are not within `most_error`.
        """
        require_floats(graph, self.name)
        folded = fold_batchnorm(graph)
        layers, skipped = fixed_layers(folded, self.name, (*LINEAR, *CONVOLUTIONS, *PRODUCTS))
        if not layers:
            raise PlanError("Nothing to pack: the graph has no convolution or linear layer with a fixed weight.")
        self._require_dividing(folded, layers)
        if self.rounding == "gptq":
            calibration(task, self.samples, purpose="GPTQ", instead=NO_DATA)
        weights = [self._planned(folded, layer, PRECISIONS[self.format]) for layer in layers]
        if self.most_error is None:
            return PackPlan(tuple(weights), skipped)
        wide = [self._planned(folded, layer, "int8w") for layer in layers]
        choices = list(zip(weights, wide, strict=True))
        plan = fewest_bits(folded, layers, choices, data=task.select, most_error=self.most_error)
        return replace(plan, skipped=(*skipped, *plan.skipped))

    def _planned(self, graph: GraphModule, layer: Layer, precision: Precision) -> PackedWeight:
        symmetric = self.symmetric or precision != "int4w"
        return planned(graph, layer, precision=precision, group_size=self.group_size, symmetric=symmetric)

    def apply(self, graph: GraphModule, plan: PackPlan, tools: Tools) -> GraphModule:
        """A copy with packed weights where the plan says, in eval mode for good.

        Raises:
            PlanError: the plan is for another graph; GPTQ has no data, or finds NaN or infinity.
        """
        folded = fold_batchnorm(graph)
        layers = require_same_layers(folded, plan)
        packed = (
            _by_gptq_(folded, fold_batchnorm(graph), layers, plan, self.samples, tools)
            if self.rounding == "gptq"
            else {
                how.layer: packed_nearest(layers[how.layer], get_tensor(folded, how.weight), how)
                for how in plan.weights
            }
        )
        for how in plan.weights:
            pack_(folded, layers[how.layer], packed[how.layer], how)
        return finished_(folded)

    def _require_dividing(self, graph: GraphModule, layers: list[Layer]) -> None:
        if self.group_size is None:
            return
        features = {layer.weight: layer.matrix(get_tensor(graph, layer.weight)).shape[2] for layer in layers}
        wrong = {name: count for name, count in features.items() if count % self.group_size}
        if wrong:
            first = next(iter(wrong))
            common = math.gcd(*features.values())
            other = f", or a divisor of {common}, which divides all" if common > 1 else ""
            raise PlanError(
                f"group_size={self.group_size} does not divide the {wrong[first]} weights of an output of {first!r}"
                f" ({len(wrong)} of {len(features)} layers are like that). Give group_size=None, one scale for each "
                f"output{other}."
            )


def _by_gptq_(
    folded: GraphModule,
    original: GraphModule,
    layers: dict[str, Layer],
    plan: PackPlan,
    samples: int,
    tools: Tools,
) -> dict[str, Packed]:
    """The codes of every layer; `folded` gets the values that they stand for, layer by layer."""
    data = calibration(tools.task, samples, purpose="GPTQ", instead=NO_DATA)
    targets, inputs = Walk(original, batches(data)), Walk(folded, batches(data))
    parts = Parts.of(tools, original, data, plan)
    found = {}
    for place, how in enumerate(plan.weights):
        parts.step(place, len(plan.weights), f"rounding {how.layer}")
        layer = layers[how.layer]
        own = parts.tensors(how.layer, partial(_rounded, targets, inputs, layer, how))
        if (values := own.pop(VALUES, None)) is not None:
            write_(folded, layer, values)
        found[how.layer] = Packed(**own)
    return found


def _rounded(targets: Walk, inputs: Walk, layer: Layer, how: PackedWeight) -> dict[str, Tensor]:
    """The fields of a layer's packed weight; and the values that it stands for, unless it is simply rounded."""
    weight = get_tensor(inputs.graph, layer.weight).detach()
    matrix = layer.matrix(weight)
    if matrix.shape[2] > MAX_FEATURES:
        return _fields(packed_nearest(layer, weight, how))
    problem = gather(targets, inputs, layer.node, {})
    solved = solve(problem)
    wanted = problem.weight if solved is None else solved  # [num_groups, F (+ 1), outputs]
    hessian = problem.halves[0].xx + problem.halves[1].xx
    size = matrix.shape[2]
    mean = None
    if layer.bias:
        count = hessian[:, -1, -1, None]
        mean = hessian[:, -1, :size] / count
        hessian = hessian[:, :size, :size] - count[..., None] * mean[:, :, None] * mean[:, None, :]
    settings = {"precision": how.precision, "group_size": how.group_size, "symmetric": how.symmetric}
    codes, scales, zeros = gptq(wanted[:, :size].mT.float(), hessian, **settings)  # type: ignore[arg-type]
    packed = Packed(codes, scales, zeros)
    values = values_of(packed, how.precision).reshape(matrix.shape).mT.double()
    if mean is not None:
        shift = ((wanted[:, :size] - values) * mean[:, :, None]).sum(1, keepdim=True)
        values = torch.cat([values, wanted[:, size:] + shift], dim=1)
    return _fields(packed) | {VALUES: values.to(weight.dtype)}


def _fields(packed: Packed) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in vars(packed).items() if tensor is not None}
