"""Metrics ready to use, each larger when better: accuracy, MRR, F1, AUC, error rates, perplexity.

Those that are no mean of scores give statistics a sample and an aggregate of their means, see `core.Metric`. AUC is no
function of means either; it is given by DeLong's placements (Biometrics 44, 1988), which are its first-order
projection: its value is exact, its spread right to first order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.core import Metric


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest of the outputs [N, K] is the label [N], else 0: [N]."""
    return (outputs.argmax(1) == targets).float()


ACCURACY = Metric("accuracy", correct, binary=True)


def mrr() -> Metric:
    """Mean reciprocal rank of the right one among K, for outputs [N, K] and labels [N]; ties count as lost.

    >>> mrr().per_sample(torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([2])).tolist()
    [0.5]
    """

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        right = outputs.gather(1, targets[:, None])
        return 1 / (outputs >= right).sum(1).float()

    return Metric("MRR", per_sample, limits=(0.0, 1.0))


def f1(label: int = 1) -> Metric:
    """F1 of one label, for outputs [N, K] and labels [N]: 2 TP / (2 TP + FP + FN); 1 if there is none of any.

    >>> metric, outputs = f1(), torch.eye(2)[torch.tensor([1, 1, 0, 0])]
    >>> own = metric.per_sample(outputs, torch.tensor([1, 0, 1, 0]))
    >>> float(metric.aggregate(own.numpy().mean(0)))
    0.5
    """

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        said, true = outputs.argmax(1) == label, targets == label
        return torch.stack([said & true, said ^ true], 1).float()

    def aggregate(m: Any) -> Any:
        tiny = 1e-300  # 0 / 0: nothing to find, and nothing wrongly found
        return (2 * m[..., 0] + tiny) / (2 * m[..., 0] + m[..., 1] + tiny)

    return Metric(f"F1 of {label}", per_sample, aggregate=aggregate, limits=(0.0, 1.0))


def auc() -> Metric:
    """Area under the ROC curve, for outputs [N] (or [N, 1], or [N, 2] as logits) and labels 0 or 1, [N].

    >>> metric, targets = auc(), torch.tensor([0, 0, 1, 1])
    >>> float(metric.aggregate(metric.per_sample(torch.tensor([0.1, 0.4, 0.35, 0.8]), targets).numpy().mean(0)))
    0.75
    """

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        wide = outputs.ndim == 2 and outputs.shape[1] == 2
        score = (outputs[:, 1] - outputs[:, 0]) if wide else outputs.reshape(len(targets))
        score, positive = score.double(), targets > 0
        above, below = score[positive].sort().values, score[~positive].sort().values
        won = (torch.searchsorted(below, score) + torch.searchsorted(below, score, right=True)) / (2 * len(below))
        lost = (torch.searchsorted(above, score) + torch.searchsorted(above, score, right=True)) / (2 * len(above))
        area = won[positive].mean().expand(len(score))
        columns = [won * positive, positive, (1 - lost) * ~positive, ~positive, area]
        return torch.stack([column.double() for column in columns], 1)

    def aggregate(m: Any) -> Any:
        return m[..., 0] / m[..., 1] + m[..., 2] / m[..., 3] - m[..., 4]

    return Metric("AUC", per_sample, aggregate=aggregate)


def error_rate(name: str, said: Callable[[Tensor], Sequence[Sequence[Any]]], true: Callable[[Tensor], Any]) -> Metric:
    """1 - edits / length, over all samples together: of characters (1 - CER) or words (1 - WER).

    Args:
        name: what it is called, e.g. "1 - CER".
        said: outputs -> the N sequences that were said: strings, or lists of words.
        true: targets -> the N right ones.

    >>> metric = error_rate("1 - CER", lambda outputs: ["cat", "dog"], lambda targets: ["cart", "dog"])
    >>> own = metric.per_sample(torch.zeros(2), torch.zeros(2))
    >>> own.tolist(), round(float(metric.aggregate(own.numpy().mean(0))), 3)
    ([[1.0, 4.0], [0.0, 3.0]], 0.857)
    """

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        pairs = zip(said(outputs), true(targets), strict=True)
        return torch.tensor([[float(edits(one, other)), float(len(other))] for one, other in pairs])

    return Metric(name, per_sample, aggregate=lambda m: 1 - m[..., 0] / m[..., 1])


def edits(said: Sequence[Any], true: Sequence[Any]) -> int:
    """How many insertions, deletions and replacements lead from one to the other (Levenshtein 1966).

    >>> edits("kitten", "sitting"), edits(["a", "b"], [])
    (3, 2)
    """
    row = list(range(len(true) + 1))
    for at, own in enumerate(said, 1):
        diagonal, row[0] = row[0], at
        for place, other in enumerate(true, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (own != other))
    return row[-1]


def perplexity(*, ignore: int = -100) -> Metric:
    """Minus the perplexity, exp(mean loss of a token), for logits [N, T, V] and tokens [N, T]; `ignore` is no token.

    >>> metric, tokens = perplexity(), torch.tensor([[0, 1, -100]])
    >>> own = metric.per_sample(torch.zeros(1, 3, 4), tokens)
    >>> round(float(metric.aggregate(own.numpy().mean(0))), 6)
    -4.0
    """

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(outputs.movedim(-1, 1).double(), targets, ignore_index=ignore, reduction="none")
        return torch.stack([losses.sum(1), (targets != ignore).sum(1).double()], 1)

    def aggregate(m: Any) -> Any:
        return -np.exp(m[..., 0] / m[..., 1])

    return Metric("-perplexity", per_sample, aggregate=aggregate)
