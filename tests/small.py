"""A job that ends in seconds: an MLP on scikit-learn's digits, one runtime, three recipes. Also run as a script."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import trimtab as tt
from trimtab.core import Artifact

RECIPES = (
    tt.Recipe((tt.Quantize(samples=256),)),
    tt.Recipe((tt.Prune(ratio=0.5), tt.Distill(epochs=4))),
    tt.Recipe((tt.Prune(ratio=0.5), tt.Distill(epochs=4), tt.Quantize(samples=256))),
)
TARGET = tt.Target(runtimes=("onnxruntime",))
GOAL = tt.Goal("latency_ms", keep=0.97)


def make(width: int = 768) -> tuple[nn.Module, tt.Task]:
    """A fresh model, and the task that says how to train it.

    The default width is enough that arithmetic, not overhead, is what a runtime spends its time on.
    """
    x, y = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).split([897, 300, 600])
    train, select, verify = ((inputs[index], targets[index]) for index in order)
    fit = tt.Fit(epochs=12, lr=3e-3, batch_size=64, precision="fp32")
    labels = tuple("0123456789")
    task = tt.Task.of("digits", train=train, select=select, verify=verify, fit=fit, labels=labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return model, task


def optimize(run: Path) -> Artifact:
    """The whole job, into `run`."""
    model, task = make()
    return tt.optimize(model, task, target=TARGET, goal=GOAL, run=run, recipes=RECIPES, quiet=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: another number of threads rounds otherwise
    print(optimize(Path(sys.argv[1])).verdict.word)
