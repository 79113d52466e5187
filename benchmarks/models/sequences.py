"""What models of sequences are judged by: letters, words, frames."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def frame_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each frame or token: logits [B, T, K], classes [B, T]."""
    return F.cross_entropy(outputs.transpose(1, 2), targets)


def frames_alike(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of frames or tokens whose likeliest class is the target: [B]."""
    return (outputs.argmax(2) == targets).float().mean(1)


def error_rate(read: list[str] | list[list[str]], wanted: list[str] | list[list[str]]) -> float:
    """Edits over what was written, in letters of texts or in words of lists.

    >>> error_rate(["cat", "dgo"], ["cat", "dog"])
    0.3333333333333333
    """
    return sum(edits(one, other) for one, other in zip(read, wanted, strict=True)) / sum(map(len, wanted))


def edits(one: list[str] | str, other: list[str] | str) -> int:
    """Levenshtein's distance.

    >>> edits("kitten", "sitting"), edits(["to", "be"], ["be"])
    (3, 1)
    """
    row = list(range(len(other) + 1))
    for i, first in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, second in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (first != second))
    return row[-1]
