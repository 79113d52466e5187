from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.optim.curve import follow, gradients, start
from tests.reference import optimizers as reference
from trimtab.optim.adamw8bit import SMALL, AdamW8bit, codes, dequantize, quantize
from trimtab.optim.adaptive import AdamW


@pytest.mark.parametrize("signed", [True, False])
def test_there_are_256_codes_and_the_nearest_is_taken(signed):
    values = codes(signed=signed)
    assert len(set(values.tolist())) == 256
    assert (values.min(), values.max()) == (values[0], 1)
    numbers = start(2000).float() * torch.logspace(-9, 2, 2000)
    numbers[256:512] = 0
    numbers = numbers if signed else numbers.abs()
    back = dequantize(*quantize(numbers, signed=signed), signed=signed)
    assert torch.equal(back, reference.quantized(numbers, values))


def test_it_agrees_with_the_paper_for_100_steps():
    """Adam's formula in fp32 with every state quantized after each step, one number at a time."""
    x, gradient = start(5000).float(), gradients()
    expected, m, v = x, torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, 101):
        g = gradient(expected)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        expected = expected - 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
        m, v = reference.quantized(m, codes(signed=True)), reference.quantized(v, codes(signed=False))
    reached, _ = follow(AdamW8bit(lr=0.01, betas=(0.9, 0.99)), x)
    # A rounding error may put a number on the other side between two codes: few, and little.
    assert (reached - expected).norm() < 1e-3 * (expected - x).norm()


def test_it_goes_nearly_where_adamw_goes_with_a_quarter_of_the_state():
    x = start(100, 200).float()
    plain, adamw = follow(AdamW(lr=0.01, weight_decay=0.1), x)
    small, ours = follow(AdamW8bit(lr=0.01, weight_decay=0.1), x)
    assert (small - plain).norm() < 0.1 * (plain - x).norm()
    size = [
        sum(t.numel() * t.element_size() for state in one.state.values() for t in state.values() if torch.is_tensor(t))
        for one in (adamw, ours)
    ]
    assert size[1] < 0.26 * size[0]


def test_small_tensors_are_adamw_itself():
    x = start(SMALL - 1).float()
    assert torch.equal(follow(AdamW8bit(weight_decay=0), x)[0], follow(AdamW(weight_decay=0), x)[0])


def test_weights_in_channels_last_take_the_same_steps():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = nn.Module()
        model.w = nn.Parameter(start(256, 4, 3, 3).float().contiguous(memory_format=layout))
        optimizer = AdamW8bit(lr=0.01).build(model)
        model.w.grad = torch.ones(256, 4, 3, 3) * 0.5
        for _ in range(3):
            optimizer.step()
        results.append(model.w.detach())
    assert torch.equal(*results)
