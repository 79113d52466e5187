"""How much each channel of a group matters, by six measures; every one gives one number per channel.

magnitude: the L2 norm of a channel's slice of each weight that makes, scales or reads it, relative to the mean over the
group's channels, averaged. After Li et al., "Pruning Filters for Efficient ConvNets" (2017), which ranks by the L1 norm
of the producing filter alone, and Fang et al., "DepGraph" (2023), which sums over the whole group.
taylor: |sum of gradient x weight|, the first-order change of the loss when the channel goes, a mean over batches.
Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019).
fisher: half the sum of gradient^2 x weight^2, the second-order change with a diagonal Fisher matrix for the Hessian.
LeCun et al., "Optimal Brain Damage" (1990). The mean gradient of 8 samples, squared and times 8, stands for one
sample's: exact where the gradients of samples are independent with mean zero, as at a minimum. A model that was trained
here brings the squares that its optimizer kept (`graph/fisher.py`), of batches as large as the training's: as long as
its weights are what they were, these are taken, at no pass over data, and `Scores.by` says so, or why not.
bn_scale: |gamma| of the BatchNorms on the channel. Liu et al., "Network Slimming" (2017). By magnitude where none is.
activation: sum of |weight| x the L2 norm of what it multiplies, over the layers that read the channel.
Sun et al., "Wanda" (2023), for single weights; where no fixed weight reads it, the norm alone.
obs: see `saliency.py`.

taylor and fisher look at the weights whose columns are zeroed when the channel goes: those that read it, or, where none
does (inside attention), those that make it. Cost: magnitude and bn_scale one pass over the weights; the others one
pass over the calibration samples, taylor and fisher with gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from trimtab.compress.calibration import batches, layer_of, watch
from trimtab.compress.saliency import saliencies
from trimtab.core import Split, Task
from trimtab.errors import PlanError
from trimtab.graph.capture import get_tensor
from trimtab.graph.dims import Group, Use
from trimtab.graph.fisher import Fisher, fisher_of

FISHER_BATCH = 8
aten = torch.ops.aten


@dataclass(frozen=True)
class Scores:
    """One number for each channel, [size] in float64, at least 0, and the measure that gave them.

    curve: as in `saliency.py`, how far the outputs move at some widths, where the measure tells it.
    """

    values: Tensor
    by: str
    curve: tuple[tuple[int, float], ...] = ()


def importances(
    graph: GraphModule,
    groups: list[Group],
    measure: str,
    *,
    task: Task | None,
    data: Split | None,
    curves: bool = False,
) -> dict[str, Scores]:
    """The scores of every group's channels by one of `MEASURES`.

    Args:
        graph: not changed.
        groups: of this graph.
        measure: a name in `MEASURES`.
        task: gives the loss; needed by those in `NEED_DATA`, as are the samples in `data`.
        data: calibration samples.
        curves: measure them on the task's select split, where the measure can.

    Raises:
        PlanError: a weight or a score is not finite.
    """
    if any(get_tensor(graph, use.name).is_meta for group in groups for use in group.uses):
        # A shape without values: the widths of a plan can be had, its choice of channels means nothing.
        return {group.name: Scores(torch.ones(group.size, dtype=torch.float64), NO_VALUES) for group in groups}
    for group in groups:
        _require_finite(graph, group)
    if measure in NEED_DATA:
        assert task is not None
        assert data is not None
        found = (NEED_DATA | (WITH_CURVES if curves else {}))[measure](graph, groups, task, data)
    else:
        found = FROM_WEIGHTS[measure](graph, groups)
    for name, scores in found.items():
        if not scores.values.isfinite().all():
            raise PlanError(
                f"The importance of {name} by {measure!r} is NaN or infinite, though its weights are finite: the "
                "model's values or its loss on the calibration samples are not. Check the data and the loss."
            )
    return found


def magnitude(graph: GraphModule, group: Group) -> Tensor:
    """How much each channel of a group weighs: mean over its weights of the norm relative to the channels' mean.

    Returns:
        [size] in float64; around 1.

    Raises:
        PlanError: a weight is not finite.
    """
    _require_finite(graph, group)
    uses = [use for use in group.uses if use.role != "follower"] or group.uses
    squares = [_summed(get_tensor(graph, use.name).detach().double().square(), use) for use in uses]
    return _mean_of_relative([square.sqrt() for square in squares])


def _magnitudes(graph: GraphModule, groups: list[Group]) -> dict[str, Scores]:
    return {group.name: Scores(magnitude(graph, group), "magnitude") for group in groups}


def _bn_scales(graph: GraphModule, groups: list[Group]) -> dict[str, Scores]:
    norms = [node for node in graph.graph.nodes if node.target is aten.batch_norm.default]
    gammas = {str(node.args[1].target) for node in norms if isinstance(node.args[1], Node)}
    found = {}
    for group in groups:
        scales = [_summed(get_tensor(graph, u.name).detach().double().abs(), u) for u in group.uses if u.name in gammas]
        if scales:
            found[group.name] = Scores(_mean_of_relative(scales), "bn_scale")
        else:
            found[group.name] = Scores(magnitude(graph, group), "magnitude, as no BatchNorm scales it")
    return found


def _taylor(graph: GraphModule, groups: list[Group], task: Task, data: Split) -> dict[str, Scores]:
    def change(group: Group, products: Mapping[str, Tensor]) -> Tensor:
        return sum((_summed(products[use.name], use) for use in _zeroed(group)), torch.zeros(())).abs()

    return _by_gradients(graph, groups, task, batches(data), change, "taylor")


def _fisher(graph: GraphModule, groups: list[Group], task: Task, data: Split) -> dict[str, Scores]:
    handed = fisher_of(graph)
    why_not = handed and (handed.why_not(graph) or _unknown(graph, groups, handed))
    if handed and not why_not:
        return _by_squares(graph, groups, handed)

    def change(group: Group, products: Mapping[str, Tensor]) -> Tensor:
        squares = (_summed(products[use.name].square(), use) for use in _zeroed(group))
        return sum(squares, torch.zeros(())) * (FISHER_BATCH / 2)

    by = f"fisher, of samples, as {why_not}" if why_not else "fisher"
    return _by_gradients(graph, groups, task, batches(data, FISHER_BATCH), change, by)


def _unknown(graph: GraphModule, groups: list[Group], handed: Fisher) -> str | None:
    """Why the training's squares are not enough: one weight that would be zeroed has none."""
    known = {id(get_tensor(graph, name)) for name in handed.squares}
    wanted = (use.name for group in groups for use in _zeroed(group))
    missing = next((name for name in wanted if id(get_tensor(graph, name)) not in known), None)
    return missing and f"{handed.by} kept no squares of {missing}"


