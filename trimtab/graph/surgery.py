"""Cut channels out of a graph, and prove that nothing else changed.

Masking at the source: cutting a channel means that no contraction (linear, convolution) reads it any more. So the
reference for a cut is the original graph in which, at every read of a contraction, the cut channels are set to zero:
the same as zeroing those columns of the reading weights. Zeroing the channel where it is produced would not do: a
BatchNorm, a bias or a sigmoid after it makes it non-zero again. Every cut is compared with that reference in eval
and in train mode (without dropout, which is random), in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from trimtab.errors import PlanError
from trimtab.graph.atoms import merged_masks
from trimtab.graph.calls import arguments, position, set_argument_
from trimtab.graph.capture import get_tensor
from trimtab.graph.compare import CHECK_BATCH, disagreement
from trimtab.graph.dims import Group, groups
from trimtab.graph.shapes import example_inputs, refresh_shapes_

Chosen = tuple[tuple[Group, tuple[int, ...]], ...]


def cut(graph: GraphModule, kept: Mapping[str, Sequence[int]], *, means: bool = False) -> GraphModule:
    """A copy of `graph` in which each named group has only its `kept` channels.

    Args:
        graph: a captured graph; it is not changed.
        kept: group name -> channels that stay, rising, as `groups(graph, means=means)` names and numbers them.
        means: whether the groups were found with means let pass.

    Returns:
        The smaller graph, in the mode of `graph`.

    Raises:
        PlanError: no such group or channel, no channel left, or the result is not the masked original.
    """
    chosen = _chosen(graph, kept, means=means)
    pruned = _sliced(graph, chosen)
    _check(graph, pruned, chosen)
    return refresh_shapes_(pruned)


def _chosen(graph: GraphModule, kept: Mapping[str, Sequence[int]], *, means: bool) -> Chosen:
    found = {group.name: group for group in groups(graph, means=means).cuttable}
    for name, channels in kept.items():
        if name not in found:
            known = ", ".join(found) or "none"
            raise PlanError(
                f"The graph has no group {name!r} that can be cut; it has: {known}. Plan on the graph that you cut."
            )
        size = found[name].size
        if not channels or sorted(set(channels)) != list(channels) or not 0 <= channels[0] <= channels[-1] < size:
            raise PlanError(
                f"Group {name!r} cannot keep {list(channels)}: expected at least one of its channels 0 to {size - 1}, "
                "each once and rising. Plan on the graph that you cut."
            )
    return tuple((found[name], tuple(channels)) for name, channels in kept.items())


def _sliced(graph: GraphModule, chosen: Chosen) -> GraphModule:
    pruned = copy.deepcopy(graph)
    _slice_tensors_(pruned, chosen)
    _rewrite_constants_(pruned, chosen)
    _keep_divisors_(pruned, chosen)
    pruned.recompile()
    return pruned


def _rewrite_constants_(pruned: GraphModule, chosen: Chosen) -> None:
    masks = merged_masks(
        ((constant.node, constant.argument, constant.item), constant.place, channels)
        for group, channels in chosen
        for constant in group.constants
    )
    nodes = {node.name: node for node in pruned.graph.nodes}
    for (name, argument, item), mask in masks.items():
        old = arguments(nodes[name])[argument]
        number = old if item is None else old[item]
        new: Any = int(mask[: number if number >= 0 else number + len(mask)].sum())
        if item is not None:
            new = [*old[:item], new, *old[item + 1 :]]
        set_argument_(nodes[name], argument, new)


def _keep_divisors_(pruned: GraphModule, chosen: Chosen) -> None:
    """Let every mean over cut channels divide by as many as before."""
    masks = merged_masks(
        ((read.node, read.dim), read.place, channels) for group, channels in chosen for read in group.means
    )
    nodes = {node.name: node for node in pruned.graph.nodes}
    for (name, _), mask in masks.items():
        node = nodes[name]
        with pruned.graph.inserting_after(node):
            scaled = pruned.graph.call_function(torch.ops.aten.mul.Tensor, (node, float(mask.double().mean())))
        node.replace_all_uses_with(scaled, delete_user_cb=lambda user, scaled=scaled: user is not scaled)


def _slice_tensors_(pruned: GraphModule, chosen: Chosen) -> None:
    masks: dict[str, dict[int, Tensor]] = {}
    uses = (((use.name, use.dim), use.place, channels) for group, channels in chosen for use in group.uses)
    for (name, dim), mask in merged_masks(uses).items():
        masks.setdefault(name, {})[dim] = mask
    originals = {name: get_tensor(pruned, name) for name in masks}
    aliases: dict[int, list[str]] = {}
    for name in dict.fromkeys(str(node.target) for node in pruned.graph.nodes if node.op == "get_attr"):
        aliases.setdefault(id(get_tensor(pruned, name)), []).append(name)
    for name, dims in masks.items():
        original = originals[name]
        new = original.detach()
        for dim, mask in dims.items():
            new = new.index_select(dim, mask.nonzero().flatten().to(new.device))
        new = new.clone(memory_format=torch.contiguous_format)
        if isinstance(original, nn.Parameter):
            new = nn.Parameter(new, requires_grad=original.requires_grad)
        # Tied weights stay tied: every name of the old tensor gets the one new tensor.
        for alias in aliases[id(original)]:
            path, _, leaf = alias.rpartition(".")
            setattr(pruned.get_submodule(path), leaf, new)


def _check(graph: GraphModule, pruned: GraphModule, chosen: Chosen) -> None:
    wrong = _disagreement(graph, pruned, chosen)
    if wrong is None:
        return
    alone = [(one, _disagreement(graph, _sliced(graph, (one,)), (one,))) for one in chosen]
    guilty = [group.name for (group, _), text in alone if text is not None]
    raise PlanError(
        f"Cutting {', '.join(guilty) or 'these groups together'} would change more than the cut channels: {wrong}. "
        "The rule of an operation on their way is wrong: leave them out of the plan, and report the model."
    )


def _disagreement(graph: GraphModule, pruned: GraphModule, chosen: Chosen) -> str | None:
    """How `pruned` differs from the masked original, in words; None if it does not."""
    masks = _masks(chosen)
    examples = example_inputs(graph, batch_size=CHECK_BATCH)
    return disagreement(graph, pruned, examples, run=lambda reference: _Masked(reference, masks))


Mask = tuple[str, int | None, int, Tensor]  # an argument, an item of it, its dim, what stays


def _masks(chosen: Chosen) -> dict[str, list[Mask]]:
    masks: dict[str, list[Mask]] = {}
    for group, channels in chosen:
        for read in group.reads:
            masks.setdefault(read.node, []).append((read.argument, read.item, read.dim, read.place.mask(channels)))
    return masks


class _Masked(Interpreter):
    """Runs a graph with cut channels set to zero where contractions read them."""

    def __init__(self, graph: GraphModule, masks: dict[str, list[Mask]]) -> None:
        super().__init__(graph)
        self.masks = masks

    def fetch_args_kwargs_from_env(self, n: Node) -> Any:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        for argument, item, dim, mask in self.masks.get(n.name, ()):
            at = position(n, argument)
            x = args[at] if at < len(args) else kwargs[argument]
            if item is None:
                masked: Any = _zeroed(x, dim, mask)
            else:
                masked = [*x[:item], _zeroed(x[item], dim, mask), *x[item + 1 :]]
            if at < len(args):
                args = (*args[:at], masked, *args[at + 1 :])
            else:
                kwargs = {**kwargs, argument: masked}
        return args, kwargs


def _zeroed(x: Tensor, dim: int, mask: Tensor) -> Tensor:
    return torch.where(mask.to(x.device).view(-1, *[1] * (x.ndim - dim - 1)), x, 0.0)
