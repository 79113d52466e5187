"""A task that trains in milliseconds, and a process that can be killed while it does."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from trimtab.core import Fit, Task
from trimtab.train.loop import fit

FIT = Fit(epochs=4, lr=1e-2, batch_size=16, precision="fp32", seed=3)


def noisy(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    return (inputs[0] + 0.1 * torch.randn(inputs[0].shape, generator=generator),)


def toy_task(*, settings: Fit = FIT, seed: int = 0) -> Task:
    """Which of 5 fixed directions a point [1, 8, 8] was drawn around."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 1, 8, 8, generator=generator)
    labels = torch.randint(5, (250,), generator=generator)
    x = centres[labels] + 0.8 * torch.randn(250, 1, 8, 8, generator=generator)
    cut = {"train": slice(0, 100), "select": slice(100, 150), "verify": slice(150, 250)}
    return Task.of("toy", **{name: (x[at], labels[at]) for name, at in cut.items()}, fit=settings, augment=noisy)


def toy_net(*, seed: int = 0, width: int = 8) -> nn.Module:
    """[B, 1, 8, 8] -> [B, 5], with BatchNorm's buffers and Dropout's randomness."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(width * 64, 5),
        )


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether all parameters and buffers are equal, bit for bit."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def main(checkpoint: str) -> None:
    """Train slowly enough to be killed, telling each step."""

    def report(done: int, total: int, text: str) -> None:
        print(done, total, text, flush=True)
        time.sleep(0.1)

    torch.set_num_threads(1)
    fit(toy_net(), toy_task(), report=report, checkpoint=Path(checkpoint))


if __name__ == "__main__":
    main(sys.argv[1])
