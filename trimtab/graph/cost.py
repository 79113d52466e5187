"""What a graph costs: multiply-accumulates of each contraction for one sample, and parameters; also after a cut.

Read from the shapes in `meta["val"]`, nothing is run. Every cost is a sum of products of widths, and a width falls
linearly in the channels that go from the groups in it, so the cost of a cut is known exactly without cutting. Counted
are the operations that sum products (convolution, linear, matrix products, einsum, attention, recurrent layers); what
works on each element is not, as everywhere in the field. A multiplication with its addition is one.
Cost: linear in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from trimtab.graph.atoms import Dim
from trimtab.graph.calls import arguments
from trimtab.graph.capture import get_tensor
from trimtab.graph.dims import Flow, Group
from trimtab.graph.rules import aten

Gone = Mapping[str, int]  # group -> the number of its channels that go
NOTHING: Gone = {}


@dataclass(frozen=True)
class Width:
    """The size of a dim for one sample. `parts`: the groups in it, each with the indices that go with a channel.

    >>> Width(64, (("conv1", 2),)).after({"conv1": 10})
    44
    """

    size: int
    parts: tuple[tuple[str, int], ...] = ()

    def after(self, gone: Gone) -> int:
        """The size that is left; groups of one dim must not overlap."""
        return self.size - sum(gone.get(group, 0) * indices for group, indices in self.parts)


@dataclass(frozen=True)
class Product:
    """`times` x the product of some widths."""

    times: int
    widths: tuple[Width, ...]

    def after(self, gone: Gone) -> int:
        """Its value when channels are gone."""
        return self.times * math.prod(width.after(gone) for width in self.widths)

    def groups(self) -> tuple[str, ...]:
        """The groups that it depends on."""
        return tuple(dict.fromkeys(name for width in self.widths for name, _ in width.parts))


@dataclass(frozen=True)
class Contraction:
    """An operation that sums products: its multiply-accumulates for one sample are the sum of `products`."""

    node: str
    products: tuple[Product, ...]

    def macs(self, gone: Gone = NOTHING) -> int:
        """Multiply-accumulates for one sample."""
        return sum(product.after(gone) for product in self.products)

    def groups(self) -> tuple[str, ...]:
        """The groups that its cost depends on."""
        return tuple(dict.fromkeys(name for product in self.products for name in product.groups()))


class Sizes:
    """The widths of every tensor in a graph, as functions of the channels that are left in `groups`; none overlap."""

    def __init__(self, graph: GraphModule, groups: Iterable[Group] = ()) -> None:
        self.graph = graph
        self.groups = tuple(groups)
        self._flow = Flow(graph)
        self._groups: dict[int, str] = {}
        self._known: dict[Node, tuple[Width, ...]] = {}
        if not self.groups:
            return
        for node in graph.graph.nodes:
            self._flow.visit(node)
        dims = dict(self._flow.tensors.values())
        for group in self.groups:
            use = group.uses[0]
            places = self._flow.atoms.places(dims[use.name][use.dim])
            self._groups |= {leaf: group.name for leaf, place in places.items() if place == use.place}

    def of(self, node: Node) -> tuple[Width, ...]:
        """The widths of the tensor that `node` gives; the batch counts as one sample."""
        if node not in self._known:
            self._known[node] = self._find(node)
        return self._known[node]

    def _find(self, node: Node) -> tuple[Width, ...]:
        sizes = tuple(for_one_sample(size) for size in node.meta["val"].shape)
        dims = self._flow.dims.get(node, ()) if self._groups else ()
        if len(dims) != len(sizes):
            return tuple(Width(size) for size in sizes)
        return tuple(Width(size, self._parts(dim)) for size, dim in zip(sizes, dims, strict=True))

    def _parts(self, dim: Dim) -> tuple[tuple[str, int], ...]:
        places = self._flow.atoms.places(dim)
        own = {leaf: self._groups[leaf] for leaf in places if leaf in self._groups}
        return tuple((name, places[leaf].indices_of_one) for leaf, name in own.items())


def contractions(sizes: Sizes) -> tuple[Contraction, ...]:
    """Every counted operation of the graph, in order, with how it follows the widths of the groups."""
    nodes = sizes.graph.graph.nodes
    found = [(node, COUNTED[node.target](sizes, node)) for node in nodes if node.target in COUNTED]
    return tuple(Contraction(node.name, products) for node, products in found)


def parameters(sizes: Sizes) -> dict[str, Product]:
    """The number of numbers in each parameter that the graph reads; tied ones count once, under their first name."""
    graph, seen, found = sizes.graph, set(), {}
    trained = {name for name, _ in graph.named_parameters(remove_duplicate=False)}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target in trained:
            tensor = get_tensor(graph, str(node.target))
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[str(node.target)] = Product(1, sizes.of(node))
    return found


def macs(graph: GraphModule) -> int:
    """Multiply-accumulates of the whole graph for one sample."""
    return sum(one.macs() for one in contractions(Sizes(graph)))


def macs_of_nodes(graph: GraphModule) -> dict[str, int]:
    """Multiply-accumulates for one sample of each operation that is counted, by the name of its node."""
    return {one.node: one.macs() for one in contractions(Sizes(graph))}


def activations(graph: GraphModule) -> int:
    """How many floating-point numbers the operations give for one sample; what lies between contractions reads them."""
    found = 0
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            by_sample = any(isinstance(size, torch.SymInt) for size in value.shape)
            found += by_sample * math.prod(for_one_sample(size) for size in value.shape)
    return found


def num_parameters(graph: GraphModule) -> int:
    """How many numbers the parameters of `graph` hold."""
    return sum(product.after(NOTHING) for product in parameters(Sizes(graph)).values())


def for_one_sample(size: Any) -> int:
    """A size with the batch in it, for a batch of one."""
    if isinstance(size, int):
        return size
    # A size with the batch in it is a multiple of the batch, as in B * T.
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _number(widths: Iterable[Width]) -> int:
    return math.prod(width.size for width in widths)


def _linear(sizes: Sizes, node: Node) -> tuple[Product, ...]:
    a = arguments(node)
    return (Product(1, (*sizes.of(a["input"])[:-1], *sizes.of(a["weight"]))),)


def _conv(sizes: Sizes, node: Node) -> tuple[Product, ...]:
    """Each weight is used once for each position of the output; if transposed, of the input."""
    a = arguments(node)
    weight = sizes.of(a["weight"])
    positions = sizes.of(a["input"] if "transpose" in str(node.target) or a.get("transposed") else node)
    num_spatial = len(weight) - 2
    times = _number(weight[2:]) * _number(positions[-num_spatial:])
    return (Product(times, (*positions[: -num_spatial - 1], *weight[:2])),)


def _matmul(sizes: Sizes, node: Node, *, at: int) -> tuple[Product, ...]:
    """Argument `at` is the first matrix."""
    first = arguments(node)[node.target._schema.arguments[at].name]  # type: ignore[union-attr]
    return (Product(1, (*sizes.of(node), sizes.of(first)[-1])),)


def _attention(sizes: Sizes, node: Node) -> tuple[Product, ...]:
    """Scores [..., L, S] over E, then values [..., L, V] over S; a causal mask saves nothing here."""
    a = arguments(node)
    query, key, value = (sizes.of(a[name]) for name in ("query", "key", "value"))
    return Product(1, (*query, key[-2])), Product(1, (*query[:-1], key[-2], value[-1]))


def _einsum(sizes: Sizes, node: Node) -> tuple[Product, ...]:
    """Two at a time from the left: the product over all letters that are there, then those not needed any more go."""
    a = arguments(node)
    given, arrow, out = a["equation"].replace(" ", "").partition("->")
    terms = given.split(",")
    if not arrow:
        out = "".join(sorted(letter for letter in set(given) - {",", "."} if given.count(letter) == 1))
        out = "..." + out if "..." in given else out
    operands = [sizes.of(tensor) for tensor in a["tensors"]]
    named = [_letters(term, widths) for term, widths in zip(terms, operands, strict=True)]
    widths = {letter: width for names in named for letter, width in names.items()}
    kept = set(_letters(out, sizes.of(node)))
    products, running = [], set(named[0])
    for place, names in enumerate(named[1:], start=2):
        running |= set(names)
        products.append(Product(1, tuple(widths[letter] for letter in sorted(running))))
        running &= kept.union(*named[place:])
    return tuple(products) or (Product(1, operands[0]),)


def _letters(term: str, widths: tuple[Width, ...]) -> dict[str, Width]:
    """The width of each letter; the dims that an ellipsis stands for are numbered from the right."""
    before, dots, after = term.partition("...")
    num_dots = len(widths) - len(before) - len(after) if dots else 0
    names = [*before, *(str(num_dots - place) for place in range(num_dots)), *after]
    return dict(zip(names, widths, strict=True))


def _recurrent(sizes: Sizes, node: Node) -> tuple[Product, ...]:
    """Each matrix of each layer and direction is used once in each time step."""
    a = arguments(node)
    steps = _number(sizes.of(a["input"])[:-1])
    return tuple(Product(steps, widths) for widths in map(sizes.of, a["params"]) if len(widths) == 2)


def _recurrent_cell(sizes: Sizes, node: Node) -> tuple[Product, ...]:
    a = arguments(node)
    return tuple(Product(_number(sizes.of(a["input"])[:-1]), sizes.of(a[name])) for name in ("w_ih", "w_hh"))


CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.convolution.default,
)
COUNTED: dict[Any, Callable[[Sizes, Node], tuple[Product, ...]]] = {
    aten.linear.default: _linear,
    **dict.fromkeys(CONVOLUTIONS, _conv),
    **dict.fromkeys((aten.matmul.default, aten.mm.default, aten.bmm.default), partial(_matmul, at=0)),
    **dict.fromkeys((aten.addmm.default, aten.baddbmm.default), partial(_matmul, at=1)),
    aten.scaled_dot_product_attention.default: _attention,
    aten.einsum.default: _einsum,
    aten.lstm.input: _recurrent,
    aten.rnn_tanh.input: _recurrent,
    aten.rnn_relu.input: _recurrent,
    aten.gru.input: _recurrent,
    aten.lstm_cell.default: _recurrent_cell,
    aten.gru_cell.default: _recurrent_cell,
}
