"""How soon each optimizer reaches a fixed loss: gradients and processor seconds, equal small tuning budgets.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/optimizers.py --found cells.json

Every optimizer of the table, without weight decay, at each of four multiples of its default learning rate; the rate
with the lowest median over the seeds counts, and a run that misses counts as infinite. Evaluations of the loss are not
timed. Finished cells are kept in the file that --found names, so that a run that was stopped goes on; `--problems NAME
...` runs some, `--seeds N` gives more seeds. Writes benchmarks/results/optimizers_cpu_DATE.md and
docs/benchmarks/optimizers.{md,svg}; `--report-only` only writes, from what is there. The plot needs matplotlib; letters
need rdata and mlbench's LetterRecognition.rda (Debian: r-cran-mlbench) in build/optimizers/.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.errors import OptimizerError
from trimtab.measure.machine import stamp
from trimtab.optim import OPTIMIZERS
from trimtab.optim.base import Optimizer, changed
from trimtab.optim.schedule_free import ScheduleFree
from trimtab.train.schedule import find_schedule

ROOT = Path(__file__).parent.parent
DATA = ROOT / "build/optimizers"
MULTIPLES, WARMUP, BITS = (1.0, 10.0, 100.0, 1000.0), 0.02, 2.3
Cells = dict[str, list[float]]  # "problem optimizer multiple seed" -> [gradients, seconds]; inf where it missed


@dataclass(frozen=True)
class Problem:
    """A model from a seed, its loss on some of `num` samples, and the loss on all of them that is to be reached."""

    said: str
    make: Callable[[int], nn.Module]
    loss: Callable[[nn.Module, Tensor | slice], Tensor]
    num: int
    batch: int
    target: float
    most: int
    look: int = 5  # steps between two looks at the whole loss
    one_seed: bool = False  # nothing is drawn
    judge: Callable[[nn.Module], Tensor] | None = None  # what is to be reached, where it is not the loss on all samples
    batches: bool = False  # methods on all data are not run: they would take as many gradients of all samples


def cancer() -> Problem:
    """Logistic regression with a ridge of 1 / (2 n); its lowest loss is known to ten digits."""
    data = load_breast_cancer()
    x, y = torch.tensor(data.data), torch.tensor(data.target).double()
    x = torch.cat([(x - x.mean(0)) / x.std(0, unbiased=False), torch.ones(len(x), 1)], 1)

    def loss(model: nn.Module, at: Tensor | slice) -> Tensor:
        (w,) = model.parameters()
        return F.binary_cross_entropy_with_logits((x[at] @ w)[:, 0], y[at]) + w.square().sum() / (2 * len(x))

    make = lambda seed: nn.ParameterList([nn.Parameter(torch.zeros(31, 1, dtype=torch.float64))])  # noqa: E731
    said = "breast cancer, logistic regression, all data, to within 1e-6 of the lowest loss"
    return Problem(said, make, loss, len(x), len(x), 0.0663940698 + 1e-6, 400, look=1, one_seed=True)


def digits(*, autoencoder: bool) -> Problem:
    """A net of one hidden layer that names digits, or a deep autoencoder of them."""
    data = load_digits()
    x, y = torch.tensor(data.data).float() / 16, torch.tensor(data.target)
    widths = (64, 128, 32, 8, 32, 128, 64) if autoencoder else (64, 128, 10)

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        parts = [part for layer in layers for part in (layer, nn.Tanh() if autoencoder else nn.ReLU())]
        return nn.Sequential(*parts[:-1])

    def loss(model: nn.Module, at: Tensor | slice) -> Tensor:
        return F.mse_loss(model(x[at]), x[at]) if autoencoder else F.cross_entropy(model(x[at]), y[at])

    said = "digits, deep autoencoder, to a squared error of 0.016" if autoencoder else "digits, MLP, to a loss of 0.02"
    return Problem(f"{said} on the training data", make, loss, len(x), 128, 0.016 if autoencoder else 0.02, 300)


def letters() -> Problem:
    """LetterRecognition: an MLP to 95 % of held-out letters; R's mlbench, read by rdata once, kept beside it."""
    kept = DATA / "letters.npz"
    if not kept.exists():
        import rdata

        table = rdata.read_rda(DATA / "LetterRecognition.rda")["LetterRecognition"]
        np.savez_compressed(
            kept, x=table.iloc[:, 1:].to_numpy().astype("uint8"), y=table.iloc[:, 0].cat.codes.to_numpy()
        )
    data = np.load(kept)
    x, y = torch.tensor(data["x"]).float() / 7.5 - 1, torch.tensor(data["y"]).long()
    num = 16_000

    def loss(model: nn.Module, at: Tensor | slice) -> Tensor:
        return F.cross_entropy(model(x[:num][at]), y[:num][at])

    def errors(model: nn.Module) -> Tensor:
        return (model(x[num:]).argmax(1) != y[num:]).float().mean()

    said = "LetterRecognition, MLP of two layers of 128, to 95 % of 4,000 held-out letters"
    make = _nets(16, 128, 128, 26)
    return Problem(said, make, loss, num, 128, 0.05, 2000, look=50, judge=errors, batches=True)


