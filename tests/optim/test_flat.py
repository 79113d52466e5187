from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.optim.curve import follow, start
from trimtab.optim.flat import PIECE, flat, inverse, order_of
from trimtab.optim.lion import Lion
from trimtab.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD


def test_pieces_change_nothing():
    """Each element is looked at alone: a vector of several pieces goes as its parts go."""
    x, g = start(2 * PIECE + 5).float(), start(2 * PIECE + 5, seed=1).float()
    results = []
    for parts in (1, 4):
        points = [nn.Parameter(part.clone()) for part in x.chunk(parts)]
        optimizer = Lion(lr=0.01).build(nn.ParameterList(points))
        for _ in range(3):
            for p, part in zip(points, g.chunk(parts), strict=True):
                p.grad = part - p.detach()
            optimizer.step()
        results.append(torch.cat([p.detach() for p in points]))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "settings", [Lion(), ScheduleFreeAdamW(), ScheduleFreeSGD(lr=0.01)], ids=lambda s: type(s).__name__
)
def test_weights_of_any_layout_take_the_same_steps(settings):
    results = []
    for lay in (
        lambda w: w,
        lambda w: w.contiguous(memory_format=torch.channels_last),
        lambda w: torch.zeros(*w.shape[:3], 10)[..., ::2].copy_(w),  # with gaps
    ):
        model = nn.Module()
        model.w = nn.Parameter(lay(start(4, 6, 3, 5).float()))
        optimizer = settings.build(model)
        for step in range(3):
            model.w.grad = lay(start(4, 6, 3, 5, seed=step).float())
            given = model.w.grad.clone()
            optimizer.step()
            assert torch.equal(model.w.grad, given)
        results.append(model.w.detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("settings", [Lion(), ScheduleFreeAdamW()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("gradient", [torch.tensor(2.0).expand(6), torch.arange(12.0)[::2]], ids=["one number", "gaps"])
def test_gradients_that_lie_in_no_row_are_read_as_they_are(settings, gradient):
    """Torch's fused kernels read memory and not strides."""
    results = []
    for g in (gradient, gradient.clone(memory_format=torch.contiguous_format)):
        model = nn.Module()
        model.w = nn.Parameter(torch.ones(6))
        optimizer = settings.build(model)
        for _ in range(2):
            model.w.grad = g
            optimizer.step()
        results.append(model.w.detach())
    assert torch.equal(*results)


def test_weights_laid_out_anew_keep_their_state():
    models = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        optimizer = Lion(lr=0.01).build(model)
        for step in range(4):
            if step == 2 and model is models[1]:
                model.to(memory_format=torch.channels_last)
            model.weight.grad, model.bias.grad = start(4, 3, 3, 3, seed=step).float(), start(4).float()
            optimizer.step()
    assert torch.equal(models[0].weight, models[1].weight)


def test_flat_is_a_view_in_the_order_of_memory():
    x = torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert flat(x, x).data_ptr() == x.data_ptr()
    assert inverse(order_of(x)) == [0, 3, 1, 2]
    assert flat(x, x)[:3].tolist() == [0, 20, 40]


def test_the_state_of_bf16_weights_is_fp32_and_stays_so_when_loaded():
    x, y = start(3, 4).bfloat16(), start(3, 4).bfloat16()
    _, optimizer = follow(Lion(), x, steps=2)
    _, other = follow(Lion(), y, steps=1)
    other.load_state_dict(optimizer.state_dict())
    before, after = (next(iter(one.state.values()))["exp_avg"] for one in (optimizer, other))
    assert before.dtype == after.dtype == torch.float32
    assert torch.equal(before, after)
    assert before.data_ptr() != after.data_ptr()
