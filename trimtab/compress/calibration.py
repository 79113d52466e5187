"""Calibration: a few samples of `train`, and what a graph's layers see of them, batch by batch.

A *layer* here is an operation that multiplies a fixed weight: linear, convolution, or a matrix product with a weight.
Its inputs as rows X and its outputs Y = X W' are what every layerwise method works on: a convolution's rows are its
patches, of which an even, seeded choice of positions is taken. Nothing is held but sums over the batches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

from trimtab.core import Split, Task
from trimtab.errors import PlanError
from trimtab.graph.calls import arguments
from trimtab.graph.capture import get_tensor
from trimtab.graph.packed import precision_of

aten = torch.ops.aten
LINEAR = (aten.linear.default,)
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
# op -> its arguments for what is multiplied, the weight [in, out] and what is added
PRODUCTS: dict[Any, tuple[str, str, str | None]] = {
    aten.addmm.default: ("mat1", "mat2", "self"),
    aten.mm.default: ("self", "mat2", None),
    aten.matmul.default: ("self", "other", None),
}
MIN_SAMPLES = 16
DATA_FREE = "importance='magnitude', which needs none"
BATCH = 32
# A layer with more inputs to a sum than this is not solved: its Gram matrix would not fit.
MAX_FEATURES = 6144


def require_floats(model: nn.Module, name: str) -> None:
    """Refuse a graph that is quantized already.

    Raises:
        PlanError: it is.
    """
    if isinstance(model, GraphModule) and (found := precision_of(model)):
        raise PlanError(
            f"{name}: the graph holds {found} weights already, which are neither trained, cut nor rounded again. "
            "Give it the model before quantization."
        )


def calibration(task: Task | None, samples: int, *, purpose: str, instead: str = "") -> Split:
    """`samples` of the train split, evenly spread over it.

    Args:
        task: gives the data.
        samples: how many are wanted.
        purpose: what they are for, to begin an error with.
        instead: what needs no data, to end an error with.

    Raises:
        PlanError: there is no task, it has too few samples, or all of them are the same.
    """
    if task is None:
        raise PlanError(f"{purpose} needs data to calibrate on; got no task. Give plan(graph, task).")
    num = min(samples, len(task.train))
    if num < MIN_SAMPLES:
        raise PlanError(
            f"{purpose} needs {MIN_SAMPLES} calibration samples or more; got {num} (samples={samples}, "
            f"{len(task.train)} in the train split). Give samples=256 and a train split that has them"
            f"{f', or {instead}' if instead else ''}."
        )
    data = task.train.batch(torch.linspace(0, len(task.train) - 1, num).long())
    if all(bool((x == x[:1]).all()) for x in data.inputs):
        raise PlanError(
            f"{purpose} found the same values in all {num} calibration samples, so they show no range. "
            "Give a train split of real samples."
        )
    return data


def require_fitting(graph: GraphModule, data: Split) -> None:
    """Refuse samples that the graph cannot take.

    Raises:
        PlanError: another number of inputs, or another shape or dtype than the graph was captured with.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    given = [f"{list(x.shape[1:])} {x.dtype}" for x in data.inputs]
    # A size that may vary is no int.
    wanted = [
        ([size if isinstance(size, int) else None for size in node.meta["val"].shape[1:]], node.meta["val"].dtype)
        for node in inputs
    ]
    fits = len(given) == len(wanted) and all(
        x.dtype == dtype
        and x.ndim == len(shape) + 1
        and all(size in (None, real) for size, real in zip(shape, x.shape[1:], strict=True))
        for x, (shape, dtype) in zip(data.inputs, wanted, strict=True)
    )
    if not fits:
        takes = ", ".join(f"{['any' if size is None else size for size in shape]} {dtype}" for shape, dtype in wanted)
        raise PlanError(
            f"The calibration data does not fit the graph: a sample is {', '.join(given)}, and the graph takes "
            f"{takes}. Give a task whose train split has samples like the model's example inputs."
        )


def batches(split: Split, size: int = BATCH) -> list[Split]:
    """`split` in pieces of about equal length, at least two of them."""
    num = max(2, math.ceil(len(split) / size))
    return [split.batch(index) for index in torch.arange(len(split)).tensor_split(num)]


