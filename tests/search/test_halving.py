"""Halving by two costs, and the area that points dominate."""

from __future__ import annotations

import itertools
import random

from trimtab.search.halving import dominates, front, hypervolume, promoted


def test_the_first_are_let_through_and_later_a_third() -> None:
    draw = random.Random(0)
    points = [(draw.random(), draw.random()) for _ in range(300)]
    kept = [promoted(own, points[:at]) for at, own in enumerate(points)]
    assert kept[0]
    assert 0.2 < sum(kept[100:]) / 200 < 0.5
    best = front(points)
    assert all(kept[at] for at in best), "what nothing dominates is never stopped"
    assert promoted((1.0, 1.0), [(1.0, 1.0)] * 9), "equals are let through"
    assert not promoted((1.0, 1.0), [(0.5, 0.5)])


def test_the_front_agrees_with_its_definition() -> None:
    points = list(itertools.product((1, 2, 3), repeat=2))
    assert [points[at] for at in front(points)] == [(1, 1)]
    assert not dominates((1, 1), (1, 1))


def test_the_hypervolume_agrees_with_counting_cells() -> None:
    draw = random.Random(1)
    points = [(draw.randrange(12), draw.randrange(12)) for _ in range(8)]
    cells = sum(any(x <= i and y <= j for x, y in points) for i in range(10) for j in range(10))
    assert hypervolume(points, (10, 10)) == cells
    assert hypervolume([], (1, 1)) == hypervolume([(2, 0)], (1, 1)) == 0.0
