from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch
from torch import nn

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.core import Fit
from trimtab.errors import TaskError
from trimtab.train.loop import fit, training
from trimtab.train.recompute import Kept, blocks_for, measured

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


def really_kept(model: nn.Module, settings: Fit) -> int:
    """Bytes that a step keeps, each piece of memory once: what autograd saves, and what blocks need to run again."""
    model, seen = copy.deepcopy(model), {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        seen[t.untyped_storage().data_ptr()] = t
        return t

    with training(model, toy_task(), settings) as steps:
        again = [part for part in model.modules() if "forward" in vars(part)]
        for part in again:
            part.register_forward_pre_hook(lambda _, given: (keep(given[0]), None)[1])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            next(steps)
        own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        return sum(t.untyped_storage().nbytes() for place, t in seen.items() if place not in own)


@pytest.mark.parametrize("share", [0.8, 0.6, 0.5])
def test_what_is_kept_falls_under_the_budget_and_the_training_is_the_same(share: float):
    model = blocks()
    whole = really_kept(model, FIT)
    for budget in (share, int(share * whole)):
        settings = dataclasses.replace(FIT, recompute=budget)
        assert really_kept(model, settings) <= share * whole
        assert same_weights(fit(model, toy_task(), settings), fit(model, toy_task()))


def test_no_more_blocks_run_again_than_needed():
    model, task = blocks(), toy_task()
    kept = measured(
        model.train(), lambda m: task.loss(m(task.train.inputs[0][:16].clone()), task.train.targets[:16].clone())
    )
    assert kept.num_bytes() == really_kept(model, FIT)
    counts = [len(blocks_for(kept, share)) for share in (0.99, 0.7, 0.5)]
    assert counts[0] == 1 <= counts[1] <= counts[2] <= 3
    assert blocks_for(kept, kept.num_bytes()) == frozenset()


def test_the_cheaper_of_two_equal_blocks_goes_first():
    own = [frozenset({0}), frozenset({1})]
    kept = Kept((100, 100), tuple(own), (frozenset(), frozenset()), (50, 20))
    assert blocks_for(kept, 100) == {1}
    assert blocks_for(kept, 0.1) == {0, 1}


def test_a_budget_that_cannot_be_met_names_the_least():
    model, settings = blocks(), dataclasses.replace(FIT, recompute=1000)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        TaskError, match=r"at most 1,000 bytes .* still [\d,]+: give at least that, or 0\.\d+ of it"
    ) as error:
        fit(model, toy_task(), settings)
    least = int(re.findall(r"still ([\d,]+)", str(error.value))[0].replace(",", ""))
    assert really_kept(model, dataclasses.replace(FIT, recompute=least)) <= least
    with pytest.raises(TaskError, match="asks that a step keeps at most"):
        fit(model, toy_task(), dataclasses.replace(FIT, recompute=least - 1))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(TaskError, match="recompute=-1"):
        Fit(recompute=-1)


def test_the_model_is_left_without_a_trace():
    model = blocks()
    with training(model, toy_task(), RECOMPUTE) as steps:
        next(steps)
        assert "forward" in vars(model[1])
    assert all("forward" not in vars(part) for part in model.modules())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(TaskError, match=r"Sequential has none: a block is .* or leave recompute away"):
        fit(toy_net(), toy_task(), RECOMPUTE)
