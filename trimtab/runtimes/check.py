"""Does the exported file, in its own runtime and process, answer as the graph does?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

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


@dataclass(frozen=True)
class Agreement:
    """How far a runtime's outputs are from the graph's on `n` samples; `argmax` is the share of equal decisions."""

    runtime: str
    precision: Precision
    relative_l2: float
    max_abs: float
    argmax: float
    n: int


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
    with torch.no_grad():  # ranges found at run time are those of a batch
        pieces = [model(*(x[at : at + size] for x in tensors)) for at in range(0, len(inputs[0]), size)]
    expected = torch.cat(pieces).numpy()
    return compare(expected, answers, runtime=runtime.name, precision=precision)


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
    """Like `agree`, and refuse what is further off than `TOLERANCE`.

    Raises:
        RuntimeFailed: it is, with the figures; or it cannot be served at all.
    """
    return within_tolerance(agree(graph, runtime, folder, precision=precision, inputs=inputs, threads=threads))


def within_tolerance(agreement: Agreement) -> Agreement:
    """Hand back an agreement that is close enough.

    Raises:
        RuntimeFailed: it is not, with the figures.
    """
    allowed = TOLERANCE[agreement.precision]
    # Written so that NaN fails.
    if not agreement.relative_l2 <= allowed:
        raise RuntimeFailed(
            f"{agreement.runtime} {agreement.precision} does not answer as the graph does: relative L2 "
            f"{agreement.relative_l2:.2e} (allowed {allowed:.0e}), largest difference {agreement.max_abs:.2e}, same "
            f"decision on {agreement.argmax:.1%} of {agreement.n} samples. Use another runtime or precision."
        )
    return agreement
