from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trimtab.optim import OPTIMIZERS, find_optimizer
from trimtab.optim.base import changed
from trimtab.optim.second_moments import second_moments

STEPS = 5
KNOWN = {"adam", "adamw", "adamw8bit", "cautious_adamw", "nadamw", "radam", "rmsprop", "schedule_free_adamw"}


def stepped(name: str, **settings: float) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, list[Tensor]]]:
    """Model and optimizer after five steps, and the gradients of each parameter that it was given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 64), nn.Linear(64, 3))  # 5,120 weights: enough for 8 bits
    optimizer = changed(find_optimizer(name), **settings).build(model)
    given: dict[str, list[Tensor]] = {key: [] for key, _ in model.named_parameters()}
    for step in range(STEPS):
        for key, p in model.named_parameters():
            p.grad = torch.randn(p.shape) * (1 + step)
            given[key].append(p.grad.clone())
        optimizer.step()
    return model, optimizer, given


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_it_is_the_mean_square_of_the_gradients_weighted_by_beta(name: str) -> None:
    model, optimizer, given = stepped(name)
    found = second_moments(optimizer)
    group = optimizer.param_groups[0]
    beta = group["betas"][1] if "betas" in group else group["alpha"]
    for key, p in model.named_parameters():
        weights = [beta ** (STEPS - 1 - step) for step in range(STEPS)]
        squares = [weight * g.square() for weight, g in zip(weights, given[key], strict=True)]
        expected = torch.stack(squares).sum(0) / sum(weights)
        near = 0.1 if name == "adamw8bit" and p.numel() >= 4096 else 1e-4
        assert found[p].shape == p.shape
        close = (found[p] - expected).abs() <= near * expected + (0.01 * expected.max() if near == 0.1 else 1e-6)
        assert close.all()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - KNOWN - {"muon", "soap"}))
def test_an_optimizer_that_does_not_know_it_gives_none(name: str) -> None:
    if OPTIMIZERS[name].full_batch:
        optimizer = OPTIMIZERS[name].build(nn.Linear(2, 1))
    else:
        _, optimizer, _ = stepped(name)
    assert second_moments(optimizer) == {}


@pytest.mark.parametrize(
    ("name", "known"), [("muon", {"0.bias", "1.weight", "1.bias"}), ("soap", {"0.bias", "1.bias"})]
)
def test_one_that_knows_it_of_some_weights_gives_those(name: str, known: set[str]) -> None:
    model, optimizer, _ = stepped(name)
    found = second_moments(optimizer)
    assert {key for key, p in model.named_parameters() if p in found} == known


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_squares_of_gradient_plus_decay_are_not_the_gradients(name: str) -> None:
    model, optimizer, _ = stepped(name, weight_decay=0.1)
    found = second_moments(optimizer)
    assert {key for key, p in model.named_parameters() if p in found} == {"0.bias", "1.bias"}


def test_before_the_first_step_there_is_none() -> None:
    assert second_moments(OPTIMIZERS["adamw"].build(nn.Linear(2, 1))) == {}
