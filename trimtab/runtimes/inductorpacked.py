"""int8 weights for inductor: `quantized_decomposed.dequantize_per_channel`, the one form that it does not fold to fp32.

The bytes stay in the package as int8, and each call makes floats of a weight just before its layer. That saves size and
memory, not time. Groups of a row are rows of their own to it. 4-bit codes, fp8 and fp16 it folds: they are refused.
"""

from __future__ import annotations

import copy
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import GraphModule


def dequantized(graph: GraphModule) -> GraphModule:
    """A copy whose int8 weights are read in inductor's form; the values are the same.

    Args:
        graph: all of its packed weights are int8w.
    """
    import torch

    from trimtab.graph.capture import get_tensor, set_tensor_, without_unread_
    from trimtab.graph.packed import UNPACK
    from trimtab.graph.shapes import refresh_shapes_

    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operator
    dequantize = torch.ops.quantized_decomposed.dequantize_per_channel.default
    result = copy.deepcopy(graph)
    for node in result.graph.find_nodes(op="call_function", target=UNPACK):
        levels, scales, _, _, shape = node.args
        groups = get_tensor(result, str(scales.target))
        rows = get_tensor(result, str(levels.target)).reshape(groups.numel(), -1)
        values = {
            f"{levels.target}_rows": rows,
            f"{levels.target}_flat_scales": groups.flatten(),
            f"{levels.target}_zero": torch.zeros(groups.numel(), dtype=torch.int64),
        }
        with result.graph.inserting_before(node):
            reads = []
            for name, value in values.items():
                set_tensor_(result, name, value)
                reads.append(result.graph.create_node("get_attr", name))
            real = result.graph.call_function(dequantize, (*reads, 0, -127, 127, torch.int8))
            whole = result.graph.call_function(torch.ops.aten.reshape.default, (real, list(shape)))
        node.replace_all_uses_with(whole)
        result.graph.erase_node(node)
    result.graph.eliminate_dead_code()
    result.recompile()
    return refresh_shapes_(without_unread_(result))