@dataclass(frozen=True)
class Layer:
    """An operation that multiplies a fixed weight.

    argument: the one for what is multiplied. output_dim and input_dim are those of the weight; `num_groups` parts of
    the input and of the output belong together, each with its own weights.
    """

    node: str
    argument: str
    weight: str
    bias: str | None
    output_dim: int = 0
    input_dim: int = 1
    num_groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as matrices [num_groups, outputs, features]."""
        if self.output_dim == 1:
            return weight.T[None]
        return weight.reshape(self.num_groups, weight.shape[0] // self.num_groups, -1)

    def weight_of(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The weight of a shape whose `matrix` is given."""
        return matrix[0].T if self.output_dim == 1 else matrix.reshape(shape)

    def columns(self, table: Tensor, num_inputs: int, weight: Tensor) -> list[Tensor] | None:
        """In each group, which features belong to each channel, [channels, features]; None if channels differ.

        Args:
            table: the indices along the input's channel dim that belong to each channel, [channels, indices].
            num_inputs: the size of that dim.
            weight: as it is.
        """
        kernel, each = math.prod(weight.shape[2:]), num_inputs // self.num_groups
        found = []
        for group in range(self.num_groups):
            inside = table // each == group
            count = int(inside[0].sum())
            if not bool((inside.sum(1) == count).all()):
                return None
            own = table[inside].reshape(len(table), count) - group * each
            found.append((own[:, :, None] * kernel + torch.arange(kernel)).flatten(1))
        return found


def layer_of(graph: GraphModule, node: Node) -> Layer | None:
    """`node` as a layer; None if it is none, or its weight is not its own."""
    if node.op != "call_function":
        return None
    a = arguments(node)
    if node.target in LINEAR:
        layer = _layer(node, a["input"], "input", a["weight"], a["bias"])
    elif node.target in CONVOLUTIONS:
        ndim = len(a["weight"].meta["val"].shape) - 2 if isinstance(a["weight"], Node) else 0
        batched = len(a["input"].meta["val"].shape) == ndim + 2
        layer = _layer(node, a["input"], "input", a["weight"], a["bias"]) if batched else None
        if layer is not None:
            stride, padding, dilation = (_per_dim(a[name], ndim) for name in ("stride", "padding", "dilation"))
            layer = Layer(node.name, "input", layer.weight, layer.bias, 0, 1, a["groups"], stride, padding, dilation)
    elif node.target in PRODUCTS:
        argument, weight, bias = PRODUCTS[node.target]
        layer = _layer(node, a[argument], argument, a[weight], a[bias] if bias else None, transposed=True)
    else:
        return None
    shared = layer is not None and _num_reads(graph, layer.weight) > 1
    return None if shared else layer


def _layer(node: Node, x: Any, argument: str, weight: Any, bias: Any, *, transposed: bool = False) -> Layer | None:
    fixed = isinstance(weight, Node) and weight.op == "get_attr" and isinstance(x, Node) and x.op != "get_attr"
    if not fixed or (bias is not None and not (isinstance(bias, Node) and bias.op == "get_attr")):
        return None
    if transposed and len(weight.meta["val"].shape) != 2:
        return None
    own_bias = str(bias.target) if bias is not None else None
    return Layer(node.name, argument, str(weight.target), own_bias, int(transposed), int(not transposed))


def _num_reads(graph: GraphModule, name: str) -> int:
    tensor = get_tensor(graph, name)
    reads = (n for n in graph.graph.nodes if n.op == "get_attr" and get_tensor(graph, str(n.target)) is tensor)
    return sum(len(read.users) for read in reads)


def _per_dim(value: Any, ndim: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * ndim if len(values) == 1 else values)


def input_rows(layer: Layer, x: Tensor, kernel: tuple[int, ...], picked: Tensor) -> Tensor:
    """What the layer multiplies, as rows [num_groups, rows, features], at the picked positions of its output."""
    if not layer.stride:
        return x.reshape(-1, x.shape[-1])[picked][None]
    x = F.pad(x, [amount for pad in reversed(layer.padding) for amount in (pad, pad)])
    num_dims = len(kernel)
    starts = _unravel(picked, _num_positions(layer, x, kernel))
    index: list[Any] = [slice(None), slice(None)]
    for d in range(num_dims):
        steps = starts[d][:, None] * layer.stride[d] + torch.arange(kernel[d]) * layer.dilation[d]
        index.append(steps.view(len(picked), *(-1 if other == d else 1 for other in range(num_dims))))
    patches = x[tuple(index)]  # [N, C, positions, *kernel]
    split = patches.reshape(len(x), layer.num_groups, -1, len(picked), math.prod(kernel))
    return split.permute(1, 0, 3, 2, 4).reshape(layer.num_groups, len(x) * len(picked), -1)


def output_rows(layer: Layer, y: Tensor, picked: Tensor) -> Tensor:
    """What the layer gave, as rows [num_groups, rows, outputs], at the picked positions."""
    if not layer.stride:
        return y.reshape(-1, y.shape[-1])[picked][None]
    split = y.flatten(2)[:, :, picked].reshape(len(y), layer.num_groups, -1, len(picked))
    return split.permute(1, 0, 3, 2).reshape(layer.num_groups, len(y) * len(picked), -1)


def pick(layer: Layer, y: Tensor, num_rows: int) -> Tensor:
    """An even choice of the output's positions that gives about `num_rows` rows of this batch."""
    total = math.prod(y.shape[2:]) if layer.stride else y[..., 0].numel()
    wanted = math.ceil(num_rows / len(y)) if layer.stride else num_rows
    if total <= wanted:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(total)
    return torch.randperm(total, generator=generator)[:wanted].sort().values


