"""A plan of scales as operations of a graph: quantize/dequantize pairs, integer weights, biases that are moved.

The operations are those of `quantized_decomposed`, which every runtime's exporter takes.
"""

from __future__ import annotations

import copy
import importlib

import torch
from torch.fx import GraphModule, Node

from trimtab.compress.points import rounded_readers
from trimtab.compress.scales import ActivationScale, BiasShift, WeightScale, levels
from trimtab.graph.capture import get_tensor, set_tensor_, without_unread_
from trimtab.graph.shapes import refresh_shapes_

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators below
integer = torch.ops.quantized_decomposed


def emitted(
    graph: GraphModule,
    activations: tuple[ActivationScale, ...],
    weights: tuple[WeightScale, ...],
    biases: tuple[BiasShift, ...],
) -> GraphModule:
    """A copy of a folded and equalized graph with the plan's integers in it."""
    quantized = copy.deepcopy(graph)
    nodes = {node.name: node for node in quantized.graph.nodes}
    readers = rounded_readers(quantized.graph, {activation.node for activation in activations})
    for activation in activations:
        _quantize_activation_(quantized, nodes[activation.node], activation, readers[activation.node])
    for weight in weights:
        _quantize_weight_(quantized, nodes[weight.layer], weight)
    for shift in biases:
        _shift_bias_(quantized, nodes[shift.layer], shift)
    quantized.graph.eliminate_dead_code()
    quantized.recompile()
    return refresh_shapes_(without_unread_(quantized))


def bias_name(layer: str) -> str:
    """What the bias of a layer is called once it was moved."""
    return f"{layer}_shifted_bias"


def _quantize_activation_(graph: GraphModule, node: Node, scale: ActivationScale, readers: list[Node]) -> None:
    limits = (scale.scale, scale.zero_point, 0, 255, torch.uint8)
    with graph.graph.inserting_after(node):
        rounded = graph.graph.call_function(integer.quantize_per_tensor.default, (node, *limits))
    with graph.graph.inserting_after(rounded):
        real = graph.graph.call_function(integer.dequantize_per_tensor.default, (rounded, *limits))
    for reader in readers:
        reader.replace_input_with(node, real)


def _quantize_weight_(graph: GraphModule, layer: Node, scale: WeightScale) -> None:
    read = layer.args[1]
    assert isinstance(read, Node)
    integers, rows = levels(get_tensor(graph, scale.weight).detach(), scale)
    scales = rows.flatten()
    stem = scale.weight.replace(".", "_")
    values = {
        f"{stem}_int8": integers.to(torch.int8),
        f"{stem}_scale": scales,
        f"{stem}_zero": torch.zeros(len(scales), dtype=torch.int64),
    }
    with graph.graph.inserting_before(layer):
        reads = []
        for name, value in values.items():
            set_tensor_(graph, name, value)
            reads.append(graph.graph.create_node("get_attr", name))
        real = graph.graph.call_function(integer.dequantize_per_channel.default, (*reads, 0, -127, 127, torch.int8))
    layer.replace_input_with(read, real)


def _shift_bias_(graph: GraphModule, layer: Node, shift: BiasShift) -> None:
    """Give the layer a bias of its own that is moved; other layers may read the one that it had."""
    values = torch.tensor(shift.values)
    held = layer.args[2] if len(layer.args) > 2 else None
    if isinstance(held, Node):
        values = values + get_tensor(graph, str(held.target)).detach()
    name = bias_name(layer.name)
    set_tensor_(graph, name, values)
    with graph.graph.inserting_before(layer):
        read = graph.graph.create_node("get_attr", name)
    layer.args = (*layer.args[:2], read, *layer.args[3:])
