"""Whether our optimizers learn as the public implementations of the same papers do: both losses, step by step.

    python -m venv /tmp/rivals && /tmp/rivals/bin/pip install torch==2.13.0 scikit-learn matplotlib
    /tmp/rivals/bin/pip install --no-deps schedulefree prodigyopt lion-pytorch pytorch-optimizer heavyball opt-einsum
    PYTHONPATH=. /tmp/rivals/bin/python benchmarks/public_curves.py

The digits autoencoder of problems.py in fp64, where equal formulas stay equal for hundreds of steps: the same first
weights, the same batches, the same settings, no decay (ours leaves biases out of it). What differs by intention is in
the column on the right. Writes benchmarks/results/public_curves_cpu_DATE.md and docs/benchmarks/public_curves.svg.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from problems import digits
from torch import nn

from trimtab.measure.machine import stamp, versions
from trimtab.optim.base import Optimizer
from trimtab.optim.lion import Lion
from trimtab.optim.muon import Muon, hidden_matrices
from trimtab.optim.prodigy import Prodigy
from trimtab.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from trimtab.optim.soap import SOAP

ROOT = Path(__file__).parent.parent
STEPS, BATCH, SEED = 300, 128, 0
SHOWN = (1, 10, 100, STEPS)
PACKAGES = ("torch", "schedulefree", "prodigyopt", "lion-pytorch", "pytorch-optimizer", "heavyball")
Build = Callable[[nn.Module], list[Any]]


@dataclass(frozen=True)
class Pair:
    """Ours, a public implementation with the same settings, and in what the two mean to differ."""

    name: str
    ours: Optimizer
    theirs: str
    public: Build
    differs: str = "nothing"


def made(module: str, name: str, **settings: Any) -> Build:
    """One optimizer of all parameters."""
    return lambda model: [getattr(import_module(module), name)(list(model.parameters()), **settings)]


def muon_and_adamw(lr: float) -> Build:
    """Torch's Muon for the matrices that are hidden, and AdamW for the rest, which is for its user to say."""

    def build(model: nn.Module) -> list[Any]:
        hidden = hidden_matrices(model)
        sides = [[p for name, p in model.named_parameters() if (name in hidden) is inside] for inside in (True, False)]
        muon = torch.optim.Muon(sides[0], lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(sides[1], lr=lr, betas=(0.9, 0.999), weight_decay=0.0)]

    return build


def heavy(name: str, **settings: Any) -> Build:
    """One of heavyball's, without compilation and clipping."""

    def build(model: nn.Module) -> list[Any]:
        package = import_module("heavyball")
        package.utils.compile_mode = None
        plain = {"compile_step": False, "storage_dtype": "float64", **settings}
        return [getattr(package, name)(list(model.parameters()), **plain)]

    return build


FREE = {"lr": 2.5e-3, "betas": (0.9, 0.999), "weight_decay": 0.0}
SOAPY = {"lr": 3e-3, "betas": (0.95, 0.95), "weight_decay": 0.0}
NEW = "ours, as the paper, multiplies eps by the d before the step, theirs by the one after it"
FIRST = "how a basis begins and is turned is each program's own; so is the sign of an eigenvector"
PAIRS = (
    Pair(
        "schedule-free AdamW",
        ScheduleFreeAdamW(**FREE),
        "schedulefree AdamWScheduleFree",
        made("schedulefree", "AdamWScheduleFree", **FREE),
    ),
    Pair(
        "schedule-free AdamW",
        ScheduleFreeAdamW(**FREE),
        "heavyball SFAdamW",
        heavy("SFAdamW", eps=1e-8, **FREE),
    ),
    Pair(
        "schedule-free SGD",
        ScheduleFreeSGD(lr=1.0, weight_decay=0.0),
        "schedulefree SGDScheduleFree",
        made("schedulefree", "SGDScheduleFree", lr=1.0, momentum=0.9),
    ),
    Pair("Prodigy", Prodigy(weight_decay=0.0), "prodigyopt Prodigy", made("prodigyopt", "Prodigy"), NEW),
    Pair(
        "Prodigy, eps=1e-18",
        Prodigy(weight_decay=0.0, eps=1e-18),
        "prodigyopt Prodigy, eps=1e-18",
        made("prodigyopt", "Prodigy", eps=1e-18),
    ),
    Pair(
        "Lion",
        Lion(lr=3e-4, weight_decay=0.0),
        "lion-pytorch Lion",
        made("lion_pytorch", "Lion", lr=3e-4),
    ),
    Pair(
        "Muon",
        Muon(lr=3e-3, weight_decay=0.0),
        "torch Muon, AdamW beside it",
        muon_and_adamw(3e-3),
        "torch multiplies in bf16, ours in the weights' fp64",
    ),
    Pair(
        "SOAP",
        SOAP(weight_decay=0.0),
        "pytorch-optimizer SOAP",
        made("pytorch_optimizer", "SOAP", shampoo_beta=0.95, precondition_frequency=10, **SOAPY),
        FIRST,
    ),
    Pair(
        "SOAP",
        SOAP(weight_decay=0.0),
        "heavyball SOAP",
        heavy("SOAP", precondition_frequency=10, max_precond_dim=4096, use_precond_schedule=False, **SOAPY),
        FIRST,
    ),
)


