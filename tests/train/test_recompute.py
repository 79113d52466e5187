from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.errors import TaskError
from trimtab.train.loop import fit, training

RECOMPUTE = dataclasses.replace(FIT, recompute=True)


def blocks() -> nn.Module:
    torch.manual_seed(0)
    block = [
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)) for _ in range(3)
    ]
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *block, nn.Flatten(), nn.Linear(256, 5))


def kept_bytes(model: nn.Module, settings) -> int:
    """What a step keeps for its backward pass."""
    sizes: list[int] = []
    pack = lambda t: sizes.append(t.numel() * t.element_size()) or t  # noqa: E731
    with (
        training(copy.deepcopy(model), toy_task(), settings) as steps,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        next(steps)
    return sum(sizes)


def test_it_trains_bit_for_bit_as_without_and_keeps_less():
    model = blocks()
    assert same_weights(fit(model, toy_task(), RECOMPUTE), fit(model, toy_task()))
    assert kept_bytes(model, RECOMPUTE) < 0.6 * kept_bytes(model, FIT)


def test_the_model_is_left_without_a_trace():
    model = blocks()
    with training(model, toy_task(), RECOMPUTE) as steps:
        next(steps)
        assert "forward" in vars(model[1])
    assert all("forward" not in vars(part) for part in model.modules())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(TaskError, match=r"Sequential has none: a block is .* or leave recompute away"):
        fit(toy_net(), toy_task(), RECOMPUTE)
