"""Deep Compression (Han et al. 2016) on Fashion-MNIST: prune, share, entropy-code, at no loss.

    scripts/bench deep_compression

A LeNet-5 and a net in the manner of VGG are trained; 60, 80, then 90 % of all weights are zeroed, by activations, where
it costs least, and each time the zeros stay while the rest learns from the original; what is left is given palettes
whose values are trained, and the file is coded.
After each step the graph is saved with `tt.save(..., coded=True)`, loaded, and judged on 4,000 images, paired with the
original; settings are chosen on the 2,000 of `select`, which are judged too. What the
paper claims is 39 times (LeNet-5) and 49 times (VGG-16) without loss; asked for here are 35 times under the fp32
safetensors file, at most half a point down. Steps that ended are kept in build/deep_compression; one thread. Writes
benchmarks/results/deep_compression_cpu_DATE.md.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from trimtab.artifact import load, save
from trimtab.compress.distill import Distill
from trimtab.compress.palette import Palette
from trimtab.compress.sparsify import Sparsify
from trimtab.core import Fit, Method, Split, Task, Tools
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.graph.cost import num_parameters
from trimtab.measure.machine import stamp, versions
from trimtab.measure.size import size_bytes
from trimtab.measure.stats import non_inferiority
from trimtab.tasks.fashion import fashion
from trimtab.train.loop import fit, score

ROOT = Path(__file__).parents[1]
TIMES, POINTS, CONFIDENCE = 35, 0.005, 0.95
FIT = Fit(epochs=8, lr=3e-3, batch_size=100, weight_decay=0.05, precision="fp32")
ORIGINAL = "original"


def zeros(ratio: float) -> Sparsify:
    return Sparsify(ratio, importance="activation", samples=512, allocation="global")


STEPS: dict[str, Method] = {
    "60 % zeros": zeros(0.6),
    "60 % zeros, distilled": Distill(epochs=6, lr=2e-3),
    "80 % zeros": zeros(0.8),
    "80 % zeros, distilled": Distill(epochs=6, lr=2e-3),
    "90 % zeros": zeros(0.9),
    "90 % zeros, distilled": Distill(epochs=12, lr=2e-3),
    "palettes of 4 bits, trained": Palette(4, epochs=4, lr=1e-3),
}


def lenet() -> nn.Module:
    """LeNet-5 as Caffe has it: [B, 1, 28, 28] -> [B, 10]; 431 k parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def vgg() -> nn.Module:
    """Pairs of 3 x 3 convolutions, then wide linear layers: [B, 1, 28, 28] -> [B, 10]; 635 k parameters."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((1, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if c_in == c_out else []
    linear = (nn.Linear(576, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return nn.Sequential(*layers, nn.Flatten(), *linear)


NETS = {"LeNet-5": lenet, "VGG-like": vgg}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "deep_compression", help="where steps are kept")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="which to run; default: all")
    parser.add_argument("--report-only", action="store_true", help="write the report of the nets that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.report_only:
        _, task = fashion()
        verify = task.verify.open("the benchmark's judgement")
        for name in NETS:
            if name in given.nets:
                run(name, task, verify, given.work)
    out = ROOT / "benchmarks" / "results" / f"deep_compression_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report({name: rows_of(given.work / name) for name in NETS})) + "\n")
    print(out)


def run(name: str, task: Task, verify: Split, work: Path) -> None:
    """Every step of a net that has not ended yet."""
    graph, original = None, None
    for place, step in enumerate((ORIGINAL, *STEPS)):
        folder, spent = work / name / str(place), time.process_time()
        if not folder.exists():
            made = start(name, task) if graph is None else advance(graph, original, STEPS[step], task)
            save(made, folder, coded=True)
        graph = load(folder).graph
        original = original or graph
        if (done := folder.with_suffix(".json")).exists():
            continue
        plain = save(graph, folder.with_suffix(".plain")) / "weights.safetensors"
        found = {"step": step, "params": num_parameters(graph), "seconds": time.process_time() - spent}
        found |= {"coded": size_bytes(folder / "weights.coded"), "plain": size_bytes(plain)}
        found["select"] = float(score(graph, task.select, task.metric).mean())
        write_json(done, found | {"right": score(graph, verify, task.metric).astype(int).tolist()})
        print(name, found, flush=True)


def start(name: str, task: Task) -> GraphModule:
    torch.manual_seed(0)
    return capture(fit(NETS[name](), task, FIT), task.select.batch(slice(0, 2)).inputs)


def advance(graph: GraphModule, original: GraphModule | None, method: Method, task: Task) -> GraphModule:
    return method.apply(graph, method.plan(graph, task), Tools(task=task, original=original))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def report(nets: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The results as lines of Markdown."""
    nets = {name: rows for name, rows in nets.items() if rows}
    if not nets:
        raise SystemExit("There is no step to report yet: run without --report-only first.")
    lines = [
        "# Deep Compression on Fashion-MNIST",
        "",
        f"{stamp()['cpu']}, 1 thread, PyTorch {versions()['torch']}, Python {stamp()['python']}; one run, seed 0. "
        "10,000 training images, judged on 4,000 others, paired; intervals are one-sided 95 % bounds on each side. "
        "Bytes are those of the file of weights: fp32 safetensors for the original, coded after each step, opened "
        f"again and run. Asked for: {TIMES} times smaller, at most {100 * POINTS:g} points down.",
    ]
    for name, rows in nets.items():
        lines += ["", f"## {name}", "", *table(rows)]
    missing = [name for name in NETS if len(nets.get(name, [])) <= len(STEPS)]
    return [*lines, "", f"Not run to its end: {', '.join(missing)}."] if missing else lines


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A row a step, and whether the last one is what was asked for."""
    base, size = np.array(rows[0]["right"], float), rows[0]["plain"]
    lines = [
        "| after | accuracy | points against the original | on select | parameters | bytes, coded | times smaller | "
        "CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        right = np.array(row["right"], float)
        drop = non_inferiority(base, right, margin=POINTS, confidence=CONFIDENCE, binary=True)
        points = f"{100 * drop.diff:+.2f} ({100 * drop.low:+.2f} ... {100 * drop.high:+.2f})"
        figures = f"{row['params']:,} | {row['coded']:,} | {size / row['coded']:.1f} | {row['seconds']:.0f}"
        lines.append(f"| {row['step']} | {right.mean():.4f} | {points} | {row['select']:.4f} | {figures} |")
    if len(rows) > len(STEPS):
        times = size / rows[-1]["coded"]
        holds = times >= TIMES and drop.diff >= -POINTS
        sure = "the interval too" if drop.low >= -POINTS else "the interval's lower end is further down"
        lines += [
            "",
            f"{times:.1f} times smaller, {100 * drop.diff:+.2f} points: this {'holds' if holds else 'does not hold'}",
        ]
        lines[-1] += f" ({sure})." if holds else "."
    return lines


if __name__ == "__main__":
    main()
