from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.train.toy import FIT, toy_net, toy_task
from trimtab.core import Fit
from trimtab.errors import TaskError
from trimtab.graph.capture import capture
from trimtab.train.fp8 import Fp8, rounded
from trimtab.train.loop import fit, predict, score

FP8 = dataclasses.replace(FIT, precision="fp8")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize(("dtype", "digits"), [(E4M3, 3), (E5M2, 2)])
def test_rounding_is_within_half_a_last_place_and_gives_few_values(dtype, digits):
    for size in (1e-6, 1.0, 1e6):
        x = size * torch.randn(10_000)
        y = rounded(x, dtype)
        large = x.abs() > x.abs().max() * 2.0**-10  # smaller ones are subnormal in e4m3
        assert float(((y - x) / x)[large].abs().max()) <= 2.0 ** -(digits + 1) * (1 + 1e-5)
        assert float(y.abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)
        assert len(y.unique()) <= 256 < len(x.unique())
        torch.testing.assert_close(rounded(y, dtype), y, rtol=1e-6, atol=0)
    assert torch.equal(rounded(torch.zeros(3), dtype), torch.zeros(3))
    assert bool(rounded(torch.tensor([1.0, torch.inf]), dtype).isnan().any())


def test_a_linear_layer_multiplies_rounded_tensors_and_passes_gradients_straight_through():
    layer, x = nn.Linear(8, 4), torch.randn(3, 5, 8, requires_grad=True)
    with Fp8():
        y = layer(x)
    qx, qw = rounded(x.detach(), E4M3), rounded(layer.weight.detach(), E4M3)
    torch.testing.assert_close(y, qx @ qw.T + layer.bias)
    grad = torch.randn_like(y)
    y.backward(grad)
    q = rounded(grad, E5M2)
    torch.testing.assert_close(x.grad, q @ qw)
    torch.testing.assert_close(layer.weight.grad, torch.einsum("abo,abi->oi", q, qx))
    torch.testing.assert_close(layer.bias.grad, grad.sum((0, 1)))
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))  # afterwards nothing rounds


def test_it_learns_modules_and_graphs_alike_and_not_as_fp32_does():
    model, task = toy_net(), toy_task()
    del model[4]  # dropout
    trained = fit(model, task, FP8)
    assert score(trained, task.select, task.metric).mean() > 0.9
    x = task.select.inputs
    assert float((predict(trained, x) - predict(fit(model, task), x)).abs().max()) > 1e-3
    graph = fit(capture(model, (task.train.inputs[0][:4],)), task, FP8)
    torch.testing.assert_close(predict(graph, x), predict(trained, x), rtol=0.1, atol=0.1)


def test_what_cannot_be_is_refused():
    task = dataclasses.replace(toy_task(), augment=None)
    without = nn.Sequential(nn.Conv2d(1, 5, 8), nn.Flatten())
    with pytest.raises(TaskError, match="rounds what linear layers multiply, and the model has none"):
        fit(without, task, FP8)
    with pytest.raises(TaskError, match="cannot be compiled"):
        Fit(precision="fp8", compile=True)
    with pytest.raises(TaskError, match="precision='fp16' or 'fp8'"):
        fit(toy_net(), task, dataclasses.replace(FP8, optimizer="lbfgs", lr=None))
    with pytest.raises(TaskError, match=r"the model is on meta\. .* 8\.9 and more \(Ada, Hopper, Blackwell\)"), Fp8():
        nn.Linear(2, 2, device="meta")(torch.empty(1, 2, device="meta"))
