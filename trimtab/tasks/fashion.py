"""The built-in task: which of ten garments is on a 28 x 28 picture.

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), a subset: 10,000 training images, and 2,000 to choose by and 4,000 to
judge by, both from the official test set; no image occurs twice. MIT licence, beside this file.
"""

from __future__ import annotations

import hashlib
import io
from importlib import resources

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.core import Fit, Task
from trimtab.errors import TaskError
from trimtab.tasks.make import task_from_pairs

LABELS = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SHA256 = "32750cf072fc3d1560ca8f9b8d6cf4ce2662b0913937275c39b0a4d8d80f9505"
# of the training images, in units where 255 is 1
MEAN, STD = 0.286, 0.353
# chosen on `select` among 0, 1 and 2; mirroring lost accuracy within the same epochs
MAX_SHIFT = 1


class FashionNet(nn.Module):
    """[B, 1, 28, 28] -> [B, 10]: five convolutions with BatchNorm, global pooling, linear; 22 M MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv(1, 32, stride=1),
            *conv(32, 64, stride=2),
            *conv(64, 64, stride=1),
            *conv(64, 128, stride=2),
            *conv(128, 128, stride=1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))  # type: ignore[no-any-return]


def conv(c_in: int, c_out: int, *, stride: int) -> tuple[nn.Module, ...]:
    """A 3 x 3 convolution with BatchNorm and ReLU."""
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()


def fashion() -> tuple[nn.Module, Task]:
    """The untrained network, freshly seeded, and its task.

    Raises:
        TaskError: the shipped data file was damaged.
    """
    arrays = read_data()
    pairs = {
        split: (normalised(arrays[f"{split}_images"]), arrays[f"{split}_labels"])
        for split in ("train", "select", "verify")
    }
    fit = Fit(epochs=6, lr=6e-3, batch_size=100, weight_decay=0.05, warmup=0.1)
    task = task_from_pairs("fashion", **pairs, fit=fit, augment=shifted, labels=LABELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FashionNet(), task


def read_data() -> dict[str, np.ndarray]:
    """The shipped arrays: images [N, 28, 28] and labels [N] of each split, uint8.

    Raises:
        TaskError: the file is not the one that was shipped.
    """
    return arrays_of(resources.files("trimtab.tasks").joinpath("fashion_mnist.npz").read_bytes())


def arrays_of(data: bytes) -> dict[str, np.ndarray]:
    """The arrays in the bytes of the data file, if they are the right ones."""
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise TaskError(
            f"The data file trimtab/tasks/fashion_mnist.npz is damaged: its SHA-256 is {found}, and {SHA256} was "
            "expected. Install trimtab again, or run scripts/make_fashion_data.py."
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)


def normalised(images: np.ndarray) -> Tensor:
    """uint8 images [N, 28, 28] as the network takes them: float32 [N, 1, 28, 28], mean 0 and deviation 1."""
    return (torch.from_numpy(images).float() / 255 - MEAN)[:, None] / STD


def shifted(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Shift each image [B, C, H, W] by up to a pixel in both directions."""
    (x,) = inputs
    num, _, height, width = x.shape
    padded = F.pad(x, (MAX_SHIFT,) * 4, value=-MEAN / STD)
    shift = torch.randint(2 * MAX_SHIFT + 1, (2, num, 1), generator=generator)
    rows, cols = torch.arange(height) + shift[0], torch.arange(width) + shift[1]
    # Advanced indices around the channel's slice put the channel last.
    picked = padded[torch.arange(num)[:, None, None], :, rows[:, :, None], cols[:, None, :]]
    return (picked.movedim(-1, 1),)
