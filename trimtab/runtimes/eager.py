"""PyTorch eager: the graph and its weights as they are, run operation by operation.

The baseline that everybody has. The file is `graph.json` with `weights.safetensors`; bf16 halves the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.runtimes.base import no_torch_bf16, require_usable, write_signature
from trimtab.runtimes.formats import precisions_of

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from trimtab.core import Precision
    from trimtab.runtimes.base import Array, Call


@dataclass(frozen=True)
class Eager:
    """The graph in PyTorch, not compiled. Packed weights are unpacked at each use; integers are refused."""

    name: str = "eager"
    precisions: tuple[Precision, ...] = precisions_of("eager")

    def missing(self, *, serving: bool = False) -> str | None:
        """None: PyTorch is always there."""
        return None

    def unsupported(self, precision: Precision) -> str | None:
        """Why this machine does not have a precision out of `precisions`, or None."""
        return no_torch_bf16(self.name) if precision == "bf16" else None

    def export(
        self, graph: GraphModule, folder: Path, *, precision: Precision, batch_size: int, threads: int
    ) -> tuple[str, ...]:
        """Write graph and weights, cast if `precision` says so; returns the file names."""
        import torch

        from trimtab.graph.cast import cast
        from trimtab.graph.modes import frozen_modes
        from trimtab.graph.save import save_graph

        require_usable(self, graph, precision)
        frozen = frozen_modes(graph)
        served = cast(frozen, torch.bfloat16) if precision == "bf16" else frozen
        return *save_graph(served, folder), write_signature(graph, folder, runtime=self.name, batch_size=batch_size)

    def load(self, folder: Path, *, precision: Precision, threads: int, exact: bool) -> Call:
        """Load the graph; sets the threads of this whole process."""
        import torch

        from trimtab.graph.save import load_graph

        torch.set_num_threads(threads)
        graph = load_graph(folder)

        def call(inputs: tuple[Array, ...]) -> Array:
            with torch.inference_mode():
                return graph(*map(torch.from_numpy, inputs)).numpy()  # type: ignore[no-any-return]

        return call
