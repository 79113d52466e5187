"""What weight-only and dynamic quantization share: which weights are packed, as a plan, and the packed graph."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from trimtab.compress.calibration import CONVOLUTIONS, LINEAR, PRODUCTS, Layer, layer_of
from trimtab.compress.grids import TINY, scales_of
from trimtab.core import Precision, Skip
from trimtab.errors import PlanError
from trimtab.graph.calls import arguments, set_argument_
from trimtab.graph.capture import get_tensor, set_tensor_, without_unread_
from trimtab.graph.packed import BITS, QUANTIZE_NOW, UNPACK, decode, encode, pack
from trimtab.graph.shapes import refresh_shapes_

WITH_WEIGHT = (*LINEAR, *CONVOLUTIONS, *PRODUCTS)


@dataclass(frozen=True)
class PackedWeight:
    """How the weight that `layer` multiplies is stored.

    `group_size` weights of an output share a scale: all of them where the granularity is "channel".
    """

    layer: str
    weight: str
    shape: tuple[int, ...]
    precision: Precision
    bits: int
    granularity: Literal["channel", "group", "none"]
    group_size: int
    symmetric: bool
    activations: Literal["float", "dynamic"]

    @property
    def num_bytes(self) -> int:
        """Of its codes alone."""
        return math.ceil(math.prod(self.shape) * BITS[self.precision] / 8)


@dataclass(frozen=True)
class PackPlan:
    """Every weight that is packed, and what stays as it is."""

    weights: tuple[PackedWeight, ...]
    skipped: tuple[Skip, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One row per packed weight."""
        return [
            {
                "layer": weight.weight.removesuffix(".weight"),
                "bits": weight.bits,
                "scale per": weight.granularity,
                "group": weight.group_size,
                "symmetric": weight.symmetric,
                "activations": weight.activations,
                "bytes": weight.num_bytes,
            }
            for weight in self.weights
        ]


@dataclass(frozen=True)
class Packed:
    """The codes of a weight [rows, F], their scales [rows, groups], and their zeros if they are not symmetric."""

    codes: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None


def fixed_layers(graph: GraphModule, what: str, targets: Iterable[Any]) -> tuple[list[Layer], tuple[Skip, ...]]:
    """The layers among `targets` with a weight of their own, in graph order; and those whose weight is not."""
    wanted = set(targets)
    found, skipped = [], []
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in WITH_WEIGHT:
            continue
        layer = layer_of(graph, node)
        if node.target in PRODUCTS and layer is None:
            continue  # a product of two activations
        if layer is None:
            skipped.append(Skip(f"{what} of {node.name}", "its weight is computed or shared, so it is not its own"))
        elif node.target not in wanted:
            skipped.append(Skip(f"{what} of {node.name}", "only linear layers gain from it"))
        else:
            found.append(layer)
    return found, tuple(skipped)


def planned(
    graph: GraphModule,
    layer: Layer,
    *,
    precision: Precision,
    group_size: int | None,
    symmetric: bool = True,
    activations: Literal["float", "dynamic"] = "float",
    bits: int | None = None,
) -> PackedWeight:
    """The entry of a layer in the plan; `group_size` divides its features, `bits` are those of `precision` or fewer.

    Raises:
        PlanError: its weight is not finite float32.
    """
    weight = get_tensor(graph, layer.weight).detach()
    if weight.dtype != torch.float32:
        raise PlanError(f"The weight {layer.weight!r} is {weight.dtype}; float32 is needed: model.float().")
    if not weight.isfinite().all():
        raise PlanError(
            f"The weight {layer.weight!r} holds NaN or infinity, so it has no scale. Train or load it anew."
        )
    granularity: Literal["channel", "group", "none"] = "channel" if group_size is None else "group"
    return PackedWeight(
        layer.node,
        layer.weight,
        tuple(weight.shape),
        precision,
        bits or BITS[precision],
        "none" if precision == "fp16" else granularity,
        group_size or layer.matrix(weight).shape[2],
        symmetric,
        activations,
    )


