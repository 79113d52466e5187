"""What a graph computes on the way, read out beside its output: a position is the name of a node.

A graph with taps has the weights and the nodes of the one it was made of; it returns a tuple, the output first. Where
a later node writes into a value, as an in-place ReLU does, what is read is what it wrote.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from trimtab.errors import PlanError
from trimtab.graph.calls import arguments

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
SOFTMAX = (aten.softmax.int, aten._softmax.default)


@dataclass(frozen=True)
class Tap:
    """Something to read at a node: its value, or what its attention is made of, as log-probabilities.

    shape: None for a dim that is known only at run time.
    """

    node: str
    what: Literal["value", "attention", "softmax", "values"]
    shape: tuple[int | None, ...]


def value_tap(graph: GraphModule, name: str, *, whose: str) -> Tap:
    """The value of a node.

    Raises:
        PlanError: there is no such node, or it has no value of its own for each sample.
    """
    shape = _shape(_node(graph, name, whose=whose).meta.get("val"))
    if not shape or shape[0] is not None:
        raise PlanError(
            f"The {whose}'s {name!r} has no value [B, ...] for a batch: it is {_words(shape)}. "
            "Give the name of an operation on what flows through the graph."
        )
    return Tap(name, "value", shape)


def attention_taps(graph: GraphModule, name: str, *, whose: str) -> tuple[Tap, ...]:
    """The attention at a node, and the relations of its values where the node has them.

    Raises:
        PlanError: there is no such node, or it is no attention.
    """
    node = _node(graph, name, whose=whose)
    if node.target in SOFTMAX:
        return (Tap(name, "softmax", _shape(node.meta["val"])),)
    if node.target is not ATTENTION:
        found = [n.name for n in graph.graph.nodes if n.target is ATTENTION or n.target in SOFTMAX]
        raise PlanError(
            f"The {whose}'s {name!r} is {node.target}, no attention; attention is at: {', '.join(found) or 'no node'}."
        )
    given = arguments(node)
    query, key, value = (_shape(given[part].meta["val"]) for part in ("query", "key", "value"))
    return (
        Tap(name, "attention", (*query[:-1], key[-2])),
        Tap(name, "values", (*value[:-1], value[-2])),
    )


def with_taps(graph: GraphModule, taps: Sequence[Tap]) -> GraphModule:
    """A copy of `graph` that returns (output, one value a tap)."""
    tapped = copy.deepcopy(graph)
    nodes = {node.name: node for node in tapped.graph.nodes}
    output = next(node for node in tapped.graph.nodes if node.op == "output")
    with tapped.graph.inserting_before(output):
        values = tuple(_read_(tapped, nodes[tap.node], tap.what) for tap in taps)
    output.args = ((output.args[0], *values),)
    tapped.recompile()
    return tapped


def attention_map(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None, *, causal: bool = False
) -> Tensor:
    """The map log softmax(Q K' scale + mask) as `scaled_dot_product_attention` has it inside.

    Args:
        query: [B, H, T, D].
        key: [B, H, S, D], or with a part of the heads, each for as many queries.
        mask: True or 0 where a token may look; added if it is no Boolean.
        scale: a factor; default: 1 / sqrt(D).
        causal: whether no token looks ahead.

    Returns:
        [B, H, T, S]; where a token may not look, the smallest number and not -inf, whose differences are NaN.
    """
    query, key = query.float(), key.float().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return F.log_softmax(scores.clamp_min(-1e4), dim=-1)


def value_relations(value: Tensor) -> Tensor:
    """The map log softmax(V V' / sqrt(D)): [B, H, S, D] -> [B, H, S, S]."""
    value = value.float()
    return F.log_softmax(value @ value.mT / value.shape[-1] ** 0.5, dim=-1)


def log_probabilities(softmax: Tensor) -> Tensor:
    """The logarithm, without -inf."""
    return softmax.float().clamp_min(1e-12).log()


def _node(graph: GraphModule, name: str, *, whose: str) -> Node:
    nodes = {node.name: node for node in graph.graph.nodes if node.op == "call_function"}
    if name not in nodes:
        near = difflib.get_close_matches(name, nodes, n=5, cutoff=0.4) or list(nodes)[-5:]
        raise PlanError(
            f"The {whose} has no position {name!r}; near it: {', '.join(near)}. "
            "All of them: [node.name for node in graph.graph.nodes]."
        )
    return nodes[name]


def _read_(tapped: GraphModule, node: Node, what: str) -> Node:
    if what == "value":
        return node
    call = tapped.graph.call_function
    if what == "softmax":
        return call(log_probabilities, (node,))
    given: dict[str, Any] = arguments(node)
    if what == "values":
        return call(value_relations, (given["value"],))
    parts = tuple(given[name] for name in ("query", "key", "attn_mask", "scale"))
    return call(attention_map, parts, {"causal": given["is_causal"]})


def _shape(value: Any) -> tuple[int | None, ...]:
    if not isinstance(value, Tensor):
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _words(shape: tuple[int | None, ...]) -> str:
    return f"{list(shape)}" if shape else "no tensor"
