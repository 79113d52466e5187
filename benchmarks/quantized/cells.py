"""Who quantizes what, and how: trimtab's settings and those of others, each leaving a file that a runtime serves."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from models.loaded import Loaded
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch.fx import GraphModule

from trimtab.compress.calibration import calibration
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.qat import QAT
from trimtab.compress.quantize import Quantize, usable_bits
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Method, Precision, Tools
from trimtab.files import read_json, write_json
from trimtab.graph.packed import precision_of
from trimtab.graph.save import load_graph, save_graph
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.base import exported_program, write_signature

SAMPLES = 64
ORIGINAL = "original fp32"
RUNTIME_FILES = {"onnxruntime": "model.onnx", "openvino": "model.xml", "inductor": "model.pt2"}
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """A model, its graph, where its cells are kept, and the interpreters of the rivals' environments."""

    loaded: Loaded
    graph: GraphModule
    work: Path
    pythons: Mapping[str, Path]


@dataclass(frozen=True)
class Cell:
    """One way to quantize, and the runtime that serves its file.

    make: writes the file into a folder, and gives the seconds that it took.
    precision: what the file is served in. only: the models that it is for; empty: all. timed: whether it is raced.
    """

    name: str
    runtime: str
    make: Callable[[Job, Path], float] = field(repr=False)
    precision: Precision = "int8"
    ours: bool = False
    only: tuple[str, ...] = ()
    timed: bool = True

    @property
    def key(self) -> str:
        """Name of its folder."""
        return "-".join(f"{self.name} {self.runtime}".replace(",", "").lower().split())


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration samples as ONNX Runtime asks for them."""

    def __init__(self, inputs: dict[str, np.ndarray]) -> None:
        self.left: Iterator[int] = iter(range(len(next(iter(inputs.values())))))
        self.inputs = inputs

    def get_next(self) -> dict[str, np.ndarray] | None:
        place = next(self.left, None)
        return None if place is None else {name: x[place : place + 1] for name, x in self.inputs.items()}


def columns(job: Job) -> list[np.ndarray]:
    """The calibration samples, the same for all."""
    return [x.numpy() for x in calibration(job.loaded.task, SAMPLES, purpose="A benchmark").inputs]


def ours(name: str, runtime: str, method: Method | None, **told: Any) -> Cell:
    """What trimtab makes; the graph is quantized once for all runtimes."""

    def make(job: Job, folder: Path) -> float:
        graph, spent = quantized(job, name, method) if method else (job.graph, 0.0)
        began = time.monotonic()
        RUNTIMES[runtime].export(graph, folder, precision=precision_of(graph) or "fp32", batch_size=1, threads=1)
        return spent + time.monotonic() - began

    return Cell(name, runtime, make, ours=True, **told)


def quantized(job: Job, name: str, method: Method) -> tuple[GraphModule, float]:
    """The quantized graph, and how many seconds it took when it was made."""
    folder = job.work / "graphs" / "-".join(name.replace(",", "").split())
    if not (folder / "seconds.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        tools = Tools(task=job.loaded.task, original=job.graph)
        plan = method.plan(job.graph, job.loaded.task)
        save_graph(method.apply(job.graph, plan, tools), folder)
        kept = [skip.what for skip in getattr(plan, "skipped", ())]
        write_json(folder / "seconds.json", {"seconds": time.monotonic() - began, "kept in floating point": kept})
    return load_graph(folder), read_json(folder / "seconds.json")["seconds"]


def original_onnx(job: Job) -> Path:
    """The ONNX file that the rivals begin with: the one that trimtab serves as fp32."""
    return job.work / ORIGINALS[0].key / "file" / RUNTIME_FILES["onnxruntime"]


def prepare(original: Path, ready: Path) -> None:
    """What ONNX Runtime asks for before it quantizes; without shapes in symbols where it cannot find them (MiniLM)."""
    try:
        quant_pre_process(str(original), str(ready))
    except TypeError:
        quant_pre_process(str(original), str(ready), skip_symbolic_shape=True)


def by_ort(name: str, method: CalibrationMethod | None, *types: str, **told: Any) -> Cell:
    """ONNX Runtime's quantizers: u8 activations, s8 weights per channel, of 7 bits where ours have 7; `types` alone."""

    def make(job: Job, folder: Path) -> float:
        began = time.monotonic()
        ready, out = folder / "ready.onnx", str(folder / RUNTIME_FILES["onnxruntime"])
        prepare(original_onnx(job), ready)
        settings: dict[str, Any] = {"per_channel": True, "reduce_range": usable_bits() == 7}
        settings |= {"op_types_to_quantize": list(types)} if types else {}
        if method is None:
            quantize_dynamic(str(ready), out, weight_type=QuantType.QInt8, **settings)
        else:
            names = [value.name for value in onnxruntime.InferenceSession(str(ready)).get_inputs()]
            settings |= {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
            data = Reader(dict(zip(names, columns(job), strict=True)))
            quantize_static(str(ready), out, data, calibrate_method=method, **settings)
        ready.unlink()
        return time.monotonic() - began

    return Cell(name, "onnxruntime", make, **told)


def by_another(name: str, environment: str, runtime: str, *settings: str, **told: Any) -> Cell:
    """What a program of another environment makes: it gets the model, the data and where to write."""

    def make(job: Job, folder: Path) -> float:
        began = time.monotonic()
        model = original_onnx(job)
        if environment == "torchao":
            model = folder / "exported.pt2"
            torch.export.save(exported_program(job.graph, batch_size=1), model)
        data = folder / "data.npz"
        np.savez(data, **{f"input{place}": x for place, x in enumerate(columns(job))})
        half = HERE / f"half_{environment}.py"
        files = [str(model), str(data), *settings, str(folder / RUNTIME_FILES[runtime])]
        subprocess.run([str(job.pythons[environment]), str(half), *files], check=True)
        data.unlink()
        if environment == "torchao":
            model.unlink()
        return time.monotonic() - began

    return Cell(name, runtime, make, **told)


def finish(job: Job, cell: Cell, folder: Path) -> None:
    """Say beside a rival's file what it takes, as our own exports do."""
    if not cell.ours:
        write_signature(job.graph, folder, runtime=cell.runtime, batch_size=1)


NAIVE = "one scale per tensor"
CONVOLUTIONAL = ("Fashion-MNIST", "MobileNetV2", "EfficientNet-Lite0")
TAUGHT = "QAT without labels"
# The small ones, and their rates: with 1e-3 MobileNetV2 is lost. Training an hour for a row would tell no more.
TRAINED = {"Fashion-MNIST": 1e-3, "MobileNetV2": 1e-5}
BEST, PLAINEST = "rounding learned", "not equalized"
PLAIN: dict[str, Any] = {"correct_bias": False, "equalize": False, "granularity": "tensor", "observer": "minmax"}
STATIC: dict[str, dict[str, Any]] = {
    NAIVE: {**PLAIN, "most_error": None},
    PLAINEST: {"equalize": False},
    "equalized": {"equalize": True},
    "ranges by entropy": {"observer": "entropy"},
    "default": {},  # one of the two, by what moves the outputs on `select` less
    BEST: {"rounding": "learned"},
}
ORIGINALS = tuple(ours(ORIGINAL, runtime, None, precision="fp32") for runtime in RUNTIME_FILES)
GPTQ: dict[str, Any] = {"samples": SAMPLES, "symmetric": False, "rounding": "gptq"}
OURS = (
    *(
        ours(name, "onnxruntime", Quantize(samples=SAMPLES, **settings), timed=name in ("default", BEST))
        for name, settings in STATIC.items()
    ),
    *(ours(BEST, runtime, Quantize(samples=SAMPLES, **STATIC[BEST])) for runtime in ("openvino", "inductor")),
    # What equalization multiplies is a pass more there: GELU no longer ends in integers in one kernel.
    ours(PLAINEST, "inductor", Quantize(samples=SAMPLES, **STATIC[PLAINEST]), only=("MiniLM",)),
    *(
        ours(
            f"{TAUGHT}, lr {lr:g}",
            "onnxruntime",
            QAT(lr=lr, start=Quantize(samples=SAMPLES)),
            only=(model,),
            timed=False,
        )
        for model, lr in TRAINED.items()
    ),
    ours("dynamic", "onnxruntime", Dynamic(), precision="int8d", only=("MiniLM",)),
    ours("8-bit weights", "onnxruntime", WeightOnly("int8"), precision="int8w", timed=False),
    ours("4-bit weights", "onnxruntime", WeightOnly(**GPTQ), precision="int4w", only=CONVOLUTIONAL, timed=False),
    ours(
        "4-bit weights in groups", "onnxruntime", WeightOnly(group_size=64, **GPTQ), precision="int4w", only=("MiniLM",)
    ),
)
RIVALS = (
    by_ort("ONNX Runtime, MinMax", CalibrationMethod.MinMax),
    by_ort("ONNX Runtime, Percentile", CalibrationMethod.Percentile, timed=False),
    # On MiniLM it ends with "Too many bins for data range".
    by_ort("ONNX Runtime, Entropy", CalibrationMethod.Entropy, only=CONVOLUTIONAL, timed=False),
    by_ort("ONNX Runtime, MinMax, products alone", CalibrationMethod.MinMax, "MatMul", "Gemm", only=("MiniLM",)),
    by_ort("ONNX Runtime, dynamic", None, only=("MiniLM",)),
    by_another("NNCF, performance", "nncf", "openvino", "performance"),
    by_another("NNCF, mixed", "nncf", "openvino", "mixed"),
    by_another("NNCF, transformer", "nncf", "openvino", "transformer", only=("MiniLM",)),
    by_another("NNCF, transformer, fast bias", "nncf", "openvino", "transformer-fast", only=("MiniLM",)),
    by_another("torchao PT2E", "torchao", "inductor"),
)
CELLS = (*ORIGINALS, *OURS, *RIVALS)


def cells_of(model: str, skipped: tuple[str, ...] = ()) -> list[Cell]:
    """The cells of a model, without those of the rivals that are skipped; without torchao, nothing is for inductor."""
    gone = ("NNCF",) if "nncf" in skipped else ()
    runtimes = [runtime for runtime in RUNTIME_FILES if runtime != "inductor" or "torchao" not in skipped]
    here = [cell for cell in CELLS if not cell.only or model in cell.only]
    return [cell for cell in here if cell.runtime in runtimes and not cell.name.startswith(gone)]