def _by_squares(graph: GraphModule, groups: list[Group], handed: Fisher) -> dict[str, Scores]:
    """Half the sum of the training's mean gradient^2 x weight^2."""
    squares = {id(get_tensor(graph, name)): square for name, square in handed.squares.items()}
    found = {}
    for group in groups:
        uses = [(use, get_tensor(graph, use.name)) for use in _zeroed(group)]
        sums = (_summed(weight.detach().double().square() * squares[id(weight)].double(), use) for use, weight in uses)
        found[group.name] = Scores(sum(sums, torch.zeros(())) / 2, f"fisher, {handed.by}")
    return found


def _by_gradients(
    graph: GraphModule,
    groups: list[Group],
    task: Task,
    data: list[Split],
    change: Callable[[Group, Mapping[str, Tensor]], Tensor],
    by: str,
) -> dict[str, Scores]:
    """A mean over batches of change(group, gradient x weight of each weight)."""
    own = copy.deepcopy(graph).eval().requires_grad_(requires_grad=False)
    weights = {use.name: get_tensor(own, use.name) for group in groups for use in _zeroed(group)}
    distinct = {id(weight): weight.requires_grad_() for weight in weights.values()}
    totals = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    for batch in data:
        loss = task.loss(own(*(x.clone() for x in batch.inputs)).float(), batch.targets)
        grads = torch.autograd.grad(loss, list(distinct.values()), allow_unused=True)
        by_id = dict(zip(distinct, grads, strict=True))
        products = {
            name: torch.zeros_like(weight).double() if grad is None else weight.detach().double() * grad.double()
            for name, weight in weights.items()
            for grad in (by_id[id(weight)],)
        }
        for group in groups:
            totals[group.name] += change(group, products) / len(data)
    return {name: Scores(total, by) for name, total in totals.items()}


