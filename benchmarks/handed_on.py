"""What training can hand to compression: gradients' squares for a pass over data, ranges for calibration.

    scripts/bench handed_on

FashionNet, and a small encoder that reads the same pictures row by row, are trained as their task says. Then channels
are ranked by the Fisher diagonal that the optimizer kept and by the one computed on 256 and 2,048 samples, cut at
several ratios and re-solved; and, for FashionNet, int8 takes its ranges from calibration and from what the training's
steps saw. Nothing is trained after the cut. Cells that ended are kept in build/handed_on; one thread. Writes
benchmarks/results/handed_on_cpu_DATE.md.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.compress.calibration import batches, calibration
from trimtab.compress.importance import importances
from trimtab.compress.observers import affine
from trimtab.compress.prune import Prune
from trimtab.compress.quantize import Quantize, QuantizePlan, observe
from trimtab.compress.sensitivity import relative_error
from trimtab.core import Task, Tools
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.graph.dims import groups
from trimtab.graph.fisher import attach_fisher_, fisher_of
from trimtab.graph.fold import fold_batchnorm
from trimtab.measure.machine import stamp, versions
from trimtab.tasks.fashion import LABELS, fashion
from trimtab.train.loop import score, training

ROOT = Path(__file__).parents[1]
RATIOS = (0.3, 0.5, 0.7)
ALLOCATIONS = ("uniform", "global")
FEW, MANY = 256, 2048
FORGETS = 0.01  # of the running extremes, at each step, as is usual where ranges are recorded in training
PAIRS, STEPS_TIMED = 5, 10


class Encoder(nn.Module):
    """[B, 1, 28, 28] -> [B, 10]: the picture's rows as 28 tokens, two blocks of attention as in BERT, norm first."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.rows = nn.Linear(28, width)
        self.places = nn.Parameter(torch.zeros(28, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.rows(x.flatten(1, 2)) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


def encoder() -> tuple[nn.Module, Task]:
    """The untrained encoder, freshly seeded, and its task."""
    _, task = fashion()
    assert task.fit is not None
    torch.manual_seed(0)
    return Encoder(), replace(task, fit=replace(task.fit, lr=2e-3))


MODELS: dict[str, Callable[[], tuple[nn.Module, Task]]] = {"encoder": encoder, "FashionNet": fashion}


class Ranges:
    """The extremes of the input, of each ReLU and of the pooling, step by step, by hooks."""

    def __init__(self, model: nn.Module) -> None:
        parts = [part for part in model.modules() if isinstance(part, nn.ReLU | nn.AdaptiveAvgPool2d)]
        self.running: list[Tensor | None] = [None] * (len(parts) + 1)
        self.widest: list[Tensor | None] = [None] * (len(parts) + 1)
        self.handles = [model.register_forward_pre_hook(lambda _, args: self._see(0, args[0]))]
        for place, part in enumerate(parts, start=1):
            self.handles.append(part.register_forward_hook(lambda _, __, out, place=place: self._see(place, out)))

    def _see(self, place: int, value: Tensor) -> None:
        if torch.is_inference_mode_enabled():  # the loop tries the model's memory layout first
            return
        now = torch.stack(value.detach().aminmax())
        before, widest = self.running[place], self.widest[place]
        self.running[place] = now if before is None else before.lerp_(now, FORGETS)
        self.widest[place] = now if widest is None else torch.stack([min(widest[0], now[0]), max(widest[1], now[1])])

    def begin_epoch(self) -> None:
        self.widest = [None] * len(self.widest)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "handed_on", help="where cells are kept")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--report-only", action="store_true", help="write the report of the cells that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in [] if given.report_only else given.seeds:
        for name in given.models:
            path = given.work / f"{name}-{seed}.json"
            if not path.exists():
                write_json(path, cell(name, seed))
                print(path, flush=True)
    out = ROOT / "benchmarks" / "results" / f"handed_on_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report([read_json(path) for path in sorted(given.work.glob("*.json"))])) + "\n")
    print(out)


def cell(name: str, seed: int) -> dict[str, Any]:
    """Everything of one training."""
    model, task = MODELS[name]()
    assert task.fit is not None
    settings = replace(task.fit, seed=seed, precision="fp32")
    # an encoder has no ReLU and no pooling of that kind: its input alone would be seen
    ranges = Ranges(model) if name == "FashionNet" else None
    with training(model, task, settings) as steps:
        for step in steps:
            if ranges and step.ends_epoch and step.epoch + 2 == settings.epochs:
                ranges.begin_epoch()  # what is left is the last epoch's
    if ranges:
        ranges.remove()
    graph = capture(model.eval(), task.select.batch(slice(0, 2)).inputs)
    found = {"model": name, "seed": seed, "steps": step.index + 1, "accuracy": quality(graph, task)}
    found |= fisher_rows(graph, task)
    return found | (int8_rows(graph, task, ranges, model) if ranges else {})


def quality(graph: GraphModule, task: Task) -> float:
    return float(score(graph, task.select, task.metric).mean())


def fisher_rows(graph: GraphModule, task: Task) -> dict[str, Any]:
    """How the three rank channels, what that takes, and what a cut by each leaves."""
    handed = fisher_of(graph)
    ways = {"handed": (handed, FEW), f"{FEW} samples": (None, FEW), f"{MANY} samples": (None, MANY)}
    scores, seconds, accuracy = {}, {}, []
    found = list(groups(graph).cuttable)
    for way, (fisher, samples) in ways.items():
        attach_fisher_(graph, fisher)
        data, began = calibration(task, samples, purpose="Fisher"), time.perf_counter()
        scores[way] = importances(graph, found, "fisher", task=task, data=data)
        seconds[way] = time.perf_counter() - began
        for allocation in ALLOCATIONS:
            for ratio in RATIOS:
                method = Prune(
                    ratio, importance="fisher", samples=samples, allocation=allocation, compensate=True, round_to=1
                )
                pruned = method.apply(graph, method.plan(graph, task), Tools(task=task))
                accuracy.append(
                    {"way": way, "ratio": ratio, "allocation": allocation, "accuracy": quality(pruned, task)}
                )
    most = f"{MANY} samples"
    ranks = {
        way: [spearman(one[group.name].values, scores[most][group.name].values) for group in found]
        for way, one in scores.items()
    }
    by = {way: next(iter(one.values())).by for way, one in scores.items()}
    return {"fisher_seconds": seconds, "pruned": accuracy, "ranks": ranks, "by": by}


def spearman(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([one.argsort().argsort().double() for one in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def int8_rows(graph: GraphModule, task: Task, ranges: Ranges, model: nn.Module) -> dict[str, Any]:
    """What int8 with each kind of range does to the outputs, and what ranges take to get."""
    folded, rows = fold_batchnorm(graph), []
    for observer in ("minmax", "mse"):
        method = Quantize(observer=observer, equalize=False, most_error=None)
        began = time.perf_counter()
        plan = method.plan(graph, task)
        spent = time.perf_counter() - began
        rows.append(int8_row(f"calibrated, {observer}", method, plan, (graph, task)))
    data, began = calibration(task, method.samples, purpose="int8"), time.perf_counter()
    nodes = {node.name: node for node in folded.graph.nodes}
    observe(folded, [nodes[one.node] for one in plan.activations], batches(data, 64))
    looking = time.perf_counter() - began
    for way, seen in (("running extremes", ranges.running), ("last epoch's extremes", ranges.widest)):
        rows.append(int8_row(f"training, {way}", method, with_ranges(plan, seen), (graph, task)))
    return {"int8": rows, "calibration_seconds": looking, "plan_seconds": spent, "recording": recording(model, task)}


def with_ranges(plan: QuantizePlan, seen: list[Tensor | None]) -> QuantizePlan:
    """The plan on the ranges that training saw; what pooling gives is read again as it is flattened."""
    values = [seen[min(place, len(seen) - 1)] for place in range(len(plan.activations))]
    scales = []
    for scale, pair in zip(plan.activations, values, strict=True):
        assert pair is not None
        low, high = min(0.0, float(pair[0])), max(0.0, float(pair[1]))
        step, zero = affine(low, high)
        scales.append(replace(scale, scale=step, zero_point=zero, low=low, high=high))
    return replace(plan, activations=tuple(scales))


def int8_row(way: str, method: Quantize, plan: QuantizePlan, of: tuple[GraphModule, Task]) -> dict[str, Any]:
    graph, task = of
    result = method.apply(graph, plan, Tools(task=task))
    return {"way": way, "error": relative_error(graph, result, task.select), "accuracy": quality(result, task)}


def recording(model: nn.Module, task: Task) -> list[float]:
    """By how much recording makes a step longer, as a factor, pair by pair."""
    assert task.fit is not None
    factors, settings = [], replace(task.fit, epochs=1, precision="fp32")

    def timed(*, record: bool) -> float:
        own = copy.deepcopy(model)
        ranges = Ranges(own) if record else None
        with training(own, task, settings) as steps:
            next(steps)
            began = time.perf_counter()
            for _ in range(STEPS_TIMED):
                next(steps)
            spent = time.perf_counter() - began
        if ranges:
            ranges.remove()
        return spent

    for _ in range(PAIRS):
        without = timed(record=False)
        factors.append(timed(record=True) / without)
    return factors


def report(cells: list[dict[str, Any]]) -> list[str]:
    """The results as lines of Markdown."""
    if not cells:
        raise SystemExit("There is no cell to report yet: run without --report-only first.")
    lines = ["# What training hands to compression", ""]
    lines += [f"{stamp()['cpu']}, 1 thread, PyTorch {versions()['torch']}, Python {stamp()['python']}, fp32.", ""]
    lines += [
        "Accuracy on `select`, 2,000 pictures; nothing is trained after the cut, layers that read it are re-solved."
    ]
    for name in [name for name in MODELS if any(one["model"] == name for one in cells)]:
        here = [one for one in cells if one["model"] == name]
        trained = ", ".join(f"{one['accuracy']:.4f} (seed {one['seed']})" for one in here)
        lines += ["", f"## {name}", "", f"Trained for {here[0]['steps']} steps: accuracy {trained}.", ""]
        lines += [
            f"Rank correlation (Spearman) with the Fisher diagonal on {MANY} samples, the mean over groups, the least"
        ]
        lines += ["and the most of a group; and seconds to rank all channels.", ""]
        lines += ["| squares | mean | least | most | seconds |", "| --- | ---: | ---: | ---: | ---: |"]
        for way in here[0]["ranks"]:
            ranks = [rank for one in here for rank in one["ranks"][way]]
            seconds = statistics.median(one["fisher_seconds"][way] for one in here)
            mean = f"{statistics.mean(ranks):.3f} | {min(ranks):.3f} | {max(ranks):.3f}"
            lines.append(f"| {way} | {'| |' if ranks[0] == 1 else mean} | {seconds:.3g} |")
        lines += ["", *pruned_table(here)]
        if "int8" in here[0]:
            lines += ["", *int8_table(here)]
    return lines


def pruned_table(here: list[dict[str, Any]]) -> list[str]:
    """Mean accuracy over the seeds after each cut, with its least and most."""
    ways = list(here[0]["ranks"])
    lines = [f"| cut | {' | '.join(ways)} |", "| --- " + "| ---: " * len(ways) + "|"]
    for allocation in ALLOCATIONS:
        for ratio in RATIOS:
            found = []
            for way in ways:
                values = [
                    row["accuracy"]
                    for one in here
                    for row in one["pruned"]
                    if (row["way"], row["ratio"], row["allocation"]) == (way, ratio, allocation)
                ]
                spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
                found.append(f"{statistics.mean(values):.4f}{spread}")
            lines.append(f"| {ratio:g} {allocation} | {' | '.join(found)} |")
    return lines


def int8_table(here: list[dict[str, Any]]) -> list[str]:
    """Ranges from calibration beside those from training, and what each takes."""
    lines = ["int8 by ranges of both kinds; the error is how far the outputs move, as a share of their variance.", ""]
    lines += ["| ranges | error | accuracy |", "| --- | ---: | ---: |"]
    for place, row in enumerate(here[0]["int8"]):
        errors, accuracies = ([one["int8"][place][key] for one in here] for key in ("error", "accuracy"))
        error = ", ".join(f"{value:.2e}" for value in errors)
        lines.append(f"| {row['way']} | {error} | {', '.join(f'{value:.4f}' for value in accuracies)} |")
    looking, plan = (statistics.median(one[key] for one in here) for key in ("calibration_seconds", "plan_seconds"))
    factors = sorted(factor for one in here for factor in one["recording"])
    lines += [
        "",
        f"Looking at activations takes {looking:.2f} s of the {plan:.2f} s that the plan takes; recording them in",
    ]
    lines += [
        f"training makes a step {statistics.median(factors):.3f} times as long ({factors[0]:.3f} to {factors[-1]:.3f},"
    ]
    lines += [f"{len(factors)} pairs)."]
    return lines


if __name__ == "__main__":
    main()
