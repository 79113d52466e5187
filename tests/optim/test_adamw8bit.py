from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.optim.curve import follow, gradients, start
from tests.optim.problems import Point
from tests.reference import optimizers as reference
from trimtab.optim.adamw8bit import BLOCK, ROWS, SMALL, AdamW8bit, codes, decode, dequantize, encode, quantize
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


@pytest.mark.parametrize("signed", [True, False])
def test_the_closed_form_is_the_table_and_takes_the_nearest(signed):
    values = codes(signed=signed)
    found = decode(torch.arange(256, dtype=torch.uint8), signed=signed)
    torch.testing.assert_close(found, values, rtol=1e-6, atol=0)
    middles = (values[1:].double() + values[:-1].double()) / 2
    shares = torch.cat([middles * factor for factor in (1 - 1e-4, 1 + 1e-4)] + [values, start(50_000).clamp(-1, 1)])
    shares = (shares if signed else shares.abs()).float()
    assert torch.equal(encode(shares, signed=signed).long(), torch.searchsorted(middles, shares.double()))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "formula"])
def test_it_agrees_with_the_paper_for_100_steps(compiled, monkeypatch):
    """Adam's formula in fp32 with every state quantized after each step, one number at a time."""
    monkeypatch.setattr("trimtab.optim.adamw8bit.compiled", lambda formula: formula)
    monkeypatch.setattr("trimtab.optim.adamw8bit.ROWS", 8)
    x, gradient = start(5000).float(), gradients()
    expected, m, v = x, torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, 101):
        g = gradient(expected)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        expected = expected - 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)).sqrt() + 1e-8)
        m, v = (
            reference.quantized(one, codes(signed=signed), rounded=not compiled)
            for one, signed in ((m, True), (v, False))
        )
    reached, _ = follow(AdamW8bit(lr=0.01, betas=(0.9, 0.99), compiled=compiled), x)
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


@pytest.mark.parametrize("gradient", [torch.tensor(2.0).expand(SMALL), torch.arange(2.0 * SMALL)[::2]])
def test_gradients_that_lie_in_no_row_are_read_as_they_are(gradient):
    x, g = start(SMALL).float(), gradient.clone(memory_format=torch.contiguous_format)
    found = [follow(AdamW8bit(), x, steps=2, gradient=lambda _, one=one: one)[0] for one in (gradient, g)]
    assert torch.equal(*found)


@pytest.mark.parametrize("begun", [False, True], ids=["eager", "compiled"])
def test_the_state_goes_on_in_the_other_form(begun, monkeypatch):
    monkeypatch.setattr("trimtab.optim.adamw8bit.compiled", lambda formula: formula)
    x = start(60, 100).float()
    expected, _ = follow(AdamW8bit(lr=0.01), x, steps=20)
    model, gradient = Point(x=x), gradients()
    one, other = (AdamW8bit(lr=0.01, compiled=compiled).build(model) for compiled in (begun, not begun))
    for step in range(20):
        if step == 10:
            other.load_state_dict(one.state_dict())
        model.x.grad = gradient(model.x.detach())
        (one if step < 10 else other).step()
    assert (model.x.detach() - expected).norm() < 0.05 * (expected - x).norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # inside torch.compile
def test_compiled_it_does_as_the_formula(monkeypatch):
    x = start(2 * ROWS + 3, BLOCK).float()[:, :-1]
    kernels, _ = follow(AdamW8bit(lr=0.01, compiled=True), x, steps=20)
    monkeypatch.setattr("trimtab.optim.adamw8bit.compiled", lambda formula: formula)
    formula, _ = follow(AdamW8bit(lr=0.01, compiled=True), x, steps=20)
    assert (kernels - formula).norm() < 1e-3 * (formula - x).norm()
