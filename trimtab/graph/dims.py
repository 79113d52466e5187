"""Which dims of a graph are tied: the algebra that tells which slices must be cut together.

Every dim of every tensor is a product of *atoms*, outermost first. An atom is a variable with a size. Rules (one per
ATen op, in `rules.py`) say how an op's output dims are made of its input dims: where two dims must stay equal their
atoms become one (union-find), and where a reshape splits or merges dims an atom is refined into factors. So a
flatten of C, H, W is the product C*H*W, a grouped convolution's channels are G*c, and the slice of any weight that
belongs to channel i of an atom is plain arithmetic (`Place`). Atoms that must keep their size are frozen, with the
reason; an op without a rule freezes all that it touches.

What is left is a `Group`: one atom that can be cut, with every place where its size shows. Cost: linear in the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from trimtab.core import Skip
from trimtab.graph.capture import get_tensor
from trimtab.graph.rules import RULES, arguments

Role = Literal["producer", "consumer", "scale", "follower"]
ROLES: tuple[Role, ...] = ("producer", "consumer", "scale", "follower")
Size = Any  # an int, or a sympy expression of the batch
Dim = tuple[int, ...]  # atoms, outermost first; () is a dim of size 1
Dims = tuple[Dim, ...]


@dataclass(frozen=True)
class Place:
    """Where an atom of `size` lies in a dim: channel i holds the indices (o * size + i) * inner + k.

    >>> Place(outer=1, size=2, inner=3).indices(1)
    (3, 4, 5)
    """

    outer: int
    size: int
    inner: int

    def table(self) -> Tensor:
        """The indices along the dim that belong to each channel, [size, indices of a channel], rising in each row."""
        numbers = torch.arange(self.outer * self.size * self.inner).view(self.outer, self.size, self.inner)
        return numbers.movedim(1, 0).reshape(self.size, -1)

    def indices(self, channel: int) -> tuple[int, ...]:
        """The indices along the dim that belong to one channel."""
        return tuple(self.table()[channel].tolist())

    def mask(self, kept: Sequence[int]) -> Tensor:
        """True at the indices along the dim that belong to the kept channels; [outer * size * inner]."""
        mask = torch.zeros(self.outer, self.size, self.inner, dtype=torch.bool)
        mask[:, list(kept)] = True
        return mask.flatten()


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
    """A contraction over an atom: argument `argument` of node `node` is summed over it along `dim`."""

    node: str
    argument: str
    dim: int
    place: Place


@dataclass(frozen=True)
class Constant:
    """A number in the graph that is a multiple of an atom's size: an argument, or item `item` of a list."""

    node: str
    argument: str
    item: int | None


@dataclass(frozen=True)
class Group:
    """An atom that can be cut: channel i of all its uses goes together. Producers come first in `uses`."""

    name: str
    size: int
    uses: tuple[Use, ...]
    reads: tuple[Read, ...]
    constants: tuple[Constant, ...]


@dataclass(frozen=True)
class Groups:
    """What can be cut, and what cannot and why."""

    cuttable: tuple[Group, ...]
    skipped: tuple[Skip, ...]


def groups(graph: GraphModule) -> Groups:
    """The groups of channels of `graph` that can be cut, in the order of their first producers.

    The dims of the inputs and of the output are never among them. Node shapes are read from `meta["val"]`.
    """
    flow = Flow(graph)
    for node in graph.graph.nodes:
        flow.visit(node)
    return _collect(flow)


