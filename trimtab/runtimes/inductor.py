"""AOTInductor: the graph compiled ahead of time to one native package, weights frozen into it.

Inductor, Ansel et al. 2024 (PyTorch 2). The batch size is fixed at export: a symbolic one was 1.4x slower on a small
ResNet at batch 1. The number of threads is compiled in as well. Cost: 10 to 30 s of C++ compiler per export.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.files import write_atomic
from trimtab.runtimes.base import (
    exported_program,
    exporting,
    no_torch_bf16,
    num_threads,
    read_signature,
    require_usable,
    write_signature,
)
from trimtab.runtimes.formats import precisions_of
from trimtab.runtimes.inductorpacked import dequantized

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from trimtab.core import Precision
    from trimtab.runtimes.base import Array, Call

FILE = "model.pt2"


@dataclass(frozen=True)
class Inductor:
    """One native package, made by the C++ compiler of this machine for this machine."""

    name: str = "inductor"
    precisions: tuple[Precision, ...] = precisions_of("inductor")

    def missing(self, *, serving: bool = False) -> str | None:
        """The C++ compiler, if there is none; running what was compiled needs none."""
        if serving or shutil.which("g++"):
            return None
        return "The runtime inductor needs the C++ compiler g++, and there is none: apt-get install g++"

    def unsupported(self, precision: Precision) -> str | None:
        """Why this machine does not have a precision out of `precisions`, or None."""
        return no_torch_bf16(self.name) if precision == "bf16" else None

    def export(
        self, graph: GraphModule, folder: Path, *, precision: Precision, batch_size: int, threads: int
    ) -> tuple[str, ...]:
        """Compile for one batch size and number of threads; returns the file names."""
        import torch
        import torch._inductor

        from trimtab.graph.cast import cast

        require_usable(self, graph, precision)
        served = cast(graph, torch.bfloat16) if precision == "bf16" else graph
        served = dequantized(graph) if precision == "int8w" else served
        settings = {"freezing": True, "cpp.threads": threads}
        # Freezing is skipped without a word where gradients are on.
        with exporting(self.name), torch.no_grad(), num_threads(threads):
            program = exported_program(served, batch_size=batch_size)
            # Into memory: where the disk is full, torch's own writer of files ends the whole process.
            package = io.BytesIO()
            torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=settings)
            write_atomic(folder / FILE, package.getvalue())
        return FILE, write_signature(graph, folder, runtime=self.name, batch_size=batch_size)

    def load(self, folder: Path, *, precision: Precision, threads: int, exact: bool) -> Call:
        """Load the package; sets the threads of this whole process."""
        import torch
        import torch._inductor

        torch.set_num_threads(threads)
        package = torch._inductor.aoti_load_package(str(folder / FILE))

        def call(inputs: tuple[Array, ...]) -> Array:
            with torch.inference_mode():
                return package(*map(torch.from_numpy, inputs)).numpy()  # type: ignore[no-any-return]

        return in_batches_of(read_signature(folder).batch_size, call)


def in_batches_of(batch_size: int, call: Call) -> Call:
    """`call`, which takes `batch_size` samples and no other number, for any number of them.

    The last batch is filled up by repeating its last sample; samples do not see each other in eval mode.
    """
    import numpy as np

    def one(inputs: tuple[Any, ...]) -> Any:
        size = len(inputs[0])
        if size == batch_size:
            return call(inputs)
        fill = [x[-1:].repeat(batch_size - size, axis=0) for x in inputs]
        return call(tuple(np.concatenate(pair) for pair in zip(inputs, fill, strict=True)))[:size]

    def any_number(inputs: tuple[Any, ...]) -> Any:
        size = len(inputs[0])
        if size <= batch_size:
            return one(inputs)
        starts = range(0, size, batch_size)
        return np.concatenate([one(tuple(x[at : at + batch_size] for x in inputs)) for at in starts])

    return any_number
