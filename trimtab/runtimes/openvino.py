"""OpenVINO on the CPU: fp32, bf16 where the CPU has it, and int8 where the graph is quantized.

The file is OpenVINO's IR, read from our ONNX. Its batch stays dynamic on disk; in memory it is compiled for each batch
size that comes (about 0.03 s each), since a dynamic one was 1.1x slower on a small ResNet.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.runtimes.base import exporting, require_usable, write_signature
from trimtab.runtimes.formats import precisions_of
from trimtab.runtimes.onnxfile import missing_exporter, onnx_model
from trimtab.runtimes.onnxpacked import Bytes
from trimtab.runtimes.openvinopacked import packed_constants_, weights_as_inputs

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from trimtab.core import Precision
    from trimtab.runtimes.base import Array, Call

FILES = ("model.xml", "model.bin")
NUM_COMPILED = 2  # the batch size in use, and a last batch that is smaller


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's IR: model.xml with model.bin. int8 leaves what is not quantized in bf16 where the CPU has it."""

    name: str = "openvino"
    precisions: tuple[Precision, ...] = precisions_of("openvino")

    def missing(self, *, serving: bool = False) -> str | None:
        """What has to be installed, with the command, or None."""
        if importlib.util.find_spec("openvino") is None:
            return 'The runtime openvino is not installed: pip install "trimtab[openvino]"'
        return None if serving else missing_exporter()

    def unsupported(self, precision: Precision) -> str | None:
        """Why this machine does not have a precision out of `precisions`, or None."""
        if precision != "bf16" or _has_bf16(without_telemetry().Core()):
            return None
        return "openvino has no bf16 on this CPU: it is not among the plugin's OPTIMIZATION_CAPABILITIES."

    def export(
        self, graph: GraphModule, folder: Path, *, precision: Precision, batch_size: int, threads: int
    ) -> tuple[str, ...]:
        """Write OpenVINO's IR in full precision; returns the file names."""
        require_usable(self, graph, precision)
        openvino = without_telemetry()
        with exporting(self.name), tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "model.onnx"
            weights: dict[str, Bytes] = {}
            file.write_bytes(onnx_model(graph, packed=weights_as_inputs(weights)).SerializeToString())
            model = openvino.convert_model(file)
            packed_constants_(openvino, model, weights)
            openvino.save_model(model, folder / FILES[0], compress_to_fp16=False)
        return *FILES, write_signature(graph, folder, runtime=self.name, batch_size=batch_size)

    def load(self, folder: Path, *, precision: Precision, threads: int, exact: bool) -> Call:
        """Load the IR; it is compiled when a batch size first comes."""
        import numpy as np

        openvino = without_telemetry()
        core = openvino.Core()
        model = core.read_model(folder / FILES[0])
        wants_bf16 = precision != "fp32" and not exact and _has_bf16(core)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if wants_bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        if exact:  # packed weights would meet activations in 8 bits
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        requests: dict[int, Any] = {}

        def compiled(batch_size: int) -> Any:
            while len(requests) >= NUM_COMPILED:
                del requests[next(iter(requests))]
            fixed = model.clone()
            fixed.reshape({value: with_batch(value, batch_size) for value in fixed.inputs})
            return core.compile_model(fixed, "CPU", settings).create_infer_request()

        def call(inputs: tuple[Array, ...]) -> Array:
            size = len(inputs[0])
            if size not in requests:
                requests[size] = compiled(size)
            request = requests[size]
            # Half the overhead of infer(inputs): 0.03 ms less, on models that take as much. `held` keeps the arrays
            # alive: the tensors only point into them.
            held = [np.ascontiguousarray(x) for x in inputs]
            for place, x in enumerate(held):
                request.set_input_tensor(place, openvino.Tensor(x, shared_memory=True))
            request.infer(share_outputs=True)
            return request.get_output_tensor(0).data.copy()  # type: ignore[no-any-return]

        return call


def without_telemetry() -> Any:
    """OpenVINO's package, imported so that it reports nothing."""
    # Merely importing openvino reports usage over the network and writes into the home folder, unless it does not
    # find its telemetry package: then it uses a stand-in of its own that does nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _has_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def with_batch(value: Any, batch_size: int) -> Any:
    """The shape of an input for one batch size."""
    shape = value.get_partial_shape()
    shape[0] = batch_size
    return shape
