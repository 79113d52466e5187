"""How well a search keeps its budget: the minutes that it took, of those that it was given.

    scripts/bench budget --minutes 2 4

On Fashion-MNIST's CNN, trained for one epoch on part of the data, as what it answers does not matter here; one search
for each budget, in ONNX Runtime, which always has something left to try. Measured is the search alone, from its first
candidate to its choice: training before it and the verdict after it are not part of the budget. What ended is kept in
build/budget. Writes benchmarks/results/budget_cpu_DATE.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trimtab.attempt import Job, bench_of, free_baselines, prepare
from trimtab.compress.recipes import recipes_to_try
from trimtab.core import Fit, Goal, Search, Target
from trimtab.explore import Asked, explore
from trimtab.files import read_json, write_json
from trimtab.measure.machine import stamp, versions
from trimtab.report.terminal import Progress
from trimtab.search.study import Study
from trimtab.tasks.fashion import fashion

ROOT = Path(__file__).parents[1]
RUNTIMES = ("onnxruntime",)
NUM_TRAIN, NUM_SELECT = 1000, 500
AIM = 0.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "budget", help="where what ended is kept")
    parser.add_argument("--minutes", type=float, nargs="+", default=(2.0, 4.0))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for minutes in given.minutes:
        file = given.work / f"{minutes:g}.json"
        if not file.exists():
            write_json(file, measured(given.work, minutes))
            print(read_json(file), flush=True)
    found = [read_json(file) for file in sorted(given.work.glob("*.json"))]
    out = ROOT / "benchmarks" / "results" / f"budget_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report(found)) + "\n")
    print(out)


def measured(work: Path, minutes: float) -> dict[str, Any]:
    """One search with that budget."""
    torch.manual_seed(0)
    model, task = fashion()
    fit = replace(task.fit or Fit(), epochs=1, precision="fp32")
    part = task.train.batch(slice(0, NUM_TRAIN))
    task = replace(task, train=part, select=task.select.batch(slice(0, NUM_SELECT)), fit=fit)
    folder = work / f"run {minutes:g}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    goal = Goal("latency_ms", keep=0.9, minutes=minutes)
    job = Job(task, Target(runtimes=RUNTIMES), goal, Study(folder), Progress(quiet=True), "")
    original = prepare(job, model)
    bench = bench_of(job, original)
    free, _ = free_baselines(job, bench, original, RUNTIMES)
    busy, began = os.getloadavg()[0], time.monotonic()
    asked = Asked(Search(), {"budget": minutes}, samples=True)
    ended = explore(job, bench, original, free, recipes_to_try(None, original.graph, job.goal.minimise), asked)
    used = (time.monotonic() - began) / 60
    num = sum(bool(tried.trials) for tried in ended)
    return {"minutes": minutes, "used": used, "tried": num, "load": busy}


def report(found: list[dict[str, Any]]) -> list[str]:
    """The results as lines of Markdown."""
    if not found:
        raise SystemExit("There is no search to report yet: run it first.")
    within = [abs(row["used"] / row["minutes"] - 1) <= AIM for row in found]
    word = (
        "holds" if all(within) else "does not hold" if not any(within) else f"holds for {sum(within)} of {len(found)}"
    )
    lines = [
        "# How well a search keeps its budget",
        "",
        f"{stamp()['cpu']}, {stamp()['cores']} cores, PyTorch {versions()['torch']}; one search for each budget, seed "
        "0. Load: how many processes wanted a core as it began.",
        "",
        f"- What a search takes should be within {AIM:.0%} of what it was given: this {word}.",
        "",
        "| minutes given | used | used / given | candidates measured | load |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(found, key=lambda row: row["minutes"]):
        share = f"{row['used'] / row['minutes']:.3f}"
        lines.append(f"| {row['minutes']:g} | {row['used']:.2f} | {share} | {row['tried']} | {row['load']:.1f} |")
    return lines


if __name__ == "__main__":
    main()
