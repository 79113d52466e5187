"""Widths under a budget: within the limits, and near the best that trying all of them finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.reference.widths import best_widths
from trimtab.compress.allocate import Budget, Choice, Cost, choice, knapsack, ranked_together
from trimtab.errors import PlanError


@dataclass(frozen=True)
class Pair:
    """A layer from one group to the next: its cost is the product of two widths."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weight: float = 1.0

    def groups(self) -> tuple[str, ...]:
        return self.names

    def cost(self, gone: Mapping[str, int]) -> float:
        left = 1
        for name, size in zip(self.names, self.sizes, strict=True):
            left *= size - gone.get(name, 0)
        return self.weight * left


def chain(sizes: list[int], share: float, weights: list[float]) -> Cost:
    """Layers one after the other, from 3 inputs to 5 outputs."""
    names = [str(place) for place in range(len(sizes))]
    terms = [Pair((names[0],), (sizes[0],), 3.0)]
    terms += [Pair((names[i], names[i + 1]), (sizes[i], sizes[i + 1]), weights[i]) for i in range(len(sizes) - 1)]
    terms += [Pair((names[-1],), (sizes[-1],), 5.0)]
    cost = Cost("macs", tuple(terms), lambda term, gone: term.cost(gone), 0.0)
    return Cost(cost.name, cost.terms, cost.value, share * cost.total({}))


def chain_choices(sizes: list[int], step: int, seed: int) -> list[Choice]:
    generator = torch.Generator().manual_seed(seed)
    importance = [torch.rand(size, generator=generator).double() ** 3 for size in sizes]
    return [choice(str(i), values, list(range(step, len(values), step))) for i, values in enumerate(importance)]


@given(
    st.lists(st.sampled_from([8, 16, 24]), min_size=2, max_size=4),
    st.lists(st.sampled_from([1.0, 4.0, 9.0]), min_size=3, max_size=3),
    st.floats(0.2, 0.9),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_loses_little_more_than_the_best_of_all(
    sizes: list[int], weights: list[float], share: float, seed: int
) -> None:
    choices, cost = chain_choices(sizes, 4, seed), chain(sizes, share, weights)
    by_name = {one.group: one for one in choices}
    assume(cost.total({one.group: one.size - one.widths[-1] for one in choices}) <= cost.limit)
    found = knapsack(choices, [cost])
    lost = sum(by_name[name].lost[by_name[name].widths.index(width)] for name, width in found.items())
    assert cost.total({name: by_name[name].size - width for name, width in found.items()}) <= cost.limit
    best, _ = best_widths(choices, [cost])
    assert lost <= best * 1.1 + 1e-9


def test_all_limits_hold_at_once() -> None:
    choices = chain_choices([16, 24], 4, 0)
    costs = [chain([16, 24], 0.6, [1.0]), chain([16, 24], 0.5, [9.0])]
    found = knapsack(choices, costs)
    gone = {one.group: one.size - found[one.group] for one in choices}
    assert all(cost.total(gone) <= cost.limit for cost in costs)
    best, widths = best_widths(choices, costs)
    assert found == widths
    assert best > 0


def test_a_budget_that_cannot_be_met_says_how_far_it_got() -> None:
    choices = [choice("0", torch.rand(16).double(), [8])]
    cost = chain([16], 0.2, [])
    with pytest.raises(PlanError, match=r"macs would have to fall to 0\.2 .*and come to 0\.5 .*Raise the budget"):
        knapsack(choices, [cost])


def test_a_choice_loses_more_the_narrower_it_is() -> None:
    importance = torch.tensor([4.0, 1.0, 2.0, 1.0]).double()
    one = choice("g", importance, [3, 1])
    assert one.widths == (4, 3, 1)
    assert one.lost == pytest.approx((0.0, -torch.tensor(7 / 8).log().item(), -torch.tensor(0.5).log().item()))
    many = choice("g", torch.ones(1000).double(), list(range(1, 1000)))
    assert len(many.widths) <= 34
    assert (many.widths[0], many.widths[-1]) == (1000, 1)
    assert set(choice("g", torch.zeros(4).double(), [2]).lost) == {0.0}


def test_one_ranking_takes_the_least_of_all() -> None:
    kept = ranked_together(
        {"a": torch.tensor([1.0, 1.0, 1.0, 1.0]), "b": torch.tensor([0.1, 0.1, 0.1, 3.7]) * 1e6}, ratio=3 / 8
    )
    assert kept == {"a": 4, "b": 1}


@pytest.mark.parametrize("wrong", [{}, {"macs": 0.0}, {"macs": 1.0}, {"params": 2.0}, {"latency_ms": float("nan")}])
def test_refuses_a_budget_that_is_no_fraction(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=r"fractions of the original between 0 and 1.*Budget\(macs=0\.5\)"):
        Budget(**wrong)
