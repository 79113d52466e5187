"""A pruned graph given back as the user's own class.

Weights go in by name. What else holds a width is set where that is certain: the attributes of torch.nn's layers from
the new weights; integers of the user's modules by the numbers that changed in the graph (`attributes.py`). Nothing is
believed: the module's outputs are compared with the graph's, eager as it is, and captured again in float64 in eval and
train mode without dropout. Where the class cannot take the sizes (a number written into forward, widths that differ
where one attribute rules them all), it is refused with the module and the line.

Cost: two captures and a few forward passes on three inputs; up to `TRIES` more where attributes are in doubt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from trimtab.errors import CaptureError, PlanError
from trimtab.graph.attributes import Attribute, attributes, choices, numbers, same_operations
from trimtab.graph.calls import arguments
from trimtab.graph.capture import capture, get_tensor, user_line
from trimtab.graph.compare import CHECK_BATCH, disagreement, relative_error
from trimtab.graph.modes import TRAINING
from trimtab.graph.packed import precision_of
from trimtab.graph.shapes import example_inputs

M = TypeVar("M", bound=nn.Module)
aten = torch.ops.aten
TRIES = 64
# Both run the same operations in the same dtype; what is no bug differs by rounding.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
COARSE = 3e-2
# What a forward that does not fit its weights may raise.
MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
KEEPS = "The graph itself keeps working: train it, run it, keep it with tt.save(graph, folder)."
MEND = (
    f"{KEEPS} For the class, read the size from an attribute or from the tensor where it is a number now, or give as "
    "`like` a module that your constructor made with the new sizes."
)


def _conv(m: Any) -> dict[str, Any]:
    first, second = m.weight.shape[0], m.weight.shape[1] * m.groups
    return dict(zip(("in_channels", "out_channels"), (first, second) if m.transposed else (second, first), strict=True))


def _norm(m: Any) -> dict[str, Any]:
    per_channel = m.running_mean if m.weight is None else m.weight
    return {} if per_channel is None else {"num_features": len(per_channel)}


def _last_dims(m: Any) -> dict[str, Any]:
    return {} if m.weight is None else {"normalized_shape": tuple(m.weight.shape)}


def _recurrent(m: Any) -> dict[str, Any]:
    gates = {"LSTM": 4, "GRU": 3}.get(m.mode, 1)
    found = {"input_size": m.weight_ih_l0.shape[1], "hidden_size": m.weight_hh_l0.shape[0] // gates}
    return found | ({"proj_size": m.weight_hh_l0.shape[1]} if m.proj_size else {})


def _rows_and_width(m: Any) -> dict[str, Any]:
    return dict(zip(("num_embeddings", "embedding_dim"), m.weight.shape, strict=True))


# torch.nn's layers, and the attributes that follow from their weights
LAYERS: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    nn.Linear: lambda m: {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]},
    nn.Bilinear: lambda m: dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape, strict=True)),
    _ConvNd: _conv,
    _NormBase: _norm,
    nn.LayerNorm: _last_dims,
    nn.RMSNorm: _last_dims,
    nn.GroupNorm: lambda m: {} if m.weight is None else {"num_channels": len(m.weight)},
    nn.Embedding: _rows_and_width,
    nn.EmbeddingBag: _rows_and_width,
    nn.PReLU: lambda m: {"num_parameters": m.weight.numel()},
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: lambda m: {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]},
}
# operation -> its argument, and so its layer's attribute, that no weight tells
COUNTS = {
    aten.conv1d.default: "groups",
    aten.conv2d.default: "groups",
    aten.conv3d.default: "groups",
    aten.conv_transpose1d.default: "groups",
    aten.conv_transpose2d.input: "groups",
    aten.conv_transpose3d.input: "groups",
    aten.group_norm.default: "num_groups",
}


def as_module(graph: GraphModule, *, like: M) -> M:
    """`graph` as a module of the class of `like`, with the graph's weights; checked against the graph.

    Args:
        graph: captured from a module like `like`, then pruned, trained or loaded; left as it was.
        like: the module that was captured, or one that your constructor made with the old or the new sizes; left as
            it was. What the graph does not read (unused layers, counters) is taken from it.

    Returns:
        A module of its own, in the mode of `graph`, with the graph's parameter names. Tied weights stay tied.

    Raises:
        PlanError: the class cannot take the new sizes; the message says which module and which line.

    >>> from trimtab.graph.surgery import cut
    >>> mine = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> pruned = cut(capture(mine, (torch.randn(2, 4),)), {"0": (1, 5, 6)})
    >>> as_module(pruned, like=mine)[0]
    Linear(in_features=4, out_features=3, bias=True)
    """
    kind = type(like).__name__
    if not isinstance(graph, GraphModule) or isinstance(like, GraphModule):
        raise PlanError(
            "as_module takes a captured graph, and a module of your own class as `like`; "
            f"got a {type(graph).__name__} and a {kind}. Give the module that you captured."
        )
    if precision_of(graph):
        raise PlanError(f"A quantized graph cannot be a {kind}: its layers hold no scales. {KEEPS}")
    inputs = example_inputs(graph, batch_size=CHECK_BATCH)
    try:
        before = capture(like, inputs)
    except CaptureError as error:
        raise PlanError(f"`like` does not take what the graph takes. {error}") from error
    module = copy.deepcopy(like)
    widths = _put_tensors_(module, graph, before)
    _set_counts_(module, graph)
    other = same_operations(graph, before)
    doubtful = attributes(like, () if other else numbers(before, graph), widths, derived)
    chosen, miss = _choose_(module, doubtful, _Expected(graph, inputs))
    # What ran and was wrong is told by the first number that is not the graph's.
    why = miss.why if miss and not miss.ran else _difference(graph, module, inputs) or (miss and miss.why)
    if why:
        told = [line for one, option in zip(doubtful, chosen, strict=True) for line in one.told(option)]
        tried = f"Set for it: {', '.join(told[:8])}{', ...' if len(told) > 8 else ''}.\n" if told else ""
        also = f"The graph is not as it was captured: {other}.\n" if other else ""
        raise PlanError(f"{kind} cannot take the graph's sizes: {why}\n{tried}{also}{MEND}")
    return module.train(graph.training)


def derived(part: nn.Module) -> dict[str, Any]:
    """The attributes of a layer of torch.nn that follow from its weights, with what they must be; {} of others.

    >>> derived(nn.PReLU(3))
    {'num_parameters': 3}
    """
    return next((told(part) for kind, told in LAYERS.items() if isinstance(part, kind)), {})


def _put_tensors_(
    module: nn.Module, graph: GraphModule, before: GraphModule
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Put copies of the graph's tensors into `module` by name; returns the shape of each, before and after."""
    own = _tensors(module)
    ours, theirs = _reads(graph), _reads(before)
    kind = type(module).__name__
    if unknown := [name for name in ours if name not in own and name not in theirs]:
        raise PlanError(f"{kind} has no {', '.join(unknown[:4])}, which the graph reads. Give the module it is from.")
    if gone := [name for name in theirs if name in own and name not in ours]:
        raise PlanError(f"The graph no longer has {', '.join(gone[:4])}, which {kind} needs. {KEEPS}")
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    copies: dict[int, Tensor] = {}
    widths = {}
    for name, new in ours.items():
        if name not in own:
            continue  # a constant that forward makes itself
        old = own[name]
        if id(new) not in copies:
            data = new.detach().clone()
            is_weight = isinstance(old, nn.Parameter)
            copies[id(new)] = nn.Parameter(data, requires_grad=new.requires_grad) if is_weight else data
        for alias in names[id(old)]:
            if alias in ours and ours[alias] is not new:
                raise PlanError(f"{name} and {alias} are one tensor in {kind} and two in the graph. {KEEPS}")
            path, _, leaf = alias.rpartition(".")
            setattr(module.get_submodule(path), leaf, copies[id(new)])
            widths[alias] = (tuple(old.shape), tuple(new.shape))
    return widths


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter, buffer and plain tensor attribute, under all its names."""
    found = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for path, part in module.named_modules(remove_duplicate=False):
        plain = {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}
        found |= {f"{path}.{name}".lstrip("."): value for name, value in plain.items()}
    return found


def _reads(graph: GraphModule) -> dict[str, Tensor]:
    names = dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "get_attr")
    return {name: get_tensor(graph, name) for name in names if name != TRAINING}


def _set_counts_(module: nn.Module, graph: GraphModule) -> None:
    """Set what no weight tells: how many groups a convolution or a GroupNorm has."""
    counts = {}
    own = _tensors(module)
    for node in graph.graph.nodes:
        if node.target in COUNTS:
            given = arguments(node)
            weight = given["weight"]
            if weight is not None and weight.op == "get_attr" and str(weight.target) in own:
                counts[id(own[str(weight.target)])] = (COUNTS[node.target], given[COUNTS[node.target]])
    for part in module.modules():
        if isinstance(part, _ConvNd | nn.GroupNorm) and id(part.weight) in counts:
            setattr(part, *counts[id(part.weight)])


@dataclass(frozen=True)
class _Misfit:
    """Why a module is not the graph, in words; `ran`: it gave an answer, but another one."""

    why: str
    ran: bool


class _Expected:
    """What the graph answers in eval mode, to compare a module's answers with."""

    def __init__(self, graph: GraphModule, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs
        with torch.no_grad():
            self.output = Interpreter(copy.deepcopy(graph).eval()).run(*(x.clone() for x in inputs))

    @torch.no_grad()
    def misfit(self, module: nn.Module) -> _Misfit | None:
        """How the module's answers differ; None if they do not."""
        try:
            got = module.eval()(*(x.clone() for x in self.inputs))
        except MISFITS as error:
            return _Misfit(_explained(error, module), ran=False)
        wrong = _compared(got, self.output, ROUNDING.get(self.output.dtype, COARSE), "run as it is, in eval mode,")
        return _Misfit(wrong, ran=True) if wrong else None


def _choose_(
    module: nn.Module, doubtful: list[Attribute], expected: _Expected
) -> tuple[tuple[int, ...], _Misfit | None]:
    """Set the attributes of `module` so that it answers as expected; returns the options taken, or the nearest miss.

    An attribute stays as it is where nothing says that it has to change.
    """
    misses = []
    for chosen in choices(doubtful, most=TRIES):
        _set_(module, doubtful, chosen)
        miss = expected.misfit(module)
        if miss is None:
            return _fewest_(module, doubtful, chosen, expected), None
        misses.append((chosen, miss))
    chosen, miss = next((one for one in misses if one[1].ran), misses[0])
    _set_(module, doubtful, chosen)
    return chosen, miss


def _fewest_(
    module: nn.Module, doubtful: list[Attribute], chosen: tuple[int, ...], expected: _Expected
) -> tuple[int, ...]:
    for place, one in enumerate(doubtful):
        unchanged = (*chosen[:place], one.options.index(one.values), *chosen[place + 1 :])
        if unchanged != chosen and not (one.settled and chosen[place] == 0):
            _set_(module, doubtful, unchanged)
            chosen = chosen if expected.misfit(module) else unchanged
    _set_(module, doubtful, chosen)
    return chosen


def _set_(module: nn.Module, doubtful: list[Attribute], chosen: tuple[int, ...]) -> None:
    for one, option in zip(doubtful, chosen, strict=True):
        one.set_(module, option)
    for part in module.modules():
        for name, value in derived(part).items():
            setattr(part, name, value)


def _difference(graph: GraphModule, module: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
    """How `module`, captured, differs from `graph` in float64, in words; None if it does not."""
    try:
        again = capture(module, inputs)
    except CaptureError as error:
        return f"{error}"
    wrong = disagreement(graph, again, inputs)
    return f"in float64, {wrong}." + _first_number(again, graph) if wrong else None


def _compared(got: Any, expected: Tensor, tolerance: float, where: str) -> str | None:
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        return f"{where} its output is {shape} where {tuple(expected.shape)} was expected."
    error = relative_error(got, expected)
    return None if error <= tolerance else f"{where} its output is {error:.1e} off, relative to the largest output."


def _first_number(again: GraphModule, graph: GraphModule) -> str:
    """The first number that the class computes and that is not the graph's, with its line."""
    if other := same_operations(graph, again):
        return f" The graph differs in more than sizes: {other}."
    for number in numbers(again, graph):
        if number.old != number.new:
            path = number.modules[-1] if number.modules else ""
            return (
                f" {path or 'The model'} computes {number.argument} = {number.old} for {number.node} "
                f"where the graph has {number.new}\n  at {number.line}"
            )
    return ""


def _explained(error: BaseException, module: nn.Module) -> str:
    """The error that a forward raised, with the module where it arose and the line of the user's that led there."""
    paths = {id(part): path for path, part in module.named_modules()}
    trace, where = error.__traceback__, ""
    while trace is not None:
        path = paths.get(id(trace.tb_frame.f_locals.get("self")))
        where = where if path is None else f"{path or 'its forward'}: "
        trace = trace.tb_next
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = user_line(error)
    return f"{where}{reason}" + (f"\n  at {line}" if line else "")
