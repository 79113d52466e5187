"""What it saves to read PyTorch's registry of ONNX forms once: seconds of an export, in pairs within one process.

    scripts/bench onnx_export

Each graph is written with the registry read at every export, as PyTorch does by itself, and with it kept, in turns,
after one export that is not counted. Writes benchmarks/results/onnx_export_cpu_DATE.md.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from kept import here
from tasks import mobilenet_v2
from torch import nn
from torch.fx import GraphModule

from trimtab.graph.capture import capture
from trimtab.runtimes import onnxfile
from trimtab.tasks.fashion import fashion

ROOT = Path(__file__).parents[1]


def graphs() -> Iterator[tuple[str, GraphModule, int]]:
    """Name, graph, and how many pairs."""
    mlp = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    yield "MLP of two layers", capture(mlp, (torch.randn(2, 64),)), 9
    for name, make, num in (("Fashion-MNIST CNN", fashion, 9), ("MobileNetV2", mobilenet_v2, 5)):
        module, task = make()
        yield name, capture(module, task.train.batch(slice(0, 2)).inputs), num


def seconds(write: Callable[[], object]) -> float:
    """Processor seconds."""
    began = time.process_time()
    write()
    return time.process_time() - began


def row(name: str, graph: GraphModule, num: int) -> str:
    """Medians of both, and of what the second takes of the first in each pair, with lowest and highest."""
    onnxfile.onnx_model(graph)
    pairs = []
    for _ in range(num):
        with patch.object(onnxfile, "registry_read_once", contextlib.nullcontext):
            each = seconds(lambda: onnxfile.onnx_model(graph))
        pairs.append((each, seconds(lambda: onnxfile.onnx_model(graph))))
    shares = sorted(once / each for each, once in pairs)
    each, once = (median(side) for side in zip(*pairs, strict=True))
    share = f"{median(shares):.2f} ({shares[0]:.2f} ... {shares[-1]:.2f})"
    return f"| {name} | {num} | {each:.2f} | {once:.2f} | {share} |"


def main() -> None:
    torch.set_num_threads(1)
    lines = ["# PyTorch's registry of ONNX forms, read once", "", f"{here(('torch', 'onnxscript'))}; one thread.", ""]
    lines += ["| graph | pairs | s, read at every export | s, read once | share |", "|---|---|---|---|---|"]
    for name, graph, num in graphs():
        lines.append(row(name, graph, num))
        print(lines[-1], flush=True)
    out = ROOT / "benchmarks" / "results" / f"onnx_export_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
