from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.optim.curve import gradients, start
from tests.optim.problems import Point
from tests.reference import optimizers as reference
from trimtab.graph.capture import capture
from trimtab.optim.adaptive import AdamW
from trimtab.optim.muon import Muon, as_matrix, faster_in_bf16, hidden_matrices, orthogonal

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.conv = nn.Conv1d(2, 6, 3, padding=1)
        self.row = nn.Linear(24, 1)
        self.norm = nn.LayerNorm(24)
        self.hidden = nn.Linear(24, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, index):
        x = self.norm(self.conv(self.table(index).view(-1, 2, 4)).flatten(1))
        return self.last(self.hidden(x) * self.row(x))


def test_hidden_matrices_are_found_in_modules_and_graphs():
    model = Net()
    assert hidden_matrices(model) == {"conv.weight", "hidden.weight"}
    assert hidden_matrices(capture(model.eval(), (torch.arange(4),))) == {"conv.weight", "hidden.weight"}
    assert hidden_matrices(nn.Linear(3, 3)) == set()


def test_it_agrees_with_the_paper_for_100_steps():
    for shape in ((12, 5), (5, 12), (4, 3, 2, 2)):
        x = start(*shape)
        model = nn.ModuleList([Point(w=x), Point(w=start(2, 2))])
        optimizer, gradient = Muon(lr=0.01, momentum=0.9, weight_decay=0.1).build(model), gradients()
        for _ in range(100):
            model[0].w.grad = gradient(model[0].w.detach())
            optimizer.step()
        again = gradients()
        expected = reference.muon(as_matrix(x), lambda w, g=again, s=shape: as_matrix(g(w.view(s))), 100)
        torch.testing.assert_close(as_matrix(model[0].w.detach()), expected, **CLOSE)


def test_it_agrees_with_torchs_own_which_rounds_to_bf16():
    x = start(12, 5).float()
    points = [Point(w=x), Point(w=x)]
    ours = Muon(lr=0.01, weight_decay=0.1).build(nn.ModuleList([points[0], Point(w=start(2, 2))]))
    torchs = torch.optim.Muon([points[1].w], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(20):
        for point in points:
            point.w.grad = start(12, 5, seed=step).float()
        ours.step()
        torchs.step()
    moved = (points[0].w - x).norm()
    assert (points[0].w - points[1].w).norm() < 0.05 * moved


def test_what_is_not_hidden_takes_adamw_bit_for_bit():
    models = [Net(), Net()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make(lr=0.01, weight_decay=0.1).build(m) for make, m in zip((Muon, AdamW), models, strict=True)]
    for step in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            for name, p in model.named_parameters():
                p.grad = start(*p.shape, seed=step + len(name)).float()
            optimizer.step()
    same = {name for name, p in models[0].named_parameters() if torch.equal(p, models[1].get_parameter(name))}
    assert same == {name for name, _ in models[0].named_parameters()} - {"conv.weight", "hidden.weight"}


def test_singular_values_come_near_one():
    values = torch.linalg.svdvals(orthogonal(start(40, 90)))
    assert 0.6 < values.min() < values.max() < 1.3


@pytest.mark.parametrize(("shape", "large"), [((256, 256), True), ((1152, 128), True), ((128, 128), False)])
def test_large_products_are_in_bf16_where_the_processor_has_it(shape, large, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert faster_in_bf16(matrix if shape[0] <= shape[1] else matrix.T) == large
    found, exact = orthogonal(matrix), orthogonal(matrix.double())
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    in_fp32 = orthogonal(matrix)
    assert found.dtype == in_fp32.dtype == torch.float32
    assert torch.equal(found, in_fp32) != large
    torch.testing.assert_close(in_fp32.double(), exact, rtol=0, atol=1e-4)
    assert (found - exact).norm() < 0.02 * exact.norm()
