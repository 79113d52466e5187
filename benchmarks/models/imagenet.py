"""The task and the quality of a classifier of ImageNet, without ImageNet: photos that a drawing program ships.

The task needs no label: on pictures that are not judged, the target is a class drawn from the original's own
probabilities, so that a mean squared gradient is the Fisher information of the model at its weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.fetch import CACHE
from models.loaded import Loaded
from models.photos import IMAGENET, Scale, labelled, others, prepared, scattered
from trimtab.core import Task
from trimtab.train.loop import predict

NUM_CALIBRATION, NUM_SELECT, BATCH = 256, 64, 32


def judged_by_photos(name: str, module: nn.Module, cache: Path = CACHE, *, scale: Scale = IMAGENET) -> Loaded:
    """The model, its task and its quality: top-1 and top-5 on the labelled photos, agreement with the original.

    Args:
        name: what the model is called.
        module: images [B, 3, 224, 224] -> logits [B, 1000], in ImageNet's order.
        cache: where the pictures are fetched to.
        scale: how the module takes pixels.

    Raises:
        FetchError: the pictures cannot be had, or are not those that were pinned.
    """
    photos, accepted = labelled(cache)
    images = torch.stack([prepared(photo, scale) for photo in photos])
    select = torch.stack([prepared(path, scale) for path in selecting(cache)])
    learns = learning(cache)
    train = torch.stack(
        [scattered(learns[place % len(learns)], scale, seed=place) for place in range(NUM_CALIBRATION)],
    )
    given = {"train": train, "select": select, "photos": images}
    answers = {split: predict(module, x, batch_size=BATCH) for split, x in given.items()}
    drawn = torch.multinomial(answers["train"].softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    task = Task.of(
        f"answer as the original {name}",
        train=(train, drawn),
        select=(select, answers["select"].argmax(1)),
        verify=(images, answers["photos"].argmax(1)),
    )
    original = torch.cat([answers["photos"], answers["select"]]).argmax(1)

    def quality(model: nn.Module) -> dict[str, float]:
        outputs = predict(model, torch.cat([images, select]), batch_size=BATCH)
        agreement = float((outputs.argmax(1) == original).double().mean())
        right = {f"top-{k}": accuracy(outputs[: len(images)], accepted, top=k) for k in (1, 5)}
        return {**right, "agreement": agreement}

    words = f"{len(photos)} labelled photos, {len(photos) + NUM_SELECT} pictures for the agreement with the original"
    return Loaded(name, module, task, quality, words)


def selecting(cache: Path = CACHE) -> list[Path]:
    """The pictures without a label that agreement is judged on, too."""
    rest = others(cache)
    return rest[:: _every(rest)][:NUM_SELECT]


def learning(cache: Path = CACHE) -> list[Path]:
    """The pictures without a label that nothing is judged on."""
    rest = others(cache)
    return [path for place, path in enumerate(rest) if place % _every(rest)]


def _every(rest: list[Path]) -> int:
    # Every so-and-so-many-th is judged by, so that both halves hold all kinds of pictures.
    return len(rest) // NUM_SELECT


def accuracy(outputs: Tensor, accepted: list[frozenset[int]], *, top: int = 1) -> float:
    """The share of outputs [N, K] that have, in their `top` largest, one among the accepted classes of its sample."""
    best = outputs.topk(top, dim=1).indices.tolist()
    right = [not good.isdisjoint(classes) for classes, good in zip(best, accepted, strict=True)]
    return sum(right) / len(right)
