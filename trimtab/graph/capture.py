"""Module -> the ATen graph of torch.export (training IR), trainable, with the module's own parameter names.

The module is captured in eval mode, which is how it will be served; BatchNorm and Dropout then follow train/eval
through `modes.py`. The batch dim stays symbolic. Cost: under a second for a ResNet-18 on a CPU.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trimtab.errors import CaptureError
from trimtab.graph.calls import writes
from trimtab.graph.fisher import attach_fisher_, fisher_of
from trimtab.graph.modes import live_modes_
from trimtab.graph.plain import plain_forms_
from trimtab.graph.regions import inlined_regions_
from trimtab.graph.shapes import InputSpec, refresh_shapes_

MENDS = (
    (
        ("data-dependent", "Could not guard", "DataDependent", "item()", "_local_scalar_dense"),
        "The control flow depends on a tensor's values. Compute both branches and choose with torch.where(...), "
        "or use torch.cond(...), or move the decision outside the model.",
    ),
    (
        ("Constraints violated", "specializ"),
        "The model fixes the batch size. Use x.shape[0] (or -1 in view/reshape) where it holds a number.",
    ),
)
OTHERWISE = (
    "Keep forward to tensor operations: no .numpy(), .tolist() or Python values made from tensors; "
    "torch.export's documentation lists what it takes."
)


def capture(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> GraphModule:
    """Capture `module` as one trainable graph; the module is left as it was.

    Args:
        module: takes the inputs by position and returns one tensor [B, ...].
        example_inputs: tensors [B, ...] that fit it; their values do not matter.

    Returns:
        A graph on copies of the weights, in eval mode. Every node carries its shape in `meta["val"]`. What training
        left with the module (`fisher.py`) goes along.

    Raises:
        CaptureError: with the line of the model that cannot be captured, and how to mend it.
    """
    _refuse_cumulative_averages(module)
    _refuse_wrapped_weights(module)
    original = _with_named_weights_(copy.deepcopy(module).eval())
    inputs = tuple(_at_least_two(x) for x in example_inputs)
    batch = torch.export.Dim("batch", min=1)
    # The nesting lets `forward(self, *inputs)` pass too.
    shapes = tuple({0: batch} for _ in inputs)
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(_Call(original), inputs, dynamic_shapes=(shapes,), strict=False)
            raw = exported.module(check_guards=False)
    except Exception as error:  # the user's forward may raise anything, and so may the exporter
        raise _capture_error(module, error) from error
    own = _own(raw, inputs)
    attach_fisher_(own, fisher_of(module))
    return own


def _refuse_cumulative_averages(module: nn.Module) -> None:
    # Its update depends on a count that the graph does not hold: trained further, its statistics would stand still.
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats and part.momentum is None:
            raise CaptureError(
                f"{type(module).__name__} cannot be captured as one graph: {name} is a {type(part).__name__} with "
                "momentum=None, a cumulative average that a graph cannot go on with. Give it a momentum: "
                f"model.get_submodule({name!r}).momentum = 0.1"
            )


def _refuse_wrapped_weights(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_traceable_wrapper_subclass(tensor):
            raise CaptureError(
                f"{type(module).__name__} cannot be captured as one graph: {name} is an {type(tensor).__name__}, and a "
                "graph holds ordinary tensors. Give the model with such, e.g. "
                "trimtab.train.integers.float_weights_(model)."
            )


class _NamedWeights:
    """Recurrent layers keep a second list of their weights, which export takes for tensors made on the way."""

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]  # type: ignore[attr-defined]

    @_flat_weights.setter
    def _flat_weights(self, weights: object) -> None:
        """Nothing to keep: the list is read anew each time."""


def _with_named_weights_(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part.__dict__.pop("_flat_weights")
            part.__class__ = type(type(part).__name__, (_NamedWeights, type(part)), {})
    return module


class _Call(nn.Module):
    """Calls the module with its inputs as one tuple, whatever its forward names them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs)


