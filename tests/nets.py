"""Small networks that many tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """[B, 16] -> [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvNet(nn.Module):
    """[B, 1, 12, 12] -> [B, 5]: conv, BatchNorm, pooling, a flatten that keeps 3 x 3 positions, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(12 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(torch.flatten(self.features(x), 1)))


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.depthwise = nn.Conv2d(c_out, c_out, 3, padding=1, groups=c_out, bias=False)
        self.grouped = nn.Conv2d(c_out, c_out, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.short = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.short = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.grouped(self.depthwise(y)))
        return torch.relu(y + self.short(x))


class ResNetLike(nn.Module):
    """[B, 3, 16, 16] -> [B, 5]: residual adds, strided, grouped and depthwise convolution, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class Twins(nn.Module):
    """[B, 16] -> [B, 5]: four residual blocks of the same shapes, the third nearly the second."""

    def __init__(self) -> None:
        super().__init__()
        halves = [[nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)] for _ in range(4)]
        self.blocks = nn.ModuleList(nn.Sequential(*half) for half in halves)
        with torch.no_grad():
            for mine, like in zip(self.blocks[2].parameters(), self.blocks[1].parameters(), strict=True):
                mine.copy_(like + 0.02 * torch.randn_like(like))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class EncoderBlock(nn.Module):
    """[B, 6, 16] -> [B, 6, 16]: attention and a feed-forward net, each with a residual and a norm after it."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        parts = (one(x).view(b, t, self.heads, -1).transpose(1, 2) for one in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(b, t, d)
        x = self.first(x + self.mix(mixed))
        return self.last(x + self.narrow(nn.functional.gelu(self.wide(x))))


NETS = {"mlp": (MLP, (16,)), "conv": (ConvNet, (1, 12, 12)), "resnet": (ResNetLike, (3, 16, 16))}

# Of one kind: not run through every test.
OTHERS = {"twins": (Twins, (16,)), "encoder": (EncoderBlock, (6, 16))}


def net(name: str, *, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A seeded network with BatchNorm statistics that are not trivial, in eval mode, and 4 example inputs."""
    torch.manual_seed(seed)
    make, shape = {**NETS, **OTHERS}[name]
    module = make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval(), torch.randn(4, *shape)
