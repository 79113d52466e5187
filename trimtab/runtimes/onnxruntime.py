"""ONNX Runtime on the CPU: fp32, int8 where the graph is quantized, and packed weights of 4 or 8 bits.

Convolutions between quantize operations become QLinearConv. u8 activations with s8 weights are the fast pair on x86.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.files import write_atomic
from trimtab.runtimes.base import require_usable, write_signature
from trimtab.runtimes.formats import precisions_of
from trimtab.runtimes.onnxfile import missing_exporter, onnx_model

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from trimtab.core import Precision
    from trimtab.runtimes.base import Array, Call

FILE = "model.onnx"
ATTRIBUTE = "accuracy_level"  # of MatMulNBits


@dataclass(frozen=True)
class OnnxRuntime:
    """One ONNX file with a dynamic batch."""

    name: str = "onnxruntime"
    precisions: tuple[Precision, ...] = precisions_of("onnxruntime")

    def missing(self, *, serving: bool = False) -> str | None:
        """What has to be installed, with the command, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "The runtime onnxruntime is not installed: pip install onnxruntime"
        return None if serving else missing_exporter()

    def unsupported(self, precision: Precision) -> str | None:
        """None: all of them run on every CPU."""
        return None

    def export(
        self, graph: GraphModule, folder: Path, *, precision: Precision, batch_size: int, threads: int
    ) -> tuple[str, ...]:
        """Write the ONNX file; returns the file names."""
        require_usable(self, graph, precision)
        write_atomic(folder / FILE, onnx_model(graph).SerializeToString())
        return FILE, write_signature(graph, folder, runtime=self.name, batch_size=batch_size)

    def load(self, folder: Path, *, precision: Precision, threads: int, exact: bool) -> Call:
        """Load the file into a session of its own."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if exact:  # products that ONNX Runtime itself makes of DequantizeLinear and MatMul
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        file: str | bytes = without_fast_paths((folder / FILE).read_bytes()) if exact else str(folder / FILE)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]

        def call(inputs: tuple[Array, ...]) -> Array:
            return session.run(outputs, dict(zip(names, inputs, strict=True)))[0]  # type: ignore[no-any-return]

        return call


def without_fast_paths(model: bytes) -> bytes:
    """An ONNX file whose products with packed weights round no activations."""
    if ATTRIBUTE.encode() not in model:
        return model
    import onnx

    read = onnx.load_from_string(model)
    for node in read.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name != ATTRIBUTE]
        del node.attribute[:]
        node.attribute.extend(kept)
    return read.SerializeToString()