def _num_positions(layer: Layer, padded: Tensor, kernel: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(
        (size - dilation * (k - 1) - 1) // stride + 1
        for size, k, stride, dilation in zip(padded.shape[2:], kernel, layer.stride, layer.dilation, strict=True)
    )


def _unravel(flat: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    found = []
    for size in reversed(shape):
        found.append(flat % size)
        flat = flat // size
    return found[::-1]


class _Watcher(Interpreter):
    """Runs a graph and shows what goes into some nodes, or what comes out of them."""

    def __init__(self, graph: GraphModule, watched: set[str], see: Callable[[Node, Any], None], *, after: bool) -> None:
        super().__init__(graph)
        self.watched, self.see, self.after = watched, see, after

    def run_node(self, n: Node) -> Any:
        if n.name not in self.watched:
            return super().run_node(n)
        if not self.after:
            self.see(n, {name: self._value(value) for name, value in arguments(n).items()})
        output = super().run_node(n)
        if self.after:
            self.see(n, output)
        return output

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._value(part) for part in argument]
        return self.env[argument] if isinstance(argument, Node) else argument


@torch.no_grad()
def watch(
    graph: GraphModule, nodes: Iterable[str], data: Iterable[Split], see: Callable[[Node, dict[str, Any]], None]
) -> None:
    """Run `graph` on every batch and call see(node, its arguments as values) just before each of `nodes` runs."""
    _watch(graph, nodes, data, see, after=False)


@torch.no_grad()
def watch_outputs(
    graph: GraphModule, nodes: Iterable[str], data: Iterable[Split], see: Callable[[Node, Any], None]
) -> None:
    """Run `graph` on every batch and call see(node, its value) just after each of `nodes` ran; inputs are nodes too."""
    _watch(graph, nodes, data, see, after=True)


def _watch(
    graph: GraphModule,
    nodes: Iterable[str],
    data: Iterable[Split],
    see: Callable[[Node, Any], None],
    *,
    after: bool,
) -> None:
    watched = set(nodes)
    for batch in data:
        # Fresh copies: the graph may write into its inputs.
        _Watcher(graph, watched, see, after=after).run(*(x.clone() for x in batch.inputs))


class Gram:
    """Sums over rows, for each group: X'X [num_groups, F, F] and X'Y [num_groups, F, outputs].

    A layer with a bias has one feature more, the last, which is always 1.
    """

    def __init__(self) -> None:
        self.xx = torch.zeros((), dtype=torch.float64)
        self.xy = torch.zeros((), dtype=torch.float64)

    def add_(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add rows [num_groups, rows, F] and what they should give."""
        self.xx = self.xx + (x.mT @ x).double()
        if y is not None:
            self.xy = self.xy + (x.mT @ y).double()


def with_one(layer: Layer, rows: Tensor) -> Tensor:
    """The rows with a feature that is always 1 if the layer has a bias."""
    return torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1) if layer.bias else rows


def num_features(layer: Layer, weight: Tensor) -> int:
    """The number of products in each sum of the layer."""
    return int(weight.shape[layer.input_dim] * math.prod(weight.shape[2:]))


def num_rows(features: int) -> int:
    """How many rows settle a least squares problem of this many unknowns."""
    return max(8192, 3 * features)


def grams(graph: GraphModule, layers: list[Layer], data: list[Split]) -> dict[str, Tensor]:
    """X'X of each layer's inputs over the data, by node; [num_groups, F, F]."""
    found = {layer.node: Gram() for layer in layers}
    by_node = {layer.node: layer for layer in layers}

    def see(node: Node, values: dict[str, Any]) -> None:
        layer = by_node[node.name]
        weight, x = get_tensor(graph, layer.weight), values[layer.argument]
        kernel = tuple(weight.shape[2:])
        wanted = math.ceil(num_rows(num_features(layer, weight)) / len(data))
        picked = pick(layer, output_like(layer, x, kernel), wanted)
        found[node.name].add_(with_one(layer, input_rows(layer, x, kernel, picked)))

    watch(graph, by_node, data, see)
    return {name: gram.xx for name, gram in found.items()}


def output_like(layer: Layer, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """An empty tensor that has the output's positions."""
    if not layer.stride:
        return x
    sizes = [size + 2 * pad for size, pad in zip(x.shape[2:], layer.padding, strict=True)]
    positions = _num_positions(layer, torch.empty(1, 1, *sizes, device="meta"), kernel)
    return torch.empty(len(x), 1, *positions, device="meta")


def chunked(names: list[str], size_of: Callable[[str], int], limit: int) -> list[list[str]]:
    """Names in runs whose sizes add up to about `limit` at most, or single ones."""
    totals = itertools.accumulate(size_of(name) for name in names)
    runs: dict[int, list[str]] = {}
    for name, total in zip(names, totals, strict=True):
        runs.setdefault(total // limit, []).append(name)
    return list(runs.values())
