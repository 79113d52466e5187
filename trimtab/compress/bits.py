"""Which weights get 8 bits where 4 are too few: the fewest bytes whose rounding moves the outputs by a bound at most.

How far each layer moves the outputs with 4 and with 8 bits comes out of the same backward pass (`sensitivity.py`); to
first order the errors of layers add up, so the choice is a knapsack: the fewest bytes that take enough error away.
HAWQ-V3 (Yao et al. 2021) solves such a one with the loss's curvature. Differs: here the outputs themselves are what
has to stay, the knapsack is solved exactly (errors to a thousandth of what is needed), and the model as a whole is
measured on `select` and the knapsack solved anew until that is within the bound. Weights are rounded to nearest for
it; GPTQ loses less. Cost: two backward passes on a few samples, and a run of the model for each round.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence

import numpy as np
from torch.fx import GraphModule, Node

from trimtab.compress.calibration import Layer
from trimtab.compress.packing import PackedWeight, PackPlan, rounded, weight_argument
from trimtab.compress.sensitivity import Change, moved_by, relative_error
from trimtab.core import Skip, Split
from trimtab.errors import PlanError
from trimtab.graph.calls import arguments
from trimtab.graph.capture import get_tensor

PARTS, ROUNDS = 1000, 8
Choice = tuple[PackedWeight, PackedWeight]


def fewest_bits(
    graph: GraphModule, layers: Sequence[Layer], choices: Sequence[Choice], *, data: Split, most_error: float
) -> PackPlan:
    """The plan of fewest bytes with which the outputs move by `most_error` at most; which layers are wide is said.

    Args:
        graph: in eval mode, BatchNorm folded.
        layers: whose weights are packed.
        choices: of each layer, how its weight may be stored, in fewer bits first.
        data: where the outputs are compared.
        most_error: a share of the variance of the outputs.

    Raises:
        PlanError: they move further with the second choice of every layer.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    changes = {
        layer.node: _changes(nodes[layer.node], layer, both) for layer, both in zip(layers, choices, strict=True)
    }
    moved = moved_by(graph, changes, data)
    narrow = [moved[layer.node][0] for layer in layers]
    gains = [max(0.0, moved[layer.node][0] - moved[layer.node][1]) for layer in layers]
    costs = [wide.num_bytes - small.num_bytes for small, wide in choices]
    chosen: set[int] = set()
    errors: list[float] = []
    while True:
        weights = tuple(both[place in chosen] for place, both in enumerate(choices))
        errors.append(error := relative_error(graph, _rounded_copy(graph, layers, weights), data))
        if error <= most_error:
            told = f"4 bits everywhere move the outputs by {errors[0]:.2g} of their variance, these {error:.2g}"
            alone = [f"{told}; 4 bits here alone {narrow[place]:.2g}" for place in sorted(chosen)]
            names = [f"{choices[place][0].precision} of {layers[place].node}" for place in sorted(chosen)]
            return PackPlan(weights, tuple(Skip(*pair) for pair in zip(names, alone, strict=True)))
        if len(chosen) == len(layers):
            break
        gained = sum(gains[place] for place in chosen)
        need = gained + (sum(narrow) - gained) * (1 - most_error / error)
        more = math.isfinite(need) and need > 0 and len(errors) < ROUNDS
        chosen = cheapest(costs, gains, need) if more else set(range(len(layers)))
    raise PlanError(
        f"8 bits in every layer move the outputs by {error:.2g} of their variance, more than most_error="
        f"{most_error:g}. Give a larger most_error, or leave it out and judge the result by your metric."
    )


def cheapest(costs: Sequence[int], gains: Sequence[float], need: float) -> set[int]:
    """The places whose gains add up to `need` at the least cost; all of them if that is not enough.

    >>> sorted(cheapest([5, 3, 3], [1.0, 0.6, 0.5], 1.0)), sorted(cheapest([7, 3, 3], [1.0, 0.6, 0.5], 1.0))
    ([0], [1, 2])
    """
    units = [min(PARTS, math.floor(gain / need * PARTS)) for gain in gains]
    least = np.full(PARTS + 1, np.inf)  # by units gained
    least[0] = 0.0
    taken = np.zeros((len(costs), PARTS + 1), dtype=bool)
    for place, (cost, unit) in enumerate(zip(costs, units, strict=True)):
        with_it = least[np.maximum(np.arange(PARTS + 1) - unit, 0)] + cost
        taken[place] = with_it < least
        least = np.minimum(with_it, least)
    if not np.isfinite(least[PARTS]):
        return set(range(len(costs)))
    found, left = set(), PARTS
    for place in reversed(range(len(costs))):
        if taken[place, left]:
            found.add(place)
            left = max(0, left - units[place])
    return found


def _changes(node: Node, layer: Layer, both: Choice) -> list[Change]:
    """The weight as it comes out of its bytes, for each way to store it."""
    read = arguments(node)[weight_argument(node)]
    return [{read.name: functools.partial(rounded, layer, how)} for how in both]


def _rounded_copy(graph: GraphModule, layers: Sequence[Layer], weights: Sequence[PackedWeight]) -> GraphModule:
    """A copy whose weights are those that come out of their bytes."""
    result = copy.deepcopy(graph)
    for layer, how in zip(layers, weights, strict=True):
        weight = get_tensor(result, layer.weight)
        weight.data.copy_(rounded(layer, how, weight.detach()))
    return result
