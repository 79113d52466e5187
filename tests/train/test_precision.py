from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.nets import net
from trimtab.train.precision import autocast, channels_last_, pick_precision


class Slow(nn.Module):
    """Linear, with `work` more matrix products where the product's precision is `where`."""

    def __init__(self, where: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if y.dtype == self.where:
            burden = torch.ones(400, 400)
            for _ in range(20):
                burden = (burden @ burden).clamp(max=1)
            y = y + 0 * burden[0, 0]
        return y


@pytest.mark.parametrize(("slow_in", "picked"), [(torch.float32, "bf16"), (torch.bfloat16, "fp32")])
def test_the_faster_precision_is_picked(slow_in, picked):
    assert pick_precision(Slow(slow_in), (torch.randn(4, 8),)) == picked


class NoBf16(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if y.dtype == torch.bfloat16:
            raise RuntimeError("no kernel for BFloat16")
        return y


def test_a_model_that_cannot_run_in_bf16_trains_in_fp32():
    assert pick_precision(NoBf16(), (torch.randn(4, 8),)) == "fp32"


def test_picking_leaves_the_model_and_the_global_generator_alone():
    model, x = net("conv")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    pick_precision(model, (x,))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_autocast_does_what_its_name_says():
    linear, x = nn.Linear(4, 4), torch.randn(2, 4)
    with autocast("bf16"):
        assert linear(x).dtype == torch.bfloat16
    with autocast("fp32"):
        assert linear(x).dtype == torch.float32


def test_channels_last_changes_the_layout_and_no_value():
    model, x = net("resnet")
    expected = model(x)
    assert channels_last_(model, (x,))
    assert model.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.stem[0].weight.is_contiguous()
    torch.testing.assert_close(model(x), expected)


def test_a_narrow_1x1_convolution_keeps_its_layout():
    # With 6 channels in channels last, the backward pass corrupts the heap on CPUs without AVX-512.
    narrow, wide = (nn.Sequential(nn.Conv2d(c, 13, 1, stride=2, bias=False)) for c in (6, 8))
    assert not channels_last_(narrow, (torch.randn(64, 6, 14, 14),))
    assert narrow[0].weight.is_contiguous()
    assert channels_last_(wide, (torch.randn(64, 8, 14, 14),))


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(len(x), -1)


def test_a_model_that_demands_its_own_layout_keeps_it():
    model = Viewing()
    assert not channels_last_(model, (torch.randn(2, 3, 8, 8),))
    assert model.conv.weight.is_contiguous()
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 144)


def test_a_layout_that_the_user_chose_is_left_alone():
    model, x = net("resnet")
    model.to(memory_format=torch.channels_last)
    assert not channels_last_(model, (x,))
    assert not model.stem[0].weight.is_contiguous()


def test_each_precision_computes_in_what_it_is_called():
    x, weight = torch.randn(4, 8), torch.randn(3, 8)
    exact = {}
    for name, dtype in (
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp8", torch.float32),
    ):
        with autocast(name):
            exact[name] = torch.nn.functional.linear(x, weight)
        assert exact[name].dtype == dtype
    apart = [float((exact[name].float() - exact["fp32"]).abs().max()) for name in ("fp16", "bf16", "fp8")]
    assert 0 < apart[0] < apart[1] < apart[2] < 1


def test_where_bf16_is_emulated_only_an_eighth_of_the_batch_is_timed():
    class Counting(Slow):
        largest = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.largest = max(Counting.largest, len(x))
            return super().forward(x)

    assert pick_precision(Counting(torch.bfloat16), (torch.randn(64, 8),)) == "fp32"
    assert Counting.largest == 8
