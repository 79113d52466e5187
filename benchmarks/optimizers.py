"""How soon each optimizer reaches a fixed loss: gradients and processor seconds, equal small tuning budgets.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/optimizers.py

Every optimizer of the table, without weight decay, at each of four multiples of its default learning rate with the
first seed; the two of them that arrive first go on with the other seeds, the rate with the lowest median over the
seeds counts, and a run that misses counts as infinite. Evaluations of the loss are not timed. Finished cells are kept
in benchmarks/results/optimizers.json, so that a run that was stopped goes on, on another day, too; `--problems NAME
...` runs some, `--seeds N` gives more or fewer seeds. Writes benchmarks/results/optimizers_cpu_DATE.md and
docs/benchmarks/optimizers.{md,svg}; `--report-only` only writes, from what is there. The plot needs matplotlib; the
data of problems.py come by apt-get.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS, Problem
from torch import Tensor, nn

from trimtab.errors import OptimizerError
from trimtab.files import read_json, write_json
from trimtab.measure.machine import stamp
from trimtab.optim import OPTIMIZERS
from trimtab.optim.base import Optimizer, changed
from trimtab.optim.schedule_free import ScheduleFree
from trimtab.train.schedule import find_schedule

ROOT = Path(__file__).parent.parent
MULTIPLES, WARMUP, GO_ON = (1.0, 10.0, 100.0, 1000.0), 0.02, 2
Cells = dict[str, list[float]]  # "problem optimizer multiple seed" -> [gradients, seconds]; inf where it missed


def settings_of(name: str, multiple: float) -> Optimizer:
    """The optimizer at a multiple of its rate, without decay."""
    found = OPTIMIZERS[name]
    fields = {field.name for field in dataclasses.fields(getattr(found, "inner", found))}
    return changed(found, lr=multiple * found.lr, weight_decay=0.0 if "weight_decay" in fields else None)


def run(problem: Problem, settings: Optimizer, seed: int) -> list[float]:
    """Gradients and processor seconds until the target; infinite where it is missed."""
    if problem.batches and settings.full_batch:
        return [math.inf, math.inf]
    model, generator = problem.make(seed).train(), torch.Generator().manual_seed(seed)
    optimizer, schedule = settings.build(model), find_schedule(settings.schedule)
    count, spent, lowest = 0, 0.0, math.inf
    at: Tensor | slice = slice(None)

    def closure() -> Tensor:
        nonlocal count, lowest
        count += lowest > problem.target
        optimizer.zero_grad()
        loss = problem.loss(model, at)
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.full_batch:
            lowest = min(lowest, loss.item())
        return loss

    step, whole = 0, settings.full_batch or problem.batch == problem.num
    while count < problem.most:
        if not whole:
            at = torch.randint(problem.num, (problem.batch,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * schedule(min(step, problem.most - 1), problem.most, warmup=WARMUP)
        began = time.process_time()
        try:
            optimizer.step(closure)
        except OptimizerError:
            return [math.inf, math.inf]
        spent += time.process_time() - began
        step += 1
        if not settings.full_batch and step % problem.look == 0:
            lowest = looked(problem, model, optimizer)
        if lowest <= problem.target:
            return [float(count), spent]
        if math.isnan(lowest) or (4 * count >= problem.most and lowest > problem.early):
            break
    return [math.inf, math.inf]


@torch.no_grad()
def looked(problem: Problem, model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """The loss on all samples, of the averaged weights where the optimizer averages them."""
    if isinstance(optimizer, ScheduleFree):
        optimizer.eval()
    value = (problem.judge(model) if problem.judge else problem.loss(model, slice(None))).item()
    if isinstance(optimizer, ScheduleFree):
        optimizer.train()
    return value


def best_of(cells: Cells, problem: str, name: str) -> tuple[float, list[float], list[float]] | None:
    """The multiple with the lowest median of gradients, and its gradients and seconds by seed; None if nothing ran.

    Of the multiples that went on with most seeds: the others were out after the first.
    """
    found = []
    for multiple in MULTIPLES:
        start = f"{problem} {name} {multiple:g} "
        runs = [value for key, value in cells.items() if key.startswith(start)]
        if runs:
            found.append((multiple, [run[0] for run in runs], [run[1] for run in runs]))
    most = max((len(one[1]) for one in found), default=0)
    found = [one for one in found if len(one[1]) == most]
    return min(found, key=lambda one: (statistics.median(one[1]), statistics.median(one[2]))) if found else None


def cells_in(file: Path) -> Cells:
    """The cells that were kept; where a run missed, its numbers are null there."""
    kept = read_json(file) if file.exists() else {}
    return {key: [math.inf if number is None else number for number in run] for key, run in kept.items()}


def keep(file: Path, cells: Cells) -> None:
    """Put them where `cells_in` finds them."""
    write_json(file, {key: [number if math.isfinite(number) else None for number in run] for key, run in cells.items()})


def seeds_of(cells: Cells, problem: str) -> int:
    """The seeds that every optimizer has ended on it."""
    count = 0
    while all(
        sum(f"{problem} {name} {one:g} {count}" in cells for one in MULTIPLES) >= (GO_ON if count else len(MULTIPLES))
        for name in OPTIMIZERS
    ):
        count += 1
    return count


def even(cells: Cells) -> Cells:
    """The cells of the seeds that every optimizer has ended: more of some would compare unlike things."""
    seeds = {problem: seeds_of(cells, problem) for problem in PROBLEMS}
    return {key: run for key, run in cells.items() if int(key.split()[-1]) < seeds.get(key.split()[0], 0)}


def number(value: float, digits: int = 0) -> str:
    return "missed" if math.isinf(value) else f"{value:.{digits}f}"


def profile(cells: Cells, problems: list[str]) -> dict[str, list[float]]:
    """For each optimizer, its seconds over the fastest one's, problem by problem, in order (Dolan and More 2002)."""
    ratios: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for problem in problems:
        spent = {name: statistics.median(best[2]) for name in OPTIMIZERS if (best := best_of(cells, problem, name))}
        fastest = min(spent.values())
        for name, seconds in spent.items():
            ratios[name].append(seconds / fastest if math.isfinite(seconds) else math.inf)
    return {name: sorted(values) for name, values in ratios.items()}


