"""One rule per ATen op: how the dims of its output are made of the dims of its inputs (the algebra is in `dims.py`).

A rule gets the `Flow` and the node, joins what must stay equal, freezes what must keep its size, notes the
contractions and the constants that hold a size, and returns the output's dims. None means: not this form of the op;
then everything is frozen and listed, as for an op that is not in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

if TYPE_CHECKING:
    from trimtab.graph.dims import Dim, Dims, Flow

    Rule = Callable[[Flow, Node], Dims | None]

aten = torch.ops.aten


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of a call of an ATen op by their names in its schema, defaults included."""
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False))  # type: ignore[union-attr]
    defaults = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}  # type: ignore[union-attr]
    return defaults | given | node.kwargs


def pointwise(flow: Flow, node: Node) -> Dims | None:
    """Output [i, j, ...] depends on its inputs at [i, j, ...] alone, with broadcasting."""
    sources = [flow.dims[source] for source in node.all_input_nodes if source in flow.dims]
    ndim = max(len(dims) for dims in sources)
    out: list[Dim] = [()] * ndim
    for dims in sources:
        for place, dim in enumerate(dims, start=ndim - len(dims)):
            if out[place] and dim:
                flow.atoms.unify(out[place], dim)
            out[place] = out[place] or dim
    return tuple(out)


def linear(flow: Flow, node: Node) -> Dims | None:
    """[..., in] x [out, in] -> [..., out]."""
    a = arguments(node)
    x, weight, bias = flow.dims[a["input"]], flow.dims[a["weight"]], a["bias"]
    if len(weight) != 2:
        return None
    flow.atoms.unify(x[-1], weight[1])
    if bias is not None:
        flow.atoms.unify(weight[0], flow.dims[bias][0])
    flow.role(a["weight"], 0, "producer")
    flow.role(a["weight"], 1, "consumer")
    flow.write(node, a["weight"], weight[0])
    flow.read(node, "input", len(x) - 1, weight[1])
    return (*x[:-1], weight[0])


