"""Which dims of a graph are tied: reads a graph by rules and tells which slices must be cut together.

Rules (one per ATen op, in `rules.py`) say how an op's output dims are made of its input dims, in the algebra of
`atoms.py`: where two dims must stay equal their atoms become one, and where a reshape, a split or a concatenation shows
structure an atom is refined. So a flatten of C, H, W is the product C*H*W, a grouped convolution's channels are G*c,
the channels of a concatenation a + b. Atoms that must keep their size are frozen, with the reason; an op without a
rule freezes all that it touches.

What is left is a `Group`: one atom that can be cut, with every place where its size shows. Cost: linear in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from trimtab.core import Skip
from trimtab.graph.atoms import Atoms, Dim, Dims, Place, Size
from trimtab.graph.calls import arguments
from trimtab.graph.capture import get_tensor
from trimtab.graph.rules import RULES

Role = Literal["producer", "consumer", "scale", "follower"]
ROLES: tuple[Role, ...] = ("producer", "consumer", "scale", "follower")


@dataclass(frozen=True)
class Use:
    """A dim of a parameter or buffer that an atom is part of.

    role: `producer` and `consumer` are the output and input side of a contracting weight, `scale` multiplies each
    channel (BatchNorm, depthwise convolution), a `follower` just has the dim (biases, running statistics).
    """

    name: str
    dim: int
    role: Role
    place: Place


@dataclass(frozen=True)
class Read:
    """A sum over an atom: argument `argument` of node `node`, or item `item` of a list, is summed over along `dim`."""

    node: str
    argument: str
    dim: int
    place: Place
    item: int | None = None


@dataclass(frozen=True)
class Constant:
    """A number in the graph, an argument or item `item` of a list, that counts indices of a dim from its start.

    It may be the whole width of the dim (in a reshape) or a position in it (in a slice).
    """

    node: str
    argument: str
    item: int | None
    place: Place


@dataclass(frozen=True)
class Group:
    """An atom that can be cut: channel i of all its uses goes together. Producers come first in `uses`.

    means: reads by a mean, which must go on dividing by as many as before.
    """

    name: str
    size: int
    uses: tuple[Use, ...]
    reads: tuple[Read, ...]
    constants: tuple[Constant, ...]
    means: tuple[Read, ...] = ()


@dataclass(frozen=True)
class Groups:
    """What can be cut, and what cannot and why."""

    cuttable: tuple[Group, ...]
    skipped: tuple[Skip, ...]


def groups(graph: GraphModule, *, means: bool = False) -> Groups:
    """The groups of channels of `graph` that can be cut, in the order of their first producers.

    The dims of the inputs and of the output are never among them. Node shapes are read from `meta["val"]`.

    Args:
        graph: a captured graph.
        means: let a mean over channels pass, as a sum divided by the number of channels that were there: what comes
            out is the masked original's, but norms that are written out (RMSNorm) then let their width be cut.
    """
    flow = Flow(graph, means=means)
    for node in graph.graph.nodes:
        flow.visit(node)
    return _collect(flow)


def _expression(size: torch.SymInt) -> Size:
    return int(size.node.expr) if size.node.expr.is_number else size.node.expr


class Flow:
    """What is known of a graph's dims while it is read from inputs to output; rules write into it."""

    def __init__(self, graph: GraphModule, *, means: bool = False) -> None:
        self.graph = graph
        self.means = means
        self.atoms = Atoms()
        self.dims: dict[Node, Dims] = {}
        self.several: dict[Node, tuple[Dims, ...]] = {}  # of nodes that give a list of tensors
        self.tensors: dict[int, tuple[str, Dims]] = {}  # id of a parameter or buffer -> its first name, its dims
        self.roles: dict[tuple[str, int], Role] = {}
        self.writes: list[tuple[str, Dim]] = []
        self.reads: list[tuple[Node, str, int | None, int, Dim]] = []  # node, argument, item, its dim, what is summed
        self.constants: list[tuple[Node, str, int | None, Dim]] = []
        self.unknown: dict[str, list[str]] = {}

    def visit(self, node: Node) -> None:
        """Find the dims of one node from those of its inputs."""
        if node.op == "output":
            self.freeze(node, "it is the model's output")
        elif node.op == "get_attr":
            self._visit_tensor(node)
        elif node.op == "placeholder":
            self.dims[node] = self.fresh(node, why="it is a dim of the model's input")
        elif any(_tensors(other) for other in (node, *node.all_input_nodes)):  # else it is arithmetic on sizes
            found = RULES[node.target](self, node) if node.target in RULES else None
            self._keep(node, self._unruled(node) if found is None else found)

    def fresh(self, node: Node, *, why: str) -> Dims:
        """New dims for the output of `node`, frozen; () if it is not one tensor."""
        dims = tuple(self.atoms.new(size) for size in self.shape(node)) if _is_tensor(node) else ()
        self.atoms.freeze(dims, why)
        return dims

    def freeze(self, node: Node, why: str) -> None:
        """Let the dims of every input of `node` keep their size."""
        for dims in self._inputs(node):
            self.atoms.freeze(dims, why)

    def role(self, node: Node | None, dim: int, role: Role) -> None:
        """State what `node`, if it reads a parameter, uses a dim of it for."""
        if isinstance(node, Node) and node.op == "get_attr":
            name, _ = self.tensors[id(get_tensor(self.graph, str(node.target)))]
            self.roles.setdefault((name, dim), role)

    def write(self, node: Node, weight: Node, dim: Dim) -> None:
        """State that the contraction `node` makes the atoms of `dim` with `weight`."""
        name = str(weight.target) if weight.op == "get_attr" else node.name
        self.writes.append((name.removesuffix(".weight"), dim))

    def read(self, node: Node, argument: str, dim: int, contracted: Dim, *, item: int | None = None) -> None:
        """State that the contraction `node` sums over the atoms `contracted` along a dim of an argument."""
        self.reads.append((node, argument, item, dim, contracted))

    def constant(self, node: Node, argument: str, item: int | None, dim: Dim) -> None:
        """State that an argument of `node`, or an item of it, counts indices of `dim` from its start."""
        self.constants.append((node, argument, item, dim))

    def first(self, node: Node) -> Dims:
        """The dims of the first argument of a call."""
        return self.dims[arguments(node)[node.target._schema.arguments[0].name]]  # type: ignore[union-attr]

    def argument(self, node: Node, argument: str, item: int | None) -> Dims:
        """The dims of an argument, or of an item of it."""
        given = arguments(node)[argument]
        return self.dims[given if item is None else given[item]]

    def _keep(self, node: Node, found: Dims | tuple[Dims, ...]) -> None:
        if _is_tensor(node):
            self.dims[node] = found  # type: ignore[assignment]
        elif _tensors(node):
            self.several[node] = found  # type: ignore[assignment]

    def _inputs(self, node: Node) -> Iterator[Dims]:
        for source in node.all_input_nodes:
            yield self.dims.get(source, ())
            yield from self.several.get(source, ())

    def _visit_tensor(self, node: Node) -> None:
        if not _is_tensor(node):
            return
        name = str(node.target)
        fresh = (name, tuple(self.atoms.new(size) for size in self.shape(node)))
        # Tied weights are one tensor under several names: they share their atoms.
        self.dims[node] = self.tensors.setdefault(id(get_tensor(self.graph, name)), fresh)[1]

    def _unruled(self, node: Node) -> Dims | tuple[Dims, ...]:
        if not all(self.atoms.is_frozen(dim) for dims in self._inputs(node) for dim in dims):
            self.unknown.setdefault(str(node.target), []).append(node.name)
        why = f"{node.target} uses it, which has no rule"
        self.freeze(node, why)
        if _is_tensor(node):
            return self.fresh(node, why=why)
        several = tuple(tuple(self.atoms.new(_number(size)) for size in value.shape) for value in _tensors(node))
        for dims in several:
            self.atoms.freeze(dims, why)
        return several

    @staticmethod
    def shape(node: Node) -> tuple[Size, ...]:
        """The shape of a node: ints, and sympy expressions where the batch is in it."""
        return tuple(_number(size) for size in node.meta["val"].shape)