class Atoms:
    """Variables with sizes: equal ones are joined, and products refined into factors, as a graph is read."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[Size] = []
        self._parts: dict[int, Dim] = {}
        self._frozen: dict[int, str] = {}

    def new(self, size: Size) -> Dim:
        """A dim of one new atom; () if `size` is 1. A size that is no number is frozen."""
        if size == 1:
            return ()
        atom = len(self._parent)
        self._parent.append(atom)
        self._size.append(size)
        if not isinstance(size, int):
            self._frozen[atom] = "its size is not a fixed number"
        return (atom,)

    def size(self, atom: int) -> Size:
        """The size of a leaf."""
        return self._size[self._root(atom)]

    def why_frozen(self, atom: int) -> str | None:
        """Why a leaf must keep its size; None if it can be cut."""
        return self._frozen.get(self._root(atom))

    def leaves(self, dim: Dim) -> Dim:
        """`dim` as a product of atoms that nothing has refined."""
        roots = [self._root(atom) for atom in dim]
        return tuple(leaf for root in roots for leaf in (self.leaves(self._parts.get(root, ())) or (root,)))

    def freeze(self, dims: Sequence[Dim], why: str) -> None:
        """Let every atom of `dims` keep its size."""
        for dim in dims:
            for leaf in self.leaves(dim):
                self._frozen.setdefault(leaf, why)

    def unify(self, a: Dim, b: Dim) -> None:
        """State that index n of `a` and index n of `b` mean the same; frozen if their factors do not line up."""
        a, b = self.leaves(a), self.leaves(b)
        if a == b:
            return
        if len(a) == len(b) == 1 and self._size[a[0]] == self._size[b[0]]:
            self._join(a[0], b[0])
            return
        parts = self.regroup(a, [self._size[atom] for atom in b])
        if parts is None:
            self.freeze((a, b), "two ways of splitting it do not line up")
            return
        for part, atom in zip(parts, b, strict=True):
            if len(part) > 1 and self.leaves((atom,)) == (atom,):
                self._refine(atom, part)
            else:
                self.unify(part, (atom,))  # of smaller factors, so this ends

    def regroup(self, dim: Dim, sizes: Sequence[Size]) -> Dims | None:
        """Read the product `dim` as dims of the given sizes, refining atoms as needed; None if no factors fit."""
        queue = list(reversed(self.leaves(dim)))
        dims: list[Dim] = []
        for size in sizes:
            part: list[int] = []
            while size != 1:
                if not queue:
                    return None
                atom = self.leaves((queue.pop(),))
                queue.extend(reversed(atom[1:]))
                head = atom[0]
                rest = exact_quotient(size, self._size[head])
                if rest is None:
                    left = exact_quotient(self._size[head], size)
                    if left is None:
                        return None
                    self._refine(head, self.new(size) + self.new(left))
                    queue.extend(reversed(self._parts[head][1:]))
                    head, rest = self._parts[head][0], 1
                part.append(head)
                size = rest
            dims.append(tuple(part))
        return None if queue else tuple(dims)

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def _join(self, a: int, b: int) -> None:
        self._parent[b] = a
        if b in self._frozen:
            self._frozen.setdefault(a, self._frozen[b])

    def _refine(self, atom: int, parts: Dim) -> None:
        self._parts[atom] = parts
        if atom in self._frozen:
            self.freeze((parts,), self._frozen[atom])


def exact_quotient(a: Size, b: Size) -> Size | None:
    """The quotient a / b if that is whole for every batch size, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    if sympy.fraction(quotient)[1] != 1:
        return None
    return int(quotient) if quotient.is_Integer else quotient


def _expression(size: torch.SymInt) -> Size:
    return int(size.node.expr) if size.node.expr.is_number else size.node.expr


class Flow:
    """What is known of a graph's dims while it is read from inputs to output; rules write into it."""

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self.atoms = Atoms()
        self.dims: dict[Node, Dims] = {}
        self.tensors: dict[int, tuple[str, Dims]] = {}  # id of a parameter or buffer -> its first name, its dims
        self.roles: dict[tuple[str, int], Role] = {}
        self.writes: list[tuple[str, Dim]] = []
        self.reads: list[tuple[Node, str, int, Dim]] = []  # node, argument, its dim, what is summed over
        self.constants: list[tuple[Constant, Dim]] = []
        self.unknown: dict[str, list[str]] = {}

    def visit(self, node: Node) -> None:
        """Find the dims of one node from those of its inputs."""
        if node.op == "output":
            self.freeze(node, "it is the model's output")
        elif node.op == "get_attr":
            self._visit_tensor(node)
        elif node.op == "placeholder":
            self.dims[node] = self.fresh(node, why="it is a dim of the model's input")
        elif not any(map(self._has_tensor, (node, *node.all_input_nodes))):
            return  # arithmetic on sizes
        else:
            dims = RULES[node.target](self, node) if node.target in RULES else None
            self.dims[node] = self._unruled(node) if dims is None else dims

    def fresh(self, node: Node, *, why: str) -> Dims:
        """New dims for the output of `node`, frozen."""
        dims = tuple(self.atoms.new(size) for size in self.shape(node)) if self._has_tensor(node) else ()
        self.atoms.freeze(dims, why)
        return dims

    def freeze(self, node: Node, why: str) -> None:
        """Let the dims of every input of `node` keep their size."""
        for source in node.all_input_nodes:
            self.atoms.freeze(self.dims.get(source, ()), why)

    def role(self, node: Node | None, dim: int, role: Role) -> None:
        """State what `node`, if it reads a parameter, uses a dim of it for."""
        if isinstance(node, Node) and node.op == "get_attr":
            name, _ = self.tensors[id(get_tensor(self.graph, str(node.target)))]
            self.roles.setdefault((name, dim), role)

    def write(self, node: Node, weight: Node, dim: Dim) -> None:
        """State that the contraction `node` makes the atoms of `dim` with `weight`."""
        name = str(weight.target) if weight.op == "get_attr" else node.name
        self.writes.append((name.removesuffix(".weight"), dim))

    def read(self, node: Node, argument: str, dim: int, contracted: Dim) -> None:
        """State that the contraction `node` sums over the atoms `contracted` along a dim of an argument."""
        self.reads.append((node, argument, dim, contracted))

    def constant(self, node: Node, argument: str, item: int | None, dim: Dim) -> None:
        """State that an argument of `node`, or an item of it, is the size of `dim`."""
        self.constants.append((Constant(node.name, argument, item), dim))

    def _visit_tensor(self, node: Node) -> None:
        if not self._has_tensor(node):
            return
        name = str(node.target)
        fresh = (name, tuple(self.atoms.new(size) for size in self.shape(node)))
        # Tied weights are one tensor under several names: they share their atoms.
        self.dims[node] = self.tensors.setdefault(id(get_tensor(self.graph, name)), fresh)[1]

    def _unruled(self, node: Node) -> Dims:
        if node.target is not operator.getitem:
            self.unknown.setdefault(str(node.target), []).append(node.name)
        why = f"{node.target} uses it, which has no rule"
        self.freeze(node, why)
        return self.fresh(node, why=why)

    @staticmethod
    def shape(node: Node) -> tuple[Size, ...]:
        """The shape of a node: ints, and sympy expressions where the batch is in it."""
        return tuple(size if isinstance(size, int) else _expression(size) for size in node.meta["val"].shape)

    @staticmethod
    def _has_tensor(node: Node) -> bool:
        return isinstance(node.meta.get("val"), Tensor)


