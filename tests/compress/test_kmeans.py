"""K-means on a line against the best partition, found by trying all of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from trimtab.compress.kmeans import kmeans, nearest


def best_error(values: Tensor, num: int, weights: Tensor) -> float:
    """Of all partitions of the sorted numbers into `num` runs."""
    ordered, order = values.sort()
    mass, found = weights[order], []
    for cuts in itertools.combinations(range(1, len(values)), num - 1):
        runs = itertools.pairwise((0, *cuts, len(values)))
        total = 0.0
        for first, last in runs:
            x, w = ordered[first:last], mass[first:last]
            total += float((w * (x - (w * x).sum() / w.sum()) ** 2).sum())
        found.append(total)
    return min(found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num", [2, 3, 4])
def test_it_is_near_the_best_partition(seed: int, num: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 14, generator=generator).double()
    weights = torch.rand(3, 14, generator=generator).double()
    centroids = kmeans(values, num, weights)
    errors = (weights * (values - centroids.gather(1, nearest(values, centroids))) ** 2).sum(1)
    assert (centroids.diff(dim=1) >= 0).all()
    for problem in range(3):
        best = best_error(values[problem], num, weights[problem])
        assert best - 1e-12 <= float(errors[problem]) <= 2.5 * best


def test_sixteen_levels_of_a_normal_distribution_are_lloyds() -> None:
    values = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0)).double()
    centroids = kmeans(values, 16)
    error = float(((values - centroids.gather(1, nearest(values, centroids))) ** 2).mean())
    assert 0.0093 < error < 0.0100, "Max (1960), table I: 0.009497"


def test_what_counts_for_nothing_moves_nothing() -> None:
    values = torch.tensor([[0.0, 0.0, 1.0, 1.2, 9.0, 9.2]]).double()
    weights = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]]).double()
    assert torch.allclose(kmeans(values, 2, weights), torch.tensor([[1.1, 9.1]]).double(), atol=1e-6)


def test_equal_numbers_and_as_many_centroids_as_numbers() -> None:
    same = torch.full((1, 5), 2.5).double()
    assert torch.allclose(kmeans(same, 3), torch.full((1, 3), 2.5).double())
    values = torch.tensor([[3.0, 1.0, 2.0]]).double()
    assert torch.equal(kmeans(values, 3), torch.tensor([[1.0, 2.0, 3.0]]).double())