def text() -> Problem:
    """Characters of Python's own help after the eight before them (Bengio et al. 2003), to fixed bits per character."""
    from pydoc_data.topics import topics

    data = np.frombuffer("".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore"), dtype=np.uint8)
    known, codes = np.unique(data, return_inverse=True)
    rows = torch.tensor(codes).unfold(0, 9, 1)
    num, held = len(rows) * 19 // 20, len(rows) // 20

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            table, first, last = nn.Embedding(len(known), 16), nn.Linear(128, 128), nn.Linear(128, len(known))
        return nn.Sequential(table, nn.Flatten(), first, nn.ReLU(), last)

    def loss(model: nn.Module, at: Tensor | slice) -> Tensor:
        some = rows[:num][at]
        return F.cross_entropy(model(some[:, :8]), some[:, 8])

    def bits(model: nn.Module) -> Tensor:
        some = rows[-held:][::4]
        return F.cross_entropy(model(some[:, :8]), some[:, 8]) / math.log(2)

    said = f"Python's help, characters after the eight before, MLP, to {BITS} bits a held-out character"
    return Problem(said, make, loss, num, 256, BITS, 800, look=25, judge=bits, batches=True)


def _nets(*widths: int) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*parts[:-1])

    return make


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "cancer": cancer,
    "digits": lambda: digits(autoencoder=False),
    "autoencoder": lambda: digits(autoencoder=True),
    "letters": letters,
    "text": text,
}


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
        if math.isnan(lowest):
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
    """The multiple with the lowest median of gradients, and its gradients and seconds by seed; None if nothing ran."""
    found = []
    for multiple in MULTIPLES:
        start = f"{problem} {name} {multiple:g} "
        runs = [value for key, value in cells.items() if key.startswith(start)]
        if runs:
            found.append((multiple, [run[0] for run in runs], [run[1] for run in runs]))
    return min(found, key=lambda one: (statistics.median(one[1]), statistics.median(one[2]))) if found else None


def seeds_of(cells: Cells, problem: str) -> int:
    return max(int(key.split()[-1]) for key in cells if key.startswith(f"{problem} ")) + 1


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
        lines.append(f"* {problem}: {one.said}; {most}.")
    multiples = ", ".join(f"{multiple:g}" for multiple in MULTIPLES)
    lines += [
        "",
        f"Medians over the seeds of gradients and processor seconds, at the best of the multiples {multiples} of ",
    ]
    lines[-1] += "the default rate; a run that misses is infinite. Methods on all data take larger gradients: compare "
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
    lines += ["", f"Not run here: {missing or 'none of the script'}; Fashion-MNIST and Austen, which are too long for "]
    lines[-1] += (
        "this table. Methods on all data are not run on letters and text, and count as missed there: one of their "
    )
    lines[-1] += "gradients is of all samples."
    return "\n".join(lines) + "\n"


def plot(ratios: dict[str, list[float]], path: Path) -> bool:
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "trimtab"
    figure, axes = pyplot.subplots(figsize=(8, 5))
    solved: dict[tuple[float, ...], Any] = {}
    for index, (name, values) in enumerate(ratios.items()):
        ends = [1.0, *(value for value in values if math.isfinite(value)), 1000.0]
        heights = [sum(value <= end for value in values) / len(values) for end in ends]
        style = ("-", "--", ":", "-.")[index % 4]
        solved[name,] = axes.step(ends, heights, where="post", linestyle=style, label=name)
    axes.set(xscale="log", xlim=(1, 1000), ylim=(-0.02, 1.02))
    axes.set(xlabel="processor seconds over the fastest one's", ylabel="share of the problems solved")
    axes.legend(fontsize="x-small", ncol=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    return True


def write(cells: Cells) -> None:
    problems = [place for place in PROBLEMS if all(best_of(cells, place, name) for name in OPTIMIZERS)]
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
    parser.add_argument("--found", type=Path, default=Path("optimizers.json"))
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--report-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells: Cells = json.loads(given.found.read_text()) if given.found.exists() else {}
    for place in given.problems if not given.report_only else ():
        problem = PROBLEMS[place]()
        for name in OPTIMIZERS:
            for multiple in MULTIPLES:
                for seed in range(1 if problem.one_seed else given.seeds):
                    key = f"{place} {name} {multiple:g} {seed}"
                    if key not in cells:
                        cells[key] = run(problem, settings_of(name, multiple), seed)
            given.found.write_text(json.dumps(cells))
            print(place, name, best_of(cells, place, name), flush=True)
    write(cells)


if __name__ == "__main__":
    main()