def conv(flow: Flow, node: Node) -> Dims | None:
    """[B, G*i, ...] x [G*o, i, ...] -> [B, G*o, ...]: G is 1, or stays and each group gives the same channels.

    In a depthwise convolution (i = 1) the groups are the channels: they are not summed over and can be cut.
    """
    a = arguments(node)
    x, weight, bias, num_groups = flow.dims[a["input"]], flow.dims[a["weight"]], a["bias"], a["groups"]
    spatial = len(weight) - 2
    channel = len(x) - spatial - 1
    depthwise = num_groups > 1 and weight[1] == ()
    group = flow.atoms.new(num_groups)
    flow.atoms.unify(x[channel], group + weight[1])
    out_sizes = (num_groups, a["weight"].meta["val"].shape[0] // num_groups)
    parts = flow.atoms.regroup(weight[0], out_sizes)
    if parts is None:
        return None
    flow.atoms.unify(parts[0], group)
    if bias is not None:
        flow.atoms.unify(weight[0], flow.dims[bias][0])
    flow.atoms.freeze((*x[channel + 1 :], *weight[2:]), f"{node.name} convolves over it")
    if depthwise:
        flow.atoms.freeze((parts[1],), f"it multiplies the channels of the depthwise {node.name}")
        flow.role(a["weight"], 0, "scale")
    else:
        flow.atoms.freeze((group,), f"it counts the groups of {node.name}, which stay: channels go evenly from each")
        flow.role(a["weight"], 0, "producer")
        flow.role(a["weight"], 1, "consumer")
        flow.write(node, a["weight"], weight[0])
        flow.read(node, "input", channel, weight[1])
    flow.constant(node, "groups", None, group)
    out = flow.fresh(node, why=f"{node.name} convolves over it")
    return (*x[:channel], weight[0], *out[channel + 1 :])


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


def softmax(flow: Flow, node: Node) -> Dims | None:
    """Normalised over one dim, which stays."""
    a = arguments(node)
    x = flow.dims[a["self"]]
    flow.atoms.freeze((x[a["dim"]],), f"{node.name} normalises over it")
    return x


def prelu(flow: Flow, node: Node) -> Dims | None:
    """A slope per channel (dim 1), or one for all."""
    a = arguments(node)
    x, slope = flow.dims[a["self"]], flow.dims[a["weight"]]
    if slope[0]:
        flow.atoms.unify(x[1], slope[0])
    return x


def pool(flow: Flow, node: Node, *, spatial: int) -> Dims | None:
    """Per channel; mixes the last `spatial` dims."""
    x = flow.dims[arguments(node)[node.target._schema.arguments[0].name]]  # type: ignore[union-attr]
    why = f"{node.name} pools over it"
    flow.atoms.freeze(x[-spatial:], why)
    return (*x[:-spatial], *flow.fresh(node, why=why)[-spatial:])


def reduce(flow: Flow, node: Node) -> Dims | None:
    """Reduced dims stay: a mean over fewer channels is another mean."""
    a = arguments(node)
    x = flow.dims[a["self"]]
    given = a.get("dim")
    listed = [given] if isinstance(given, int) else (given or range(len(x)))
    reduced = {dim % len(x) for dim in listed}
    flow.atoms.freeze([x[dim] for dim in reduced], f"{node.name} reduces it")
    kept = [() if dim in reduced else x[dim] for dim in range(len(x)) if a.get("keepdim") or dim not in reduced]
    return tuple(kept)


def reshape(flow: Flow, node: Node, *, sizes: str | None = None, first: str | None = None) -> Dims | None:
    """Dims split, merge, come and go; argument `sizes` holds the new sizes, those of dim `first` onwards."""
    a = arguments(node)
    x = flow.dims[node.all_input_nodes[0]]
    out = flow.atoms.regroup(tuple(atom for dim in x for atom in dim), flow.shape(node))
    if out is None:
        return None
    start = a[first] % len(x) if first else 0
    if sizes is None:
        return out
    for item, size in enumerate(a[sizes]):
        if isinstance(size, int) and size != -1:
            flow.constant(node, sizes, item, out[start + item])
        elif isinstance(size, Node):
            flow.atoms.freeze((out[start + item],), f"{node.name} takes a computed size for it")
    return out


def permute(flow: Flow, node: Node) -> Dims | None:
    """Dims change places."""
    a = arguments(node)
    x = flow.dims[a["self"]]
    return tuple(x[dim] for dim in a["dims"])


def transpose(flow: Flow, node: Node) -> Dims | None:
    """Two dims change places."""
    a = arguments(node)
    x = list(flow.dims[a["self"]])
    x[a["dim0"]], x[a["dim1"]] = x[a["dim1"]], x[a["dim0"]]
    return tuple(x)


def cat(flow: Flow, node: Node) -> Dims | None:
    """The joined dim stays whole, all others are tied."""
    a = arguments(node)
    sources = [flow.dims[source] for source in a["tensors"]]
    if len({len(dims) for dims in sources}) != 1:
        return None
    joined = a["dim"] % len(sources[0])
    out = list(flow.fresh(node, why=f"{node.name} joins it with others"))
    for dims in sources:
        flow.atoms.freeze((dims[joined],), f"{node.name} joins it with others")
        for place, dim in enumerate(dims):
            if place != joined:
                flow.atoms.unify(sources[0][place], dim)
    return tuple(out[joined] if place == joined else dim for place, dim in enumerate(sources[0]))


def size_read(flow: Flow, node: Node) -> Dims | None:
    """A size as a number: what it is used for is not followed, so the dim stays."""
    a = arguments(node)
    flow.atoms.freeze((flow.dims[a["self"]][a["dim"]],), f"{node.name} reads its size")
    return ()


def metadata_check(flow: Flow, node: Node) -> Dims | None:
    """An assertion that export writes; one on sizes would have to be rewritten."""
    a = arguments(node)
    return () if a["size"] is None and a["stride"] is None else None


POINTWISE = (
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.relu6_.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.elu.default,
    aten.elu_.default,
    aten.gelu.default,
    aten.silu.default,
    aten.silu_.default,
    aten.mish.default,
    aten.mish_.default,
    aten.softplus.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.hardsigmoid.default,
    aten.hardsigmoid_.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.sigmoid.default,
    aten.sigmoid_.default,
    aten.tanh.default,
    aten.tanh_.default,
    aten.clamp.default,
    aten.clamp_.default,
    aten.abs.default,
    aten.neg.default,
    aten.exp.default,
    aten.log.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.erf.default,
    aten.sin.default,
    aten.cos.default,
    aten.pow.Tensor_Scalar,
    aten.add.Tensor,
    aten.add_.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub_.Tensor,
    aten.sub.Scalar,
    aten.rsub.Scalar,
    aten.mul.Tensor,
    aten.mul_.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div_.Tensor,
    aten.div.Scalar,
    aten.maximum.default,
    aten.minimum.default,
    aten.where.self,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.to.dtype,
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
)

RULES: dict[Any, Rule] = {
    **dict.fromkeys(POINTWISE, pointwise),
    aten.linear.default: linear,
    aten.conv1d.default: conv,
    aten.conv1d.padding: conv,
    aten.conv2d.default: conv,
    aten.conv2d.padding: conv,
    aten.conv3d.default: conv,
    aten.conv3d.padding: conv,
    aten.batch_norm.default: batch_norm,
    aten.layer_norm.default: layer_norm,
    aten.rms_norm.default: layer_norm,
    aten.softmax.int: softmax,
    aten.log_softmax.int: softmax,
    aten.prelu.default: prelu,
    aten.max_pool1d.default: partial(pool, spatial=1),
    aten.max_pool2d.default: partial(pool, spatial=2),
    aten.max_pool3d.default: partial(pool, spatial=3),
    aten.avg_pool1d.default: partial(pool, spatial=1),
    aten.avg_pool2d.default: partial(pool, spatial=2),
    aten.avg_pool3d.default: partial(pool, spatial=3),
    aten.adaptive_avg_pool1d.default: partial(pool, spatial=1),
    aten.adaptive_avg_pool2d.default: partial(pool, spatial=2),
    aten.adaptive_avg_pool3d.default: partial(pool, spatial=3),
    aten.mean.dim: reduce,
    aten.mean.default: reduce,
    aten.sum.dim_IntList: reduce,
    aten.amax.default: reduce,
    aten.amin.default: reduce,
    aten.flatten.using_ints: reshape,
    aten.squeeze.default: reshape,
    aten.squeeze.dim: reshape,
    aten.squeeze.dims: reshape,
    aten.unsqueeze.default: reshape,
    aten.view.default: partial(reshape, sizes="size"),
    aten.reshape.default: partial(reshape, sizes="shape"),
    aten.unflatten.int: partial(reshape, sizes="sizes", first="dim"),
    aten.permute.default: permute,
    aten.transpose.int: transpose,
    aten.cat.default: cat,
    aten.sym_size.int: size_read,
    aten._assert_tensor_metadata.default: metadata_check,
}