def packed_nearest(layer: Layer, weight: Tensor, how: PackedWeight) -> Packed:
    """Each weight rounded to the nearest code."""
    rows = layer.matrix(weight.detach()).flatten(0, 1)
    if how.precision == "fp16":
        return Packed(encode(rows, None, None, "fp16"))
    grouped = rows.reshape(len(rows), -1, how.group_size)
    if how.bits == 7:
        scales = grouped.abs().amax(2).clamp_min(TINY) / 63
        return Packed(encode(grouped, scales[:, :, None], None, how.precision).flatten(1), scales)
    scales, zeros = scales_of(grouped, precision=how.precision, symmetric=how.symmetric)
    offsets = None if zeros is None else zeros[:, :, None]
    return Packed(encode(grouped, scales[:, :, None], offsets, how.precision).flatten(1), scales, zeros)


def values_of(packed: Packed, precision: str) -> Tensor:
    """The floats [rows, F] that the codes stand for."""
    if packed.scales is None:
        return decode(packed.codes, None, None, precision)
    grouped = packed.codes.reshape(len(packed.codes), packed.scales.shape[1], -1)
    zeros = None if packed.zeros is None else packed.zeros[:, :, None]
    return decode(grouped, packed.scales[:, :, None], zeros, precision).flatten(1)


def rounded(layer: Layer, how: PackedWeight, weight: Tensor) -> Tensor:
    """The weight as it comes out of its bytes, rounded to nearest."""
    values = values_of(packed_nearest(layer, weight, how), how.precision)
    return layer.weight_of(values.reshape(layer.matrix(weight).shape), weight.shape)


def require_same_layers(graph: GraphModule, plan: PackPlan) -> dict[str, Layer]:
    """The layers of the plan by node.

    Raises:
        PlanError: the plan was made for another graph.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    found = {}
    for weight in plan.weights:
        layer = layer_of(graph, nodes[weight.layer]) if weight.layer in nodes else None
        have = tuple(get_tensor(graph, layer.weight).shape) if layer else None
        if layer is None or layer.weight != weight.weight or have != weight.shape:
            raise PlanError(
                f"The plan was made for another graph: it packs {weight.weight!r} {list(weight.shape)} of "
                f"{weight.layer!r}, and here that is {list(have) if have else 'not there'}. Plan it anew."
            )
        found[weight.layer] = layer
    return found


def pack_(graph: GraphModule, layer: Layer, packed: Packed, how: PackedWeight) -> None:
    """Let the layer read its weight from bytes; the float weight is gone once `finished_` has run."""
    stem = layer.weight.replace(".", "_")
    codes = pack(packed.codes) if BITS[how.precision] == 4 else packed.codes
    node = next(node for node in graph.graph.nodes if node.name == layer.node)
    rows, transposed = len(packed.codes), layer.output_dim == 1
    shape = [rows, how.shape[0]] if transposed else list(how.shape)
    with graph.graph.inserting_before(node):
        reads: list[Node | None] = []
        for name, value in (("packed", codes), ("scales", packed.scales), ("zeros", packed.zeros)):
            if value is not None:
                set_tensor_(graph, f"{stem}_{name}", value.contiguous())
            reads.append(None if value is None else graph.graph.create_node("get_attr", f"{stem}_{name}"))
        made = graph.graph.call_function(UNPACK, (*reads, how.precision, shape))
        if transposed:
            made = graph.graph.call_function(torch.ops.aten.transpose.int, (made, 0, 1))
    set_argument_(node, weight_argument(node), made)


def weight_argument(node: Node) -> str:
    """What the schema calls the weight of a layer."""
    return PRODUCTS[node.target][1] if node.target in PRODUCTS else "weight"


def quantize_inputs_(graph: GraphModule, layers: Iterable[Layer]) -> None:
    """Round what goes into the layers, each value once, by the range of the batch at hand."""
    nodes = {node.name: node for node in graph.graph.nodes}
    rounded: dict[Node, Node] = {}
    for layer in layers:
        node = nodes[layer.node]
        value = arguments(node)[layer.argument]
        if value not in rounded:
            with graph.graph.inserting_after(value):
                rounded[value] = graph.graph.call_function(QUANTIZE_NOW, (value,))
        set_argument_(node, layer.argument, rounded[value])


def finished_(graph: GraphModule) -> GraphModule:
    """The graph after surgery: without what nothing reads, with its shapes."""
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return refresh_shapes_(without_unread_(graph))
