"""The ready metrics against scikit-learn's, and what each gives where there is nothing to find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from trimtab.core import Metric
from trimtab.measure.quality import scores, value
from trimtab.tasks.metrics import auc, error_rate, f1, mrr, perplexity


def of(metric: Metric, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return value(metric, scores(metric, outputs, targets))


def drawn(num: int = 200, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    targets = torch.from_numpy(rng.integers(classes, size=num))
    outputs = torch.from_numpy(rng.normal(0, 1, (num, classes)).astype("float32"))
    return outputs + torch.nn.functional.one_hot(targets, classes), targets


def test_f1_is_scikit_learns() -> None:
    outputs, targets = drawn()
    assert of(f1(2), outputs, targets) == pytest.approx(f1_score(targets == 2, outputs.argmax(1) == 2))
    none = torch.zeros(5, dtype=torch.long)
    assert of(f1(1), torch.eye(2)[none], none) == 1


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_scikit_learns(ties: bool) -> None:
    outputs, targets = drawn(classes=2)
    score = (outputs[:, 1] - outputs[:, 0]).double()
    score = score.round() if ties else score
    expected = roc_auc_score(targets, score)
    assert of(auc(), score, targets) == pytest.approx(expected)
    assert of(auc(), torch.stack([-score / 2, score / 2], 1), targets) == pytest.approx(expected)


def test_auc_statistics_have_delongs_variance() -> None:
    outputs, targets = drawn(classes=2)
    score = (outputs[:, 1] - outputs[:, 0]).double()
    above, below = score[targets > 0], score[targets == 0]
    won = (above[:, None] > below).double()
    expected = won.mean(1).var() / len(above) + won.mean(0).var() / len(below)
    own = scores(auc(), score, targets)
    rng = np.random.default_rng(0)
    means = np.array([own[rng.integers(len(own), size=len(own))].mean(0) for _ in range(2000)])
    spread = auc().aggregate(means).var()  # type: ignore[misc]
    assert spread == pytest.approx(float(expected), rel=0.12)


def test_reciprocal_rank_counts_ties_as_lost() -> None:
    outputs = torch.tensor([[3.0, 2, 1], [3, 2, 1], [1, 1, 1]])
    assert scores(mrr(), outputs, torch.tensor([0, 2, 1])).tolist() == pytest.approx([1, 1 / 3, 1 / 3])


def test_error_rate_weighs_samples_by_their_length() -> None:
    said, true = [["a", "b", "c"], []], [["a", "x", "c", "d"], ["z"]]
    metric = error_rate("1 - WER", lambda outputs: said, lambda targets: true)
    assert of(metric, torch.zeros(2), torch.zeros(2)) == pytest.approx(1 - 3 / 5)


def test_perplexity_weighs_texts_by_their_tokens_and_leaves_out_what_is_ignored() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 1, (4, 6, 5)))
    tokens = torch.from_numpy(rng.integers(5, size=(4, 6)))
    tokens[1, 3:] = -100
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 5), tokens.reshape(-1))
    assert of(perplexity(), logits, tokens) == pytest.approx(-float(loss.exp()))