def _number(size: int | torch.SymInt) -> Size:
    return size if isinstance(size, int) else _expression(size)


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _tensors(node: Node) -> list[Tensor]:
    """The tensors that a node gives, one or a list."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if isinstance(one, Tensor)]


def _collect(flow: Flow) -> Groups:
    """The cuttable atoms of a graph that has been read, with all their places; and the rest, with reasons."""
    _freeze_squares(flow)
    why = flow.atoms.why_frozen
    names: dict[int, str] = {}
    skipped: dict[int, Skip] = {}
    for name, dim in flow.writes:
        leaves = flow.atoms.leaves(dim)
        for leaf in leaves:
            reason = why(leaf)
            if reason is None:
                names[leaf] = names.get(leaf) or _unused(name, names)
            elif all(why(other) for other in leaves):
                skipped.setdefault(leaf, Skip(f"{name} ({flow.atoms.size(leaf)})", reason))
    uses, reads, constants = _uses(flow, names), _reads(flow, names), _constants(flow, names)
    for leaf, name in names.items():
        if not reads[leaf]:
            skipped[leaf] = Skip(f"{name} ({flow.atoms.size(leaf)})", "no weight contracts over it")
    divided = {node.name for node, *_ in flow.reads if node.target is torch.ops.aten.mean.dim}
    cuttable = tuple(
        Group(
            name,
            flow.atoms.size(leaf),
            tuple(uses[leaf]),
            tuple(reads[leaf]),
            tuple(constants[leaf]),
            tuple(read for read in reads[leaf] if read.node in divided),
        )
        for leaf, name in names.items()
        if reads[leaf]
    )
    unruled = tuple(
        Skip(target, f"it has no rule: all dims that it touches stay whole (at {', '.join(nodes)})")
        for target, nodes in flow.unknown.items()
    )
    return Groups(cuttable, unruled + tuple(skipped.values()))


def _freeze_squares(flow: Flow) -> None:
    dims = [dim for _, dims in flow.tensors.values() for dim in dims]
    dims += [dim for *_, dim in flow.constants]
    dims += [flow.argument(node, argument, item)[d] for node, argument, item, d, _ in flow.reads]
    for dim in dims:
        flow.atoms.freeze([(leaf,) for leaf in flow.atoms.squares(dim)], "it is two factors of one dim")


def _unused(name: str, names: dict[int, str]) -> str:
    # One dim may have several parts that can be cut, e.g. heads and the width of a head.
    taken = set(names.values())
    candidates = (name, *(f"{name}#{place}" for place in range(2, len(taken) + 3)))
    return next(candidate for candidate in candidates if candidate not in taken)


def _uses(flow: Flow, names: dict[int, str]) -> dict[int, list[Use]]:
    found: dict[int, list[Use]] = {leaf: [] for leaf in names}
    for name, dims in flow.tensors.values():
        for d, dim in enumerate(dims):
            for leaf, place in flow.atoms.places(dim).items():
                if leaf in found:
                    found[leaf].append(Use(name, d, flow.roles.get((name, d), "follower"), place))
    return {leaf: sorted(uses, key=lambda use: ROLES.index(use.role)) for leaf, uses in found.items()}


def _reads(flow: Flow, names: dict[int, str]) -> dict[int, list[Read]]:
    found: dict[int, list[Read]] = {leaf: [] for leaf in names}
    for node, argument, item, d, contracted in flow.reads:
        summed = set(flow.atoms.leaves(contracted))
        for leaf, place in flow.atoms.places(flow.argument(node, argument, item)[d]).items():
            if leaf in found and leaf in summed:
                found[leaf].append(Read(node.name, argument, d, place, item))
    return found


def _constants(flow: Flow, names: dict[int, str]) -> dict[int, list[Constant]]:
    found: dict[int, list[Constant]] = {leaf: [] for leaf in names}
    for node, argument, item, dim in flow.constants:
        for leaf, place in flow.atoms.places(dim).items():
            if leaf in found:
                found[leaf].append(Constant(node.name, argument, item, place))
    return found
