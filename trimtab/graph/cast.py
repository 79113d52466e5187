"""A graph in reduced floats: weights, and what flows between, in bf16; inputs and output stay as they were.

Every floating source (input, weight, constant made inside) is cast, so that all operations see one dtype. BatchNorm
keeps its own four vectors: its kernels take them in fp32 beside a bf16 input, and rounding a variance costs accuracy.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.fx import GraphModule, Node

from trimtab.errors import PlanError
from trimtab.graph.capture import get_tensor, set_tensor_
from trimtab.graph.packed import precision_of
from trimtab.graph.shapes import refresh_shapes_

aten = torch.ops.aten


def cast(graph: GraphModule, dtype: torch.dtype) -> GraphModule:
    """A copy of `graph` that computes in `dtype`; its floating inputs are cast at entry, its output back.

    Args:
        graph: in fp32; left as it was.
        dtype: torch.bfloat16, or another floating dtype.

    Raises:
        PlanError: the graph is quantized, or mixes dtypes in a way that casting cannot keep.
    """
    if precision_of(graph):
        raise PlanError(f"A quantized graph cannot be cast to {dtype}: its scales need fp32. Cast before Quantize.")
    result = copy.deepcopy(graph)
    _cast_weights_(result, dtype)
    for node in list(result.graph.nodes):
        _cast_node_(node, dtype)
    output = next(node for node in reversed(result.graph.nodes) if node.op == "output")
    answer = output.args[0]
    with result.graph.inserting_before(output):
        output.args = (result.graph.call_function(aten.to.dtype, (answer, answer.meta["val"].dtype)),)
    result.recompile()
    try:
        return refresh_shapes_(result)
    except RuntimeError as error:
        raise PlanError(f"The graph does not run in {dtype}: {error}. Serve it in fp32.") from error


def _cast_weights_(graph: GraphModule, dtype: torch.dtype) -> None:
    reads = [node for node in graph.graph.nodes if node.op == "get_attr" and not _is_for_batch_norm(node)]
    tensors = {str(node.target): get_tensor(graph, str(node.target)) for node in reads}
    reduced: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
            if id(tensor) not in reduced:
                low = tensor.detach().to(dtype)
                is_weight = isinstance(tensor, nn.Parameter)
                reduced[id(tensor)] = nn.Parameter(low, requires_grad=tensor.requires_grad) if is_weight else low
            set_tensor_(graph, name, reduced[id(tensor)])


def _is_for_batch_norm(node: Node) -> bool:
    return all(user.target is aten.batch_norm.default and user.args[0] is not node for user in node.users)


def _cast_node_(node: Node, dtype: torch.dtype) -> None:
    if node.op == "call_function":
        node.args = tuple(dtype if arg is torch.float32 else arg for arg in node.args)
        node.kwargs = {key: dtype if arg is torch.float32 else arg for key, arg in node.kwargs.items()}
    value = node.meta.get("val")
    is_source = node.op == "placeholder" or (node.op == "call_function" and not node.all_input_nodes)
    if is_source and isinstance(value, torch.Tensor) and value.dtype == torch.float32 and node.users:
        with node.graph.inserting_after(node):
            reduced = node.graph.call_function(aten.to.dtype, (node, dtype))
        node.replace_all_uses_with(reduced, delete_user_cb=lambda user: user is not reduced)
