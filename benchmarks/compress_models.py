"""Real models, each method alone and combinations: quality, bytes, latency in the best runtime, seconds.

    scripts/bench compress_models --models silero_vad mobilenet_v2
    scripts/bench compress_models --models silero_vad --time      (races; needs a quiet machine)

For each model: the original, every method alone, and two combinations written by hand, one for speed and one for size.
Quality is the model's own figures and the agreement with the original on the task's judged samples, with its interval;
KL from the original where the outputs are logits of classes. Bytes are those of the best runtime's file and of
`tt.save(..., coded=True)`. `--time` races each file, in turns with the best free baseline of the original: ONNX
Runtime, or OpenVINO in fp32 or bf16; one thread, one sample at a time. No recovery by training: what a method alone
leaves. Cells that ended are kept in build/compress_models, rows in benchmarks/results/compress_models.json, so that one
model can be measured again alone. Writes benchmarks/results/compress_models_cpu_DATE.md and
docs/benchmarks/compress_models.{md,svg}. MiniLM's texts need `pip install tokenizers==0.23.3`, the plot matplotlib.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from combined.cells import ORIGINAL, Cell, cells_of
from combined.table import page, plot, report
from kept import kept
from models.loaded import Loaded
from tasks import LOADERS
from torch import Tensor
from torch.fx import GraphModule

from trimtab.artifact import save
from trimtab.core import Precision, Target, Tools
from trimtab.errors import PlanError, RuntimeFailed
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs, num_parameters
from trimtab.graph.packed import precision_of
from trimtab.graph.save import load_graph, save_graph
from trimtab.measure.size import size_bytes
from trimtab.measure.speed import latency
from trimtab.measure.stats import gain, non_inferiority
from trimtab.runtimes import RUNTIMES, supported
from trimtab.runtimes.evaluate import Exported, export_checked, race
from trimtab.train.loop import predict

ROOT = Path(__file__).parents[1]
CLASSIFIERS = ("mobilenet_v2", "efficientnet_lite0")
SERVED, SAMPLES, ROUNDS, BATCH = ("onnxruntime", "openvino"), 64, 8, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "compress_models", help="where cells are kept")
    parser.add_argument("--models", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--time", action="store_true", help="race the files that are there, and nothing else")
    parser.add_argument("--report-only", action="store_true", help="write the report of the cells that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in [] if given.report_only else given.models:
        (timed if given.time else run)(name, given.work / name)
    results = ROOT / "benchmarks" / "results"
    here = {name: rows_of(given.work / name, name) for name in LOADERS}
    parts = kept(results / "compress_models.json", here, names=LOADERS, libraries=("torch", *SERVED))
    found = {name: part.rows for name, part in parts.items()}
    out = results / f"compress_models_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report(parts)) + "\n")
    pages = ROOT / "docs" / "benchmarks"
    (pages / "compress_models.md").write_text("\n".join(page(found, out.name)) + "\n")
    plot(found, pages / "compress_models.svg")
    print(out)


def rows_of(work: Path, model: str) -> list[dict[str, Any]]:
    """The cells of a model that have ended, in their order, each with its times if it was raced."""
    found = []
    for cell in cells_of(model, SAMPLES):
        if (work / cell.key / "cell.json").exists():
            times = work / cell.key / "times.json"
            row: dict[str, Any] = read_json(work / cell.key / "cell.json")
            found.append(row | {"times": read_json(times) if times.exists() else None})
    return found


def run(name: str, work: Path) -> None:
    """Every cell of a model that has not ended yet."""
    todo = [cell for cell in cells_of(name, SAMPLES) if not (work / cell.key / "cell.json").exists()]
    if not todo:
        return
    loaded = LOADERS[name]()
    graph = capture(loaded.module, loaded.task.select.batch(slice(0, 2)).inputs)
    judged = loaded.task.verify.open("benchmark")
    exact = predict(graph, judged.inputs, batch_size=BATCH)
    base = np.asarray(loaded.task.metric.per_sample(exact, judged.targets), dtype=float)
    for cell in todo:
        folder = work / cell.key
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found: dict[str, Any] = {"model": loaded.name, "cell": cell.name, "data": loaded.data}
        try:
            spent, made = time.process_time(), applied(cell, graph, loaded)
        except PlanError as error:
            write_json(folder / "cell.json", found | {"refused": str(error).splitlines()[0]})
            print(name, cell.name, error, flush=True)
            continue
        found |= {"seconds": time.process_time() - spent, "macs": macs(made) / macs(graph)}
        found |= {"params": num_parameters(made) / num_parameters(graph), "quality": loaded.quality(made)}
        answers = predict(made, judged.inputs, batch_size=BATCH)
        own = np.asarray(loaded.task.metric.per_sample(answers, judged.targets), dtype=float)
        binary = loaded.task.metric.binary
        drop = non_inferiority(base, own, margin=0.05, confidence=0.95, binary=binary)
        found |= {"metric": loaded.task.metric.name, "alike": [drop.candidate, drop.diff, drop.low, drop.high, drop.n]}
        if name in CLASSIFIERS:
            found["KL"] = divergence(exact, answers)
        save_graph(made, graph_folder(folder))
        save(made, folder / "coded", coded=True)
        found["coded"] = size_bytes(folder / "coded" / "weights.coded")
        found["files"] = exported(made, folder, loaded)
        write_json(folder / "cell.json", found)
        print(name, found, flush=True)


def applied(cell: Cell, graph: GraphModule, loaded: Loaded) -> GraphModule:
    made = graph
    for method in cell.methods:
        made = method.apply(made, method.plan(made, loaded.task), Tools(task=loaded.task, original=graph))
    return made


def graph_folder(folder: Path) -> Path:
    (folder / "graph").mkdir()
    return folder / "graph"


def divergence(exact: Tensor, found: Tensor) -> float:
    """KL of the answers' distributions from the original's, a mean over the samples [N, K]."""
    want, got = exact.double().log_softmax(1), found.double().log_softmax(1)
    return float((want.exp() * (want - got)).sum(1).mean())


def exported(made: GraphModule, folder: Path, loaded: Loaded) -> dict[str, int]:
    """Runtime and precision -> bytes of its file, wherever one takes the graph."""
    held: Precision | None = precision_of(made)
    precisions: tuple[Precision, ...] = (held,) if held else ("fp32", "bf16")
    inputs = tuple(x[:4].numpy() for x in loaded.task.select.inputs)
    found = {}
    for runtime in SERVED:
        for precision in precisions:
            if supported(runtime, precision):
                continue
            place = folder / f"{runtime}-{precision}"
            place.mkdir()
            try:
                export_checked(made, RUNTIMES[runtime], place, precision=precision, inputs=inputs, target=Target())
            except RuntimeFailed as error:
                print(folder.name, runtime, precision, error, flush=True)
                continue
            found[place.name] = size_bytes(place)
    return found


def timed(name: str, work: Path) -> None:
    """Race each cell's files with the best free file of the original; that one is found by a race of its own."""
    done = {row["cell"] for row in rows_of(work, name) if row["times"]}
    rows = {row["cell"]: row for row in rows_of(work, name) if row.get("files") and row["cell"] not in done}
    if not rows:
        return
    origin = work / ORIGINAL
    if not (origin / "times.json").exists():
        told, _ = raced(files_of(origin, rows[ORIGINAL]), loaded_inputs(origin))
        write_json(origin / "times.json", {"best": min(told, key=lambda key: told[key][0]), "ms": told, "gain": None})
    best = read_json(origin / "times.json")["best"]
    baseline = {"baseline": files_of(origin, read_json(origin / "cell.json"))[best]}
    for cell in cells_of(name, SAMPLES)[1:]:
        if cell.name in rows:
            folder = work / cell.key
            told, gains = raced(baseline | files_of(folder, rows[cell.name]), loaded_inputs(origin))
            own = min((key for key in told if key != "baseline"), key=lambda key: told[key][0])
            write_json(folder / "times.json", {"best": own, "ms": told, "gain": gains[own]})
            print(name, cell.name, own, gains[own], flush=True)


def files_of(folder: Path, row: dict[str, Any]) -> dict[str, Exported]:
    return {key: Exported(*key.split("-"), folder / key) for key in row["files"]}  # type: ignore[arg-type]


def loaded_inputs(origin: Path) -> tuple[np.ndarray, ...]:
    """One sample of the shapes that the graph takes: what a runtime does with it takes as long as with any other."""
    graph = load_graph(origin / "graph")
    from trimtab.graph.shapes import example_inputs

    return tuple(x.numpy() for x in example_inputs(graph, batch_size=1))


def raced(files: dict[str, Exported], inputs: tuple[np.ndarray, ...]) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Milliseconds with their interval; and how many times faster than the first each is, with its interval."""
    found = race(files, inputs, target=Target(), rounds=ROUNDS, asked=())
    first = np.array(next(iter(found.values())).timing.block_medians)
    told, gains = {}, {}
    for key, one in found.items():
        ms = latency(one.timing)
        told[key] = [ms.value, ms.low, ms.high]
        ratio = gain(first, np.array(one.timing.block_medians))
        gains[key] = [ratio.value, ratio.low, ratio.high, ratio.n]
    return told, gains


if __name__ == "__main__":
    main()
