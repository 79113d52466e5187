"""One rule per ATen op: how the dims of its output are made of the dims of its inputs (the algebra is in `atoms.py`).

A rule gets the `Flow` and the node, joins what must stay equal, freezes what must keep its size, notes the
contractions and the constants that count a dim, and returns the output's dims, or a tuple of them for an op with
several outputs. None means: not this form of the op; then everything is frozen and listed, as for an op that is not
in the table. The rules are in `contractions.py`, `movements.py` and `norms.py`; those for ops that work on each
element are here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from trimtab.graph.calls import arguments
from trimtab.graph.contractions import (
    add_matmul,
    attention,
    conv,
    conv_transpose,
    einsum,
    embedding,
    linear,
    matmul,
    recurrent,
)
from trimtab.graph.movements import (
    cat,
    channel_shuffle,
    expand,
    gather,
    image_to_columns,
    index,
    index_select,
    move_dims,
    moved_along,
    pad,
    permute,
    pick,
    pixel_shuffle,
    pixel_unshuffle,
    repeat,
    repeat_each,
    reshape,
    reverse_dims,
    select,
    slices,
    split,
    stack,
    transpose,
    unbind,
    windows,
)
from trimtab.graph.norms import (
    add_up,
    along,
    along_twice,
    batch_norm,
    group_norm,
    last_two,
    layer_norm,
    mean,
    per_channel,
    pool,
    prelu,
    reduce,
    reduce_twice,
    top,
)

if TYPE_CHECKING:
    from trimtab.graph.atoms import Dim, Dims
    from trimtab.graph.dims import Flow

    Rule = Callable[[Flow, Node], Dims | tuple[Dims, ...] | None]

aten = torch.ops.aten


def pointwise(flow: Flow, node: Node) -> Dims | None:
    """Output [i, j, ...] depends on its inputs at [i, j, ...] alone, with broadcasting."""
    sources = [flow.dims[source] for source in node.all_input_nodes if source in flow.dims]
    ndim = len(node.meta["val"].shape)
    if any(len(dims) > ndim for dims in sources):
        return None
    out: list[Dim] = [()] * ndim
    for dims in sources:
        for place, dim in enumerate(dims, start=ndim - len(dims)):
            if out[place] and dim:
                flow.atoms.unify(out[place], dim)
            out[place] = out[place] or dim
    return tuple(out)


def filled(flow: Flow, node: Node) -> Dims | None:
    """The same value everywhere: its dims are free, and argument `size` holds them."""
    out = tuple(flow.atoms.new(size) for size in flow.shape(node))
    for item, size in enumerate(arguments(node)["size"]):
        if isinstance(size, int):
            flow.constant(node, "size", item, out[item])
    return out


def like_first(flow: Flow, node: Node) -> Dims | None:
    """In the shape of the first argument, whatever the others are."""
    return flow.first(node)


def size_read(flow: Flow, node: Node) -> Dims | None:
    """A size as a number: what it is used for is not followed, so the dim stays."""
    a = arguments(node)
    flow.atoms.freeze((flow.dims[a["self"]][a["dim"]],), f"{node.name} reads its size")
    return ()


# Every overload of these works on each element alone, with broadcasting; so do those with a trailing underscore.
POINTWISE = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus hardswish hardsigmoid hardtanh sigmoid tanh "
    "hardshrink softshrink threshold log_sigmoid rrelu clamp clamp_min clamp_max abs neg exp exp2 expm1 log log1p "
    "log2 log10 sqrt rsqrt square reciprocal erf erfc sin cos tan asin acos atan atan2 sinh cosh sign sgn floor "
    "ceil round trunc frac nan_to_num isnan isinf isfinite add sub rsub mul div true_divide floor_divide remainder "
    "fmod pow maximum minimum fmax fmin where addcmul addcdiv lerp masked_fill logical_and logical_or logical_not "
    "logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor __and__ __or__ __xor__ eq ne lt le gt ge clone "
    "contiguous detach alias lift_fresh_copy lift_fresh to _to_copy dropout feature_dropout alpha_dropout "
    "native_dropout copy fill zero bernoulli special_expit special_log1p xlogy heaviside hypot logaddexp ldexp "
    "multiply divide subtract absolute negative clip greater less greater_equal less_equal not_equal"
)


def _overloads(names: str) -> list[Any]:
    """Every overload of the ops named, and of their in-place forms, as far as this PyTorch has them."""
    packets = [getattr(aten, form, None) for name in names.split() for form in (name, f"{name}_")]
    return [getattr(packet, overload) for packet in packets if packet is not None for overload in packet.overloads()]


def _table(names: str, rule: Rule) -> dict[Any, Rule]:
    return dict.fromkeys(_overloads(names), rule)


RULES: dict[Any, Rule] = {
    **_table(POINTWISE, pointwise),
    **_table("linear", linear),
    **_table("conv1d conv2d conv3d", conv),
    **_table("conv_transpose1d conv_transpose2d conv_transpose3d", conv_transpose),
    **_table("matmul mm bmm mv dot", matmul),
    **_table("addmm baddbmm", add_matmul),
    **_table("einsum", einsum),
    **_table("scaled_dot_product_attention", attention),
    **_table("embedding", embedding),
    aten.lstm.input: partial(recurrent, gates=4),
    aten.gru.input: partial(recurrent, gates=3),
    aten.rnn_tanh.input: partial(recurrent, gates=1),
    aten.rnn_relu.input: partial(recurrent, gates=1),
    **_table("batch_norm instance_norm", batch_norm),
    **_table("group_norm", group_norm),
    **_table("layer_norm rms_norm", layer_norm),
    **_table("softmax log_softmax _softmax _log_softmax cumsum cumprod logcumsumexp", along),
    **_table("sort cummax cummin", along_twice),
    **_table("argsort", along),
    aten.topk.default: top,
    **_table("tril triu", last_two),
    **_table("prelu", prelu),
    **_table(
        "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d", partial(pool, spatial=1)
    ),
    **_table("upsample_linear1d reflection_pad1d replication_pad1d", partial(pool, spatial=1)),
    **_table(
        "max_pool2d avg_pool2d adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d", partial(pool, spatial=2)
    ),
    **_table("upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa", partial(pool, spatial=2)),
    **_table("_upsample_bicubic2d_aa reflection_pad2d replication_pad2d", partial(pool, spatial=2)),
    **_table("max_pool3d avg_pool3d adaptive_avg_pool3d upsample_nearest3d", partial(pool, spatial=3)),
    **_table("upsample_trilinear3d reflection_pad3d replication_pad3d", partial(pool, spatial=3)),
    **_table("grid_sampler grid_sampler_2d grid_sampler_3d", per_channel),
    **_table("mean amax amin prod std var logsumexp all any norm linalg_vector_norm argmax argmin", reduce),
    **_table("var_mean std_mean aminmax", reduce_twice),
    aten.mean.dim: mean,
    aten.max.dim: reduce_twice,
    aten.min.dim: reduce_twice,
    aten.max.default: reduce,
    aten.min.default: reduce,
    aten.max.other: pointwise,
    aten.min.other: pointwise,
    **_table("sum", add_up),
    **_table("flatten squeeze unsqueeze view_as reshape_as", reshape),
    aten.view.default: partial(reshape, sizes="size"),
    aten._unsafe_view.default: partial(reshape, sizes="size"),
    aten.reshape.default: partial(reshape, sizes="shape"),
    aten.unflatten.int: partial(reshape, sizes="sizes", first="dim"),
    **_table("permute", permute),
    **_table("transpose swapaxes swapdims", transpose),
    **_table("t numpy_T mT adjoint", reverse_dims),
    **_table("movedim moveaxis", move_dims),
    **_table("cat concat concatenate", cat),
    **_table("stack", stack),
    **_table("split_with_sizes", split),
    operator.getitem: pick,
    aten.unbind.int: unbind,
    aten.select.int: select,
    aten.slice.Tensor: slices,
    **_table("expand broadcast_to", expand),
    **_table("expand_as", partial(expand, sizes=None)),
    **_table("repeat tile", repeat),
    aten.repeat_interleave.self_int: repeat_each,
    **_table("pad constant_pad_nd", pad),
    **_table("roll flip", moved_along),
    aten.index.Tensor: index,
    **_table("index_select", index_select),
    aten.gather.default: gather,
    **_table("pixel_shuffle", pixel_shuffle),
    **_table("pixel_unshuffle", pixel_unshuffle),
    **_table("channel_shuffle native_channel_shuffle", channel_shuffle),
    aten.unfold.default: windows,
    **_table("im2col", image_to_columns),
    **_table("zeros ones full empty new_zeros new_ones new_full new_empty", filled),
    **_table("zeros_like ones_like full_like empty_like rand_like randn_like type_as", like_first),
    aten.sym_size.int: size_read,
}