def text_of(cells: Cells, problems: list[str], *, picture: bool) -> str:
    machine = stamp()
    named = [PROBLEMS[problem]() for problem in problems]
    head = "| optimizer | " + " | ".join(f"{problem}: gradients | s | rate" for problem in problems) + " |"
    lines = ["# How soon the optimizers arrive", ""]
    lines += [f"{machine['cpu']}, one thread; torch {torch.__version__}; written by `benchmarks/optimizers.py`.", ""]
    for problem, one in zip(problems, named, strict=True):
        most = f"at most {one.most} gradients of {one.batch} samples, seeds: {seeds_of(cells, problem)}"
        early = f"; above {one.early:g} after a quarter of them is a miss" if math.isfinite(one.early) else ""
        lines.append(f"* {problem}: {one.said}; {most}{early}.")
    multiples = ", ".join(f"{multiple:g}" for multiple in MULTIPLES)
    lines += [
        "",
        f"Medians over the seeds of gradients and processor seconds, at the best of the multiples {multiples} of ",
    ]
    lines[-1] += "the default rate; the two that arrive first with the first seed go on with the others where not all "
    lines[-1] += "were run. A run that misses is infinite. Methods on all data take larger gradients: compare "
    lines[-1] += (
        "their seconds. Other work ran on the machine, so differences of a few tens of percent in seconds are noise."
    )
    lines += ["", head, "|---" * (1 + 3 * len(problems)) + "|"]
    for name in OPTIMIZERS:
        row = []
        for problem in problems:
            best = best_of(cells, problem, name)
            median = [statistics.median(part) for part in best[1:]] if best else []
            reached = best is not None and math.isfinite(median[0])
            row += [number(median[0]), number(median[1], 3), f"{best[0]:g}"] if best and reached else ["missed", "", ""]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    if picture:
        lines += ["", "![The share of problems that each solves within a multiple of the fastest one's seconds]"]
        lines[-1] += "(optimizers.svg)"
    missing = ", ".join(name for name in PROBLEMS if name not in problems)
    lines += [
        "",
        f"Not run here: {missing or 'none of the script'}. Methods on all data are not run where a gradient of ",
    ]
    lines[-1] += "all samples would take too long (letters, fashion, text, austen), and count as missed there."
    return "\n".join(lines) + "\n"


def plot(ratios: dict[str, list[float]], path: Path) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "trimtab"
    figure, axes = pyplot.subplots(figsize=(9.5, 5))
    solved: dict[tuple[float, ...], Any] = {}
    widest = 1.2 * max((value for values in ratios.values() for value in values if math.isfinite(value)), default=1.0)
    for index, (name, values) in enumerate(ratios.items()):
        ends = [1.0, *(value for value in values if math.isfinite(value)), widest]
        heights = [sum(value <= end for value in values) / len(values) for end in ends]
        style = ("-", "--", ":", "-.")[index % 4]
        solved[name,] = axes.step(ends, heights, where="post", linestyle=style, label=name)
    axes.set(xscale="log", xlim=(1, widest), ylim=(-0.02, 1.02))
    axes.set(xlabel="processor seconds over the fastest one's", ylabel="share of the problems solved")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    return True


def write(found: Cells) -> None:
    cells = even(found)
    problems = [place for place in PROBLEMS if any(key.startswith(f"{place} ") for key in cells)]
    if not problems:
        raise SystemExit("No problem has been run with every optimizer yet; nothing is written.")
    pages = ROOT / "docs/benchmarks"
    picture = len(problems) > 1 and plot(profile(cells, problems), pages / "optimizers.svg")
    (pages / "optimizers.md").write_text(text_of(cells, problems, picture=picture), encoding="utf-8")
    results = ROOT / f"benchmarks/results/optimizers_cpu_{datetime.date.today().isoformat()}.md"
    results.write_text(text_of(cells, problems, picture=False), encoding="utf-8")
    print(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--found", type=Path, default=ROOT / "benchmarks/results/optimizers.json")
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--report-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = cells_in(given.found)
    for place in given.problems if not given.report_only else ():
        problem = PROBLEMS[place]()
        for name in OPTIMIZERS:
            for seed in range(1 if problem.one_seed else given.seeds):
                for multiple in (
                    sorted(MULTIPLES, key=lambda one: cells[f"{place} {name} {one:g} 0"])[:GO_ON] if seed else MULTIPLES
                ):
                    key = f"{place} {name} {multiple:g} {seed}"
                    if key not in cells:
                        cells[key] = run(problem, settings_of(name, multiple), seed)
            keep(given.found, cells)
            print(place, name, best_of(cells, place, name), flush=True)
    write(cells)


if __name__ == "__main__":
    main()
