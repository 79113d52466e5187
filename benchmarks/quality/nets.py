"""The two nets that are pruned, and how they are trained; a peer's environment can build them, too.

The ResNet has the blocks and widths of ResNet-20 for CIFAR (He et al. 2016): three stages of three blocks of two
convolutions, 16, 32 and 64 channels wide. Differs: one input channel, a stem of stride 2 because pictures are 28 x 28
and a core has minutes, and 1 x 1 convolutions on the shortcuts that change width, where the paper pads with zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.core import Fit
from trimtab.tasks.fashion import LABELS, FashionNet


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """[B, 1, 28, 28] -> [B, 10]; 0.27 M parameters, 8 M MACs."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), repeats: int = 3) -> None:
        super().__init__()
        stem = nn.Conv2d(1, widths[0], 3, 2, 1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks, width = [], widths[0]
        for stage, out in enumerate(widths):
            for place in range(repeats):
                blocks.append(Block(width, out, stride=2 if stage and not place else 1))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {"FashionNet": FashionNet, "ResNet-20": ResNet20}
# fp32 whatever the machine: bf16 would be another experiment where a CPU has it
FITS = {
    "FashionNet": Fit(epochs=2, lr=5e-3, batch_size=64, weight_decay=0.05, precision="fp32"),
    "ResNet-20": Fit(epochs=2, lr=5e-3, batch_size=64, weight_decay=0.05, precision="fp32"),
}
RECOVERY = Fit(epochs=1, lr=2e-3, batch_size=64, weight_decay=0.05, precision="fp32")


def fresh(net: str, seed: int) -> nn.Module:
    """The untrained net of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[net]()


def resized(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """`module` with the weights of a smaller one of the same class; convolutions without groups, norms, linears."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            for key, old in [*part.named_parameters(), *part.named_buffers()]:
                new = state[f"{name}.{key}"]
                setattr(part, key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    return module.eval()
