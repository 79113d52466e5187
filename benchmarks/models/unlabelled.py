"""Pictures without a label, to learn from a classifier of ImageNet: drawings, photos and textures that packages carry.

The stamps that nothing is judged on, each at two places and sizes on white, and crops of wallpapers. GPL-2 and
CC-BY-SA: fetched, never committed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.fetch import CACHE, Package, fetch
from models.imagenet import learning
from models.photos import IMAGENET, SIDE, Scale, scattered

WALLPAPERS = Package(
    "mate-backgrounds",
    "1.26.0-1",
    "mate-backgrounds_1.26.0-1_all.deb",
    "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
)
FOLDERS = ("abstract", "nature")
PER_STAMP, PER_WALLPAPER, LARGEST_FILE = 2, 12, 3_000_000
# of the area that a crop covers, of the chance of each change, and of how far colours go
LEAST, CHANCE, COLOUR = 0.35, 0.5, 0.3


def views(cache: Path = CACHE, scale: Scale = IMAGENET) -> Tensor:
    """All of them, [N, 3, 224, 224], in an order that the seed alone decides.

    Raises:
        FetchError: the packages cannot be had, or are not those that were pinned.
    """
    stamps = learning(cache)
    found = [scattered(path, scale, seed=1000 + at) for at, path in enumerate(stamps * PER_STAMP)]
    folder = fetch(WALLPAPERS, cache) / "usr/share/backgrounds/mate"
    files = sorted(path for name in FOLDERS for path in (folder / name).iterdir() if path.suffix in (".jpg", ".png"))
    for at, path in enumerate(file for file in files if file.stat().st_size < LARGEST_FILE):
        found += crops(Image.open(path).convert("RGB"), scale, num=PER_WALLPAPER, seed=at)
    return torch.stack(found)


def crops(image: Image.Image, scale: Scale, *, num: int, seed: int) -> list[Tensor]:
    """Squares of a fifth of the picture's shorter side or more, at random places: [3, 224, 224] each."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        side = int(min(image.size) * rng.uniform(0.2, 1.0))
        left, top = (int(rng.integers(0, size - side + 1)) for size in image.size)
        box = (left, top, left + side, top + side)
        found.append(scale(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)))
    return found


def varied(inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Crop and stretch each image, mirror it, shift its colours, and mix some with others of the batch."""
    (x,) = inputs
    num = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(num, *shape, generator=generator)

    size = uniform(LEAST, 1.0).sqrt()
    aspect = uniform(-0.25, 0.25).exp()
    width, height = (size * aspect).clamp(max=1), (size / aspect).clamp(max=1)
    mirror = torch.where(uniform(0, 1) < CHANCE, -1.0, 1.0)
    zero = torch.zeros(num)
    across = torch.stack([width * mirror, zero, uniform(-1, 1) * (1 - width)], dim=1)
    down = torch.stack([zero, height, uniform(-1, 1) * (1 - height)], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    x = x * uniform(1 - COLOUR, 1 + COLOUR, 1, 1, 1) + uniform(-COLOUR, COLOUR, 3, 1, 1)
    mixed = torch.where(uniform(0, 1) < CHANCE, uniform(0.5, 1.0), 1.0)[:, None, None, None]
    return (mixed * x + (1 - mixed) * x.flip(0),)
