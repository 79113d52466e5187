"""What `Fit(prune_samples=...)` gains: Fashion-MNIST with it, without it, and without it in as few steps.

    scripts/bench infobatch

All 60,000 pictures, an MLP of one layer of 256, by the project's own loop in fp32 on one thread. For each seed, from
the same first weights: all samples; half of those of small loss left out (InfoBatch); and all samples in fewer epochs,
as many as come nearest to the steps of InfoBatch, which is what it has to beat. Processor seconds and accuracy on 8,000
test pictures. What ended is kept in build/infobatch. Writes benchmarks/results/infobatch_cpu_DATE.md. Six minutes of
a core.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import time
from pathlib import Path
from statistics import mean, median, quantiles, stdev
from typing import Any

import torch
from problems import fashion_mnist
from scipy.stats import t as student
from torch import nn

from trimtab.core import Fit, Split, Task
from trimtab.measure.machine import stamp, versions
from trimtab.tasks.make import task_from_pairs
from trimtab.train.loop import score, training

ROOT = Path(__file__).parents[1]
FIT = Fit(epochs=12, batch_size=128, lr=1e-3, precision="fp32")
RATIO, SELECT = 0.5, 2000
ARMS = {"all": "all samples", "pruned": "InfoBatch", "fewer": "all samples, fewer epochs"}
MEASURED = ("epochs", "steps", "seconds", "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "infobatch", help="where what ended is kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    task = fashion()
    verify = task.verify.open("infobatch")
    rows = [seed_of(given.work / f"seed{seed}.json", seed, task, verify) for seed in range(given.seeds)]
    path = ROOT / "benchmarks" / "results" / f"infobatch_cpu_{datetime.date.today():%Y-%m-%d}.md"
    path.write_text("\n".join(report(rows, len(verify))) + "\n")
    print(path)


def fashion() -> Task:
    """The whole of Fashion-MNIST, pixels in [0, 1]: 60,000 pictures [784] to learn, 2,000 and 8,000 to test."""
    learned, (held, named) = fashion_mnist()
    return task_from_pairs(
        "fashion", learned, (held[:SELECT], named[:SELECT]), (held[SELECT:], named[SELECT:]), fit=FIT
    )


def seed_of(file: Path, seed: int, task: Task, verify: Split) -> dict[str, Any]:
    """One seed, the three ways in turn; measured now, or read."""
    if not file.exists():
        row: dict[str, Any] = {"all": trained(seed, task, verify, FIT)}
        row["pruned"] = trained(seed, task, verify, dataclasses.replace(FIT, prune_samples=RATIO))
        epochs = round(FIT.epochs * row["pruned"]["steps"] / row["all"]["steps"])
        row["fewer"] = trained(seed, task, verify, dataclasses.replace(FIT, epochs=epochs))
        file.write_text(json.dumps(row))
        print(seed, row, flush=True)
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def trained(seed: int, task: Task, verify: Split, settings: Fit) -> dict[str, float]:
    """Steps, processor seconds of the training alone, accuracy."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    began = time.process_time()
    with training(model, task, dataclasses.replace(settings, seed=seed)) as steps:
        taken = sum(1 for _ in steps)
    seconds = time.process_time() - began
    accuracy = float(score(model.eval(), verify, task.metric).mean())
    return {"epochs": settings.epochs, "steps": taken, "seconds": seconds, "accuracy": accuracy}


def report(rows: list[dict[str, Any]], num: int) -> list[str]:
    """The three ways, and InfoBatch against each of the others, seed by seed."""
    machine = stamp()
    table = []
    for arm, name in ARMS.items():
        epochs, steps, seconds, accuracy = ([row[arm][key] for row in rows] for key in MEASURED)
        percent = spread([100 * value for value in accuracy], 2)
        table.append(f"| {name} | {mean(epochs):.0f} | {mean(steps):,.0f} | {spread(seconds, 1)} | {percent} |")
    skipped = [1 - row["pruned"]["steps"] / row["all"]["steps"] for row in rows]
    return [
        "# InfoBatch on Fashion-MNIST",
        "",
        f"{machine['cpu']}, 1 thread, PyTorch {versions()['torch']}. 60,000 pictures, MLP 784-256-10, {FIT}; "
        f"`prune_samples={RATIO}`. Accuracy in percent on {num:,} test pictures; mean ± s.d. of {len(rows)} seeds. "
        "Written by `benchmarks/infobatch.py`.",
        "",
        "| | epochs | steps | processor seconds | accuracy |",
        "|---|---|---|---|---|",
        *table,
        "",
        f"InfoBatch takes {100 * mean(skipped):.1f} % fewer steps ({100 * min(skipped):.1f} to "
        f"{100 * max(skipped):.1f}).",
        "",
        "| InfoBatch against | seconds, median of pairs [quartiles] | accuracy, difference in points, 95 % interval |",
        "|---|---|---|",
        *(f"| {ARMS[arm]} | {ratio(rows, arm)} | {difference(rows, arm)} |" for arm in ("all", "fewer")),
    ]


def ratio(rows: list[dict[str, Any]], arm: str) -> str:
    pairs = [row["pruned"]["seconds"] / row[arm]["seconds"] for row in rows]
    low, _, high = quantiles(pairs, n=4)
    return f"{median(pairs):.3f} [{low:.3f}, {high:.3f}]"


def difference(rows: list[dict[str, Any]], arm: str) -> str:
    points = [100 * (row["pruned"]["accuracy"] - row[arm]["accuracy"]) for row in rows]
    half = float(student.ppf(0.975, len(points) - 1)) * stdev(points) / math.sqrt(len(points))
    return f"{mean(points):+.2f} ({mean(points) - half:+.2f} to {mean(points) + half:+.2f})"


def spread(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
