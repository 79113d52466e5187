"""4-bit weights on the built-in Fashion-MNIST: rounding alone, distilling then rounding, and training under rounding.

    scripts/bench qat

For each of three seeds the network is trained as the task says, and quantized to 4-bit weights and 8-bit activations
by `Quantize` (rounded to nearest or learned, as does better on `select`), by `Distill` and then the same `Quantize`,
and by `QAT` from the original's answers and from labels, each for the same epochs at the same learning rate. Accuracy
is on `verify`, of what ONNX Runtime answers from the exported file; so is the agreement of each file with its graph.
What ended is kept in build/qat. Writes benchmarks/results/qat_cpu_DATE.md. About ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scipy.stats import t as student
from torch import nn
from torch.fx import GraphModule

from trimtab.compress.distill import Distill
from trimtab.compress.qat import QAT
from trimtab.compress.quantize import ROUNDINGS, Quantize
from trimtab.core import Split, Task, Tools
from trimtab.graph.capture import capture
from trimtab.measure.machine import stamp, versions
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.process import Served
from trimtab.tasks.fashion import FashionNet, fashion
from trimtab.train.loop import fit, predict, score

ROOT = Path(__file__).parents[1]
BITS, EPOCHS, LR = 4, 2, 1e-3
RIVALS = ("Quantize", "Distill, Quantize")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "qat", help="where what ended is kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    _, task = fashion()
    verify = task.verify.open("qat")
    rows = [row for seed in range(given.seeds) for row in cells(given.work, seed, task, verify)]
    path = ROOT / "benchmarks" / "results" / f"qat_cpu_{datetime.date.today():%Y-%m-%d}.md"
    path.write_text("\n".join(report(rows, len(verify))) + "\n")
    print(path)


def cells(work: Path, seed: int, task: Task, verify: Split) -> list[dict[str, Any]]:
    """What each way gave for one seed; measured now, or read."""
    graph = capture(original(work, seed, task), task.train.batch(slice(0, 2)).inputs)
    task = dataclasses.replace(task, fit=dataclasses.replace(task.fit, seed=seed))  # type: ignore[type-var]
    tools = Tools(task=task, original=graph)

    def quantize(stem: GraphModule) -> tuple[GraphModule, str]:
        found = []
        for rounding in ROUNDINGS:
            method = Quantize(weight_bits=BITS, rounding=rounding, most_error=None)
            made = method.apply(stem, method.plan(stem, task), tools)
            found.append((accuracy(made, task.select, task), f"{rounding} rounding", made))
        _, chosen, made = max(found, key=lambda one: one[0])
        return made, chosen

    def distil_first() -> tuple[GraphModule, str]:
        method = Distill(epochs=EPOCHS, lr=LR)
        return quantize(method.apply(graph, method.plan(graph, task), tools))

    def train(learn_from: Any) -> tuple[GraphModule, str]:
        method = QAT(epochs=EPOCHS, lr=LR, start=Quantize(weight_bits=BITS), learn_from=learn_from)
        return method.apply(graph, method.plan(graph, task), tools), ""

    ways = {
        "original, fp32": lambda: (graph, ""),
        "Quantize": lambda: quantize(graph),
        "Distill, Quantize": distil_first,
        "QAT from the original": lambda: train("original"),
        "QAT from labels": lambda: train("labels"),
    }
    rows = []
    for way, make in ways.items():
        file = work / f"{way.replace(', ', '_').replace(' ', '_')}_seed{seed}.json"
        if not file.exists():
            began = time.process_time()
            made, chosen = make()
            seconds = time.process_time() - began
            row = {"way": way, "seed": seed, "chosen": chosen, "seconds": seconds, **judged(made, verify)}
            file.write_text(json.dumps(row))
            print(row, flush=True)
        rows.append(json.loads(file.read_text()))
    return rows


def original(work: Path, seed: int, task: Task) -> nn.Module:
    """The trained network of a seed."""
    file = work / f"original_seed{seed}.safetensors"
    torch.manual_seed(seed)
    net = FashionNet()
    if not file.exists():
        settings = dataclasses.replace(task.fit, seed=seed, precision="fp32")  # type: ignore[type-var]
        net = fit(net, task, settings, checkpoint=work / f"original_seed{seed}.checkpoint")
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, file)
    net.load_state_dict(load_file(file))
    return net.eval()


def accuracy(graph: GraphModule, split: Split, task: Task) -> float:
    return float(score(graph, split, task.metric).mean())


def judged(graph: GraphModule, verify: Split) -> dict[str, float]:
    """Accuracy of the exported file in ONNX Runtime, and how it agrees with the graph, on every sample."""
    runtime = RUNTIMES["onnxruntime"]
    precision: Any = "int8" if any("quantize" in str(node.target) for node in graph.graph.nodes) else "fp32"
    with tempfile.TemporaryDirectory() as folder:
        runtime.export(graph, Path(folder), precision=precision, batch_size=1, threads=1)
        with Served("onnxruntime", Path(folder), precision=precision, threads=1, exact=True) as served:
            answers = torch.from_numpy(served.run((verify.inputs[0].numpy(),), batch_size=100))
    expected = predict(graph, verify.inputs)
    return {
        "accuracy": float((answers.argmax(1) == verify.targets).double().mean()),
        "same": float((answers.argmax(1) == expected.argmax(1)).double().mean()),
        "relative_l2": float((answers - expected).norm() / expected.norm()),
    }


def report(rows: list[dict[str, Any]], num: int) -> list[str]:
    """Accuracy of each way, and QAT against the others seed by seed."""
    by_way: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault(row["way"], []).append(row)
    machine, seeds = stamp(), len(by_way["Quantize"])
    lines = [
        f"# {BITS}-bit weights: rounding alone, and training under rounding",
        "",
        f"{machine['cpu']}, 1 thread, PyTorch {versions()['torch']}, ONNX Runtime {versions()['onnxruntime']}; seeds "
        f"0 to {seeds - 1}. FashionNet, one original a seed, trained as the built-in task says in fp32. Weights have "
        f"{BITS} bits per channel, activations 8; no layer is kept in floats. Distill and QAT train {EPOCHS} epochs at "
        f"{LR:g}. Accuracy on {num:,} test images, of what ONNX Runtime answers from the exported file; mean ± "
        "standard deviation over seeds.",
        "",
        "| way | accuracy, % | by seed | same decision as graph, % | relative L2 to graph | CPU seconds | chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, found in by_way.items():
        each = [100 * row["accuracy"] for row in found]
        chosen = "; ".join(dict.fromkeys(row["chosen"] for row in found))
        lines.append(
            f"| {way} | {mean(each):.2f} ± {stdev(each):.2f} | {' '.join(f'{one:.2f}' for one in each)} | "
            f"{100 * min(row['same'] for row in found):.2f} | {max(row['relative_l2'] for row in found):.1e} | "
            f"{mean(row['seconds'] for row in found):.0f} | {chosen} |"
        )
    lines += ["", "Of agreement the worst seed is shown. Paired by seed, in points of accuracy:", ""]
    lines += ["| | against | difference | 95 % (Student's t) | seeds won |", "|---|---|---|---|---|"]
    for ours, theirs in itertools.product(
        [way for way in by_way if way.startswith("QAT")], [*RIVALS, "original, fp32"]
    ):
        pairs = zip(by_way[ours], by_way[theirs], strict=True)
        differences = [100 * (one["accuracy"] - other["accuracy"]) for one, other in pairs]
        half = float(student.ppf(0.975, seeds - 1)) * stdev(differences) / math.sqrt(seeds)
        won = sum(difference > 0 for difference in differences)
        lines.append(f"| {ours} | {theirs} | {mean(differences):+.2f} | ± {half:.2f} | {won}/{seeds} |")
    return lines


if __name__ == "__main__":
    main()