def curve(build: Build) -> list[float]:
    """The loss on each batch before its step, and on all data at the end, in the mode that evaluates."""
    problem = digits(autoencoder=True, dtype=torch.float64)
    model = problem.make(SEED).double()
    optimizers = build(model)
    draw = torch.Generator().manual_seed(SEED)
    for one in optimizers:
        getattr(one, "train", lambda: None)()
    losses = []
    torch.set_default_dtype(torch.float64)
    try:
        for _ in range(STEPS):
            model.train()
            model.zero_grad()
            loss = problem.loss(model, torch.randint(problem.num, (BATCH,), generator=draw))
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            for one in optimizers:
                one.step()
        for one in optimizers:
            getattr(one, "eval", lambda: None)()
        with torch.no_grad():
            return [*losses, problem.loss(model.eval(), slice(None)).item()]
    finally:
        torch.set_default_dtype(torch.float32)


def apart(ours: list[float], theirs: list[float], steps: int) -> float:
    """The largest relative difference of the two losses in the first `steps`."""
    return max(abs(a - b) / b if math.isfinite(a) else math.inf for a, b in zip(ours[:steps], theirs, strict=False))


def table(found: list[tuple[Pair, list[float], list[float]]]) -> list[str]:
    """The results as lines of Markdown."""
    heads = [f"step {step}" for step in SHOWN]
    lines = [
        "# Our optimizers beside public implementations, step by step",
        "",
        f"{stamp()['cpu']}; {', '.join(f'{k} {v}' for k, v in versions(list(PACKAGES)).items())}. Digits autoencoder, "
        f"fp64, {BATCH} samples a batch, {STEPS} steps at a constant rate, no decay, seed {SEED}: the same weights to "
        "begin with and the same batches. Losses are of the batch, ours / theirs; differences are relative.",
        "",
        f"| ours | public | {' | '.join(heads)} | all data at the end | largest difference in 100 steps | in {STEPS} "
        "| meant to differ |",
        "|---" * (len(SHOWN) + 6) + "|",
    ]
    for pair, ours, theirs in found:
        told = [f"{ours[at - 1]:.5f} / {theirs[at - 1]:.5f}" for at in SHOWN]
        told += [f"{ours[-1]:.5f} / {theirs[-1]:.5f}"]
        told += [f"{apart(ours, theirs, steps):.1e}" for steps in (100, STEPS)]
        lines.append(f"| {pair.name} | {pair.theirs} | {' | '.join(told)} | {pair.differs} |")
    return lines


def plot(found: list[tuple[Pair, list[float], list[float]]], path: Path) -> None:
    """Both curves of each pair, smoothed over ten steps."""
    pyplot = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(3, 3, figsize=(10.5, 8), sharex=True, sharey=True, layout="constrained")
    for axis, (pair, ours, theirs) in zip(axes.flat, found, strict=True):
        for losses, style in ((theirs, {"lw": 4, "color": "#f3b173"}), (ours, {"lw": 1.2, "color": "#1f4e79"})):
            smooth = torch.tensor(losses[:STEPS]).unfold(0, 10, 1).mean(1)
            axis.semilogy(range(10, STEPS + 1), smooth, label="trimtab" if losses is ours else "public", **style)
        axis.set_title(f"{pair.name}\n{pair.theirs}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    figure.supxlabel("step")
    figure.supylabel("squared error of a batch, mean of ten steps")
    figure.savefig(path)


def main() -> None:
    torch.set_num_threads(1)
    found = []
    for pair in PAIRS:
        found.append((pair, curve(lambda model, pair=pair: [pair.ours.build(model)]), curve(pair.public)))  # type: ignore[misc]
        print("\n".join(table(found[-1:])[-1:]), flush=True)
    out = ROOT / "benchmarks" / "results" / f"public_curves_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(table(found)) + "\n")
    plot(found, ROOT / "docs" / "benchmarks" / "public_curves.svg")
    print(out)


if __name__ == "__main__":
    main()
