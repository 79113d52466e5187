"""Formulas in place as kernels for all lengths, by torch.compile's backend.

torch.compile looks at every argument before it runs what it has made. For an optimizer, which has just swept the
caches with a tensor, that look takes as long as the work on 100,000 weights. What a kernel on CPU depends on is little
and known here: the formula is traced once for each of that, and its kernel called without the look.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

Formula = Callable[..., Any]
LENGTH = 1 << 13  # of what is traced: long, as sums of up to 4,096 numbers are compiled to be less exact


@cache
def compiled(formula: Formula) -> Formula:
    """A kernel for tensors [n, ...], the first of any dtype, without gaps, and then one of the numbers."""
    kernels: dict[tuple[torch.dtype, int], Formula] = {}

    def run(*tensors: Tensor) -> Any:
        first = tensors[0]
        plain = first.device.type == "cpu" and type(first) in (Tensor, nn.Parameter)
        if not plain or torch.compiler.is_compiling():
            return for_any_shape(formula)(*tensors)
        if len(first) < 2:
            return formula(*tensors)  # a compiler takes these lengths for constants
        key = (first.dtype, torch.get_num_threads())
        if key not in kernels:
            kernels[key] = _kernel(formula, tensors)
        return kernels[key](*tensors)

    return run


@cache
def for_any_shape(formula: Formula) -> Formula:
    """The same for tensors of any shape and device, by torch.compile whole."""
    return torch.compile(formula, fullgraph=True, dynamic=True)


def _kernel(formula: Formula, tensors: tuple[Tensor, ...]) -> Formula:
    from torch._inductor.compile_fx import compile_fx  # seconds to import

    traced = [*(tensor.new_empty(LENGTH, *tensor.shape[1:]) for tensor in tensors[:-1]), tensors[-1]]
    graph = make_fx(lambda *given: formula(*given) or (), tracing_mode="symbolic")(*traced)  # else it is wrapped again
    given = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    kernel = compile_fx(graph, given)
    length, env = given[0].shape[0].node.expr, given[0].fake_mode.shape_env
    limits = {guard.expr for guard in env.guards if length in guard.expr.free_symbols}
    assert limits <= {length > 4096}, f"a kernel for some lengths alone: {limits}"  # that of sums: exactness alone
    return cast(Formula, kernel)
