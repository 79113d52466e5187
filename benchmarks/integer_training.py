"""Training with int8 weights and rounding by chance, beside fp32 training, on the built-in Fashion-MNIST.

    scripts/bench integer_training

For each of three seeds the network is trained twice from the same first weights, in the same order of data, as the
built-in task says: in fp32, and after `integer_weights_`. Accuracy on `verify`; what lives between two steps, in
bytes; processor seconds. What ended is kept in build/qat (the fp32 nets are those of `scripts/bench qat`). Writes
benchmarks/results/integer_training_cpu_DATE.md. About ten minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from qat import original
from scipy.stats import t as student
from torch import nn

from trimtab.core import Split, Task
from trimtab.measure.machine import stamp, versions
from trimtab.tasks.fashion import FashionNet, fashion
from trimtab.train.integers import integer_weights_, named_tensors
from trimtab.train.loop import fit, score, training

ROOT = Path(__file__).parents[1]
ALLOWED = 1.0  # points of accuracy
BLOCKS, STEPS = 10, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "qat", help="where what ended is kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    _, task = fashion()
    verify = task.verify.open("integer_training")
    rows = [cell(given.work, seed, task, verify) for seed in range(given.seeds)]
    path = ROOT / "benchmarks" / "results" / f"integer_training_cpu_{datetime.date.today():%Y-%m-%d}.md"
    path.write_text("\n".join(report(rows, task, len(verify), step_seconds(task))) + "\n")
    print(path)


def cell(work: Path, seed: int, task: Task, verify: Split) -> dict[str, Any]:
    """One seed, both ways; measured now, or read."""
    file = work / f"integer_seed{seed}.json"
    if not file.exists():
        torch.manual_seed(seed)
        settings = dataclasses.replace(task.fit, seed=seed, precision="fp32")  # type: ignore[type-var]
        integers = fit(
            integer_weights_(FashionNet()), task, settings, checkpoint=work / f"integer_seed{seed}.checkpoint"
        )
        floats = original(work, seed, task)
        row = {
            "seed": seed,
            "float": float(score(floats, verify, task.metric).mean()),
            "integer": float(score(integers, verify, task.metric).mean()),
            "bytes": [weight_bytes(floats), weight_bytes(integers)],
        }
        file.write_text(json.dumps(row))
        print(row, flush=True)
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def step_seconds(task: Task) -> list[list[float]]:
    """Processor seconds of some steps with fp32 weights and with int8 weights, taken in turns."""
    settings = dataclasses.replace(task.fit, precision="fp32")  # type: ignore[type-var]
    seconds: list[list[float]] = [[], []]
    with contextlib.ExitStack() as stack:
        models = (FashionNet(), integer_weights_(FashionNet()))
        runs = [stack.enter_context(training(model, task, settings)) for model in models]
        for _ in range(BLOCKS + 1):
            for run, spent in zip(runs, seconds, strict=True):
                began = time.process_time()
                for _ in range(STEPS):
                    next(run)
                spent.append((time.process_time() - began) / STEPS)
    return [spent[1:] for spent in seconds]


def weight_bytes(model: nn.Module) -> int:
    """What the weights of two or more dims take, with their scales."""
    names = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    tensors = named_tensors(model).items()
    return sum(t.nbytes for name, t in tensors if name in names or name.rpartition(".")[0] in names)


def report(rows: list[dict[str, Any]], task: Task, num: int, seconds: list[list[float]]) -> list[str]:
    """Accuracy by seed, the difference with its interval, and the bytes."""
    machine, settings = stamp(), task.fit
    differences = [100 * (row["integer"] - row["float"]) for row in rows]
    half = float(student.ppf(0.975, len(rows) - 1)) * stdev(differences) / math.sqrt(len(rows))
    floats, integers = rows[0]["bytes"]
    ratios = [ours / plain for plain, ours in zip(*seconds, strict=True)]
    low, high = mean(differences) - half, mean(differences) + half
    word = "holds" if low > -ALLOWED else "is not shown by these seeds"
    table = [
        f"| {r['seed']} | {100 * r['float']:.2f} | {100 * r['integer']:.2f} | {d:+.2f} |"
        for r, d in zip(rows, differences, strict=True)
    ]
    return [
        "# Training with int8 weights, beside fp32",
        "",
        f"{machine['cpu']}, 1 thread, PyTorch {versions()['torch']}. FashionNet on 10,000 images, {settings}, in fp32 "
        f"arithmetic; the same first weights and order of data both ways. Accuracy in percent on {num:,} test images.",
        "",
        "| seed | fp32 weights | int8 weights | difference |",
        "|---|---|---|---|",
        *table,
        f"| mean ± s.d. | {spread([r['float'] for r in rows])} | {spread([r['integer'] for r in rows])} | "
        f"{mean(differences):+.2f} ± {stdev(differences):.2f} |",
        "",
        f"The 95 % interval of the difference (Student's t, n = {len(rows)}) is {low:+.2f} to {high:+.2f} points: that "
        f"it ends within {ALLOWED:g} point of fp32 {word}.",
        "",
        f"Between two steps the weights take {integers:,} bytes instead of {floats:,} ({integers / floats:.3f}), "
        "scales included. Not counted, the same both ways: biases and BatchNorm, gradients (4 bytes a weight), AdamW's "
        f"two moments (8 bytes a weight). A step takes {median(ratios):.2f} times the processor time of one with fp32 "
        f"weights (median of {len(ratios)} pairs of {STEPS} steps in turn, {min(ratios):.2f} to {max(ratios):.2f}).",
    ]


def spread(values: list[float]) -> str:
    return f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f}"


if __name__ == "__main__":
    main()
