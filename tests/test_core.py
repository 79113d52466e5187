"""Core values: frozen, and nonsense is refused with the mend."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from trimtab.core import Fit, Goal, Sealed, Split, Target
from trimtab.errors import GoalError, SealError, TaskError


@pytest.mark.parametrize("keep", [1.01, 0.0, -1.0])
def test_keep_must_be_a_fraction(keep: float) -> None:
    with pytest.raises(GoalError, match="0 < keep <= 1"):
        Goal(keep=keep)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"minimise": "joy"}, "Cannot minimise 'joy'; choose one of latency_ms, size_bytes, memory_bytes"),
        ({"drop": -0.1}, "zero or more"),
        ({"confidence": 0.4}, "between 0.5 and 1"),
        ({"minutes": 0}, "more than zero"),
    ],
)
def test_other_goals_that_make_no_sense(settings: dict[str, object], words: str) -> None:
    with pytest.raises(GoalError, match=words):
        Goal(**settings)  # type: ignore[arg-type]


def test_targets_and_fits_that_make_no_sense() -> None:
    with pytest.raises(GoalError, match="not supported yet"):
        Target(device="gpu")  # type: ignore[arg-type]
    with pytest.raises(GoalError, match="batch_size >= 1"):
        Target(batch_size=0)
    with pytest.raises(TaskError, match="epochs >= 1"):
        Fit(epochs=0)


def test_the_seal_breaks_once() -> None:
    sealed = Sealed(Split((torch.zeros(3, 2),), torch.zeros(3)))
    assert len(sealed) == 3
    assert len(sealed.open("the verdict")) == 3
    with pytest.raises(SealError, match="opened before, for 'the verdict'"):
        sealed.open("choosing")


def test_values_are_frozen() -> None:
    goal = Goal()
    with pytest.raises(dataclasses.FrozenInstanceError):
        goal.keep = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("settings", [{"price_per_hour": 0.0}, {"watts": -5.0}, {"watts": float("inf")}])
def test_prices_and_powers_are_more_than_zero(settings: dict[str, float]) -> None:
    with pytest.raises(GoalError, match=f"Target's {next(iter(settings))}=.* must be more than zero"):
        Target(**settings)  # type: ignore[arg-type]
