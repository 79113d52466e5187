"""Whether two graphs give the same: in float64, in eval and in train mode, without dropout."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from trimtab.graph.modes import FLAGS

TOLERANCE = 1e-9  # relative to the largest output; float64 keeps some 1e-13 through a deep network
CHECK_BATCH = 3  # BatchNorm needs more than one sample, and two always come out as +-1


@torch.no_grad()
def disagreement(
    reference: GraphModule,
    candidate: GraphModule,
    inputs: tuple[Tensor, ...],
    *,
    run: Callable[[GraphModule], Interpreter] = Interpreter,
) -> str | None:
    """How the outputs of two graphs differ, in words; None if they do not.

    Args:
        reference: what is right, as `run` interprets it.
        candidate: what is judged.
        inputs: fit both; each [B, ...].
        run: gives the interpreter of the reference, which may change values on their way.
    """
    wide, narrow = in_float64(reference), in_float64(candidate)
    for mode, training in (("eval", False), ("train", True)):
        expected = _run(run(wide.train(training)), inputs)
        try:
            got = _run(Interpreter(narrow.train(training)), inputs)
        except RuntimeError as error:
            return f"in {mode} mode it does not run ({str(error).splitlines()[0]})"
        if got.shape != expected.shape:
            return f"in {mode} mode its output is {tuple(got.shape)} where {tuple(expected.shape)} was expected"
        wrong = relative_error(got, expected)
        if not wrong <= TOLERANCE:
            return f"in {mode} mode its output is {wrong:.1e} off, relative to the largest output"
    return None


def _run(interpreter: Interpreter, inputs: tuple[Tensor, ...]) -> Tensor:
    # Fresh copies: the graph may write into its inputs. A model may draw random numbers when it is served too: both
    # draw the same ones.
    fresh = [x.double() if x.is_floating_point() else x.clone() for x in inputs]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return interpreter.run(*fresh)  # type: ignore[no-any-return]


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over largest expected value; infinite where only one of the two is finite."""
    finite = expected.isfinite()
    if not torch.equal(finite, got.isfinite()) or not finite.any():
        return float("inf")
    got, expected = got.detach()[finite].double(), expected.detach()[finite].double()
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def in_float64(graph: GraphModule) -> GraphModule:
    """A copy in float64 without dropout, to be interpreted."""
    exact = copy.deepcopy(graph).double()
    for node in exact.graph.nodes:
        if node.target in FLAGS and node.target is not torch.ops.aten.batch_norm.default:
            node.update_arg(1, 0.0)
        node.args = tuple(torch.float64 if arg is torch.float32 else arg for arg in node.args)
        made = not node.all_input_nodes and _names_dtype(node) and node.meta["val"].dtype == torch.float32
        if made or node.kwargs.get("dtype") is torch.float32:
            node.update_kwarg("dtype", torch.float64)
    return exact


def _names_dtype(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and any(
        a.name == "dtype" for a in node.target._schema.arguments
    )