def _activations(graph: GraphModule, groups: list[Group], task: Task, data: Split) -> dict[str, Scores]:
    nodes = {node.name: node for node in graph.graph.nodes}
    squares: dict[tuple[str, str, int | None, int], Tensor] = {}
    wanted: dict[str, set[tuple[str, int | None, int]]] = {}
    for group in groups:
        for read in group.reads:
            wanted.setdefault(read.node, set()).add((read.argument, read.item, read.dim))

    def see(node: Node, values: dict[str, Any]) -> None:
        for argument, item, dim in wanted[node.name]:
            x = values[argument] if item is None else values[argument][item]
            square = x.double().square().movedim(dim, 0).flatten(1).sum(1)
            at = (node.name, argument, item, dim)
            squares[at] = squares[at] + square if at in squares else square

    watch(graph, wanted, batches(data), see)
    found = {}
    for group in groups:
        scores = []
        for read in group.reads:
            norms = squares[read.node, read.argument, read.item, read.dim].sqrt()
            layer = layer_of(graph, nodes[read.node])
            if layer is not None and layer.argument == read.argument:
                weight = get_tensor(graph, layer.weight).detach().double().abs()
                each = len(norms) // layer.num_groups
                sums = layer.matrix(weight).sum(1).reshape(layer.num_groups, each, -1).sum(2)
                norms = norms * sums.flatten()
            scores.append(norms[read.place.table()].sum(1))
        found[group.name] = Scores(_mean_of_relative(scores), "activation")
    return found


def _obs_curves(graph: GraphModule, groups: list[Group], task: Task, data: Split) -> dict[str, Scores]:
    return _obs(graph, groups, task, data, judge=task.select)


def _obs(
    graph: GraphModule, groups: list[Group], task: Task, data: Split, judge: Split | None = None
) -> dict[str, Scores]:
    solved = saliencies(graph, groups, batches(data), judge=judge)
    found = {name: Scores(one.values, "obs", one.curve) for name, one in solved.items()}
    rest = [group for group in groups if group.name not in found]
    others = _activations(graph, rest, task, data) if rest else {}
    return found | {
        name: Scores(s.values, "activation, as no layer that reads it can be solved") for name, s in others.items()
    }


def _zeroed(group: Group) -> list[Use]:
    """The weights that the channel's going takes to zero."""
    for role in ("consumer", "producer"):
        uses = [use for use in group.uses if use.role == role]
        if uses:
            return uses
    return list(group.uses)


def _summed(tensor: Tensor, use: Use) -> Tensor:
    """The sum over each channel's slice of a tensor; [size]."""
    return tensor.movedim(use.dim, 0).reshape(use.place.width, -1).sum(1)[use.place.table()].sum(1)


def _mean_of_relative(scores: list[Tensor]) -> Tensor:
    tiny = torch.finfo(torch.float64).tiny
    return torch.stack([score / score.mean().clamp_min(tiny) for score in scores]).mean(dim=0)


def _require_finite(graph: GraphModule, group: Group) -> None:
    for use in group.uses:
        if not get_tensor(graph, use.name).detach().isfinite().all():
            raise PlanError(
                f"The importance of {group.name} is NaN: {use.name} holds NaN or inf. Load a sound checkpoint."
            )


NO_VALUES = "nothing: the weights are on the meta device"
FROM_WEIGHTS: dict[str, Callable[[GraphModule, list[Group]], dict[str, Scores]]] = {
    "magnitude": _magnitudes,
    "bn_scale": _bn_scales,
}
Measure = Callable[[GraphModule, list[Group], Task, Split], dict[str, Scores]]
NEED_DATA: dict[str, Measure] = {"taylor": _taylor, "fisher": _fisher, "activation": _activations, "obs": _obs}
WITH_CURVES: dict[str, Measure] = {"obs": _obs_curves}
MEASURES = (*FROM_WEIGHTS, *NEED_DATA)
