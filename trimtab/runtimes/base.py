"""What a runtime is, and what all of them share; cheap to import, so that a serving process pays for nothing else.

A runtime exports a graph to files in a folder, and loads them again in a process of their own (`worker.py`).
Every export leaves `signature.json` beside the runtime's own files: what goes in, and the batch it was made for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trimtab.errors import RuntimeFailed, RuntimeMissing, TrimtabError
from trimtab.files import write_json
from trimtab.runtimes.formats import lacking

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from trimtab.core import Precision

    Array = NDArray[Any]
    Call = Callable[[tuple[Array, ...]], Array]

SIGNATURE_FILE = "signature.json"
# How native writers say that the disk is full: it must not pass for a graph that cannot be exported.
DISK_WORDS = ("No space left on device", "File too large", "File size limit exceeded", "iostream error")


class Runtime(Protocol):
    """Exports a graph, and runs what it exported. `precisions` are those that it has in general."""

    @property
    def name(self) -> str: ...

    @property
    def precisions(self) -> tuple[Precision, ...]: ...

    def missing(self, *, serving: bool = False) -> str | None:
        """What has to be installed, with the command, or None; `serving` asks for loading and running alone."""

    def unsupported(self, precision: Precision) -> str | None:
        """Why this machine does not have a precision out of `precisions`, or None."""

    def export(
        self, graph: GraphModule, folder: Path, *, precision: Precision, batch_size: int, threads: int
    ) -> tuple[str, ...]:
        """Write the files that serve `graph` into `folder`; returns their names."""

    def load(self, folder: Path, *, precision: Precision, threads: int, exact: bool) -> Call:
        """Load what `export` wrote: inputs [B, ...] -> output [B, ...], for any B; `exact` forbids reduced floats."""


@dataclass(frozen=True)
class Input:
    """One input: its name, its shape without the batch dim, and its NumPy dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """What an exported folder takes: its inputs, and the batch size that it was made for."""

    runtime: str
    batch_size: int
    inputs: tuple[Input, ...]

    def check(self, inputs: tuple[Array, ...]) -> None:
        """Refuse inputs that do not fit, before native code sees them.

        Raises:
            RuntimeFailed: the count, a shape or a dtype is not what was exported.
        """
        if len(inputs) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise RuntimeFailed(f"The model takes {len(self.inputs)} input(s) ({names}); {len(inputs)} were given.")
        for spec, x in zip(self.inputs, inputs, strict=True):
            if x.shape[1:] != spec.shape or x.ndim == 0 or x.dtype.name != spec.dtype:
                wanted = ", ".join(("B", *map(str, spec.shape)))
                raise RuntimeFailed(
                    f"Input {spec.name!r} is {x.dtype.name} {list(x.shape)}; the model takes {spec.dtype} [{wanted}]. "
                    "Convert it with .astype or reshape it."
                )
        sizes = {len(x) for x in inputs}
        if len(sizes) != 1 or 0 in sizes:
            raise RuntimeFailed(f"All inputs must hold the same number of samples, at least one; got {sorted(sizes)}.")


def write_signature(graph: GraphModule, folder: Path, *, runtime: str, batch_size: int) -> str:
    """Write what `graph` takes beside the runtime's own files; returns the file's name."""
    from trimtab.graph.shapes import input_specs

    inputs = tuple(Input(spec.name, spec.shape, spec.dtype) for spec in input_specs(graph))
    write_json(folder / SIGNATURE_FILE, asdict(Signature(runtime, batch_size, inputs)))
    return SIGNATURE_FILE


def read_signature(folder: Path) -> Signature:
    """What `write_signature` wrote.

    Raises:
        RuntimeFailed: nothing was exported into `folder`, or its signature is damaged.
    """
    try:
        read = json.loads((folder / SIGNATURE_FILE).read_text(encoding="utf-8"))
        inputs = tuple(Input(i["name"], tuple(i["shape"]), i["dtype"]) for i in read["inputs"])
        return Signature(read["runtime"], read["batch_size"], inputs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeFailed(
            f"{folder} holds no exported model that can be read ({type(error).__name__}: {error}). Export one into it."
        ) from error


def is_quantized(graph: GraphModule) -> bool:
    """Whether the graph holds quantize operations or packed weights."""
    from trimtab.graph.packed import precision_of

    return precision_of(graph) is not None


def require_usable(runtime: Runtime, graph: GraphModule, precision: Precision) -> None:
    """Refuse what `runtime` cannot export.

    Raises:
        RuntimeMissing: it is not installed.
        RuntimeFailed: it has no such precision here, or the graph does not fit the precision.
    """
    if missing := runtime.missing():
        raise RuntimeMissing(missing)
    if reason := unsupported(runtime, precision):
        raise RuntimeFailed(reason)
    from trimtab.graph.packed import precision_of

    held = precision_of(graph)
    if held and held != precision:
        raise RuntimeFailed(f"The graph is quantized, so it cannot be exported as {precision}; use precision={held!r}.")
    if precision not in ("fp32", "bf16") and not held:
        method = {"int8": "Quantize", "int8d": "Dynamic"}.get(precision, "WeightOnly")
        raise RuntimeFailed(f"The graph holds no quantize operations, so it is not {precision}; apply {method} first.")


def unsupported(runtime: Runtime, precision: Precision) -> str | None:
    """Why `runtime` cannot serve in `precision` on this machine, or None."""
    if precision not in runtime.precisions:
        return lacking(runtime.name, precision)
    return runtime.unsupported(precision)


def no_torch_bf16(name: str) -> str | None:
    """Why PyTorch's kernels have no bf16 on this CPU, or None."""
    import torch

    if any(on is True for what, on in torch.cpu.get_capabilities().items() if "bf16" in what):
        return None
    return f"{name} has no bf16 on this CPU: it lacks AVX512-BF16, AMX or Arm's BF16 instructions."


def exported_program(graph: GraphModule, *, batch_size: int | None) -> ExportedProgram:
    """The graph in eval mode for good, as torch.export holds it; `batch_size=None` leaves the batch dynamic."""
    import torch

    from trimtab.graph.modes import frozen_modes
    from trimtab.graph.shapes import example_inputs

    inputs = example_inputs(graph, batch_size=batch_size or 2)
    batch = torch.export.Dim("batch", min=1)
    shapes = None if batch_size else tuple({0: batch} for _ in inputs)
    with torch.no_grad():
        return torch.export.export(frozen_modes(graph), inputs, dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def exporting(name: str) -> Iterator[None]:
    """Silence what exporters say about themselves, and give their errors one name.

    Raises:
        RuntimeFailed: the block failed, for another reason than the disk.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, TrimtabError):
        raise
    except Exception as error:
        # The first cause names the operation; what wraps it gives advice to the exporter's own developers.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:400]
        if any(words in str(cause) for words in DISK_WORDS):
            raise OSError(errno.EIO, f"{name} could not write its files ({reason})") from error
        raise RuntimeFailed(
            f"{name} cannot export this graph: {reason}. Use another runtime, or replace the operation."
        ) from error
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Let torch have `count` threads for a while.

    oneDNN packs frozen weights for the threads it has then; a process with others packs them anew at every call, which
    made a small CNN on AVX2 ten times slower.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
