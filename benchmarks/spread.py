"""How to spread a cut over the layers: the same share of each, or where the outputs move least; chains and others.

    scripts/bench spread

Each model is pruned by "obs" at three ratios, once evenly and once as measured, which frees as many multiply-adds. Told
are what each loses on `verify`, as a share of the original's quality, and their latencies in ONNX Runtime, raced in
pairs, one thread, one sample. Nets on Fashion-MNIST are trained from several seeds; models with weights of their own
are held against their own answers. What ended is kept in build/spread. Writes benchmarks/results/spread_cpu_DATE.md.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from kept import cells, here
from models.loaded import Loaded
from quality.nets import FITS, fresh
from staircase import RUNTIME, latencies
from tasks import LOADERS
from torch import nn
from torch.fx import GraphModule

from trimtab.compress.blocks import blocks
from trimtab.compress.prune import Prune
from trimtab.core import Split, Task, Tools
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs
from trimtab.tasks.fashion import conv, fashion
from trimtab.train.loop import fit, score

ROOT = Path(__file__).parents[1]
RATIOS, SEEDS, NUM = (0.25, 0.5, 0.75), 3, 64
Made = Callable[[], tuple[GraphModule, Task]]


class Deep(nn.Module):
    """[B, 1, 28, 28] -> [B, 10]: a chain of nine convolutions, as VGG has them (Simonyan and Zisserman 2015)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 32, 64, 64, 64, 96, 96, 128, 128)
        strides = (1, 1, 2, 1, 1, 2, 1, 2, 1)
        layers = zip(widths[:-1], widths[1:], strides, strict=True)
        self.features = nn.Sequential(*(part for one in layers for part in conv(*one[:2], stride=one[2])))
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def garments(net: str, seed: int) -> tuple[GraphModule, Task]:
    """A net that was trained on Fashion-MNIST from a seed; cuts are planned on 3,000 pictures and `select`."""
    _, task = fashion()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Deep() if net == "Deep" else fresh(net, seed)
    trained = fit(module, task, replace(FITS["FashionNet"], seed=seed))
    graph = capture(trained, task.train.batch(slice(0, 2)).inputs)
    return graph, replace(task, train=task.train.batch(slice(0, 3000)))


def loaded(load: Callable[[], Loaded]) -> tuple[GraphModule, Task]:
    """A model with weights of its own; cuts are planned on few samples."""
    found = load()
    task, select = found.task, found.task.select
    few: Split = select.batch(slice(0, NUM))
    graph = capture(found.module.eval(), task.train.batch(slice(0, 2)).inputs)
    return graph, replace(task, train=task.train.batch(slice(0, NUM)), select=few)


MODELS: dict[str, Made] = {
    **{f"{net}, seed {seed}": partial(garments, net, seed) for seed in range(SEEDS) for net in (*FITS, "Deep")},
    **{name: partial(loaded, load) for name, load in LOADERS.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "spread", help="where what ended is kept")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--report-only", action="store_true", help="write the report of the models that ended")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wanted = () if given.report_only else given.models
    found = cells(given.work, MODELS, lambda name: measured(*MODELS[name]()), wanted=wanted)
    out = ROOT / "benchmarks" / "results" / f"spread_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report(found)) + "\n")
    print(out)


def measured(original: GraphModule, task: Task) -> dict[str, Any]:
    """What an even cut and a measured one leave at each ratio."""
    verify = task.verify.open("spread")
    graphs = {"original": original}
    for ratio in RATIOS:
        for allocation in ("uniform", "measured"):
            method = Prune(ratio, importance="obs", allocation=allocation)  # type: ignore[arg-type]
            plan = method.plan(original, task)
            graphs[f"{ratio:g} {allocation}"] = method.apply(original, plan, Tools(task=task))
    raced = latencies(graphs, tuple(x[:1] for x in task.select.inputs))
    return {
        "residuals": bool(blocks(original)[0]),
        "cuts": {
            name: {
                "quality": float(score(graph, verify, task.metric).mean()),
                "ms": raced[name][0],
                "macs": macs(graph),
            }
            for name, graph in graphs.items()
        },
    }


def report(found: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each model and ratio, and what the two kinds of models have in common."""
    lines = [
        "# How to spread a cut over the layers",
        "",
        f"{here(('torch', RUNTIME))}; one thread, one sample. Made by `scripts/bench spread`. Lost: of the original's "
        f"quality on `verify`. Milliseconds: the least block median in {RUNTIME}, all raced in turn. No recovery.",
        "",
        *(line for kind in (False, True) for line in summary(found, residuals=kind)),
        "",
        "| model | residual blocks | cut | lost, even | lost, as measured | MACs, ratio | ms, even | ms, as measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in found.items():
        word = "yes" if own["residuals"] else "no"
        for ratio in RATIOS:
            even, other = pair(own, ratio)
            lines.append(
                f"| {name} | {word} | {ratio:g} | {even['lost']:.1%} | {other['lost']:.1%} | "
                f"{other['macs'] / even['macs']:.2f} | {even['ms']:.3f} | {other['ms']:.3f} |"
            )
    missing = [name for name in MODELS if name not in found]
    return [*lines, "", f"Not run: {', '.join(missing)}."] if missing else lines


def pair(own: dict[str, Any], ratio: float) -> tuple[dict[str, float], dict[str, float]]:
    """What the even cut of a ratio left, and the measured one."""
    whole = own["cuts"]["original"]["quality"]
    even, other = (own["cuts"][f"{ratio:g} {allocation}"] for allocation in ("uniform", "measured"))
    return {**even, "lost": 1 - even["quality"] / whole}, {**other, "lost": 1 - other["quality"] / whole}


def summary(found: dict[str, dict[str, Any]], *, residuals: bool) -> list[str]:
    """Of the models with a residual stream, or without: which cut loses less, and the latencies' ratio."""
    pairs = [pair(own, ratio) for own in found.values() if own["residuals"] == residuals for ratio in RATIOS]
    if not pairs:
        return []
    less = sum(even["lost"] < other["lost"] for even, other in pairs)
    more = sum(even["lost"] > other["lost"] for even, other in pairs)
    slower = [other["ms"] / even["ms"] for even, other in pairs]
    gained = [other["lost"] - even["lost"] for even, other in pairs]
    return [
        f"- {len(pairs)} cuts of models {'with' if residuals else 'without'} residual blocks: the even one loses less "
        f"in {less}, the measured one in {more}. What the measured one loses, less what the even one does: "
        f"{median(gained):+.2%} of the original's quality ({min(gained):+.2%} to {max(gained):+.2%}). Its time, by the "
        f"even one's: {median(slower):.2f} ({min(slower):.2f} to {max(slower):.2f})."
    ]


if __name__ == "__main__":
    main()
