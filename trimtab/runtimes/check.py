"""Does the exported file, in its own runtime and process, answer as the graph does?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from trimtab.errors import RuntimeFailed
from trimtab.graph.modes import frozen_modes
from trimtab.runtimes.formats import PACKED
from trimtab.runtimes.process import Served

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from trimtab.core import Precision
    from trimtab.runtimes.base import Array, Runtime

# The relative L2 distance of the outputs that is allowed. fp32: reordered sums give 1e-7 to 1e-5, a wrong operation
# 1e-2 or more. bf16 holds 8 bits: 2e-3 to 2e-2 on nets of up to 50 layers. int8: runtimes round ties and
# requantize differently, which moves single u8 steps; 3e-3 to 2e-2 was seen where every layer was right. Packed weights
# are the same floats everywhere.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-2, "int8": 5e-2, "int8d": 5e-2}
TOLERANCE |= dict.fromkeys(PACKED, 1e-4)
# In some nets a step of rounding in one layer moves steps of the next: int8 MobileNetV2 moves by .17 when each result
# is off by 1e-7. There no two arithmetics answer alike, and twice what the graph itself does by `Rounded` is allowed,
# up to half of the outputs' norm; answers that have nothing to do with the graph's are off by all of it.
NOISE, TIMES_NOISE, MOST = 1e-6, 2.0, 0.5


@dataclass(frozen=True)
class Agreement:
    """How far a runtime's outputs are from the graph's on `n` samples; `argmax` is the share of equal decisions.

    noise: how far the graph's own outputs move by rounding alone, as relative L2; found where it decides, else 0.
    """

    runtime: str
    precision: Precision
    relative_l2: float
    max_abs: float
    argmax: float
    n: int
    noise: float = 0.0

    @property
    def allowed(self) -> float:
        return max(TOLERANCE[self.precision], min(TIMES_NOISE * self.noise, MOST))


class Rounded(Interpreter):
    """Runs a graph as another arithmetic might: bf16 rounds every float, else results are off as reordered sums are."""

    def __init__(self, graph: GraphModule, precision: Precision) -> None:
        super().__init__(graph)
        self.bf16, self.generator = precision == "bf16", torch.Generator().manual_seed(0)

    def run_node(self, n: Node) -> Any:
        found = super().run_node(n)
        if not (isinstance(found, Tensor) and found.is_floating_point()):
            return found
        if self.bf16:
            return found.bfloat16().to(found.dtype)
        exact = n.op != "call_function"  # weights and inputs are the same everywhere
        return found if exact else found * (1 + NOISE * torch.randn(found.shape, generator=self.generator))


def agree(
    graph: GraphModule,
    runtime: Runtime,
    folder: Path,
    *,
    precision: Precision,
    inputs: tuple[Array, ...],
    threads: int = 1,
) -> Agreement:
    """Compare what `folder` answers in a fresh process with the graph in fp32.

    Args:
        graph: what was exported into `folder`.
        runtime: one of `RUNTIMES`.
        folder: what its `export` wrote.
        precision: as exported. All but bf16 are compared with reduced floats forbidden: they would hide a defect.
        inputs: [N, ...] each, N >= 1.
        threads: for the runtime.

    Raises:
        RuntimeMissing, RuntimeFailed: it cannot be served at all.
    """
    with Served(runtime.name, folder, precision=precision, threads=threads, exact=precision != "bf16") as served:
        answers = served.run(inputs, batch_size=served.signature.batch_size)
        size = served.signature.batch_size if precision == "int8d" else len(inputs[0])
    model, tensors = frozen_modes(graph), tuple(map(torch.from_numpy, inputs))
    batches = [tuple(x[at : at + size] for x in tensors) for at in range(0, len(inputs[0]), size)]
    with torch.no_grad():  # ranges found at run time are those of a batch
        expected = torch.cat([model(*batch) for batch in batches]).numpy()
        found = compare(expected, answers, runtime=runtime.name, precision=precision)
        if found.relative_l2 <= TOLERANCE[precision]:
            return found
        rounded = Rounded(model, precision)
        noisy = torch.cat([rounded.run(*batch) for batch in batches]).numpy()
    noise = compare(expected, noisy, runtime=runtime.name, precision=precision).relative_l2
    return replace(found, noise=noise)


def compare(expected: Array, answers: Array, *, runtime: str, precision: Precision) -> Agreement:
    """The distance of two outputs [N, ...]; decisions are taken along the last dim.

    Raises:
        RuntimeFailed: their shapes differ.
    """
    if expected.shape != answers.shape:
        raise RuntimeFailed(
            f"{runtime} {precision} answers with shape {answers.shape}; the graph's is {expected.shape}."
        )
    a, b = expected.astype(np.float64), answers.astype(np.float64)
    norm = max(float(np.linalg.norm(a)), float(np.finfo(np.float32).tiny))
    distance = float(np.linalg.norm(b - a)) / norm
    same = float(np.mean(a.argmax(-1) == b.argmax(-1))) if a.ndim > 1 else 1.0
    return Agreement(runtime, precision, distance, float(np.abs(b - a).max()), same, len(a))


def require_agreement(
    graph: GraphModule,
    runtime: Runtime,
    folder: Path,
    *,
    precision: Precision,
    inputs: tuple[Array, ...],
    threads: int = 1,
) -> Agreement:
    """Like `agree`, and refuse what is further off than `TOLERANCE` and the graph's own rounding explain.

    Raises:
        RuntimeFailed: it is, with the figures; or it cannot be served at all.
    """
    return within_tolerance(agree(graph, runtime, folder, precision=precision, inputs=inputs, threads=threads))


def within_tolerance(agreement: Agreement) -> Agreement:
    """Hand back an agreement that is close enough.

    Raises:
        RuntimeFailed: it is not, with the figures.
    """
    # Written so that NaN fails.
    if not agreement.relative_l2 <= agreement.allowed:
        raise RuntimeFailed(
            f"{agreement.runtime} {agreement.precision} does not answer as the graph does: relative L2 "
            f"{agreement.relative_l2:.2e} (allowed {agreement.allowed:.1e}), largest difference "
            f"{agreement.max_abs:.2e}, same decision on {agreement.argmax:.1%} of "
            f"{agreement.n} samples. Use another runtime or precision."
        )
    return agreement
