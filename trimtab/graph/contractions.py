"""Rules for ops that sum products: linear, convolution, matrix products, attention, recurrent layers, embeddings.

What a rule is, `rules.py` says. A dim that is summed over is a *read* of its atoms: channels that are cut count as
zero there, which is what the check of a cut compares with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from trimtab.graph.calls import arguments

if TYPE_CHECKING:
    from trimtab.graph.atoms import Dim, Dims
    from trimtab.graph.dims import Flow

aten = torch.ops.aten
TRANSPOSES = (aten.t.default, aten.numpy_T.default)
Operand = tuple[str, int | None, Node, str]  # argument, item of it, its node, one letter for each dim


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
    """[B, G*i, ...] x [G*o, i, ...] -> [B, G*o, ...]: G is 1, or stays and each group gives the same channels."""
    return _conv(flow, node, output_dim=0)


def conv_transpose(flow: Flow, node: Node) -> Dims | None:
    """[B, G*i, ...] x [G*i, o, ...] -> [B, G*o, ...]."""
    return _conv(flow, node, output_dim=1)


def _conv(flow: Flow, node: Node, *, output_dim: int) -> Dims | None:
    """In a depthwise convolution (i = 1) the groups are the channels: they are not summed over and can be cut."""
    a = arguments(node)
    x, weight, bias, num_groups = flow.dims[a["input"]], flow.dims[a["weight"]], a["bias"], a["groups"]
    if not isinstance(num_groups, int):
        return None
    channel = len(x) - len(weight) + 1
    group = flow.atoms.new(num_groups)
    parts = flow.atoms.regroup(weight[0], (num_groups, flow.atoms.width(weight[0]) // num_groups))
    if parts is None:
        return None
    flow.atoms.unify(parts[0], group)
    i, o = (weight[1], parts[1]) if output_dim == 0 else (parts[1], weight[1])
    flow.atoms.unify(x[channel], group + i)
    if bias is not None:
        flow.atoms.unify(group + o, flow.dims[bias][0])
    why = f"{node.name} convolves over it"
    flow.atoms.freeze((*x[channel + 1 :], *weight[2:]), why)
    if num_groups > 1 and flow.atoms.width(i) == 1:
        flow.atoms.freeze((o,), f"it multiplies the channels of the depthwise {node.name}")
        flow.role(a["weight"], 0, "scale")
    else:
        flow.atoms.freeze((group,), f"it counts the groups of {node.name}, which stay: channels go evenly from each")
        flow.role(a["weight"], output_dim, "producer")
        flow.role(a["weight"], 1 - output_dim, "consumer")
        flow.write(node, a["weight"], group + o)
        flow.read(node, "input", channel, i)
    flow.constant(node, "groups", None, group)
    return (*x[:channel], group + o, *flow.fresh(node, why=why)[channel + 1 :])


def contract(flow: Flow, node: Node, operands: list[Operand], out: str) -> Dims:
    """The product of the operands, summed over every letter that is not in `out`, as in an einsum."""
    dims: dict[str, Dim] = {}
    for _, _, source, letters in operands:
        for letter, dim in zip(letters, flow.dims[source], strict=True):
            if dims.get(letter):
                flow.atoms.unify(dims[letter], dim or dims[letter])
            else:
                dims[letter] = dim
    for argument, item, source, letters in operands:
        parameter, order = _parameter(source)
        for d, letter in enumerate(letters):
            own = order[d]
            if letter not in out:
                if own is not None:
                    flow.role(parameter, own, "consumer")
                flow.read(node, argument, d, dims[letter], item=item)
            elif parameter.op == "get_attr" and own is not None and not set(letters) <= set(out):
                flow.role(parameter, own, "producer")
                flow.write(node, parameter, dims[letter])
    return tuple(dims[letter] for letter in out)


def _parameter(source: Node) -> tuple[Node, tuple[int | None, ...]]:
    """The node that reads the parameter of which `source` is a transpose or some rows, and where its dims come from.

    Rows picked by an index, as a mixture of experts picks the matrices of the experts that a token goes to, are counted
    by a dim that the parameter has not: it comes from None.
    """
    ndim = len(source.meta["val"].shape)
    if source.target in TRANSPOSES:
        inner, order = _parameter(source.args[0])  # type: ignore[arg-type]
        return inner, tuple(reversed(order))
    if source.target == aten.index.Tensor and None not in (indices := source.args[1]):  # type: ignore[operator]
        inner, order = _parameter(source.args[0])  # type: ignore[arg-type]
        picked = len(indices)  # type: ignore[arg-type]
        return inner, (*(None,) * (ndim - len(order) + picked), *order[picked:])
    return source, tuple(range(ndim))


def _letters(node: Node, ndim: int, last: str) -> str:
    """`last` for the last dims and capitals, counted from the right, for those before."""
    return "ZYXWVUTS"[8 - ndim + len(last) :] + last if ndim > len(last) else last[-ndim:]


def matmul(flow: Flow, node: Node) -> Dims | None:
    """[..., i, k] x [..., k, j] -> [..., i, j], with broadcasting; one of them may be a vector [k]."""
    a = arguments(node)
    first, second = (a[n.name] for n in node.target._schema.arguments[:2])  # type: ignore[union-attr]
    names = [n.name for n in node.target._schema.arguments[:2]]  # type: ignore[union-attr]
    left = _letters(node, len(flow.dims[first]), "ik" if len(flow.dims[first]) > 1 else "k")
    right = _letters(node, len(flow.dims[second]), "kj" if len(flow.dims[second]) > 1 else "k")
    batch = max(left[:-2], right[:-2], key=len)
    out = batch + ("i" if "i" in left else "") + ("j" if "j" in right else "")
    return contract(flow, node, [(names[0], None, first, left), (names[1], None, second, right)], out)


def add_matmul(flow: Flow, node: Node) -> Dims | None:
    """Input + the product of two matrices (addmm) or batches of matrices (baddbmm)."""
    a = arguments(node)
    names = [n.name for n in node.target._schema.arguments[:3]]  # type: ignore[union-attr]
    added, first, second = (a[name] for name in names)
    batch = "Z" if len(flow.dims[first]) == 3 else ""
    operands: list[Operand] = [(names[1], None, first, batch + "ik"), (names[2], None, second, batch + "kj")]
    out = contract(flow, node, operands, batch + "ij")
    for ours, theirs in zip(reversed(out), reversed(flow.dims[added]), strict=False):
        if ours and theirs:
            flow.atoms.unify(ours, theirs)
    return out


def einsum(flow: Flow, node: Node) -> Dims | None:
    """As its equation says."""
    a = arguments(node)
    given, arrow, out = a["equation"].replace(" ", "").partition("->")
    terms = given.split(",")
    if not arrow or "." in given or any(len(set(term)) < len(term) for term in (*terms, out)):
        return None
    operands: list[Operand] = [
        ("tensors", place, source, letters)
        for place, (source, letters) in enumerate(zip(a["tensors"], terms, strict=True))
    ]
    return contract(flow, node, operands, out)


def attention(flow: Flow, node: Node) -> Dims | None:
    """[..., H, L, E] x [..., h, S, E] x [..., h, S, V] -> [..., H, L, V]; H is h, or h * queries per key head."""
    a = arguments(node)
    query, key, value = (flow.dims[a[name]] for name in ("query", "key", "value"))
    if a["scale"] is None:
        flow.atoms.freeze((query[-1],), f"{node.name} takes its scale from it")
    flow.atoms.unify(query[-1], key[-1])
    flow.atoms.unify(key[-2], value[-2])
    flow.atoms.freeze((key[-2], query[-2]), f"{node.name} attends over it")
    for ours, theirs in zip(key[:-2], value[:-2], strict=True):
        flow.atoms.unify(ours, theirs)
    lead = list(query[:-2])
    for place, (ours, theirs) in enumerate(zip(query[:-2], key[:-2], strict=True)):
        if a["enable_gqa"] and place == len(lead) - 1:
            num_keys = flow.atoms.width(theirs)
            parts = flow.atoms.regroup(ours, (num_keys, flow.atoms.width(ours) // num_keys))
            if parts is None:
                return None
            flow.atoms.unify(parts[0], theirs)
        elif ours and theirs:
            flow.atoms.unify(ours, theirs)
        else:
            lead[place] = ours or theirs
    if a["attn_mask"] is not None:
        scores = (*lead, query[-2], key[-2])
        for ours, theirs in zip(reversed(scores), reversed(flow.dims[a["attn_mask"]]), strict=False):
            if ours and theirs:
                flow.atoms.unify(ours, theirs)
    flow.read(node, "query", len(query) - 1, query[-1])
    flow.read(node, "key", len(key) - 1, key[-1])
    return (*lead, query[-2], value[-1])


def embedding(flow: Flow, node: Node) -> Dims | None:
    """Rows of a table [V, D] for indices [...] -> [..., D]."""
    a = arguments(node)
    weight, indices = flow.dims[a["weight"]], flow.dims[a["indices"]]
    flow.atoms.freeze((weight[0],), f"{node.name} looks it up")
    flow.role(a["weight"], 1, "producer")
    flow.write(node, a["weight"], weight[1])
    return (*indices, weight[1])


def recurrent(flow: Flow, node: Node, *, gates: int) -> tuple[Dims, ...] | None:
    """LSTM and GRU: each layer's [gates * H, in] and [gates * H, H], both directions laid end to end: [.., D*H]."""
    a = arguments(node)
    directions = 2 if a["bidirectional"] else 1
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    x, per_cell = flow.dims[a["input"]], 4 if a["has_biases"] else 2
    if len(x) != 3 or len(a["params"]) != a["num_layers"] * directions * per_cell:
        return None  # a projection adds a weight
    hidden, direction = flow.dims[states[0]][2], flow.atoms.new(directions)
    flow.atoms.freeze((direction,), f"{node.name} lays both directions end to end")
    flow.atoms.freeze(x[:2], f"{node.name} runs along it")
    feed = x[2]
    for layer in range(a["num_layers"]):
        for cell in range(layer * directions, (layer + 1) * directions):
            first = cell * per_cell
            _cell(flow, node, first, per_cell, feed, hidden, gates)
        feed = direction + hidden
    for state in states:
        dims = flow.dims[state]
        flow.atoms.freeze(dims[:2], f"{node.name} counts its layers")
        flow.atoms.unify(hidden, dims[2])
    final = (*flow.dims[states[0]][:2], hidden)
    return ((*x[:2], feed), *(final for _ in states))


def _cell(flow: Flow, node: Node, first: int, count: int, feed: Dim, hidden: Dim, gates: int) -> None:
    """One direction of one layer: its weights are items first ... first + count - 1 of `params`."""
    a = arguments(node)
    params = a["params"][first : first + count]
    gate = flow.atoms.new(gates)
    flow.atoms.freeze((gate,), f"it counts the gates of {node.name}")
    for param in params:
        flow.atoms.unify(flow.dims[param][0], gate + hidden)
    for place, summed in ((0, feed), (1, hidden)):
        flow.atoms.unify(flow.dims[params[place]][1], summed)
        flow.role(params[place], 0, "producer")
        flow.role(params[place], 1, "consumer")
        flow.read(node, "params", 1, summed, item=first + place)
    flow.write(node, params[0], hidden)
