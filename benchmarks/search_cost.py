"""What a search costs: the hypervolume reached against evaluations and seconds, beside rivals on the same cells.

    scripts/bench search_cost --models fashion
    scripts/bench search_cost --report-only

Our search as `optimize --trials` runs it, random search, a grid in random order, and each family of methods alone, on
one space, in ONNX Runtime, one sample and one thread. A graph that was scored is an evaluation, cheap
looks at a lower rung included, and so is every file that was raced beyond the first of a graph. The hypervolume is the
area that the measured candidates dominate between no loss and all that is allowed, and between no cost and the best
free baseline's; 1 would be all of it. Seconds are those that making took, once, and each strategy's own. Every step is
a cell, kept in build/search_cost and shared: another seed, or a run that goes on, makes only what nobody has made yet.
Curves are kept in benchmarks/results/search_cost.json, so that one model can be searched again alone. Writes
benchmarks/results/search_cost_cpu_DATE.md and docs/benchmarks/search_cost.{md,svg}. The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from kept import kept
from searched.cells import Ground, curve, ground
from searched.strategies import strategies
from searched.table import page, plot, report
from torch import nn

from trimtab.core import Fit, Goal, Split, Target, Task
from trimtab.files import read_json, write_json
from trimtab.search.sampler import STORAGE_FILE
from trimtab.search.space import FREE_PRECISIONS
from trimtab.tasks.fashion import fashion

ROOT = Path(__file__).parents[1]
RUNTIMES = ("onnxruntime",)


@dataclass(frozen=True)
class Model:
    """How one is searched. make: gives the module, how the original is made, and what candidates are made on.

    trials: of our search; drawn: by random search; most: of each family alone.
    """

    title: str
    make: Callable[[], tuple[nn.Module, Task, Task]]
    keep: float
    trials: int
    drawn: int
    most: int


def garments() -> tuple[nn.Module, Task, Task]:
    """FashionNet on Fashion-MNIST, trained on 10,000 pictures; candidates are made on 3,000 and chosen by 2,000."""
    module, task = fashion()
    return module, task, less(replace(task, fit=replace(task.fit or Fit(), precision="fp32")), 3000, 2000)


def photos() -> tuple[nn.Module, Task, Task]:
    """MobileNetV2, against its own answers; candidates are made on 64 pictures and chosen by 64."""
    from tasks import mobilenet_v2

    module, task = mobilenet_v2()
    return module, task, less(task, 64, 64)


def sentences() -> tuple[nn.Module, Task, Task]:
    """MiniLM, against its own embeddings; candidates are made on 64 texts and chosen by 64."""
    from tasks import minilm_l6

    module, task = minilm_l6()
    return module, task, less(task, 64, 64)


MODELS = {
    "fashion": Model("Fashion-MNIST CNN", garments, 0.98, 24, 30, 12),
    "mobilenet": Model("MobileNetV2", photos, 0.70, 16, 24, 8),
    "minilm": Model("MiniLM", sentences, 0.97, 16, 24, 8),
}


BOUNDS = {model.title: f"{model.keep:.0%} of the original's quality to keep" for model in MODELS.values()}


def less(task: Task, num_train: int, num_select: int) -> Task:
    """The task with fewer samples to make and choose candidates by. Its verify split is as large, and never opened."""
    select: Split = task.select.batch(slice(0, num_select))
    return replace(task, train=task.train.batch(slice(0, num_train)), select=select)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "search_cost", help="where cells are kept")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=tuple(MODELS))
    parser.add_argument("--strategies", nargs="+", help="e.g. ours grid; default: all")
    parser.add_argument("--again", action="store_true", help="run strategies again that ended, on the cells there are")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report-only", action="store_true", help="write the report of the strategies that ended")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in () if given.report_only else given.models:
        run(name, given.work / name, seeds=given.seeds, only=given.strategies, again=given.again)
    results = ROOT / "benchmarks" / "results"
    out = results / f"search_cost_cpu_{datetime.date.today():%Y-%m-%d}.md"
    here = {model.title: rows_of(given.work / name) for name, model in MODELS.items()}
    parts = kept(results / "search_cost.json", here, names=here, libraries=("torch", *RUNTIMES, "optuna"))
    found = {title: part.rows for title, part in parts.items()}
    out.write_text("\n".join(report(parts, BOUNDS)) + "\n")
    pages = ROOT / "docs" / "benchmarks"
    (pages / "search_cost.md").write_text("\n".join(page(found, BOUNDS, out.name)) + "\n")
    plot(found, pages / "search_cost.svg")
    print(out)


def run(name: str, work: Path, *, seeds: int, only: list[str] | None, again: bool) -> None:
    """Every strategy on a model that has not ended yet."""
    own = MODELS[name]
    module, task, searched = own.make()
    base: Ground = ground(
        work,
        task,
        module,
        searched=searched,
        target=Target(runtimes=RUNTIMES, threads=1),
        goal=Goal("latency_ms", keep=own.keep),
    )
    for strategy, seed, search in strategies(base, seeds=seeds, trials=own.trials, drawn=own.drawn, most=own.most):
        file = work / "curves" / f"{strategy} {seed}.json"
        if (file.exists() and not again) or (only and strategy not in only):
            continue
        folder = work / "runs" / f"{strategy} {seed}"
        shutil.rmtree(folder, ignore_errors=True)  # links to cells, and its own few: cells stay
        steps = curve(work, search(folder).used)
        write_json(file, {"strategy": strategy, "seed": seed, "steps": [asdict(step) for step in steps]})
        print(name, strategy, seed, steps[-1] if steps else "nothing", flush=True)


def rows_of(work: Path) -> list[dict[str, Any]]:
    """The strategies that ended, each with its curve, and with what a search foresaw."""
    rows = [read_json(file) for file in sorted((work / "curves").glob("*.json"))]
    for row in rows:
        row["foreseen"] = foreseen(work / "runs" / f"{row['strategy']} {row['seed']}" / STORAGE_FILE)
    return rows


def foreseen(storage: Path) -> list[tuple[float, float]]:
    """What floats were foreseen to cost and did cost, as shares of the best free baseline's; none without a search."""
    notes: dict[int, dict[str, Any]] = defaultdict(dict)
    if storage.exists():
        with closing(sqlite3.connect(storage)) as connection:
            for number, key, value in connection.execute("SELECT trial_id, key, value_json FROM trial_user_attributes"):
                notes[number][key] = json.loads(value)
    told = [one for one in notes.values() if "forecast" in one and "gain" in one]
    return [(one["forecast"], 1 / one["gain"]) for one in told if one["served"].split()[-1] in FREE_PRECISIONS]


if __name__ == "__main__":
    main()
