"""The arguments of a call in a graph, by the names in the schema of its ATen op."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload
from torch.fx import Node


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of a call of an ATen op by their names in its schema, defaults included.

    Python's own functions, which take a tuple apart or count sizes, have no schema: of them what is given by name.
    """
    if not isinstance(node.target, OpOverload):
        return dict(node.kwargs)
    schema = node.target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False))
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return defaults | given | node.kwargs


def writes(node: Node) -> bool:
    """Whether `node` calls an ATen op that changes a tensor it is given."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def position(node: Node, argument: str) -> int:
    """Where an argument stands in the schema."""
    return [a.name for a in node.target._schema.arguments].index(argument)  # type: ignore[union-attr]


def set_argument_(node: Node, argument: str, value: Any) -> None:
    """Give an argument another value, where it stands or by name."""
    at = position(node, argument)
    if at < len(node.args):
        node.update_arg(at, value)
    else:
        node.update_kwarg(argument, value)