def _collect(flow: Flow) -> Groups:
    """The cuttable atoms of a graph that has been read, with all their places; and the rest, with reasons."""
    leaves, why = flow.atoms.leaves, flow.atoms.why_frozen
    names: dict[int, str] = {}
    skipped: dict[int, Skip] = {}
    for name, dim in flow.writes:
        for leaf in leaves(dim):
            reason = why(leaf)
            if reason is None:
                names[leaf] = names.get(leaf) or _unused(name, names)
            elif all(why(other) for other in leaves(dim)):
                skipped.setdefault(leaf, Skip(f"{name} ({flow.atoms.size(leaf)})", reason))
    uses, reads, constants = _uses(flow, names), _reads(flow, names), _constants(flow, names)
    for leaf, name in names.items():
        if not reads[leaf]:
            skipped[leaf] = Skip(f"{name} ({flow.atoms.size(leaf)})", "no weight contracts over it")
    cuttable = tuple(
        Group(name, flow.atoms.size(leaf), tuple(uses[leaf]), tuple(reads[leaf]), tuple(constants[leaf]))
        for leaf, name in names.items()
        if reads[leaf]
    )
    unruled = tuple(
        Skip(target, f"it has no rule: all dims that it touches stay whole (at {', '.join(nodes)})")
        for target, nodes in flow.unknown.items()
    )
    return Groups(cuttable, unruled + tuple(skipped.values()))


def _unused(name: str, names: dict[int, str]) -> str:
    # One dim may have several factors that can be cut, e.g. heads and the width of a head.
    taken = set(names.values())
    candidates = (name, *(f"{name}#{place}" for place in range(2, len(taken) + 3)))
    return next(candidate for candidate in candidates if candidate not in taken)


def _places(flow: Flow, dim: Dim) -> list[tuple[int, Place]]:
    """Each atom of `dim` with its place; dims with a size that is no number have none."""
    product = flow.atoms.leaves(dim)
    sizes = [flow.atoms.size(leaf) for leaf in product]
    if not all(isinstance(size, int) for size in sizes):
        return []
    ends = [1]
    for size in sizes:
        ends.append(ends[-1] * size)
    return [(leaf, Place(ends[i], sizes[i], ends[-1] // ends[i + 1])) for i, leaf in enumerate(product)]


def _uses(flow: Flow, names: dict[int, str]) -> dict[int, list[Use]]:
    found: dict[int, list[Use]] = {leaf: [] for leaf in names}
    for name, dims in flow.tensors.values():
        for d, dim in enumerate(dims):
            for leaf, place in _places(flow, dim):
                if leaf in found:
                    found[leaf].append(Use(name, d, flow.roles.get((name, d), "follower"), place))
    return {leaf: sorted(uses, key=lambda use: ROLES.index(use.role)) for leaf, uses in found.items()}


def _reads(flow: Flow, names: dict[int, str]) -> dict[int, list[Read]]:
    found: dict[int, list[Read]] = {leaf: [] for leaf in names}
    for node, argument, d, contracted in flow.reads:
        summed = set(flow.atoms.leaves(contracted))
        for leaf, place in _places(flow, flow.dims[arguments(node)[argument]][d]):
            if leaf in found and leaf in summed:
                found[leaf].append(Read(node.name, argument, d, place))
    return found


def _constants(flow: Flow, names: dict[int, str]) -> dict[int, list[Constant]]:
    found: dict[int, list[Constant]] = {leaf: [] for leaf in names}
    for constant, dim in flow.constants:
        for leaf in flow.atoms.leaves(dim):
            if leaf in found:
                found[leaf].append(constant)
    return found