def _at_least_two(x: Tensor) -> Tensor:
    # torch.export specialises a dim of size 1.
    return x if x.shape[0] > 1 else x.expand(2, *x.shape[1:]).contiguous()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # A failing export logs and prints its own report before it raises; ours is the one that the user reads.
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _own(raw: GraphModule, inputs: tuple[Tensor, ...]) -> GraphModule:
    """The same graph on copied weights, in plain form: inputs first, one output, no unused reads."""
    root, graph, seen = nn.Module(), Graph(), {}  # type: ignore[var-annotated]
    copies: dict[int, Tensor] = {}
    nodes = inlined_regions_(raw).nodes
    placeholders = [node for node in nodes if node.op == "placeholder"]
    for place, (node, x) in enumerate(zip(placeholders, inputs, strict=True)):
        name = "x" if len(inputs) == 1 else f"x{place}"
        seen[node] = graph.placeholder(name)
        seen[node].meta["spec"] = InputSpec(name, tuple(x.shape[1:]), str(x.dtype).removeprefix("torch."), _high(x))
    for node in nodes:
        if node.op == "call_module":
            raise CaptureError(
                f"The graph calls the submodule {node.target!r}, e.g. torch.cond's branches; {OTHERWISE}"
            )
        if node.op == "get_attr" and node.users:
            name = str(node.target).removeprefix("model.")
            set_tensor_(root, name, _copied(get_tensor(raw, str(node.target)), copies))
            seen[node] = graph.create_node("get_attr", name)
        elif node.op == "call_function":
            _refuse_writing_weights(raw, node)
            seen[node] = graph.node_copy(node, lambda n: seen[n])
        elif node.op == "output":
            graph.output(seen[_only_output(node)])
    live_modes_(plain_forms_(graph))
    own = GraphModule(root, graph, class_name="Graph")
    return refresh_shapes_(own.eval())


def _refuse_writing_weights(raw: GraphModule, node: Node) -> None:
    written = node.args[0] if node.args else None
    if writes(node) and isinstance(written, Node) and written.op == "get_attr":
        name = str(written.target)
        if isinstance(get_tensor(raw, name), nn.Parameter):
            raise CaptureError(
                f"The model writes into its own weight {name.removeprefix('model.')!r} ({node.target}) each time it is "
                "called, so a graph of it would not give the same twice. Change the weight once, outside forward."
            )


def _high(x: Tensor) -> int:
    """One more than the largest integer in an example: what is known to be an index, a class, a token."""
    return 1 if x.is_floating_point() or x.is_meta or not x.numel() else max(1, int(x.max()) + 1)


def _only_output(node: Node) -> Node:
    outputs = [arg for arg in node.args[0] if isinstance(arg, Node)]  # type: ignore[union-attr]
    if len(outputs) != 1 or not isinstance(outputs[0].meta.get("val"), Tensor):
        raise CaptureError(
            f"The model returns {len(outputs)} tensors where one was expected. "
            "Wrap it in a module whose forward returns the one that the metric judges."
        )
    return outputs[0]


def _copied(tensor: Tensor, copies: dict[int, Tensor]) -> Tensor:
    # Tied weights stay tied: one copy each.
    if id(tensor) not in copies:
        # Kernels are chosen by strides, and a file keeps none: in plain order, the graph that is loaded rounds alike.
        copy_ = tensor.detach().clone(memory_format=torch.contiguous_format)
        is_weight = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(copy_, requires_grad=tensor.requires_grad) if is_weight else copy_
    return copies[id(tensor)]


def get_tensor(root: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or constant that a dotted name stands for."""
    path, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(path), leaf)  # type: ignore[no-any-return]


def set_tensor_(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a parameter or buffer under a dotted name, making the modules between as needed."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if leaf in root._parameters or leaf in root._buffers:
        delattr(root, leaf)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor)


def without_unread_(graph: GraphModule) -> GraphModule:
    """Forget the parameters and buffers that nothing reads any more; returns `graph`."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    held = [name for name, _ in (*graph.named_parameters(), *graph.named_buffers())]
    for name in held:
        if name not in read:
            path, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(path), leaf)
    return graph


def _capture_error(module: nn.Module, error: Exception) -> CaptureError:
    line = user_line(error)
    text = f"{type(error).__name__}: {error}"
    mend = next((mend for words, mend in MENDS if any(word in text for word in words)), OTHERWISE)
    where = f"\n  at {line}" if line else ""
    reason = next((part for part in str(error).splitlines() if part.strip()), type(error).__name__)
    return CaptureError(f"{type(module).__name__} cannot be captured as one graph: {reason}{where}\n{mend}")


def user_line(error: BaseException) -> str:
    """The deepest line of the user's own code that the error passed through."""
    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*libraries, "<")) and Path(frame.filename).parent.name != "contextlib"
    ]
    if not frames:
        return ""
    return f"{frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}: {frames[-1].line}"
