"""Dynamic int8: linear layers on integers, the range of what goes in found anew for every batch; no calibration.

Weights are signed 8-bit per output channel (7 of the bits on x86 without VNNI, whose kernels saturate), activations
unsigned 8-bit per tensor, as ONNX's DynamicQuantizeLinear defines them. Zafrir et al. 2019 (Q8BERT) keep the
quality of a transformer with 8 bits. Differs: nothing is trained, and convolutions stay as they are, since runtimes
gain nothing on them. An answer depends a little on what else is in its batch. Cost: seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule

from trimtab.compress.calibration import LINEAR, PRODUCTS, require_floats
from trimtab.compress.packing import (
    PackPlan,
    finished_,
    fixed_layers,
    pack_,
    packed_nearest,
    planned,
    quantize_inputs_,
    require_same_layers,
)
from trimtab.compress.quantize import usable_bits
from trimtab.core import Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import get_tensor
from trimtab.graph.fold import fold_batchnorm


@dataclass(frozen=True)
class Dynamic:
    """Int8 weights and activations of linear layers, the latter by the range of each batch.

    Args:
        min_features: layers whose sums have fewer terms stay in floating point: finding the range costs more.

    >>> Dynamic().name
    'int8d'
    """

    min_features: int = 16

    def __post_init__(self) -> None:
        if self.min_features < 1:
            raise PlanError(f"Dynamic(min_features={self.min_features}): a sum has 1 term or more.")

    @property
    def name(self) -> str:
        return "int8d"

    def plan(self, graph: GraphModule, task: Task) -> PackPlan:
        """Choose the layers; the graph is not changed.

        Raises:
            PlanError: there is no such layer, the graph is quantized already, or a weight is not finite float32.
        """
        require_floats(graph, self.name)
        folded = fold_batchnorm(graph)
        layers, skipped = fixed_layers(folded, self.name, (*LINEAR, *PRODUCTS))
        wide = [
            layer for layer in layers if layer.matrix(get_tensor(folded, layer.weight)).shape[2] >= self.min_features
        ]
        if not wide:
            raise PlanError(
                f"Nothing for dynamic int8: the graph has no linear layer of {self.min_features} features or more. "
                "Take Quantize, which is for convolutions too."
            )
        narrow = tuple(
            Skip(f"{self.name} of {layer.node}", f"its sums have fewer than {self.min_features} terms")
            for layer in layers
            if layer not in wide
        )
        how = {"precision": "int8w", "group_size": None, "activations": "dynamic", "bits": usable_bits()}
        weights = tuple(planned(folded, layer, **how) for layer in wide)  # type: ignore[arg-type]
        return PackPlan(weights, (*skipped, *narrow))

    def apply(self, graph: GraphModule, plan: PackPlan, tools: Tools) -> GraphModule:
        """A copy with int8 weights and rounded inputs where the plan says, in eval mode for good.

        Raises:
            PlanError: the plan is for another graph.
        """
        folded = fold_batchnorm(graph)
        layers = require_same_layers(folded, plan)
        for how in plan.weights:
            pack_(
                folded, layers[how.layer], packed_nearest(layers[how.layer], get_tensor(folded, how.weight), how), how
            )
        quantize_inputs_(folded, layers.values())
        return finished_(folded)
