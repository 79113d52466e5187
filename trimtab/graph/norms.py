"""Rules for ops that mix values along a dim in a way that a cut would change: norms, reductions, pooling, scans.

What a rule is, `rules.py` says. The dims that they run along stay; a plain sum is the exception, since channels that
are cut count as zero where they are summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.fx import Node

from trimtab.graph.calls import arguments

if TYPE_CHECKING:
    from trimtab.graph.atoms import Dims
    from trimtab.graph.dims import Flow


def batch_norm(flow: Flow, node: Node) -> Dims | None:
    """Per channel (dim 1); in train mode its statistics run over all other dims."""
    a = arguments(node)
    x = flow.dims[a["input"]]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a[name] is not None:
            flow.atoms.unify(x[1], flow.dims[a[name]][0])
    flow.role(a["weight"], 0, "scale")
    flow.atoms.freeze((x[0], *x[2:]), f"{node.name} takes statistics over it")
    return x


def group_norm(flow: Flow, node: Node) -> Dims | None:
    """Normalised over the channels of each group, so whole groups can go: dim 1 is groups * channels of a group."""
    a = arguments(node)
    x = flow.dims[a["input"]]
    parts = flow.atoms.regroup(x[1], (a["num_groups"], flow.atoms.width(x[1]) // a["num_groups"]))
    if parts is None:
        return None
    flow.atoms.freeze((parts[1], *x[2:]), f"{node.name} normalises over it")
    flow.constant(node, "num_groups", None, parts[0])
    for name in ("weight", "bias"):
        if a[name] is not None:
            flow.atoms.unify(x[1], flow.dims[a[name]][0])
    flow.role(a["weight"], 0, "scale")
    return x


def layer_norm(flow: Flow, node: Node) -> Dims | None:
    """Normalised over its last dims, which stay: a cut would change mean and variance."""
    a = arguments(node)
    x, normalised = flow.dims[a["input"]], len(a["normalized_shape"])
    flow.atoms.freeze(x[-normalised:], f"{node.name} normalises over it")
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            for ours, theirs in zip(x[-normalised:], flow.dims[a[name]], strict=True):
                flow.atoms.unify(ours, theirs)
    return x


def along(flow: Flow, node: Node) -> Dims | None:
    """One dim is mixed and stays: softmax, cumulative sums, sorting."""
    x = flow.first(node)
    flow.atoms.freeze((x[arguments(node)["dim"]],), f"{node.name} runs along it")
    return x


def along_twice(flow: Flow, node: Node) -> tuple[Dims, ...] | None:
    """As `along`, giving values and indices."""
    x = along(flow, node)
    return None if x is None else (x, x)


def top(flow: Flow, node: Node) -> tuple[Dims, ...] | None:
    """The k largest along a dim, which stays, and their places."""
    x = flow.first(node)
    d = arguments(node)["dim"] % len(x)
    count = flow.atoms.new(node.meta["val"][0].shape[d])
    flow.atoms.freeze((x[d], count), f"{node.name} ranks along it")
    out = (*x[:d], count, *x[d + 1 :])
    return out, out


def last_two(flow: Flow, node: Node) -> Dims | None:
    """A triangle of each matrix: both of its dims stay."""
    x = flow.first(node)
    flow.atoms.freeze(x[-2:], f"{node.name} takes a triangle of it")
    return x


def prelu(flow: Flow, node: Node) -> Dims | None:
    """A slope per channel (dim 1), or one for all."""
    a = arguments(node)
    x, slope = flow.dims[a["self"]], flow.dims[a["weight"]]
    if slope and slope[0]:
        flow.atoms.unify(x[1], slope[0])
    return x


def pool(flow: Flow, node: Node, *, spatial: int) -> Dims | None:
    """Per channel; mixes the last `spatial` dims."""
    x = flow.first(node)
    why = f"{node.name} pools over it"
    flow.atoms.freeze(x[-spatial:], why)
    return (*x[:-spatial], *flow.fresh(node, why=why)[-spatial:])


def per_channel(flow: Flow, node: Node) -> Dims | None:
    """Per sample and channel (dims 0 and 1); whatever happens to the other dims, they stay."""
    x = flow.first(node)
    why = f"{node.name} moves in it"
    for source in node.all_input_nodes[1:]:
        flow.atoms.freeze(flow.dims.get(source, ()), why)
    flow.atoms.freeze(x[2:], why)
    return (*x[:2], *flow.fresh(node, why=why)[2:])


def _reduced(node: Node, ndim: int) -> set[int]:
    given: Any = arguments(node).get("dim")
    listed = [given] if isinstance(given, int) else (given or range(ndim))
    return {dim % ndim for dim in listed}


def _kept(node: Node, x: Dims, reduced: set[int]) -> Dims:
    keepdim = arguments(node).get("keepdim")
    return tuple(() if dim in reduced else x[dim] for dim in range(len(x)) if keepdim or dim not in reduced)


def mean(flow: Flow, node: Node) -> Dims | None:
    """As `reduce`; or, if the flow lets means pass, a sum whose divisor a cut keeps."""
    return add_up(flow, node) if flow.means else reduce(flow, node)


def reduce(flow: Flow, node: Node) -> Dims | None:
    """Reduced dims stay: a mean over fewer channels is another mean."""
    x = flow.first(node)
    reduced = _reduced(node, len(x))
    flow.atoms.freeze([x[dim] for dim in reduced], f"{node.name} reduces it")
    return _kept(node, x, reduced)


def reduce_twice(flow: Flow, node: Node) -> tuple[Dims, ...] | None:
    """As `reduce`, giving two tensors: values and indices, or variance and mean."""
    dims = reduce(flow, node)
    return None if dims is None else (dims, dims)


def add_up(flow: Flow, node: Node) -> Dims | None:
    """A sum is a contraction: channels that are cut count as zero."""
    x = flow.first(node)
    reduced = _reduced(node, len(x))
    for dim in reduced:
        flow.read(node, "self", dim, x[dim])
    return _kept(node, x, reduced)
